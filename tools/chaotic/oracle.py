"""Whether what publishers and subscribers of a chaos run tell is what the library promises.

Nouns. A *log* is what one broker, and those that recover its ring, have accepted. At each log there
is a *witness*: a reliable subscriber that is there before the first publisher and is never killed
(it is stopped, starved and cut off like all others). What it is delivered *is* the log; so what
others are delivered is compared with it, ticket by ticket.

What is checked:

- `order`: the witness gets every ticket once, without a gap; of each publisher every batch and
  every message once, without a gap, from the first one on. What a killed publisher had not been
  told to be accepted is in the log or not, but as a prefix.
- `acknowledged`: what a publisher was told to be in the log, the witness was delivered.
- `origin`: nothing is in the log that was not handed to `publish`.
- `agreement`: all subscribers get the same bytes at the same ticket. (That the bytes are those that
  were published, their checksums tell the subscribers themselves; see `workers`.)
- `sequence`: a reliable subscriber gets every ticket from its first one on, a lossy one is told how
  many it missed.
- `succession`: the successor of a killed subscriber begins at the place its predecessor had
  recorded, or was told that the place is lost; then it is.
"""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from chaotic.records import Kind, Record

__all__ = ["CHECKS", "Oracle"]

CHECKS = {
    "order": "batches in the order of their publishers, each once",
    "acknowledged": "acknowledged batches delivered",
    "origin": "publishers of whom nothing but what they published was delivered",
    "agreement": "batches the same for another subscriber",
    "sequence": "tickets without a gap that was not told",
    "succession": "subscribers that began where they should",
    "progress": "processes that got on once faults paused",
    "ends": "processes that ended in order when asked to, or with a typed error that was due",
    "rings": "rings found sound, and all their slots and rows free",
    "leftovers": "times nothing was left behind",
}
_BITS = 2**64 - 1


@dataclass(slots=True)
class _Log:
    broker: int
    content: array[int] = field(default_factory=lambda: array("Q"))  # by ticket: digests
    # What others were delivered before the witness was, by ticket.
    early: dict[int, list[tuple[str, int]]] = field(default_factory=dict)


@dataclass(slots=True)
class _Publisher:
    intent: int = 0  # messages handed to publish(), at most
    acked: int = 0  # batches that it was told to be in the log
    acked_messages: int = 0
    log: int | None = None  # where the witness saw it first
    seq: int = 0  # batches that the witness was delivered
    messages: int = 0


@dataclass(slots=True)
class _Reader:
    log: int | None = None
    next: int = 0  # the ticket that comes next
    gap: int = 0
    delivered: int = 0
    messages: int = 0


