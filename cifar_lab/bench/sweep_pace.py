"""Trials per hour: our sweeps against Hydra's basic launcher, with the same program.

    python -m cifar_lab.bench.sweep_pace [--turns 3] [--json FILE] [--preset cpu|gpu|quick]

Claims (goals of the project): cpu, on 2 cores: 32 trials (8 learning rates x 4 block counts of a
small ResNet, 1 epoch of 5,000 images), at least 1.6 times; overhead per trial beyond its own
training under 0.5 s after the first. gpu, on one GPU: the report's CNN, 32 trials of 2 epochs, at
least 4 times. The launchers take turns; figures are medians, with least and greatest.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_LRS = "optimizer.lr=0.001,0.003,0.01,0.02,0.05,0.1,0.2,0.4"
PRESETS: dict[str, tuple[str, ...]] = {
    "cpu": (
        *("data=synthetic", "data.train_size=6000", "data.test_size=1000", "data.val_size=1000"),
        *("data.batch_size=100", "trainer=cpu", "trainer.max_epochs=1", "callbacks=checkpoints"),
        *("model=resnet10", "model.width=8", _LRS),
        "model.num_blocks=[1],[1,1],[1,1,1],[1,1,1,1]",
    ),
    "gpu": (
        *("data=synthetic", "data.train_size=50000", "data.val_size=5000", "data.batch_size=500"),
        *("model=cnn", "trainer=gpu", "trainer.max_epochs=2", "callbacks=checkpoints"),
        *(_LRS, "seed=0,1,2,3", "slots=4"),
    ),
    "quick": (
        *("data=synthetic", "data.train_size=600", "data.test_size=200", "data.val_size=200"),
        *("data.batch_size=50", "trainer=cpu", "trainer.max_epochs=1", "callbacks=checkpoints"),
        *("model=resnet10", "model.width=4", "model.num_blocks=[1]", "seed=0,1,2,3"),
    ),
}
LAUNCHERS = ("basic", "slots")


def sweep(preset: str, launcher: str, folder: Path) -> dict[str, float]:
    """One sweep from the command to its end.

    Returns:
        ``trials``, ``wall_s``, and ``overhead_s``: a trial's share of the wall time between the
        first trial's start and the last one's end, beyond its own fit.
    """
    command = [sys.executable, "-m", "cifar_lab", "-m", *PRESETS[preset]]
    command += [f"hydra/launcher={launcher}", f"hydra.sweep.dir={folder}"]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    wall_s = time.perf_counter() - started
    records = [json.loads(path.read_text()) for path in folder.glob("*/run.json")]
    # a learning rate may be too high for a block count: that is a result too
    ended = [r for r in records if r["status"] in ("finished", "diverged")]
    if not ended or len(ended) < len(records) or done.returncode not in (0, 1):
        raise RuntimeError(done.stderr)
    slots = _at_a_time(done.stdout)
    # from the end of the first round on: what it paid once is paid
    by_end = sorted(folder.glob("*/run.json"), key=lambda path: path.stat().st_mtime)
    later = by_end[slots:]
    overhead_s = float("nan")
    if later:
        span_s = later[-1].stat().st_mtime - by_end[slots - 1].stat().st_mtime
        fits = [float(json.loads(p.read_text())["timings"].get("fit_s") or 0) for p in later]
        overhead_s = (span_s * slots - sum(fits)) / len(later)
    return {"trials": len(ended), "wall_s": wall_s, "overhead_s": overhead_s}


def _at_a_time(output: str) -> int:
    words = output.partition(" at a time")[0].split()
    return int(words[-1]) if " at a time" in output else 1


def compare(preset: str, turns: int) -> dict[str, Any]:
    """Both launchers by turns, into folders of their own; the cache of data is warm for both."""
    rows: dict[str, list[dict[str, float]]] = {launcher: [] for launcher in LAUNCHERS}
    with tempfile.TemporaryDirectory() as temporary:
        for turn in range(turns):
            for launcher in LAUNCHERS:
                rows[launcher].append(
                    sweep(preset, launcher, Path(temporary) / f"{launcher}{turn}")
                )
                print(f"{launcher:<6} {rows[launcher][-1]['wall_s']:8.1f} s", flush=True)
    ratios = [
        basic["wall_s"] / slots["wall_s"]
        for basic, slots in zip(rows["basic"], rows["slots"], strict=True)
    ]
    return {
        "preset": preset,
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "trials": rows["slots"][0]["trials"],
        "trials_per_hour": {
            launcher: statistics.median(
                3600 * row["trials"] / row["wall_s"] for row in rows[launcher]
            )
            for launcher in LAUNCHERS
        },
        "ratio": {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)},
        "overhead_s": {
            launcher: statistics.median(row["overhead_s"] for row in rows[launcher])
            for launcher in LAUNCHERS
        },
    }


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    result = compare(arguments.preset, arguments.turns)
    ratio = result["ratio"]
    for launcher in LAUNCHERS:
        rate, overhead = result["trials_per_hour"][launcher], result["overhead_s"][launcher]
        print(f"{launcher:<6} {rate:8.0f} trials/h, {overhead:.2f} s of each beyond its fit")
    print(f"ratio  {ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f})")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
