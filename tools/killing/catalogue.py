"""All operations by name."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from killing.broker_operations import BROKER_OPERATIONS, Create, OfABroker, Recover
from killing.campaign import kill_at
from killing.operations import CLIENT_OPERATIONS, Operation
from killing.tracer import Tracer

__all__ = ["NAMES", "about", "operations"]

_SINGLE: dict[str, Operation] = {
    operation.name: operation for operation in (*CLIENT_OPERATIONS, *BROKER_OPERATIONS, Create())
}
_RECOVERIES: dict[str, OfABroker] = {
    f"recover-{operation.name}": operation for operation in BROKER_OPERATIONS
}
NAMES = (*_SINGLE, *_RECOVERIES)


def about(name: str) -> str:
    """What an operation is, in a line. Raises KeyError."""
    if name in _SINGLE:
        return _SINGLE[name].about
    return f"Broker.open_or_recover after each effect of {_RECOVERIES[name].name}, in turn"


def operations(name: str, tracer: Tracer) -> Iterator[Operation]:
    """What belongs to a name: one, or the recovery from each effect of another one.

    "recover-NAME@7" is the recovery from effect 7 alone. Raises KeyError.
    """
    family, _, effects = name.partition("@")
    if family in _SINGLE:
        yield _SINGLE[name]
    elif effects:
        yield Recover(_RECOVERIES[family], int(effects))
    else:
        first = _RECOVERIES[family]
        for number in itertools.count():
            yield Recover(first, number)
            if not kill_at(tracer, first, "effect", number + 1).killed:
                return
