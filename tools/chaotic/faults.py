"""Doing what the plan says, to whom it says."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress

from chaotic.company import Company
from chaotic.crew import Life
from chaotic.own_shm import Filler
from chaotic.plan import Fault

__all__ = ["Faults"]

_HOGS = 2
_LOWEST = 19  # nice


class Faults:
    """Injects them. What lasts is ended by `after`."""

    def __init__(
        self, company: Company, after: Callable[[float, Callable[[], None]], None]
    ) -> None:
        self._company = company
        self._after = after
        self._filler = Filler()

    def inject(self, fault: Fault) -> str:
        """Does it; else why not."""
        match fault.kind:
            case "cut":
                self._company.links.cut(_number(fault), fault.how)
                return ""
            case "hold" | "refuse":
                return self._disturb_link(fault)
            case "full":
                return self._fill(fault.seconds)
        life = self._company.crew.lives.get(fault.whom)
        if life is None:
            return "nobody is there"
        match fault.kind:
            case "kill broker" | "term broker":
                return self._end_broker(life, fault)
            case "kill publisher" | "kill subscriber":
                life.kill()
            case "term publisher" | "term subscriber":
                life.ask()
            case "stop":
                life.signal(signal.SIGSTOP)
                self._after(fault.seconds, lambda: life.signal(signal.SIGCONT))
            case "clock":
                if not life.ready:
                    return "it has no handler yet"
                life.signal(signal.SIGUSR1)
            case "starve":
                self._starve(life, fault)
        return ""

    def _disturb_link(self, fault: Fault) -> str:
        link, links = _number(fault), self._company.links
        links.begin(fault.kind, link)
        if fault.kind == "refuse":
            links.cut(link, "reset")
        self._after(fault.seconds, lambda: links.end(fault.kind, link))
        return ""

    def _fill(self, seconds: float) -> str:
        """Nothing is free, and somebody wants a ring."""
        if "intruder" in self._company.crew.lives:
            return "it is full"
        self._filler.fill()
        self._after(seconds, self._filler.free)
        self._company.other("intruder", f"{self._company.rings[0]}-intruder")
        return ""

    def _starve(self, life: Life, fault: Fault) -> None:
        """All CPUs are busy, and it comes last."""
        for n in range(_HOGS):
            self._company.other(f"hog {fault.number} {n}", number=int(fault.seconds * 1e3))
        os.setpriority(os.PRIO_PROCESS, life.pid, _LOWEST)

        def restore() -> None:
            with suppress(PermissionError):  # as an ordinary user: it comes last until it ends
                if life.code is None:
                    os.setpriority(os.PRIO_PROCESS, life.pid, 0)

        self._after(fault.seconds, restore)

    def _end_broker(self, life: Life, fault: Fault) -> str:
        number = _number(fault)
        broker = self._company.brokers[number]
        if broker.closing or life.killed:
            return "it is ending"
        if fault.kind == "kill broker":
            broker.pause = fault.seconds
            life.kill()  # also when it is just starting, or taking over
        elif broker.open and life.ready:
            self._company.close_broker(number, fault.seconds)
        else:
            return "it is starting"
        return ""


def _number(fault: Fault) -> int:
    return int(fault.whom.split()[1])
