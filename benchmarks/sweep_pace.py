"""Trials per hour: our sweeps against Hydra's basic launcher, with the same program.

    python -m benchmarks.sweep_pace [--turns 3] [--json FILE] [--preset cpu|gpu|quick]

Claims (goals of the project): cpu, on 2 cores: 32 trials (8 learning rates x 4 block counts of a
small ResNet, 1 epoch of 5,000 images), at least 1.6 times; overhead per trial beyond its own
training under 0.5 s after the first (`sweep` says how it is counted). gpu, on one GPU: the report's
CNN, 32 trials of 2 epochs, at least 4 times. The launchers take turns; figures are medians, with
least and greatest.
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
        ``trials``, ``wall_s``, ``fit_s`` (mean of the records'), ``first_s`` (from the command to
        the first trial's start) and ``overhead_s``: what a trial keeps its slot busy beyond its
        ``fit_s`` (its process's start and end, building, the test, what is written), on average
        over all but each slot's first. The time from the last trial's end in that slot counts.
    """
    command = [sys.executable, "-m", "cifar_lab", "-m", *PRESETS[preset]]
    command += [f"hydra/launcher={launcher}", f"hydra.sweep.dir={folder}", "report=false"]
    began, started = time.time(), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    wall_s = time.perf_counter() - started
    records = [json.loads(path.read_text()) for path in folder.glob("*/run.json")]
    # a learning rate may be too high for a block count: that is a result too
    ended = [r for r in records if r["status"] in ("finished", "diverged")]
    if not ended or len(ended) < len(records) or done.returncode not in (0, 1):
        raise RuntimeError(done.stderr)
    slots = _at_a_time(done.stdout)
    return {
        "trials": len(ended),
        "wall_s": wall_s,
        "fit_s": statistics.mean(_fit_s(r) for r in records),
        "first_s": min(map(_started, folder.glob("*/run.json"))) - began,
        "overhead_s": _overhead_s(folder, slots),
    }


def _overhead_s(folder: Path, slots: int) -> float:
    # A record's last write is its run's end. The slot that is free takes the next trial, so the
    # trial that starts n-th follows the one that ended (n - slots)-th, in that one's slot.
    paths = list(folder.glob("*/run.json"))
    ends = sorted(path.stat().st_mtime for path in paths)
    by_start = sorted(paths, key=_started)[slots:]
    spans = [
        path.stat().st_mtime - before - _fit_s(json.loads(path.read_text()))
        for path, before in zip(by_start, ends, strict=False)
    ]
    return statistics.mean(spans) if spans else float("nan")


def _fit_s(record: dict[str, Any]) -> float:
    return float(record["timings"].get("fit_s") or 0)


def _started(run_json: Path) -> float:
    # .hydra is written when the trial begins, and never again
    return (run_json.parent / ".hydra").stat().st_mtime


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
                print(f"{launcher:<6} {_described(rows[launcher][-1])}", flush=True)
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
        **{
            key: {
                launcher: statistics.median(row[key] for row in rows[launcher])
                for launcher in LAUNCHERS
            }
            for key in ("fit_s", "first_s", "overhead_s")
        },
    }


def _described(row: dict[str, float]) -> str:
    return (
        f"{row['wall_s']:6.1f} s for {row['trials']:.0f}; first after {row['first_s']:.1f} s; "
        f"fit {row['fit_s']:.2f} s, {row['overhead_s']:.2f} s beyond it"
    )


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
        fit = result["fit_s"][launcher]
        print(f"{launcher:<6} {rate:8.0f} trials/h; fit {fit:.2f} s, {overhead:.2f} s beyond it")
    print(f"ratio  {ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f})")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
