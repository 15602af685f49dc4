"""The harness of tools/peers/: exact counts, honest failures, and nothing that stays behind.

Only with peers that need nothing installed. No timing is looked at.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
import pytest

import embar_shm as es
from embar_shm.testing import wait_until

TOOLS = Path(__file__).resolve().parents[2] / "tools"
COMMAND = [sys.executable, str(TOOLS / "peers" / "run.py")]
BUILT_IN = ["embar-shm", "mp.Queue", "mp.Pipe", "unix", "tcp"]
COUNT, BATCH = 12, 16384  # messages of each producer; bytes of a large batch
SMALL = ["--rounds", "2", "--count", str(COUNT), "--batch-size", str(BATCH)]

# A measurement over a peer that is made for a test; {body} defines its class Odd.
PROGRAM = """
import sys
sys.path.insert(0, {tools!r})
import os, time
from contextlib import contextmanager
from peers.harness import MeasurementFailed, Sizing, measure
from peers.over_sockets import Unix
from peers.workloads import workloads

{body}

try:
    measure(Odd, workloads(4096)[0], Sizing(count=3, limit={limit}))
except MeasurementFailed as error:
    print(error)
"""


def leftovers(pid: int) -> list[Path]:
    """What measurements of that process called their own."""
    places = (Path("/dev/shm"), Path(tempfile.gettempdir()))
    return [path for place in places for path in place.glob(f"*peers-{pid}-*")]


def measured(*arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and error of the command."""
    process = subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        try:
            out, err = process.communicate(timeout=90)
        finally:
            process.kill()
    assert not leftovers(process.pid)
    return process.returncode, out, err


def outcome_of(body: str, limit: float = 20) -> str:
    """What the harness says about a measurement over the peer `Odd`."""
    program = PROGRAM.format(tools=str(TOOLS), body=body, limit=limit)
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd="/"
    )
    with process:
        try:
            out, _ = process.communicate(timeout=60)  # ends when no worker holds the pipe any more
        finally:
            process.kill()
    assert not leftovers(process.pid)
    return out


def test_every_message_of_every_peer_arrives_in_every_workload(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    code, out, err = measured(*SMALL, "--only", *BUILT_IN, "--output", str(output))
    assert code == 0, err
    result: dict[str, Any] = json.loads(output.read_text())
    sizes = {"large-1-1": BATCH, "large-12-4": BATCH, "messages-1k": 1024}
    sizes |= dict.fromkeys(("messages-64", "trips-block", "trips-spin"), 64)
    assert list(result["workloads"]) == list(sizes)
    for name, size in sizes.items():
        found = result["workloads"][name]["results"]
        assert list(found) == BUILT_IN
        for peer in BUILT_IN:
            assert len(found[peer]["rounds"]) == 2
            for each in found[peer]["rounds"]:
                if name == "large-12-4":
                    assert each["received"] == [3 * COUNT] * 4
                    assert each["bytes"] == 12 * COUNT * size
                elif name.startswith("trips"):
                    assert each["received"] == [COUNT] * 2
                    assert each["bytes"] == 2 * COUNT * size
                else:
                    assert each["received"] == [COUNT]
                    assert each["bytes"] == COUNT * size
    for peer in BUILT_IN[1:]:
        assert f"| {peer} | Python | {sys.version.split()[0]} |" in out
    assert f"| embar-shm | embar-shm | {es.__version__} |" in out


def result_of(peers: dict[str, Any], workloads: dict[str, Any]) -> dict[str, Any]:
    """As the command writes it, of a machine that does not matter."""
    machine = dict.fromkeys(("last_level_cache_bytes", "memory_bytes", "load_average_1m"), 0)
    return {
        "machine": machine
        | dict.fromkeys(("cpu_model", "cpus_available", "kernel", "python", "embar_shm"), "-"),
        "rounds": 2,
        "sizing": {"seconds": 1, "count": None},
        "peers": peers,
        "workloads": workloads,
    }


def test_the_tables_are_made_from_the_json_alone(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    wanted = ("--only", "unix", "--workload", "messages-64")
    code, out, err = measured(*SMALL, *wanted, "--output", str(output))
    assert code == 0, err
    assert "## Messages of 64 B, 1 to 1" in out
    assert "## Round trips" not in out
    assert measured("--render", str(output)) == (0, out, "")


def test_who_is_not_installed_is_named_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))
    from peers.catalogue import describe
    from peers.over_sockets import Unix
    from peers.report import render

    class Absent(Unix):
        name = "absent"
        distribution = "no-such-distribution"
        wheels = "it was never made"

    class Broken(Unix):
        name = "broken"
        distribution = "numpy"
        module = "numpy.no_such_module"

    peers = {kind.name: describe(kind) for kind in (Absent, Broken, Unix)}
    assert peers["unix"]["unavailable"] is None
    text = render(result_of(peers, {}))
    assert "- absent did not take part: no-such-distribution is not installed" in text
    assert "pip install --group peers; it was never made" in text
    assert "- broken did not take part: numpy is installed, and cannot be imported: " in text
    assert "No module named 'numpy.no_such_module'" in text


