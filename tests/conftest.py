"""Fixtures of all tests: a cluster of its own, brokers and processes that end with the test.

`cluster`, and the check that nothing is left behind, come from the plugin that ships with the
package.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

import embar_shm as es
from embar_shm.testing import Child

pytest_plugins = ["embar_shm.testing.plugin"]


@pytest.fixture
def make_broker(cluster: str) -> Iterator[Callable[..., es.Broker]]:
    """Creates brokers of this test's cluster, small ones unless told otherwise; closes them."""
    numbers = itertools.count()

    with ExitStack() as stack:

        def make(name: str | None = None, **options: Any) -> es.Broker:
            options = {"slots": 4, "slot_size": 4096, "max_publishers": 8} | options
            ring = f"{cluster}/{next(numbers) if name is None else name}"
            return stack.enter_context(es.Broker.create(ring, **options))

        yield make


@pytest.fixture
def connect(make_broker: Callable[..., es.Broker]) -> Iterator[Callable[..., es.Publisher]]:
    """Connects publishers to a broker or an address; closes them, and only then the brokers."""
    with ExitStack() as stack:

        def connect_to(broker: es.Broker | str, **options: Any) -> es.Publisher:
            address = broker if isinstance(broker, str) else broker.address
            return stack.enter_context(es.Publisher.connect(address, **options))

        yield connect_to


@pytest.fixture
def run_child() -> Iterator[Callable[..., Child]]:
    """Starts `Child` processes; kills those that still run."""
    with ExitStack() as stack:

        def run(program: str, *arguments: object, **options: Any) -> Child:
            return stack.enter_context(Child(program, *arguments, **options))

        yield run
