"""The supervisor brings every job to an ending on record, and tries it as often as was asked.

Its jobs are real processes, of a shell: they end, die, hang and write records as jobs do.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from cifar_lab import signals
from cifar_lab.errors import Interrupted
from cifar_lab.records.record import RunRecord
from cifar_lab.sweep import process, supervisor
from cifar_lab.sweep.points import Point
from cifar_lab.sweep.supervisor import Slot, Supervisor, SweepJob
from cifar_lab.sweep.tasks import Task
from tests.conftest import record_of


class Worker:
    """What the supervisor knows of a process, for one of a shell and all that it starts."""

    def __init__(self, script: str, folder: Path, environment: Mapping[str, str]) -> None:
        # closed by the system when the last process that inherited the other end has ended
        self.sentinel, inherited = os.pipe()
        self._process = subprocess.Popen(
            ["sh", "-c", script],
            cwd=folder,
            env=environment,
            process_group=0,
            pass_fds=[inherited],
        )
        os.close(inherited)
        self.pid = self._process.pid
        self.closed = False

    @property
    def exitcode(self) -> int | None:
        return self._process.poll()

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        assert self._process.poll() is not None
        self.closed = True

    def left_nothing(self) -> bool:
        """Whether all of them have ended, or do within a moment."""
        return bool(select.select([self.sentinel], [], [], 5)[0])

    def remove(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self.sentinel)


class Jobs:
    """A list of jobs, each a script of a shell; what the supervisor made of them."""

    def __init__(self, folder: Path, scripts: Mapping[str, str], workers: list[Worker]) -> None:
        self.scripts = scripts
        self.workers = workers
        self.jobs = {name: SweepJob(self._point(name), folder / name) for name in scripts}
        self.pruned: set[str] = set()
        self.ends: list[tuple[str, str]] = []  # for good
        self.told: list[tuple[str, str]] = []  # what a person sees
        self.most = 0
        self.environments: dict[str, Mapping[str, str]] = {}
        self.ticks: Callable[[], None] = lambda: None
        self._left = list(self.jobs.values())

    @staticmethod
    def _point(name: str) -> Point:
        overrides = (f"optimizer.name={name}", "seed=3")
        return Point(overrides, {}, OmegaConf.create(), {"seed": 3, "name": name}, f"{name}-digest")

    # --- as a source and as a view ---------------------------------------------------------------

    def next(self) -> SweepJob | None:
        return self._left.pop(0) if self._left else None

    def prunes(self, job: SweepJob) -> bool:
        assert job.record is not None
        assert job.record.status == "running"
        return job.run_dir.name in self.pruned

    def started(self, job: SweepJob) -> None:
        self.told.append((job.run_dir.name, job.status))
        self.most = max(self.most, sum(j.status == "running" for j in self.jobs.values()))

    def ended(self, job: SweepJob) -> None:
        self.told.append((job.run_dir.name, job.status))

    def tick(self) -> None:
        self.ticks()

    # --- running ---------------------------------------------------------------------------------

    def start(self, target: str, task: Task, **details: Any) -> Worker:
        assert target == "cifar_lab.sweep.worker:run_job"
        job = self.jobs[task.run_dir.name]
        assert (task.cfg, task.overrides) == (job.point.cfg, job.point.overrides)
        assert details["output"] == task.run_dir / "console.log"
        self.environments[task.run_dir.name] = details["environment"]
        script = f"echo >> attempts\n{self.scripts[details['name']]}"
        self.workers.append(Worker(script, task.run_dir, details["environment"]))
        return self.workers[-1]

    def attempts(self, name: str) -> int:
        """As the processes themselves have counted."""
        return len((self.jobs[name].run_dir / "attempts").read_text())


class Source:
    """`Jobs` as a source: both it and a view have an `ended`."""

    def __init__(self, jobs: Jobs) -> None:
        self.next, self.prunes, self._ends = jobs.next, jobs.prunes, jobs.ends

    def ended(self, job: SweepJob) -> None:
        self._ends.append((job.run_dir.name, job.status))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Runs scripts as jobs to the end; nothing that they started outlives that."""
    workers: list[Worker] = []

    def supervise(
        scripts: Mapping[str, str], *, before: Any = lambda jobs: None, **settings: Any
    ) -> Jobs:
        jobs = Jobs(tmp_path, scripts, workers)
        before(jobs)
        monkeypatch.setattr(process, "start", jobs.start)
        defaults: dict[str, Any] = {
            "slots": [Slot("cpu", {})],
            "retries": 0,
            "job_timeout_s": None,
            "fail_fast": False,
        }
        try:
            Supervisor(source=Source(jobs), view=jobs, **{**defaults, **settings}).run()
        finally:
            assert all(worker.left_nothing() for worker in workers)
        assert all(worker.closed for worker in workers)
        return jobs

    yield supervise
    for worker in workers:
        worker.remove()


