"""Every use of what Lightning keeps private: one function each, with version and reason.

Read in lightning 2.6.6; ``tests/training/test_lightning_internals.py`` fails where it changes.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer


def validation_may_follow(trainer: Trainer, batch_idx: int) -> bool:
    """Whether Lightning may validate after this batch of an epoch."""
    every = trainer.val_check_batch
    assert every is not None  # None is validation by wall time, which is refused
    # where something asked for a stop Lightning validates at once
    if trainer.is_last_batch or trainer.should_stop:
        return True
    return trainer.check_val_every_n_epoch is None or (batch_idx + 1) % int(every) == 0


def enter_validation(fit_loop: dict[str, Any]) -> None:
    """Makes the loops of a checkpoint begin with a whole validation, which they skip else."""
    # Lightning takes a validation up where a checkpoint shows it inside a step. Inside the first
    # one, all of it is repeated (lightning 2.6.6, _TrainingEpochLoop.advance, _EvaluationLoop)
    inside = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    fit_loop["epoch_loop.val_loop.batch_progress"] = {
        "total": dict(inside),
        "current": dict(inside),
        "is_last_batch": False,
    }
