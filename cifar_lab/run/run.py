"""One run, from its configuration to its record: alone, in a sweep, under any launcher, in a test.

`run` is the whole sequence: find what the folder holds, build, open the record, fit and test,
finish.
"""

from __future__ import annotations

import io
import logging
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cifar_lab import signals
from cifar_lab.config.compose import run_config
from cifar_lab.config.overrides import assignment
from cifar_lab.config.validate import precision_warning
from cifar_lab.config.written import config_to_keep
from cifar_lab.errors import Diverged, InputError, Interrupted, memory_ran_out
from cifar_lab.records import credentials, processes
from cifar_lab.records.digest import config_digest
from cifar_lab.records.environment import git_state, package_versions
from cifar_lab.records.files import remove_leftovers, write_atomically
from cifar_lab.records.record import (
    FILE_NAME,
    Data,
    Git,
    RecordFile,
    RunRecord,
    Start,
    Status,
    command_line,
    made_otherwise,
    now,
    record_of,
)
from cifar_lab.run import resume
from cifar_lab.run.build import build, build_data, log_to_stderr
from cifar_lab.run.hydra_job import learn_secrets, make_callbacks, run_in_hydra_job
from cifar_lab.run.resume import Earlier
from cifar_lab.run.trainer import device_name

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from cifar_lab.data.datamodule import DataModule
    from cifar_lab.training.fit import FitResult, Parts

T = TypeVar("T")
log = logging.getLogger("cifar_lab")
_PACKAGE = Path(__file__).parents[1]
# Times as many or as few images per step as the learning rates were found with. By rules of thumb
# (in proportion for SGD, to the root for Adam) rates are off by this factor, or its root.
_TOO_FAR = 4


@dataclass(frozen=True)
class Request:
    """A run as it was asked for.

    Attributes:
        cfg: composed, with Hydra's node.
        run_dir: absolute; may hold an earlier start of the same run.
        overrides: as typed.
        started: `time.perf_counter` when the process began.
        images: the digest of the images that a sweep planned it with; None: whichever are found.
        in_hydra_job: a launcher of Hydra's has begun the job: the folder and its log are there.
        continued_by: the command that goes on where it was stopped; None: that of its overrides.
    """

    cfg: DictConfig
    run_dir: Path
    overrides: Sequence[str]
    started: float
    images: str | None = None
    in_hydra_job: bool = False
    continued_by: str | None = None

    @cached_property
    def config(self) -> dict[str, Any]:
        """Resolved, as plain containers, without Hydra's node."""
        try:
            return run_config(self.cfg)
        except InputError:
            # its checkpoint holds them by now
            begun_with = resume.weights_that_are_gone(self.run_dir, self.cfg.get("init_from"))
            if begun_with is None:
                raise
            return run_config(self.cfg, begun_with=begun_with)

    @cached_property
    def config_to_keep(self) -> dict[str, Any]:
        """``config`` as it may be written down."""
        return config_to_keep(self.cfg, self.config)

    @property
    def overrides_with_folder(self) -> list[str]:
        """What continues the run in its folder."""
        of_the_start = ("hydra.run.dir=", "resume=")
        kept = [o for o in self.overrides if not o.lstrip("+").startswith(of_the_start)]
        return [*kept, assignment("hydra.run.dir", str(self.run_dir))]


def run(asked: Request, *, before_training: Callable[[], None] = lambda: None) -> int:
    """Runs what was asked for, and returns the exit status; the record says the same.

    Args:
        asked: the run.
        before_training: called when everything is imported and built.

    Raises:
        InputError: it can't be built, or its folder holds another run, or one that goes on;
            nothing has been written.
    """
    if not asked.in_hydra_job:  # which learnt them where its node was
        learn_secrets(asked.cfg.hydra)
    credentials.guard_log()  # of a job of Hydra's it is there before anything is built
    world = processes.settle()
    # processes that were started side by side meet through their trainer: it comes first there
    parts = _parts_of(asked) if world.joined else None
    of_the_first = partial(_of_the_first, parts)
    earlier = _find(asked, world, of_the_first)
    if earlier.finished:
        assert earlier.record is not None
        _repeat(asked, earlier.record)
        return 0
    parts = parts or _parts_of(asked)
    check_images(asked, parts, earlier.record)
    before_training()
    training = partial(_train, asked, parts, earlier, of_the_first)
    if asked.in_hydra_job:
        return training()
    callbacks = make_callbacks(asked.cfg)
    _make_folder(asked.run_dir)
    return run_in_hydra_job(asked.cfg, asked.run_dir, training, callbacks)


# --- before anything is on disk ------------------------------------------------------------------


