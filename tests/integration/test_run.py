"""`embar-shm run`, as its user sees it."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
from command import COMMAND, SMALL, embar_shm, leftovers_of, started

from embar_shm.address import RingName, existing_rings
from embar_shm.bench.csvfile import COLUMNS
from embar_shm.bench.usage import by_role
from embar_shm.bench.verdict import verdict
from embar_shm.errors import EmbarError
from embar_shm.layout import Geometry
from embar_shm.segment import Segment
from embar_shm.testing import wait_until

ROOT = Path(__file__).parents[2]
LONG = ["--brokers", "1", "--publishers-per-broker", "2", "--total-bytes", "100TiB"]
STAGES = {
    "publisher.buffer_write",
    "publisher.send_payload",
    "publisher.wait_space",
    "publisher.wait_ack",
    "broker.get_buffer",
    "broker.validate",
    "broker.queue",
}


def json_of(*arguments: str, **options: Any) -> dict[str, Any]:
    done = embar_shm("run", "--json", *arguments, **options)
    assert done.code == 0, done.stderr
    assert leftovers_of(done.pid) == []
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_a_run_prints_parameters_stages_and_a_result_with_nothing_lost() -> None:
    done = embar_shm("run", *SMALL)
    assert done.code == 0, done.stderr
    assert "flag --brokers" in done.stdout
    assert "publisher.buffer_write" in done.stdout
    assert "of 1 in 256 messages and of each batch" in done.stdout
    assert "2 brokers, 4 publishers" in done.stdout
    assert "outside the stages" in done.stdout.partition("Verdict")[2]
    assert "4,000 sent, 4,000 accepted, 0 lost, 0 duplicated, 0 reordered, 0 corrupt" in done.stdout
    assert done.stderr == "", "progress is for terminals"
    assert leftovers_of(done.pid) == []


@pytest.mark.parametrize("producer", ["one", "many"])
@pytest.mark.parametrize("ack", ["0", "1"])
def test_the_result_has_every_field_of_its_schema(producer: str, ack: str) -> None:
    result = json_of(*SMALL, "--producer", producer, "--ack", ack, "--ceiling")

    assert result["schema"] == "embar-shm.result/1"
    t = result["throughput"]
    assert (t["bytes"], t["messages"]) == (1_024_000, 4000)
    # 1000 messages of each of 4 publishers, 64 to a batch: 15 full ones and one of 40.
    assert t["batches"] >= 4 * 16
    for rate, amount in [
        ("bytes_per_second", "bytes"),
        ("messages_per_second", "messages"),
        ("batches_per_second", "batches"),
    ]:
        assert t[rate] == pytest.approx(t[amount] / t["elapsed_seconds"])
    assert result["integrity"] == {
        "sent": 4000,
        "accepted": 4000,
        "lost": 0,
        "duplicated": 0,
        "reordered": 0,
        "corrupt": 0,
    }
    assert set(result["ceilings"]) == {"memory_copy", "tcp_loopback"}
    for ceiling in result["ceilings"].values():
        assert ceiling["share"] == pytest.approx(
            t["bytes_per_second"] / ceiling["bytes_per_second"]
        )
    assert set(result["stages"]) >= STAGES
    for name, stage in result["stages"].items():
        assert stage.keys() == {"count", "mean_us", "p50_us", "p99_us", "max_us"}
        assert stage["p50_us"] <= stage["p99_us"] <= stage["max_us"], name
    per_batch = {"publisher.send_payload", "publisher.wait_space", "broker.get_buffer"}
    for name in per_batch | {"broker.validate", "broker.queue", "broker.release"}:
        assert result["stages"][name]["count"] == t["batches"], name
    assert result["stages"]["publisher.wait_ack"]["count"] == (4 if ack == "1" else 0)
    assert result["instrumentation"].keys() == {"sample_every", "overhead_share"}
    assert result["instrumentation"]["sample_every"] == 256
    assert result["instrumentation"]["overhead_share"] > 0
    assert set(result["system"]) >= {"broker", "publisher"}
    for usage in by_role(result["system"]).values():
        assert usage["max_rss_bytes"] > 2**20
        assert usage["cpu_seconds"] > 0
        parts = usage["user_seconds"] + usage["kernel_seconds"]
        assert usage["cpu_seconds"] == pytest.approx(parts)
    assert result["memory"]["segment_bytes"] > 2 * 8 * 16 * 1024
    assert result["environment"]["cpus_available"] >= 1
    short = any("ms: raise total_bytes" in w for w in result["warnings"])
    assert short == (t["elapsed_seconds"] < 0.1), "a loaded machine makes the run long enough"
    # The analysis is that of the result it stands in, as anybody can repeat it.
    analysis = result.pop("verdict")
    assert analysis == json.loads(json.dumps(verdict(result)))
    assert analysis["broker"] is not None
    sampled = producer == "one"  # 16 calls of each publisher are too few for one in 64
    assert (analysis["publisher"] is not None) == sampled


def test_sampling_that_is_off_is_off_in_every_stage_and_costs_nothing() -> None:
    result = json_of(*SMALL, "--sample-every", "0")
    assert result["instrumentation"] == {"sample_every": 0, "overhead_share": 0}
    assert set(result["stages"]) >= STAGES
    assert {stage["count"] for stage in result["stages"].values()} == {0}
    printed = embar_shm("run", *SMALL, "--sample-every", "0").stdout
    assert "not taken" in printed
    assert "publisher.buffer_write" not in printed


def test_both_ceilings_are_shown_and_can_be_switched_off() -> None:
    with_them = embar_shm("run", *SMALL, "--ceiling")
    assert with_them.code == 0, with_them.stderr
    assert "by the same processes without a ring" in with_them.stdout
    assert "by the same processes with bare send and recv" in with_them.stdout
    assert json_of(*SMALL, "--no-ceiling")["ceilings"] == {}


@pytest.mark.parametrize("role", ["broker", "publisher"])
def test_a_process_killed_while_loopback_is_measured_fails_the_run(role: str) -> None:
    with started("run", *LONG) as process:
        workers: list[psutil.Process] = []

        def measures() -> bool:
            assert process.poll() is None, process.communicate()
            workers[:] = psutil.Process(process.pid).children()
            return bool(workers) and bool(workers[0].net_connections("tcp"))

        wait_until(measures, "the broker receives from its publishers, or is about to")
        broker, victim = workers[0], workers[0] if role == "broker" else workers[1]
        workers[2].suspend()  # now the measurement cannot end before the kill
        assert broker.net_connections("tcp"), "it ended in the moment before"
        victim.kill()
        workers[2].resume()
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    victims_name = "broker 0" if role == "broker" else "publisher 0 of broker 0"
    assert f"{victims_name} (pid {victim.pid}) was killed by signal 9" in stderr
    assert "Traceback" not in stderr
    assert leftovers_of(process.pid) == []


def test_a_machine_without_loopback_has_a_run_and_a_warning_but_no_such_ceiling() -> None:
    probe = subprocess.run(["unshare", "-n", "true"], capture_output=True, text=True)
    if probe.returncode != 0:
        pytest.skip(f"no network namespace can be made here: {probe.stderr.strip()}")
    done = embar_shm("run", "--json", *SMALL, "--ceiling", command=["unshare", "-n", *COMMAND])
    assert done.code == 0, done.stderr
    result = json.loads(done.stdout)
    assert set(result["ceilings"]) == {"memory_copy"}
    assert any("tcp_loopback was not measured: " in w for w in result["warnings"])
    assert result["integrity"]["accepted"] == 4000
    assert leftovers_of(done.pid) == []


def test_the_result_names_the_file_and_line_that_set_a_parameter(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("# one publisher each\nbrokers: 4\nthreads_per_broker: 1\n")
    result = json_of(
        *("--config", "mine.yaml", "--message-size", "1KiB", "--total", "8MiB", "--no-ceiling"),
        environ={"EMBAR_SLOTS": "5"},
        cwd=tmp_path,
    )
    parameters = result["parameters"]
    assert parameters["publishers_per_broker"] == {"value": 1, "origin": "mine.yaml:3"}
    assert parameters["publishers"]["value"] == 4
    assert "mine.yaml:3" in parameters["publishers"]["origin"]
    assert parameters["slots"] == {"value": 5, "origin": "environment EMBAR_SLOTS"}
    assert parameters["total_bytes"] == {"value": 8 * 2**20, "origin": "flag --total"}
    assert parameters["transport"] == {"value": "shm", "origin": "default"}
    # Four publishers really ran: each waited once for its last acknowledgement.
    assert result["stages"]["publisher.wait_ack"]["count"] == 4


def test_shared_memory_does_not_grow_with_the_total() -> None:
    small, large = (
        json_of(*SMALL, "--total-bytes", total)["memory"]["segment_bytes"]
        for total in ("100KiB", "50MiB")
    )
    assert small == large


def test_a_total_that_does_not_divide_is_sent_up_to_the_last_whole_message() -> None:
    result = json_of(*SMALL, "--message-size", "1000", "--total-bytes", "12345")
    assert result["throughput"]["messages"] == result["integrity"]["accepted"] == 12
    assert any("345 of total_bytes=12345 were not sent" in w for w in result["warnings"])


def test_fewer_messages_than_publishers_are_a_run_too() -> None:
    result = json_of(*SMALL, "--total-bytes", "600")
    assert result["throughput"]["messages"] == result["integrity"]["accepted"] == 2


def test_output_and_csv_hold_the_same_run(tmp_path: Path) -> None:
    output, table = tmp_path / "result.json", tmp_path / "results.csv"
    for _ in range(2):
        done = embar_shm("run", *SMALL, "--output", str(output), "--csv", str(table))
        assert done.code == 0, done.stderr
    result = json.loads(output.read_text())
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert table.read_text().startswith(
        "message_size,total_message_size,num_threads_per_broker,ack_level,order,"
    )
    assert len(rows) == 2
    assert tuple(rows[1]) == COLUMNS
    assert rows[1]["started"] == result["started"]
    assert rows[1]["num_threads_per_broker"] == "2"
    assert float(rows[1]["bytes_per_second"]) == pytest.approx(
        result["throughput"]["bytes_per_second"], abs=1
    )


def test_a_csv_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    table = tmp_path / "shopping.csv"
    table.write_text("item,price\nmilk,1\n")
    output = tmp_path / "result.json"
    done = embar_shm("run", *SMALL, "--csv", str(table), "--output", str(output))
    assert done.code == 2
    assert "other columns: item,price" in done.stderr
    assert "Stages" not in done.stdout, "found out before the run"
    assert table.read_text() == "item,price\nmilk,1\n"
    assert not output.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--slots", "0"], "flag --slots: 0 is below the minimum 1"),
        (["--order", "5"], "flag --order"),
        (["--transport", "tpc"], "there is no transport 'tpc'"),
        (["--workload", "reprot"], "did you mean 'report'"),
        (["--output", "/nowhere/at/all.json"], "'/nowhere/at' does not exist"),
        (["--nonsense"], "No such option"),
        (["--message-size", "3MiB"], "is below message_size 3 MiB"),
    ],
)
def test_bad_usage_is_exit_code_2_and_says_what_is_wrong(arguments: list[str], said: str) -> None:
    done = embar_shm("run", *SMALL, *arguments)
    assert done.code == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert leftovers_of(done.pid) == []


def test_all_mistakes_of_all_sources_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("brokers: none\nmesage_size: 1KiB\n")
    done = embar_shm(
        *("run", "--config", "bad.yaml", "--ack", "7"),
        environ={"EMBAR_SLOTZ": "3"},
        cwd=tmp_path,
    )
    assert done.code == 2
    for said in (
        "bad.yaml:1:10: brokers",
        "bad.yaml:2:1: unknown key 'mesage_size' (did you mean 'message_size'?)",
        "environment EMBAR_SLOTZ",
        "flag --ack",
    ):
        assert said in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_ends_cleanly_and_records_nothing(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    output = tmp_path / "result.json"
    with started("run", *LONG, "--no-ceiling", "--output", str(output)) as process:
        wait_until(lambda: _is_publishing(process), "the run publishes")
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in stderr
    assert not output.exists()
    wait_until(lambda: leftovers_of(process.pid) == [], "rings and processes are gone")


@pytest.mark.parametrize("role", ["broker", "publisher"])
def test_a_run_whose_process_is_killed_fails_and_records_nothing(role: str, tmp_path: Path) -> None:
    output, table = tmp_path / "result.json", tmp_path / "results.csv"
    files = ["--output", str(output), "--csv", str(table)]
    with started("run", *LONG, "--no-ceiling", *files) as process:
        wait_until(lambda: _is_publishing(process), "the run publishes")
        workers = psutil.Process(process.pid).children()
        victim = workers[0] if role == "broker" else workers[-1]  # brokers are started first
        victim.kill()
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert role in stderr
    assert "Traceback" not in stderr
    assert not output.exists()
    assert not table.exists()
    assert leftovers_of(process.pid) == []


def test_nothing_survives_the_coordinators_sudden_death() -> None:
    with started("run", *LONG, "--no-ceiling") as process:
        wait_until(lambda: _is_publishing(process), "the run publishes")
        workers = psutil.Process(process.pid).children()
        process.kill()
        process.wait(timeout=60)
        wait_until(lambda: not any(w.is_running() for w in workers), "the workers are gone")
    assert leftovers_of(process.pid) == []


def test_a_stopped_publisher_fails_the_run_instead_of_hanging_it(tmp_path: Path) -> None:
    with started("run", *LONG, "--no-ceiling", "--timeout", "0.5") as process:
        wait_until(lambda: _is_publishing(process), "the run publishes")
        workers = psutil.Process(process.pid).children()
        for publisher in workers[1:]:
            publisher.suspend()
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "no progress while waiting for 'ended' from publisher 0 of broker 0" in stderr
    assert leftovers_of(process.pid) == []


def test_a_batch_that_is_damaged_in_the_ring_is_exit_code_3() -> None:
    with started("run", *LONG, "--no-ceiling") as process:
        wait_until(lambda: _is_publishing(process), "the run publishes")
        segment = Segment.attach(RingName(f"run-{process.pid}", "0"), prefault=False)
        end = threading.Event()

        def damage() -> None:
            geometry = segment.geometry
            while not end.is_set():
                for slot in range(geometry.slots):
                    at = geometry.slots_offset + slot * geometry.slot_stride
                    segment.memory[at : at + 4] = b"oops"

        damaging = threading.Thread(target=damage)
        damaging.start()
        try:
            _, stderr = process.communicate(timeout=60)
        finally:
            end.set()
            damaging.join()
            segment.close()
    assert process.returncode == 3
    assert "refused batch" in stderr
    assert leftovers_of(process.pid) == []


def test_a_run_killed_while_it_starts_leaves_nothing() -> None:
    slow = ["--brokers", "2", "--slots", "200"]  # creating the rings takes a while
    with started("run", *LONG, *slow, "--no-ceiling") as process:
        wait_until(lambda: _rings_of(process.pid), "a ring is being made")
        workers = psutil.Process(process.pid).children()
        process.kill()
        process.wait(timeout=60)
        wait_until(lambda: not any(w.is_running() for w in workers), "the workers are gone")
    assert leftovers_of(process.pid) == []


def test_a_small_shared_memory_says_how_much_is_needed() -> None:
    script = 'mount -t tmpfs -o size=8m tmpfs /dev/shm && exec "$@"'
    probe = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", "true"], capture_output=True, text=True
    )
    if probe.returncode != 0:
        pytest.skip(f"no mount namespace can be made here: {probe.stderr.strip()}")
    inside = ["unshare", "-m", "sh", "-c", f"{script}; ls -A /dev/shm", "sh"]
    done = embar_shm("run", command=[*inside, *COMMAND])
    assert done.code == 1
    needed = -(-4 * Geometry.plan(8, 2 * 2**20, 64).total_bytes // 2**20)  # all rings, not one
    assert f"the run needs {needed} MiB of shared memory (4 brokers with 8 slots" in done.stderr
    assert "--shm-size" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_originals_script_runs_the_same_thing(tmp_path: Path) -> None:
    wrapper = tmp_path / "embar-shm"
    wrapper.write_text(
        '#!/bin/sh\nexec "$PYTHON" -c "from embar_shm.cli.main import main; main()" "$@"\n'
    )
    wrapper.chmod(0o755)
    variables = {
        "EMBAR_SHM": str(wrapper),
        "PYTHON": COMMAND[0],
        "ORDER": "0",
        "ACK": "1",
        "TEST_TYPE": "5",
        "TOTAL_MESSAGE_SIZE": "1048576",
        "MESSAGE_SIZE": "512",
        "NUM_BROKERS": "2",
    }
    script = [str(ROOT / "tools" / "run_throughput.sh")]
    done = embar_shm("--json", "--no-ceiling", command=script, environ=variables)
    assert done.code == 0, done.stderr
    result = json.loads(done.stdout)
    values = {name: p["value"] for name, p in result["parameters"].items()}
    assert (values["brokers"], values["message_size"], values["total_bytes"]) == (2, 512, 2**20)
    assert result["integrity"]["accepted"] == 2048


def test_the_originals_script_refuses_test_types_that_do_not_exist() -> None:
    script = [str(ROOT / "tools" / "run_throughput.sh")]
    done = embar_shm(command=script, environ={"TEST_TYPE": "8"})
    assert done.code == 2
    assert "TEST_TYPE=8" in done.stderr


def test_config_show_prints_values_and_origins() -> None:
    done = embar_shm("config", "show", "--origin", "--slots", "9")
    assert done.code == 0
    assert "flag --slots" in done.stdout
    shown = json.loads(embar_shm("config", "show", "--json", "--slots", "9").stdout)
    assert shown["slots"] == {"value": 9, "origin": "flag --slots"}
    assert shown["message_size"]["origin"].startswith("config/workloads/report.yaml:")


def test_the_command_says_its_version_and_explains_itself() -> None:
    assert embar_shm("--version").stdout.startswith("embar-shm, version ")
    help_text = embar_shm("run", "--help").stdout
    assert "--publishers-per-broker" in help_text
    assert "--csv" in help_text


def test_a_closed_pipe_is_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*COMMAND, "config", "show"], stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60
    )
    os.close(writer)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def _is_publishing(process: subprocess.Popen[str]) -> bool:
    """Have both publishers connected, and batches been accepted?"""
    assert process.poll() is None, process.communicate()
    try:
        segment = Segment.attach(RingName(f"run-{process.pid}", "0"), prefault=False)
    except EmbarError:
        return False
    try:
        return segment.monitor().control()["batches"] > 100
    finally:
        segment.close()


def _rings_of(pid: int) -> list[RingName]:
    return [ring for ring in existing_rings() if ring.cluster == f"run-{pid}"]
