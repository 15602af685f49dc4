"""Types as a program that uses the package sees them: by mypy and by pyright, both strict.

Checked are the Python blocks of the documents and ``tests/typing/``; and with ``pyright
--verifytypes``, that every public class and function is annotated, so that no type checker has to
guess. Needs the 'dev' extra; downloads nothing.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "docs"))
from doc_blocks import DOCUMENTS, ROOT, sessions

# Modules whose __all__ is the public API.
PUBLIC = [
    "embar_shm",
    "embar_shm.aio",
    "embar_shm.arrow",
    "embar_shm.testing",
    "embar_shm.tls",
    "embar_shm.token",
    "embar_shm.transports.base",
]
_UNTYPED = ("pyarrow",)  # come without types: strict would complain about each use of them
_ENVIRON = os.environ | {
    "PYTHONPATH": str(ROOT),
    "MYPYPATH": str(ROOT),
    "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1",  # else it asks the network for a newer version
}
_PYRIGHT = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable]
_STRICT = {"typeCheckingMode": "strict", "reportUnnecessaryTypeIgnoreComment": "error"}


def write_blocks(folder: Path) -> None:
    """Each Python block of the documents as a file, named after its document and line."""
    for document in DOCUMENTS:
        for session in sessions(document):
            for block in session.blocks:
                if block.language == "python":
                    stem = str(document.relative_to(ROOT).with_suffix("")).replace("/", "_")
                    untyped = any(f"import {name}" in block.text for name in _UNTYPED)
                    text = f"# pyright: basic\n{block.text}" if untyped else block.text
                    (folder / f"{stem}_{block.line}.py").write_text(text)


def run(*command: str, cwd: Path) -> bool:
    """Prints what the command prints when it fails."""
    done = subprocess.run(command, cwd=cwd, env=_ENVIRON, capture_output=True, text=True)
    if done.returncode != 0:
        print(done.stdout + done.stderr, file=sys.stderr)
    return done.returncode == 0


def guessed() -> list[str]:
    """Public names whose type a checker has to guess, and why."""
    public: set[str] = set()
    for module in map(importlib.import_module, PUBLIC):
        for name in module.__all__:
            thing = getattr(module, name)
            home = getattr(thing, "__module__", module.__name__)
            public.add(f"{home}.{getattr(thing, '__qualname__', name)}")
    done = subprocess.run(
        [*_PYRIGHT, "--verifytypes", "embar_shm", "--ignoreexternal", "--outputjson"],
        cwd="/",  # elsewhere: the package has to be found as a user's is
        env=_ENVIRON,
        capture_output=True,
        text=True,
    )
    report = json.loads(done.stdout)
    symbols: list[dict[str, Any]] = report["typeCompleteness"]["symbols"]
    if not public <= {symbol["name"] for symbol in symbols}:
        missing = sorted(public - {symbol["name"] for symbol in symbols})
        return [f"{name}: pyright does not see it" for name in missing]
    found = []
    for symbol in symbols:
        name: str = symbol["name"]
        ours = name in public or name.rpartition(".")[0] in public
        if ours and (symbol["isTypeAmbiguous"] or not symbol["isTypeKnown"]):
            why = [one["message"].replace("\n", "; ") for one in symbol["diagnostics"]]
            found.append(f"{name}: {', '.join(why) or 'it has such a member'}")
    return found


def main() -> int:
    """The exit code."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_blocks(folder)
        for path in (ROOT / "tests" / "typing").glob("*.py"):
            (folder / path.name).write_text(path.read_text())
        (folder / "pyrightconfig.json").write_text(json.dumps(_STRICT))
        files = sorted(path.name for path in folder.glob("*.py"))
        config = str(ROOT / "pyproject.toml")
        good = run(sys.executable, "-m", "mypy", f"--config-file={config}", *files, cwd=folder)
        good &= run(*_PYRIGHT, *files, cwd=folder)
    for problem in guessed():
        print(problem, file=sys.stderr)
        good = False
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
