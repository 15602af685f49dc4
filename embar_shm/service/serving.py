"""One broker in this process: from its creation to its report."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

from embar_shm.address import RingName
from embar_shm.broker import Broker
from embar_shm.config.brokers import BrokerConfig
from embar_shm.errors import EmbarError
from embar_shm.left_behind import remove_dead
from embar_shm.stopping import StopSignals
from embar_shm.token import read_token
from embar_shm.transports import Listener

if TYPE_CHECKING:
    import ssl

__all__ = ["Audience", "Report", "serve"]

_LOOK_EVERY = 0.02  # seconds between two looks for the first batch, in the beginning
_LOOK_EVERY_LATER = 1.0
_START_TIME = 19  # in /proc/self/stat, behind the name: field 22 of proc(5)


class Report(TypedDict):
    """What a broker did."""

    stats: dict[str, Any]
    sockets: list[dict[str, Any] | None]
    """Of each listener, in the order of `listen`; None: it has none."""


class Audience(Protocol):
    """Who is told what happens to brokers, by name. Called in the main thread."""

    def ready(self, addresses: Mapping[str, list[str]]) -> None:
        """All of them can be used, at these addresses. Told once at most."""

    def recovered(self, name: str, recovery: Mapping[str, Any]) -> None:
        """One of them goes on where one that died was: a `Recovery`. Told before `ready`."""

    def goes_on(self, name: str, seconds: float, since_start: float) -> None:
        """It has accepted its first batch, so long after it began to take the ring over, and after
        its process was started."""

    def alive(self) -> None:
        """None of them is hung. Told again and again."""

    def stopping(self, why: str) -> None:
        """They are being ended."""

    def ended(self, reports: Mapping[str, Report]) -> None:
        """They have ended, in order; told after `ready` only."""


def serve(
    config: BrokerConfig,
    audience: Audience,
    period: float | None = None,
    *,
    patient: bool = False,
) -> None:
    """Runs the broker until SIGTERM, and then returns; until Ctrl-C, KeyboardInterrupt.

    In the main thread. Goes on where a broker that died was, unless that is to be replaced.
    `period`: seconds between two `alive`; None: there are none. Raises what
    `Broker.open_or_recover`, `listen` and `serve` raise. However it ends, the segment is unlinked,
    unless it is damaged. A second signal ends a wait for publishers' threads, unless `patient`.
    """
    token = None if config.token_file is None else read_token(config.token_file)
    context = _tls(config)
    brokers: list[Broker] = []

    def interrupt() -> None:
        for broker in brokers:
            broker.stop()

    with StopSignals(interrupt, patient=patient) as stop:
        with _create(config) as broker:
            brokers.append(broker)
            listeners = [
                broker.listen(
                    url,
                    token=token,
                    tls=context,
                    insecure=config.insecure,
                    socket_buffer=config.socket_buffer,
                )
                for url in config.listen
            ]
            if stop.asked is None:
                _serve(broker, listeners, audience, period, stop)
        if stop.asked == signal.SIGINT:
            raise KeyboardInterrupt


def _create(config: BrokerConfig) -> Broker:
    if config.replace_dead:
        remove_dead(RingName.parse(config.name))
    return Broker.open_or_recover(
        config.name,
        slots=config.slots,
        slot_size=config.slot_size,
        max_publishers=config.max_publishers,
        max_subscribers=config.max_subscribers,
        retain=config.retain,
        wait=config.wait,
        spin_us=config.spin_us,
        group=config.group,
    )


def _tls(config: BrokerConfig) -> ssl.SSLContext | None:
    if config.tls_cert is None or config.tls_key is None:
        return None
    from embar_shm import tls  # most brokers have none, and would load OpenSSL

    return tls.server_context(config.tls_cert, config.tls_key, config.tls_client_ca)


def _serve(
    broker: Broker,
    listeners: list[Listener],
    audience: Audience,
    period: float | None,
    stop: StopSignals,
) -> None:
    why = "stopping"
    try:  # from the moment on at which somebody may know that we are here
        addresses = [broker.address, *(listener.address for listener in listeners)]
        if broker.recovery is not None:
            audience.recovered(broker.name, dataclasses.asdict(broker.recovery))
        audience.ready({broker.name: addresses})
        if broker.recovery is not None:
            _serve_until_first_accept(broker, audience, period, stop)
        while stop.asked is None:
            broker.serve(period)
            if stop.asked is None:
                audience.alive()
    except EmbarError as error:
        why = f"failed: {error.message}"
        raise
    finally:
        audience.stopping(why)
        broker.close()
        audience.ended({broker.name: _report(broker, listeners)})


def _serve_until_first_accept(
    broker: Broker, audience: Audience, period: float | None, stop: StopSignals
) -> None:
    """Tells when the ring that was taken over gets on."""
    recovery, told, pause = broker.recovery, time.monotonic(), _LOOK_EVERY
    while stop.asked is None and recovery is not None:
        broker.serve(pause)
        pause = min(2 * pause, _LOOK_EVERY_LATER)  # nobody may publish for days
        if (first := broker.first_accept) is not None:
            audience.goes_on(broker.name, first - recovery.began, first - _process_start())
            return
        if stop.asked is None and period is not None and time.monotonic() - told >= period:
            told = time.monotonic()
            audience.alive()


def _process_start() -> float:
    """When this process was started, in terms of `time.monotonic`, to the kernel's 10 ms."""
    ticks = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[_START_TIME]
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(ticks) / os.sysconf("SC_CLK_TCK")
    return time.monotonic() - age


def _report(broker: Broker, listeners: list[Listener]) -> Report:
    found = [listener.sockets() for listener in listeners]
    return {
        "stats": dataclasses.asdict(broker.stats()),
        "sockets": [None if s is None else dataclasses.asdict(s) for s in found],
    }