def test_ratios_are_taken_inside_a_round_and_a_faster_peer_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))
    from peers.report import render, summary

    def found(*seconds: float | None) -> dict[str, Any]:
        """Rounds of a million messages that took so long; None: one that failed."""
        counts = {"messages": 1_000_000, "bytes": 64_000_000, "cpu_seconds": 1.0}
        counts["others_share"] = 0.3
        rounds = [
            {"failed": "it got lost"} if each is None else {"seconds": each, **counts}
            for each in seconds
        ]
        return {"cannot": None, "settings": "-", "rounds": rounds}

    work = {"title": "Small", "short": "64 B", "kind": "messages"}
    results = {
        "embar-shm": found(1.0, 0.5, 0.25),
        "faster": found(0.25, None, 0.125),
        "slower": found(8.0, 4.0, 1.0),
    }
    peer = {"version": "1", "unavailable": None, "distribution": None, "documentation": "-"}
    result = result_of(dict.fromkeys(results, peer), {"small": work | {"results": results}})
    text = render(result)
    assert "**Other programs used 30 % (30 to 30) of the CPUs meanwhile" in text
    assert "| slower | 0.25 (0.12 to 1.00) | 8.00 (4.00 to 8.00) |" in text
    assert "| faster | 6.00 (4.00 to 8.00) | 0.38 (0.25 to 0.50) |" in text
    assert "- faster failed in 'Small', 1 of 3 rounds: it got lost" in text
    assert "- Small: faster is faster than embar-shm, 3.00 (2.00 to 4.00) times" in text
    assert "slower is faster" not in text
    assert "| embar-shm | 2.00 |\n| faster | **6.00 (0.38 x)** |\n| slower | 0.25 (8 x) |" in (
        summary(result)
    )


def test_an_unknown_peer_is_refused_with_the_names_of_all() -> None:
    code, _, err = measured("--only", "nobody")
    assert code == 2
    for peer in BUILT_IN:
        assert peer in err


def test_a_receiver_that_loses_a_message_has_failed() -> None:
    body = """
class Odd(Unix):
    @contextmanager
    def consumer(self, index):
        with super().consumer(index) as consume:
            yield lambda count: consume(count) if count == 1 else consume(count - 1)
"""
    assert outcome_of(body) == "3 messages of 4096 bytes had 8192 bytes\n"


def test_a_batch_with_a_wrong_byte_has_failed() -> None:
    body = """
class Odd(Unix):
    @contextmanager
    def producer(self, index):
        self.message = bytes([self.message[0] ^ 1]) + self.message[1:]
        with super().producer(index) as produce:
            yield produce
"""
    assert outcome_of(body).startswith("consumer 0: WrongContent: the words of a batch add up to")


@pytest.mark.parametrize(
    ("deed", "text"),
    [
        ("raise ValueError('no luck')", "producer 0: ValueError: no luck (<string>:"),
        ("os.kill(os.getpid(), 9)", "producer 0 was ended by SIGKILL"),
        ("os._exit(3)", "producer 0 ended with exit code 3"),
    ],
)
def test_a_worker_that_ends_early_says_how(deed: str, text: str) -> None:
    body = f"""
class Odd(Unix):
    @contextmanager
    def producer(self, index):
        def produce(count):
            {deed}
        yield produce
"""
    assert outcome_of(body).startswith(text)


def test_workers_that_ignore_everything_are_ended_at_the_limit() -> None:
    body = """
import signal

class Odd(Unix):
    @contextmanager
    def consumer(self, index):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        def consume(count):
            while True:
                time.sleep(1)
        yield consume
"""
    assert outcome_of(body, limit=1) == "not done after 1 s: consumer 0\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing_behind(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [*COMMAND, "--only", "unix", "--workload", "large-12-4", "--count", "1000000000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            here = psutil.Process(process.pid)
            wait_until(lambda: len(here.children()) == 16, "sixteen workers")
            workers = here.children()
            assert leftovers(process.pid)
            process.send_signal(number)
            process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    assert not any(worker.is_running() for worker in workers)
    assert not leftovers(process.pid)


def test_workers_end_when_the_harness_is_killed() -> None:
    process = subprocess.Popen(
        [*COMMAND, "--only", "unix", "--workload", "large-12-4", "--count", "1000000000"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with process:
        try:
            here = psutil.Process(process.pid)
            wait_until(lambda: len(here.children()) == 16, "sixteen workers")
            workers = here.children()
        finally:
            process.kill()
    wait_until(lambda: not any(worker.is_running() for worker in workers), "the end of them")
    for path in leftovers(process.pid):  # its directory: nobody was left who could remove it
        for each in path.iterdir():
            each.unlink()
        path.rmdir()
