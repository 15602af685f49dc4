"""Rings in every condition an operator meets, and commands run in this process: they are many."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from embar_shm.address import RingName
from embar_shm.cli.main import main
from embar_shm.testing import Child

__all__ = ["BROKER", "IDLE", "LEAVING", "Command", "broker_in", "killed_broker", "removed"]

# A broker that serves: name, slots. Says when it does.
BROKER = """
import sys
import embar_shm as es

broker = es.Broker.create(sys.argv[1], slots=4, slot_size=4096, max_publishers=8)
print("ready")
broker.serve()
"""

# The same, with participants of its own: so many batches read, unread, and not accepted when it is
# killed.
LEAVING = """
import sys, time
import embar_shm as es

name, read, unread, unaccepted = sys.argv[1], *map(int, sys.argv[2:])
broker = es.Broker.create(name, slots=8, slot_size=4096, max_publishers=8).start()
sub = es.Subscriber.connect(broker.address, name="the reader")
pub = es.Publisher.connect(broker.address, in_flight=8, linger_ms=0)
for _ in range(read):
    pub.publish(b"read")
    pub.flush()
    with sub.next(timeout=30):
        pass
for _ in range(unread):
    pub.publish(b"unread")
    pub.flush()
pub.wait_acked(timeout=30)
broker.stop()  # alive, and accepts no more
for _ in range(unaccepted):
    pub.publish(b"not accepted")
    pub.flush()
print("ready")
time.sleep(600)
"""

# A publisher (in the middle of a batch) or subscriber that does nothing more.
IDLE = """
import sys, time
import embar_shm as es

kind, address = sys.argv[1:]
if kind == "publisher":
    one = es.Publisher.connect(address, linger_ms=600_000)
    one.publish(b"begun")
else:
    one = es.Subscriber.connect(address, name=kind)
print("ready")
time.sleep(600)
"""


class Command:
    """Runs ``embar-shm`` in this process, as `main` does: exit code and output."""

    def __init__(self, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> None:
        self._capsys = capsys
        self._patch = patch
        self.code = -1
        self.stdout = self.stderr = ""

    def __call__(self, *arguments: str) -> int:
        """The exit code; `stdout` and `stderr` are what it printed."""
        self._patch.setattr(sys, "argv", ["embar-shm", *arguments])
        before = signal.getsignal(signal.SIGTERM)
        self._capsys.readouterr()
        try:
            main()
        except SystemExit as end:
            self.code = int(end.code or 0)
        finally:
            signal.signal(signal.SIGTERM, before)
        self.stdout, self.stderr = self._capsys.readouterr()
        return self.code

    def json(self, *arguments: str, code: int = 0) -> Any:
        """What it prints with --json; it has to end with this code."""
        assert self(*arguments, "--json") == code, self.stdout + self.stderr
        return json.loads(self.stdout)

    @property
    def said(self) -> str:
        """Everything it printed, on one line."""
        return " ".join((self.stdout + self.stderr).split())


def broker_in(run_child: Callable[..., Child], name: RingName) -> Child:
    """A broker that serves in a process of its own."""
    child = run_child(BROKER, name)
    child.expect("ready")
    return child


def killed_broker(
    run_child: Callable[..., Child],
    name: RingName,
    *,
    read: int = 0,
    unread: int = 0,
    unaccepted: int = 0,
) -> None:
    """Leaves a ring behind, with so many batches in it."""
    child = run_child(LEAVING, name, read, unread, unaccepted)
    child.expect("ready")
    child.kill()


@contextmanager
def removed(path: Path) -> Iterator[Path]:
    """Removes what the block made there: a file, a link or a directory."""
    try:
        yield path
    finally:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
