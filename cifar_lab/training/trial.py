"""Network and loss on two images before a run begins: what doesn't fit is one clear line there.

Nothing of the run is touched: weights, running statistics, modes, gradients and global generators
are afterwards as they were. It is done on the CPU, before anything is compiled.
"""

from __future__ import annotations

import io
import logging
import random
import sysconfig
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from cifar_lab.data.augment import Normalization, Pipeline
from cifar_lab.data.dataset import Dataset
from cifar_lab.errors import InputError

log = logging.getLogger("cifar_lab")

Loss = Callable[[Tensor, Tensor], Tensor]

_WANTED = "one tensor of logits (images, classes)"
_IMAGES = 2
# Of a transform that draws whether to act, with a probability of a half: misjudged once in 65,536.
_DRAWS = 16

# What code of a person's own may end in. Not `errors.Interrupted`, which is a signal.
STOPS = (Exception, SystemExit, KeyboardInterrupt)


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What network and loss have to fit.

    Attributes:
        size: (3, H, W) of an image.
        classes: of the dataset.
        batch_size: of the training batches.
        device: the kind that will train: cuda, mps or cpu.
        precision: as in ``trainer.precision``.
        alone: what to say where a training batch has a single image; empty: none has.
    """

    size: tuple[int, ...]
    classes: int
    batch_size: int
    device: str
    precision: str
    alone: str = ""


def try_augmentation(pipeline: Pipeline, dataset: Dataset) -> None:
    """Augments a few images of the dataset twice, on the CPU.

    Raises:
        InputError: its draws are not one for each image; what comes back is no batch of finite
            images of that size and their labels, or not the same for the same draws.
    """
    images = torch.from_numpy(np.array(dataset.train.images[:_IMAGES]))
    classes = len(dataset.classes)
    labels = torch.tensor([0, classes - 1])[: len(images)]
    generator, size = torch.Generator().manual_seed(0), images.shape[-1]
    with untouched(None):
        draws: dict[str, Any] = pipeline.draw(len(images), generator, size)
        draws |= pipeline.draw_lasting(len(images), generator, size, epoch=0)
    for name, drawn in draws.items():
        if not isinstance(drawn, Tensor) or len(drawn) != len(images):
            kind = tuple(drawn.shape) if isinstance(drawn, Tensor) else type(drawn).__name__
            raise InputError(
                f"transforms.{name}: draw({len(images)}, ...) gives {kind}; it must give one "
                "tensor with a row for each image"
            )
    plain = Normalization(mean=(0.0,) * 3, std=(1.0,) * 3, device=torch.device("cpu"))
    with untouched(None):
        augmented, of_them = pipeline.apply(images, labels, draws, plain)
        again, _ = pipeline.apply(images, labels, draws, plain)
    if augmented.shape != images.shape or len(of_them) != len(images):
        raise InputError(
            f"transforms: give images {tuple(augmented.shape)} and labels {tuple(of_them.shape)} "
            f"for images {tuple(images.shape)}; each must keep the shape of a batch"
        )
    mixed = of_them.is_floating_point() and of_them.shape[1:] == (classes,)
    if augmented.dtype != torch.float32 or not (mixed or of_them.dtype == torch.int64):
        raise InputError(
            f"transforms: give images of {augmented.dtype} and labels {tuple(of_them.shape)} of "
            f"{of_them.dtype}; must be torch.float32, and torch.int64 or (images, {classes}) in "
            "floating point"
        )
    if not mixed and not bool(((of_them >= 0) & (of_them < classes)).all()):
        raise InputError(
            f"transforms: give the labels {of_them.tolist()}; must lie in 0..{classes - 1}"
        )
    if not bool(torch.isfinite(augmented).all()):
        raise InputError("transforms: give NaN or infinite pixels")
    if not torch.equal(augmented, again):
        raise InputError(
            "transforms: give other images for the same draws; all randomness must come from "
            "draw's generator, and no image may be changed in place before stage UNIT"
        )


def try_transform(transform: Callable[[Tensor], Any], size: tuple[int, ...]) -> None:
    """A person's own transform on an image of noise, (3, H, W) uint8 of that size.

    Twice with each of some states of torch's generator.

    Raises:
        InputError: it fails; what comes back is no image of bytes or of floats in 0..1
            (normalization follows); it changes the one that it is given, or draws from elsewhere:
            of other generators each worker process has its own.
    """
    stored = torch.randint(256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with untouched(transform):
        for seed in range(_DRAWS):
            torch.default_generator.manual_seed(seed)
            first = _transformed(transform, stored)
            torch.default_generator.manual_seed(seed)
            if not torch.equal(_transformed(transform, stored), first):
                raise InputError(
                    "transform: gives other images in the same state of torch's global generator; "
                    "what it draws must come from there, and not from random or numpy"
                )


def _transformed(transform: Callable[[Tensor], Any], stored: Tensor) -> Tensor:
    image = stored.clone()
    try:
        found = transform(image)
    except STOPS as error:
        raise InputError(
            f"transform: fails on an image {tuple(stored.shape)} of bytes ({reason(error)})"
        ) from error
    if not isinstance(found, Tensor) or found.ndim != 3 or len(found) != 3:
        kind = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise InputError(f"transform: gives {kind}; it must give a tensor (3, H, W)")
    if found.dtype != torch.uint8:
        low, high = float(found.min()), float(found.max())
        # an interpolation may reach over the range, or noise
        if not (found.is_floating_point() and -0.5 < low <= high < 1.5):
            raise InputError(
                f"transform: gives {found.dtype} from {low:.3g} to {high:.3g}; must be "
                "torch.uint8, or floats in 0..1: data.normalization follows, leave its own out"
            )
    if not torch.equal(image, stored):
        raise InputError("transform: changes the image in place; work on a copy")
    return found


def try_network(
    network: nn.Module, expected: Expected, *, name: str, advice: str = ""
) -> Tensor | None:
    """What the network gives in evaluation for a few images of noise.

    Args:
        network: on the CPU.
        expected: what it has to fit.
        name: of the network, for messages.
        advice: what to do about another number of outputs.

    Returns:
        The outputs, (N, classes); None where it only runs on the device that will train.

    Raises:
        InputError: nothing in it can be trained; it doesn't take such images, or changes them; it
            gives anything but finite logits, one for each class, that its parameters have a part
            in; it uses parameters that are none of its own, or makes some on the way.
    """
    names = [*network.state_dict()]
    check_keepable(
        {k: v for k, v in network.state_dict().items() if not isinstance(v, Tensor)}, name
    )
    if any(is_lazy(tensor) for tensor in (*network.parameters(), *network.buffers())):
        raise InputError(f"{name}: has lazy layers; give each its number of inputs")
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise InputError(f"{name}: has no parameters to train; use another network")
    outputs = None
    for stage in ("training", "evaluation"):
        try:
            outputs = _outputs(network, expected, stage)
        except STOPS as error:
            if expected.device != "cpu" and any(w in str(error).lower() for w in ("cpu", "cuda")):
                log.debug("%s: not tried out on the CPU: %s", name, error)
                return None
            size = "x".join(str(side) for side in expected.size)
            raise InputError(
                f"{name}: fails on images of {size} in {stage} ({reason(error)})"
            ) from error
        _check_outputs(outputs, f"{name}: gives", expected.classes, advice, stage)
        tracked = stage == "training" and not _is_scripted(network)
        if tracked and not outputs.requires_grad:
            raise InputError(
                f"{name}: gives logits that no parameter which is trained has a part in; take "
                "detach, no_grad and .data away"
            )
        if tracked and (shape := _not_its_own(outputs, network)) is not None:
            raise InputError(
                f"{name}: uses a parameter {shape} that it doesn't have: nothing would train or "
                "keep it; layers in a list must be in a torch.nn.ModuleList"
            )
    if new := [key for key in network.state_dict() if key not in names]:
        raise InputError(f"{name}: makes {new[0]} in its forward pass; make it in __init__")
    assert isinstance(outputs, Tensor)
    if expected.alone:
        try:
            _outputs(network, expected, "training", images=1)
        except STOPS as error:
            raise InputError(f"{expected.alone} ({name}: {reason(error)})") from error
    return outputs.to(torch.float32)


def _changed(buffer: Tensor, before: Tensor) -> bool:
    # one of another shape is a cache that grows
    return buffer.shape == before.shape and not torch.equal(buffer, before)


def _is_scripted(network: nn.Module) -> bool:
    # what a script is first called with decides how it is compiled: not for gradients here
    return any(isinstance(module, torch.jit.ScriptModule) for module in network.modules())


def _not_its_own(outputs: Tensor, network: nn.Module) -> tuple[int, ...] | None:
    """The shape of a leaf behind the outputs that is no parameter of the network's, if any."""
    own = {parameter.data_ptr() for parameter in network.parameters()}
    nodes, seen = [outputs.grad_fn], {outputs.grad_fn, None}
    while nodes:
        node = nodes.pop()
        leaf = getattr(node, "variable", None)  # of an AccumulateGrad
        if isinstance(leaf, Tensor) and leaf.data_ptr() not in own:
            return tuple(leaf.shape)
        following = [n for n, _ in getattr(node, "next_functions", ()) if n not in seen]
        seen.update(following)
        nodes += following
    return None


