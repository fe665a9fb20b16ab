"""An experiment with one seed after the other in one process: starts and imports are paid once.

    python -m benchmarks.gpu_day.recipe 5 experiment=speed94 data.root=...

A line of JSON on standard output for each run. The first pays for what happens once in a process.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

from benchmarks.gpu_day.blocks import row_of
from cifar_lab.__main__ import main as cifar_lab
from cifar_lab.records.record import RunRecord


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs seeds 0, 1, ...; the status of the last one."""
    count, *words = sys.argv[1:] if arguments is None else arguments
    status = 0
    for seed in range(int(count)):
        folder = Path(f"seed{seed}").absolute()
        began = time.perf_counter()
        with redirect_stdout(sys.stderr):
            status = cifar_lab([*words, f"seed={seed}", f"hydra.run.dir={folder}"])
        row = row_of(RunRecord.read(folder))
        print(json.dumps(row | {"wall_s": time.perf_counter() - began}), flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
