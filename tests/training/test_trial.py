"""What doesn't fit is refused before a run begins; what fits is tried without leaving a trace."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cifar_lab.data.augment import Pipeline, Stage, Transform
from cifar_lab.data.dataset import Dataset
from cifar_lab.data.synthetic import make_synthetic
from cifar_lab.errors import InputError
from cifar_lab.model.cnn import CNN
from cifar_lab.model.resnet import ResNet
from cifar_lab.training.callbacks.rng import rng_state
from cifar_lab.training.layout import fingerprint
from cifar_lab.training.trial import (
    Expected,
    try_augmentation,
    try_loss,
    try_network,
    try_transform,
)
from tests.conftest import TINY

Lab = Callable[..., tuple[int, str, str]]


def expected(**changes: Any) -> Expected:
    settings: dict[str, Any] = {
        "size": (3, 32, 32),
        "classes": 10,
        "batch_size": 8,
        "device": "cpu",
        "precision": "32-true",
    }
    return Expected(**{**settings, **changes})


class Linear(nn.Module):
    """A linear network whose outputs a function changes."""

    def __init__(self, change: Callable[[Tensor], Any] = lambda x: x, outputs: int = 10) -> None:
        super().__init__()
        self.linear = nn.Linear(3072, outputs)
        self.change = change

    def forward(self, images: Tensor) -> Any:
        return self.change(self.linear(images.flatten(1)))


class InTraining(Linear):
    """Gives auxiliary outputs in training alone, as GoogLeNet does."""

    def forward(self, images: Tensor) -> Any:
        outputs = super().forward(images)
        return SimpleNamespace(logits=outputs) if self.training else outputs


class Broken(Linear):
    def forward(self, images: Tensor) -> Any:
        raise RuntimeError("too small for me\nand more")


class Hidden(Linear):
    """Keeps a layer in a plain list, where nothing trains it or keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(10, 10)]

    def forward(self, images: Tensor) -> Any:
        return self.layers[0](super().forward(images))


class Passing(Linear):
    """Its mean moves in training, and no checkpoint has it."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()), persistent=False)

    def forward(self, images: Tensor) -> Any:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * images.mean()
        return super().forward(images - self.mean)


class Late(Linear):
    """Makes a layer when it is first called."""

    def forward(self, images: Tensor) -> Any:
        if not hasattr(self, "late"):
            self.late = nn.Linear(10, 10)
        return self.late(super().forward(images))


class LateBuffer(Linear):
    """Has a buffer from its first call on, which whoever reads its weights has not."""

    mean: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", None)

    def forward(self, images: Tensor) -> Any:
        if self.mean is None:
            self.mean = images.mean()
        return super().forward(images - self.mean)


class Cached(Linear):
    """Makes its positions where it first sees a size."""

    positions: Tensor

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__(outputs=num_classes)
        self.register_buffer("positions", torch.zeros(0), persistent=False)

    def forward(self, images: Tensor) -> Any:
        if len(self.positions) != images.shape[-1]:
            self.positions = torch.linspace(0, 1, images.shape[-1], device=images.device)
        return super().forward(images + self.positions)


class InPlace(Linear):
    def forward(self, images: Tensor) -> Any:
        return super().forward(images.mul_(2))


class Checkpointed(Linear):
    """Computes a part of its forward pass again in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(10, 10)

    def forward(self, images: Tensor) -> Any:
        first = super().forward(images)
        return checkpoint(self.second, first, use_reentrant=True)


class Stateful(Linear):
    """Has an extra state beside its tensors."""

    def __init__(self, state: Any) -> None:
        super().__init__()
        self.state = state

    def get_extra_state(self) -> Any:
        return self.state

    def set_extra_state(self, state: Any) -> None:
        self.state = state


