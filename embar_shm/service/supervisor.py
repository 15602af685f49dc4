"""Several brokers, each in a process of its own, that live and end together.

Processes, because a broker that crashes must not take the rings of the others with it. One that is
killed is started again, and goes on with its ring; only when that happens again and again, or one
ends in another way, the others are ended in good order.
"""

from __future__ import annotations

import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import IO, Any, cast

from embar_shm import errors
from embar_shm.config.brokers import BrokerConfig
from embar_shm.errors import BrokerGone, EmbarError
from embar_shm.service.serving import Audience, Report
from embar_shm.stopping import StopSignals

__all__ = ["supervise"]

_GRACE = 30.0  # seconds that a broker may take to end before it is killed
_RESTARTS = 5  # of one broker that is killed, within
_RESTARTS_WITHIN = 60.0  # seconds; more often, and it is given up
_log = logging.getLogger("embar_shm.supervisor")


def supervise(
    configs: Sequence[BrokerConfig], audience: Audience, period: float | None = None
) -> None:
    """Runs the brokers until SIGTERM, and then returns; until Ctrl-C, KeyboardInterrupt.

    In the main thread. One that is killed once it was ready is started again. When one of them does
    not start, or ends by itself, or is killed too often, the others are ended, and its error is
    raised: its own, or `BrokerGone` when it died. `period`: as in `serving.serve`.
    """
    with StopSignals() as stop:
        children = _Children(configs, period)
        why = "stopping"
        try:
            children.run(audience, stop)
        except EmbarError as error:
            why = f"failed: {error.message}"
            raise
        finally:
            audience.stopping(why)
            failure = children.end()
            if children.were_ready:
                audience.ended(children.in_order())
        if failure is not None:
            raise failure
        if stop.asked == signal.SIGINT:
            raise KeyboardInterrupt


