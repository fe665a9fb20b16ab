"""The command line, `python -m cifar_lab` and `cifar-lab`: compose, check, build, run, record.

Heavy imports stand below the signal handlers and below the composing: Ctrl-C counts from the first
instant on, and a misspelt key is answered before torch is loaded.
"""

from __future__ import annotations

import atexit
import gc
import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, cast

from cifar_lab import signals, streams
from cifar_lab.errors import InputError, Interrupted, JobFailed
from cifar_lab.records import credentials, processes

if TYPE_CHECKING:
    from omegaconf import DictConfig

STARTED = time.perf_counter()
_SWEEPS = {"-m", "--multirun"}
log = logging.getLogger("cifar_lab")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line (default: this process's) and returns its exit status.

    0: done. 1: failed or diverged. 2: wrong input. 130, 143: stopped by Ctrl-C, SIGTERM.
    """
    streams.open_missing()
    signals.install()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    credentials.learn_arguments(arguments)
    try:
        with signals.prevailing():
            status = _run(arguments)
        if (reason := streams.output_is_refused()) is not None:
            streams.say_refused(reason)
            # of a run or a sweep the folder holds everything; of --help and --cfg there is no other
            asked_for_text = not {a for a in arguments if a.startswith("-")} <= _SWEEPS
            return status or int(asked_for_text)
        return status
    except InputError as error:
        from cifar_lab.config.files import with_place

        line = with_place(str(error), arguments)
        print(f"cifar_lab: {credentials.hide(line)}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        from cifar_lab.records.record import command_line

        if not stop.told:  # before there was a folder: the same command is the one that continues
            if said := credentials.advice(arguments):
                print(f"cifar_lab: {said}", file=sys.stderr)
            print(f"cifar_lab: to continue: {command_line(arguments)}", file=sys.stderr)
        return stop.exit_status
    except BrokenPipeError:  # `--help | head`: the reader has what it wanted
        streams.discard_output()
        return 0
    except OSError:
        if (reason := streams.output_is_refused(ask=True)) is None:
            raise
        streams.say_refused(reason)
        return 1


def _run(arguments: list[str]) -> int:
    from cifar_lab.config.overrides import as_typed, flags_first

    world = processes.settle()
    arguments = flags_first(as_typed(arguments))
    if world.launcher == "lightning":
        arguments = without_repeated_folder(arguments)
    else:
        arguments = _checked(arguments)
    if any(argument.startswith("-") for argument in arguments):
        return _through_hydra(arguments)
    return _one_run(arguments)


def without_repeated_folder(arguments: list[str]) -> list[str]:
    """What the first process of a run gave, without the folder that Lightning adds in quotes.

    Which Hydra can't read where the folder's name holds a quote (lightning 2.6.6,
    ``_hydra_subprocess_cmd``).
    """
    folders = [i for i, a in enumerate(arguments) if a.startswith("hydra.run.dir=")]
    # by place: the two are the same text where the first needs quotes as well
    return [a for i, a in enumerate(arguments) if i not in folders[1:]]


def _checked(arguments: list[str]) -> list[str]:
    """The arguments, ``-m`` for ``hydra.mode=MULTIRUN``; InputError for what would be ignored."""
    from cifar_lab.config.messages import check_flags
    from cifar_lab.config.overrides import check_mode, check_renamed, check_unique

    check_flags(arguments)
    flags = {argument for argument in arguments if argument.startswith("-")}
    overrides = [argument for argument in arguments if argument not in flags]
    for override in overrides:
        check_renamed(override)
    credentials.check_none_masked(overrides)
    check_unique(overrides)
    if not flags and "hydra.mode=MULTIRUN" in overrides:
        overrides.remove("hydra.mode=MULTIRUN")
        flags = {"-m"}
    if flags <= _SWEEPS:
        check_mode(overrides, sweep=bool(flags))
        arguments = [*flags, *overrides]  # argparse refuses values on both sides of a flag
    if flags & _SWEEPS and (world := processes.find()).joined:
        raise InputError(
            f"-m: {world.launcher} started {world.size} processes ({world.said}), and a sweep is "
            "one, which starts those of its jobs itself; start a single one"
        )
    return arguments


def _one_run(overrides: list[str]) -> int:
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.utils import env_override
    from hydra.types import RunMode

    from cifar_lab.config.compose import (
        compose,
        path_at,
    )
    from cifar_lab.config.overrides import check_folder
    from cifar_lab.config.validate import (
        check_hydra_callbacks,
        check_not_a_sweep,
        check_shared_folder,
    )
    from cifar_lab.run.run import Request, run

    cfg = compose(overrides)
    if cfg.hydra.mode is RunMode.MULTIRUN:  # a file of the person's own says so
        return _through_hydra(["-m", *overrides])
    check_not_a_sweep(cfg)
    check_hydra_callbacks(cfg.hydra)
    check_shared_folder(cfg, processes.find())
    HydraConfig.instance().set_config(cfg)
    run_dir = check_folder("hydra.run.dir", path_at(cfg, "hydra.run.dir").absolute())
    with env_override(cfg.hydra.job.env_set):  # libraries read their variables when they load
        asked = Request(cfg, run_dir=run_dir, overrides=overrides, started=STARTED)
        return run(asked, before_training=_collect_again)


def _through_hydra(arguments: list[str]) -> int:
    """Sweeps, ``--help``, ``--cfg``, completion: Hydra's own main, our jobs and our errors."""
    if _begins_a_sweep(arguments):
        from cifar_lab.sweep import process

        process.warm_up()  # what it imports takes longer than everything up to the first job
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.utils import env_override

    from cifar_lab.config.compose import register
    from cifar_lab.config.messages import COMPOSING_RAISES, explain, is_about_input
    from cifar_lab.config.overrides import normalized, searchpath_override
    from cifar_lab.config.schema import CONFIG_NAME, conf_dir

    gc.enable()  # a sweep's supervisor lives long, and composes all the while
    register()
    GlobalHydra.instance().clear()
    here = os.getpid()
    alone: list[int] = []

    def one_job(cfg: DictConfig) -> None:
        alone.append(_hydra_job(cfg, begun_in=here))

    argv, arguments = sys.argv, normalized(arguments)
    sys.argv = [argv[0], *arguments, *searchpath_override(arguments)]
    program = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=CONFIG_NAME)
    try:
        with env_override({"HYDRA_FULL_ERROR": "1"}):  # Hydra raises what it would print
            program(one_job)()
    except JobFailed as error:  # of a sweeper that isn't ours: the first of them
        print(f"failed: {error}", file=sys.stderr)
        return 1
    except (*COMPOSING_RAISES, RuntimeError) as error:  # RuntimeError: of Hydra's plugins
        if not is_about_input(error):
            raise
        raise explain(error, [a for a in arguments if not a.startswith("-")]) from error
    except SystemExit as stop:  # argparse: an unknown flag; our sweeper: failed jobs
        return stop.code if isinstance(stop.code, int) else 1
    finally:
        sys.argv = argv
    return max(alone, default=0)