class Ghost(Linear):
    """Cuts each batch into four parts, so that two images are too few."""

    def forward(self, images: Tensor) -> Any:
        parts = images.view(4, -1, *images.shape[1:])
        return super().forward(parts.flatten(0, 1))


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "too many": (
        lambda: Linear(outputs=1000),
        "gives 1000 outputs, and the data has 10 classes; x",
    ),
    "too few": (lambda: Linear(outputs=7), "gives 7 outputs, and the data has 10 classes; x"),
    "a tuple": (lambda: Linear(lambda y: (y, y)), "gives a tuple in training; it must give one"),
    "a tuple in training": (InTraining, "gives a SimpleNamespace in training"),
    "maps": (lambda: Linear(lambda y: y[..., None, None]), "gives a tensor (2, 10, 1, 1) for 2"),
    "one row": (lambda: Linear(lambda y: y.mean(0, keepdim=True)), "gives a tensor (1, 10) for 2"),
    "classes": (lambda: Linear(lambda y: y.argmax(1)), "gives a tensor (2,) for 2 images"),
    "integers": (lambda: Linear(lambda y: y.long()), "gives torch.int64; it must give one tensor"),
    "no numbers": (lambda: Linear(lambda y: y / 0), "gives NaN or infinite outputs before its"),
    "probabilities": (lambda: Linear(lambda y: y.softmax(1)), "leave its softmax out"),
    "broken": (
        Broken,
        "fails on images of 3x32x32 in training (RuntimeError: too small for me, te",
    ),
    "nothing to train": (nn.Flatten, "has no parameters to train"),
    "all frozen": (lambda: Linear().requires_grad_(False), "has no parameters to train"),
    "lazy": (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(10)), "has lazy layers"),
    "detached": (lambda: Linear(Tensor.detach), "that no parameter which is trained has a part in"),
    "a hidden layer": (Hidden, "uses a parameter (10, 10) that it doesn't have"),
    "a passing buffer": (Passing, "mean changes and is in no checkpoint"),
    "a late layer": (Late, "makes late.weight in its forward pass; make it in __init__"),
    "a late buffer": (LateBuffer, "makes mean in its forward pass; make it in __init__"),
    "images in place": (InPlace, "its images are changed in place"),
    "a lost gradient": (lambda: Linear(lambda y: y.exp().mul_(2)), "by an inplace operation"),
    "a state of objects": (lambda: Stateful(Path), "a checkpoint can't keep its state"),
    "another type": (lambda: Linear().double(), "fails on images of 3x32x32 in training"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_network_that_does_not_fit_is_told_in_one_line(kind: str) -> None:
    make, reason = REFUSED[kind]
    with pytest.raises(InputError) as refused:
        try_network(make(), expected(), name="model._target_=Net", advice="x")
    assert str(refused.value).startswith("model._target_=Net: ")
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


def flat(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), *layers)


FITTING: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "cnn": (lambda: CNN(width=4, dropout=0.5), {}),
    "resnet": (lambda: ResNet(num_blocks=[1, 1], width=4), {}),
    "three": (lambda: ResNet(num_blocks=[1], width=4, num_classes=3), {"classes": 3}),
    "log-probabilities": (lambda: Linear(lambda y: y.log_softmax(1)), {}),
    "parts of a batch": (Ghost, {}),
    "a script": (
        lambda: torch.jit.script(flat(nn.BatchNorm1d(3072), nn.Linear(3072, 10))),
        {},
    ),
    "float64": (lambda: Linear().double(), {"precision": "64-true"}),
    "bfloat16": (lambda: Linear().bfloat16(), {"precision": "bf16-true"}),
    "a checkpointed segment": (Checkpointed, {}),
    "a cache that grows": (Cached, {}),
    "an extra state": (lambda: Stateful({"steps": 3}), {}),
    "a norm of its own": (lambda: flat(nn.utils.weight_norm(nn.Linear(3072, 10))), {}),
    "a norm with a state": (lambda: flat(nn.utils.spectral_norm(nn.Linear(3072, 10))), {}),
}


@pytest.mark.filterwarnings("ignore")  # torch calls some of these deprecated
@pytest.mark.parametrize("kind", FITTING)
def test_a_network_that_fits_is_as_it_was_and_so_are_the_generators(kind: str) -> None:
    make, changes = FITTING[kind]
    network = make()
    list(network.modules())[-1].train(False)  # part of it is meant to stay as it is
    state, rng = copy.deepcopy(network.state_dict()), rng_state()
    modes = [module.training for module in network.modules()]
    outputs = try_network(network, expected(**changes), name="Net")
    assert outputs is not None
    assert outputs.shape == (2, changes.get("classes", 10))
    assert outputs.dtype == torch.float32
    after = network.state_dict()
    torch.testing.assert_close(dict(after), dict(state), rtol=0, atol=0)
    assert [module.training for module in network.modules()] == modes
    assert all(p.grad is None for p in network.parameters())
    after = rng_state()
    assert torch.equal(rng.pop("torch"), after.pop("torch"))
    assert rng == after


