"""`embar-shm publish`, as its user sees it; the test is the broker, and looks at each message."""

from __future__ import annotations

import itertools
import json
import os
import pty
import random
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import pytest
from certificates import Site
from command import COMMAND, Outcome, clean_environment, embar_shm, running_broker

import embar_shm as es
from embar_shm.address import RingName
from embar_shm.segment import Segment
from embar_shm.testing import Log, wait_until

TOKEN = "a token of some length"


class Publishing:
    """``embar-shm publish`` at work, and the log of its broker."""

    def __init__(self, process: subprocess.Popen[bytes], broker: es.Broker) -> None:
        self.process = process
        self.broker = broker
        self.log = Log.of(broker)
        self.feeding: threading.Thread | None = None

    @property
    def stdin(self) -> IO[bytes]:
        assert self.process.stdin is not None
        return self.process.stdin

    def write(self, data: bytes) -> None:
        """More input, at once."""
        self.stdin.write(data)
        self.stdin.flush()

    def feed(self, pieces: Iterable[bytes]) -> None:
        """Input from a thread, which may have to wait; ends it, if its reader does not first."""
        stdin = self.stdin
        self.process.stdin = None

        def write() -> None:
            with suppress(BrokenPipeError), stdin:
                for piece in pieces:
                    stdin.write(piece)
                    stdin.flush()

        self.feeding = threading.Thread(target=write)
        self.feeding.start()

    def outcome(self, *, end_input: bool = True) -> Outcome:
        """Waits for its end, as a broker that accepts what comes."""
        if end_input:
            self._end_input()
        wait_until(self._has_ended, "its end", 60)
        self._end_input()
        if self.feeding is not None:
            self.feeding.join(60)
        stdout, stderr = self.process.communicate()
        return Outcome(self.process.pid, self.process.returncode, stdout.decode(), stderr.decode())

    def _has_ended(self) -> bool:
        ended = self.process.poll() is not None
        self.log.take()
        return ended

    def _end_input(self) -> None:
        if self.process.stdin is not None:
            with suppress(BrokenPipeError):
                self.process.stdin.close()
            self.process.stdin = None  # communicate() must not flush it

    def summary(self, code: int = 0, *, end_input: bool = True) -> dict[str, Any]:
        """Of ``--json``, when it has ended with this exit code."""
        done = self.outcome(end_input=end_input)
        assert done.code == code, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found


@pytest.fixture
def publishing(make_broker: Callable[..., es.Broker]) -> Iterator[Callable[..., Any]]:
    """Starts the command for a ring that the test serves by hand."""

    @contextmanager
    def start(
        *arguments: str, stdin: Any = subprocess.PIPE, stderr: Any = subprocess.PIPE, **ring: Any
    ) -> Iterator[Publishing]:
        broker = make_broker(**({"slots": 8, "slot_size": 65536} | ring))
        process = subprocess.Popen(
            [*COMMAND, "publish", broker.address, *arguments],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=clean_environment(),
        )
        with process:
            try:
                yield Publishing(process, broker)
            finally:
                process.kill()

    yield start


def binary(size: int, seed: int = 1) -> bytes:
    """Every byte there is, newlines among them."""
    return random.Random(seed).randbytes(size)  # noqa: S311


def lines_of(data: bytes) -> list[bytes]:
    return [line for line in data.split(b"\n") if line]


# --- lines ----------------------------------------------------------------------------------------


def test_the_lines_of_a_file_arrive_byte_by_byte(publishing: Any, tmp_path: Path) -> None:
    path = tmp_path / "data"
    data = b"first\n\r\n\0\n\xff\xfe not text \n" + binary(3_000_000) + b"\nlast, without its end"
    path.write_bytes(data)
    with publishing(str(path), "--json") as publisher:
        summary = publisher.summary()
    assert publisher.log.messages == lines_of(data)
    assert summary["messages"] == len(lines_of(data))
    assert summary["payload_bytes"] == sum(map(len, lines_of(data)))
    assert summary["acknowledged_batches"] == summary["batches"] > 1
    assert summary["left_over_bytes"] == 0


def pieces(data: bytes, *sizes: int) -> Iterator[bytes]:
    """All of `data`, in pieces of these sizes in any order."""
    numbers = random.Random(3)  # noqa: S311
    at = 0
    while at < len(data):
        size = numbers.choice(sizes)
        yield data[at : at + size]
        at += size


