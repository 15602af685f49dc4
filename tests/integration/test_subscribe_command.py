"""`embar-shm subscribe`, as its user sees it, and both commands together."""

from __future__ import annotations

import base64
import json
import os
import pty
import random
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
from command import COMMAND, Outcome, clean_environment, embar_shm, running_broker

import embar_shm as es
from embar_shm.address import RingName
from embar_shm.readers import subscribers
from embar_shm.segment import Segment
from embar_shm.testing import wait_until

TOKEN = "a token of some length"


class Reading:
    """``embar-shm subscribe`` at work."""

    def __init__(self, process: subprocess.Popen[bytes], broker: es.Broker) -> None:
        self.process = process
        self._broker = broker

    @property
    def stdout(self) -> IO[bytes]:
        assert self.process.stdout is not None
        return self.process.stdout

    def wait_until_it_reads(self, batches: int) -> None:
        """So many batches are written, and it waits for the next one."""

        def waits() -> bool:
            (status,) = self._broker.stats().subscribers
            return status.batches == batches and status.holding == 0

        wait_until(waits, f"{batches} batches are read")

    def outcome(self) -> Outcome:
        """When it has ended by itself."""
        stdout, stderr = self.process.communicate(timeout=60)
        return Outcome(
            self.process.pid,
            self.process.returncode,
            (stdout or b"").decode(errors="surrogateescape"),
            (stderr or b"").decode(),
        )


@pytest.fixture
def broker(make_broker: Callable[..., es.Broker]) -> es.Broker:
    """Retains what nobody reads, so that tests can publish first."""
    return make_broker(slots=16, slot_size=65536, retain=8).start()