def test_a_network_for_a_gpu_alone_is_not_judged_on_the_cpu() -> None:
    def only_there(_: Tensor) -> Tensor:
        raise NotImplementedError("no kernel for the 'CPU' backend")

    assert try_network(Linear(only_there), expected(device="cuda"), name="Net") is None
    with pytest.raises(InputError, match="no kernel"):
        try_network(Linear(only_there), expected(device="cpu"), name="Net")


def test_weights_are_told_apart_beside_an_extra_state() -> None:
    network = Stateful({"steps": 3})
    before = fingerprint(network)
    assert fingerprint(network) == before
    with torch.no_grad():
        network.linear.bias.add_(1)
    assert fingerprint(network) != before


# --- the augmentation -----------------------------------------------------------------------------

Pair = tuple[Tensor, Tensor]


class Own(Transform):
    """Adds noise, all of it drawn; or what a function makes of images, labels and draws."""

    stage = Stage.UNIT

    def __init__(
        self,
        change: Callable[[Tensor, Tensor], Pair] = lambda x, y: (x, y),
        draws: Callable[[int, torch.Generator], Any] = lambda n, g: torch.rand(n, generator=g),
    ) -> None:
        self.change = change
        self.draws = draws

    def draw(self, count: int, generator: torch.Generator, size: int) -> Any:
        return self.draws(count, generator)

    def apply(self, images: Tensor, labels: Tensor, draws: Tensor) -> Pair:
        return self.change(images + draws.view(-1, 1, 1, 1), labels)


AUGMENTATIONS: dict[str, tuple[Own, str]] = {
    "half": (Own(lambda x, y: (x.half(), y)), "images of torch.float16"),
    "double": (Own(lambda x, y: (x.double(), y)), "images of torch.float64"),
    "float labels": (Own(lambda x, y: (x, y.float())), "labels (2,) of torch.float32"),
    "other labels": (Own(lambda x, y: (x, y + 1)), "the labels [1, 10]; must lie in 0..9"),
    "no numbers": (Own(lambda x, y: (x / 0, y)), "give NaN or infinite pixels"),
    "its own chance": (Own(lambda x, y: (x + torch.rand(()), y)), "for the same draws"),
    "smaller": (Own(lambda x, y: (x[..., :16], y)), "each must keep the shape of a batch"),
    "few draws": (Own(draws=lambda n, g: torch.rand(1, generator=g)), "gives (1,); it must give"),
    "no draws": (Own(draws=lambda n, g: None), "gives NoneType; it must give one tensor"),
}


def synthetic(count: int = 12) -> Dataset:
    return make_synthetic(train_size=count, test_size=count, data_seed=0)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_an_augmentation_that_does_not_fit_is_told_in_one_line(name: str) -> None:
    transform, reason = AUGMENTATIONS[name]
    rng = torch.get_rng_state()
    with pytest.raises(InputError) as refused:
        try_augmentation(Pipeline(transforms={"own": transform}), synthetic())
    assert str(refused.value).startswith("transforms")
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)
    assert torch.equal(torch.get_rng_state(), rng)


@pytest.mark.parametrize("labels", [lambda y: y, lambda y: nn.functional.one_hot(y, 10).float()])
def test_an_augmentation_that_fits_passes(labels: Callable[[Tensor], Tensor]) -> None:
    fits = Pipeline(transforms={"own": Own(lambda x, y: (x, labels(y)))})
    try_augmentation(fits, synthetic())


IMAGE_SIZE = (3, 32, 32)
TRANSFORMS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    # torchvision's normalization would make three channels of it again, all alike
    "grey": (lambda x: x[:1], "gives (1, 32, 32); it must give a tensor (3, H, W)"),
    "an array": (lambda x: x.numpy(), "gives ndarray; it must"),
    "normalized": (lambda x: (x / 255 - 0.5) / 0.2, "must be torch.uint8, or floats in 0..1"),
    "bytes as floats": (lambda x: x.float(), "gives torch.float32 from 0 to 2"),
    "no numbers": (lambda x: x / 0, "floats in 0..1"),
    "integers": (lambda x: x.long(), "gives torch.int64"),
    "in place": (lambda x: x.add_(1), "changes the image in place"),
    "numpy's chance": (lambda x: x.flip(-1) if np.random.rand() < 0.5 else x, "other images"),
    "python's chance": (lambda x: x.roll(random.randrange(32), -1), "other images"),
    "an error": (lambda x: x.view(7), "fails on an image (3, 32, 32) of bytes (RuntimeError"),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_of_ones_own_that_misleads_is_told_in_one_line(name: str) -> None:
    transform, reason = TRANSFORMS[name]
    before = rng_state()
    with pytest.raises(InputError) as refused:
        try_transform(transform, IMAGE_SIZE)
    assert str(refused.value).startswith("transform: ")
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)
    after = rng_state()
    assert torch.equal(before.pop("torch"), after.pop("torch"))
    assert before == after