def test_lines_that_come_in_pieces_are_put_together(publishing: Any) -> None:
    data = binary(400_000, seed=2)
    with publishing() as publisher:
        publisher.feed(pieces(data, 1, 7, 4096, 100_000))
        assert publisher.outcome().code == 0
    assert publisher.log.messages == lines_of(data)


def test_a_line_may_be_as_long_as_a_batch(publishing: Any, tmp_path: Path) -> None:
    path = tmp_path / "data"
    lines = [b"x" * (4 * 1024**2 - 8), b"short", b"y" * (3 * 1024**2)]
    path.write_bytes(b"\n".join(lines) + b"\n")
    with publishing(str(path), slot_size="4MiB", slots=2) as publisher:
        assert publisher.outcome().code == 0
    assert publisher.log.messages == lines


def test_empty_lines_are_no_messages_and_are_counted(publishing: Any) -> None:
    with publishing("--json") as publisher:
        publisher.write(b"\n\na\n\nb\n\n")
        summary = publisher.summary()
    assert publisher.log.messages == [b"a", b"b"]
    assert summary["skipped_empty_lines"] == 4


def test_input_without_anything_is_no_error(publishing: Any) -> None:
    with publishing("--json", stdin=subprocess.DEVNULL) as publisher:
        summary = publisher.summary()
    assert summary["messages"] == summary["batches"] == summary["acknowledged_batches"] == 0


def test_a_line_that_is_too_long_is_named_and_those_before_it_are_in_the_log(
    publishing: Any,
) -> None:
    with publishing("--json") as publisher:
        publisher.write(b"one\n\nthree\n" + b"x" * 70_000 + b"\nfive\n")
        done = publisher.outcome()
    assert done.code == 1
    assert "line 4 of stdin: a message of 70000 bytes" in done.stderr
    assert publisher.log.messages == [b"one", b"three"]
    assert json.loads(done.stdout)["acknowledged_batches"] == 1


def test_a_line_without_an_end_is_refused_before_it_fills_the_memory(publishing: Any) -> None:
    with publishing() as publisher:
        publisher.feed(itertools.chain([b"one\n"], itertools.repeat(b"x" * 65536)))
        done = publisher.outcome()
    assert done.code == 1
    assert "line 2 of stdin" in done.stderr
    assert publisher.log.messages == [b"one"]


def test_lines_are_there_while_the_pipe_stays_open(publishing: Any) -> None:
    with publishing() as publisher:
        for number in range(5):
            publisher.write(b"line %d\n" % number)
            publisher.log.wait_for(number + 1)
        assert publisher.process.poll() is None
        assert publisher.outcome().code == 0
    assert publisher.log.messages == [b"line %d" % number for number in range(5)]


@pytest.mark.parametrize("more", [[], ["--record-size", "2"]], ids=["lines", "records"])
def test_count_ends_it_although_there_is_more(publishing: Any, more: list[str]) -> None:
    with publishing("--count", "3", "--json", *more) as publisher:
        publisher.write(b"1\n2\n3\n4\n5\n")
        assert publisher.summary(end_input=False)["messages"] == 3
    assert [message.strip() for message in publisher.log.messages] == [b"1", b"2", b"3"]


# --- records --------------------------------------------------------------------------------------


def test_the_records_of_a_file_arrive_byte_by_byte(publishing: Any, tmp_path: Path) -> None:
    path = tmp_path / "data"
    data = binary(3_000_000)
    path.write_bytes(data)
    with publishing(str(path), "--record-size", "1000", "--json") as publisher:
        summary = publisher.summary()
    assert b"".join(publisher.log.messages) == data
    assert {len(message) for message in publisher.log.messages} == {1000}
    assert summary["messages"] == 3000
    assert summary["acknowledged_batches"] == summary["batches"]


def test_records_that_come_in_pieces_are_put_together(publishing: Any) -> None:
    data = binary(99 * 4000, seed=4)
    with publishing("--record-size", "99") as publisher:
        publisher.feed(pieces(data, 1, 98, 100, 4096, 50_000))
        assert publisher.outcome().code == 0
    assert publisher.log.messages == [data[at : at + 99] for at in range(0, len(data), 99)]


