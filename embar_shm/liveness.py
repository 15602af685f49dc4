"""The descriptors whose locks say that this process is alive (``_native/liveness.hpp``)."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

__all__ = ["LivenessDescriptors", "liveness"]


class LivenessDescriptors:
    """The descriptors whose locks say that this process is alive; a fork must not keep them open.

    They are known from the moment they are opened, whatever becomes of the object they are for.
    """

    def __init__(self) -> None:
        self._open: set[int] = set()
        self._lock = threading.Lock()  # held across a fork: no descriptor is half known
        os.register_at_fork(
            before=self._lock.acquire,
            after_in_parent=self._lock.release,
            after_in_child=self._drop_all,
        )

    def opened(self, opener: Callable[[], int]) -> int:
        """Opens a descriptor, and knows it before anybody can fork."""
        with self._lock:
            fd = opener()
            self._open.add(fd)
        return fd

    def close(self, fd: int) -> None:
        """Closes it, and with it gives up its locks."""
        with self._lock:
            if fd in self._open:  # else a fork has closed it
                self._open.remove(fd)
                os.close(fd)

    def _drop_all(self) -> None:
        for fd in self._open:
            os.close(fd)
        self._open.clear()
        self._lock.release()


liveness = LivenessDescriptors()
