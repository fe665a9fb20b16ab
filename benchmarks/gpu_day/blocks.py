"""What is measured, most telling first, with the seconds that each part may take."""

from __future__ import annotations

import json
import os
import re
import shlex
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.child import Ended
from benchmarks.contenders import NETWORKS
from benchmarks.gpu_day.day import Block, Row, Task
from cifar_lab.records.record import RunRecord

REPOSITORY = Path(__file__).resolve().parents[2]
_LAB = (sys.executable, "-m", "cifar_lab")
_PATH = [str(REPOSITORY), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
_ENV = {"PYTHONPATH": os.pathsep.join(_PATH), "PYTHONUNBUFFERED": "1"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the day is told.

    Attributes:
        data: images to train on, whatever ``data.root`` takes.
        random: a folder that `benchmarks.random_images.make` filled.
        cache: for the images decoded.
        device: cuda or cpu.
        jobs: processes of tests at a time.
        also: commands of programs from elsewhere, by name.
        public: the folder where these run; ``cifar10/train.pt`` and ``test.pt`` lie there.
        tiny: everything for some seconds, to try it.
    """

    data: Path
    random: Path
    cache: Path
    device: str
    jobs: int
    also: Mapping[str, str]
    public: Path
    tiny: bool


def blocks(settings: Settings) -> list[Block]:
    """All of them; `Day.run` cuts them off where the time ends."""
    scale = 0.25 if settings.tiny else 1
    made = [
        Block(name="laws", title="Laws", budget_s=150, tasks=_laws(settings)),
        Block(name="speed", title="Single loops", budget_s=150, tasks=_speed(settings)),
        Block(name="recipes", title="Recipes, alone", budget_s=150, tasks=_recipes(settings)),
        Block(name="seeds", title="Recipes, side by side", budget_s=120, tasks=_seeds(settings)),
        Block(name="ablations", title="Ablations", budget_s=180, tasks=_ablations(settings)),
        Block(name="slots", title="Jobs at a time", budget_s=60, tasks=_slots(settings)),
    ]
    return [replace(block, budget_s=block.budget_s * scale) for block in made]


# --- laws -----------------------------------------------------------------------------------------


def _laws(settings: Settings) -> list[Task]:
    tests = REPOSITORY / "tests"
    marked = [p for p in sorted(tests.rglob("test_*.py")) if "mark.gpu" in p.read_text()]
    pytest = [sys.executable, "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider"]
    pytest += ["-p", "no:benchmark", "-p", "benchmarks.gpu_day.failures"]
    workers = ("-n", str(settings.jobs)) if settings.jobs > 1 else ()
    files = [str(path.relative_to(REPOSITORY)) for path in marked]
    # many processes with all threads each would wait for one another
    env = {**_ENV, "OMP_NUM_THREADS": "1"}

    def of_a_gpu(_: Path) -> list[str]:
        return [*pytest, *workers, "-m", "gpu", *files]

    def of_forks(_: Path) -> list[str]:
        return [*pytest, "tests/laws/test_forks.py"]

    return [
        Task(name="gpu", command=of_a_gpu, read=read_tests, cwd=REPOSITORY, env=env),
        Task(name="forks", command=of_forks, read=read_tests, cwd=REPOSITORY, env=env),
    ]


# "PASSED tests/x.py::test" of parallel workers, "tests/x.py::test PASSED" of one
_END = "(PASSED|FAILED|ERROR|SKIPPED)"
_SAID = re.compile(r"^FAILURE (\[.*\])$", re.MULTILINE)
_TEST_ENDED = re.compile(rf"{_END} (tests/\S+.*)|^(tests/\S+.*?) {_END}", re.MULTILINE)


def read_tests(ended: Ended, _: Path) -> list[Row]:
    """How many ended how, and what each failure said; also of a session that was cut off."""
    found = _TEST_ENDED.findall(ended.output)
    ends = {(b or c).split(" - ")[0].strip(): (a or d).lower() for a, b, c, d in found}
    said: dict[str, str] = dict(map(json.loads, _SAID.findall(ended.output)))
    counts = {
        end: list(ends.values()).count(end) for end in ("passed", "failed", "error", "skipped")
    }
    failures = [
        {"test": test, "end": end, "said": said.get(test, "")}
        for test, end in ends.items()
        if end in ("failed", "error")
    ]
    return [counts, *failures]


# --- single loops ---------------------------------------------------------------------------------

# of resnet10, whose steps are long: what might matter there
_OF_RESNET = (
    *("ours", "contiguous", "benchmark", "16 steps", "recorded, 16 steps", "compiled", "bf16"),
    *("bf16, contiguous", "bf16, benchmark", "bf16, recorded, 64 steps", "bare"),
    *("bare, channels_last", "bare, bf16, channels_last"),
)


def _speed(settings: Settings) -> list[Task]:
    on_gpu = settings.device == "cuda"

    def task(network: str, rounds: int, steps: int, only: Sequence[str] = ()) -> Task:
        def command(_: Path) -> list[str]:
            return [
                *(sys.executable, "-m", "benchmarks.gpu_day.loops", f"--data={settings.random}"),
                *(f"--network={network}", f"--device={settings.device}", f"--steps={steps}"),
                f"--batch-size={NETWORKS[network].batch_size[on_gpu] if not settings.tiny else 20}",
                *(f"--rounds={rounds}", *([f"--only={';'.join(only)}"] if only else [])),
            ]

        return Task(name=network, command=command, read=_read_lines, env=_ENV, limit_s=100)

    if settings.tiny:
        return [task("cnn", 1, 2, ("ours", "16 steps", "bare", "report", "template"))]
    return [task("cnn", 3, 1000), task("resnet10", 2, 150, _OF_RESNET)]


def _read_lines(ended: Ended, _: Path) -> list[Row]:
    return [json.loads(line) for line in ended.output.splitlines() if line.startswith('{"')]


# --- recipes --------------------------------------------------------------------------------------


_TINY = (
    *("data.batch_size=20", "trainer.max_epochs=1", "trainer.limit_train_batches=2"),
    *("trainer.limit_test_batches=1", "trainer.limit_val_batches=1", "tta=none"),
)


def _experiment(settings: Settings, name: str) -> list[str]:
    """What every run of an experiment is told."""
    return [
        *(f"experiment={name}", f"data.root={settings.data}", f"data.cache={settings.cache}"),
        f"trainer.accelerator={'gpu' if settings.device == 'cuda' else 'cpu'}",
        *("monitors=none", "logger=csv"),
    ]


def _sweep(
    settings: Settings, name: str, seeds: int, slots: int, *more: str
) -> Callable[[Path], list[str]]:
    """The command, given a folder, of an experiment with seeds from 0 on, so many at a time."""
    return lambda folder: [
        *(*_LAB, "-m", *_experiment(settings, name)),
        f"seed={','.join(str(seed) for seed in range(seeds))}",
        *(f"sweep.slots={slots}", "sweep.report=false", f"hydra.sweep.dir={folder / 'sweep'}"),
        *more,
    ]


def _read_runs(ended: Ended, folder: Path) -> list[Row]:
    """A row for each run of a sweep, in the order of their ends."""
    paths = sorted((folder / "sweep").glob("*/run.json"), key=lambda path: path.stat().st_mtime)
    return [row_of(RunRecord.read(path.parent)) for path in paths]


def row_of(record: RunRecord) -> Row:
    """What a table says of a run."""
    return {
        "status": record.status,
        "error": record.error,
        "ablation": (record.config or {}).get("ablation"),
        "seed": record.seed,
        "val/acc": record.metrics.get("val/acc"),
        "test/acc": record.metrics.get("test/acc"),
        "test/acc_without_tta": record.metrics.get("test/acc_without_tta"),
        "steps": record.steps,
        "fit_s": record.timings.fit_s,
        "images_per_s": record.timings.images_per_s,
        "start_to_first_step_s": record.timings.start_to_first_step_s,
        "departures": list(record.departures),
        "data": record.data.digest,
    }


# what a GPU makes of the same steps
_VARIANTS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "recorded": ("steps_per_call=25", "cuda_graph=true", "callbacks.checkpoints.min_seconds=60"),
}
_VARIANTS["compiled, recorded"] = (*_VARIANTS["recorded"], "compile=default")


def _recipes(settings: Settings) -> list[Task]:
    """Alone on the device, in one process each, so that their times count."""

    def alone(name: str, variant: str, seeds: int, limit_s: float) -> Task:
        def command(_: Path) -> list[str]:
            on_gpu = settings.device == "cuda"
            words = _experiment(settings, name)
            words += [*(_TINY if settings.tiny else ()), *(_VARIANTS[variant] if on_gpu else ())]
            count = 1 if settings.tiny else seeds
            return [sys.executable, "-m", "benchmarks.gpu_day.recipe", str(count), *words]

        return Task(
            name=f"{name}, {variant}", command=command, read=_read_lines, env=_ENV, limit_s=limit_s
        )

    return [
        alone("speed94", "compiled, recorded", 11, 70),
        *(_also(settings, name, command) for name, command in settings.also.items()),
        alone("speed94", "recorded", 6, 40),
        alone("speed94", "plain", 4, 40),
        alone("resnet10_strong", "recorded", 1, 300),
    ]


def _seeds(settings: Settings) -> list[Task]:
    def task(name: str, seeds: int) -> Task:
        count, more = (1, _TINY) if settings.tiny else (seeds, ())
        command = _sweep(settings, name, count, count, *more)
        return Task(name=name, command=command, read=_read_runs, env=_ENV)

    return [task("report_cnn", 5), task("report_resnet10", 3), task("cnn_strong", 5)]


def _ablations(settings: Settings) -> list[Task]:
    """What each ingredient is worth, from five seeds, side by side: here accuracies count."""

    def task(name: str) -> Task:
        words = ["sweep=ablation", *(_VARIANTS["recorded"] if settings.device == "cuda" else ())]
        seeds, slots = 5, 8
        if settings.tiny:
            seeds, slots = 1, 1
            words += [*_TINY, "ablation=null,without_flip", "data.val_size=50"]
        command = _sweep(settings, name, seeds, slots, *words)
        return Task(name=name, command=command, read=_read_runs, env=_ENV)

    return [task("speed94"), task("cnn_strong")]


def _also(settings: Settings, name: str, command: str) -> Task:
    def run(_: Path) -> str:
        return command

    return Task(name=name, command=run, read=read_public, cwd=settings.public, limit_s=120)


def read_public(ended: Ended, _: Path) -> list[Row]:
    """Of a script that prints airbench's table: accuracy with its six views, seconds."""
    rows: list[Row] = []
    before = None
    for line in ended.output.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) == 6 and cells[1] == "eval":
            rows.append(
                {
                    "test/acc": float(cells[4]),
                    "test/acc_without_tta": before,
                    "fit_s": float(cells[5]),
                }
            )
        elif len(cells) == 6 and re.fullmatch(r"0\.\d+", cells[3]):
            before = float(cells[3])
    return rows


# --- jobs at a time -------------------------------------------------------------------------------


def _slots(settings: Settings) -> list[Task]:
    def task(slots: int) -> Task:
        epochs, jobs = (1, 2) if settings.tiny else (3, 8)
        more = ["trainer.limit_train_batches=2"] if settings.tiny else []
        more.append(f"trainer.max_epochs={epochs}")
        command = _sweep(settings, "report_cnn", jobs, slots, *more)

        def read(ended: Ended, folder: Path) -> list[Row]:
            runs = _read_runs(ended, folder)
            rates = [r["images_per_s"] for r in runs if r["images_per_s"]]
            return [
                {
                    "slots": slots,
                    "wall_s": ended.wall_s,
                    "finished": sum(r["status"] == "finished" for r in runs),
                    "images_per_s_each": statistics.median(rates) if rates else None,
                }
            ]

        return Task(name=f"{slots} at a time", command=command, read=read, env=_ENV)

    return [task(slots) for slots in ((1, 2) if settings.tiny else (1, 2, 4, 8))]


def shown(task: Task) -> str:
    """Its command, for the plan."""
    command: Any = task.command(Path("FOLDER"))
    return command if isinstance(command, str) else shlex.join(command)
