"""A Hydra + PyTorch Lightning laboratory for CIFAR-10.

from cifar_lab import compare, load_run, train

run = train(["data=synthetic", "model=resnet10"])
run = load_run("outputs/runs/…")
run.predict("cat.jpg")
compare("outputs")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Run", "compare", "load_run", "train"]

if TYPE_CHECKING:
    from cifar_lab.report.write import compare
    from cifar_lab.run.load import Run, load_run
    from cifar_lab.run.train import train

# by name, where it lies: importing the package loads none of it
_LAZY = {
    "Run": "cifar_lab.run.load",
    "compare": "cifar_lab.report.write",
    "load_run": "cifar_lab.run.load",
    "train": "cifar_lab.run.train",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found = globals()[name] = getattr(import_module(_LAZY[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
