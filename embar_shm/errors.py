"""Every error embar-shm raises on purpose, split by whose fault it is.

Each message says what was wrong, with which value and where it came from; `hint` says what to do
next. The class answers "who has to act":

========================  =======================================  =========
class                     who has to act                           exit code
========================  =======================================  =========
`ConfigurationError`      whoever wrote the YAML, variable, flag   2
`MisuseError`             whoever wrote the calling program        1
`PeerError`               whoever runs the other process           1
`ResourceError`           whoever administers the machine          1
`WaitTimeout`             nobody yet: the wait was too short       1
`IntegrityError`          us: batches were lost or damaged         3
========================  =======================================  =========
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AccessDenied",
    "BatchRefused",
    "BrokerExists",
    "BrokerGone",
    "BrokerRestarted",
    "BufferTypeError",
    "CannotListen",
    "ClosedError",
    "ConfigurationError",
    "ConnectionLost",
    "CorruptBatch",
    "CorruptSegment",
    "EmbarError",
    "EndOfLog",
    "IncompatibleSegment",
    "IntegrityError",
    "MessageSizeError",
    "MisuseError",
    "NoSuchBroker",
    "NotEnoughSpace",
    "PeerError",
    "PositionLost",
    "ProtocolError",
    "ResourceError",
    "RunFailed",
    "WaitTimeout",
]


class EmbarError(Exception):
    """Base of all errors of this library. `hint` tells what to do next (may be empty)."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)  # not the hint: OSError would take two arguments for an errno
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[type[EmbarError], tuple[str, str]]:
        return type(self), (self.message, self.hint)

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class ConfigurationError(EmbarError):
    """A YAML file, an EMBAR_* variable or a flag is wrong. Lists every mistake at once."""

    exit_code = 2


class MisuseError(EmbarError, ValueError):
    """The calling program asked for something that cannot be done. Fix the call."""


class ClosedError(MisuseError):
    """The object was closed, or belongs to the parent of this forked process. Connect again."""


class MessageSizeError(MisuseError):
    """A message is empty, does not fit into a batch, or is not of the publisher's fixed size."""


class BufferTypeError(MisuseError, TypeError):
    """The object is not a contiguous buffer of bytes, or an array of the wrong dimensions."""


class PeerError(EmbarError):
    """Another process is gone, incompatible, or damaged what we share with it."""


class BrokerGone(PeerError):
    """The broker stopped or died. Unacknowledged batches may be lost: connect to a new one."""


class EndOfLog(PeerError):
    """The broker has stopped in order, and everything in its log was read. Iteration just ends."""


class BrokerRestarted(PeerError):
    """The position is of another log: the broker was started anew. Begin at `earliest`."""


class CorruptBatch(PeerError):
    """Some process changed a batch after the broker had accepted it. The next call goes on."""

    exit_code = 3


class BatchRefused(PeerError):
    """The broker found a batch of this publisher damaged, or one before it missing."""

    exit_code = 3


class ConnectionLost(PeerError):
    """A network connection ended where it must not. Publishers connect again by themselves."""


class ProtocolError(PeerError):
    """The other side of a connection sent what the protocol does not allow there."""


class AccessDenied(PeerError):
    """One side may not talk to the other: its token or certificate, or the user of a segment."""


class IncompatibleSegment(PeerError):
    """The segment was written by another version, is truncated, or is not a ring at all."""


class CorruptSegment(PeerError):
    """A control word in shared memory has a value no correct process writes."""

    exit_code = 3


class ResourceError(EmbarError):
    """The machine cannot give what was asked for, or something is already in its place."""


class NoSuchBroker(ResourceError):
    """No broker has created a ring under this address. Start it, or correct the address."""


class BrokerExists(ResourceError):
    """A ring of this name exists already. Use another name, or stop the broker that owns it."""


class PositionLost(ResourceError):
    """The log holds nothing at the place asked for: it is overwritten, or was never written."""


class CannotListen(ResourceError):
    """The address cannot be listened on: in use, not of this machine, or not permitted."""


class NotEnoughSpace(ResourceError):
    """/dev/shm (or the participants table) is full. The message says how much is needed."""


class WaitTimeout(EmbarError, TimeoutError):
    """A wait reached its timeout; the message names who was being waited for."""


class RunFailed(EmbarError):
    """A benchmark run did not complete; nothing was recorded."""


class IntegrityError(EmbarError):
    """A run lost, duplicated, reordered or damaged batches. Never recorded as a result."""

    exit_code = 3
