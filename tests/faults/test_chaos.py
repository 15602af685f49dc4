"""tools/chaos: the oracle sees what is wrong, the plan is the seed's, and a run finds nothing.

A run whose processes are made to lie shows that what they do reaches the oracle.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

from chaotic.oracle import Oracle  # noqa: E402
from chaotic.plan import CALM, FAULTS, Fault, plan  # noqa: E402
from chaotic.records import Kind, Reader, Record, Writer  # noqa: E402

LOG, OTHER_LOG = 1000, 2000
PUBLISHER, OTHER = 7, 8

# --- the oracle -----------------------------------------------------------------------------------


class Story:
    """What processes tell; every batch has two messages."""

    def __init__(self) -> None:
        self.oracle = Oracle()

    def joins(self, reader: str, ticket: int = 0, *, log: int = LOG, lost: bool = False) -> None:
        self.oracle.joined(reader, 0, Record(Kind.JOINED, a=log, b=ticket, c=int(lost)))

    def gets(
        self, reader: str, ticket: int, seq: int, *, publisher: int = PUBLISHER, crc: int = 5
    ) -> None:
        self.oracle.delivered(
            reader,
            Record(Kind.DELIVERED, 2, crc, a=ticket, b=publisher, c=seq, d=2 * seq - 1),
        )

    def published(self, messages: int, acked: int = 0, publisher: int = PUBLISHER) -> None:
        self.oracle.published(Record(Kind.INTENT, a=publisher, b=messages))
        self.oracle.published(Record(Kind.ACKED, a=publisher, b=acked))

    def ends(self) -> list[str]:
        self.oracle.finish()
        return self.oracle.violations


def sound(story: Story) -> None:
    """Two subscribers and a witness that see the same; one of them is killed and has an heir."""
    for reader in ("witness 0", "subscriber 0", "subscriber 2"):
        story.joins(reader)
    story.published(6, acked=2)
    story.gets("subscriber 0", 0, 1)  # before the witness
    for ticket in range(3):
        story.gets("witness 0", ticket, ticket + 1)
    story.gets("subscriber 0", 1, 2)
    story.joins("subscriber 0", 2)
    story.gets("subscriber 0", 2, 3)
    story.oracle.missed("subscriber 2", Record(Kind.GAP, a=2))
    story.gets("subscriber 2", 2, 3)


def test_nothing_is_wrong_with_a_run_in_which_nothing_is_wrong() -> None:
    story = Story()
    sound(story)
    assert story.ends() == []
    checked = story.oracle.checked
    assert (checked["order"], checked["agreement"], checked["acknowledged"]) == (3, 4, 2)
    assert (checked["sequence"], checked["succession"], checked["origin"]) == (7, 4, 1)


def a_batch_is_lost(story: Story) -> None:
    story.published(8, acked=4)


def all_of_a_publisher_is_lost(story: Story) -> None:
    story.published(2, acked=1, publisher=OTHER)


def a_ticket_is_skipped(story: Story) -> None:
    story.gets("witness 0", 4, 4)


def a_batch_comes_twice(story: Story) -> None:
    story.gets("witness 0", 3, 3)


def a_ticket_comes_twice(story: Story) -> None:
    story.gets("witness 0", 2, 3)


def two_batches_change_places(story: Story) -> None:
    story.published(10)
    story.gets("witness 0", 3, 5)
    story.gets("witness 0", 4, 4)


def the_first_batch_of_a_publisher_is_missing(story: Story) -> None:
    story.published(4, publisher=OTHER)
    story.gets("witness 0", 3, 2, publisher=OTHER)


def a_batch_is_another_one_for_somebody_else(story: Story) -> None:
    story.published(8)
    story.gets("subscriber 0", 3, 4, crc=6)
    story.gets("witness 0", 3, 4)


def somebody_gets_what_was_never_in_the_log(story: Story) -> None:
    story.published(8)
    story.gets("subscriber 0", 3, 4)


def something_was_never_published(story: Story) -> None:
    story.gets("witness 0", 3, 4)


def a_subscriber_misses_something_and_is_not_told(story: Story) -> None:
    story.published(10)
    for ticket in (3, 4):
        story.gets("witness 0", ticket, ticket + 1)
    story.gets("subscriber 2", 4, 5)


def a_lossy_subscriber_is_told_too_little(story: Story) -> None:
    story.published(12)
    for ticket in (3, 4, 5):
        story.gets("witness 0", ticket, ticket + 1)
    story.oracle.missed("subscriber 2", Record(Kind.GAP, a=1))
    story.gets("subscriber 2", 5, 6)


def an_heir_begins_too_late(story: Story) -> None:
    story.joins("subscriber 0", 4)


def an_heir_is_told_that_its_place_is_lost_and_it_is_not(story: Story) -> None:
    story.joins("subscriber 0", 3, lost=True)


def a_witness_loses_its_place(story: Story) -> None:
    story.joins("witness 0", 4, lost=True)


def a_log_does_not_begin_at_its_beginning(story: Story) -> None:
    story.joins("witness 0", 1, log=OTHER_LOG, lost=True)


def a_publisher_is_in_two_logs(story: Story) -> None:
    story.joins("witness 0", 0, log=OTHER_LOG, lost=True)
    story.published(8)
    story.gets("witness 0", 0, 4)


@pytest.mark.parametrize(
    ("happens", "says"),
    [
        (a_batch_is_lost, r"lost: publisher 0x7 was told that 4 batches .* delivered 3"),
        (all_of_a_publisher_is_lost, r"lost: publisher 0x8 was told that 1 batches .* delivered 0"),
        (a_ticket_is_skipped, r"witness 0: ticket 4 came where 3 should"),
        (a_batch_comes_twice, r"is batch 3 of publisher 0x7, .* should be batch 4"),
        (a_ticket_comes_twice, r"witness 0: ticket 2 came where 3 should"),
        (two_batches_change_places, r"is batch 5 of publisher 0x7, .* should be batch 4"),
        (the_first_batch_of_a_publisher_is_missing, r"is batch 2 of .* 0x8, .* should be batch 1"),
        (a_batch_is_another_one_for_somebody_else, r"subscriber 0: ticket 3 .* another batch"),
        (somebody_gets_what_was_never_in_the_log, r"subscriber 0: ticket 3 .* was never in it"),
        (something_was_never_published, r"0x7 published 6 messages, and 8 were delivered"),
        (a_subscriber_misses_something_and_is_not_told, r"subscriber 2: ticket 4 came where 3"),
        (a_lossy_subscriber_is_told_too_little, r"ticket 5 came where 3 should after a gap of 1"),
        (an_heir_begins_too_late, r"subscriber 0 goes on at ticket 4, not at 3"),
        (an_heir_is_told_that_its_place_is_lost_and_it_is_not, r"said to be lost, .* is 3"),
        (a_witness_loses_its_place, r"witness 0: tickets 3 to 4 are lost"),
        (a_log_does_not_begin_at_its_beginning, r"witness 0: the log 2000 begins with ticket 1"),
        (a_publisher_is_in_two_logs, r"publisher 0x7 is in the logs 1000 and 2000"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_oracle_sees_that(happens: Callable[[Story], None], says: str) -> None:
    story = Story()
    sound(story)
    happens(story)
    found = story.ends()
    assert any(re.search(says, text) for text in found), found


def test_what_is_acknowledged_and_not_there_yet_is_named_until_it_comes() -> None:
    story = Story()
    sound(story)
    story.published(8, acked=4)
    acknowledged = story.oracle.acknowledged()
    assert "publisher 0x7" in story.oracle.missing(acknowledged)[PUBLISHER]
    story.gets("witness 0", 3, 4)
    assert story.oracle.missing(acknowledged) == {}


# --- records --------------------------------------------------------------------------------------


def test_records_come_out_of_a_pipe_as_they_went_in() -> None:
    ours, theirs = os.pipe()
    out = Writer(theirs)
    out.tell(Kind.DELIVERED, 1, 2, 3, 2**64 - 1, size=4, crc=2**32 - 1)
    out.tell(Kind.ENDED, text="ütterly done")
    out.tell(Kind.READY)
    os.close(theirs)
    reader = Reader(ours)
    assert list(reader.read()) == [
        Record(Kind.DELIVERED, 4, 2**32 - 1, 1, 2, 3, 2**64 - 1),
        Record(Kind.ENDED, 13, text="ütterly done"),
        Record(Kind.READY),
    ]
    assert not reader.ended
    assert list(reader.read()) == []
    assert reader.ended
    os.close(ours)


# --- the plan -------------------------------------------------------------------------------------


def faults(seed: int, count: int) -> list[Fault]:
    return list(islice(plan(seed, 8.0), count))


def test_a_seed_is_a_sequence_of_faults() -> None:
    assert faults(1, 500) == faults(1, 500)
    assert faults(1, 20) != faults(2, 20)


def test_a_seed_is_the_same_sequence_in_every_process() -> None:
    printed = {
        chaos(
            "--plan", "300", "--seed", "5", "--rate", "8", environment={"PYTHONHASHSEED": hash_seed}
        ).stdout
        for hash_seed in ("1", "2")
    }
    expected = "".join(f"{fault}\n" for fault in faults(5, 400) if fault.number)
    assert len(printed) == 1
    assert expected.startswith(printed.pop())


def test_faults_of_every_kind_meet_everybody() -> None:
    found = faults(3, 3000)
    assert {fault.kind for fault in found} == {*FAULTS, CALM}
    stopped = {fault.whom for fault in found if fault.kind == "stop"}
    assert len(stopped) == 12 + 4 + 4 + 4
    killed = {fault.whom for fault in found if fault.kind.startswith("kill")}
    assert len(killed) == 12 + 4 + 4
    assert not any(whom.startswith("witness") for whom in killed)
    assert [fault.at for fault in found] == sorted(fault.at for fault in found)


# --- runs -----------------------------------------------------------------------------------------


def chaos(*options: str, environment: dict[str, str] | None = None) -> Any:
    return subprocess.run(
        [sys.executable, TOOLS / "chaos", *options],
        capture_output=True,
        text=True,
        timeout=110,
        env={**os.environ, **(environment or {})},
    )


@pytest.mark.timeout(120)
def test_twenty_seconds_of_chaos_break_no_promise() -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    done = chaos("--seconds", "20", "--seed", str(seed), "--rest", "50", "--json")
    assert done.returncode == 0, f"--seed {seed}\n{done.stdout}\n{done.stderr}"
    found = json.loads(done.stdout)
    assert found["seed"] == seed
    assert found["faults"] > 60
    assert found["violations"] == []
    assert [name for name, count in found["checked"].items() if not count] == []


# What processes do wrong, and what is said of it. They are forks of this program.
LIES = {
    "a subscriber forgets a batch": (
        """
        def tell(self, kind, a=0, *rest, **more):
            if kind is not Kind.DELIVERED or a % 50 != 49:
                honest(self, kind, a, *rest, **more)

        Writer.tell = tell
        """,
        "came where",
    ),
    "a publisher is acknowledged more than is in the log": (
        """
        def tell(self, kind, a=0, b=0, *rest, **more):
            honest(self, kind, a, b + (kind is Kind.ACKED), *rest, **more)

        Writer.tell = tell
        """,
        "hung: everything arrives: not within 4 s: publisher 0x",
    ),
    "a message is damaged": (
        """
        fill = workers._Source._fill

        def damage(self, block, *rest):
            fill(self, block, *rest)
            if self.published > 20:
                block[-1] ^= 1

        workers._Source._fill = damage
        """,
        "'kind': 'corrupt'",
    ),
    "publishers stand still": (
        """
        def tell(self, kind, a=0, b=0, *rest, **more):
            if kind is Kind.INTENT and b > 50:
                time.sleep(60)
            honest(self, kind, a, b, *rest, **more)

        Writer.tell = tell
        """,
        "hung: everybody gets on: not within 4 s: publisher",
    ),
}
LIAR = """
import sys, time
sys.path.insert(0, {tools!r})
from chaotic import command, conductor, workers
from chaotic.records import Kind, Writer

honest = Writer.tell
until = conductor.Conductor._until

def impatient(self, condition, what, who):  # in what is to be noticed: all else may be slow
    conductor.BOUND = 4.0 if what in {says!r} else 30.0
    return until(self, condition, what, who)

conductor.Conductor._until = impatient
{lie}
options = command.parsed(["--seconds", "1", "--rate", "4", "--seed", "1", "--no-tcp"])
sys.exit(command.main(options, "it is not filled"))
"""


@pytest.mark.parametrize("lie", LIES)
def test_a_run_notices_that(lie: str) -> None:
    program, says = LIES[lie]
    liar = LIAR.format(tools=str(TOOLS), lie=textwrap.dedent(program), says=says)
    done = subprocess.run(
        [sys.executable, "-c", liar],
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 3, done.stdout + done.stderr
    assert says in done.stdout
    assert "again: tools/chaos --seconds 1 --seed 1 --rate 4" in done.stdout