def record(status: str, **fields: str) -> str:
    """The line of a shell that writes a job's record."""
    values = {
        "schema": "1",
        "status": f'"{status}"',
        "host": f'"{socket.gethostname()}"',
        "pid": "$$",
        "pid_started": "$(cut -d' ' -f22 /proc/$$/stat || echo null)",
        **fields,
    }
    lines = ",\n".join(f'"{key}": {value}' for key, value in values.items())
    return f"cat > run.json << END\n{{{lines}}}\nEND\n"


def saving(then: str) -> str:
    """A job that says that it was interrupted when it is told to stop."""
    return f"stop() {{\n{record('interrupted')}\nexit 143\n}}\ntrap stop TERM\n{then}"


DIE = "kill -KILL $$"
NO_MEMORY = record("failed", error='"OutOfMemoryError: CUDA out of memory"') + "\nexit 1"
# as long as who started it is there
FOREVER = "while kill -0 $PPID; do sleep 0.02; done"
# deaf before it says that it runs: else what stops it may come first
HANG = f"trap '' TERM\n{record('running', epochs='2')}\ntouch ready\n{FOREVER}"


# --- how often ------------------------------------------------------------------------------------


@pytest.mark.parametrize("retries", [0, 1, 3])
@pytest.mark.parametrize(
    "script",
    [DIE, "exit 7", NO_MEMORY, "exit 0"],
    ids=["killed", "exit 7", "out of memory", "exit 0"],
)
def test_a_job_that_never_succeeds_is_tried_once_and_as_often_again_as_asked(
    run: Any, retries: int, script: str
) -> None:
    jobs: Jobs = run({"job": script}, retries=retries)
    assert jobs.attempts("job") == 1 + retries
    assert jobs.jobs["job"].attempts == 1 + retries
    assert jobs.ends == [("job", "failed")]
    expected = [("job", "running"), ("job", "queued")] * retries
    assert jobs.told == [*expected, ("job", "running"), ("job", "failed")]
    assert record_of(jobs.jobs["job"].run_dir)["status"] == "failed"


def test_a_job_that_succeeds_at_last_is_not_tried_again(run: Any) -> None:
    once = f"[ $(wc -l < attempts) = 3 ] || {DIE}\n{record('finished')}"
    jobs: Jobs = run({"job": once, "other": record("finished")}, retries=5)
    assert (jobs.attempts("job"), jobs.jobs["job"].status) == (3, "finished")
    assert jobs.jobs["job"].error is None
    assert jobs.ends == [("job", "finished"), ("other", "finished")]


@pytest.mark.parametrize(
    ("status", "error"),
    [
        ("finished", None),
        ("diverged", "the training loss became NaN"),
        ("pruned", None),
        ("failed", "ZeroDivisionError: on purpose"),
    ],
)
def test_what_would_end_so_again_is_tried_once(run: Any, status: str, error: str | None) -> None:
    said = "null" if error is None else f'"{error}"'
    jobs: Jobs = run({"job": record(status, error=said) + "\nexit 1"}, retries=3)
    assert jobs.attempts("job") == 1
    assert (jobs.jobs["job"].status, jobs.jobs["job"].error) == (status, error)
    assert jobs.ends == [("job", status)]
    assert record_of(jobs.jobs["job"].run_dir)["error"] == error