def _parts_of(asked: Request) -> Parts:
    return build(
        asked.cfg, asked.config, asked.run_dir, begun_with=resume.begun_with(asked.run_dir)
    )


def _find(asked: Request, world: processes.World, of_the_first: Callable[[Any], Any]) -> Earlier:
    if world.launcher == "lightning":
        return Earlier(checkpoint=processes.resume_from())
    found: Earlier | InputError | None = None
    if world.rank == 0:
        try:
            found = resume.find(asked.run_dir, asked.config)
        except InputError as error:
            found = error
    found = of_the_first(found)
    if isinstance(found, InputError):
        raise found
    assert found is not None
    return found


def _of_the_first(parts: Parts | None, value: T) -> T:
    """The first process's value in all that torchrun or srun started, whose ``parts`` are built."""
    if parts is None:
        return value
    strategy = parts.trainer.strategy
    strategy.setup_environment()
    return strategy.broadcast(value)


def _repeat(asked: Request, record: RunRecord) -> None:
    """Prints the result of a finished run again, once its images are found to be the same."""
    from cifar_lab.run.summary import print_summary

    try:
        with log_to_stderr():
            found = build_data(asked.cfg).at_hand()
    except InputError as error:
        # a mistyped root must not be answered with the accuracy on the images of another
        raise InputError(
            f"{error}; the finished run in {asked.run_dir} can't be compared with that, and its "
            f"result stays in its {FILE_NAME}"
        ) from error
    digest = None if found is None else found.digest
    resume.check_images(asked.run_dir, asked.config, record, digest)
    here = Start(git=Git(**git_state(_PACKAGE)), packages=package_versions(asked.config))
    if others := made_otherwise(record.all_starts, here):
        print(
            f"cifar_lab: {asked.run_dir}: this run was made with {others}; delete its folder or "
            "choose another hydra.run.dir to run it anew",
            file=sys.stderr,
        )
    for line in data_warnings(asked.config, record.data):
        print(f"cifar_lab: {line}", file=sys.stderr)
    if processes.rank() == 0:
        print_summary(record, asked.run_dir)


def check_images(asked: Request, parts: Parts, record: RunRecord | None) -> None:
    """Raises InputError where the images are not those of the sweep's plan or the folder's run.

    Args:
        asked: with the sweep's digest, where it is a job of one.
        parts: built, the data open.
        record: of the run that the folder holds; None: of none.
    """
    found = parts.data.dataset.digest
    if asked.images is not None and found != asked.images:
        raise InputError(
            f"{resume.root_of(asked.config)}: these images ({found[:12]}) are not those of when "
            f"the sweep began ({asked.images[:12]}); put those back, or start it again"
        )
    resume.check_images(asked.run_dir, asked.config, record, found)


def data_warnings(config: dict[str, Any], data: Data) -> list[str]:
    """What makes accuracies on these images too high, one line each."""
    from cifar_lab.data.copies import warnings_of

    return [f"{resume.root_of(config)}: {line}" for line in warnings_of(data)]


def _make_folder(run_dir: Path) -> None:
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        probe = run_dir / f".probe.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"hydra.run.dir={run_dir}: can't be written ({error.strerror}); "
            "choose a folder that can"
        ) from error


# --- in the folder --------------------------------------------------------------------------------


def _train(
    asked: Request, parts: Parts, earlier: Earlier, of_the_first: Callable[[Any], Any]
) -> int:
    from cifar_lab.training.fit import fit_and_test

    _say_once_if_the_log_fails()
    credentials.guard_log()
    file: RecordFile | None = None
    checkpoint = earlier.checkpoint
    with ExitStack() as stack:
        try:
            if processes.rank() == 0:
                checkpoint = _take_folder(asked.run_dir, earlier, stack)
                file = _open_record(asked, parts, earlier.record, checkpoint)
                _warn(asked, file.record, parts)
            checkpoint = of_the_first(checkpoint)
            with processes.first_of(asked.overrides_with_folder, checkpoint):
                fit_and_test(
                    parts,
                    run_dir=asked.run_dir,
                    started=asked.started,
                    resume_from=checkpoint,
                    overrides=asked.overrides,
                    report=None if file is None else file.update,
                    on_result=None if file is None else partial(_keep, asked.run_dir, file),
                )
                _leave_process_group()
            with signals.shielded():  # it is done: nothing to interrupt any more
                return _finished(asked, file)
        except BaseException as error:
            with signals.shielded():
                return _ended(asked, file, error)


