"""What a service manager is told, over a real socket."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from embar_shm.errors import ConfigurationError
from embar_shm.sd_notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """The address as the environment has it, and the socket behind it."""
    name = f"@embar-test-{secrets.token_hex(8)}"
    address = str(tmp_path / "notify") if request.param == "path" else name
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(address.replace("@", "\0", 1) if address.startswith("@") else address)
        sock.settimeout(10)
        yield address, sock


def test_each_message_is_one_datagram_of_lines(manager: tuple[str, socket.socket]) -> None:
    address, sock = manager
    notifier = Notifier(address)
    notifier.ready("serving demo/0")
    notifier.alive()
    notifier.stopping("two\nlines are one")
    assert [sock.recv(4096) for _ in range(3)] == [
        b"READY=1\nSTATUS=serving demo/0",
        b"WATCHDOG=1",
        b"STOPPING=1\nSTATUS=two lines are one",
    ]


def test_without_a_manager_nothing_is_sent_and_nothing_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    notifier = Notifier.take({})
    notifier.ready("x")
    notifier.alive()
    notifier.stopping("x")
    assert notifier.watchdog_period is None
    assert caplog.records == []


def test_a_manager_that_is_gone_is_a_warning_and_no_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        Notifier(str(tmp_path / "nobody")).ready("x")
    (record,) = caplog.records
    assert "was not told READY=1" in record.getMessage()


def test_the_environment_is_taken_so_that_children_do_not_inherit_it() -> None:
    environ = {
        "NOTIFY_SOCKET": "/run/x",
        "WATCHDOG_USEC": "2000000",
        "WATCHDOG_PID": str(os.getpid()),
        "HOME": "/",
    }
    assert Notifier.take(environ).watchdog_period == 0.5
    assert environ == {"HOME": "/"}


@pytest.mark.parametrize(
    "changes",
    [{"WATCHDOG_PID": "1"}, {"NOTIFY_SOCKET": None}, {"WATCHDOG_USEC": None}],
    ids=["of another process", "no socket", "not asked for"],
)
def test_a_watchdog_that_is_not_ours_is_not_served(changes: dict[str, str | None]) -> None:
    environ = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "2000000"} | changes
    given = {name: value for name, value in environ.items() if value is not None}
    assert Notifier.take(given).watchdog_period is None


@pytest.mark.parametrize("address", ["", "@", "/", "relative", "vsock:2:1234"])
def test_an_address_that_is_none_is_told(address: str) -> None:
    with pytest.raises(ConfigurationError, match="NOTIFY_SOCKET"):
        Notifier.take({"NOTIFY_SOCKET": address})


@pytest.mark.parametrize("limit", ["", "0", "-1", "soon", "1.5"])
def test_a_watchdog_limit_that_is_none_is_told(limit: str) -> None:
    with pytest.raises(ConfigurationError, match="WATCHDOG_USEC"):
        Notifier.take({"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": limit})