class Oracle:
    """Takes the records of all processes, and remembers what is wrong."""

    def __init__(self) -> None:
        self.violations: list[str] = []
        self.checked: Counter[str] = Counter()
        self._logs: dict[int, _Log] = {}
        self._publishers: defaultdict[int, _Publisher] = defaultdict(_Publisher)
        self._readers: defaultdict[str, _Reader] = defaultdict(_Reader)

    def wrong(self, what: str) -> None:
        """Something is not as promised."""
        self.violations.append(what)

    def place_of(self, reader: str) -> tuple[int, int] | None:
        """Log and ticket at which the successor of a reader goes on; None: it never began."""
        found = self._readers[reader]
        return None if found.log is None else (found.log, found.next)

    @property
    def batches(self) -> int:
        """Batches in all logs."""
        return sum(len(log.content) for log in self._logs.values())

    @property
    def messages(self) -> int:
        """Messages in all logs."""
        return sum(p.messages for p in self._publishers.values())

    @property
    def deliveries(self) -> int:
        """Batches that subscribers were delivered, all of them together."""
        return sum(r.delivered for r in self._readers.values())

    def progress_of(self, reader: str) -> int:
        """Grows with every batch."""
        return self._readers[reader].delivered

    # --- publishers -------------------------------------------------------------------------------

    def published(self, record: Record) -> None:
        """INTENT or ACKED."""
        publisher = self._publishers[record.a]
        if record.kind is Kind.INTENT:
            publisher.intent = max(publisher.intent, record.b)
        else:
            publisher.acked = max(publisher.acked, record.b)
            publisher.acked_messages = max(publisher.acked_messages, record.c)

    def acknowledged(self) -> dict[int, tuple[int, int]]:
        """By publisher: batches and messages that it was told to be in the log, up to now."""
        return {
            number: (p.acked, p.acked_messages)
            for number, p in self._publishers.items()
            if p.acked or p.acked_messages
        }

    def missing(self, acknowledged: dict[int, tuple[int, int]]) -> dict[int, str]:
        """What of it the witnesses have not been delivered yet."""
        found = {}
        for number, (batches, messages) in acknowledged.items():
            publisher = self._publishers[number]
            if publisher.seq < batches or publisher.messages < messages:
                found[number] = (
                    f"publisher {number:#x} was told that {batches} batches and {messages} "
                    f"messages are in the log, its witness was delivered {publisher.seq} and "
                    f"{publisher.messages}"
                )
        return found

    # --- subscribers ------------------------------------------------------------------------------

    def joined(self, reader: str, broker: int, record: Record) -> None:
        """A process begins to read."""
        log, ticket, lost = record.a, record.b, record.c
        here = self._readers[reader]
        of = self._logs.setdefault(log, _Log(broker))
        if of.broker != broker:
            self.wrong(f"{reader}: the log {log} is of broker {of.broker}, and now of {broker}")
        if here.log == log:
            if lost and ticket <= here.next:
                self.wrong(
                    f"{reader}: ticket {here.next} was said to be lost, and the earliest is "
                    f"{ticket}"
                )
            elif not lost and ticket != here.next:
                self.wrong(f"{reader} goes on at ticket {ticket}, not at {here.next}")
            if lost and _is_witness(reader):
                self.wrong(f"{reader}: tickets {here.next} to {ticket} are lost")
        elif _is_witness(reader) and ticket:
            self.wrong(f"{reader}: the log {log} begins with ticket {ticket}")
        self.checked["succession"] += 1
        here.log, here.next, here.gap = log, ticket, 0

    def missed(self, reader: str, record: Record) -> None:
        """A lossy subscriber is told so."""
        if "witness" in reader:
            self.wrong(f"{reader} is told that it has missed {record.a} batches")
        self._readers[reader].gap = record.a

    def delivered(self, reader: str, record: Record) -> None:
        """One batch."""
        here = self._readers[reader]
        if here.log is None:
            self.wrong(f"{reader} was delivered a batch before it had joined")
            return
        ticket = record.a
        if ticket != here.next + here.gap:
            gap = f" after a gap of {here.gap}" if here.gap else ""
            self.wrong(f"{reader}: ticket {ticket} came where {here.next} should{gap}")
        self.checked["sequence"] += 1
        here.next, here.gap = ticket + 1, 0
        here.delivered += 1
        log = self._logs[here.log]
        digest = hash((record.b, record.c, record.d, record.size, record.crc)) & _BITS
        if not _is_witness(reader):
            self._agree(reader, here.log, log, ticket, digest)
        elif ticket == len(log.content):
            self._witnessed(reader, here.log, record)
            log.content.append(digest)
            for other, early in log.early.pop(ticket, ()):
                self._compare(other, here.log, ticket, early, digest)

    def _witnessed(self, reader: str, log: int, record: Record) -> None:
        number, seq, first = record.b, record.c, record.d
        publisher = self._publishers[number]
        if publisher.log is None:
            publisher.log = log
        if publisher.log != log:
            self.wrong(f"{reader}: publisher {number:#x} is in the logs {publisher.log} and {log}")
        if seq != publisher.seq + 1 or first != publisher.messages + 1:
            self.wrong(
                f"{reader}: at ticket {record.a} is batch {seq} of publisher {number:#x}, which "
                f"begins with message {first}, and should be batch {publisher.seq + 1} and message "
                f"{publisher.messages + 1}"
            )
        self.checked["order"] += 1
        publisher.seq, publisher.messages = seq, first + record.size - 1

    def _agree(self, reader: str, number: int, log: _Log, ticket: int, digest: int) -> None:
        if ticket < len(log.content):
            self._compare(reader, number, ticket, digest, log.content[ticket])
        else:
            log.early.setdefault(ticket, []).append((reader, digest))

    def _compare(self, reader: str, log: int, ticket: int, its: int, witnessed: int) -> None:
        if its != witnessed:
            self.wrong(f"{reader}: ticket {ticket} of log {log} is another batch for its witness")
        self.checked["agreement"] += 1

    # --- the end ----------------------------------------------------------------------------------

    def finish(self) -> None:
        """All processes have ended: what did not come never will."""
        for number, log in self._logs.items():
            for ticket, others in log.early.items():
                for reader, _ in others:
                    self.wrong(f"{reader}: ticket {ticket} of log {number} was never in it")
        everything = self.acknowledged()
        for text in self.missing(everything).values():
            self.wrong(f"lost: {text}")
        self.checked["acknowledged"] += sum(batches for batches, _ in everything.values())
        for number, publisher in self._publishers.items():
            if publisher.messages > publisher.intent:
                self.wrong(
                    f"publisher {number:#x} published {publisher.intent} messages, and "
                    f"{publisher.messages} were delivered"
                )
            self.checked["origin"] += publisher.log is not None


def _is_witness(reader: str) -> bool:
    return reader.startswith("witness")
