"""What a start means in a folder that holds an earlier one: go on, repeat its result, or refuse."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cifar_lab.config.targets import locate, shown
from cifar_lab.config.validate import accelerator
from cifar_lab.errors import InputError
from cifar_lab.records.digest import ACCELERATOR, config_digest, deciding_as_run, flatten
from cifar_lab.records.files import expanded
from cifar_lab.records.record import FILE_NAME, Init, RunRecord


@dataclass(frozen=True)
class Earlier:
    """The run that a folder holds.

    Attributes:
        record: its run.json; None where there is none.
        finished: it is this very run, if it was on these images, and nothing is left to do.
        checkpoint: where to go on; which of its checkpoints is whole is decided under the lock.
    """

    record: RunRecord | None = None
    finished: bool = False
    checkpoint: Path | None = None


def check_images(
    run_dir: Path, config: Mapping[str, Any], record: RunRecord | None, images: str | None
) -> None:
    """Refuses images that are not those of the folder's run; where they lie decides nothing.

    Args:
        run_dir: the folder.
        config: of this start, resolved.
        record: of the folder's run; one that ended before it had read any images fits all.
        images: as in `cifar_lab.records.record.Data.holds`.

    Raises:
        InputError: they are others.
    """
    if record is None or not record.data.digest or record.data.holds(images):
        return
    found = "the official images, not on this machine" if images is None else images[:12]
    raise InputError(
        f"{root_of(config)}: these images ({found}) are not those of the run in {run_dir} "
        f"({record.data.digest[:12]}, {root_of(record.config or {})} then); give those to go on "
        "with it or to see its result, or choose another hydra.run.dir for a run on these"
    )


def root_of(config: Mapping[str, Any]) -> str:
    """What a configuration says of where its images lie, as a person types it."""
    data = config.get("data") or {}
    if "root" in data:
        return f"data.root={'null' if data['root'] is None else data['root']}"
    return f"data={str(data.get('_target_')).rpartition('.')[2].lower()}"


def begun_with(run_dir: Path) -> Init | None:
    """The weights of ``init_from`` that the folder's run began with, and has a checkpoint since."""
    try:
        record = RunRecord.read(run_dir)
    except (OSError, ValueError):
        return None
    return record.init if any(path.exists() for path in _checkpoints(run_dir)) else None


def weights_that_are_gone(run_dir: Path, init_from: str | None) -> dict[str, Any] | None:
    """What ``init_from`` stood for when the folder's run began, if nothing lies there any more.

    None where something does, and where it's another place than the run's.
    """
    if init_from is None or begun_with(run_dir) is None:
        return None
    source = (RunRecord.read(run_dir).config or {}).get("init_from")
    if not isinstance(source, dict) or "path" not in source or "sha256" not in source:
        return None
    given, before = expanded(init_from).absolute(), Path(str(source["path"]))
    return source if before.is_relative_to(given) and not before.exists() else None


def _checkpoints(run_dir: Path) -> list[Path]:
    return [run_dir / "checkpoints" / name for name in ("last.ckpt", "previous.ckpt")]


def find(run_dir: Path, config: dict[str, Any]) -> Earlier:
    """What the folder holds for a run of this resolved configuration; `check_images` comes after.

    Raises:
        InputError: another run, or one that goes on, or ``resume`` forbids what would follow.
    """
    mode = config["resume"]
    if not (run_dir / FILE_NAME).exists():
        if any(run_dir.glob("checkpoints/*.ckpt")):
            # the next start would go on from them, whatever they are of
            raise InputError(
                f"hydra.run.dir={run_dir}: holds checkpoints and no {FILE_NAME} that says which "
                "run they are of; put it back, or choose another folder"
            )
        if mode == "must":
            raise InputError(
                f"resume=must: {run_dir} holds no run; give the folder of one with "
                "hydra.run.dir=..., or use resume=auto"
            )
        return Earlier()
    if mode == "never":
        raise InputError(
            f"resume=never: {run_dir} holds a run, and nothing is deleted; "
            "choose another hydra.run.dir, or resume=auto to continue it"
        )
    record = _read(run_dir)
    longer = _longer_by(record, run_dir, config)
    if record.status == "finished" and not longer:
        return Earlier(record, finished=True)
    if longer:
        print(f"cifar_lab: {run_dir}: {longer} more epochs for this run", file=sys.stderr)
    checkpoint = next((path for path in _checkpoints(run_dir) if path.exists()), None)
    if mode == "must" and checkpoint is None:
        raise InputError(
            f"resume=must: the run in {run_dir} has left no checkpoint; "
            "use resume=auto to start it over"
        )
    return Earlier(record, checkpoint=checkpoint)


