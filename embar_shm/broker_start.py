"""How a broker begins: with a new ring, or with the one that a broker which died has left."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Self

from embar_shm import _core, access
from embar_shm.address import RingName
from embar_shm.cpus import available_cpus
from embar_shm.errors import BrokerExists, CorruptSegment
from embar_shm.layout import Geometry
from embar_shm.options import WAIT_MODES, choose, number, size, whole
from embar_shm.quarantine import quarantined
from embar_shm.segment import Segment
from embar_shm.takeover import Recovery, differences, is_drained, take_over

__all__ = ["Begun", "Start", "corrupt"]

_TRIES = 10  # to take a ring over, or to create it, while others do the same


@dataclass(frozen=True, slots=True)
class Begun:
    """A broker that has begun."""

    segment: Segment
    core: _core.BrokerCore
    recovery: Recovery | None = None
    """What was found, if it is not the first one of its ring."""


@dataclass(frozen=True, slots=True)
class Start:
    """What a broker is to be like."""

    geometry: Geometry
    retain: int
    wait_mode: int
    spin_us: float
    stage_times: bool
    group: int | None

    @classmethod
    def checked(
        cls,
        *,
        slots: int,
        slot_size: int | str,
        max_publishers: int,
        max_subscribers: int,
        retain: int,
        wait: str,
        spin_us: float,
        stage_times: bool,
        group: str | int | None,
    ) -> Self:
        """Raises `ConfigurationError` for a value that cannot be."""
        mode, spin_us = choose("wait", wait, WAIT_MODES), number("spin_us", spin_us)
        geometry = Geometry.plan(
            whole("slots", slots, 1, _core.MAX_SLOTS),
            size("slot_size", slot_size),
            whole("max_publishers", max_publishers, 1, _core.MAX_PUBLISHERS),
            whole("max_subscribers", max_subscribers, 1, _core.MAX_SUBSCRIBERS),
        )
        retain = whole("retain", retain, 0, slots)
        return cls(geometry, retain, mode, spin_us, stage_times, access.group_id(group))

    def create(self, ring: RingName, *, replace_dead: bool) -> Begun:
        """With a new ring."""
        segment = Segment.create(ring, self.geometry, replace_dead=replace_dead, group=self.group)
        try:
            return Begun(segment, self._core(segment))
        except BaseException:
            segment.unlink()
            segment.close()
            raise

    def open_or_recover(self, ring: RingName) -> Begun:
        """With what a broker that died has left, if there is something; it keeps its sizes.

        But for those that are empty, and that nobody is connected to: these are replaced where
        other sizes or another group are asked for.
        """
        for _ in range(_TRIES):
            begin = time.monotonic()
            segment = take_over(ring)
            if segment is None:
                try:
                    return self.create(ring, replace_dead=False)
                except BrokerExists as error:  # of somebody who was quicker, or has died, too
                    lost = error
                    continue
            try:
                notes = differences(self.geometry, segment.geometry)
                notes += access.differences(segment.lock_fd, self.group)
                if notes and is_drained(segment):
                    segment.unlink()
                    segment.close()
                    continue
                segment.let_in(self.group)
                core = self._core(segment)
            except BaseException:
                segment.close()
                raise
            return Begun(segment, core, Recovery.of(segment, core.recovered, notes, begin))
        raise lost

    def _core(self, segment: Segment) -> _core.BrokerCore:
        core = _core.BrokerCore(
            segment.memory,
            segment.lock_fd,
            self.wait_mode,
            self.spin_us,
            available_cpus(),
            self.stage_times,
            min(self.retain, segment.geometry.slots),
        )
        if core.corruption is not None:
            raise corrupt(segment, core.corruption)
        return core


def corrupt(segment: Segment, found: str) -> CorruptSegment:
    """The error of a broker whose ring is damaged."""
    before = segment.monitor().damage
    told = f" ({before})" if before and before != found else ""
    return quarantined(segment.name, f"{found}{told}")