def test_a_file_that_does_not_consist_of_records_is_refused_at_once(
    publishing: Any, tmp_path: Path
) -> None:
    path = tmp_path / "data"
    path.write_bytes(binary(1001))
    with publishing(str(path), "--record-size", "100") as publisher:
        done = publisher.outcome()
    assert done.code == 2
    assert f"{path} has 1,001 bytes: 10 records of 100 bytes, and 1 more" in done.stderr
    assert "--partial" in done.stderr
    assert publisher.log.messages == []


def test_enough_records_for_the_count_are_enough(publishing: Any, tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(binary(1001))
    with publishing(str(path), "--record-size", "100", "--count", "10") as publisher:
        assert publisher.outcome().code == 0
    assert len(publisher.log.messages) == 10


def test_a_file_is_measured_from_where_it_is_read(publishing: Any, tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"header" + binary(1000))
    with path.open("rb", buffering=0) as opened:
        opened.seek(6)
        with publishing("--record-size", "100", stdin=opened) as publisher:
            assert publisher.outcome().code == 0
    assert b"".join(publisher.log.messages) == binary(1000)


def test_a_pipe_that_ends_within_a_record_is_an_error_and_the_whole_ones_are_in_the_log(
    publishing: Any,
) -> None:
    data = binary(250)
    with publishing("--record-size", "100", "--json") as publisher:
        publisher.write(data)
        done = publisher.outcome()
    assert done.code == 1
    assert "stdin ended after 50 of the 100 bytes of a record" in done.stderr
    assert publisher.log.messages == [data[:100], data[100:200]]
    assert json.loads(done.stdout)["acknowledged_batches"] == 1


@pytest.mark.parametrize("piped", [True, False], ids=["pipe", "file"])
def test_the_last_record_may_be_shorter_if_that_is_wanted(
    publishing: Any, tmp_path: Path, piped: bool
) -> None:
    path = tmp_path / "data"
    data = binary(250)
    path.write_bytes(data)
    source = "-" if piped else str(path)
    with publishing(source, "--record-size", "100", "--partial") as publisher:
        publisher.write(data)
        assert publisher.outcome().code == 0
    assert publisher.log.messages == [data[:100], data[100:200], data[200:]]


# --- the rate -------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [[], ["--record-size", "2"]], ids=["lines", "records"])
def test_no_message_is_sent_before_its_time(publishing: Any, more: list[str]) -> None:
    with publishing("--rate", "20", "--json", *more) as publisher:
        publisher.write(b"1\n2\n3\n4\n5\n")
        summary = publisher.summary()
    assert [message.strip() for message in publisher.log.messages] == [b"1", b"2", b"3", b"4", b"5"]
    assert summary["elapsed_seconds"] >= 4 / 20


def test_when_it_is_to_end_it_no_longer_keeps_the_rate(publishing: Any) -> None:
    with publishing("--rate", "0.001") as publisher:
        publisher.write(b"".join(b"%d\n" % number for number in range(100)))
        publisher.log.wait_for(1)
        publisher.process.terminate()
        assert publisher.outcome().code == 143
    assert publisher.log.messages == [b"%d" % number for number in range(100)]


# --- signals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_with_everything_it_has_read_in_the_log(
    publishing: Any, number: signal.Signals, code: int
) -> None:
    with publishing("--json") as publisher:
        publisher.write(b"one\ntwo\nunfinished")
        publisher.log.wait_for(2)
        publisher.process.send_signal(number)
        summary = publisher.summary(code, end_input=False)
    assert publisher.log.messages == [b"one", b"two"]
    assert summary["acknowledged_batches"] == summary["batches"]
    assert summary["left_over_bytes"] == len("unfinished")


def test_a_signal_while_the_ring_is_full_loses_nothing(publishing: Any, tmp_path: Path) -> None:
    path = tmp_path / "data"
    lines = [b"%05d" % number * 20 for number in range(5000)]  # more than the ring holds
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    with publishing(str(path), slots=2, slot_size=4096) as publisher:
        wait_until(lambda: full(publisher), "the ring is full")
        publisher.process.terminate()
        assert publisher.outcome().code == 143
    assert publisher.log.messages == lines


