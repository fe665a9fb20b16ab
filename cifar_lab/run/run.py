"""One job: a checked configuration becomes parts, the parts run in a folder, the record says how.

The door and the sweeps run the same `Job`, so that a run in a sweep is the same run.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from cifar_lab import signals
from cifar_lab.config.compose import run_config
from cifar_lab.config.schema import CONFIG_NAME
from cifar_lab.errors import Diverged, InputError, Interrupted
from cifar_lab.records import processes
from cifar_lab.records.digest import config_digest
from cifar_lab.records.environment import git_state, package_versions
from cifar_lab.records.files import remove_leftovers
from cifar_lab.records.processes import rank
from cifar_lab.records.record import FILE_NAME, Record, command_line, made_otherwise, now, starts_of
from cifar_lab.run.build import build, build_data, device_name, spoken
from cifar_lab.run.resume import Earlier, check_images, look, root_of

if TYPE_CHECKING:
    from filelock import BaseFileLock
    from omegaconf import DictConfig

    from cifar_lab.training.fit import Parts

T = TypeVar("T")
log = logging.getLogger("cifar_lab")


class Job:
    """A composed configuration and the folder it runs in.

    Args:
        cfg: composed, with or without Hydra's node.
        run_dir: absolute; may hold an earlier start of the same run.
        overrides: as typed.
        started: `time.perf_counter` when the process began.
        images: the digest of the images that a sweep planned it with; None: whichever are found.

    Raises:
        InputError: as `processes.settle`.
    """

    def __init__(
        self,
        cfg: DictConfig,
        *,
        run_dir: Path,
        overrides: list[str],
        started: float,
        images: str | None = None,
    ) -> None:
        self.cfg = cfg
        self.config = run_config(cfg)
        self.run_dir = run_dir
        self.overrides = overrides
        self.started = started
        self.images = images
        self.world = processes.settle()
        self.resume_from: Path | None = None
        self._parts: Parts | None = None
        self._record_before: dict[str, Any] = {}
        self._lock: BaseFileLock | None = None

    def finished_before(self) -> bool:
        """Whether the folder holds this very run, finished: its result is printed again.

        Sets `resume_from` where it holds an unfinished one; `build` compares that one's images.

        Raises:
            InputError: the folder holds another run, or one that goes on, or ``resume`` forbids it,
                or its images are others or can't be found.
        """
        if self.world.launcher == "lightning":
            self.resume_from = processes.resume_from()
            return False
        earlier = self._look()
        if earlier.finished:
            self._check_images_of_finished(earlier.record)
            self._say_of_finished(earlier.record)
            from cifar_lab.run.summary import print_summary

            if rank() == 0:
                print_summary(earlier.record, self.run_dir)
            return True
        self._record_before, self.resume_from = earlier.record, earlier.checkpoint
        return False

    def _check_images_of_finished(self, record: dict[str, Any]) -> None:
        try:
            with spoken():
                found = build_data(self.cfg).at_hand()
        except InputError as error:
            # a mistyped root must not be answered with the accuracy on the images of another
            raise InputError(
                f"{error}; the finished run in {self.run_dir} can't be compared with that, and its "
                f"result stays in its {FILE_NAME}"
            ) from error
        check_images(self.run_dir, self.config, record, None if found is None else found.digest)

    def _say_of_finished(self, record: dict[str, Any]) -> None:
        here = {"git": git_state(Path(__file__).parents[1]), "packages": package_versions()}
        if others := made_otherwise(record, here):
            print(
                f"cifar_lab: {self.run_dir}: this run was made with {others}; delete its folder or "
                "choose another hydra.run.dir to run it anew",
                file=sys.stderr,
            )
        from cifar_lab.data.copies import warnings_of

        for line in warnings_of(record.get("data") or {}):
            print(f"cifar_lab: {root_of(self.config)}: {line}", file=sys.stderr)

    def _look(self) -> Earlier:
        found: Earlier | InputError | None = None
        if rank() == 0:
            try:
                found = look(self.run_dir, self.config)
            except InputError as error:
                found = error
        found = self._as_the_first(found)
        if isinstance(found, InputError):
            raise found
        assert found is not None
        return found

    def _as_the_first(self, value: T) -> T:
        """The first process's value, in all that torchrun or srun started: there they meet."""
        if not self.world.joined:
            return value
        self.build()
        assert self._parts is not None
        strategy = self._parts.trainer.strategy
        strategy.setup_environment()
        return strategy.broadcast(value)

    def make_folder(self) -> None:
        """Makes the run folder; InputError where it can't be written."""
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            probe = self.run_dir / f".probe.{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise InputError(
                f"hydra.run.dir={self.run_dir}: can't be written ({error.strerror}); "
                "choose a folder that can"
            ) from error

    def build(self) -> None:
        """Checks, then builds every part (`cifar_lab.run.build`).

        Raises:
            InputError: what can't be built, or images that are not those of the folder's run.
        """
        if self._parts is None:
            self._parts = build(self.cfg, self.run_dir)
        found = self._parts.data.dataset.digest
        if self.images is not None and found != self.images:
            raise InputError(
                f"{root_of(self.config)}: these images ({found[:12]}) are not those of when the "
                f"sweep began ({self.images[:12]}); put those back, or start it again"
            )
        check_images(self.run_dir, self.config, self._record_before, found)

    @property
    def data_facts(self) -> dict[str, Any]:
        """What the record says of the data; known once it is built."""
        assert self._parts is not None, "build() comes first"
        return self._parts.data.facts

    @property
    def data_warnings(self) -> list[str]:
        """What makes accuracies on these images too high, one line each."""
        from cifar_lab.data.copies import warnings_of

        return [f"{root_of(self.config)}: {line}" for line in warnings_of(self.data_facts)]

    # --- running ---------------------------------------------------------------------------------

    def run(self) -> int:
        """Fits and tests in the folder, and returns the exit status; the record says the same."""
        from cifar_lab.training import fit

        assert self._parts is not None, "build() comes first"
        _say_once_if_the_log_fails()
        record = None
        try:
            if rank() == 0:
                self._take_folder()
                record = self._open_record()
                self._warn(record)
            self.resume_from = self._as_the_first(self.resume_from)
            with processes.first_of(self._overrides_with_folder(), self.resume_from):
                fit.run(
                    self._parts,
                    record=record,
                    run_dir=self.run_dir,
                    started=self.started,
                    resume_from=self.resume_from,
                )
                _leave_process_group()
            with signals.shielded():  # it is done: nothing to interrupt any more
                return self._finished(record)
        except BaseException as error:
            with signals.shielded():
                return self._ended(record, error)
        finally:
            if self._lock is not None:
                self._lock.release()

    def _take_folder(self) -> None:
        """Locks the folder, clears what a crash left half-written, and picks the checkpoint.

        Raises:
            InputError: another process has it, or its checkpoints are damaged.
        """
        from filelock import FileLock, Timeout

        from cifar_lab.records.checkpoint_file import newest_usable, remove_partial

        lock = FileLock(self.run_dir / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise InputError(
                f"hydra.run.dir={self.run_dir}: another process is running in it"
            ) from error
        self._lock = lock
        remove_leftovers(self.run_dir)
        remove_partial(self.run_dir)
        if self._record_before:
            self.resume_from = newest_usable(self.run_dir)

    def _open_record(self) -> Record:
        import torch

        assert self._parts is not None
        parts = self._parts
        before = self._record_before if self.resume_from is not None else {}
        start = {
            "started": now(),
            "command": command_line(self.overrides),
            "resumed_from_step": _step_of(self.resume_from),
            "git": dict(git_state(Path(__file__).parents[1])),
            "packages": package_versions(),
            "device": device_name(parts.trainer),
            "threads": torch.get_num_threads(),
            "host": socket.gethostname(),
        }
        kept = ("command", "git", "packages", "device", "threads", "host")
        return Record(
            self.run_dir,
            {
                **{name: start[name] for name in kept},
                "overrides": self.overrides,
                "config_digest": config_digest(self.config),
                "config": self.config,
                "seed": self.config["seed"],
                "resumed": self.resume_from is not None,
                "started": before.get("started", start["started"]),
                # also of one that was killed before its first checkpoint: it may have logged
                "starts": [*starts_of(self._record_before), start],
                "tested": None,
                "data": self.data_facts,
                "parameters": sum(p.numel() for p in parts.classifier.network.parameters()),
                "epochs": 0,
                "steps": 0,
                "timings": {},
                "metrics": {},
                "checkpoints": [],
            },
        )

    def _warn(self, record: Record) -> None:
        """Says what a reader of the numbers has to know; on standard error and in train.log."""
        *before, start = record.fields["starts"]
        others = made_otherwise({"starts": before}, start)
        if self.resume_from is not None and others:
            # not refused: a comment may have changed, and hours of work would be lost; every start
            # is on record
            log.warning("%s: goes on, though begun with %s", self.run_dir, others)
        for line in self.data_warnings:
            log.warning("%s", line)

    def _finished(self, record: Record | None) -> int:
        if record is None:
            return 0
        if not record.close("finished"):
            self._say_unwritable(record.refused)
            return 1
        from cifar_lab.run.summary import print_summary

        try:
            print_summary(record.fields, self.run_dir)
        except (Exception, SystemExit) as error:  # as `| head`, upon which rich ends the process
            log.info("the closing table could not be printed (%s)", error)
        return 0

    def _ended(self, record: Record | None, error: BaseException) -> int:
        """Every ending but the good one: says it in the record and in one last line."""
        if isinstance(error, InputError) and record is None:
            raise error
        where = f"log: {self.run_dir / 'train.log'}"
        if isinstance(error, Interrupted):
            status, ending, text = error.exit_status, "interrupted", None
            last_line = f"to continue: {self._resume_command()}"
        elif isinstance(error, Diverged):
            status, ending, text = 1, "diverged", str(error)
            log.error("diverged: %s", error)
            last_line = where
        else:
            status, ending = 1, "failed"
            text = f"{type(error).__name__}: {error}".splitlines()[0]
            log.error("%s", text, exc_info=error)
            last_line = where
        if record is not None and not record.close(ending, text):
            self._say_unwritable(record.refused)
        elif record is None and rank() == 0 and isinstance(error, OSError):
            self._say_unwritable(error)
        if rank() > 0:
            # Lightning kills all processes of a fit where one it started ends with another status:
            # the first rank says how it ended, and needs the time to write it down
            return 0 if isinstance(error, Interrupted) else status
        print(f"cifar_lab: {last_line}", file=sys.stderr)
        return status

    def _say_unwritable(self, reason: OSError | None) -> None:
        why = "" if reason is None else f" ({reason.strerror}): it doesn't say how this run ended"
        print(f"cifar_lab: {self.run_dir / FILE_NAME} can't be written{why}", file=sys.stderr)

    def _resume_command(self) -> str:
        return command_line(self._overrides_with_folder())

    def _overrides_with_folder(self) -> list[str]:
        kept = [
            override
            for override in self.overrides
            if not override.lstrip("+").startswith(("hydra.run.dir=", "resume="))
        ]
        return [*kept, f"hydra.run.dir={self.run_dir}"]


def _step_of(checkpoint: Path | None) -> int:
    """The optimizer steps behind a checkpoint, which has been found whole; 0 without one."""
    if checkpoint is None:
        return 0
    import torch

    # mapped: its tensors are not read
    found = torch.load(checkpoint, mmap=True, map_location="cpu", weights_only=True)
    return int(found["global_step"])


def run_under_hydra(job: Job) -> int:
    """Runs a built job as Hydra runs one: callbacks, train.log and ``.hydra/`` in its folder."""
    from hydra._internal.callbacks import Callbacks
    from hydra.core.config_loader import ConfigLoader
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.utils import run_job
    from hydra.types import HydraContext, RunMode
    from omegaconf import open_dict, read_write

    cfg = job.cfg
    with read_write(cfg.hydra), open_dict(cfg.hydra):
        cfg.hydra.mode = RunMode.RUN
        cfg.hydra.run.dir = str(job.run_dir)
        kept = cfg.hydra.output_subdir
        if rank() > 0 or (kept is not None and (job.run_dir / kept).exists()):
            cfg.hydra.output_subdir = None  # the first start's is never overwritten
    callbacks = Callbacks(cfg)
    # a process that a sweep started has composed nothing; running a job doesn't either
    known = GlobalHydra.instance().is_initialized()
    loader = cast(ConfigLoader, GlobalHydra.instance().config_loader() if known else None)
    callbacks.on_run_start(config=cfg, config_name=CONFIG_NAME)
    try:
        done = run_job(
            task_function=lambda _: job.run(),
            config=cfg,
            job_dir_key="hydra.run.dir",
            job_subdir_key=None,
            hydra_context=HydraContext(config_loader=loader, callbacks=callbacks),
            configure_logging=rank() == 0,
        )
    except OSError as error:  # .hydra or train.log: run() itself lets nothing out
        print(
            f"cifar_lab: {error.filename or job.run_dir} can't be written ({error.strerror}); "
            "free some space there, or choose another hydra.run.dir",
            file=sys.stderr,
        )
        return 1
    callbacks.on_run_end(config=cfg, config_name=CONFIG_NAME, job_return=done)
    status: int = done.return_value
    return status


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
