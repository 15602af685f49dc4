"""Plain against non-temporal stores, by footprint: the measurement behind the rule in copy.hpp.

    python tools/bench_copy.py [--rounds 5]

Copies messages of 1 KiB, blocks of 64 KiB and whole batches of 2 MiB, each from the same private
memory again and again, into slots of 2 MiB that are used in turn.
"""

from __future__ import annotations

import argparse
import mmap
import os
import statistics

from bench_common import interleave, machine, table

from embar_shm import _core
from embar_shm.shared_memory import prefault_memory

MIB = 2**20
SLOT = 2 * MIB
STRIDE = SLOT + 4096
TOTAL = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    machine()
    memory = mmap.mmap(-1, 128 * STRIDE)
    prefault_memory(memory)
    sources = {
        "1 KiB": os.urandom(1024),
        "64 KiB": os.urandom(64 * 1024),
        "2 MiB": os.urandom(SLOT),
    }
    rows = []
    for slots in (1, 2, 4, 8, 12, 16, 24, 32, 64, 128):
        offsets = [slot * STRIDE + 4096 for slot in range(slots)]
        row = [f"{slots * SLOT // MIB} MiB"]
        for source in sources.values():

            def rate(nontemporal: bool, source: bytes = source) -> float:
                batches = TOTAL // SLOT
                ns = _core.memory_copy(memory, offsets, source, SLOT, batches, nontemporal)  # noqa: B023
                return TOTAL / ns

            found = interleave(
                rounds, {"plain": lambda: rate(False), "nontemporal": lambda: rate(True)}
            )
            plain, nontemporal = (statistics.median(v) for v in found.values())
            best = "plain" if plain >= nontemporal else "non-temporal"
            row.append(f"{plain:.0f} / {nontemporal:.0f} {best}")
        rows.append(row)
    print("GB/s with plain / non-temporal stores, medians, by the memory written in turn:\n")
    table(["footprint", *(f"source {name}" for name in sources)], rows)


if __name__ == "__main__":
    main()