def _read(run_dir: Path) -> RunRecord:
    try:
        record = RunRecord.read(run_dir)
    except (OSError, ValueError) as error:
        raise InputError(f"hydra.run.dir={run_dir}: its {FILE_NAME}: {error}") from error
    # one that this very process could not close (a full disk) is over
    if record.status == "running" and record.pid != os.getpid():
        raise InputError(
            f"hydra.run.dir={run_dir}: process {record.pid} on {record.host} "
            "is running in it; wait for it, or choose another folder"
        )
    return record


def _longer_by(record: RunRecord, run_dir: Path, config: dict[str, Any]) -> int:
    """Epochs that this configuration has more than the folder's, which else is the same.

    Raises:
        InputError: something else differs, or the run can't be made longer.
    """
    if record.config_digest == config_digest(config):
        return 0
    old, new = _deciding(record, config)
    differing = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    if not differing:
        return 0
    epochs_key = "trainer.max_epochs"
    before, now = old.get(epochs_key) or 0, new.get(epochs_key) or 0
    if differing == [epochs_key] and now > before > 0:
        if reason := _fixed_length(record, before, config):
            raise InputError(
                f"{epochs_key}={now}: {run_dir} holds a run of {before} epochs, {reason}; "
                f"choose another folder for one of {now}, or give {epochs_key}={before}"
            )
        return int(now - before)
    if (reason := _out_of_time(record, differing)) is not None:
        raise InputError(f"{_time_of(config)}: the run in {run_dir} {reason}")
    if "channels_last" in differing:  # which the data take over
        differing = [key for key in differing if key != "data.channels_last"]
    named = ", ".join(
        f"{key} ({shown(old.get(key))} there, {shown(new.get(key))} here)" for key in differing
    )
    why = ""
    if set(differing) <= _LAST_BITS:
        why = (
            "; sums are rounded in another order then, and each step's last bits would be others "
            "than the run's own"
        )
    raise InputError(
        f"hydra.run.dir={run_dir}: holds a run of another configuration; these differ: {named}"
        f"{why}; choose another folder, or give the same configuration to continue it"
    )


# What changes no more than how sums are rounded.
_LAST_BITS = {
    *("threads", "channels_last", "data.channels_last", "compile", "cuda_graph"),
    *("trainer.benchmark", "trainer.deterministic"),
}


def _deciding(
    record: RunRecord, config: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What decides the folder's run and this one, by what each came to."""
    before = record.config or {}
    names = [dict(flatten(each)).get(ACCELERATOR) for each in (before, config)]
    # under one name a run goes on wherever that leads to, and other devices are told of
    there, here = None, None
    if names[0] != names[1]:
        there, here = record.device, accelerator(str(names[1]))
    # one that didn't come to its end may yet have more time, or less
    ended = record.cut_short and _time_of(before) != _TIME
    old = deciding_as_run(before, device=there, cut_short=ended)
    return old, deciding_as_run(config, device=here, cut_short=ended)


_TIME = "trainer.max_time=null"


def _time_of(config: Mapping[str, Any]) -> str:
    bound = (config.get("trainer") or {}).get("max_time")
    return _TIME if bound is None else f"trainer.max_time={shown(bound)}"


def _out_of_time(record: RunRecord, differing: Sequence[str]) -> str | None:
    """Why a run that has ended by its time can't have more; None where that isn't the point."""
    if not all(key.startswith("trainer.max_time") for key in differing):
        return None
    given = _time_of(record.config or {})
    return (
        f"ended under {given}, after {record.steps} of {record.steps_planned} steps, and has been "
        "tested; what followed would be no run that had the time from the start; choose another "
        f"folder for that, or give {given} to see its result"
    )


def _fixed_length(record: RunRecord, epochs: int, config: dict[str, Any]) -> str | None:
    """Why the folder's run would be another one had it been longer; None where it would not."""
    from cifar_lab.training.schedules import depends_on_length

    target = str(config["scheduler"]["_target_"])
    if depends_on_length(locate("scheduler", target), config["scheduler"]):
        name = target.rpartition(".")[2]
        return f"whose learning rates depend on that number (scheduler={name})"
    if (key := next(_shares_of_the_fit(config), None)) is not None:
        return f"in which {key} is laid out by that number"
    if config["trainer"].get("max_steps", -1) != -1:
        return "which trainer.max_steps bounds as well"
    if record.status == "finished" and record.epochs < epochs:
        return f"which stopped early, after {record.epochs}"
    return None


def _shares_of_the_fit(config: Mapping[str, Any]) -> Iterator[str]:
    """Keys whose part of a fit lies elsewhere in a longer one."""
    for name, node in config["callbacks"].items():
        if not str(node.get("_target_")).startswith("cifar_lab."):
            continue
        for key in ("start_fraction", "power"):
            if node.get(key):
                yield f"callbacks.{name}.{key}"
        if "start_fraction" in node and node.get("every_steps"):  # and the last weights beside
            yield f"callbacks.{name}.every_steps"
    for name, group in (config["optimizer"].get("groups") or {}).items():
        if "until" in group:
            yield f"optimizer.groups.{name}.until"
