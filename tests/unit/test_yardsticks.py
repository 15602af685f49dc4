"""The two ends of the loopback ceiling, as a broker's and a publisher's process use them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from queue import Queue
from typing import Any

import pytest

from embar_shm.bench.yardsticks import LoopbackReceiver, LoopbackSender, Places
from embar_shm.testing.conditions import DEADLINE

SPEC = {
    "slot_stride": 65536 + 4096,
    "in_flight": 2,
    "slots": 4,
    "batch_size": 65536,
    "message_size": 1000,
}
BATCH = 65 * 1000  # whole messages only


class End:
    """One side, and what it said to the coordinator."""

    def __init__(self, kind: type[LoopbackReceiver | LoopbackSender]) -> None:
        self._said: Queue[tuple[str, dict[str, Any]]] = Queue()
        self.side: Any = (
            LoopbackReceiver(SPEC, self._say)
            if kind is LoopbackReceiver
            else LoopbackSender(Places.prefaulted(SPEC), self._say)
        )

    def _say(self, event: str, **fields: Any) -> None:
        self._said.put((event, fields))

    def heard(self, event: str) -> dict[str, Any]:
        found, fields = self._said.get(timeout=DEADLINE)
        assert found == event
        return fields

    def silent(self) -> bool:
        return self._said.empty()


@pytest.fixture
def receiver() -> Iterator[End]:
    end = End(LoopbackReceiver)
    yield end
    end.side.close()


def listening(receiver: End, connections: int) -> tuple[str, int]:
    receiver.side.obey({"do": "loopback-listen", "connections": connections})
    answer = receiver.heard("loopback-listening")
    assert answer["failed"] == ""
    host, port = answer["address"]
    return host, port


def connected(address: tuple[str, int]) -> tuple[End, int]:
    sender = End(LoopbackSender)
    sender.side.obey({"do": "loopback-connect", "address": list(address)})
    answer = sender.heard("loopback-connected")
    assert answer["failed"] == ""
    return sender, answer["port"]


def in_receive(receiver: End, ports: list[int]) -> threading.Thread:
    command = {"do": "loopback-receive", "ports": ports}
    thread = threading.Thread(target=receiver.side.obey, args=[command])
    thread.start()
    return thread


def test_all_batches_of_all_connections_arrive_twice_over(receiver: End) -> None:
    for _ in range(2):  # before and after a run
        address = listening(receiver, 3)
        senders, ports = zip(*(connected(address) for _ in range(3)), strict=True)
        thread = in_receive(receiver, list(ports))
        assert receiver.heard("loopback-receiving")["failed"] == ""
        for sender in senders:
            sender.side.obey({"do": "loopback-send", "batches": 5})
            assert sender.heard("loopback-ended")["failed"] == ""
        ended = receiver.heard("loopback-ended")
        thread.join()
        assert (ended["failed"], ended["bytes"]) == ("", 3 * 5 * BATCH)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)


def test_a_stranger_who_connects_is_not_counted(receiver: End) -> None:
    address = listening(receiver, 3)
    with socket.create_connection(address) as stranger:
        sender, port = connected(address)
        thread = in_receive(receiver, [port])
        assert receiver.heard("loopback-receiving")["failed"] == ""
        stranger.settimeout(DEADLINE)
        assert stranger.recv(1) == b"", "the connection was closed"
        sender.side.obey({"do": "loopback-send", "batches": 1})
        assert receiver.heard("loopback-ended")["bytes"] == BATCH
        thread.join()


def test_close_ends_a_wait_for_a_publisher_that_never_sends(receiver: End) -> None:
    sender, port = connected(listening(receiver, 1))
    thread = in_receive(receiver, [port])
    receiver.heard("loopback-receiving")
    receiver.side.close()
    thread.join(DEADLINE)
    assert not thread.is_alive()
    assert receiver.silent(), "a process that ends has one speaker"
    sender.side.obey({"do": "loopback-send", "batches": 1000})
    assert "sending: " in sender.heard("loopback-ended")["failed"]


def test_close_ends_a_wait_for_a_connection(receiver: End) -> None:
    listening(receiver, 1)
    thread = in_receive(receiver, [1])
    receiver.side.close()
    thread.join(DEADLINE)
    assert not thread.is_alive()


def test_a_publisher_that_dies_inside_a_batch_is_told(receiver: End) -> None:
    address = listening(receiver, 1)
    with socket.create_connection(address) as dying:
        thread = in_receive(receiver, [dying.getsockname()[1]])
        receiver.heard("loopback-receiving")
        dying.sendall(b"part of a batch")
    assert "after 15 of the 65000 bytes" in receiver.heard("loopback-ended")["failed"]
    thread.join()


def test_nobody_listening_is_told() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # but does not listen
        sender = End(LoopbackSender)
        sender.side.obey({"do": "loopback-connect", "address": bound.getsockname()})
        assert "refused" in sender.heard("loopback-connected")["failed"]
    sender.side.obey({"do": "loopback-send", "batches": 1})
    assert sender.heard("loopback-ended")["failed"] != ""
