"""A finished run measured again: with the batches, the device and the precision of its own test."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import lightning.pytorch as lightning
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import optimize, stats
from torch import Tensor, nn
from torchmetrics.functional.classification import (
    multiclass_calibration_error,
    multiclass_precision,
    multiclass_recall,
)

from cifar_lab.config.targets import check_targets_of_record
from cifar_lab.config.validate import accelerator
from cifar_lab.data.datamodule import DataModule
from cifar_lab.errors import InputError
from cifar_lab.run.load import NO_NUMBER, Run, settings_of_record
from cifar_lab.run.parts import build_part
from cifar_lab.training.callbacks.prediction_figures import confusion_matrix
from cifar_lab.training.classifier import Classifier
from cifar_lab.training.library_logging import route_library_logging
from cifar_lab.training.steps.compile import prepare

Tta = Literal["none", "flip", "flip+shift"]
BINS = 15  # of confidence, as Guo et al. (arXiv:1706.04599) have them
LEVEL = 0.95
# Arguments of the Trainer that have a part in what a test computes
_OF_THE_TEST = (
    *("precision", "inference_mode", "deterministic", "benchmark"),
    *("limit_test_batches", "fast_dev_run"),
)


@dataclass(frozen=True, eq=False)
class Outputs:
    """What a network said to a split.

    Attributes:
        logits: (N, C) float32 on the CPU; of test-time augmentation their mean over the views, of
            an ensemble the logarithm of the mean probabilities.
        labels: (N,) int64.
        loss: the run's own, mean over the images; None of an ensemble.
        accuracy: share of the images whose largest logit is the label's.
    """

    logits: Tensor
    labels: Tensor
    loss: float | None
    accuracy: float


@dataclass(frozen=True)
class ClassResult:
    """Of one class.

    Attributes:
        recall: share of its images that were answered right: the class's accuracy. None: no image.
        precision: share of the answers with its name that were right. None: it was never answered.
    """

    name: str
    images: int
    recall: float | None
    precision: float | None


@dataclass(frozen=True)
class Bin:
    """Answers of like confidence: between ``low`` and ``high``."""

    low: float
    high: float
    images: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Calibration:
    """How far probabilities can be taken at their word.

    Attributes:
        ece: expected calibration error of `BINS` equal bins of the largest probability (l1 norm).
        cross_entropy: mean over the images, in nats.
    """

    ece: float
    cross_entropy: float
    bins: tuple[Bin, ...]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A run, or an ensemble, on some images.

    Attributes:
        name: of the run's folder, or ``ensemble of N``.
        accuracy: fraction; with ``low`` and ``high``, its 95% interval (Wilson's), which is of
            other images from where these came from, not of other seeds.
        temperature: by which the logits are divided for `calibrated`; fitted on the held-out images
            alone. None: nothing was held out, or these images are not here.
        matrix: (C, C) counts: rows are true classes, columns answered ones.
        notes: what a reader of the numbers has to know, a line each.
    """

    name: str
    images: int
    accuracy: float
    low: float
    high: float
    loss: float | None
    classes: tuple[ClassResult, ...]
    calibration: Calibration
    temperature: float | None
    calibrated: Calibration | None
    matrix: NDArray[np.int64] = field(repr=False)
    outputs: Outputs = field(repr=False)
    notes: tuple[str, ...] = ()


