"""Jobs that an Optuna study asks for, one whenever a slot is free, and tells what they came to."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import check_distribution_compatibility
from optuna.trial import FrozenTrial, Trial, TrialState

from cifar_lab.errors import InputError
from cifar_lab.records.credentials import hide, hide_by_form, masked
from cifar_lab.records.digest import changes_no_result, flatten
from cifar_lab.records.record import SETTLED, RunRecord, Timings, record_of
from cifar_lab.sweep.folder import SweepFolder
from cifar_lab.sweep.jobs import make_job
from cifar_lab.sweep.points import Point
from cifar_lab.sweep.space import Space, in_words
from cifar_lab.sweep.supervisor import SweepJob

SAMPLERS = ("tpe", "random", "grid")
PRUNERS = ("hyperband", "asha", "median")
_JOB, _PLACE = "job", "sweep_dir"
_CONFIG, _IMAGES = "config", "images"  # of the study: what all trials have in common
_NONE = object()
# Of an objective's numbers those that are no metric, and so of no epoch.
_KNOWN_BESIDE = {*Timings.model_fields, *RunRecord.model_fields}
# What a diverged job's objective is where no job has a value yet that could be the worst.
_WORSE_THAN_ANY = 1e9


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raises InputError for what ``sweep=optuna`` can't do."""
    names, directions = settings["objectives"], settings["directions"]
    if not names or len(set(names)) < len(names) or len(names) != len(directions):
        raise InputError(
            f"sweep.objectives={names}, sweep.directions={directions}: must be two lists of the "
            "same length, as in [val/acc] and [maximize]"
        )
    for name, direction in zip(names, directions, strict=True):
        if name.startswith("test/"):
            raise InputError(f"sweep.objectives={name}: the test split selects nothing; use val/")
        if direction not in ("maximize", "minimize"):
            raise InputError(f"sweep.directions={direction}: must be maximize or minimize")
    for key, allowed in (("sampler", SAMPLERS), ("pruner", PRUNERS)):
        value = settings[key]
        if value not in allowed and not (key == "pruner" and value is None):
            raise InputError(f"sweep.{key}={value}: must be one of {', '.join(allowed)}")
    if settings["pruner"] is not None and len(names) > 1:
        raise InputError(
            f"sweep.pruner={settings['pruner']}: Optuna prunes for one objective, and there are "
            f"{len(names)}; set sweep.pruner=null or leave one objective"
        )
    if settings["pruner"] is not None and names[0] in _KNOWN_BESIDE:
        raise InputError(
            f"sweep.pruner={settings['pruner']}: prunes by the objective of each epoch, and "
            f"sweep.objectives=[{names[0]}] has none; set sweep.pruner=null, or search for val/acc"
        )
    if settings["n_trials"] < 1:
        raise InputError(f"sweep.n_trials={settings['n_trials']}: must be at least 1")


