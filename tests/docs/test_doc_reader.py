"""The reader of the documents notices what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest
from doc_blocks import MarkError, sessions
from doc_reader import play, syntax_error
from doc_sandbox import sandbox


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "document.md"
    path.write_text(text.replace("~~~", "```"))
    return path


WRONG = {
    "a language nobody runs": "~~~c\nint x;\n~~~\n",
    "no language": "~~~\nls\n~~~\n",
    "a file of no language": "~~~yaml\na: 1\n~~~\n",
    "an indented block": "text\n\n    ls\n",
    "no reason": "<!-- not run -->\n~~~sh\nls\n~~~\n",
    "an unknown mark": "<!-- skip: because -->\n~~~sh\nls\n~~~\n",
    "a comment": "<!-- we should say more here -->\n",
    "a mark of nothing": "<!-- exit: 1 -->\n\nwords\n",
    "a mark inside a line": "words <!-- exit: 1 -->\n",
    "a program as illustration": "<!-- illustration: looks good -->\n~~~sh\nls\n~~~\n",
    "a file nobody uses": "<!-- file: a.py -->\n~~~python\nprint()\n~~~\n",
}


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
def test_a_block_that_nothing_would_test_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(MarkError, match=r"document\.md"):
        sessions(written(tmp_path, text))


def test_a_session_is_a_chapter_unless_the_document_is_one(tmp_path: Path) -> None:
    text = "## one\n~~~sh\ntrue\n~~~\n## two\n~~~sh\ntrue\n~~~\n### of two\n~~~sh\ntrue\n~~~\n"
    found = sessions(written(tmp_path, text))
    assert [(session.title, len(session.steps)) for session in found] == [("one", 1), ("two", 2)]
    (whole,) = sessions(written(tmp_path, f"<!-- one session -->\n\n{text}"))
    assert len(whole.steps) == 3


FAILS = {
    "a command that fails": ("~~~sh\nfalse\n~~~\n", "exit code 1, not 0"),
    "the first command of several": ("~~~sh\nfalse\ntrue\n~~~\n", "exit code 1"),
    "a program that should fail": ("<!-- exit: 1 -->\n~~~sh\ntrue\n~~~\n", "exit code 0, not 1"),
    "a Python program": ("~~~python\nraise SystemExit(3)\n~~~\n", "exit code 3"),
    "a warning": ("~~~python\nopen('/dev/null').read\n~~~\n~~~text\n~~~\n", "ResourceWarning"),
    "other output": ("~~~sh\necho a\n~~~\n~~~text\nb\n~~~\n", "the document shows\nb"),
    "more output": ("~~~sh\necho a; echo b\n~~~\n~~~text\na\n~~~\n", "but it is\na\nb"),
    "other numbers": ("~~~sh\necho 1 s\n~~~\n~~~text\n2 s\n~~~\n", "but it is\n1 s"),
    "other words": ("~~~sh\necho a b\n~~~\n<!-- wrapped -->\n~~~text\na\nc\n~~~\n", "it is\na b"),
    "another error": (
        "<!-- exit: 1 -->\n~~~sh\necho no; exit 1\n~~~\n~~~text\nyes\n~~~\n",
        "but it is\nno",
    ),
    "a terminal that ends": (
        "<!-- terminal: a; until: ready -->\n~~~sh\necho not\n~~~\n",
        "it ended:\nnot",
    ),
    "a terminal that prints something else when it is stopped": (
        "<!-- terminal: a; until: ready -->\n~~~sh\n"
        "trap 'echo bye; exit 0' INT; echo ready; while :; do sleep 0.1; done\n~~~\n"
        "<!-- stop: a -->\n\n<!-- terminal: a -->\n~~~text\nready\nfarewell\n~~~\n",
        "but it is\nready\nbye",
    ),
    "a terminal that should end well": (
        "<!-- terminal: a -->\n~~~sh\nexit 3\n~~~\n<!-- ends: a -->\n",
        "ends: exit code 3",
    ),
    "wrong syntax": ("<!-- not run: no docker -->\n~~~sh\nif\n~~~\n", "syntax error"),
    "a ring that stays": ("~~~sh\ntouch /dev/shm/embar.demo.0\n~~~\n", "embar.demo.0"),
}


@pytest.mark.parametrize(("text", "message"), FAILS.values(), ids=FAILS)
def test_what_does_not_work_fails(text: str, message: str, tmp_path: Path) -> None:
    (session,) = sessions(written(tmp_path, text))
    with sandbox(tmp_path) as machine, pytest.raises(AssertionError) as failure:
        play(session, machine)
    assert message in str(failure.value)


WORKS = """
## A session

<!-- file: hello.py -->
~~~python
import sys
print("hello", *sys.argv[1:])
raise SystemExit(len(sys.argv))
~~~

<!-- exit: 2 -->
~~~sh
python hello.py you
~~~

~~~text
hello ...
~~~

<!-- terminal: beside; until: 1 -->
~~~sh
trap 'echo bye; exit 0' INT
for i in 1 2 3; do echo $i; done
while :; do sleep 0.1; done
~~~

<!-- terminal: beside -->
~~~text
1
...
3
~~~

~~~sh
echo "took 1,234.5 ms,  100 times"
~~~

<!-- numbers differ -->
~~~text
took 7 ms, 1 times
~~~

<!-- wrapped; numbers differ -->
~~~text
took 1 ms,
20 ...
~~~

<!-- stop: beside -->

<!-- terminal: beside -->
~~~text
bye
~~~
"""


def test_what_works_passes(tmp_path: Path) -> None:
    (session,) = sessions(written(tmp_path, WORKS))
    with sandbox(tmp_path) as machine:
        play(session, machine)


def test_two_readers_do_not_meet(tmp_path: Path) -> None:
    ((tmp_path / "1").mkdir(), (tmp_path / "2").mkdir())
    with sandbox(tmp_path / "1") as one, sandbox(tmp_path / "2") as other:
        for machine in (one, other):
            assert machine.start("touch", "/dev/shm/embar.demo.0").wait(30) == 0
        assert one.start("rm", "/dev/shm/embar.demo.0").wait(30) == 0
        assert (one.rings(), other.rings()) == ([], ["embar.demo.0"])


@pytest.mark.parametrize(
    ("language", "text"),
    [("sh", "if"), ("python", "if"), ("yaml", "a: [1"), ("ini", "ExecStart=/bin/true")],
)
def test_blocks_that_do_not_run_are_parsed(language: str, text: str, tmp_path: Path) -> None:
    source = f"<!-- not run: no such machine -->\n~~~{language}\n{text}\n~~~\n"
    (session,) = sessions(written(tmp_path, source))
    (block,) = session.blocks
    assert syntax_error(block)
