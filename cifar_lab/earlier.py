"""What a start means in a folder that holds an earlier one: go on, repeat its result, or refuse."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cifar_lab import identity
from cifar_lab.errors import InputError
from cifar_lab.record import FILE_NAME, read_record
from cifar_lab.targets import locate


@dataclass(frozen=True)
class Earlier:
    """The run that a folder holds.

    Attributes:
        record: its run.json; empty where there is none.
        finished: it is this very run, and nothing is left to do.
        checkpoint: where to go on; which of its checkpoints is whole is decided under the lock.
    """

    record: dict[str, Any] = field(default_factory=dict)
    finished: bool = False
    checkpoint: Path | None = None


def look(run_dir: Path, config: dict[str, Any]) -> Earlier:
    """What the folder holds for a run of this resolved configuration.

    Raises:
        InputError: another run, or one that goes on, or ``resume`` forbids what would follow.
    """
    mode = config["resume"]
    if not (run_dir / FILE_NAME).exists():
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
    if record["status"] == "finished" and not longer:
        return Earlier(record, finished=True)
    if longer:
        print(f"cifar_lab: {run_dir}: {longer} more epochs for this run", file=sys.stderr)
    checkpoints = [run_dir / "checkpoints" / name for name in ("last.ckpt", "previous.ckpt")]
    checkpoint = next((path for path in checkpoints if path.exists()), None)
    if mode == "must" and checkpoint is None:
        raise InputError(
            f"resume=must: the run in {run_dir} has left no checkpoint; "
            "use resume=auto to start it over"
        )
    return Earlier(record, checkpoint=checkpoint)


def _read(run_dir: Path) -> dict[str, Any]:
    try:
        record = read_record(run_dir)
    except (OSError, ValueError) as error:
        raise InputError(f"hydra.run.dir={run_dir}: its {FILE_NAME}: {error}") from error
    # one that this very process could not close (a full disk) is over
    if record["status"] == "running" and record["pid"] != os.getpid():
        raise InputError(
            f"hydra.run.dir={run_dir}: process {record['pid']} on {record['host']} "
            "is running in it; wait for it, or choose another folder"
        )
    return record


def _longer_by(record: dict[str, Any], run_dir: Path, config: dict[str, Any]) -> int:
    """Epochs that this configuration has more than the folder's, which else is the same.

    Raises:
        InputError: something else differs, or the run can't be made longer.
    """
    if record["config_digest"] == identity.digest(config):
        return 0
    old, new = dict(identity.flatten(record["config"])), dict(identity.flatten(config))
    differing = [
        key
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key) and not identity.is_no_identity(key)
    ]
    epochs_key = "trainer.max_epochs"
    before, now = old.get(epochs_key) or 0, new.get(epochs_key) or 0
    if differing == [epochs_key] and now > before > 0:
        if reason := _fixed_length(record, before, config):
            raise InputError(
                f"{epochs_key}={now}: {run_dir} holds a run of {before} epochs, {reason}; "
                f"choose another folder for one of {now}, or give {epochs_key}={before}"
            )
        return int(now - before)
    raise InputError(
        f"hydra.run.dir={run_dir}: holds a run of another configuration; these differ: "
        + ", ".join(f"{key} ({old.get(key)} there, {new.get(key)} here)" for key in differing)
        + "; choose another folder, or give the same configuration to continue it"
    )


def _fixed_length(record: dict[str, Any], epochs: int, config: dict[str, Any]) -> str | None:
    """Why the folder's run would be another one had it been longer; None where it would not."""
    from cifar_lab.training.schedules import depends_on_length

    target = str(config["scheduler"]["_target_"])
    if depends_on_length(locate("scheduler", target)):
        name = target.rpartition(".")[2]
        return f"whose learning rates depend on that number (scheduler={name})"
    if config["trainer"].get("max_steps", -1) != -1:
        return "which trainer.max_steps bounds as well"
    if record["status"] == "finished" and record["epochs"] < epochs:
        return f"which stopped early, after {record['epochs']}"
    return None
