"""The TCP protocol without sockets."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from embar_shm import protocol
from embar_shm.protocol import Connection, Kind, Role, State


def test_a_goodbye_that_arrives_while_an_acknowledgement_is_sent_is_not_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connection = Connection(Role.BROKER)
    connection.state = State.OPEN
    other = threading.Thread(target=lambda: connection.received(Kind.GOODBYE))

    class Table(dict[Any, State]):
        """The other thread runs between the look at the state and the change of it, if it can."""

        def get(self, key: Any, default: Any = None) -> Any:
            found = super().get(key, default)
            if key[2] is Kind.ACK:
                other.start()
                other.join(timeout=0.2)
            return found

    monkeypatch.setattr(protocol, "TRANSITIONS", Table(protocol.TRANSITIONS))
    connection.send(Kind.ACK, protocol.ack_body(1))
    other.join()
    assert connection.state is State.LEAVING
