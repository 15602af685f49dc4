"""Two network namespaces joined by a cable: two machines, as far as the network is concerned.

A namespace lives as long as a process in it. Here that is a `cat` which reads from a pipe of the
test, so whatever happens to the test, the namespaces and all that is in them end with it: nothing
has a name outside, and nothing has to be removed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from command import COMMAND

__all__ = ["Machine", "two_machines"]

_LINK = f"ev{os.getpid()}"  # at most 15 characters
_ESTABLISHED = "01"  # in /proc/net/tcp (include/net/tcp_states.h)


@dataclass(frozen=True)
class Machine:
    """A network namespace, and its one address."""

    pid: int
    address: str
    user: tuple[str, ...]
    """What nsenter needs besides, where the namespaces belong to an ordinary user."""

    @property
    def command(self) -> list[str]:
        """embar-shm, on this machine."""
        return [*self.enter, *COMMAND]

    @property
    def enter(self) -> list[str]:
        return ["nsenter", f"--target={self.pid}", *self.user, "--net", "--"]

    def do(self, *command: str) -> None:
        """Runs a command there, which must succeed."""
        done = self.attempt(*command)
        assert done.returncode == 0, f"{command}: {done.stderr}"

    def attempt(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*self.enter, *command], capture_output=True, text=True, timeout=30)

    def link(self, state: str) -> None:
        """Plugs the cable in ("up") or pulls it ("down")."""
        self.do("ip", "link", "set", _LINK, state)

    def queue(self, *discipline: str) -> subprocess.CompletedProcess[str]:
        """Has what leaves this machine queued by this discipline (tc-qdisc)."""
        return self.attempt("tc", "qdisc", "replace", "dev", _LINK, "root", *discipline)

    def send_single_segments(self) -> None:
        """Gives the link packets as they would be on a wire; else one has up to 64 KiB here."""
        self.do("ip", "link", "set", _LINK, "gso_max_segs", "1")

    def set(self, setting: str, value: int) -> None:
        """A sysctl below net.ipv4, for this machine only."""
        self.do("sh", "-c", f"echo {value} > /proc/sys/net/ipv4/{setting}")

    def connections(self) -> int:
        """TCP connections that are established there."""
        lines = Path(f"/proc/{self.pid}/net/tcp").read_text().splitlines()[1:]
        return sum(line.split()[3] == _ESTABLISHED for line in lines)


@contextmanager
def two_machines() -> Iterator[tuple[Machine, Machine]]:
    """Skips the test, with the reason, where namespaces cannot be made or joined."""
    missing = [tool for tool in ("unshare", "nsenter", "ip", "tc") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (util-linux, iproute2)")
    flags = _flags()
    with ExitStack() as stack:
        first = stack.enter_context(_namespace(["unshare", *flags, "--net"]))
        user = ("--user", "--preserve-credentials") if flags else ()
        inside = ["nsenter", f"--target={first}", *user, "--"] if flags else []
        second = stack.enter_context(_namespace([*inside, "unshare", "--net"]))
        machines = Machine(first, "192.0.2.1", user), Machine(second, "192.0.2.2", user)
        cable = ("ip", "link", "add", _LINK, "type", "veth", "peer", "name", _LINK)
        joined = machines[0].attempt(*cable, "netns", str(second))
        if joined.returncode != 0:
            pytest.skip(f"no veth pair can be made here: {joined.stderr.strip()}")
        for machine in machines:
            machine.do("ip", "address", "add", f"{machine.address}/24", "dev", _LINK)
            machine.link("up")
        yield machines


def _flags() -> list[str]:
    """What unshare needs to make a network namespace: nothing as root, else a user of its own."""
    reasons = []
    for flags in ([], ["--user", "--map-root-user"]):
        probe = subprocess.run(
            ["unshare", *flags, "--net", "true"], capture_output=True, text=True, timeout=30
        )
        if probe.returncode == 0:
            return flags
        reasons.append(probe.stderr.strip())
    pytest.skip(f"no network namespace can be made here: {'; '.join(reasons)}")


@contextmanager
def _namespace(unshare: list[str]) -> Iterator[int]:
    """The process id of who keeps a new namespace."""
    with subprocess.Popen(
        [*unshare, "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as keeper:
        assert keeper.stdin is not None
        assert keeper.stdout is not None
        try:
            keeper.stdin.write(b"there\n")
            keeper.stdin.flush()
            assert keeper.stdout.readline() == b"there\n", "cat runs, so the namespace is there"
            yield keeper.pid
        finally:
            keeper.kill()
