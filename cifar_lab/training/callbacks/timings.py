"""Where the time of a fit goes."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from cifar_lab.data.feed.epoch import images_in
from cifar_lab.training.classifier import Classifier
from cifar_lab.training.steps.multistep import SupportsMultistep

# The first steps pay for allocation, algorithm choice and compilation: no rate counts them.
WARMUP_STEPS = 20


class Timings(Callback, SupportsMultistep):
    """Read once an epoch: nothing here waits for the device inside one.

    ``images_per_s`` is training images over training time, without validation, checkpoints and the
    first 20 steps of the process; ``step_ms`` the same per optimizer step; ``data_wait_ms`` the
    part of it between batches. A batch of a size that comes for the first time (the short last
    one) is left out too: kernels are chosen, or compiled, for it. ``fit_s`` adds up over the starts
    of a run that was continued, and leaves out what a crash threw away; the rates are of the last
    start that made enough steps.

    Args:
        started: the `time.perf_counter` from which the start-up counts.
    """

    def __init__(self, *, started: float) -> None:
        self._process_started = started
        self._global_step = 0
        self._steps = 0  # optimizer steps of this process
        self._counted = 0  # of these, the ones after the warm-up
        self._images = 0
        self._train_s = 0.0
        self._wait_s = 0.0
        self._world_size = 1
        self._sizes: set[torch.Size] = set()  # of the batches so far
        self._first_of_its_size = False
        self._since: float | None = None
        self._batch_ended: float | None = None
        self._fit_started: float | None = None
        self._earlier_fit_s = 0.0
        self._earlier_rates: dict[str, float | None] = {}
        self._first_step_s: float | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the fit's clock."""
        self._fit_started = time.perf_counter()
        self._world_size = trainer.world_size
        self._global_step = trainer.global_step

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The training clock runs."""
        self._resume_clock()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Counts the wait since the batch before; the clock runs again after a checkpoint."""
        if self._since is None:
            self._resume_clock()
        if self._batch_ended is not None and self._steps >= WARMUP_STEPS:
            self._wait_s += time.perf_counter() - self._batch_ended
        images, _ = batch
        self._first_of_its_size = images.shape not in self._sizes
        self._sizes.add(images.shape)
        if self._first_of_its_size:
            self._stop_clock(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts steps and images once the warm-up is over."""
        counts = self._steps >= WARMUP_STEPS
        # a batch is no step where batches are accumulated, and many where they come stacked
        made = trainer.global_step - self._global_step
        self._global_step += made
        self._steps += made
        if counts and self._first_of_its_size:
            _synchronize(pl_module)
            self._since = time.perf_counter()
        elif counts:
            self._counted += made
            self._images += images_in(batch)
        elif made and (self._first_step_s is None or self._steps >= WARMUP_STEPS):
            _synchronize(pl_module)
            if self._first_step_s is None:
                self._first_step_s = time.perf_counter() - self._process_started
            self._since = time.perf_counter()
        self._batch_ended = time.perf_counter()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The training clock stops until the next batch."""
        self._stop_clock(pl_module)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """The training clock stops until the next batch; what was measured so far travels along."""
        self._stop_clock(pl_module)
        checkpoint["timings"] = {"fit_s": self._fit_s(), "rates": self._rates()}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Goes on from the start before."""
        earlier = checkpoint["timings"]
        self._earlier_fit_s, self._earlier_rates = earlier["fit_s"], earlier["rates"]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the rate with the epoch's metrics; its curves hold the other figures too."""
        self._stop_clock(pl_module)
        assert isinstance(pl_module, Classifier)
        pl_module.log_training()
        if self._images:
            rates = {key: value for key, value in self._rates().items() if value is not None}
            pl_module.log_with_epoch({"images_per_s": rates.pop("images_per_s")})
            rates["peak_memory_mb"] = _peak_memory_mb()
            pl_module.plot_with_epoch({f"timings/{key}": value for key, value in rates.items()})

    def summary(self) -> dict[str, float | None]:
        """The record's ``timings``; rates are null until more than 20 steps were made."""
        return {
            "fit_s": round(self._fit_s(), 3),
            **self._rates(),
            "start_to_first_step_s": self._first_step_s,
            "peak_memory_mb": _peak_memory_mb(),
        }

    def _fit_s(self) -> float:
        # a fit that was over before it was taken up again (stopped in its test) takes no time
        now = 0.0 if self._fit_started is None else time.perf_counter() - self._fit_started
        return self._earlier_fit_s + now

    def _rates(self) -> dict[str, float | None]:
        if self._counted == 0 or self._train_s <= 0:
            unknown = dict.fromkeys(("images_per_s", "step_ms", "data_wait_ms"))
            return {**unknown, **self._earlier_rates}
        return {
            "images_per_s": self._images * self._world_size / self._train_s,
            "step_ms": 1e3 * self._train_s / self._counted,
            "data_wait_ms": 1e3 * self._wait_s / self._counted,
        }

    def _resume_clock(self) -> None:
        self._since = time.perf_counter()
        self._batch_ended = None

    def _stop_clock(self, pl_module: LightningModule) -> None:
        if self._since is not None and self._counted:
            _synchronize(pl_module)
            self._train_s += time.perf_counter() - self._since
        self._since = None


def _synchronize(pl_module: LightningModule) -> None:
    if pl_module.device.type == "cuda":
        torch.cuda.synchronize(pl_module.device)
    elif pl_module.device.type == "mps":
        torch.mps.synchronize()


def _peak_memory_mb() -> float:
    """Of the GPU's memory what torch had allocated at most, else the process's largest size."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak) / (2**20 if sys.platform == "darwin" else 2**10)
