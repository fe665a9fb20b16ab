"""Random kills over one sweep: every job finishes, none twice, all as in an undisturbed sweep.

    python -m benchmarks.sweep_kills [--jobs 40] [--kills 50] [--seed 0] [--folder DIR]

SIGKILL goes, by turns drawn at random, to a job, to any process of the sweep (the fork server and
the check among them), to the supervisor, or to everything at once. Whenever the supervisor is gone
the same command is repeated, and once more after all have finished. Exit status 1 where a claim of
the first line doesn't hold, or where not all kills came before the last job's end. Linux: processes
are found through /proc.
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
    *("trainer=cpu", "trainer.max_epochs=4", "callbacks=checkpoints", "threads=1", "report=false"),
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
        self.log = folder.with_suffix(".log")
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    def start(self) -> None:
        """Types the command."""
        self.starts += 1
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "ab") as log:
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


def undisturbed(sweep: Sweep) -> float:
    """Runs a sweep to its end; the seconds from its first job's start on.

    Raises:
        RuntimeError: it failed.
    """
    sweep.start()
    assert sweep.process is not None
    began: float | None = None
    while (status := sweep.process.poll()) is None:
        if began is None and sweep.jobs_at_work():
            began = time.monotonic()
        time.sleep(0.02)
    if status or began is None:
        raise RuntimeError(sweep.log.read_text())
    return time.monotonic() - began


class Kills:
    """When the next kill comes, and of what.

    While jobs are at work the wait is drawn so that the kills that are left spread over the jobs
    that are left: none of them is still to come when the last job has finished. After a kill of the
    supervisor every other one hits wherever the next start is by then: imports, check, planning.

    Args:
        wanted: how many.
        work_s: what all jobs take undisturbed.
        rng: draws kinds, victims and moments.
    """

    START_S = 3.0  # imports, check, planning

    def __init__(self, wanted: int, work_s: float, rng: random.Random) -> None:
        self.done: Counter[str] = Counter()
        self._wanted = wanted
        self._work_s = work_s
        self._rng = rng
        self._at: float | None = None

    def step(self, sweep: Sweep, unfinished: float) -> bool:
        """Kills if it is time to; whether something was killed.

        Args:
            sweep: whose processes.
            unfinished: share of the jobs that have not finished.
        """
        left = self._wanted - self.done.total()
        if left <= 0:
            return False
        if self._at is None and sweep.jobs_at_work():
            longest_s = 1.5 * self._work_s * unfinished / left
            self._at = time.monotonic() + self._rng.uniform(0, longest_s)
        if self._at is None or time.monotonic() < self._at:
            return False
        kind = self._rng.choice(KINDS)
        killed = sweep.kill(kind, self._rng)
        self.done[kind] += killed
        self._at = None
        if kind in ("supervisor", "everything") and self._rng.random() < 0.5:
            self._at = time.monotonic() + self._rng.uniform(0, self.START_S)
        return killed


def disturb(sweep: Sweep, kills: Kills, jobs: int) -> dict[Path, int]:
    """Kills, and repeats the command until a start of it ends well; then once more in peace.

    Returns:
        When (ns) each record was first seen finished.

    Raises:
        RuntimeError: a start that nobody disturbed ended badly: repeating would not help.
    """
    finished: dict[Path, int] = {}

    def look() -> None:
        for path, record in sweep.records():
            if record["status"] == "finished" and path not in finished:
                finished[path] = path.stat().st_mtime_ns

    for last in (False, True):
        status: int | None = -1
        while status:
            sweep.start()
            assert sweep.process is not None
            hit = False
            while (status := sweep.process.poll()) is None:
                time.sleep(0.02)
                look()
                hit |= not last and kills.step(sweep, 1 - len(finished) / jobs)
            look()
            if status and not hit:
                raise RuntimeError(f"status {status} undisturbed:\n{sweep.log.read_text()}")
    return finished


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
        disturbed = Sweep(folder / "disturbed", arguments.jobs)
        started = time.monotonic()
        kills = Kills(arguments.kills, undisturbed(reference), random.Random(arguments.seed))
        finished = disturb(disturbed, kills, arguments.jobs)
        found = differences(disturbed, reference, finished)
    done = kills.done
    if done.total() < arguments.kills:
        found.append(f"only {done.total()} of {arguments.kills} kills before all jobs had finished")
    print(
        f"{arguments.jobs} jobs, {done.total()} kills "
        f"({', '.join(f'{kind} {done[kind]}' for kind in KINDS)}), "
        f"{disturbed.starts} starts, {time.monotonic() - started:.0f} s"
    )
    print("\n".join(found) or "all finished, none twice, every metric and weight as undisturbed")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
