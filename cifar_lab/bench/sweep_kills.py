"""Random kills over one sweep: every job finishes, none twice, all as in an undisturbed sweep.

    python -m cifar_lab.bench.sweep_kills [--jobs 40] [--kills 50] [--seed 0] [--folder DIR]

SIGKILL goes, by turns drawn at random, to a job, to any process of the sweep (the fork server and
the check among them), to the supervisor, or to everything at once. Whenever the supervisor is gone
the same command is repeated. Exit status 1 where a claim of the first line doesn't hold. Linux:
processes are found through /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

KINDS = ("job", "any process", "supervisor", "everything")
# Two seconds of synthetic data each: long enough to be hit in the middle.
JOB = (
    *("data=synthetic", "data.train_size=1000", "data.test_size=200", "data.val_size=200"),
    *("data.batch_size=20", "model=resnet10", "model.num_blocks=[1,1]", "model.width=4"),
    *("trainer=cpu", "trainer.max_epochs=4", "callbacks=checkpoints", "threads=1"),
)


class Sweep:
    """One sweep's command, repeated into one folder, in a session of its own."""

    def __init__(self, folder: Path, jobs: int) -> None:
        self.folder = folder
        seeds = ",".join(str(seed) for seed in range(jobs))
        self._command = [
            *(sys.executable, "-m", "cifar_lab", "-m", *JOB),
            *(f"seed={seeds}", f"hydra.sweep.dir={folder}"),
        ]
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    def start(self) -> None:
        """Types the command."""
        self.starts += 1
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with open(self.folder.with_suffix(".log"), "ab") as log:
            self.process = subprocess.Popen(
                self._command, stdout=log, stderr=log, start_new_session=True
            )

    def records(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Every record in the folder."""
        for path in sorted(self.folder.glob("*/run.json")):
            yield path, json.loads(path.read_text())

    def processes(self) -> list[int]:
        """The process numbers of this session."""
        assert self.process is not None
        found = []
        for entry in Path("/proc").iterdir():
            with suppress(OSError, ValueError, IndexError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if fields[3] == str(self.process.pid) and fields[0] != "Z":
                    found.append(int(entry.name))
        return found

    def jobs_at_work(self) -> list[int]:
        """The processes of jobs; a record says `running` also of one that was killed."""
        alive = self.processes()
        recorded = [r["pid"] for _, r in self.records() if r["status"] == "running"]
        return [pid for pid in recorded if pid in alive]

    def kill(self, kind: str, rng: random.Random) -> bool:
        """Whether there was something of the kind to kill."""
        assert self.process is not None
        alive = self.processes()
        victims = {
            "job": self.jobs_at_work(),
            "any process": [pid for pid in alive if pid != self.process.pid],
            "supervisor": [self.process.pid],
            "everything": alive,
        }[kind]
        if kind in ("job", "any process") and victims:
            victims = [rng.choice(victims)]
        for pid in victims:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return bool(victims)


def disturb(sweep: Sweep, kills: int, rng: random.Random) -> tuple[Counter[str], dict[Path, int]]:
    """Kills, and repeats the command until a start of it ends well.

    Returns:
        How often each kind was done, and when (ns) each record was first seen finished.
    """
    done: Counter[str] = Counter()
    finished: dict[Path, int] = {}
    sweep.start()
    at_work = True
    kill_at: float | None = None
    while True:
        assert sweep.process is not None
        time.sleep(0.02)
        for path, record in sweep.records():
            if record["status"] == "finished" and path not in finished:
                finished[path] = path.stat().st_mtime_ns
        status = sweep.process.poll()
        if status == 0 and done.total() >= kills:
            return done, finished
        if status is not None:
            sweep.start()
        now = time.monotonic()
        if kill_at is None and (not at_work or sweep.jobs_at_work()):
            kill_at = now + rng.uniform(0, 3)
        if done.total() < kills and kill_at is not None and now > kill_at:
            kind = rng.choice(KINDS)
            done[kind] += sweep.kill(kind, rng)
            # three of four wait for a job at work; the fourth may hit imports, check and planning
            kill_at, at_work = None, rng.random() < 0.75


def weights(run_json: Path) -> dict[str, Any]:
    """The last checkpoint's tensors."""
    import torch

    path = run_json.parent / "checkpoints" / "last.ckpt"
    state: dict[str, Any] = torch.load(path, weights_only=True)["state_dict"]
    return state


def differences(disturbed: Sweep, reference: Sweep, finished: dict[Path, int]) -> list[str]:
    """What is not as claimed, one line each."""
    import torch

    found = []
    expected = dict(reference.records())
    got = dict(disturbed.records())
    if [p.parent.name for p in got] != [p.parent.name for p in expected]:
        found.append(f"{len(got)} jobs instead of {len(expected)}, or others")
    for path, record in got.items():
        name = path.parent.name
        other = reference.folder / name / "run.json"
        if record["status"] != "finished":
            found.append(f"{name}: {record['status']}")
            continue
        if path.stat().st_mtime_ns != finished[path]:
            found.append(f"{name}: written again after it had finished")
        if other in expected:
            rest = {k: v for k, v in record["metrics"].items() if k != "images_per_s"}
            wanted = {k: v for k, v in expected[other]["metrics"].items() if k != "images_per_s"}
            if rest != wanted:
                found.append(f"{name}: metrics differ: {rest} instead of {wanted}")
            ours, theirs = weights(path), weights(other)
            if any(not torch.equal(ours[key], theirs[key]) for key in theirs):
                found.append(f"{name}: weights differ")
    return found


def main() -> int:
    """Runs both sweeps and says what it saw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--jobs", type=int, default=40)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=None, help="default: a temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        reference = Sweep(folder / "undisturbed", arguments.jobs)
        reference.start()
        assert reference.process is not None
        if reference.process.wait():
            print(reference.folder.with_suffix(".log").read_text())
            return 1
        disturbed = Sweep(folder / "disturbed", arguments.jobs)
        started = time.monotonic()
        done, finished = disturb(disturbed, arguments.kills, random.Random(arguments.seed))
        found = differences(disturbed, reference, finished)
    print(
        f"{arguments.jobs} jobs, {done.total()} kills "
        f"({', '.join(f'{kind} {done[kind]}' for kind in KINDS)}), "
        f"{disturbed.starts} starts, {time.monotonic() - started:.0f} s"
    )
    print("\n".join(found) or "all finished, none twice, every metric and weight as undisturbed")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