def open_study(
    settings: Mapping[str, Any], folder: SweepFolder, space: Space, max_epochs: int | None
) -> optuna.Study:
    """The study, new or with its trials; SQLite in the sweep's folder unless a storage is named.

    Raises:
        InputError: the storage can't be opened, or holds a study with other objectives or choices.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = settings["storage"] or f"sqlite:///{folder.path / 'study.db'}"
    directions = list(settings["directions"])
    try:
        study = optuna.create_study(
            storage=storage,
            study_name=settings["study"],
            directions=directions,
            load_if_exists=True,
            pruner=_pruner(settings, max_epochs),
        )
    except Exception as error:  # SQLAlchemy's and its drivers' own
        text = str(error).splitlines()[0]
        raise InputError(hide(f"sweep.storage={storage}: {text}")) from error
    if [d.name.lower() for d in study.directions] != directions:
        raise InputError(f"sweep.study={settings['study']}: holds a study of other objectives")
    check_space(study, space)
    # a study that is taken up again goes on in its sequence: it must not draw its beginning twice
    seed = settings["seed"] + len(study.get_trials(deepcopy=False))
    if settings["storage"] is not None:  # nor what another machine draws at the same moment
        seed = (seed + zlib.crc32(str(folder.path).encode())) % 2**32
    study.sampler = (
        optuna.samplers.TPESampler(seed=seed)
        if settings["sampler"] == "tpe"
        else optuna.samplers.RandomSampler(seed=seed)
    )
    if settings["sampler"] == "grid":
        for point in space.grid():
            study.enqueue_trial(point, skip_if_exists=True)
    return study


def check_space(study: optuna.Study, space: Space) -> None:
    """Refuses a key whose values Optuna can't hold together with those of the study's trials."""
    for trial in study.get_trials(deepcopy=False):
        for key in trial.distributions.keys() & space.distributions.keys():
            then, here = trial.distributions[key], space.distributions[key]
            try:
                check_distribution_compatibility(then, here)
            except ValueError as error:
                raise InputError(
                    f"sweep.study={study.study_name}: {key} is {in_words(here)} here, and its "
                    f"trials are of {in_words(then)}: in a study the ends of an interval may "
                    "change, and keys be added, but no choices; give those again, or choose "
                    "another hydra.sweep.dir or sweep.study"
                ) from error


def check_study(
    study: optuna.Study,
    folder: SweepFolder,
    probes: Sequence[Mapping[str, Any]],
    images: Sequence[str],
) -> None:
    """Refuses a study whose trials' values are of something else; a new one is told of what.

    It is found by its name: that says nothing of the images or of what isn't searched.

    Args:
        study: of this search.
        folder: the sweep's; a study of an older version is known by the records in it.
        probes: resolved configurations that take every side of the space.
        images: the digest of the images of each.

    Raises:
        InputError: what is not searched, then and now, differs, or the images do.
    """
    shown = [masked(p, hide_by_form) for p in probes]  # a new password is the same study
    # each machine of a shared study divides its own cores
    flat = [
        {k: v for k, v in flatten(p) if k != "threads" and not changes_no_result(k)} for p in shown
    ]
    fixed = {k: v for k, v in flat[0].items() if all(p.get(k, _NONE) == v for p in flat)}
    told = study.user_attrs
    then = told.get(_CONFIG, {})
    known = set(told.get(_IMAGES) or _images_of_trials(study, folder))
    elsewhere = "choose another hydra.sweep.dir or sweep.study for a search of these"
    differing = [k for k in sorted(fixed) if k in then and then[k] != fixed[k]]
    if differing:
        raise InputError(
            f"sweep.study={study.study_name}: its trials are of another configuration; these "
            f"differ: {', '.join(f'{k} ({then[k]} there, {fixed[k]} here)' for k in differing)}; "
            + elsewhere
        )
    if gone := sorted(known - set(images)):
        raise InputError(
            f"sweep.study={study.study_name}: its trials are on other images (digest "
            f"{', '.join(digest[:12] for digest in gone)}, here "
            f"{', '.join(digest[:12] for digest in dict.fromkeys(images))}); " + elsewhere
        )
    study.set_user_attr(_CONFIG, fixed)
    study.set_user_attr(_IMAGES, sorted(known | set(images)))


def _images_of_trials(study: optuna.Study, folder: SweepFolder) -> set[str]:
    names = {str(trial.user_attrs.get(_JOB)) for trial in study.get_trials(deepcopy=False)}
    records = [record_of(folder.path / name) for name in names]
    return {record.data.digest for record in records if record is not None} - {""}


def _pruner(settings: Mapping[str, Any], max_epochs: int | None) -> optuna.pruners.BasePruner:
    least = settings["min_epochs"]
    if settings["pruner"] == "hyperband":
        return optuna.pruners.HyperbandPruner(
            min_resource=least, max_resource=max_epochs or "auto", reduction_factor=3
        )
    if settings["pruner"] == "asha":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=least, reduction_factor=3)
    if settings["pruner"] == "median":
        return optuna.pruners.MedianPruner(n_warmup_steps=least)
    return optuna.pruners.NopPruner()


class StudySource:
    """Asks the study for jobs; see `cifar_lab.sweep.supervisor.Source`.

    A trial that was left running by a supervisor that died in this folder goes on under its
    number, from its checkpoint.

    Args:
        study: may be shared with other machines.
        space: what is searched.
        settings: ``sweep`` of the configuration.
        folder: the sweep's, locked.
        make_point: overrides to a point, threads included.
        jobs: every job is appended to it.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: Space,
        settings: Mapping[str, Any],
        folder: SweepFolder,
        make_point: Callable[[list[str]], Point],
        jobs: list[SweepJob],
    ) -> None:
        self._study = study
        self._space = space
        self._objectives: dict[str, str] = dict(
            zip(settings["objectives"], settings["directions"], strict=True)
        )
        self._prunes = settings["pruner"] is not None
        self._n_trials: int = settings["n_trials"]
        if settings["sampler"] == "grid":
            self._n_trials = min(self._n_trials, len(space.grid()))
        self._alone = settings["storage"] is None  # nobody else has trials in it
        self._folder = folder
        self._make_point = make_point
        self._jobs = jobs
        self._trials: dict[str, Trial] = {}
        self._at_work: set[str] = set()  # digests
        self._reported: dict[str, int] = {}
        self._failed = 0
        self._left: list[FrozenTrial] = []
        for trial in study.get_trials(deepcopy=False):
            self._take_over(trial)

    @property
    def n_trials(self) -> int:
        """How many there will be, over all machines and starts."""
        return self._n_trials

    def next(self) -> SweepJob | None:
        """A trial that was left, or a new one while there are fewer than ``n_trials``."""
        while self._left or self._wanted():
            if self._left:
                left = self._left.pop(0)
                trial = Trial(self._study, left._trial_id)  # noqa: SLF001  (Trial wants no other)
            else:
                trial = self._study.ask(dict(self._space.distributions))
            point = self._make_point(self._space.overrides(trial.params))
            if point.run_digest in self._at_work:
                # drawn again while the first is still running: there is nothing more to learn
                self._give_up(trial)
                continue
            job = self._adopt(trial, point)
            if job.status not in SETTLED:
                return job
            job.before = True  # drawn again, or ended before it could be told
            self.ended(job)
        return None

    def prunes(self, job: SweepJob) -> bool:
        """Reports each epoch's objective, and asks the pruner: both know one direction."""
        name = job.run_dir.name
        epochs = 0 if job.record is None else job.record.epochs
        if not self._prunes or epochs <= self._reported.get(name, 0):
            return False
        if (value := _value(job.record, next(iter(self._objectives)))) is None:
            return False
        self._reported[name] = epochs
        trial = self._trials[name]
        trial.report(value, epochs)
        return trial.should_prune()

    def ended(self, job: SweepJob) -> None:
        """Tells the study; an interrupted trial stays open for the next start."""
        self._at_work.discard(job.point.run_digest)
        trial = self._trials.get(job.run_dir.name)
        if trial is None or job.status == "interrupted":
            return
        values = [_value(job.record, name) for name in self._objectives]
        if job.status == "diverged":
            self._tell(trial, [self._worst(i) for i in range(len(self._objectives))])
        elif job.status == "pruned":
            self._tell(trial, None, TrialState.PRUNED)
        elif job.status == "finished" and None not in values:
            self._tell(trial, [value for value in values if value is not None])
        else:
            if job.status == "finished":
                missing = [n for n, v in zip(self._objectives, values, strict=True) if v is None]
                job.status, job.error = "failed", f"sweep.objectives: no {', '.join(missing)}"
            self._give_up(trial)

    def best(self) -> list[FrozenTrial]:
        """The best trial, or with several objectives those that no other is better than."""
        if not self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            return []
        return [self._study.best_trial] if len(self._objectives) == 1 else self._study.best_trials

    def _wanted(self) -> bool:
        counted = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        trials = self._study.get_trials(deepcopy=False, states=counted)
        lost = sum(t.state is TrialState.RUNNING and _JOB not in t.user_attrs for t in trials)
        return len(trials) - lost + self._failed < self._n_trials

    def _take_over(self, trial: FrozenTrial) -> None:
        whole = set(trial.params) == set(self._space.distributions)
        ours = self._alone or trial.user_attrs.get(_PLACE) == str(self._folder.path)
        if not (ours and whole):
            return
        if trial.state is TrialState.RUNNING:
            self._left.append(trial)
        elif trial.state is not TrialState.WAITING:
            point = self._make_point(self._space.overrides(trial.params))
            job = make_job(self._folder, point)
            if job.before and all(other.run_dir != job.run_dir for other in self._jobs):
                self._jobs.append(job)

    def _adopt(self, trial: Trial, point: Point) -> SweepJob:
        job = make_job(self._folder, point)
        trial.set_user_attr(_PLACE, str(self._folder.path))
        trial.set_user_attr(_JOB, job.run_dir.name)
        self._trials[job.run_dir.name] = trial
        self._at_work.add(point.run_digest)
        if all(other.run_dir != job.run_dir for other in self._jobs):
            self._jobs.append(job)
        return job

    def _give_up(self, trial: Trial) -> None:
        self._failed += 1
        self._tell(trial, None, TrialState.FAIL)

    def _tell(
        self, trial: Trial, values: Sequence[float] | None, state: TrialState | None = None
    ) -> None:
        self._study.tell(trial, values, state=state, skip_if_finished=True)

    def _worst(self, index: int) -> float:
        name = list(self._objectives)[index]
        maximize = self._objectives[name] == "maximize"
        if maximize and name.endswith("/acc"):
            return 0.0
        complete = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        told = [trial.values[index] for trial in complete]
        if maximize:
            return min(told, default=-_WORSE_THAN_ANY)
        return max(told, default=_WORSE_THAN_ANY)


def _value(record: RunRecord | None, name: str) -> float | None:
    if record is None:
        return None
    for fields in (record.metrics, record.timings.model_dump(), record.model_dump(include={name})):
        value = fields.get(name)
        if isinstance(value, int | float) and math.isfinite(value):
            return float(value)
    return None
