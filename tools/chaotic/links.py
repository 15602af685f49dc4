"""The TCP connections of a chaos run: a process of its own with a proxy for each link."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from typing import Any

from embar_shm import _core
from embar_shm.testing import Cut, Proxy

__all__ = ["Links", "serve_links"]


class Links:
    """What the conductor says to that process. What it says is done soon, and in order."""

    def __init__(self, targets: list[str]) -> None:
        ours, theirs = os.pipe(), os.pipe()  # from it, to it
        conductor = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(ours[0])
            os.close(theirs[1])
            code = 1
            try:
                _core.die_with_parent(conductor, signal.SIGKILL)
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                serve_links(targets, theirs[0], ours[1])
                code = 0
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(code)
        os.close(ours[1])
        os.close(theirs[0])
        with os.fdopen(ours[0]) as answer:
            self.addresses: list[str] = json.loads(answer.readline())
        self._orders = theirs[1]
        self._held: Counter[tuple[str, int]] = Counter()

    def cut(self, link: int, how: str) -> None:
        """Ends its connections: "reset", "closed", "client only"; and perhaps the next one."""
        told, _, later = how.partition(", the next one after ")
        after, _, direction = later.partition(" bytes ")
        self._order("cut", link, told, int(after or 0), direction)

    def begin(self, what: str, link: int) -> None:
        """ "hold": nothing passes; "refuse": nobody may connect. May nest."""
        self._held[what, link] += 1
        if self._held[what, link] == 1:
            self._order(what, link)

    def end(self, what: str, link: int) -> None:
        """The end of `begin`."""
        self._held[what, link] -= 1
        if self._held[what, link] == 0:
            self._order({"hold": "go on", "refuse": "admit"}[what], link)

    def stop(self) -> int:
        """Ends the process in order; its exit code."""
        os.close(self._orders)
        return self._buried()

    def kill(self) -> None:
        """Ends it, if it has not ended."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            self._buried()

    def _buried(self) -> int:
        pid, self.pid = self.pid, 0
        _, status = os.waitpid(pid, 0)
        return os.waitstatus_to_exitcode(status)

    def _order(self, *order: Any) -> None:
        os.write(self._orders, json.dumps(order).encode() + b"\n")


def serve_links(targets: list[str], orders: int, answer: int) -> None:
    """That process: a proxy for each target, until there are no more orders."""
    proxies = [Proxy(target) for target in targets]
    os.write(answer, json.dumps([proxy.address for proxy in proxies]).encode() + b"\n")
    os.close(answer)
    with os.fdopen(orders) as lines:
        for line in lines:
            what, link, *how = json.loads(line)
            _obey(proxies[link], what, how)
    for proxy in proxies:
        proxy.close()


def _obey(proxy: Proxy, what: str, how: list[Any]) -> None:
    match what:
        case "cut":
            told, after, direction = how
            reset = told != "closed"
            side: Any = "client" if told == "client only" else "both"
            if direction:
                proxy.plan([Cut(direction, after, reset, side)])
            proxy.cut(side, reset=reset)
        case "hold":
            proxy.hold()
        case "go on":
            proxy.go_on()
        case "refuse":
            proxy.refuse()
        case "admit":
            proxy.admit()
