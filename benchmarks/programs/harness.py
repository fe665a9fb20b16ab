"""What the programs share: their arguments, network, optimizer, data, and the clock."""

from __future__ import annotations

import argparse
import json
import pkgutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from torchvision import transforms
from torchvision.datasets import CIFAR10

from benchmarks.contenders import NETWORKS, PRECISIONS, WARMUP_STEPS
from cifar_lab.config.compose import compose_group


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What every program is told.

    Attributes:
        data: a folder that `random_images.make` filled.
        workers: of a DataLoader.
        tuned: channels_last, and malloc keeps what it frees, as in our own runs.
    """

    data: Path
    network: str
    batch_size: int
    steps: int
    device: torch.device
    precision: str
    workers: int
    tuned: bool


def read_settings(arguments: Sequence[str] | None) -> Settings:
    """From a command line (default: this process's); sets the number of threads."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--network", choices=NETWORKS, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--device", type=torch.device, required=True)
    parser.add_argument("--precision", choices=PRECISIONS, required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--tuned", action="store_true")
    given = vars(parser.parse_args(arguments))
    if (threads := given.pop("threads")) is not None:
        torch.set_num_threads(threads)
    return Settings(**given)


def make_network(settings: Settings) -> nn.Module:
    """The network as ours composes it, on the CPU."""
    group = compose_group("model", [*NETWORKS[settings.network].overrides, "model.num_classes=10"])
    network: nn.Module = pkgutil.resolve_name(group.pop("_target_"))(**group)
    return network


def make_optimizer(network: nn.Module) -> torch.optim.Optimizer:
    """The original report's SGD, with torch's own defaults otherwise."""
    group = compose_group("optimizer", ["experiment=report"])
    del group["_partial_"]
    assert not group.pop("groups", None)  # one group: all parameters alike
    make: Callable[..., torch.optim.Optimizer] = pkgutil.resolve_name(group.pop("_target_"))
    return make(network.parameters(), **group)


def per_image() -> transforms.Compose:
    """The original report's transform of single images: to float in [0, 1], then to [-1, 1]."""
    return transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))]
    )


class UnofficialCIFAR10(CIFAR10):  # type: ignore[misc]  # torchvision ships no types
    """torchvision's own dataset on images that are not the official ones."""

    train_list: ClassVar = [[name, None] for name, _ in CIFAR10.train_list]
    test_list: ClassVar = [[name, None] for name, _ in CIFAR10.test_list]
    meta: ClassVar = {**CIFAR10.meta, "md5": None}


class Clock:
    """Counts steps, and the time from the end of the warm-up on.

    A program may `pause` it for what is no training (validation, checkpoints), as our rate does.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._count = 0
        self._images = 0
        self._seconds = 0.0
        self._since: float | None = None

    def step(self, images: int) -> bool:
        """Counts a step that was made with so many images; True after the last one."""
        self._count += 1
        if self._count > WARMUP_STEPS:
            self._images += images
        elif self._count == WARMUP_STEPS:
            self.resume()
        if self._count < WARMUP_STEPS + self._settings.steps:
            return False
        self.pause()
        return True

    def pause(self) -> None:
        """Stands still, once the device is done with what it was given."""
        if self._since is not None:
            self._synchronize()
            self._seconds += time.perf_counter() - self._since
            self._since = None

    def resume(self) -> None:
        """Runs again; before the end of the warm-up it doesn't."""
        if self._count >= WARMUP_STEPS and self._since is None:
            self._synchronize()
            self._since = time.perf_counter()

    def result(self) -> dict[str, Any]:
        """``images_per_s`` and ``step_ms`` over the timed steps."""
        steps = self._settings.steps
        return {
            "images_per_s": self._images / self._seconds,
            "step_ms": 1e3 * self._seconds / steps,
            "steps": steps,
        }

    def _synchronize(self) -> None:
        if self._settings.device.type == "cuda":
            torch.cuda.synchronize(self._settings.device)
        elif self._settings.device.type == "mps":
            torch.mps.synchronize()


def run(train: Callable[[Settings, Clock], object], arguments: Sequence[str] | None = None) -> None:
    """A whole program: trains as its command line says; its last line is the result, as JSON."""
    settings = read_settings(arguments)
    train(settings, clock := Clock(settings))
    print(json.dumps(clock.result()), flush=True)