def _hydra_job(cfg: DictConfig, *, begun_in: int) -> int:
    """Hydra's task: one run, or a job of a sweep in whatever process its launcher chose.

    Args:
        cfg: composed.
        begun_in: the process in which Hydra was entered.

    Returns:
        the exit status of a single run.

    Raises:
        JobFailed: for a job of a sweep.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import open_dict, read_write

    from cifar_lab.config.compose import typed_overrides
    from cifar_lab.config.overrides import is_of_the_sweep
    from cifar_lab.config.written import hide_in_files
    from cifar_lab.run.hydra_job import learn_secrets
    from cifar_lab.run.run import Request, run

    hydra_cfg = cast("DictConfig", HydraConfig.get())
    learn_secrets(hydra_cfg)
    with read_write(hydra_cfg), open_dict(hydra_cfg):
        hydra_cfg.run.dir = hydra_cfg.runtime.output_dir  # Lightning gives it to its processes
    overrides = [o for o in typed_overrides(hydra_cfg) if not is_of_the_sweep(o)]
    run_dir = Path(hydra_cfg.runtime.output_dir)
    credentials.guard_streams()
    if hydra_cfg.output_subdir is not None:
        hide_in_files(run_dir / hydra_cfg.output_subdir)
    in_its_own = os.getpid() != begun_in
    if in_its_own and threading.current_thread() is threading.main_thread():
        signals.install()
    try:
        asked = Request(
            cfg, run_dir=run_dir, overrides=overrides, started=STARTED, in_hydra_job=True
        )
        if not in_its_own:
            gc.disable()
        status, reason = run(asked, before_training=_collect_again), ""
    except InputError as error:
        print(f"cifar_lab: {error}", file=sys.stderr)
        status, reason = 2, str(error)
    except Exception:
        log.exception("%s", run_dir)  # the launcher says no more of it than one line
        raise
    if status > 2 and not in_its_own:
        raise Interrupted(status - 128)
    if status and hydra_cfg.mode is not RunMode.RUN:
        raise JobFailed(reason or f"exit status {status}", str(run_dir))
    return status


def _begins_a_sweep(arguments: list[str]) -> bool:
    """Whether it is certain that jobs will run in slots, before anything is composed."""
    flags = {argument for argument in arguments if argument.startswith("-")}
    launchers = {a.partition("=")[2] for a in arguments if a.startswith("hydra/launcher=")}
    return flags <= _SWEEPS and launchers <= {"slots"}


def _collect_again() -> None:
    """Ends what `entry_point` began: what is imported by now is never gone through again."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def _import_from_here() -> None:
    """As ``python -m`` does: what lies in the working directory can be imported."""
    with suppress(FileNotFoundError):  # it has been removed
        here = os.getcwd()
        if not sys.flags.safe_path and not {here, ""} & set(sys.path):
            sys.path.insert(0, here)


def entry_point() -> NoReturn:
    """`main` in a process of its own, without what the interpreter does in vain.

    The garbage collector takes a quarter of the time that torch and lightning need to import; and
    at the end Python would take both apart again, for another 1.4 s.
    """
    gc.disable()
    _import_from_here()
    streams.open_missing()
    credentials.guard_streams()
    status = main()
    # what its own end does before that: threads, what others registered, the streams
    threading._shutdown()  # type: ignore[attr-defined]  # noqa: SLF001  (no public way)
    atexit._run_exitfuncs()  # noqa: SLF001  (no public way)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    os._exit(status)


if __name__ == "__main__":
    entry_point()