def _outputs(network: nn.Module, expected: Expected, stage: str, *, images: int = _IMAGES) -> Any:
    # 64-true, 16-true and bf16-true convert network and images to one type
    converts = expected.precision.endswith("-true") and not expected.precision.startswith("32")
    dtype = next(p.dtype for p in network.parameters()) if converts else torch.float32

    tracked = stage == "training" and not _is_scripted(network)

    def outputs(count: int) -> Any:
        noise = torch.randn(count, *expected.size, generator=torch.Generator().manual_seed(0))
        given = noise.to(dtype, copy=True)
        kept = network.state_dict()
        passing = {k: b.clone() for k, b in network.named_buffers() if k not in kept}
        with untouched(network), torch.set_grad_enabled(tracked):
            if stage == "evaluation":
                network.eval()
            found = network(given)
            if stage == "training":
                for name, before in passing.items():
                    if _changed(network.get_buffer(name), before):
                        raise ValueError(
                            f"{name} changes and is in no checkpoint: a run that goes on, and one "
                            "that is read again, would begin with another; make it persistent"
                        )
            real = isinstance(found, Tensor) and found.is_floating_point()
            if tracked and real and found.requires_grad:
                # not autograd.grad, which goes through no checkpointed segment
                found.sum().backward()
                for parameter in network.parameters():
                    parameter.grad = None
        if not torch.equal(given, noise.to(dtype)):
            raise ValueError("its images are changed in place; others see them too: work on a copy")
        return found

    try:
        return outputs(images)
    except STOPS:
        # some networks cut a batch into parts of a fixed number
        if expected.batch_size == images or images < _IMAGES:
            raise
        found = outputs(expected.batch_size)
        return found[:_IMAGES] if isinstance(found, Tensor) and found.ndim else found