class _Child:
    """One process, and what it says."""

    def __init__(self, config: BrokerConfig, period: float | None) -> None:
        self.name = config.name
        self.config = config
        self._pending = b""
        self._process = subprocess.Popen(
            # -P: the installed package, not a folder of the same name where the command runs
            [sys.executable, "-P", "-m", "embar_shm.service.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,  # Ctrl-C is for the parent
        )
        self._stdout = cast(IO[bytes], self._process.stdout)
        spec = {
            "parent": os.getpid(),
            "config": config.model_dump(mode="json"),
            "period": period,
        }
        with suppress(BrokenPipeError), cast(IO[bytes], self._process.stdin) as stdin:
            stdin.write(json.dumps(spec).encode())  # one that is dead already will be noticed

    def __str__(self) -> str:
        return f"the broker {self.name} (pid {self._process.pid})"

    def fileno(self) -> int:
        """Readable when it said something, or ended."""
        return self._stdout.fileno()

    def hear(self) -> list[dict[str, Any]] | None:
        """What it said since the last call; None: it will say no more."""
        data = os.read(self.fileno(), 65536)
        *lines, self._pending = (self._pending + data).split(b"\n")
        return [json.loads(line) for line in lines] if data else None

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()

    def wait(self) -> int:
        """Its exit code, once it has closed its output."""
        code = self._process.wait()
        self._stdout.close()
        return code

    def was_killed(self) -> bool:
        """Once it has said its last: was it ended by a signal that it cannot handle?"""
        code = self.wait()
        return code < 0 and code != -signal.SIGTERM

    def death(self) -> BrokerGone:
        """Why it said no more."""
        code = self.wait()
        if code < 0:
            return BrokerGone(
                f"{self} was killed by signal {-code}",
                "its ring is still there: start it again, and it goes on with what is in it",
            )
        how = "was stopped" if code == 0 else f"ended with exit code {code}"
        return BrokerGone(f"{self} {how}", "the others were ended with it; its messages are above")


class _Children:
    """All processes."""

    def __init__(self, configs: Sequence[BrokerConfig], period: float | None) -> None:
        self.reports: dict[str, Report] = {}
        self.were_ready = False
        self._period = period
        self._running = [_Child(config, period) for config in configs]
        self._selector: selectors.BaseSelector
        self._restarts: dict[str, list[float]] = {}  # by name: when it was started again
        self._names = [config.name for config in configs]
        self._addresses: dict[str, list[str]] = {}
        self._alive: set[str] = set()

    def run(self, audience: Audience, stop: StopSignals) -> None:
        """Returns when a signal came; raises when one of them ended."""
        for child, event in self._events(stop):
            match event["event"]:
                case "ready":
                    self._addresses |= event["addresses"]
                    if len(self._addresses) == len(self._names) and not self.were_ready:
                        audience.ready({name: self._addresses[name] for name in self._names})
                        self.were_ready = True
                case "gone" if self.were_ready and child.was_killed() and self._may_restart(child):
                    self._restart(child)
                case "recovered":
                    audience.recovered(event["name"], event["recovery"])
                case "goes_on":
                    audience.goes_on(event["name"], event["seconds"], event["since_start"])
                case "alive":
                    self._alive.add(child.name)
                    if len(self._alive) == len(self._names):  # each of them since the last time
                        self._alive.clear()
                        audience.alive()
                case _:
                    self._note(child, event)

    def _may_restart(self, child: _Child) -> bool:
        now = time.monotonic()
        times = self._restarts.setdefault(child.name, [])
        times[:] = [moment for moment in times if now - moment < _RESTARTS_WITHIN]
        if len(times) >= _RESTARTS:
            return False
        times.append(now)
        return True

    def _restart(self, child: _Child) -> None:
        """A new process for the broker goes on with its ring, and listens where it did."""
        _log.warning("%s: it is started again", child.death().message)
        _, *listen = self._addresses[child.name]
        config = child.config.model_copy(update={"listen": tuple(listen), "replace_dead": False})
        again = _Child(config, self._period)
        self._running.append(again)
        self._selector.register(again, selectors.EVENT_READ, again)

    def end(self) -> EmbarError | None:
        """Ends those that still run, and takes their reports; what went wrong with one of them."""
        failure: EmbarError | None = None
        for child in self._running:
            child.terminate()
        for child, event in self._events(deadline=time.monotonic() + _GRACE):
            code = child.wait() if event["event"] == "gone" else None
            if code == 0 or (code == -signal.SIGTERM and self._had_nothing(child)):
                continue
            try:
                self._note(child, event)
            except EmbarError as error:
                failure = failure or error
        for child in self._running:
            failure = BrokerGone(
                f"{child} did not end within {_GRACE:g} s and was killed",
                "its ring is still there: start it again, and it goes on with what is in it",
            )
            child.kill()
            child.wait()
        return failure

    def _had_nothing(self, child: _Child) -> bool:
        """SIGTERM met it before there was a ring, or a second one when it had gone."""
        return child.name in self.reports or child.name not in self._addresses

    def in_order(self) -> dict[str, Report]:
        """The reports of those that could give one, in the order of the configuration."""
        return {name: self.reports[name] for name in self._names if name in self.reports}

    def _note(self, child: _Child, event: dict[str, Any]) -> None:
        if event["event"] == "ended":
            self.reports |= event["reports"]
        elif event["event"] == "gone":
            raise child.death()
        elif event["event"] == "error":
            kind = getattr(errors, event["kind"], BrokerGone)
            raise kind(f"{child}: {event['message']}", event["hint"])

    def _events(
        self, stop: StopSignals | None = None, deadline: float | None = None
    ) -> Iterator[tuple[_Child, dict[str, Any]]]:
        """What they say, and "gone", until `stop` is asked, the deadline, or nobody is left."""
        with selectors.DefaultSelector() as selector:
            self._selector = selector
            for child in self._running:
                selector.register(child, selectors.EVENT_READ, child)
            if stop is not None:
                selector.register(stop.fd, selectors.EVENT_READ)
            while self._running and (stop is None or stop.asked is None):
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return
                for key, _ in selector.select(left):
                    if key.data is not None:
                        yield from self._said(key.data)

    def _said(self, child: _Child) -> Iterator[tuple[_Child, dict[str, Any]]]:
        events = child.hear()
        if events is None:
            self._selector.unregister(child)
            self._running.remove(child)
            events = [{"event": "gone"}]
        yield from ((child, event) for event in events)
