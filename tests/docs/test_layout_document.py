"""docs/layout.md says what the native structs are."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable

import pytest
from doc_blocks import ROOT

import embar_shm as es
from embar_shm import _core

sys.path.insert(0, str(ROOT / "tools"))
from layout_doc import DOCUMENT, problems, rewritten

NATIVE = ROOT / "embar_shm" / "_native"
TEXT = DOCUMENT.read_text()


def declared(header: str, struct: str) -> list[str]:
    """The names of a struct's members, from its source."""
    source = (NATIVE / header).read_text()
    body = re.search(
        rf"^struct [^;]*?\b{struct} {{\n((?: .*\n|\n|//.*\n)*)}};$", source, re.MULTILINE
    )
    assert body, f"{header} has no struct {struct}"
    member = r"^    (?!static)(?:alignas\(\w+\) )?[\w:<>]+(?: [\w:<>]+)?\s+(\w+)(?:\[[^]]*\])?;"
    return re.findall(member, body[1], re.MULTILINE)


@pytest.mark.parametrize("struct", _core.structs())
def test_no_member_of_a_struct_is_forgotten(struct: str) -> None:
    header = "histogram.hpp" if struct == "Histogram" else "layout.hpp"
    _, fields = _core.structs()[struct]
    assert [name for name, *_ in fields] == declared(header, struct)


def test_every_struct_of_the_layout_is_known() -> None:
    source = (NATIVE / "layout.hpp").read_text()
    found = set(re.findall(r"^struct (?:alignas\(\w+\) )?(\w+)", source, re.MULTILINE))
    assert found - {"Geometry"} <= _core.structs().keys()


def test_the_tables_are_those_of_the_native_structs() -> None:
    assert problems(TEXT, _core.structs()) == []


DAMAGES: dict[str, Callable[[str], str]] = {
    "another offset": lambda text: text.replace("| `seq` | 24 |", "| `seq` | 32 |"),
    "a field less": lambda text: re.sub(r"\| `seq` .*\n", "", text),
    "a struct less": lambda text: text.replace("<!-- struct: SlotWord -->", ""),
    "no meaning": lambda text: re.sub(r"(\| `seq` .*\|).*\|\n", r"\1  |\n", text),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_wrong_table_is_noticed(damage: Callable[[str], str]) -> None:
    wrong = damage(TEXT)
    assert wrong != TEXT
    assert problems(wrong, _core.structs())


def test_tables_are_made_anew_and_keep_their_meanings() -> None:
    empty = re.sub(r"(\| `\w+`) \| \d+ \| \d+ \| [^|]* \|", r"\1 | | | |", TEXT)
    assert empty != TEXT
    assert rewritten(empty, _core.structs()) == TEXT


def test_the_versions_are_those_of_the_code() -> None:
    assert f"| of this page: {_core.LAYOUT_VERSION} |" in TEXT
    assert f"1 to {_core.MAX_SLOTS} |" in TEXT
    assert f"publishers table, 1 to {_core.MAX_PUBLISHERS} |" in TEXT
    assert f"subscribers table, 1 to {_core.MAX_SUBSCRIBERS} |" in TEXT


def test_the_locks_are_those_of_the_code() -> None:
    assert _core.BROKER_LOCK == 0
    assert "Byte 0 is the broker's" in TEXT
    assert f"the lock of byte {_core.publisher_lock(0)} + *i*" in TEXT
    assert f"the lock of byte {_core.subscriber_lock(0)} + *i*" in TEXT


def ranges(heading: str) -> dict[tuple[int, int], list[str]]:
    """The rows of a chapter's table of bits."""
    chapter = TEXT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\d+)(?:\.\.(\d+))? \|(.*)\|$", chapter, re.MULTILINE)
    return {
        (int(high), int(low or high)): [cell.strip() for cell in cells.split("|")]
        for high, low, cells in rows
    }


def bits(word: int, high: int, low: int) -> int:
    return (word >> low) & ((1 << (high - low + 1)) - 1)


def word_at(segment: memoryview, offset: int) -> int:
    return int.from_bytes(segment[offset : offset + 8], "little")


def test_the_bits_of_ticket_entries_and_slot_words_are_where_the_page_says(
    make_broker: Callable[..., es.Broker], connect: Callable[..., es.Publisher]
) -> None:
    broker = make_broker()  # 4 slots, 4 tickets; it does not serve: what is committed stays
    pub = connect(broker, publisher_id=0xABCDEF)
    g = broker.segment.geometry
    with memoryview(broker.segment.memory) as segment:
        assert word_at(segment, g.tickets_offset) == 0, "lap 0, free"
        pub.publish(b"m")
        pub.flush()
        entry = word_at(segment, g.tickets_offset)
        found = {cells[1]: bits(entry, *where) for where, cells in ranges("Ticket entries").items()}
        slot = found["index of the slot"]
        assert (found["1"], found["lap"]) == (1, 0)
        word = word_at(segment, g.slot_words_offset + 128 * slot)
        slot_bits = {cells[0]: bits(word, *where) for where, cells in ranges("Slot words").items()}
        (owned, generation, owner) = (
            next(value for meaning, value in slot_bits.items() if meaning.startswith(start))
            for start in ("1: owned", "generation", "the owner's row")
        )
        assert (owned, owner) == (1, 0)
        assert generation == found["low 18 bits of the slot's generation"]
        header = g.slots_offset + slot * g.slot_stride
        assert bytes(segment[header : header + 4]) == b"ERBH"
        assert word_at(segment, header + 8) == 0xABCDEF


def test_the_check_of_a_batch_header_is_computed_as_the_page_says(
    make_broker: Callable[..., es.Broker], connect: Callable[..., es.Publisher]
) -> None:
    start, factor = (int(number, 16) for number in re.findall(r"0x[0-9a-f]{16}", TEXT))
    assert "the 15 words before it" in TEXT
    broker = make_broker()
    pub = connect(broker)
    pub.publish(b"message")
    pub.flush()
    at = broker.segment.geometry.slots_offset
    with memoryview(broker.segment.memory) as segment:
        total = start
        for i in range(15):
            total = (total ^ word_at(segment, at + 8 * i)) * factor % 2**64
            total ^= total >> 31
        assert total == word_at(segment, at + 120)
