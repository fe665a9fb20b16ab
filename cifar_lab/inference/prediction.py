"""What a run's network answers to anybody's pictures."""

from __future__ import annotations

import copy
import glob
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cifar_lab.data.pictures import SUFFIXES, read_bounded, read_picture
from cifar_lab.errors import InputError, printable
from cifar_lab.records.files import expanded
from cifar_lab.run.load import NO_NUMBER, Run

STDIN = "-"
_BATCH = 256


@dataclass(frozen=True, eq=False)
class Prediction:
    """One picture's answer.

    Attributes:
        name: of its file, as given; ``-``: standard input.
        probabilities: (classes,), sums to 1; None where it couldn't be read.
        error: why not, in one line.
        pixels: (3, H, W) as the network saw it.
    """

    name: str
    probabilities: NDArray[np.float32] | None = None
    error: str | None = None
    pixels: NDArray[np.uint8] | None = field(default=None, repr=False)

    def top(self, classes: Sequence[str], count: int) -> list[tuple[str, float]]:
        """The likeliest classes and their probabilities, the first one first."""
        if self.probabilities is None:
            return []
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(classes[i], float(self.probabilities[i])) for i in order]


def find_pictures(given: Sequence[str]) -> list[str]:
    """Files behind what a person gave: files, folders (all pictures below), patterns, ``-``.

    What is named stays in its order and is looked at later; folders and patterns are sorted.

    Raises:
        InputError: a folder or a pattern has no picture.
    """
    found: list[str] = []
    for name in given:
        path = expanded(name)
        if name == STDIN:
            found.append(name)
        elif os.path.isdir(path):  # False for a name that can't be looked at: one line, later
            below = sorted(
                str(p)
                for p in path.rglob("*")
                if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and not p.is_dir()
            )
            if not below:
                raise InputError(f"{name}: holds no picture ({', '.join(SUFFIXES)})")
            found += below
        elif glob.has_magic(name) and not os.path.exists(path):
            matching = sorted(glob.glob(str(path), recursive=True))
            files = [one for one in matching if os.path.isfile(one)]
            if not files:
                raise InputError(f"{name}: no file has such a name")
            found += files
        else:
            found.append(str(path))
    return found


def predict(
    run: Run,
    names: Sequence[str],
    *,
    keep_pixels: bool = False,
    done: Callable[[int], object] = lambda count: None,
) -> Iterator[Prediction]:
    """Answers to files, in their order, a batch of them at a time.

    Args:
        run: as `load_run` gives it.
        names: as `find_pictures` gives them.
        keep_pixels: a prediction has its picture as the network saw it.
        done: called with how many more are done.
    """
    for start in range(0, len(names), _BATCH):
        part = names[start : start + _BATCH]
        read: list[NDArray[np.uint8] | str] = []
        for name in part:
            try:
                read.append(_read(name, run.image_size))
            except InputError as error:
                read.append(str(error))
        pixels = [one for one in read if not isinstance(one, str)]
        answers = iter(run.answers(np.stack(pixels)).numpy() if pixels else ())
        for name, one in zip(part, read, strict=True):
            if isinstance(one, str):
                yield Prediction(name, error=one)
            elif np.isfinite(answer := next(answers)).all():
                yield Prediction(name, answer, pixels=one if keep_pixels else None)
            else:
                yield Prediction(name, error=f"{printable(name)}: {NO_NUMBER}")
        done(len(part))


def _read(name: str, size: tuple[int, int]) -> NDArray[np.uint8]:
    if name == STDIN:
        return read_picture(read_bounded(sys.stdin.buffer), size, name="standard input")
    return read_picture(Path(name), size)


def activation_maps(
    run: Run, pixels: NDArray[np.uint8], classes: Sequence[int]
) -> NDArray[np.float32]:
    """Where a network saw a class: Grad-CAM (arXiv:1610.02391) of its last layer that has a map.

    Args:
        run: as `load_run` gives it.
        pixels: (N, 3, H, W).
        classes: (N,) whose map is wanted.

    Returns:
        (N, H, W) in [0, 1]; 0 everywhere where nothing spoke for the class.

    Raises:
        InputError: captum is not installed, or no layer of the network has a map.
    """
    try:
        from captum.attr import LayerAttribution, LayerGradCam
    except ImportError as error:
        raise InputError(
            "class-activation maps need captum; pip install 'cifar-lab[explain]'"
        ) from error
    images = torch.from_numpy(pixels).to(run.model.offset) / 255
    layer = _last_map(run, images[:1])
    maps = []
    asked_once = copy.copy(run.model)
    asked_once.tta = "none"  # a map is of one view
    explain = LayerGradCam(asked_once, layer)
    for start in range(0, len(images), _BATCH):
        part = slice(start, start + _BATCH)
        target = torch.tensor(classes[part], device=images.device)
        small = explain.attribute(images[part], target=target, relu_attributions=True)
        maps.append(
            LayerAttribution.interpolate(small, run.image_size, interpolate_mode="bilinear")
        )
    found = torch.cat(maps).sum(1).detach().float().cpu()
    highest = found.amax((1, 2), keepdim=True)
    return np.asarray((found / highest.clamp(min=1e-12)).numpy(), np.float32)


def _last_map(run: Run, image: torch.Tensor) -> torch.nn.Module:
    """The module whose output was the last that has a height and a width."""
    seen: list[torch.nn.Module] = []

    def note(module: torch.nn.Module, _: object, output: object) -> None:
        if isinstance(output, torch.Tensor) and output.ndim == 4 and min(output.shape[2:]) > 1:
            seen.append(module)

    hooks = [module.register_forward_hook(note) for module in run.model.network.modules()]
    try:
        with torch.no_grad():
            run.model(image)
    finally:
        for hook in hooks:
            hook.remove()
    if not seen:
        raise InputError("no layer of this network has a map of the picture: it can't be explained")
    return seen[-1]
