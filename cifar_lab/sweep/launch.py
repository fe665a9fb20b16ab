"""A sweep from its points to its exit status: check, plan, run, say what failed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifar_lab.config.compose import check_resolves
from cifar_lab.config.files import with_place
from cifar_lab.config.overrides import assignment
from cifar_lab.errors import InputError, Interrupted
from cifar_lab.records import credentials
from cifar_lab.records.environment import cores, git_state, package_versions
from cifar_lab.records.record import (
    FILE_NAME,
    SETTLED,
    Data,
    Git,
    Start,
    command_line,
    made_otherwise,
    now,
)
from cifar_lab.sweep import process
from cifar_lab.sweep.compose import Composer
from cifar_lab.sweep.folder import SweepFolder
from cifar_lab.sweep.jobs import make_jobs
from cifar_lab.sweep.points import Point, at, compose_point, varying, with_threads
from cifar_lab.sweep.results import write_report
from cifar_lab.sweep.supervisor import Slot, Source, Supervisor, SweepJob
from cifar_lab.sweep.tasks import CHECK, OPEN, Check, Findings, Found, Open, data_key
from cifar_lab.sweep.view import SweepView

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from hydra.core.config_loader import ConfigLoader
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig
    from optuna import Study

# More jobs at a time than this, and memory is what runs out first.
_MOST_CPU_SLOTS = 8


class GridSource:
    """The jobs of a list, those with the most work first, else in its order.

    The end of a sweep then waits for a short job: no schedule is more than a third faster (R. L.
    Graham 1969, Bounds on multiprocessing timing anomalies).

    Args:
        jobs: all of the sweep.
        work: by digest, in any unit; 0 where it isn't known.
    """

    def __init__(self, jobs: Sequence[SweepJob], work: Mapping[str, float]) -> None:
        queued = [job for job in jobs if job.status == "queued"]
        self._queue = sorted(queued, key=lambda job: -work.get(job.point.digest, 0))

    def next(self) -> SweepJob | None:
        """The next of the list."""
        return self._queue.pop(0) if self._queue else None

    def prunes(self, job: SweepJob) -> bool:
        """A grid runs every point to its end."""
        return False

    def ended(self, job: SweepJob) -> None:
        """The list stays as it is."""


def check_settings(master: DictConfig) -> None:
    """Raises InputError for a setting that is out of range, or of a search where there is none."""
    check_resolves(master.hydra, "hydra")
    check_resolves(master.sweep, "sweep")
    sweep = master.sweep
    credentials.learn({key: value for key, value in sweep.items() if isinstance(value, str)})
    for key, least in (("slots", 1), ("retries", 0)):
        if sweep[key] is not None and sweep[key] < least:
            raise InputError(f"sweep.{key}={sweep[key]}: must be at least {least}")
    if sweep.job_timeout is not None and sweep.job_timeout <= 0:
        raise InputError(
            f"sweep.job_timeout={sweep.job_timeout}: must be above 0 seconds, or null for no bound"
        )
    every = ("slots", "retries", "job_timeout", "fail_fast", "report", "ingredients")
    searched = [key for key in sweep if key not in every and sweep[key] is not None]
    if sweep.sampler is None and searched:
        key = searched[0]
        raise InputError(f"sweep.{key}={sweep[key]}: is of a search; add sweep=optuna")


def run_grid(
    master: DictConfig,
    loader: ConfigLoader,
    batch: Sequence[Sequence[str]],
    *,
    swept: Sequence[str] | None,
) -> int:
    """Runs every point that has not ended before; returns the exit status.

    Args:
        master: the sweep's own configuration, ``hydra.sweep.dir`` among it.
        loader: Hydra's.
        batch: each job's overrides.
        swept: the keys that were given several values; None: those that differ in ``batch``.

    Raises:
        InputError: a point that can't be composed or built, or a folder in use; nothing has run.
        Interrupted: stopped; the command that continues has been printed.
    """
    check_settings(master)
    composer = Composer(loader, master, varying(batch) if swept is None else swept)
    folder = SweepFolder(Path(master.hydra.sweep.dir))
    with _with_its_results(folder):
        composed = [compose_point(composer, overrides) for overrides in batch]
    # before anything is checked: what has ended needs none, and threads belong to the digest;
    # in a new folder as if on a CPU, while the fork server is still importing
    known, on_cpu = folder.threads(), Findings([], "cpu", 1, 1)
    threads = known or _threads(make_slots(on_cpu, master.sweep.slots, most=len(batch)))
    points = [with_threads(point, threads) for point in composed]
    images = {} if known is None else settled_images(folder, points)
    asked = [i for i in range(len(points)) if i not in images]
    findings = check_points([points[i] for i in asked]) if asked else on_cpu
    images |= zip(asked, findings.images, strict=True)
    slots = make_slots(findings, master.sweep.slots, most=len(batch))
    if known is None and threads != _threads(slots):
        threads = _threads(slots)
        points = [with_threads(point, threads) for point in composed]
    points = [replace(point, images=images[i]) for i, point in enumerate(points)]
    work = {points[i].digest: work for i, work in zip(asked, findings.work, strict=True)}
    with folder.locked():
        folder.remember(
            threads=threads, created=now().isoformat(), command=command_line(_arguments())
        )
        jobs = make_jobs(folder, points)
        _print_warnings(findings.warnings)
        _print_made_otherwise(jobs)
        _print_plan(jobs, len(batch), slots, points[0].config["threads"], folder.path)
        view = SweepView(jobs, sweep_dir=folder.path, slots=len(slots), expected=len(jobs))
        return run_jobs(master, folder, jobs, GridSource(jobs, work), slots, view)


@contextmanager
def _with_its_results(folder: SweepFolder) -> Iterator[None]:
    """Says what is left of a sweep whose jobs began with, or learned from, what is gone."""
    try:
        yield
    except InputError as error:
        gone = [key for key in ("init_from", "distill.from") if f"{key}=" in str(error)]
        if not gone or not any(folder.path.glob(f"*/{FILE_NAME}")):
            raise
        # weights to begin with lie in its checkpoint by then; a teacher is asked at every step
        alone = "; a job with a checkpoint goes on without it: its own command with hydra.run.dir"
        raise InputError(
            f"{error}; put it back to go on with this sweep, whose results stay in "
            f"{folder.path}{alone if gone == ['init_from'] else ''}"
        ) from error


def run_search(master: DictConfig, loader: ConfigLoader, overrides: Sequence[Override]) -> int:
    """Runs what an Optuna study asks for; returns the exit status.

    Args:
        master: the sweep's own configuration.
        loader: Hydra's.
        overrides: parsed; those that are a sweep span the space.

    Raises:
        InputError, Interrupted: as `run_grid`.
    """
    from omegaconf import OmegaConf

    from cifar_lab.sweep import search
    from cifar_lab.sweep.space import parse_space

    check_settings(master)
    container = OmegaConf.to_container(master.sweep, resolve=True)
    assert isinstance(container, dict)
    settings = {str(key): value for key, value in container.items()}
    settings["storage"] = settings["storage"] or None
    search.check_settings(settings)
    space = parse_space(overrides)
    if settings["sampler"] == "grid":
        space.grid()
    keys = list(space.distributions)
    folder = SweepFolder(Path(master.hydra.sweep.dir))
    composer = Composer(loader, master, keys)
    with _with_its_results(folder):
        probes = [compose_point(composer, space.overrides(values)) for values in space.probes()]
    findings = check_points(probes)
    slots = make_slots(findings, master.sweep.slots, most=settings["n_trials"])
    threads = folder.threads() or _threads(slots)

    images = {data_key(p.config): d for p, d in zip(probes, findings.images, strict=True)}

    def make_point(chosen: list[str]) -> Point:
        point = with_threads(compose_point(composer, chosen), threads)
        key = data_key(point.config)
        if key not in images:  # a data group that is searched in an interval
            with suppress(InputError):  # the job will say it
                images[key] = check_points([point]).images[0]
        return replace(point, images=images.get(key, ""))

    def open_study() -> Study:
        epochs = probes[0].config["trainer"].get("max_epochs")
        study = search.open_study(settings, folder, space, epochs)
        search.check_study(study, folder, [probe.config for probe in probes], findings.images)
        return study

    # a storage elsewhere may refuse it: before there is a folder
    elsewhere = open_study() if settings["storage"] is not None else None
    with folder.locked():
        folder.remember(
            threads=threads, created=now().isoformat(), command=command_line(_arguments())
        )
        jobs: list[SweepJob] = []
        study = elsewhere or open_study()
        source = search.StudySource(study, space, settings, folder, make_point, jobs)
        _print_warnings(findings.warnings)
        _print_made_otherwise(jobs)
        threads = probes[0].config["threads"] or threads
        _print_plan(jobs, len(jobs), slots, threads, folder.path, wanted=source.n_trials)
        view = SweepView(jobs, sweep_dir=folder.path, slots=len(slots), expected=source.n_trials)
        status = run_jobs(master, folder, jobs, source, slots, view)
        for trial in source.best():
            values = ", ".join(
                f"{name} {value:.4f}"
                for name, value in zip(settings["objectives"], trial.values, strict=True)
            )
            print(f"best: {trial.user_attrs.get('job')} ({values})", flush=True)
    return status


def run_jobs(
    master: DictConfig,
    folder: SweepFolder,
    jobs: Sequence[SweepJob],
    source: Source,
    slots: Sequence[Slot],
    view: SweepView,
) -> int:
    """Supervises a source to its end, lists what failed, and returns the exit status."""
    supervisor = Supervisor(
        slots=slots,
        source=source,
        view=view,
        retries=master.sweep.retries,
        job_timeout_s=master.sweep.job_timeout,
        fail_fast=master.sweep.fail_fast,
    )
    try:
        with view:
            supervisor.run()
    except Interrupted as stop:
        _print_failures(jobs)
        print_continue(folder.path)
        stop.told = True
        raise
    failed = _print_failures(jobs)
    print(f"results: {folder.path / 'results.csv'}", flush=True)
    if master.sweep.report:
        write_report(folder.path)
    if any(job.status in ("queued", "interrupted") for job in jobs):
        print_continue(folder.path)
    return 1 if failed else 0


def check_points(points: Sequence[Point]) -> Findings:
    """Has a worker build what the points are made of.

    Raises:
        InputError: names the first point that is wrong, and how many more are.
    """

    def request(reply: Connection) -> Check:
        return Check([point.cfg for point in points], [point.config for point in points], reply)

    findings: Findings | None = _ask_worker(CHECK, request)
    if findings is None:
        raise InputError("the check of the points was killed twice; is there memory enough?")
    if findings.wrong:
        index, message = findings.wrong[0]
        more = len(findings.wrong) - 1
        further = f" ({more} further points are wrong)" if more else ""
        message = with_place(message, points[index].overrides)
        raise InputError(f"{at(points[index].swept, message)}{further}")
    return findings


def settled_images(folder: SweepFolder, points: Sequence[Point]) -> dict[int, str]:
    """By index, the points that have ended, on the images that they would use now: their digest.

    Raises:
        InputError: a point that has ended would find no images now. They may be others: its result
            is not given for a reply.
    """
    ended: dict[int, list[Data]] = {}
    for i, point in enumerate(points):
        records = [record for _, record in folder.records(point.digest)]
        if data := [record.data for record in records if record.status in SETTLED]:
            ended[i] = data
    different = {data_key(points[i].config): points[i] for i in reversed(ended)}
    opened = dict(zip(different, open_data(list(different.values())), strict=True))
    settled = {}
    for i, data in ended.items():
        found = opened[data_key(points[i].config)]
        if found.error is not None:
            raise InputError(
                f"{at(points[i].swept, found.error)}; the jobs that have ended can't be compared "
                f"with that, and their results stay in {folder.path}"
            )
        same = (d.digest for d in data if d.holds(found.digest))
        if (digest := next(same, None)) is not None:
            settled[i] = digest
    return settled


def open_data(points: Sequence[Point]) -> list[Found]:
    """Has a worker open the images of each point; InputError where it was killed twice."""

    def request(reply: Connection) -> Open:
        return Open([point.cfg for point in points], reply)

    found: list[Found] | None = _ask_worker(OPEN, request) if points else []
    if found is None:
        raise InputError("the search for the images was killed twice; is there memory enough?")
    return found


def _ask_worker(target: str, request: Callable[[Connection], Any]) -> Any:
    """What a worker replies; None where it was lost, and the next one too."""
    from multiprocessing import Pipe

    for _ in range(2):
        ours, theirs = Pipe(duplex=False)
        worker = process.start(target, request(theirs), environment=os.environ, name="check")
        theirs.close()
        try:
            return ours.recv()
        except EOFError:
            continue
        finally:
            ours.close()
            process.kill(worker)
            worker.join()
    return None


def make_slots(findings: Findings, per_device: int | None, *, most: int) -> list[Slot]:
    """The places jobs run in; on CUDA each shows its processes the GPUs of that place alone.

    Args:
        findings: of the check of the points.
        per_device: jobs at a time on each; None: 1 on a GPU, on the CPU one per core, 8 at most.
        most: more are never needed.

    Raises:
        InputError: a job asks for more GPUs than there are.
    """
    if findings.kind != "cuda":
        default = min(cores(), _MOST_CPU_SLOTS) if findings.kind == "cpu" else 1
        count = max(1, min(per_device or default, most))
        return [Slot(findings.kind, {}) for _ in range(count)]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    named = visible.split(",") if visible else [str(i) for i in range(findings.devices)]
    # CUDA looks no further than the first name that is no GPU of the machine
    names = [name.strip() for name in named[: findings.devices]]
    if len(names) < len(named):
        _print_warnings(
            [f"CUDA_VISIBLE_DEVICES={visible}: CUDA finds {len(names)} of these {len(named)} GPUs"]
        )
    size = findings.per_job
    if size > len(names):
        raise InputError(f"trainer.devices={size}: this machine shows {len(names)} GPU(s)")
    places = [names[i : i + size] for i in range(0, len(names) - size + 1, size)]
    return [
        Slot(f"cuda:{'+'.join(place)}", {"CUDA_VISIBLE_DEVICES": ",".join(place)})
        for _ in range(per_device or 1)
        for place in places
    ][: max(1, most)]


def _threads(slots: Sequence[Slot]) -> int:
    return max(1, cores() // len(slots))


def _print_plan(
    jobs: Sequence[SweepJob],
    points: int,
    slots: Sequence[Slot],
    threads: int,
    path: Path,
    wanted: int | None = None,
) -> None:
    before = sum(job.before for job in jobs)
    started = sum(job.status == "queued" and bool(job.record) for job in jobs)
    parts = [f"{wanted or len(jobs)} jobs"]
    parts += [f"{points - len(jobs)} more are the same as one of them"] * (points > len(jobs))
    parts += [f"{before} ended before"] * bool(before)
    parts += [f"{started} started before"] * bool(started)
    devices = ", ".join(dict.fromkeys(slot.name for slot in slots))
    parts += [f"{len(slots)} at a time on {devices}", f"{threads} CPU threads each"]
    print(f"sweep: {'; '.join(parts)}\nfolder: {path}", flush=True)


def _print_warnings(lines: Sequence[str]) -> None:
    sys.stdout.flush()
    for line in lines:
        print(f"cifar_lab: {line}", file=sys.stderr, flush=True)


def _print_made_otherwise(jobs: Sequence[SweepJob]) -> None:
    """Says what is taken over, or goes on, and was made with something else than is here."""
    ended = [job for job in jobs if job.before]
    begun = [j for j in jobs if not j.before and any(j.run_dir.glob("checkpoints/*.ckpt"))]
    if not ended and not begun:
        return
    git = Git(**git_state(Path(__file__).parents[1]))
    lines = []
    for some, fate, advice in (
        (
            ended,
            "ended before",
            "; delete their folders or choose another hydra.sweep.dir to run them anew",
        ),
        (begun, "go on", ""),
    ):
        others = [
            text
            for job in some
            if job.record is not None
            and (text := made_otherwise(job.record.all_starts, _start_here(job, git)))
        ]
        if others:
            texts = ", or ".join(dict.fromkeys(others))
            lines.append(f"{len(others)} of the {len(jobs)} jobs {fate}, made with {texts}{advice}")
    _print_warnings(lines)


def _start_here(job: SweepJob, git: Git) -> Start:
    return Start(git=git, packages=package_versions(job.point.config))


def _print_failures(jobs: Sequence[SweepJob]) -> bool:
    failed = [job for job in jobs if job.status in ("failed", "diverged")]
    sys.stdout.flush()
    if failed:
        print(f"{len(failed)} of {len(jobs)} jobs failed:", file=sys.stderr)
    for job in failed:
        log = next(
            (p for name in ("train.log", "console.log") if (p := job.run_dir / name).exists()),
            job.run_dir,
        )
        print(f"  {job.point.label}: {job.status}: {job.error}; log: {log}", file=sys.stderr)
    return bool(failed)


def print_continue(path: Path) -> None:
    """Says the command that takes up the sweep in ``path``."""
    named = ("hydra.sweep.dir=", 'hydra.searchpath=["file://')  # the latter nobody typed
    kept = [a for a in _arguments() if not a.lstrip("+").startswith(named)]
    command = command_line([*kept, assignment("hydra.sweep.dir", str(path))])
    if said := credentials.advice(kept):
        print(f"cifar_lab: {said}", file=sys.stderr, flush=True)
    print(f"cifar_lab: to continue: {command}", file=sys.stderr, flush=True)


def _arguments() -> list[str]:
    return sys.argv[1:]