# --- how it ended ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (DIE, "killed by SIGKILL, as the system does when memory runs out"),
        ("kill -TERM $$", "killed by SIGTERM"),
        ("kill -SEGV $$", "killed by SIGSEGV"),
        ("exit 3", "its process ended with status 3"),
        ("exit 0", "its process ended with status 0"),
        ("exit 128", "its process ended with status 128"),
        ("exit 143", "stopped from outside by SIGTERM"),
        ("exit 129", "stopped from outside by SIGHUP"),
        ("exit 255", "its process was lost"),
    ],
)
def test_a_process_that_could_not_say_how_it_ended_is_said_for(
    run: Any, script: str, said: str
) -> None:
    jobs: Jobs = run({"job": script})
    job = jobs.jobs["job"]
    assert (job.status, job.error) == ("failed", said)
    written = record_of(job.run_dir)
    assert {
        key: written[key] for key in ("status", "error", "config_digest", "config", "seed")
    } == {
        "status": "failed",
        "error": said,
        "config_digest": "job-digest",
        "config": {"seed": 3, "name": "job"},
        "seed": 3,
    }
    assert written["overrides"] == ["optimizer.name=job", "seed=3"]
    assert written["command"] == "python -m cifar_lab optimizer.name=job seed=3"
    assert job.record == RunRecord.read(job.run_dir)
    assert job.took_s > 0


def test_the_record_of_an_earlier_attempt_is_not_taken_for_this_ones(run: Any) -> None:
    def before(jobs: Jobs) -> None:
        folder = jobs.jobs["job"].run_dir
        folder.mkdir()
        (folder / "run.json").write_text('{"schema": 1, "status": "failed", "pid": 1, "epochs": 4}')

    jobs: Jobs = run({"job": "exit 3"}, before=before)
    assert jobs.jobs["job"].error == "its process ended with status 3"
    assert jobs.jobs["job"].epochs_at_start == 4
    assert record_of(jobs.jobs["job"].run_dir)["epochs"] == 4  # what it measured stays


def test_what_a_lost_process_started_ends_with_it(run: Any) -> None:
    # the fixture looks for what is left of its group
    run({"job": f"sleep 60 & {DIE}", "other": f"{record('running')}\nsleep 60 & exit 1"})


# --- stopping -------------------------------------------------------------------------------------


def test_a_job_that_takes_too_long_is_told_to_stop_and_is_no_longer_tried(run: Any) -> None:
    jobs: Jobs = run({"job": "sleep 60", "other": record("finished")}, retries=3, job_timeout_s=0.1)
    assert jobs.attempts("job") == 1
    assert jobs.jobs["job"].error == "job_timeout=0.1: took longer, was stopped"
    assert jobs.ends == [("job", "failed"), ("other", "finished")]