def _take_folder(run_dir: Path, earlier: Earlier, stack: ExitStack) -> Path | None:
    """Locks the folder, clears what a crash left half-written, and picks the checkpoint.

    Raises:
        InputError: another process has it, or its checkpoints are damaged.
    """
    from filelock import FileLock, Timeout

    from cifar_lab.records.checkpoint_file import newest_usable, remove_partial

    lock = FileLock(run_dir / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(f"hydra.run.dir={run_dir}: another process is running in it") from error
    stack.callback(lock.release)
    remove_leftovers(run_dir)
    remove_partial(run_dir)
    return newest_usable(run_dir) if earlier.record is not None else earlier.checkpoint


def _open_record(
    asked: Request, parts: Parts, before: RunRecord | None, checkpoint: Path | None
) -> RecordFile:
    import torch

    start = Start(
        started=now(),
        command=command_line(asked.overrides),
        resumed_from_step=_step_of(checkpoint),
        git=Git(**git_state(_PACKAGE)),
        packages=package_versions(asked.config),
        device=device_name(parts.trainer),
        threads=torch.get_num_threads(),
        host=socket.gethostname(),
    )
    continued = before is not None and checkpoint is not None
    record = RunRecord(
        status="running",
        started=before.started if continued and before else start.started,
        command=start.command,
        overrides=tuple(asked.overrides),
        config_digest=config_digest(asked.config),
        config=asked.config_to_keep,
        seed=asked.config["seed"],
        threads=start.threads,
        resumed=checkpoint is not None,
        git=start.git,
        packages=start.packages,
        device=start.device,
        # also of one that was killed before its first checkpoint: it may have logged
        starts=(*(before.all_starts if before else ()), start),
        data=Data(**parts.data.facts),
        parameters=parts.classifier.parameter_count,
        init=parts.init,
        frozen_parameters=parts.classifier.frozen_parameter_count,
    )
    return RecordFile(asked.run_dir, record)


def _step_of(checkpoint: Path | None) -> int:
    """The optimizer steps behind a checkpoint, which has been found whole; 0 without one."""
    if checkpoint is None:
        return 0
    import torch

    # mapped: its tensors are not read
    found = torch.load(checkpoint, mmap=True, map_location="cpu", weights_only=True)
    return int(found["global_step"])


def _warn(asked: Request, record: RunRecord, parts: Parts) -> None:
    """Says what a reader of the numbers has to know; on standard error and in train.log."""
    from cifar_lab.training.layout import layout_of

    images_per_step = layout_of(parts.trainer, parts.data.train_dataloader()).images_per_step
    *before, start = record.starts
    if record.resumed and (others := made_otherwise(before, start)):
        # not refused: a comment may have changed, and hours of work would be lost; every start
        # is on record
        log.warning("%s: goes on, though begun with %s", asked.run_dir, others)
    tuned = asked.config["tuned_batch_size"]
    if tuned and not tuned / _TOO_FAR <= images_per_step <= tuned * _TOO_FAR:
        log.warning(
            "%d images per optimizer step, and the learning rates were found with %d: scale "
            "optimizer.lr and the rates of its groups, or set data.batch_size=%d "
            "(tuned_batch_size=null says nothing)",
            *(images_per_step, tuned, tuned),
        )
    precision = str(asked.config["trainer"].get("precision", "32-true"))
    if line := precision_warning(precision, parts.trainer.strategy.root_device.type):
        log.warning("%s", line)
    for line in data_warnings(asked.config, record.data):
        log.warning("%s", line)
    for line in _held_out_and_seen(asked.config, parts.data):
        log.warning("%s", line)
    if (init := record.init) is not None and not record.resumed:
        log.info("init_from=%s: %d tensors (SHA-256 %s)", init.source, init.taken, init.sha256)
        if init.new or init.unused:
            new, unused = ", ".join(init.new) or "none", ", ".join(init.unused) or "none"
            log.warning("init_from=%s: new here: %s; not used: %s", init.source, new, unused)


def _held_out_and_seen(config: dict[str, Any], data: DataModule) -> Iterator[str]:
    """Of runs that this one begins with or learns from, those that trained on what it holds out."""
    import numpy as np

    from cifar_lab.data.datamodule import stratified_split

    teachers = (config.get("distill") or {"from": {"paths": []}})["from"]["paths"]
    begun = (config.get("init_from") or {}).get("path")
    keys = dict.fromkeys(teachers, "distill.from") | ({begun: "init_from"} if begun else {})
    labels, here = data.dataset.train.labels, data.val_indices
    for path, key in keys.items():
        folder = Path(path).parent.parent
        before = record_of(folder)
        if before is None or before.data.digest != data.dataset.digest:
            continue
        node: Any = (before.config or {}).get("data")
        try:
            trained, _ = stratified_split(labels, before.data.images["val"], node["val_seed"])
        except (LookupError, TypeError, ValueError):  # of a record that doesn't say which
            continue
        if count := len(np.intersect1d(trained, here)):
            yield (
                f"{key}={folder}: has trained on {count:,} of the {len(here):,} images that are "
                "held out here: what val/... says is too good; give data.val_size and "
                "data.val_seed as they were there"
            )


def _keep(run_dir: Path, file: RecordFile, result: FitResult) -> None:
    """Writes predictions and result down."""
    import numpy as np

    buffer = io.BytesIO()
    classes = np.array(result.classes)
    np.savez(buffer, labels=result.labels, logits=result.logits, classes=classes)
    write_atomically(run_dir / "predictions.npz", buffer.getvalue())
    file.update(
        metrics=result.metrics,
        timings=result.timings,
        tested=result.tested,
        tested_because=result.tested_because,
        best_epoch=result.best_epoch,
        best_step=result.best_step,
        steps_planned=result.steps_planned,
        images_per_step=result.images_per_step,
        departures=tuple(result.departures),
        checkpoints=tuple(result.checkpoints),
    )


# --- endings --------------------------------------------------------------------------------------


def _finished(asked: Request, file: RecordFile | None) -> int:
    if file is None:
        return 0
    if not file.close("finished"):
        _say_unwritable(asked.run_dir, file.refused)
        return 1
    from cifar_lab.run.summary import print_summary

    try:
        print_summary(file.record, asked.run_dir)
    except (Exception, SystemExit) as error:  # as `| head`, upon which rich ends the process
        log.info("the closing table could not be printed (%s)", error)
    return 0


def _ended(asked: Request, file: RecordFile | None, error: BaseException) -> int:
    """Every ending but the good one: says it in the record and in one last line."""
    if isinstance(error, InputError) and file is None:
        raise error
    last_line, said = f"log: {asked.run_dir / 'train.log'}", None
    ending: Status
    if isinstance(error, Interrupted):
        status, ending, text = error.exit_status, "interrupted", None
        command = asked.continued_by or command_line(asked.overrides_with_folder)
        last_line, said = f"to continue: {command}", credentials.advice(asked.overrides)
    elif isinstance(error, Diverged):
        status, ending, text = 1, "diverged", str(error)
        log.error("diverged: %s", error)
    elif isinstance(error, InputError):  # found when the run was on its way: a metric's name
        status, ending, text = 1, "failed", str(error)
        log.error("%s", text)
    else:
        status, ending = 1, "failed"
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        if memory_ran_out(text):
            text = _shortened(text)
            # where it ran out is chance: a traceback of torch says nothing
            log.error(
                "%s; set a smaller data.batch_size (now %s), or trainer.precision=bf16-mixed",
                text,
                asked.config["data"]["batch_size"],
            )
        else:
            log.error("%s", text, exc_info=error)
    if file is not None and not file.close(ending, text):
        _say_unwritable(asked.run_dir, file.refused)
    elif file is None and processes.rank() == 0 and isinstance(error, OSError):
        _say_unwritable(asked.run_dir, error)
    if processes.rank() > 0:
        # Lightning kills all processes of a fit where one it started ends with another status:
        # the first rank says how it ended, and needs the time to write it down
        return 0 if isinstance(error, Interrupted) else status
    for line in filter(None, (said, last_line)):
        print(f"cifar_lab: {line}", file=sys.stderr)
    return status


def _shortened(text: str) -> str:
    """What torch says of memory, without its inventory of the device."""
    found = re.match(r".*?[Tt]ried to allocate [\d.]+ \w+", text)
    return found.group() if found else text


def _say_unwritable(run_dir: Path, reason: OSError | None) -> None:
    why = "" if reason is None else f" ({reason.strerror}): it doesn't say how this run ended"
    print(f"cifar_lab: {run_dir / FILE_NAME} can't be written{why}", file=sys.stderr)


def _leave_process_group() -> None:
    """Ends the distributed group of this run: another one in this process makes its own."""
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _say_once_if_the_log_fails() -> None:
    """One line on standard error where train.log can't be written, instead of many tracebacks."""
    said: list[str] = []
    for handler in logging.getLogger().handlers:
        if not isinstance(handler, logging.FileHandler):
            continue

        def refuse(record: logging.LogRecord, path: str = handler.baseFilename) -> None:
            if path not in said:
                said.append(path)
                print(f"cifar_lab: {path} can't be written: {sys.exc_info()[1]}", file=sys.stderr)

        handler.handleError = refuse  # type: ignore[method-assign]  # of this handler alone
