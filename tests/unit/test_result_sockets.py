"""`system.sockets`, from the counters of the processes of a run."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from embar_shm.bench.sockets import collect
from embar_shm.net import SocketCounters

SENDER = asdict(SocketCounters(send_calls=30, eagain=1, retransmits=2, max_outq_bytes=7))
RECEIVER = asdict(SocketCounters(recv_calls=60, eagain=4, max_inq_bytes=9))


def test_calls_are_told_per_batch_and_from_the_side_that_makes_them() -> None:
    found = collect([SENDER, SENDER], [RECEIVER], 30)
    assert found is not None
    assert (found["send_calls_per_batch"], found["recv_calls_per_batch"]) == (2, 2)
    assert (found["eagain"], found["retransmits"]) == (6, 4)
    assert (found["max_outq_bytes"], found["max_inq_bytes"]) == (7, 9)


def test_of_brokers_elsewhere_nothing_is_told() -> None:
    found = collect([SENDER], [], 30)
    assert found is not None
    assert not {"recv_calls_per_batch", "granted_rcvbuf", "max_inq_bytes"} & found.keys()


@pytest.mark.parametrize("brokers", [[], [None]])
def test_a_transport_without_sockets_has_none(brokers: list[None]) -> None:
    assert collect([None, None], brokers, 30) is None


def test_when_no_batch_was_accepted_there_is_nothing_per_batch() -> None:
    found = collect([SENDER], [RECEIVER], 0)
    assert found is not None
    assert not {"send_calls_per_batch", "recv_calls_per_batch"} & found.keys()
