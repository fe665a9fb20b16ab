"""Everything that only a GPU can show, in ten minutes.

    python -m benchmarks.gpu_day --data IMAGES [--out FOLDER] [--budget 600] [--blocks laws,speed]
    python -m benchmarks.gpu_day --tiny                    all of it for a moment, on the CPU
    python -m benchmarks.gpu_day --plan --data IMAGES      what would run, and for how long
    python -m benchmarks.gpu_day --pack FOLDER --data IMAGES.zip   for a machine without a network

--budget is the seconds for all of it (600), --blocks some of
laws,speed,recipes,seeds,ablations,slots (all).
--out holds gpu_day.json (written after every task) and gpu_day.md, the table. A call with the same
--out goes on: what is done isn't repeated, what was cut off is. Blocks have budgets of their own
and come in the order that tells most if the time ends early.

--also NAME=COMMAND (repeatable) measures a program from elsewhere beside the recipes: it runs in a
folder with cifar10/train.pt and cifar10/test.pt, as the airbench scripts read and print.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import random_images
from benchmarks.gpu_day import pack, table
from benchmarks.gpu_day.blocks import Settings, blocks, shown
from benchmarks.gpu_day.day import FILE_NAME, Day, driver
from benchmarks.machine import describe
from cifar_lab import signals
from cifar_lab.config.command import Parser, run_command
from cifar_lab.errors import InputError
from cifar_lab.records.environment import cores
from cifar_lab.records.files import write_atomically

_USAGE = "python -m benchmarks.gpu_day --data IMAGES [--out FOLDER] | --tiny"
_TINY_S = 170


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the day; 0 even where tasks failed, which the table says; 2 for wrong input."""
    return run_command(arguments, _run, text=__doc__, prefix="gpu_day: ")


def _run(words: list[str]) -> int:
    given = _read(words)
    if given.pack:
        pack.gather(given.pack, given.data)
        return 0
    with tempfile.TemporaryDirectory(prefix="cifar_lab_gpu_day_") as temporary:
        return _day(given, Path(temporary))


def _read(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(_USAGE)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu_day"))
    parser.add_argument("--budget", type=float, default=600.0)
    parser.add_argument("--blocks")
    parser.add_argument("--also", action="append", default=[])
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("--pack", type=Path)
    given = parser.parse_args(arguments)
    if not given.tiny:
        if given.data is None:
            raise InputError("--data: name the images to train on (or give --tiny)")
        if not given.data.exists():
            raise InputError(f"--data={given.data}: isn't there")
        given.data = given.data.absolute()
    given.out = given.out.absolute()
    also = [text.partition("=") for text in given.also]
    if wrong := [
        text
        for text, (name, _, command) in zip(given.also, also, strict=True)
        if not (name and command)
    ]:
        raise InputError(f"--also {wrong[0]}: must read NAME=COMMAND")
    given.also = {name: command for name, _, command in also}
    return given


def _day(given: argparse.Namespace, temporary: Path) -> int:
    described = describe("cpu" if given.tiny else "auto", None)
    packed: Path = given.data or temporary / "random" / random_images.ZIP_NAME
    data = packed if given.plan else pack.unpacked(packed, temporary)
    device = described["machine"]["device"]
    settings = Settings(
        data=data,
        random=temporary / "random",
        cache=temporary / "cache",
        device=device,
        jobs=1 if given.tiny else min(8, cores() // 2),
        also=given.also,
        public=temporary / "public",
        tiny=given.tiny,
    )
    chosen = blocks(settings)
    if given.blocks:
        names = given.blocks.split(",")
        if unknown := [name for name in names if name not in {b.name for b in chosen}]:
            raise InputError(
                f"--blocks {unknown[0]}: must be of {','.join(b.name for b in chosen)}"
            )
        chosen = [block for block in chosen if block.name in names]
    if given.plan:
        for block in chosen:
            print(f"{block.name}: {block.title}, {block.budget_s:.0f} s")
            for task in block.tasks:
                print(f"    {task.name}: {shown(task)}")
        return 0
    if device == "cpu" and not given.tiny:
        raise InputError("torch finds no GPU here; --tiny tries all of it on a CPU")
    given.out.mkdir(parents=True, exist_ok=True)
    random_images.make(settings.random, 2_000 if given.tiny else 20_000)
    dataset = pack.opened(settings.data, settings.cache)
    if given.also:
        pack.write_public(dataset, settings.public)
    day = Day(
        given.out,
        {**described, "driver": driver(), "data": dataset.digest},
        _TINY_S if given.tiny else given.budget,
    )
    try:
        day.run(chosen)
    finally:
        with signals.shielded():
            text = table.markdown(day.state)
            write_atomically(given.out / "gpu_day.md", text)
            print(text)
            print(f"written to {given.out / FILE_NAME}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