class Tester:
    """Repeats a run's own test, on its images or on others.

    Attributes:
        notes: where it can't be just as it was.
    """

    def __init__(self, run: Run, *, tta: Tta | None = None) -> None:
        route_library_logging()
        self.notes: list[str] = []
        self._folder = run.folder
        with settings_of_record(run.folder):
            self._prepare(run, tta)

    def _prepare(self, run: Run, tta: Tta | None) -> None:
        config = run.config
        self._settings = dict(config.get("trainer") or {})
        kind = self._kind()
        network = copy.deepcopy(run.model.network)
        channels_last, mode = bool(config.get("channels_last")), str(config.get("compile", "none"))
        try:
            self._channels_last = prepare(
                network, device=kind, channels_last=channels_last, mode=mode
            )
        except InputError as error:
            self.notes.append(f"not compiled here as the run was: {error}")
            self._channels_last = prepare(
                network, device=kind, channels_last=channels_last, mode="none"
            )
        self._classifier = Classifier(
            network=network,
            loss=_loss(run),
            optimizer=_never,
            schedule=_never,
            config={},
            tta=tta or str(run.config.get("tta", "none")),
        )
        self._accelerator = {"cuda": "gpu"}.get(kind, kind)
        # the last bits of a sum depend on their number
        self._threads = config.get("threads") if kind == "cpu" else None
        self._matmul_precision = str(config.get("matmul_precision", "highest"))

    def _kind(self) -> str:
        asked = str(self._settings.get("accelerator", "auto"))
        try:
            kind = accelerator(asked)
        except InputError:
            kind = accelerator("auto")
            self.notes.append(f"the run was on {asked}, which is not here: tested on {kind}")
        precision = str(self._settings.get("precision", "32-true"))
        lacking = (kind == "cpu" and precision.startswith(("16", "transformer"))) or (
            kind == "mps" and precision.startswith(("64", "bf16", "transformer"))
        )
        if lacking:
            self._settings["precision"] = "32-true"
            self.notes.append(f"{precision}, the run's precision, is not to be had on {kind}: 32")
        return kind

    def test(self, data: DataModule, *, split: Literal["test", "val"] = "test") -> Outputs:
        """The network's answers to a split of opened data, in stored order.

        Raises:
            InputError: some are no numbers.
        """
        settings = {k: v for k, v in self._settings.items() if k in _OF_THE_TEST}
        if split == "val":
            for limit in ("limit_test_batches", "fast_dev_run"):
                settings.pop(limit, None)
        with settings_of_record(self._folder):
            trainer = lightning.Trainer(
                accelerator=self._accelerator,
                devices=1,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                **settings,
            )
        data.trainer = trainer
        data.channels_last = data.channels_last and self._channels_last
        loader = data.test_dataloader() if split == "test" else data.val_dataloader()
        means: dict[str, float] = {}
        self._classifier.keep_result = means.update
        threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
        try:
            with settings_of_record(self._folder):
                torch.set_num_threads(self._threads or threads)
                torch.set_float32_matmul_precision(self._matmul_precision)
            trainer.test(self._classifier, dataloaders=loader, verbose=False)
        finally:
            torch.set_num_threads(threads)
            torch.set_float32_matmul_precision(precision)
            data.trainer = None
        logits = self._classifier.test_logits.clone()
        if wrong := int((~logits.isfinite().all(1)).sum()):
            raise InputError(
                f"{self._folder}: to {wrong} of {len(logits)} images {NO_NUMBER}; nothing can be "
                "measured with that"
            )
        return Outputs(
            logits=logits,
            labels=self._classifier.test_labels.clone(),
            loss=means["test/loss"],
            accuracy=means["test/acc"],
        )


def _never(*_: Any) -> Any:
    raise AssertionError("a test makes no step")


def _loss(run: Run) -> Callable[[Tensor, Tensor], Tensor]:
    node = run.config.get("loss")
    if node is None:
        return nn.CrossEntropyLoss()
    check_targets_of_record({"loss": node}, also=run.trust)
    loss = build_part("loss", node)
    return cast("Callable[[Tensor, Tensor], Tensor]", loss)


def evaluate(
    run: Run,
    data: DataModule,
    *,
    held_out: DataModule | None = None,
    tta: Tta | None = None,
) -> Evaluation:
    """Measures a run.

    Args:
        run: as `load_run` gives it.
        data: opened; its test split is measured on.
        held_out: the run's own data, of which the held-out images fit the temperature.
        tta: test-time augmentation (`cifar_lab.model.tta`); None: as the run was tested.
    """
    tester = Tester(run, tta=tta)
    outputs = tester.test(data)
    val = None
    if held_out is not None and held_out.held_out:
        val = tester.test(held_out, split="val")
    return summarize(
        str(run.folder.name), outputs, run.classes, held_out=val, notes=tuple(tester.notes)
    )