def test_a_job_that_does_not_stop_is_killed_five_seconds_after_a_timeout(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    jobs: Jobs = run({"job": HANG}, job_timeout_s=100.0, before=clock.drives)
    assert clock.killed - clock.asked == pytest.approx(5, abs=1)
    assert 100 < clock.asked <= 102
    assert jobs.jobs["job"].error == "job_timeout=100.0: took longer, was stopped"


def test_a_job_that_is_not_worth_its_time_has_thirty_seconds_to_save(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)

    def before(jobs: Jobs) -> None:
        clock.drives(jobs)
        jobs.pruned = {"job"}

    jobs: Jobs = run({"job": HANG, "other": record("finished")}, before=before, retries=3)
    assert clock.killed - clock.asked == pytest.approx(30, abs=1)
    assert (jobs.jobs["job"].status, jobs.jobs["job"].error) == ("pruned", None)
    kept = jobs.jobs["job"].record
    assert kept is not None
    assert kept.epochs == 2
    assert jobs.ends == [("job", "pruned"), ("other", "finished")]


class Clock:
    """The supervisor's clock, a second further at each of its ticks once the job is ready."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.asked = self.killed = 0.0
        stop, kill = os.kill, process.kill
        monkeypatch.setattr(supervisor, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(supervisor, "_TICK_S", 0.001)

        def asks(pid: int, signum: int) -> None:
            self.asked = self.now
            stop(pid, signum)

        def kills(worker: Any) -> None:
            self.killed = self.killed or self.now
            kill(worker)

        system = SimpleNamespace(kill=asks, environ=os.environ)
        monkeypatch.setattr(supervisor, "os", system)
        monkeypatch.setattr(process, "kill", kills)

    def drives(self, jobs: Jobs) -> None:
        folder = jobs.jobs["job"].run_dir

        def tick() -> None:
            if (folder / "ready").exists():
                self.now += 1

        jobs.ticks = tick


def test_the_first_failure_stops_the_rest_where_that_was_asked_for(run: Any) -> None:
    scripts = {
        "long": saving(f"touch ready\n{FOREVER}"),
        "fails": "while [ ! -e ../long/ready ]; do sleep 0.02; done\n" + "exit 3",
        "never": record("finished"),
    }
    two = [Slot("a", {}), Slot("b", {})]
    jobs: Jobs = run(scripts, slots=two, fail_fast=True, retries=0)
    assert jobs.ends == [("fails", "failed"), ("long", "interrupted")]
    assert jobs.jobs["never"].status == "queued"
    assert jobs.jobs["long"].error is None
    assert record_of(jobs.jobs["long"].run_dir)["status"] == "interrupted"


def test_without_it_the_rest_runs(run: Any) -> None:
    jobs: Jobs = run({"fails": "exit 3", "next": record("finished")})
    assert jobs.ends == [("fails", "failed"), ("next", "finished")]


def test_a_signal_stops_every_job_in_order_and_starts_no_other(run: Any, tmp_path: Path) -> None:
    told: list[Jobs] = []

    def before(jobs: Jobs) -> None:
        told.append(jobs)

        def tick() -> None:
            if (tmp_path / "b" / "ready").exists() and (tmp_path / "a" / "ready").exists():
                jobs.ticks = lambda: None
                signal.raise_signal(signal.SIGINT)

        jobs.ticks = tick

    long = saving(f"touch ready\n{FOREVER}")
    scripts = {"a": long, "b": long, "c": record("finished")}
    signals.install()
    with pytest.raises(Interrupted) as stop:
        run(scripts, slots=[Slot("x", {}), Slot("y", {})], before=before, retries=3)
    assert stop.value.exit_status == 130
    [jobs] = told
    assert {name: job.status for name, job in jobs.jobs.items()} == {
        "a": "interrupted",
        "b": "interrupted",
        "c": "queued",
    }
    assert [jobs.attempts(name) for name in ("a", "b")] == [1, 1]


# --- slots ----------------------------------------------------------------------------------------


def test_a_slot_has_one_job_at_a_time_and_gives_it_its_environment(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OF_THE_SWEEP", "1")
    monkeypatch.setenv("PLACE", "nowhere")
    slots = [Slot("cuda:0", {"PLACE": "0"}), Slot("cuda:1", {"PLACE": "1"})]
    script = f"echo $PLACE $OF_THE_SWEEP > place\nsleep 0.05\n{record('finished')}"
    jobs: Jobs = run(dict.fromkeys("abcde", script), slots=slots)
    assert jobs.most == 2
    assert sorted(jobs.ends) == [(name, "finished") for name in "abcde"]
    places = {n: (j.run_dir / "place").read_text().strip() for n, j in jobs.jobs.items()}
    assert (places["a"], places["b"]) == ("0 1", "1 1")
    for name, job in jobs.jobs.items():
        assert places[name] == f"{job.slot[-1]} 1"


def test_a_job_that_is_tried_again_goes_before_new_ones(run: Any) -> None:
    jobs: Jobs = run({"a": DIE, "b": record("finished")}, retries=1)
    started = [name for name, status in jobs.told if status == "running"]
    assert started == ["a", "a", "b"]
