"""What operators are shown: text of others made harmless, locks as the kernel lists them."""

from __future__ import annotations

from pathlib import Path

import pytest

from embar_shm.inspection.holders import Holder, _locks
from embar_shm.inspection.text import printable

TEXTS = {
    "plain text": ("demo/0 für alle", "demo/0 für alle"),
    "a control sequence": ("\x1b[2J", r"\x1b[2J"),
    "lines": ("a\nb\r\tc", r"a\nb\r\tc"),
    "a direction": ("\u202eevil", r"\u202eevil"),
    "a byte that is no text": ("a\udcff", r"a\xff"),
    "a surrogate": ("\ud800", r"\ud800"),
}


@pytest.mark.parametrize(("text", "shown"), TEXTS.values(), ids=TEXTS)
def test_text_of_others_cannot_do_anything_to_a_terminal(text: str, shown: str) -> None:
    assert printable(text) == shown


# As Linux 6.18 prints them, and what must not be taken for a lock that is held.
FDINFO = """\
pos:\t0
flags:\t02500002
mnt_id:\t30
ino:\t113197
lock:\t1: OFDLCK ADVISORY  WRITE -1 00:1b:113197 0 0
lock:\t2: OFDLCK ADVISORY  WRITE -1 00:1b:113197 3 5
lock:\t3: OFDLCK ADVISORY  WRITE -1 00:1b:113197 2048 EOF
lock:\t4: POSIX  ADVISORY  WRITE 17 00:1b:113197 7 7
lock:\t5: OFDLCK ADVISORY  READ -1 00:1b:113197 8 8
lock:\t5: -> OFDLCK ADVISORY  WRITE -1 00:1b:113197 9 9
"""


def test_locks_are_read_as_the_kernel_lists_them(tmp_path: Path) -> None:
    (tmp_path / "5").write_text(FDINFO)
    ranges = list(_locks(tmp_path / "5"))
    assert ranges == [(0, 0), (3, 5), (2048, 2**63 - 1)]
    one = Holder(4711, tuple(ranges))
    assert one.is_broker
    assert one.rows[:4] == ["broker", "publisher 2", "publisher 3", "publisher 4"]
    assert not any(one.holds(byte) for byte in (1, 2, 6, 7, 8, 9))
    assert one.holds(3000)
