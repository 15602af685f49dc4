"""Does what a document says, as a reader who follows it literally."""

from __future__ import annotations

import configparser
import re
import signal
import subprocess
from pathlib import Path

import yaml
from doc_blocks import Act, Block, Session
from doc_sandbox import Program, Sandbox

from embar_shm.testing import wait_until

__all__ = ["play", "syntax_error"]

PROGRAMS = Path(__file__).parent / "programs"
_TIMEOUT = 100.0  # seconds; only a bug, or a very busy machine, takes so long
# What ends a program in a terminal, and the exit codes that then are in order.
_ACTS = {
    "stop": (signal.SIGINT, (0, 130, -signal.SIGINT)),
    "kill": (signal.SIGKILL, (-signal.SIGKILL,)),
    "ends": (None, (0,)),
}


class _Terminal:
    """A program that runs beside others, and how much of what it printed the document has shown."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.shown = 0
        self.ended = False

    def expect(self, block: Block) -> None:
        """What it prints next, all of it if it has ended."""
        pattern = _pattern(block)
        if not self.ended:
            found: list[re.Match[str]] = []

            def printed() -> bool:
                found[:] = filter(None, [re.match(pattern, self.program.output[self.shown :])])
                return bool(found)

            try:
                wait_until(printed, "the output")
            except AssertionError:
                _differs(block, self.program.output[self.shown :])
            self.shown += found[0].end()
        elif not re.fullmatch(pattern, self.program.output[self.shown :]):
            _differs(block, self.program.output[self.shown :])


def play(session: Session, sandbox: Sandbox) -> None:
    """Raises `AssertionError` when something does not work as the document says."""
    terminals: dict[str, _Terminal] = {}
    last: tuple[Block, Program] | None = None
    for step in session.steps:
        try:
            if isinstance(step, Act):
                _act(step, terminals[step.terminal])
            elif step.language == "text":
                _compare(step, terminals, last, sandbox)
            elif "file" in step.marks:
                path = sandbox.folder / step.marks["file"]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(step.text)
            elif not step.runs:
                wrong = syntax_error(step)
                assert not wrong, wrong
            elif "terminal" in step.marks:
                terminals[step.marks["terminal"]] = _open_terminal(step, sandbox)
            else:
                last = step, _run(step, sandbox)
        except AssertionError as error:
            where = f"{session.document}:{step.line}"
            others = "".join(
                f"\n-- terminal {name}:\n{terminal.program.output}"
                for name, terminal in terminals.items()
            )
            raise AssertionError(f"{where}: {error}{others}") from None
    for name, terminal in reversed(terminals.items()):
        if not terminal.ended:
            _act(Act(0, "stop", name), terminal)
    assert not sandbox.rings(), f"{session} leaves {sandbox.rings()} behind"


def _start(block: Block, sandbox: Sandbox) -> Program:
    if block.language == "python":
        return sandbox.start("python", "-c", block.text)
    return sandbox.start("bash", "-euo", "pipefail", "-c", block.text)


def _run(block: Block, sandbox: Sandbox) -> Program:
    program = _start(block, sandbox)
    code = program.wait(_TIMEOUT)
    expected = int(block.marks.get("exit", "0"))
    assert code == expected, f"exit code {code}, not {expected}:\n{program.output}"
    return program


def _open_terminal(block: Block, sandbox: Sandbox) -> _Terminal:
    program = _start(block, sandbox)
    if "until" in block.marks:
        beginning = block.marks["until"]
        wait_until(
            lambda: (
                re.search(f"^{re.escape(beginning)}.*\n", program.output, re.MULTILINE)
                or program.process.poll() is not None
            ),
            beginning,
        )
        assert program.process.poll() is None, f"it ended:\n{program.output}"
    return _Terminal(program)


def _act(act: Act, terminal: _Terminal) -> None:
    number, expected = _ACTS[act.what]
    if number is not None:
        terminal.program.signal(number)
    code = terminal.program.wait(_TIMEOUT)
    assert code in expected, f"{act.what}: exit code {code}:\n{terminal.program.output}"
    terminal.ended = True


def _compare(
    block: Block,
    terminals: dict[str, _Terminal],
    last: tuple[Block, Program] | None,
    sandbox: Sandbox,
) -> None:
    if "illustration" in block.marks:
        return
    if "terminal" in block.marks:
        terminals[block.marks["terminal"]].expect(block)
        return
    if "made by" in block.marks:
        name, *arguments = block.marks["made by"].split()
        program = sandbox.start("python", str(PROGRAMS / f"{name}.py"), *arguments)
        code = program.wait(_TIMEOUT)
        assert code == 0, f"{block.marks['made by']}: exit code {code}:\n{program.output}"
        found = program.output
    else:
        assert last is not None, "no block before it prints anything"
        found = last[1].output
        if "exit" in last[0].marks and re.search(f"(?:^|\n)({_pattern(block)})$", found):
            return
    if not re.fullmatch(_pattern(block), found):
        _differs(block, found)


_NUMBER = r"\d[\d,]*(?:\.\d+)?"


def _pattern(block: Block) -> str:
    """A regular expression for what the block shows."""
    loose = "numbers differ" in block.marks
    if "wrapped" in block.marks:
        return r"\s+".join(_words(word, loose, r"[\s\S]*?") for word in block.text.split()) + "\n"
    return "".join(
        "(?:.*\n)*?" if line == "..." else _words(line, loose, ".*") + "\n"
        for line in block.text.splitlines()
    )


def _words(text: str, loose: bool, anything: str) -> str:
    """`loose`: numbers of any value, and room for them."""
    found = []
    for part in re.split(rf"(\.\.\.|{_NUMBER}| +)", text):
        if part == "...":
            found.append(anything)
        elif loose and re.fullmatch(_NUMBER, part):
            found.append(_NUMBER)
        elif loose and part.isspace():
            found.append(" +")
        else:
            found.append(re.escape(part))
    return "".join(found)


def _differs(block: Block, found: str) -> None:
    raise AssertionError(f"the document shows\n{block.text}-- but it is\n{found}")


def syntax_error(block: Block) -> str | None:
    """What is wrong with a block that does not run; None where nothing is, or nothing can tell."""
    try:
        if block.language == "sh":
            checked = subprocess.run(
                ["bash", "-n"], input=block.text, capture_output=True, text=True, timeout=30
            )
            return checked.stderr or None
        if block.language == "python":
            compile(block.text, "block", "exec")
        elif block.language == "yaml":
            list(yaml.safe_load_all(block.text))
        elif block.language == "ini":
            configparser.RawConfigParser(strict=False).read_string(block.text)
    except (SyntaxError, yaml.YAMLError, configparser.Error) as error:
        return str(error)
    return None