def _check_outputs(outputs: Any, gives: str, classes: int, advice: str, stage: str) -> None:
    if not isinstance(outputs, Tensor):
        raise InputError(f"{gives} a {type(outputs).__name__} in {stage}; it must give {_WANTED}")
    if outputs.ndim != 2 or len(outputs) != _IMAGES:
        raise InputError(
            f"{gives} a tensor {tuple(outputs.shape)} for {_IMAGES} images; it must give {_WANTED}"
        )
    if (count := outputs.shape[1]) != classes:
        advice = advice or "use a network that gives one for each class"
        raise InputError(f"{gives} {count} outputs, and the data has {classes} classes; {advice}")
    if not outputs.is_floating_point():
        raise InputError(f"{gives} {outputs.dtype}; it must give {_WANTED} in floating point")
    if not bool(torch.isfinite(outputs).all()):
        raise InputError(f"{gives} NaN or infinite outputs before its first step")
    if bool((outputs >= 0).all()) and _are_one(outputs.sum(1)):
        raise InputError(
            f"{gives} probabilities (0 or more, and 1 in all for each image); it must give "
            f"{_WANTED}: leave its softmax out"
        )


def try_loss(loss: Loss, outputs: Tensor, *, mixes: bool, name: str) -> None:
    """Holds the loss against outputs and labels of every class.

    Args:
        loss: (outputs (B, C), labels (B,) int64, or (B, C) float32 where samples are mixed) -> the
            mean over the batch, a scalar.
        outputs: (N, C), what the network gives.
        mixes: whether the training labels are (B, C); validation and test have (B,) all the same.
        name: of the loss, for messages.

    Raises:
        InputError: it doesn't take them; it gives anything but a finite scalar that can be
            differentiated; it is a sum over the batch; it wants log-probabilities and gets logits.
    """
    classes = outputs.shape[1]
    # one row more than there are classes: a loss for other shapes doesn't pass by broadcasting
    labels = torch.arange(classes + 1) % classes
    rows = outputs.detach()[torch.arange(classes + 1) % len(outputs)]
    _try_labels(loss, rows, labels, name, "labels (B,)")
    if not _are_one(rows.exp().sum(1)) and _falls_without_end(loss, labels, classes):
        raise InputError(
            f"{name}: expects log-probabilities, and on logits it falls without end; "
            "use loss=cross_entropy, or a network that ends in LogSoftmax"
        )
    if mixes:
        mixed = 0.7 * nn.functional.one_hot(labels, classes) + 0.3 / classes
        _try_labels(loss, rows, mixed, name, "mixed labels (B, C), which augment makes")


