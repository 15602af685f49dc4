"""Errors say whose fault it is, what to do next, and with which code a program ends."""

from __future__ import annotations

import copy
import errno
import pickle

import pytest

import embar_shm as es
from embar_shm import errors
from embar_shm.errors import EmbarError

ALL = [getattr(errors, name) for name in errors.__all__]

# class: (the class that says who has to act, the standard error it also is, exit code)
HIERARCHY = {
    "EmbarError": (Exception, Exception, 1),
    "ConfigurationError": (EmbarError, Exception, 2),
    "MisuseError": (EmbarError, ValueError, 1),
    "ClosedError": (errors.MisuseError, ValueError, 1),
    "MessageSizeError": (errors.MisuseError, ValueError, 1),
    "BufferTypeError": (errors.MisuseError, TypeError, 1),
    "PeerError": (EmbarError, Exception, 1),
    "BatchRefused": (errors.PeerError, Exception, 3),
    "BrokerGone": (errors.PeerError, Exception, 1),
    "EndOfLog": (errors.PeerError, Exception, 1),
    "BrokerRestarted": (errors.PeerError, Exception, 1),
    "CorruptBatch": (errors.PeerError, Exception, 3),
    "ConnectionLost": (errors.PeerError, Exception, 1),
    "ProtocolError": (errors.PeerError, Exception, 1),
    "AccessDenied": (errors.PeerError, Exception, 1),
    "IncompatibleSegment": (errors.PeerError, Exception, 1),
    "CorruptSegment": (errors.PeerError, Exception, 3),
    "ResourceError": (EmbarError, Exception, 1),
    "NoSuchBroker": (errors.ResourceError, Exception, 1),
    "BrokerExists": (errors.ResourceError, Exception, 1),
    "PositionLost": (errors.ResourceError, Exception, 1),
    "CannotListen": (errors.ResourceError, Exception, 1),
    "NotEnoughSpace": (errors.ResourceError, Exception, 1),
    "WaitTimeout": (EmbarError, TimeoutError, 1),
    "RunFailed": (EmbarError, Exception, 1),
    "IntegrityError": (EmbarError, Exception, 3),
}


def test_the_table_names_every_error() -> None:
    assert sorted(HIERARCHY) == sorted(errors.__all__)


def test_every_error_is_part_of_the_public_interface() -> None:
    assert set(errors.__all__) <= set(es.__all__)
    assert all(getattr(es, name) is getattr(errors, name) for name in errors.__all__)


@pytest.mark.parametrize("name", HIERARCHY)
def test_an_error_says_whose_fault_it_is(name: str) -> None:
    kind = getattr(errors, name)
    parent, standard, exit_code = HIERARCHY[name]
    assert kind.__bases__[0] is parent
    assert issubclass(kind, standard)
    assert kind.exit_code == exit_code


@pytest.mark.parametrize("kind", ALL)
def test_an_error_has_a_docstring_of_its_own(kind: type[EmbarError]) -> None:
    assert kind.__dict__["__doc__"]


@pytest.mark.parametrize("kind", ALL)
def test_the_hint_is_shown_below_the_message(kind: type[EmbarError]) -> None:
    error = kind("it broke", "mend it")
    assert (error.message, error.hint) == ("it broke", "mend it")
    assert str(error) == "it broke\n  hint: mend it"


@pytest.mark.parametrize("kind", ALL)
def test_an_error_without_a_hint_is_its_message(kind: type[EmbarError]) -> None:
    assert str(kind("it broke")) == "it broke"


@pytest.mark.parametrize("clone", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])  # noqa: S301
@pytest.mark.parametrize("kind", ALL)
def test_an_error_survives_the_way_to_another_process(
    kind: type[EmbarError], clone: object
) -> None:
    error = clone(kind("it broke", "mend it"))  # type: ignore[operator]
    assert type(error) is kind
    assert (error.message, error.hint) == ("it broke", "mend it")


def test_a_timeout_does_not_pretend_that_its_message_is_an_errno() -> None:
    error = es.WaitTimeout("it took too long", "look at the broker")
    assert error.errno in (None, errno.ETIMEDOUT)  # TimeoutError is an OSError
