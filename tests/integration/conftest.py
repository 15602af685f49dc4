"""A broker that listens on TCP, and the check that what was done to it has left nothing behind."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from listening import FORGETFUL, Listening, serving
from rings import Command

import embar_shm as es
from embar_shm.address import RingName
from embar_shm.transports.base import ListenOptions
from embar_shm.transports.tcp_listener import Limits, TcpListener


@pytest.fixture
def name(cluster: str) -> RingName:
    """The name of a ring of this test."""
    return RingName(cluster, "0")


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """``embar-shm`` in this process."""
    return Command(capsys, monkeypatch)


@pytest.fixture
def listen(make_broker: Callable[..., es.Broker]) -> Iterator[Callable[..., Listening]]:
    """Makes brokers that serve and listen: ``listen(limits, ring={...}, token=..., tls=...)``.

    When the test is over and its connections are closed, no slot, row or thread may be left.
    """
    made: list[Listening] = []
    with ExitStack() as stack:

        def make(
            limits: Limits = FORGETFUL, *, ring: dict[str, Any] | None = None, **options: Any
        ) -> Listening:
            broker = make_broker(**(ring or {}))
            options = {"token": None} | options
            listener = TcpListener(broker, ("127.0.0.1", 0), ListenOptions(**options), limits)
            stack.callback(listener.stop)
            broker.start()
            made.append(Listening(broker, listener))
            return made[-1]

        yield make
        for listening in made:
            if not listening.listener._ended:
                listening.wait_until_idle()
    assert not serving()
    accepting = [t.name for t in threading.enumerate() if t.name.startswith("accept ")]
    assert not accepting