def test_a_second_signal_ends_it_although_the_broker_stands_still(
    publishing: Any, tmp_path: Path
) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"some line\n" * 5000)
    with publishing(str(path), slots=2, slot_size=4096) as publisher:
        wait_until(lambda: full(publisher), "the ring is full")
        publisher.process.send_signal(signal.SIGTERM)
        publisher.process.send_signal(signal.SIGINT)  # another one: two of a kind may be one
        assert publisher.process.wait(60) in (130, 143), "which of them Python sees first is open"
        done = publisher.outcome()
    assert "Traceback" not in done.stderr


def full(publisher: Publishing) -> bool:
    """Does the publisher hold every slot of its ring?"""
    return all(owner >= 0 for _, owner, *_ in publisher.broker.segment.monitor().slots())


# --- brokers --------------------------------------------------------------------------------------


def test_without_a_broker_it_says_so(cluster: str) -> None:
    done = embar_shm("publish", f"shm://{cluster}/0")
    assert done.code == 1
    assert f"{cluster}/0" in done.stderr
    assert "Traceback" not in done.stderr


def test_it_waits_for_a_broker_if_told(cluster: str) -> None:
    arguments = ["publish", f"shm://{cluster}/0", "--connect-timeout", "none", "--json"]
    process = subprocess.Popen(
        [*COMMAND, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process, running_broker(f"{cluster}/0") as broker:
        stdout, _ = process.communicate("a line", timeout=60)
        assert process.returncode == 0
        assert json.loads(stdout)["messages"] == 1
        assert broker.stop()["stats"]["messages"] == 1


def test_ctrl_c_ends_the_wait_for_a_broker(cluster: str) -> None:
    process = subprocess.Popen(
        [*COMMAND, "publish", f"shm://{cluster}/0", "--connect-timeout", "none"],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        wait_until(lambda: asleep(process.pid), "it waits")
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert process.stderr.read().strip() == "embar-shm: interrupted"
    assert process.returncode == 130


def asleep(pid: int) -> bool:
    """Is it in the loop that looks for the ring? It then sleeps most of the time."""
    name = Path(f"/proc/{pid}/wchan").read_text()
    return "nanosleep" in name


def test_when_the_broker_is_killed_it_says_so_and_what_was_acknowledged(cluster: str) -> None:
    ring = RingName(cluster, "0")
    with running_broker(str(ring)) as broker:
        process = subprocess.Popen(
            [*COMMAND, "publish", broker.address, "--json"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        with process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdin.write(b"one\n")
            process.stdin.flush()
            segment = Segment.attach(ring, timeout=0)
            control = segment.monitor().control
            wait_until(lambda: control()["batches"] == 1, "the first line")
            segment.close()
            broker.process.kill()
            broker.process.wait(60)
            for _ in range(2):  # the first one may still go into the ring
                with suppress(BrokenPipeError):
                    process.stdin.write(b"two\n" * 100_000)
                    process.stdin.flush()
            with suppress(BrokenPipeError):
                process.stdin.close()
            process.stdin = None
            stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert b"Traceback" not in stderr
    assert f"{cluster}/0".encode() in stderr
    assert json.loads(stdout)["acknowledged_batches"] == 1
    ring.path.unlink()


def published(address: str, *arguments: str, data: bytes = b"1\n2\n3\n") -> tuple[int, str]:
    done = subprocess.run(
        [*COMMAND, "publish", address, *arguments],
        input=data,
        capture_output=True,
        env=clean_environment(),
        timeout=60,
    )
    return done.returncode, done.stderr.decode()


def test_over_tcp_with_a_token(cluster: str, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    with running_broker(
        f"{cluster}/0", "--listen", "tcp://127.0.0.1:0", "--token-file", str(token)
    ) as broker:
        code, stderr = published(broker.address)
        assert code == 1
        assert "asks for a token" in stderr
        assert published(broker.address, "--token-file", str(token))[0] == 0
        assert published(broker.address, "--token-file", str(token), "--ack", "0")[0] == 0
        assert broker.stop()["stats"]["messages"] == 6


def test_over_tls_with_a_certificate_of_its_own(cluster: str, tmp_path: Path) -> None:
    site = Site(tmp_path / "tls")
    mine, client = site.issue("127.0.0.1"), site.issue("client.example")
    own = ("--tls-cert", mine.certificate, "--tls-key", mine.key, "--tls-client-ca", site.ca)
    shown = ("--tls-cert", client.certificate, "--tls-key", client.key)
    with running_broker(f"{cluster}/0", "--listen", "tcp://127.0.0.1:0", *own) as broker:
        code, stderr = published(broker.address, "--tls-ca", site.ca)
        assert code == 1
        assert "certificate" in stderr
        assert published(broker.address, "--tls-ca", site.ca, *shown)[0] == 0
        assert broker.stop()["stats"]["messages"] == 3


# --- what it says ---------------------------------------------------------------------------------


def test_people_get_a_summary_on_stderr_and_nothing_else(publishing: Any) -> None:
    with publishing() as publisher:
        publisher.write(b"one\n\ntwo\n")
        done = publisher.outcome()
    assert (done.code, done.stdout) == (0, "")
    first, second = done.stderr.splitlines()
    assert first.startswith("published 2 messages, 6 B, in 1 batch and ")
    assert second == "skipped: 1 empty line"


def test_without_acknowledgements_none_are_counted(publishing: Any) -> None:
    with publishing("--ack", "0", "--json") as publisher:
        publisher.write(b"one\n")
        assert publisher.summary()["acknowledged_batches"] is None
    assert publisher.log.messages == [b"one"]


def test_progress_is_shown_on_a_terminal(publishing: Any) -> None:
    ours, theirs = pty.openpty()
    with publishing(stderr=theirs) as publisher:
        os.close(theirs)
        publisher.write(b"one\n")
        publisher.log.wait_for(1)
        shown = b""
        while b"1 messages" not in shown:
            shown += os.read(ours, 4096)
        publisher.stdin.close()
        publisher.process.stdin = None
        publisher.log.take()
        while publisher.process.poll() is None:
            with suppress(OSError):  # the terminal is closed by now
                shown += os.read(ours, 4096)
            publisher.log.take()
    os.close(ours)
    assert publisher.process.returncode == 0


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["/no/such/file"], "/no/such/file cannot be read: No such file or directory"),
        (["/"], "/ cannot be read: it is a directory"),
        (["--partial"], "--partial has no effect without --record-size"),
        (["--record-size", "0"], "at least 1 byte"),
        (["--record-size", "10K"], "ambiguous"),
        (["--record-size", "1GiB"], "1073741824"),
        (["--batch-size", "1GiB"], "1073741824"),
        (["--count", "0"], "0 is not in the range"),
        (["--rate", "0"], "0.0 is not in the range"),
        (["--rate", "fast"], "'fast' is not a valid float"),
        (["--ack", "2"], "2 is not in the range"),
        (["--timeout", "-1"], "'-1' is neither a number of seconds nor 'none'"),
        (["--connect-timeout", "soon"], "'soon' is neither a number of seconds nor 'none'"),
        (["--token-file", "x"], "--token-file: shared memory has no use for it"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_is_told_before_anything_is_published(
    publishing: Any, arguments: list[str], said: str
) -> None:
    with publishing(*arguments) as publisher:
        done = publisher.outcome()
    assert done.code == 2
    assert said in done.stderr
    assert done.stdout == ""
    assert publisher.log.messages == []


@pytest.mark.parametrize(
    ("address", "arguments", "said"),
    [
        ("demo/0", [], "'demo/0' is not an address"),
        ("shm://demo", [], "'demo' is not the name of a ring"),
        ("udp://demo", [], "there is no transport 'udp'"),
        ("tcp://127.0.0.1:1", ["--tls-cert", "x"], "both --tls-cert and --tls-key"),
        (
            "tcp://127.0.0.1:1",
            ["--tls-cert", "x", "--tls-key", "y"],
            "--tls-cert has no effect without --tls-ca",
        ),
        ("tcp://127.0.0.1:1", ["--tls-ca", "/no/such"], "/no/such"),
        ("tcp://127.0.0.1:1", ["--token-file", "/no/such"], "/no/such cannot be read"),
    ],
)
def test_addresses_and_flags_that_do_not_fit_are_told(
    address: str, arguments: list[str], said: str
) -> None:
    done = embar_shm("publish", address, *arguments)
    assert done.code == 2
    assert said in done.stderr


def test_a_closed_stdin_is_told(cluster: str) -> None:
    command = f"exec {COMMAND[0]} -c '{COMMAND[2]}' publish shm://{cluster}/0 <&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "stdin cannot be read" in done.stderr
