"""Training loops in one process, by turns: what a step costs, without starts of processes.

    python -m benchmarks.gpu_day.loops --data FOLDER --network cnn --device cuda [--rounds 3]

A line of JSON on standard output for each measurement; the rest goes to standard error.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import chdir, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.contenders import NETWORKS, WARMUP_STEPS, Workload, our_command
from benchmarks.programs import bare, report_loop, template
from benchmarks.programs.harness import Clock, Settings
from cifar_lab.__main__ import main as cifar_lab
from cifar_lab.records.record import RunRecord

# Each fast path by itself, then together.
OURS: dict[str, tuple[str, ...]] = {
    "ours": (),
    "contiguous": ("channels_last=false",),
    "benchmark": ("trainer.benchmark=true",),
    "16 steps": ("steps_per_call=16",),
    "64 steps": ("steps_per_call=64",),
    "recorded, 16 steps": ("steps_per_call=16", "cuda_graph=true"),
    "recorded, 64 steps": ("steps_per_call=64", "cuda_graph=true"),
    "compiled": ("compile=default",),
    "compiled, recorded, 64 steps": ("compile=default", "steps_per_call=64", "cuda_graph=true"),
    "bf16": ("trainer.precision=bf16-mixed",),
    "bf16, contiguous": ("trainer.precision=bf16-mixed", "channels_last=false"),
    "bf16, benchmark": ("trainer.precision=bf16-mixed", "trainer.benchmark=true"),
    "bf16, recorded, 64 steps": (
        *("trainer.precision=bf16-mixed", "steps_per_call=64", "cuda_graph=true"),
    ),
}
PROGRAMS: dict[str, Callable[[Settings, Clock], object]] = {
    "bare": bare.train,
    "bare, channels_last": bare.train,
    "bare, bf16, channels_last": bare.train,
    "report": report_loop.train,
    "template": template.train,
}
# They read images one by one: as many steps as the others would take minutes.
_SLOW = ("report", "template")
_SLOW_STEPS = 100


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures round after round; a contender that fails says so, the others go on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--network", choices=NETWORKS, required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help="names, separated by ;")
    given = parser.parse_args(arguments)
    workload = Workload(
        data=given.data,
        network=given.network,
        batch_size=given.batch_size,
        steps=given.steps,
        device=given.device,
        precision="32-true",
        threads=None,
        workers=2,
    )
    names = [*OURS, *PROGRAMS]
    if given.only:
        names = [name for name in names if name in given.only.split(";")]
    for number in range(given.rounds):
        first = number * len(names) // given.rounds
        for name in [*names[first:], *names[:first]]:
            if number and name in _SLOW:
                continue  # once is enough for what is many times slower
            row = {"network": given.network, "name": name, "round": number + 1}
            print(json.dumps(row | _measured(name, workload)), flush=True)
    return 0


def _measured(name: str, workload: Workload) -> dict[str, Any]:
    began = time.perf_counter()
    torch.compiler.reset()  # it gives up on a function that it has compiled too often
    with tempfile.TemporaryDirectory() as own, chdir(own), redirect_stdout(sys.stderr):
        try:
            told = (_ours if name in OURS else _program)(name, workload, Path(own))
        except BaseException as error:  # whatever it is, the others go on
            if isinstance(error, KeyboardInterrupt):
                raise
            traceback.print_exc()
            told = {"error": f"{type(error).__name__}: {error}"[:600]}
    gc.collect()
    if workload.device == "cuda":
        told["peak_mb"] = torch.cuda.max_memory_allocated() / 2**20
        told["reserved_mb"] = torch.cuda.max_memory_reserved() / 2**20
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return told | {"wall_s": time.perf_counter() - began}


def _ours(name: str, workload: Workload, folder: Path) -> dict[str, Any]:
    own = [o for o in OURS[name] if o.startswith("trainer.precision=")]
    words = our_command(workload, WARMUP_STEPS + workload.steps, folder, *OURS[name])[3:]
    words = [w for w in words if not (own and w == "trainer.precision=32-true")]
    status = cifar_lab(words)
    record = RunRecord.read(folder / "run")
    if status:
        raise RuntimeError(record.error or f"exit status {status}")
    timings = record.timings
    return {
        "images_per_s": timings.images_per_s,
        "step_ms": timings.step_ms,
        "data_wait_ms": timings.data_wait_ms,
        "fit_s": timings.fit_s,
        "steps": record.steps,
        "loss": record.metrics.get("train/loss"),
        "departures": list(record.departures),
    }


def _program(name: str, workload: Workload, folder: Path) -> dict[str, Any]:
    settings = Settings(
        data=workload.data,
        network=workload.network,
        batch_size=workload.batch_size,
        steps=min(workload.steps, _SLOW_STEPS) if name in _SLOW else workload.steps,
        device=torch.device(workload.device),
        precision="bf16-mixed" if "bf16" in name else "32-true",
        workers=workload.workers,
        tuned="channels_last" in name,
    )
    if name == "template" and workload.device == "cpu":
        settings = replace(settings, workers=0)
    PROGRAMS[name](settings, clock := Clock(settings))
    return clock.result()


if __name__ == "__main__":
    sys.exit(main())
