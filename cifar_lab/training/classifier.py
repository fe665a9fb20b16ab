"""The LightningModule that wraps any network: one step for three splits, read once an epoch."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from cifar_lab.data.feed.epoch import Batch, Multistep, batches_in
from cifar_lab.errors import Diverged, InputError
from cifar_lab.model.tta import averaged_logits
from cifar_lab.training.distillation import Distillation
from cifar_lab.training.hard_examples import HardExamples
from cifar_lab.training.layout import layout_of, window_weight
from cifar_lab.training.lightning_internals import (
    add_logged_steps,
    callbacks_of,
    counted_step,
    datamodule_of,
)
from cifar_lab.training.momentum import keep_momentum_defined
from cifar_lab.training.optimizers import NamedParameters, OptimizerFactory
from cifar_lab.training.schedules import FactorSchedule, TorchSchedule, end_of
from cifar_lab.training.steps.cuda_graph import GraphedStep
from cifar_lab.training.steps.multistep import (
    SupportsMultistep,
    followers,
    steps_per_call,
    translate_progress,
)

log = logging.getLogger("cifar_lab")


class Classifier(LightningModule):
    """Trains, validates and tests ``network``: images (B, 3, H, W) -> logits (B, C).

    Loss and accuracy are summed on the device and read when a split ends, so that nothing within
    an epoch waits for the device. Logged: ``train/loss``, ``train/acc``, ``lr`` (of the epoch's
    last step), ``val/loss``, ``val/acc``, ``test/loss``, ``test/acc``; accuracies are fractions.
    The loss is computed of logits in float32 or wider, and summed in float64 (float32 on MPS, which
    has no other), whatever ``trainer.precision`` is.

    Attributes:
        test_logits: (N, C) float32 on the CPU, after a test; in the order of the loader.
        test_labels: (N,) int64 on the CPU, likewise.
        frozen: the layers that stay in evaluation mode.
        keep_result: called with test/loss and test/acc as soon as they are known.

    Args:
        network: any module that maps images to logits.
        loss: (logits (B, C), labels (B,) int64 or (B, C) float) -> scalar mean over the batch.
        optimizer: given the named parameters, makes the optimizer; a factory knows groups of them.
        schedule: (steps made, steps of the fit) -> factor on the learning rate, or one of torch's.
        config: the run's resolved configuration, kept in checkpoints: plain values only.
        frozen: layers of the network that stay in evaluation mode.
        tta: the views of an image that the test averages (`cifar_lab.model.tta`); the metric
            ``test/acc_without_tta`` is then of the images as they are.
        distillation: what is minimized in place of the loss on the labels alone, which is what
            ``train/loss`` stays.
        hard_examples: which images of a batch train, and are counted in ``train/...``; None: all.
    """

    def __init__(
        self,
        *,
        network: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        optimizer: Callable[[NamedParameters], Optimizer] | OptimizerFactory,
        schedule: Callable[[int, int], float] | TorchSchedule,
        config: dict[str, Any],
        frozen: Sequence[nn.Module] = (),
        tta: str = "none",
        distillation: Distillation | None = None,
        hard_examples: HardExamples | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.frozen = list(frozen)
        self._tta = tta
        self.distillation = distillation
        self.hard_examples = hard_examples
        self._loss = loss
        self._make_optimizer = (
            optimizer if isinstance(optimizer, OptimizerFactory) else OptimizerFactory(optimizer)
        )
        self._schedule = schedule
        # plain values: a checkpoint with objects inside can't be loaded with weights_only=True
        self.save_hyperparameters({"config": config}, logger=False)
        # of loss, correct images and images; those of a fit stay one tensor: CUDA graphs add to it
        self._train_sums, self._held_out_sums = torch.zeros(3), torch.zeros(3)
        self._first_bad, self._step_number = torch.tensor(-1), torch.tensor(0)
        self._lr: float | Tensor = math.nan
        self._left_out: set[str] = set()
        self._epoch_open = False
        self._with_epoch: dict[str, float] = {}
        self._plotted: dict[str, float] = {}
        self._of_epoch: dict[str, float] = {}  # that ends
        self._metrics_before: dict[str, float] = {}  # as a checkpoint carries them
        self._validated = False  # since the schedule's last step
        self._carried: Tensor | None = None
        self._multistep: Multistep | None = None
        self._graphed_step_type: type[GraphedStep] | None = None
        self._graphed_step: GraphedStep | None = None
        self._followers: list[SupportsMultistep] = []
        self._test_outputs: list[Batch] = []
        self._without_tta = torch.zeros(2)  # correct images, and images
        # the parameters that are trained for a share of the fit, with the step that is not theirs
        self._ending: list[tuple[int, list[nn.Parameter]]] = []
        self.test_logits = torch.empty(0, 0)
        self.test_labels = torch.empty(0, dtype=torch.int64)
        self.keep_result: Callable[[dict[str, float]], None] = lambda means: None

    @property
    def parameter_count(self) -> int:
        """Parameters of the network, frozen ones included."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    @property
    def proxy(self) -> nn.Module | None:
        """The network that chooses the images, where there is one."""
        return None if self.hard_examples is None else self.hard_examples.proxy

    @property
    def frozen_parameter_count(self) -> int:
        """Those that no step changes."""
        return sum(p.numel() for p in self.network.parameters() if not p.requires_grad)

    def train(self, mode: bool = True) -> Self:
        """As torch's, without the frozen layers: their statistics stay what they are."""
        super().train(mode)
        for layer in getattr(self, "frozen", ()):
            layer.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C) of normalized images (B, 3, H, W)."""
        logits: Tensor = self.network(images)
        return logits

    def train_on(
        self, multistep: Multistep | None, *, graphed_step: type[GraphedStep] | None = None
    ) -> None:
        """Says how the training batches will come: several for each call, or None for single ones.

        Args:
            graphed_step: what makes each step of a call at once; None: it is made as it is written.
        """
        self._multistep = multistep
        self.automatic_optimization = multistep is None
        self._graphed_step_type = None if multistep is None else graphed_step

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The optimizer, and the schedule: of the step, or of the epoch."""
        optimizer = self._make_optimizer(self)
        keep_momentum_defined(optimizer)
        layout = layout_of(self.trainer)
        if isinstance(self._schedule, TorchSchedule):
            scheduler = self._schedule(optimizer, steps=layout.steps, epochs=layout.epochs)
            # not Lightning's way to step on a plateau: see `lr_scheduler_step`
            return {
                "optimizer": optimizer,
                "lr_scheduler": {
                    "scheduler": scheduler,
                    "interval": self._schedule.interval,
                    "reduce_on_plateau": False,
                },
            }
        scheduler = FactorSchedule(optimizer, self._schedule, layout.steps)
        self._ending = sorted(
            (
                (end_of(group, layout.steps), group["params"])
                for group in optimizer.param_groups
                if "until" in group
            ),
            key=lambda ending: ending[0],
        )
        if not self.automatic_optimization:  # Lightning warns that it ignores the interval then
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler}}
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    @property
    def steps_by_epoch(self) -> bool:
        """Whether the schedule is stepped after an epoch, and not after a step."""
        return isinstance(self._schedule, TorchSchedule) and self._schedule.interval == "epoch"

    @property
    def wants_single_steps(self) -> str | None:
        """Why Lightning has to see every optimizer step; None where it needn't."""
        if isinstance(self._schedule, TorchSchedule):
            return "scheduler is one of torch's, which Lightning steps"
        return None

    def lr_scheduler_step(self, scheduler: LRScheduler, metric: Any | None) -> None:
        """Steps after an optimizer step; the end of an epoch is `_step_by_epoch`'s."""
        if not self.steps_by_epoch:
            super().lr_scheduler_step(scheduler, metric)

    def _step_by_epoch(self) -> None:
        """Steps a schedule of the epoch, before the epoch's checkpoint is written.

        Lightning steps on a plateau after that (2.6.6, _FitLoop.on_advance_end): a run that is
        continued from there would have one step fewer.
        """
        scheduler: Any = self.trainer.lr_scheduler_configs[0].scheduler
        assert isinstance(self._schedule, TorchSchedule)
        monitor = self._schedule.monitor
        if monitor is None or not isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step()
        elif self._validated or not monitor.startswith("val/"):  # only what is new
            known: dict[str, Any] = {**self._metrics_before, **self.trainer.callback_metrics}
            if monitor not in known:
                raise InputError(
                    f"scheduler.monitor={monitor}: nothing logged it; there are "
                    f"{', '.join(sorted(known))}"
                )
            # a metric of one's own may differ from process to process; all must decide alike
            scheduler.step(float(self.trainer.strategy.broadcast(float(known[monitor]))))
        self._validated = False

    def on_fit_start(self) -> None:
        """The loss gets its own precision back; the teachers come to the device."""
        self._widen_loss()
        if self.distillation is not None:
            self.distillation.to(self.device)

    def on_test_start(self) -> None:
        """The loss gets its own precision back."""
        self._widen_loss()

    def _widen_loss(self) -> None:
        # bf16-true and 16-true convert its class weights with the network; its logits are wider
        if isinstance(self._loss, nn.Module) and self.dtype in (torch.bfloat16, torch.float16):
            self._loss.float()

    # --- the step ------------------------------------------------------------------------------

    def _loss_and_logits(self, batch: Batch, sums: Tensor) -> tuple[Tensor, Tensor]:
        images, labels = batch
        logits = self(images)
        return self._loss_of(logits, labels, sums), logits

    def loss_again(self, batch: Batch) -> Tensor:
        """What a step minimizes, of its batch once more: a forward pass that no metric counts."""
        if self.hard_examples is not None:
            batch = self.hard_examples.chosen  # what the first pass has chosen
        images, labels = batch
        logits = self(images)
        return self._objective(self._wide_loss(logits, labels), logits, images)

    def _objective(self, loss: Tensor, logits: Tensor, images: Tensor) -> Tensor:
        """The loss on the labels, or what a teacher makes of it."""
        if self.distillation is None:
            return loss
        return self.distillation(loss, logits, images)

    def _wide_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        wide = torch.promote_types(logits.dtype, torch.float32)  # a loss in bfloat16 has 3 digits
        return self._loss(logits.to(wide), labels.to(wide) if labels.ndim > 1 else labels)

    def _loss_of(self, logits: Tensor, labels: Tensor, sums: Tensor) -> Tensor:
        loss = self._wide_loss(logits, labels)
        with torch.no_grad():
            # mixed labels count as the class that holds the larger share
            classes = labels if labels.ndim == 1 else labels.argmax(1)
            correct = (logits.argmax(1) == classes).sum()
            count = len(classes)
            # each in the sums' own type: stacked as they are they would all get the narrowest, and
            # 387 is 388 in bfloat16. Added one by one, or `new_full` for a number: no copy from
            # the CPU at a step
            exact = sums.dtype
            total = loss.to(exact) * count
            sums += torch.stack((total, correct.to(exact), total.new_full((), count)))
        return loss

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """The mean loss of one batch; or, of stacked ones, all optimizer steps and no loss."""
        if self._multistep is None:
            self._end_training()
            self._lr = _rate_of(self.trainer.optimizers[0])
            return self._training_loss(batch, self.global_step)
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        assert isinstance(optimizer, LightningOptimizer)
        assert isinstance(scheduler, FactorSchedule)
        for images, labels in zip(*batch, strict=True):
            self._lr = _rate_of(optimizer)
            if self._graphed_step is None:
                self._end_training()
                self._eager_step(optimizer, (images, labels))
            else:
                with counted_step(optimizer):
                    self._graphed_step(images, labels)
            scheduler.step()
            for callback in self._followers:
                callback.after_step(self.trainer, self)
        # the number that loggers are given counts steps; Lightning adds one for this call
        add_logged_steps(self.trainer, batches_in(batch) - 1)
        return None

    def _end_training(self) -> None:
        """Computes no gradients any more of parameters whose share of the fit is over.

        Their rate is 0 from there on (`FactorSchedule`): the result is the same, at less work.
        Several processes and a recorded step count on the gradients that there were at the start.
        """
        if self.trainer.world_size > 1 or self._graphed_step_type is not None:
            return
        while self._ending and self.global_step >= self._ending[0][0]:
            for parameter in self._ending.pop(0)[1]:
                parameter.requires_grad_(False)
                parameter.grad = None

    def _training_loss(self, batch: Batch, step: int | Tensor) -> Tensor:
        if self.hard_examples is not None:
            batch = self.hard_examples.choose(batch)
        loss, logits = self._loss_and_logits(batch, self._train_sums)
        loss = self._objective(loss, logits, batch[0])
        with torch.no_grad():
            bad = ~torch.isfinite(loss) & (self._first_bad < 0)
            self._first_bad.copy_(torch.where(bad, step, self._first_bad))
        return loss

    def _eager_step(self, optimizer: LightningOptimizer, batch: Batch) -> None:
        loss = self._training_loss(batch, self.global_step)
        optimizer.zero_grad()
        # mixed precision is for the forward pass; around a whole call Lightning can't know
        with torch.autocast(self.device.type, enabled=False):
            self.manual_backward(loss)
            optimizer.step()
        torch.clear_autocast_cache()  # of casts of the weights, which have changed

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Backpropagates; of accumulated batches each image of the optimizer step counts alike."""
        if self.trainer.accumulate_grad_batches > 1:
            loss = loss * window_weight(self.trainer)
        super().backward(loss, *args, **kwargs)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips as Lightning does, and a fused optimizer's gradients under bf16-mixed too.

        Lightning refuses those (2.6.6, MixedPrecision.clip_gradients), for a fused step takes the
        scaler's factor out itself, after the clipping; bfloat16 has no scaler. Gradients of
        parameters whose share of the fit is over have no part in the norm.
        """
        for end, parameters in self._ending:
            if self.global_step >= end:
                for parameter in parameters:
                    parameter.grad = None
        precision = self.trainer.precision_plugin
        if isinstance(precision, MixedPrecision) and precision.scaler is None:
            algorithm = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
            Precision.clip_gradients(precision, optimizer, gradient_clip_val or 0.0, algorithm)
        else:
            super().configure_gradient_clipping(
                optimizer, gradient_clip_val, gradient_clip_algorithm
            )

    def _capturable_step(self, images: Tensor, labels: Tensor) -> None:
        """`_eager_step` for a `GraphedStep`: nothing in it changes in Python between steps."""
        loss = self._training_loss((images, labels), self._step_number)
        self._step_number += 1
        with torch.autocast(self.device.type, enabled=False):
            self.manual_backward(loss)
            self.trainer.optimizers[0].step()
        torch.clear_autocast_cache()

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Adds one batch to the sums; its logits (B, C) are the ``outputs`` of callbacks' hooks."""
        _, logits = self._loss_and_logits(batch, self._held_out_sums)
        return logits

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """As `validation_step`, and keeps the logits."""
        images, labels = batch
        plain, logits = averaged_logits(self, images, self._tta)
        self._loss_of(logits, labels, self._held_out_sums)
        if self._tta != "none":
            correct = (plain.argmax(1) == labels).sum()
            self._without_tta += torch.stack((correct, correct.new_full((), len(labels))))
        # a copy: in a CUDA graph the next batch's logits come to lie where these do
        kept = logits.to(torch.float32, copy=True)
        self._test_outputs.append((kept, batch[1]))
        return kept

    # --- what is read, once a split --------------------------------------------------------------

    def _zeros(self) -> Tensor:
        # float64 where the device has it: 50,000 additions in float32 lose the sixth digit (counts
        # of images are exact in it up to 16 million)
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        return torch.zeros(3, dtype=dtype, device=self.device)

    def _means(self, split: str) -> dict[str, float]:
        # every rank must come to the same numbers: what follows from them is decided by each alone
        strategy = self.trainer.strategy
        if split == "train":
            # of a copy: where there are several processes it is summed in place
            sums = strategy.reduce(self._train_sums.clone(), reduce_op="sum")
            assert isinstance(sums, Tensor)
            loss_sum, correct, count = sums.tolist()
        else:
            # numbers, not the tensor: that is pickled, and unpickled on the GPU of the first
            loss_sum, correct, count = strategy.broadcast(self._held_out_sums.tolist())
        if count == 0:
            return {}
        return {f"{split}/loss": loss_sum / count, f"{split}/acc": correct / count}

    def _log(self, metrics: dict[str, float], *, logger: bool | None = None) -> None:
        # as float64 tensors: Lightning turns plain numbers into float32, and 0.175 into 0.17499999
        for name, value in metrics.items():
            super().log(name, torch.tensor(value, dtype=torch.float64), logger=logger)

    def log(self, name: str, *arguments: Any, **options: Any) -> None:
        """A callback's metric, as Lightning's; one under a name of the run's own is left out."""
        if self._is_free(name):
            super().log(name, *arguments, **options)

    def _is_free(self, name: str) -> bool:
        # Lightning would log the mean of both
        if name != "lr" and not re.fullmatch("(train|val|test)/(loss|acc|acc_without_tta)", name):
            return True
        if name not in self._left_out:
            self._left_out.add(name)
            log.warning("%s: a callback's is left out, for the run logs its own; rename it", name)
        return False

    def running_train(self) -> Tensor:
        """(3,) on the device: this epoch's sum of losses, correct images, images so far."""
        return self._train_sums

    def on_train_start(self) -> None:
        """Takes up the sums of an epoch that a checkpoint cut in two: it isn't started again."""
        self._first_bad = torch.tensor(-1, device=self.device)
        self._step_number = torch.tensor(self.global_step, device=self.device)
        self._train_sums = self._zeros()
        self._epoch_open = self._carried is not None
        if self._carried is not None:
            self._train_sums += self._carried.to(self._train_sums)
            self._carried = None
        self._followers = followers(callbacks_of(self.trainer))
        if self.hard_examples is not None:
            self.hard_examples.start(self.device, layout_of(self.trainer).steps)
        if self._graphed_step_type is not None:
            self._graphed_step = self._graphed_step_type(
                step=self._capturable_step,
                optimizer=self.trainer.optimizers[0],
                batch_size=datamodule_of(self.trainer).batch_size,
                device=self.device,
            )

    def on_train_epoch_start(self) -> None:
        """Begins the epoch's sums."""
        self._train_sums.zero_()
        self._epoch_open = True

    def on_train_end(self) -> None:
        """The recording's memory is for others now."""
        self._graphed_step = None

    def on_validation_model_zero_grad(self) -> None:
        """Keeps the gradients through a validation: `GradNorm` reads them where the epoch ends."""

    def on_validation_epoch_start(self) -> None:
        """Begins the validation's sums."""
        self.assert_finite()
        self._held_out_sums = self._zeros()

    def on_validation_epoch_end(self) -> None:
        """Logs val/loss and val/acc."""
        means = self._means("val")
        self._log(means)
        self._validated = not self.trainer.sanity_checking
        if means and not math.isfinite(means["val/loss"]):
            raise self._diverged("the validation loss", self.global_step)

    def log_training(self) -> None:
        """Logs train/loss, train/acc and lr of the epoch that ends, which callbacks see then."""
        self._of_epoch = {**self._means("train"), "lr": float(self._lr)}
        self._log(self._of_epoch, logger=False)

    def on_train_epoch_end(self) -> None:
        """Logs what callbacks have added to the epoch's metrics, and writes its curves."""
        self.assert_finite()
        if not self._of_epoch:
            self.log_training()
        self._log(self._with_epoch, logger=False)
        metrics = {**self._with_epoch, **self._of_epoch}
        curves = {"epoch": self.current_epoch, **metrics, **self._plotted}
        self._with_epoch, self._plotted, self._epoch_open = {}, {}, False
        self._of_epoch = {}
        # Lightning hands them to the loggers after the epoch's checkpoint is written: a crash in
        # between would leave a run that goes on behind the epoch, with a hole in its curves
        for logger in self.loggers:
            # the n-th step is number n - 1, as Lightning counts for loggers
            logger.log_metrics(curves, self.global_step - 1)
            logger.save()
        if self.steps_by_epoch:
            self._step_by_epoch()

    def log_with_epoch(self, metrics: dict[str, float]) -> None:
        """Has a callback's numbers logged in one row with those of the epoch that ends."""
        self._with_epoch.update((k, v) for k, v in metrics.items() if self._is_free(k))

    def plot_with_epoch(self, values: dict[str, float]) -> None:
        """The same for numbers that loggers alone want, and the record does not."""
        self._plotted.update(values)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the sums of an unfinished epoch."""
        checkpoint["train_sums"] = (
            self._train_sums.to("cpu", copy=True) if self._epoch_open else None
        )
        checkpoint["lr"] = float(self._lr)
        checkpoint["validated"] = self._validated
        checkpoint["steps_per_call"] = steps_per_call(self._multistep)
        if self.hard_examples is not None:
            checkpoint["hard_examples"] = self.hard_examples.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the sums of an unfinished epoch up again."""
        translate_progress(checkpoint, self._multistep)
        self._carried = checkpoint.get("train_sums")
        self._lr = checkpoint.get("lr", math.nan)
        self._validated = checkpoint.get("validated", False)
        if self.hard_examples is not None:
            self.hard_examples.load_state_dict(checkpoint["hard_examples"])
        self._metrics_before = checkpoint.get("run", {}).get("metrics", {})

    def on_test_epoch_start(self) -> None:
        """Begins the test's sums."""
        self._held_out_sums = self._zeros()
        self._without_tta = torch.zeros(2, device=self.device)
        self._test_outputs = []

    def on_test_epoch_end(self) -> None:
        """Logs test/loss and test/acc; the logits move to the CPU at once."""
        means = self._means("test")
        correct, count = self._without_tta.tolist()
        if count:
            means["test/acc_without_tta"] = correct / count
        logits, labels = zip(*self._test_outputs, strict=True)
        self.test_logits, self.test_labels = torch.cat(logits).cpu(), torch.cat(labels).cpu()
        self._test_outputs = []
        self.keep_result(means)  # before any logger or callback gets to see it, and may fail
        self._log(means)

    # --- divergence ----------------------------------------------------------------------------

    def assert_finite(self) -> None:
        """Raises `Diverged` when a training loss or a weight was NaN or infinite.

        Waits for the device: called where an epoch ends and before a checkpoint is written.
        """
        if (step := int(self._first_bad)) >= 0:
            raise self._diverged("the training loss", step)
        # the largest weight: one read, and exact in every precision; a NaN is passed on
        weights = list(self.parameters())
        if self.hard_examples is not None:  # of NaN the losses choose no images
            weights += self.hard_examples.proxy.parameters()
        if not math.isfinite(nn.utils.get_total_norm(weights, math.inf)):
            raise self._diverged("a weight", self.global_step)

    def _diverged(self, what: str, step: int) -> Diverged:
        lr = self.trainer.optimizers[0].defaults.get("lr")
        return Diverged(
            f"{what} became NaN or infinite at step {step} (epoch {self.current_epoch + 1}); "
            f"try a lower optimizer.lr (it is {lr}), scheduler=onecycle, which warms up, "
            "or trainer.gradient_clip_val=1"
        )


def _rate_of(optimizer: Optimizer | LightningOptimizer) -> float | Tensor:
    # a copy of a tensor, which schedulers change in place; read where it is logged: nothing waits
    rate: float | Tensor = optimizer.param_groups[0]["lr"]
    return rate.clone() if isinstance(rate, Tensor) else rate