@pytest.fixture
def reading(broker: es.Broker) -> Iterator[Callable[..., Any]]:
    """Starts the command; gives it once it is admitted."""

    @contextmanager
    def start(
        *arguments: str,
        stdout: Any = subprocess.PIPE,
        stderr: Any = subprocess.PIPE,
        at: es.Broker = broker,
    ) -> Iterator[Reading]:
        process = subprocess.Popen(
            [*COMMAND, "subscribe", at.address, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env=clean_environment(),
        )
        with process:
            try:
                wait_until(lambda: at.stats().subscribers or process.poll() is not None, "it reads")
                yield Reading(process, at)
            finally:
                process.kill()

    yield start


def publish(broker: es.Broker, *messages: bytes, **options: Any) -> None:
    with es.Publisher.connect(broker.address, timeout=30, **options) as publisher:
        for message in messages:
            publisher.publish(message)
        publisher.wait_acked()


def binary(size: int, seed: int = 1) -> bytes:
    """Every byte there is, newlines among them."""
    return random.Random(seed).randbytes(size)  # noqa: S311


# --- from file to file ----------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["shm", "tcp"])
@pytest.mark.parametrize("kind", ["lines", "records"])
def test_what_one_file_has_the_other_gets_byte_by_byte(
    cluster: str, tmp_path: Path, scheme: str, kind: str
) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    if kind == "lines":
        lines = [binary(size % 997 + 1, size).replace(b"\n", b"\r") for size in range(2000)]
        lines.append(b"x" * 60_000)
        there.write_bytes(b"".join(line + b"\n" for line in lines))
        how: list[list[str]] = [[], []]
        count = len(lines)
    else:
        there.write_bytes(binary(1_500_000))
        how = [["--record-size", "500"], ["--format", "raw"]]
        count = 3000
    ring = ("--slots", "4", "--slot-size", "64KiB")
    with running_broker(f"{cluster}/0", *ring, "--listen", "tcp://127.0.0.1:0") as broker:
        address = next(a for a in broker.addresses if a.startswith(scheme))
        arguments = ["--count", str(count), "--output", str(back), "--json"]
        reader = subprocess.Popen(
            [*COMMAND, "subscribe", address, *arguments, *how[1]],
            stdout=subprocess.PIPE,
            env=clean_environment(),
        )
        with reader:
            wait_until(lambda: somebody_reads(RingName(cluster, "0")), "it reads")
            done = embar_shm("publish", address, str(there), *how[0])
            assert done.code == 0, done.stderr
            summary = json.loads(reader.communicate(timeout=60)[0])
        assert reader.returncode == 0
        broker.stop()
    assert back.read_bytes() == there.read_bytes()
    assert summary["messages"] == count
    assert summary["lost_batches"] == 0


# --- formats --------------------------------------------------------------------------------------


def test_lines_are_the_messages_with_a_newline_each(reading: Any, broker: es.Broker) -> None:
    messages = [b"one", b"\0\r\xff", b"with a\nnewline", b"last"]
    publish(broker, *messages)
    with reading("--start", "earliest", "--count", "4") as reader:
        done = reader.outcome()
    assert done.code == 0
    assert os.fsencode(done.stdout) == b"".join(message + b"\n" for message in messages)
    assert done.stderr.startswith("read 4 messages, 24 B, in 1 batch and ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("size", [None, 4], ids=["any size", "one size"])
def test_raw_is_the_messages_and_nothing_else(
    reading: Any, broker: es.Broker, size: int | None
) -> None:
    publish(broker, b"1234", b"\n\0\xff.", message_size=size)
    publish(broker, b"abcd", b"efgh", message_size=size)
    with reading("--start", "earliest", "--count", "3", "--format", "raw") as reader:
        done = reader.outcome()
    assert done.code == 0
    assert os.fsencode(done.stdout) == b"1234\n\0\xff.abcd"


def test_json_tells_where_each_message_came_from(reading: Any, broker: es.Broker) -> None:
    publish(broker, b'text \xc3\xa4"\n', b"\xff\xfe", publisher_id=2**64 - 1)
    publish(broker, b"more", publisher_id=7)
    with reading("--start", "earliest", "--count", "3", "--format", "json") as reader:
        done = reader.outcome()
    first, second, third = (json.loads(line) for line in done.stdout.splitlines())
    place = {"ticket": 0, "publisher": "ffffffffffffffff", "seq": 1}
    assert first == {**place, "index": 0, "text": 'text ä"\n'}
    assert second == {**place, "index": 1, "base64": base64.b64encode(b"\xff\xfe").decode()}
    assert third == {
        "ticket": 1, "publisher": "0000000000000007", "seq": 1, "index": 0, "text": "more",
    }  # fmt: skip


def test_large_batches_and_small_ones_stay_in_order(
    reading: Any, make_broker: Callable[..., es.Broker], tmp_path: Path
) -> None:
    large = make_broker(slots=4, slot_size="4MiB").start()
    messages = [binary(size, size) for size in (10, 3_000_000, 20, 1_500_000, 30, 40)]
    path = tmp_path / "out"
    arguments = ("--count", "6", "--format", "raw", "--output", str(path))
    with reading(*arguments, at=large) as reader:
        with es.Publisher.connect(large.address, timeout=30) as publisher:
            for message in messages:
                publisher.publish(message)
                publisher.flush()
        assert reader.outcome().code == 0
    assert path.read_bytes() == b"".join(messages)


# --- where it begins and ends ---------------------------------------------------------------------


def test_it_begins_with_what_comes_unless_told_otherwise(reading: Any, broker: es.Broker) -> None:
    publish(broker, b"before")
    with reading("--count", "1") as reader:
        publish(broker, b"after")
        assert reader.outcome().stdout == "after\n"


def test_a_position_of_one_summary_is_where_the_next_one_begins(
    reading: Any, broker: es.Broker
) -> None:
    for message in (b"one", b"two", b"three"):
        publish(broker, message)
    with reading("--start", "1", "--count", "1", "--json") as reader:
        done = reader.outcome()
    assert done.stdout == "two\n"
    position = json.loads(done.stderr)["position"]
    assert position.endswith(":2")
    with reading("--start", position, "--count", "1") as reader:
        assert reader.outcome().stdout == "three\n"
    with reading("--start", f"1{position}", "--count", "1") as reader:
        done = reader.outcome()
    assert done.code == 1
    assert "log" in done.stderr


def test_a_place_that_does_not_exist_is_told(reading: Any) -> None:
    with reading("--start", "5") as reader:
        done = reader.outcome()
    assert done.code == 1
    assert "ticket 5" in done.stderr


def test_count_ends_in_the_middle_of_a_batch(reading: Any, broker: es.Broker) -> None:
    publish(broker, b"1", b"22", b"333")
    with reading("--start", "earliest", "--count", "2", "--json") as reader:
        done = reader.outcome()
    assert done.stdout == "1\n22\n"
    summary = json.loads(done.stderr)
    assert (summary["messages"], summary["payload_bytes"], summary["batches"]) == (2, 3, 1)


def test_when_the_broker_stops_it_has_read_everything_and_that_is_no_error(
    reading: Any, broker: es.Broker
) -> None:
    with reading() as reader:
        publish(broker, b"one", b"two")
        broker.close()
        done = reader.outcome()
    assert (done.code, done.stdout) == (0, "one\ntwo\n")


def test_when_the_broker_is_killed_it_writes_what_there_was_and_says_so(cluster: str) -> None:
    ring = RingName(cluster, "0")
    with running_broker(str(ring)) as broker:
        process = subprocess.Popen(
            [*COMMAND, "subscribe", broker.address],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=clean_environment(),
        )
        with process:
            assert process.stdout is not None
            with es.Publisher.connect(broker.address, timeout=20) as publisher:
                while not somebody_reads(ring):
                    publisher.publish(b"early")
                    publisher.wait_acked()
                publisher.publish(b"late")
                publisher.wait_acked()
                line = b""
                while line != b"late\n":
                    line = process.stdout.readline()
                broker.process.kill()
                broker.process.wait(60)
                _, stderr = process.communicate(timeout=60)
                with pytest.raises(es.BrokerGone):
                    publisher.publish(b"x")
                    publisher.wait_acked()
    assert process.returncode == 1
    assert b"Traceback" not in stderr
    assert stderr.startswith(b"read ")
    assert str(ring) in stderr.decode()
    ring.path.unlink()


def somebody_reads(ring: RingName) -> bool:
    segment = Segment.attach(ring, timeout=0)
    try:
        return bool(subscribers(segment.monitor()))
    finally:
        segment.close()


def test_when_nothing_comes_in_time_that_is_an_error(reading: Any, broker: es.Broker) -> None:
    publish(broker, b"one")
    with reading("--start", "earliest", "--timeout", "0.1") as reader:
        done = reader.outcome()
    assert done.code == 1
    assert done.stdout == "one\n", "what came is there"
    assert "no batch came within 0.1 s" in done.stderr


def test_what_is_there_is_written_before_it_waits(reading: Any, broker: es.Broker) -> None:
    with reading() as reader:
        for number in range(5):
            publish(broker, b"%d" % number)
            assert reader.stdout.readline() == b"%d\n" % number
        assert reader.process.poll() is None


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_with_whole_batches_written(
    reading: Any, broker: es.Broker, number: signal.Signals, code: int
) -> None:
    with reading("--json") as reader:
        publish(broker, b"one", b"two")
        reader.wait_until_it_reads(1)
        reader.process.send_signal(number)
        done = reader.outcome()
    assert (done.code, done.stdout) == (code, "one\ntwo\n")
    assert json.loads(done.stderr.splitlines()[0])["messages"] == 2
    wait_until(lambda: not broker.stats().subscribers, "its row is free")


def test_a_second_signal_ends_it_although_nobody_reads_its_output(
    reading: Any, broker: es.Broker
) -> None:
    with reading() as reader:
        publish(broker, b"x" * 60_000, b"y" * 60_000)  # more than a pipe holds
        wait_until(lambda: blocked_in_a_pipe(reader.process.pid), "it is stuck")
        reader.process.send_signal(signal.SIGTERM)
        reader.process.send_signal(signal.SIGINT)  # another one: two of a kind may be one
        assert reader.process.wait(60) in (130, 143), "which of them Python sees first is open"


def blocked_in_a_pipe(pid: int) -> bool:
    return "pipe" in Path(f"/proc/{pid}/wchan").read_text()


# --- who reads its output -------------------------------------------------------------------------


def test_when_head_has_enough_it_ends_quietly(reading: Any, broker: es.Broker) -> None:
    with reading() as reader:
        publish(broker, b"one", b"two")
        assert reader.stdout.readline() == b"one\n"
        reader.stdout.close()  # nothing more comes: it notices all the same
        assert reader.process.wait(60) == 0
        assert reader.process.stderr is not None
        assert reader.process.stderr.read() == b""


def test_when_head_has_enough_in_the_middle_of_a_flood_it_ends_quietly(
    reading: Any, broker: es.Broker
) -> None:
    with reading() as reader:
        reader.stdout.close()
        publish(broker, *[b"x" * 60_000] * 40)
        assert reader.process.wait(60) == 0
        assert reader.process.stderr is not None
        assert reader.process.stderr.read() == b""


def test_a_full_disk_is_an_error(reading: Any, broker: es.Broker) -> None:
    publish(broker, b"one")
    with reading("--start", "earliest", "--output", "/dev/full") as reader:
        done = reader.outcome()
    assert done.code == 1
    assert "No space left on device" in done.stderr


# --- lossy readers --------------------------------------------------------------------------------


def test_a_lossy_reader_that_is_overrun_tells_what_it_lost(
    reading: Any, make_broker: Callable[..., es.Broker]
) -> None:
    small = make_broker(slots=4, slot_size=4096).start()
    batches = 2000
    with reading("--mode", "lossy", "--json", "--format", "raw", at=small) as reader:
        # It writes 4 KB of each batch into a pipe that nobody empties yet, and so must fall behind.
        publish(small, *[b"%04d" % number * 1000 for number in range(batches)])
        small.close()
        done = reader.outcome()
    assert done.code == 0
    *told, last = done.stderr.splitlines()
    summary = json.loads(last)
    assert summary["lost_batches"] > 0
    assert summary["batches"] + summary["lost_batches"] == batches
    assert told[0].startswith("lost ")
    assert sum(int(line.split()[1].replace(",", "")) for line in told) == summary["lost_batches"]
    numbers = [int(done.stdout[at : at + 4]) for at in range(0, len(done.stdout), 4000)]
    assert numbers == sorted(set(numbers)), "in order, each once"
    assert len(numbers) == summary["messages"]
    assert all(
        done.stdout[at : at + 4000] == done.stdout[at : at + 4] * 1000
        for at in range(0, len(done.stdout), 4000)
    ), "none is torn"


def test_a_reliable_reader_that_nobody_empties_loses_nothing(
    reading: Any, make_broker: Callable[..., es.Broker]
) -> None:
    small = make_broker(slots=4, slot_size=4096).start()
    count = 500
    with reading("--count", str(count), "--format", "raw", at=small) as reader:
        publisher = subprocess.Popen(
            [*COMMAND, "publish", small.address, "--record-size", "4000"],
            stdin=subprocess.PIPE,
            env=clean_environment(),
        )
        with publisher:
            data = b"".join(b"%04d" % number * 1000 for number in range(count))
            feeding = threading.Thread(target=publisher.communicate, args=(data, 60))
            feeding.start()
            wait_until(lambda: blocked_in_a_pipe(reader.process.pid), "nobody empties the pipe")
            done = reader.outcome()
            feeding.join(60)
        assert publisher.returncode == 0
    assert os.fsencode(done.stdout) == data


# --- what it says ---------------------------------------------------------------------------------


def test_with_a_file_the_summary_is_on_stdout_as_json(
    reading: Any, broker: es.Broker, tmp_path: Path
) -> None:
    publish(broker, b"one")
    path = tmp_path / "out"
    path.write_text("something older and longer")
    arguments = ("--start", "earliest", "--count", "1", "--output", str(path), "--json")
    with reading(*arguments) as reader:
        done = reader.outcome()
    assert path.read_bytes() == b"one\n"
    assert json.loads(done.stdout)["messages"] == 1
    assert done.stderr == ""


def test_its_name_is_what_others_see(reading: Any, broker: es.Broker) -> None:
    with reading("--name", "the archive"):
        (status,) = broker.stats().subscribers
    assert (status.name, status.mode) == ("the archive", "reliable")


def test_progress_is_shown_on_a_terminal(reading: Any, broker: es.Broker) -> None:
    ours, theirs = pty.openpty()
    with reading(stderr=theirs) as reader:
        os.close(theirs)
        publish(broker, b"one")
        shown = b""
        while b"1 messages" not in shown:
            shown += os.read(ours, 4096)
        reader.process.terminate()
        assert reader.process.wait(60) == 143
    os.close(ours)


# --- over a network -------------------------------------------------------------------------------


def test_over_tcp_with_a_token(cluster: str, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    own = ("--listen", "tcp://127.0.0.1:0", "--token-file", str(token), "--retain", "4")
    with running_broker(f"{cluster}/0", *own) as broker:
        refused = embar_shm("subscribe", broker.address)
        assert refused.code == 1
        assert "token" in refused.stderr
        with es.Publisher.connect(broker.addresses[0], timeout=20) as publisher:
            publisher.publish(b"one")
            publisher.wait_acked()
        more = ("--token-file", str(token), "--start", "earliest", "--count", "1")
        done = embar_shm("subscribe", broker.address, *more)
        assert (done.code, done.stdout) == (0, "one\n")
        broker.stop()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_over_tcp_a_signal_ends_it_too(cluster: str, number: signal.Signals, code: int) -> None:
    with running_broker(f"{cluster}/0", "--listen", "tcp://127.0.0.1:0") as broker:
        process = subprocess.Popen(
            [*COMMAND, "subscribe", broker.address],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=clean_environment(),
        )
        with process, es.Publisher.connect(broker.addresses[0], timeout=20) as publisher:
            assert process.stdout is not None
            wait_until(lambda: somebody_reads(RingName(cluster, "0")), "it reads")
            publisher.publish(b"one")
            publisher.flush()
            assert process.stdout.readline() == b"one\n"
            process.send_signal(number)
            assert process.wait(60) == code
        broker.stop()


def test_a_fifo_can_be_the_output(reading: Any, broker: es.Broker, tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    publish(broker, b"one")
    with reading("--start", "earliest", "--count", "1", "--output", str(path)) as reader:
        assert path.read_bytes() == b"one\n"
        assert reader.process.wait(60) == 0


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--start", "soon"], "'soon' is neither 'latest' nor 'earliest'"),
        (["--start", "-1"], "'-1' is neither"),
        (["--start", "99999999999999999999"], "99999999999999999999"),
        (["--format", "xml"], "'xml' is not one of"),
        (["--mode", "sloppy"], "'sloppy' is not one of"),
        (["--count", "0"], "0 is not in the range"),
        (["--timeout", "soon"], "'soon' is neither a number of seconds nor 'none'"),
        (["--output", "/no/such/folder/file"], "the folder '/no/such/folder' does not exist"),
        (["--output", "/"], "cannot be written"),
        (["--name", "\x07"], "printable"),
        (["--tls-ca", "x"], "--tls-ca: shared memory has no use for it"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_is_told(
    reading: Any, broker: es.Broker, arguments: list[str], said: str
) -> None:
    with reading(*arguments) as reader:
        done = reader.outcome()
    assert done.code == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    wait_until(lambda: not broker.stats().subscribers, "nobody is left")


def test_without_a_broker_it_says_so(cluster: str) -> None:
    done = embar_shm("subscribe", f"shm://{cluster}/0")
    assert done.code == 1
    assert f"{cluster}/0" in done.stderr


def test_it_waits_for_a_broker_if_told(cluster: str) -> None:
    process = subprocess.Popen(
        [*COMMAND, "subscribe", f"shm://{cluster}/0", "--connect-timeout", "none", "--count", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=clean_environment(),
    )
    with process, running_broker(f"{cluster}/0") as broker:
        with es.Publisher.connect(broker.address, timeout=20) as publisher:
            while process.poll() is None:  # it begins with what comes once it is there
                publisher.publish(b"one")
                publisher.wait_acked()
        assert process.communicate(timeout=60)[0] == "one\n"
        broker.stop()
    assert process.returncode == 0