def summarize(
    name: str,
    outputs: Outputs,
    classes: Sequence[str],
    *,
    held_out: Outputs | None = None,
    notes: tuple[str, ...] = (),
) -> Evaluation:
    """All that follows from the answers to the test images, and to the held-out ones.

    Args:
        name: of the run.
        outputs: of the test images.
        classes: names, in the order of the logits.
        held_out: of the validation images, by which a temperature is fitted; None: there are none.
        notes: what a reader must know of the images.
    """
    logits, labels, count = outputs.logits, outputs.labels, len(outputs.labels)
    right = int((logits.argmax(1) == labels).sum())
    interval = stats.binomtest(right, count).proportion_ci(LEVEL, method="wilson")
    temperature = None if held_out is None else fit_temperature(held_out.logits, held_out.labels)
    return Evaluation(
        name=name,
        images=count,
        accuracy=outputs.accuracy,
        low=float(interval.low),
        high=float(interval.high),
        loss=outputs.loss,
        classes=_by_class(logits, labels, classes),
        calibration=calibration(logits, labels),
        temperature=temperature,
        calibrated=None if temperature is None else calibration(logits / temperature, labels),
        matrix=confusion_matrix(logits, labels),
        outputs=outputs,
        notes=notes,
    )


def ensemble(evaluated: Sequence[Outputs]) -> Outputs:
    """The mean of the probabilities that several runs gave to the same images.

    Args:
        evaluated: one for each run, at least one; logits (N, C).

    Raises:
        InputError: the labels differ: they are not the same images.
    """
    first = evaluated[0]
    for other in evaluated[1:]:
        same = other.logits.shape == first.logits.shape and torch.equal(other.labels, first.labels)
        if not same:
            raise InputError("these runs were tested on other images: they are no ensemble")
    said = torch.stack([outputs.logits.double().log_softmax(1) for outputs in evaluated])
    logits = said.logsumexp(0) - float(np.log(len(evaluated)))
    right = int((logits.argmax(1) == first.labels).sum())
    return Outputs(logits.float(), first.labels, None, right / len(first.labels))


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """T > 0 for which ``softmax(logits / T)`` has the least cross-entropy (arXiv:1706.04599).

    Between 0.05 and 20, which bounds it where every answer is right.
    """
    wide = logits.double()

    def loss(log_t: float) -> float:
        return float(nn.functional.cross_entropy(wide / float(np.exp(log_t)), labels))

    bounds = (float(np.log(0.05)), float(np.log(20)))
    found = optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def calibration(logits: Tensor, labels: Tensor) -> Calibration:
    """Expected calibration error, cross-entropy, and what the reliability figure shows.

    Args:
        logits: (N, C).
        labels: (N,) int64.
    """
    probabilities = logits.double().softmax(1)
    error = multiclass_calibration_error(
        probabilities, labels, num_classes=logits.shape[1], n_bins=BINS, norm="l1"
    )
    confidence, said = (t.numpy() for t in probabilities.max(1))
    right = said == labels.numpy()
    edges = np.linspace(0, 1, BINS + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, BINS - 1)
    bins = []
    for index in range(BINS):
        inside = place == index
        some = bool(inside.any())
        bins.append(
            Bin(
                low=float(edges[index]),
                high=float(edges[index + 1]),
                images=int(inside.sum()),
                confidence=float(confidence[inside].mean()) if some else None,
                accuracy=float(right[inside].mean()) if some else None,
            )
        )
    cross_entropy = float(nn.functional.cross_entropy(logits.double(), labels))
    return Calibration(float(error), cross_entropy, tuple(bins))


def _by_class(logits: Tensor, labels: Tensor, names: Sequence[str]) -> tuple[ClassResult, ...]:
    count, said = logits.shape[1], logits.argmax(1)
    recall = multiclass_recall(said, labels, num_classes=count, average="none")
    precision = multiclass_precision(said, labels, num_classes=count, average="none")
    of, answered = (t.bincount(minlength=count) for t in (labels, said))
    return tuple(
        ClassResult(
            name=name,
            images=int(of[i]),
            recall=float(recall[i]) if of[i] else None,
            precision=float(precision[i]) if answered[i] else None,
        )
        for i, name in enumerate(names)
    )
