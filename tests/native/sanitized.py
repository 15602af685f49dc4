"""How the native programs of the tests are compiled, and run, with sanitizers."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["ENVIRONMENT", "FLAGS", "SANITIZERS"]

HEADERS = Path(__file__).parents[2] / "embar_shm" / "_native"
FLAGS = [
    *("-std=c++20", "-O1", "-g", "-pthread", "-Wall", "-Wextra", "-Werror"),
    *("-fno-sanitize-recover=all", f"-I{HEADERS}"),
]
SANITIZERS = {
    # It does not know fences, and says so: the only one is in the way of lossy subscribers.
    "threads": ["-fsanitize=thread", "-Wno-tsan"],
    "addresses": ["-fsanitize=address,undefined"],
}

ENVIRONMENT = {
    **os.environ,
    "TSAN_OPTIONS": "halt_on_error=1 exitcode=66",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "ASAN_OPTIONS": "detect_leaks=0",  # needs ptrace, which containers forbid
}
