"""Shared memory passes the contract of transports."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import embar_shm as es
from embar_shm import transports
from embar_shm.testing import TransportContract


class TestSharedMemory(TransportContract):
    scheme = "shm"


def test_the_address_is_the_name_of_the_ring(make_broker: Callable[..., es.Broker]) -> None:
    broker = make_broker()
    for address in (None, broker.name):
        listener = transports.get("shm").listen(broker, address)
        assert listener.address == broker.address == f"shm://{broker.name}"


@pytest.mark.parametrize(("address", "says"), [("other/0", "second name"), ("0", "not the name")])
def test_a_ring_cannot_be_reached_under_another_name(
    make_broker: Callable[..., es.Broker], address: str, says: str
) -> None:
    with pytest.raises(es.ConfigurationError, match=says):
        transports.get("shm").listen(make_broker(), address)
