"""What README.md and docs/ show, works: every block runs, or says why not."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from doc_blocks import DOCUMENTS, ROOT, Session, sessions
from doc_reader import play
from doc_sandbox import sandbox

SESSIONS = [session for document in DOCUMENTS for session in sessions(document)]
README = (ROOT / "README.md").read_text()


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("session", SESSIONS, ids=str)
def test_a_reader_who_follows_the_document_gets_what_it_shows(
    session: Session, tmp_path: Path
) -> None:
    with sandbox(tmp_path) as machine:
        play(session, machine)


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_lead_to_what_is_there(document: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", document.read_text()):
        if target.startswith("http"):
            continue
        path = document.parent / target if target else document
        assert path.exists(), f"{target} is not there"
        if anchor:
            assert anchor in anchors(path), f"{target} has no heading for #{anchor}"


def anchors(path: Path) -> set[str]:
    """As GitHub makes them from headings."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_files_of_the_repository_that_a_document_names_are_there(document: Path) -> None:
    named = re.findall(
        r"(?<![\w./])(?:tools|config|embar_shm|tests)/[\w./-]*\w", document.read_text()
    )
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


def test_documents_that_help_texts_and_comments_name_are_there() -> None:
    for folder in ("embar_shm", "transports", "config", "tools"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".hpp", ".cpp", ".yaml"):
                for name in re.findall(r"\bdocs/[\w/]+\.md", path.read_text()):
                    assert (ROOT / name).exists(), f"{path} names {name}"


def test_every_document_can_be_found_from_the_readme() -> None:
    linked = set(re.findall(r"\]\(([^)#]+\.md)", README))
    for document in DOCUMENTS:
        if document.name != "README.md":
            assert name_of(document) in linked, f"the README does not link {name_of(document)}"


def test_both_lines_that_newcomers_copy_are_marked_and_complete() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    for marker, end in [
        ("main line", "embar-shm run --transport shm"),
        ("test line", "pytest -n 4"),
    ]:
        found = re.search(rf"<!-- {marker} -->\n```sh\n(.*)\n```", README)
        assert found
        line = found[1]
        assert line.startswith("python3 -m venv .venv && ")
        assert line.endswith(end)
        assert f'"{marker}"' in ci, "and CI runs it"


def test_the_example_of_the_readme_is_short() -> None:
    example = re.search(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert example
    body = [line for line in example[1].splitlines() if line and not line.startswith("import")]
    assert len(body) <= 15


UNITS = [
    block.text
    for session in SESSIONS
    for block in session.blocks
    if block.language == "ini" and "[Service]" in block.text
]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_unit_files_are_what_systemd_expects(tmp_path: Path) -> None:
    assert UNITS
    paths = [
        tmp_path / ("embar-shm.service" if "embar-shm broker" in unit else f"other{i}.service")
        for i, unit in enumerate(UNITS)
    ]
    for path, unit in zip(paths, UNITS, strict=True):
        path.write_text(re.sub(r"(?m)^(ExecStart=)\S+", r"\1/bin/true", unit))
    command = ["systemd-analyze", "verify", "--man=no", *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    ours = [line for line in done.stderr.splitlines() if any(p.name in line for p in paths)]
    assert not ours, done.stderr