def test_those_of_torchvision_pass() -> None:
    from torchvision.transforms import v2

    to_float = v2.ToDtype(torch.float32, scale=True)
    for transform in (
        lambda x: x,
        v2.Compose([v2.RandomHorizontalFlip(), v2.RandomCrop(32, padding=4), v2.RandAugment()]),
        v2.Compose([to_float, v2.ColorJitter(0.4, 0.4, 0.4), v2.RandomErasing()]),
        v2.Compose(
            [v2.RandomResizedCrop(32, interpolation=v2.InterpolationMode.BICUBIC), to_float]
        ),
    ):
        try_transform(transform, IMAGE_SIZE)


# --- the loss -------------------------------------------------------------------------------------


class Weighted(nn.CrossEntropyLoss):
    """Forgets the classes that are rare in the data."""

    def __init__(self) -> None:
        super().__init__(weight=torch.arange(10.0))


class Counting(nn.Module):
    """Keeps a count and draws from every generator."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        self.calls += 1
        return nn.functional.cross_entropy(logits + torch.rand(10) / 100, labels)


def focal(logits: Tensor, labels: Tensor) -> Tensor:
    log_share = logits.log_softmax(1).gather(1, labels[:, None])
    return -((1 - log_share.exp()) ** 2 * log_share).mean()


def logits_of(classes: int = 10) -> Tensor:
    return torch.randn(2, classes, generator=torch.Generator().manual_seed(1))


FITS: dict[str, tuple[Any, bool]] = {
    "cross-entropy": (nn.CrossEntropyLoss(), True),
    "smoothed": (nn.CrossEntropyLoss(label_smoothing=0.1), True),
    "weighted": (Weighted(), True),
    "one class left out": (nn.CrossEntropyLoss(ignore_index=3), False),
    "hinge": (nn.MultiMarginLoss(), False),
    "focal": (focal, False),
    "with a state": (Counting(), True),
}


@pytest.mark.parametrize("name", FITS)
def test_a_loss_that_fits_passes_and_is_as_it_was(name: str) -> None:
    loss, mixes = FITS[name]
    rng = torch.get_rng_state()
    for outputs in (logits_of(), 50 * logits_of(), torch.zeros(2, 10), logits_of().log_softmax(1)):
        try_loss(loss, outputs, mixes=mixes, name="Loss")
    assert torch.equal(torch.get_rng_state(), rng)
    assert not getattr(loss, "calls", torch.zeros(())).any()


UNFIT: dict[str, tuple[Any, bool, str]] = {
    "log-probabilities": (nn.NLLLoss(), False, "expects log-probabilities"),
    "the same, mixed": (nn.NLLLoss(), True, "expects log-probabilities"),
    "one label of the mixed": (nn.MultiMarginLoss(), True, "does not take logits and mixed labels"),
    "probabilities": (nn.BCELoss(), False, "does not take logits and labels (B,)"),
    "regression": (nn.MSELoss(), False, "does not take logits and labels (B,)"),
    "regression on mixed": (nn.MSELoss(), True, "does not take logits and labels (B,)"),
    "many labels": (nn.BCEWithLogitsLoss(), True, "does not take logits and labels (B,)"),
    "divergence": (nn.KLDivLoss(), False, "does not take logits and labels (B,)"),
    "counts": (nn.PoissonNLLLoss(), False, "does not take logits and labels (B,)"),
    "three things": (nn.GaussianNLLLoss(), False, "(TypeError: "),
    "other classes": (nn.CrossEntropyLoss(weight=torch.ones(9)), False, "does not take"),
    "a loss an image": (nn.CrossEntropyLoss(reduction="none"), False, "set loss.reduction=mean"),
    "a sum": (nn.CrossEntropyLoss(reduction="sum"), False, "is the sum over the batch"),
    "a number": (lambda x, y: 1.0, False, "gives 1.0; it must give the mean"),
    "no gradient": (lambda x, y: (x.argmax(1) != y).float().mean(), False, "be differentiated"),
    "no logits in it": (lambda x, y: y.float().mean().requires_grad_(), False, "be differentiated"),
    "labels in place": (lambda x, y: focal(x, y.zero_()), False, "changes them in place"),
    "no number": (lambda x, y: (x / 0).mean(), False, "must be finite for an untrained"),
}


@pytest.mark.parametrize("name", UNFIT)
@pytest.mark.parametrize("classes", [2, 10, 11])
def test_a_loss_that_does_not_fit_is_told_in_one_line(name: str, classes: int) -> None:
    loss, mixes, reason = UNFIT[name]
    with pytest.raises(InputError) as refused:
        try_loss(loss, logits_of(classes), mixes=mixes, name="loss._target_=Loss")
    assert str(refused.value).startswith("loss._target_=Loss: ")
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("loss", [nn.NLLLoss(), nn.CrossEntropyLoss()])
def test_log_probabilities_are_what_both_of_them_take(loss: Any) -> None:
    try_loss(loss, logits_of().log_softmax(1), mixes=False, name="Loss")


def thousand(**arguments: Any) -> nn.Module:
    """As a factory that takes arguments of any name."""
    return Linear(**{"outputs": 1000} | arguments)


# --- on the command line --------------------------------------------------------------------------

SMALL = tuple(a for a in TINY if not a.startswith("model"))
LINES = [
    (
        ("model.num_classes=12",),
        "model.num_classes=12: the data has 10 classes; leave it out, or give 10",
    ),
    (
        ("model._target_=torch.nn.Flatten", "~model.width", "~model.dropout"),
        "model._target_=torch.nn.Flatten: has no parameters to train; use another network",
    ),
    (
        ("model._target_=tests.training.test_trial.thousand", "~model.width", "~model.dropout"),
        "model._target_=tests.training.test_trial.thousand: gives 1000 outputs, and the data has "
        "10 classes; add +model.num_classes=10",
    ),
    (
        ("loss._target_=torch.nn.NLLLoss", "~loss.label_smoothing"),
        "loss._target_=torch.nn.NLLLoss: expects log-probabilities, and on logits it falls without "
        "end; use loss=cross_entropy, or a network that ends in LogSoftmax",
    ),
    (
        ("+loss.reduction=sum",),
        "loss._target_=torch.nn.CrossEntropyLoss: is the sum over the batch; it must be the mean; "
        "set loss.reduction=mean",
    ),
    (
        ("loss._target_=torch.nn.MultiMarginLoss", "~loss.label_smoothing", "augment=strong"),
        "loss._target_=torch.nn.MultiMarginLoss: does not take logits and mixed labels (B, C), "
        "which augment makes (RuntimeError: ",
    ),
]


@pytest.mark.parametrize(("arguments", "line"), LINES, ids=lambda value: value[0][:40])
def test_the_command_line_says_so_before_anything_is_on_disk(
    lab: Lab, tmp_path: Path, arguments: tuple[str, ...], line: str
) -> None:
    small = [a for a in SMALL if not a.startswith("callbacks")]
    status, out, err = lab(*small, "model.width=4", *arguments, f"hydra.run.dir={tmp_path}/run")
    assert (status, out) == (2, "")
    assert err.startswith(f"cifar_lab: {line}"), err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_sweep_checks_each_pair_of_network_and_loss(tmp_path: Path) -> None:
    """Each of them fits with another; together one pair does not."""
    from cifar_lab.config.compose import compose, run_config
    from cifar_lab.sweep.tasks import Check, Findings
    from cifar_lab.sweep.worker import check

    networks = ("torch.nn.Sequential", "tests.training.test_trial.LogLinear")
    losses = ("torch.nn.CrossEntropyLoss", "torch.nn.NLLLoss")
    chosen = [(a, b) for a in (networks[1], "tests.training.test_trial.Linear") for b in losses]
    bare = [*SMALL, "~model.width", "~model.dropout", "~loss.label_smoothing"]
    cfgs = [
        compose([*bare, f"model._target_={network}", f"loss._target_={loss}"])
        for network, loss in chosen
    ]
    found: list[Findings] = []
    reply: Any = SimpleNamespace(send=found.append)
    configs = [run_config(cfg) for cfg in cfgs]
    check(Check(cfgs=cfgs, configs=configs, reply=reply))
    ((index, reason),) = found[0].wrong
    assert index == 3
    assert "expects log-probabilities" in reason


class LogLinear(Linear):
    def __init__(self) -> None:
        super().__init__(lambda y: y.log_softmax(1))
