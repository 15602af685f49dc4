"""What a run can be: eight scenarios as a table of phases, and what they ask of a configuration.

A phase is the set of roles that work at the same time, between a barrier and the end of the last of
them. Where reading follows publishing, the log must hold everything until then. What does not fit
into the rings is done in rounds: fill, read, fill, read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from embar_shm import _core
from embar_shm.address import split_address
from embar_shm.config.loader import LoadedConfig
from embar_shm.config.schema import RunConfig
from embar_shm.errors import ConfigurationError

__all__ = [
    "SCENARIOS",
    "Role",
    "Scenario",
    "batch_messages",
    "check",
    "consumed",
    "round_batches",
    "stamped",
]

Role = Literal["publisher", "subscriber"]
_PUBLISH: Final = ("publisher",)
_SUBSCRIBE: Final = ("subscriber",)
_BOTH: Final = ("publisher", "subscriber")


@dataclass(frozen=True, slots=True)
class Scenario:
    """One row of the table. `number` is the original system's TEST_TYPE."""

    number: int
    phases: tuple[tuple[Role, ...], ...]
    consume: Literal["bytes", "messages"] = "bytes"  # what consume=auto means
    is_stamped: bool = False  # messages carry a stamp without verify, too
    kills: bool = False  # a broker, in the middle
    counts_end_to_end: bool = (
        True  # is the time from the first message to its last reader a result?
    )

    @property
    def reads_afterwards(self) -> bool:
        """Does the log hold everything before anybody reads?"""
        return _SUBSCRIBE in self.phases


SCENARIOS: Final[Mapping[str, Scenario]] = {
    "publish-then-subscribe": Scenario(0, (_PUBLISH, _SUBSCRIBE)),
    "end-to-end": Scenario(1, (_BOTH,)),
    "latency": Scenario(2, (_BOTH,), is_stamped=True, counts_end_to_end=False),
    "parallel": Scenario(3, (_BOTH,)),
    "broker-failure": Scenario(4, (_BOTH,), is_stamped=True, kills=True, counts_end_to_end=False),
    "publish": Scenario(5, (_BOTH,), counts_end_to_end=False),  # mostly nobody reads
    "subscribe": Scenario(6, (_PUBLISH, _SUBSCRIBE), counts_end_to_end=False),
    "publish-then-consume": Scenario(7, (_PUBLISH, _SUBSCRIBE), consume="messages"),
}
"""By the name that the key `scenario` has."""


def batch_messages(values: RunConfig) -> int:
    """Messages in a full batch."""
    return values.batch_size // values.message_size


def consumed(values: RunConfig) -> str:
    """What subscribers do with a batch: nothing, bytes, messages."""
    return SCENARIOS[values.scenario].consume if values.consume == "auto" else values.consume


def stamped(values: RunConfig) -> bool:
    """Does every message begin with a stamp?"""
    return values.verify or SCENARIOS[values.scenario].is_stamped


def round_batches(values: RunConfig) -> int:
    """Batches that each publisher can leave in the log when nobody has read it yet."""
    return min(values.in_flight, values.slots // values.publishers_per_broker)


def check(config: LoadedConfig) -> None:
    """Raises `ConfigurationError` for what the scenario cannot do; names where it came from."""
    values, scenario = config.values, SCENARIOS[config.values.scenario]
    for address in values.addresses:
        scheme, _ = split_address(address)
        if scheme != values.transport:
            raise ConfigurationError(
                f"{address} is not an address of the transport {values.transport}",
                f"--transport {scheme}",
            )
    _check_messages(config)
    _check_subscribers(config, scenario)
    if scenario.kills and values.ack == 0:
        raise ConfigurationError(
            f"scenario {values.scenario} with ack 0 ({config.origins['ack']}): without "
            "acknowledgements nobody knows what to send again",
            "--ack 1",
        )
    if values.addresses and (scenario.kills or scenario.reads_afterwards):
        why = "kills a broker" if scenario.kills else "needs brokers that keep what nobody has read"
        raise ConfigurationError(
            f"scenario {values.scenario} {why}: with connect ({config.origins['connect']}) they "
            "are not the run's own",
            "run it without --connect, or choose the scenario end-to-end",
        )
    if scenario.reads_afterwards and round_batches(values) == 0:
        raise ConfigurationError(
            f"{values.publishers_per_broker} publishers of a broker with {values.slots} slots "
            f"({config.origins['slots']}) cannot leave a batch each for scenario {values.scenario}",
            f"--slots {values.publishers_per_broker} at least, or fewer publishers",
        )


def _check_messages(config: LoadedConfig) -> None:
    values = config.values
    if not stamped(values) or values.message_size >= _core.STAMP_BYTES:
        return
    whose = "verify" if values.verify else f"scenario {values.scenario}"
    raise ConfigurationError(
        f"message_size {values.message_size} ({config.origins['message_size']}) is too small for "
        f"{whose}: publisher, number, time and checksum take {_core.STAMP_BYTES} bytes",
        f"--message-size {_core.STAMP_BYTES} or more",
    )


def _check_subscribers(config: LoadedConfig, scenario: Scenario) -> None:
    values = config.values
    if not values.subscribers:
        needed = "verify" if values.verify else f"scenario {values.scenario}"
        if values.verify or scenario.reads_afterwards or scenario.counts_end_to_end:
            raise ConfigurationError(
                f"{needed} without subscribers ({config.origins['subscribers_per_broker']}): "
                "nobody would read what is published",
                "--subscribers-per-broker 1",
            )
    elif values.subscribe_mode == "lossy" and (values.addresses or scenario.kills):
        raise ConfigurationError(
            f"subscribe_mode lossy ({config.origins['subscribe_mode']}): where "
            f"{'a broker dies' if scenario.kills else 'brokers run elsewhere'}, nobody can tell "
            "when a subscriber that loses batches has come to the end",
            "--subscribe-mode reliable",
        )
