"""Messages that are written in place: where they lie, and when a reservation ends."""

from __future__ import annotations

import numpy as np
import pytest
from raw_ring import MESSAGE, VARIABLE, RawRing, framed, make_slots_dirty, message

from embar_shm import _core
from embar_shm.errors import MisuseError


@pytest.mark.parametrize("fixed", [True, False], ids=["fixed", "variable"])
def test_a_reserved_message_lies_where_a_copied_one_would(fixed: bool) -> None:
    ring = RawRing()
    make_slots_dirty(ring)
    publisher = ring.publisher(message_size=64 if fixed else 0)
    publisher.publish(message(0, 64))
    reservation = _core.Reservation(publisher, 64)
    with memoryview(reservation) as view:
        view[:] = message(1, 64)
    reservation.commit()
    publisher.publish(message(2, 64))
    publisher.flush()
    messages = [message(n, 64) for n in range(3)]
    body = b"".join(messages) if fixed else framed(*messages)
    assert ring.payload(0, len(body)) == body
    assert ring.header(0)["messages"] == 3


def test_a_reservation_that_is_given_up_leaves_no_trace() -> None:
    ring = RawRing()
    publisher = ring.publisher(**VARIABLE)
    _core.Reservation(publisher, 100).abort()
    publisher.publish(message(1, 9))
    _core.Reservation(publisher, 100).abort()
    publisher.flush()
    assert ring.payload(0, 24) == framed(message(1, 9))
    assert ring.header(0)["messages"] == 1


def test_a_reservation_may_be_for_several_messages_of_the_fixed_size() -> None:
    ring = RawRing()
    publisher = ring.publisher()
    reservation = _core.Reservation(publisher, 4 * 64)
    np.frombuffer(reservation, np.uint8)[:] = 7
    reservation.commit()
    assert publisher.committed_seq == 1  # the batch is full
    assert (ring.header(0)["messages"], ring.payload(0, 256)) == (4, b"\x07" * 256)


def test_nothing_else_is_published_while_a_reservation_is_open() -> None:
    ring = RawRing()
    publisher = ring.publisher()
    reservation = _core.Reservation(publisher, 64)
    for call in (
        lambda: publisher.publish(MESSAGE),
        publisher.flush,
        lambda: publisher.publish_many(MESSAGE, 64),
        lambda: _core.Reservation(publisher, 64),
    ):
        with pytest.raises(MisuseError, match="a reservation on unit/0 is open"):
            call()
    reservation.commit()
    with pytest.raises(MisuseError, match="has ended already"):
        reservation.commit()
    with pytest.raises(BufferError, match="the reservation has ended"):
        memoryview(reservation)
    assert publisher.flush() == 1


def test_a_reservation_does_not_end_while_an_array_of_it_is_alive() -> None:
    ring = RawRing()
    publisher = ring.publisher()
    reservation = _core.Reservation(publisher, 64)
    array = np.frombuffer(reservation, np.uint8)
    with pytest.raises(BufferError, match="still alive"):
        reservation.commit()
    with pytest.raises(MisuseError):
        publisher.publish(MESSAGE)
    del array
    publisher.publish(MESSAGE)  # the reserved message is dropped
    publisher.flush()
    assert (ring.header(0)["messages"], ring.payload(0, 64)) == (1, MESSAGE)
