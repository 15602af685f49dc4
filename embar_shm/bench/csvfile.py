"""One CSV row per run, for those who kept results of the original system.

Its columns come first, with its names and units (``pub_bandwidth_mbps`` is MiB/s there); what does
not exist here has the value that means "none". Ours follow.
"""

from __future__ import annotations

import csv
import fcntl
import io
from pathlib import Path
from typing import TextIO

from embar_shm.bench.delivery import Rate
from embar_shm.bench.result import Result
from embar_shm.bench.usage import by_role
from embar_shm.errors import ConfigurationError

__all__ = ["COLUMNS", "append_row", "check_file"]

COLUMNS = (
    # of the original system
    "message_size",
    "total_message_size",
    "num_threads_per_broker",
    "ack_level",
    "order",
    "replication_factor",
    "replicate_tinode",
    "num_clients",
    "num_brokers_to_kill",
    "failure_percentage",
    "sequencer_type",
    "pub_bandwidth_mbps",
    "sub_bandwidth_mbps",
    "e2e_bandwidth_mbps",
    # ours
    "started",
    "transport",
    "producer",
    "brokers",
    "publishers",
    "batch_size",
    "slots",
    "in_flight",
    "elapsed_seconds",
    "bytes_per_second",
    "messages_per_second",
    "memory_copy_share",
    "cpu_seconds",
)


def check_file(path: Path) -> None:
    """Can a row be appended? Raises `ConfigurationError` when the file has other columns."""
    if path.exists():
        with path.open("r+", newline="") as file:  # writing must be possible, too
            _read_header(path, file)


def append_row(path: Path, result: Result) -> None:
    """Appends one row; writes the header into a new or empty file.

    Safe against other processes appending to the same file. Raises `ConfigurationError` when the
    file has other columns.
    """
    with path.open("a+", newline="") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed
        header = _read_header(path, file)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if header is None:
            writer.writerow(COLUMNS)
        writer.writerow(_row(result))
        file.write(text.getvalue())


def _read_header(path: Path, file: TextIO) -> list[str] | None:
    file.seek(0)
    header = next(csv.reader(file), None)
    if header is not None and tuple(header) != COLUMNS:
        raise ConfigurationError(
            f"{path} is a CSV file with other columns: {','.join(header[:6])},...",
            "choose another file for --csv",
        )
    return header


def _row(result: Result) -> list[object]:
    p = {name: parameter["value"] for name, parameter in result["parameters"].items()}
    t = result["throughput"]
    ceiling = result["ceilings"].get("memory_copy")
    row: dict[str, object] = {
        "message_size": p["message_size"],
        "total_message_size": p["total_bytes"],
        "num_threads_per_broker": p["publishers_per_broker"],
        "ack_level": p["ack"],
        "order": p["order"],
        "replication_factor": 0,
        "replicate_tinode": "false",
        "num_clients": 1,
        "num_brokers_to_kill": int("failure" in result),
        "failure_percentage": 0,
        "sequencer_type": "none",
        "pub_bandwidth_mbps": f"{t['bytes_per_second'] / 2**20:.4f}",
        "sub_bandwidth_mbps": _mebibytes(result.get("subscribe")),
        "e2e_bandwidth_mbps": _mebibytes(result.get("end_to_end")),
        "started": result["started"],
        "transport": p["transport"],
        "producer": p["producer"],
        "brokers": p["brokers"],
        "publishers": p["publishers"],
        "batch_size": p["batch_size"],
        "slots": p["slots"],
        "in_flight": p["in_flight"],
        "elapsed_seconds": f"{t['elapsed_seconds']:.6f}",
        "bytes_per_second": f"{t['bytes_per_second']:.0f}",
        "messages_per_second": f"{t['messages_per_second']:.0f}",
        "memory_copy_share": f"{ceiling['share']:.4f}" if ceiling else "",
        "cpu_seconds": f"{sum(u['cpu_seconds'] for u in by_role(result['system']).values()):.4f}",
    }
    return [row[column] for column in COLUMNS]


def _mebibytes(rate: Rate | None) -> str | int:
    """Per second; 0 where it was not measured, as in the original."""
    return 0 if rate is None else f"{rate['bytes_per_second'] / 2**20:.4f}"
