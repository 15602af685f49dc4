"""Every key of a run: its type, default, bounds, other names, and what it must agree with.

This module is the only list of keys. The YAML files, the EMBAR_* variables, the command line flags
and their help are all made from it, so a key cannot exist in one place and be ignored in another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Final, Literal

from pydantic import AliasChoices, BeforeValidator, Field, model_validator

from embar_shm.config.fields import AtMost, Fields, Key, check_value, keys_of
from embar_shm.config.fields import Boolean as _Boolean
from embar_shm.config.fields import FilePath as _Path
from embar_shm.config.fields import Milliseconds as _Milliseconds
from embar_shm.config.fields import Seconds as _Seconds
from embar_shm.config.fields import Shown as _Shown
from embar_shm.config.fields import Size as _Size
from embar_shm.config.fields import Whole as _Whole
from embar_shm.config.values import (
    address_list,
    number,
    optional_size,
    optional_whole_number,
    order_level,
    transport_name,
)

__all__ = [
    "KEYS",
    "OF_OWN_BROKERS",
    "OF_PACED",
    "OF_SUBSCRIBERS",
    "OF_TCP",
    "OF_UNPACED",
    "RULES",
    "AtMost",
    "Key",
    "RunConfig",
    "broken_rules",
    "check_value",
]


class _Fields(Fields):
    """The fields of `RunConfig`, each checked on its own."""

    scenario: Literal[
        "publish",
        "publish-then-subscribe",
        "end-to-end",
        "latency",
        "parallel",
        "broker-failure",
        "subscribe",
        "publish-then-consume",
    ] = Field(
        default="publish",
        description="What is measured: publishing; writing first and reading then; both at a time; "
        "latency at a given rate; many of each side; a broker that is killed; reading only; "
        "reading one by one. docs/scenarios.md tells more.",
    )
    transport: Annotated[str, BeforeValidator(transport_name), _Shown("NAME")] = Field(
        default="shm",
        description="How batches reach the brokers: shm, tcp, or an installed plug-in.",
    )
    connect: Annotated[str | None, BeforeValidator(address_list), _Shown("URL,...")] = Field(
        default=None,
        description="Publish to brokers that run elsewhere, one URL for each ('embar-shm broker' "
        "starts one), instead of starting any.",
    )
    brokers: _Whole = Field(
        default=4, ge=1, le=256, description="Broker processes, each with a ring of its own."
    )
    publishers_per_broker: _Whole = Field(
        default=3,
        ge=1,
        le=1024,
        validation_alias=AliasChoices("publishers_per_broker", "threads_per_broker"),
        description="Publisher processes that write to each broker.",
    )
    subscribers_per_broker: Annotated[
        int | None,
        BeforeValidator(optional_whole_number),
        _Shown("N", "what the scenario needs"),
    ] = Field(
        default=None,
        ge=0,
        le=64,
        description="Subscriber processes that read each broker's log.",
    )
    subscribe_mode: Literal["reliable", "lossy"] = Field(
        default="reliable",
        description="Subscribers that publishers wait for, or that lose what comes too fast.",
    )
    consume: Literal["auto", "nothing", "bytes", "messages"] = Field(
        default="auto",
        description="What a subscriber does with a batch: no more than taking it, read every byte, "
        "or go through its messages one by one; auto: what the scenario is about.",
    )
    message_size: _Size = Field(default=1024, ge=1, description="Bytes in one message.")
    batch_size: _Size = Field(
        default=2 * 1024**2, ge=1, description="Bytes of messages collected into one batch."
    )
    total_bytes: _Size = Field(
        default=10 * 1024**3,
        ge=1,
        validation_alias=AliasChoices("total_bytes", "total", "total_message_size"),
        description="Bytes of messages that all publishers send together.",
    )
    order: Annotated[int, BeforeValidator(order_level), _Shown("N")] = Field(
        default=0,
        description="Ordering guarantee: 0 keeps each publisher's order on each broker.",
    )
    ack: _Whole = Field(
        default=1,
        ge=0,
        le=1,
        description="Acknowledgement: 0 none, 1 when the broker has accepted the batch.",
    )
    producer: Literal["one", "many"] = Field(
        default="one",
        description="Publish one message per call, or many messages from one array per call.",
    )
    messages_per_call: _Whole = Field(
        default=64,
        ge=1,
        le=2**31 - 1,
        description="Messages in one call; used with producer 'many' only.",
    )
    rate: Annotated[float, BeforeValidator(number), _Shown("N")] = Field(
        default=10_000.0,
        gt=0,
        le=1e9,
        description="latency: messages per second that all publishers together send, whether the "
        "brokers keep up or not.",
    )
    duration: _Seconds = Field(
        default=10.0,
        gt=0,
        le=86_400,
        description="latency: longest time that messages are sent, if total_bytes lasts so long.",
    )
    verify: _Boolean = Field(
        default=False,
        description="Number and checksum every message, and let every subscriber check each.",
    )
    slots: _Whole = Field(
        default=8, ge=1, le=4096, description="Batch slots in each broker's ring."
    )
    slot_size: Annotated[
        int | None, BeforeValidator(optional_size), _Shown("SIZE", "batch_size")
    ] = Field(
        default=None, ge=1, description="Bytes of batch data a slot holds; none follows batch_size."
    )
    in_flight: _Whole = Field(
        default=2, ge=1, le=4096, description="Slots one publisher may hold at once."
    )
    max_publishers: _Whole = Field(
        default=64,
        ge=1,
        le=1000,
        description="Rows in each broker's participants table: publishers that can be connected.",
    )
    wait: Literal["adaptive", "spin", "block"] = Field(
        default="adaptive",
        description="How a process waits: spin, block in the kernel, or spin first and then block.",
    )
    spin_us: _Whole = Field(
        default=50,
        ge=0,
        le=1000,
        description="Microseconds an adaptive wait spins before it blocks.",
    )
    broker_scheduling: Literal["batch", "normal"] = Field(
        default="batch",
        description="Scheduling policy of the broker processes: batch (SCHED_BATCH) does not "
        "interrupt publishers in the middle of a batch, normal accepts sooner on a busy machine.",
    )
    # Written `copy` everywhere outside Python: BaseModel owns that attribute name.
    copy_mode: Literal["auto", "plain", "nontemporal"] = Field(
        default="auto",
        validation_alias=AliasChoices("copy"),
        serialization_alias="copy",
        description="How messages are copied into a slot: through the cache, past it, or by size.",
    )
    socket_buffer: Annotated[
        int | None,
        BeforeValidator(optional_size),
        _Shown("SIZE", "what the transport thinks best"),
    ] = Field(
        default=None,
        ge=1,
        description="tcp: bytes that the kernel should hold for a connection, in each direction.",
    )
    token_file: _Path = Field(
        default=None,
        description="tcp: a file with the secret that publishers must know; readable by you only.",
    )
    tls_cert: _Path = Field(
        default=None,
        description="tcp: PEM certificate of the brokers, or of the publishers with connect.",
    )
    tls_key: _Path = Field(default=None, description="tcp: PEM file with the key of tls_cert.")
    tls_ca: _Path = Field(
        default=None,
        description="tcp: PEM certificates by which publishers trust brokers; turns TLS on.",
    )
    linger_ms: _Milliseconds = Field(
        default=100.0,
        ge=0,
        le=86_400_000,
        description="Longest time a partial batch waits for more messages; 0 sets no limit.",
    )
    timeout: _Seconds = Field(
        default=30.0,
        gt=0,
        le=86_400,
        description="Longest time without progress before the run fails.",
    )
    sample_every: _Whole = Field(
        default=256,
        ge=0,
        le=2**31 - 1,
        description="Time one in N messages, and each batch; 0 takes no stage times.",
    )
    ceiling: _Boolean = Field(
        default=True,
        description="Also measure what the machine can do: memory copy, loopback TCP.",
    )


RULES: Final = (
    AtMost("message_size", "batch_size", "a message must fit into one batch"),
    AtMost("batch_size", "slot_size", "a batch must fit into one slot"),
    AtMost("message_size", "total_bytes", "a run sends at least one message"),
    AtMost("in_flight", "slots", "a publisher cannot hold more slots than the ring has"),
    AtMost("publishers_per_broker", "max_publishers", "each publisher needs a row in the table"),
)


OF_OWN_BROKERS: Final = ("slots", "slot_size", "max_publishers", "broker_scheduling")
"""What configures the brokers that a run starts. With `connect` it starts none: not used then."""

OF_SUBSCRIBERS: Final = ("subscribe_mode", "consume")
"""What configures subscribers. Not used without any."""

OF_PACED: Final = ("rate", "duration")
"""What the scenario latency needs, and no other."""

OF_UNPACED: Final = ("producer", "messages_per_call", "linger_ms")
"""What the scenario latency has no use for: it flushes each message."""

OF_TCP: Final = ("socket_buffer", "token_file", "tls_cert", "tls_key", "tls_ca")
"""What shared memory has no use for."""


def broken_rules(values: Mapping[str, object]) -> Iterator[AtMost]:
    """The rules that `values` breaks. One about an absent, None or unused value is not broken."""
    unused = () if values.get("connect") is None else OF_OWN_BROKERS
    for rule in RULES:
        if rule.high not in unused and rule.is_broken_by(values):
            yield rule


class RunConfig(_Fields):
    """The complete, checked configuration of one run.

    Build it with `embar_shm.config.load`, which also says where each value came from, or directly:
    `RunConfig(brokers=1)`. Direct construction raises `pydantic.ValidationError`.
    """

    @model_validator(mode="after")
    def _keep_rules(self) -> RunConfig:
        broken = [
            f"{rule.low} exceeds {rule.high}: {rule.because}" for rule in broken_rules(dict(self))
        ]
        if broken:
            raise ValueError("; ".join(broken))
        return self

    @property
    def addresses(self) -> list[str]:
        """The brokers that run elsewhere; empty: the run starts its own."""
        return [] if self.connect is None else self.connect.split(",")

    @property
    def publishers(self) -> int:
        """Publishers of the whole run."""
        return self.brokers * self.publishers_per_broker

    @property
    def effective_subscribers_per_broker(self) -> int:
        """`subscribers_per_broker`, or when that is None what the scenario needs."""
        if self.subscribers_per_broker is not None:
            return self.subscribers_per_broker
        if self.scenario == "parallel":
            return min(self.publishers_per_broker, 64)
        return int(self.scenario != "publish" or self.verify)

    @property
    def subscribers(self) -> int:
        """Subscribers of the whole run."""
        return self.brokers * self.effective_subscribers_per_broker

    @property
    def is_paced(self) -> bool:
        """Are messages sent at `rate`, each for itself?"""
        return self.scenario == "latency"

    @property
    def effective_slot_size(self) -> int:
        """Bytes of batch data one slot holds: `slot_size`, or `batch_size` when that is None."""
        return self.batch_size if self.slot_size is None else self.slot_size

    @property
    def total_messages(self) -> int:
        """Whole messages in `total_bytes`, over all publishers; paced ones end with `duration`."""
        messages = self.total_bytes // self.message_size
        return (
            min(messages, max(1, round(self.rate * self.duration))) if self.is_paced else messages
        )


KEYS: Final = keys_of(_Fields)
"""All keys, in the order in which they are documented, printed and recorded."""