def as_python(state: Any) -> Any:
    """The state with Python's numbers for NumPy's of 64 bits, which a checkpoint doesn't give back.

    They are the same numbers; a rate that was computed with NumPy is one of its.
    """
    if isinstance(state, np.float64 | np.integer | np.bool_):
        return state.item()
    if type(state) is dict:
        return {as_python(key): as_python(value) for key, value in state.items()}
    return type(state)(map(as_python, state)) if type(state) in (list, tuple) else state


def check_keepable(state: Any, name: str) -> None:
    """Raises InputError for a state that a checkpoint wouldn't give back."""
    file = io.BytesIO()
    try:
        torch.save(_without_tensors(as_python(state)), file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except Exception as error:
        for key, value in state.items() if isinstance(state, dict) else ():
            check_keepable(value, f"{name}: {key}")  # the one that is in the way
        raise InputError(
            f"{name}: a checkpoint can't keep its state ({type(error).__name__}); must be tensors "
            "and plain values alone"
        ) from error


def _without_tensors(state: Any) -> Any:
    if isinstance(state, Tensor):
        return None
    if isinstance(state, dict):
        return {key: _without_tensors(value) for key, value in state.items()}
    return [_without_tensors(value) for value in state] if type(state) in (list, tuple) else state


def check_weight(weight: Any, classes: int) -> None:
    """Raises InputError for ``loss.weight`` that is no number of at least 0 for each class."""
    if not isinstance(weight, Tensor):
        return
    numbers = weight.detach().flatten().tolist()
    shown = f"[{','.join(f'{number:g}' for number in numbers)}]"
    if weight.shape != (classes,):
        raise InputError(f"loss.weight={shown}: must be {classes} numbers, one for each class")
    if min(numbers) < 0 or max(numbers) == 0:
        raise InputError(f"loss.weight={shown}: must be at least 0 each, and above 0 for some")


def try_smoothing(loss: Loss, without: Loss, *, classes: int, mixes: bool, name: str) -> None:
    """Holds a loss against the same without its label smoothing.

    Args:
        loss: as in `try_loss`, which it has passed.
        without: built alike, but with a smoothing of 0.
        classes: of the dataset.
        mixes: as in `try_loss`.
        name: of the smoothing and its value, for messages.

    Raises:
        InputError: both give the same.
    """
    logits = torch.randn(classes + 1, classes, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(classes + 1) % classes
    if mixes:
        labels = 0.7 * nn.functional.one_hot(labels, classes) + 0.3 / classes
    values = [_value_of(each, logits, labels) for each in (loss, without)]
    if torch.equal(*values):
        raise InputError(
            f"{name}: the loss is the same without it; use loss=cross_entropy, which knows it, or "
            "leave it out"
        )


def _try_labels(loss: Loss, rows: Tensor, labels: Tensor, name: str, kind: str) -> None:
    logits = rows.clone().requires_grad_()
    try:
        value = _value_of(loss, logits, labels)
        twice = _value_of(loss, logits.repeat(2, 1), torch.cat([labels, labels]))
    except STOPS as error:
        raise InputError(f"{name}: does not take logits and {kind} ({reason(error)})") from error
    mean = "; set loss.reduction=mean" if hasattr(loss, "reduction") else ""
    if not isinstance(value, Tensor) or value.ndim:
        kind = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise InputError(
            f"{name}: gives {kind}; it must give the mean over the batch, a scalar{mean}"
        )
    gradient = None
    if value.requires_grad:
        (gradient,) = torch.autograd.grad(value, logits, allow_unused=True)
    if gradient is None:
        raise InputError(f"{name}: can't be differentiated by the logits; use loss=cross_entropy")
    if not bool(torch.isfinite(value)) or not bool(torch.isfinite(gradient).all()):
        raise InputError(
            f"{name}: must be finite for an untrained network, and its gradient too; it is "
            f"{float(value.detach()):g} for {kind}"
        )
    # of a batch that holds everything twice the mean is the same
    if torch.allclose(twice, 2 * value, rtol=1e-4) and not torch.allclose(twice, value, rtol=1e-2):
        raise InputError(f"{name}: is the sum over the batch; it must be the mean{mean}")


def _falls_without_end(loss: Loss, labels: Tensor, classes: int) -> bool:
    # where the right logit is large a loss on logits is near its lower bound; -log p has none
    right = nn.functional.one_hot(labels, classes).float()
    try:
        large, larger = (
            float(_value_of(loss, scale * right, labels).detach()) for scale in (1e3, 1e6)
        )
    except Exception:
        return False  # it is particular about its inputs, and took those of the network
    return larger < large - 1e3


def _value_of(loss: Loss, logits: Tensor, labels: Tensor) -> Tensor:
    before = logits.detach().clone(), labels.clone()
    with untouched(loss):
        value = loss(logits, labels)
    if not (torch.equal(logits, before[0]) and torch.equal(labels, before[1])):
        raise ValueError("changes them in place, and the accuracy is of the same: work on a copy")
    return value


def _are_one(values: Tensor) -> bool:
    return torch.allclose(values, torch.ones_like(values), atol=1e-3)


@contextmanager
def untouched(part: object) -> Iterator[None]:
    """Puts buffers, modes and the CPU's global generators back as they were; warnings wait.

    Those come again in the run, if there is one.
    """
    module = part if isinstance(part, nn.Module) else nn.Module()
    modes = [(child, child.training) for child in module.modules()]
    buffers = [(name, buffer.clone()) for name, buffer in module.named_buffers()]
    kept = module.state_dict().keys()
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        for child, mode in modes:
            child.training = mode
        # by name: a forward pass may put new ones in their place
        now = dict(module.named_buffers())
        for name, before in buffers:
            # a cache that has grown stays: averages are of a network that has it
            if name in kept or now[name].shape == before.shape:
                now[name].data = before


def reason(error: BaseException) -> str:
    """The error's first line, and the last place outside of libraries that it went through."""
    first, *_ = (*str(error).strip().splitlines(), "no reason given")
    first = first.strip().rstrip(".")
    package = str(Path(__file__).parents[1])
    libraries = (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), package)
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(libraries)]
    place = f", {Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""
    return f"{type(error).__name__}: {first}{place}"
