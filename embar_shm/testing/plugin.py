"""A pytest plugin: every test is isolated. Load it with ``-p embar_shm.testing.plugin``, or with
``pytest_plugins = ["embar_shm.testing.plugin"]`` in the top-level ``conftest.py``.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from embar_shm.testing.isolation import isolated, unique_cluster

__all__ = ["cluster", "nothing_left_behind"]

pytest.register_assert_rewrite("embar_shm.testing.contract")


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fails a test that leaves a ring of its own clusters, or a child process, behind."""
    with isolated():
        yield


@pytest.fixture
def cluster() -> str:
    """A cluster name for this test alone."""
    return unique_cluster()
