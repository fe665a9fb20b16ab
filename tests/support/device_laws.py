"""What a GPU would do with each operator, seen without one.

A dispatch mode sees every operator that a step runs. Where a tensor of the device is among its
arguments, some of them have to wait for the device: those whose result Python, or the size of a
tensor, hangs on, and copies that aren't from pinned memory.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cifar_lab.training.steps.multistep import SupportsMultistep

READS = (
    *("aten._local_scalar_dense", "aten.nonzero", "aten.is_nonzero", "aten.equal"),
    *("aten.masked_select", "aten._unique", "aten._unique2", "aten.unique_dim", "aten.bincount"),
    *("aten.unique_consecutive", "aten.allclose", "aten.repeat_interleave.Tensor"),
)
_COPIES = ("aten._to_copy", "aten.copy_", "aten._copy_from")


class Waits(TorchDispatchMode):
    """Collects the operators that would wait for ``device``, and those that mix devices.

    Attributes:
        found: a line each, with the innermost lines of the caller.
        operators: how often each was seen, to know that anything was.
        inside: only then something is collected.
    """

    def __init__(self, device: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # of torch
        self.device = device
        self.found: list[str] = []
        self.operators: Counter[str] = Counter()
        self.inside = True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.device == "meta" and str(func).startswith("aten._fused_"):
            return _check_fused(args, kwargs)  # not all of them know the meta device
        out = func(*args, **kwargs)
        if self.inside:
            name = str(func)
            self.operators[name] += 1
            if reason := self._reason(name, args, kwargs, out):
                self.note(f"{name} {reason}")
        return out

    def note(self, what: str) -> None:
        """Adds a line."""
        frames = [f for f in traceback.extract_stack() if "cifar_lab" in f.filename]
        callers = " < ".join(f"{f.name}:{f.lineno}" for f in reversed(frames[-3:]))
        self.found.append(f"{what} ({callers})")

    def _reason(self, name: str, args: Any, kwargs: dict[str, Any], out: Any) -> str | None:
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        there = [t for t in given if t.device.type == self.device]
        if name.startswith(READS) and there:
            return "reads"
        if name.startswith(_COPIES):
            if isinstance(out, Tensor) and out.device.type != self.device and there:
                return "copies to the host"
            waits = not kwargs.get("non_blocking") and not (len(args) > 2 and args[2] is True)
            if isinstance(out, Tensor) and out.device.type == self.device and waits:
                source = args[1] if name.startswith("aten.copy_") else args[0]
                if source.device.type != self.device:
                    return "copies from pageable memory"
            return None
        # a number may come from the host, it is handed to the kernel; more than one may not
        devices = {t.device.type for t in given if t.ndim}
        return f"mixes {sorted(devices)}" if there and len(devices) > 1 else None


def _check_fused(args: Any, kwargs: dict[str, Any]) -> None:
    """What CUDA's fused optimizers want: all on the device, the weights of one type."""
    given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    assert {t.device.type for t in given} == {"meta"}
    assert len({t.dtype for t in tree_leaves(args[:2])}) == 1
    lr = kwargs["lr"]
    assert not isinstance(lr, Tensor) or lr.dtype == torch.float32


@contextmanager
def reads_of_python(waits: Waits) -> Iterator[None]:
    """Has ``waits`` see also the reads of a CPU tensor that no operator stands for."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("tolist", "numpy", "__array__"):
            original = getattr(Tensor, name)

            def seen(
                self: Tensor, *a: Any, _name: str = name, _of: Any = original, **k: Any
            ) -> Any:
                if waits.inside:
                    waits.note(f"Tensor.{_name}")
                return _of(self, *a, **k)

            patch.setattr(Tensor, name, seen)
        yield


class WithinEpochs(Callback, SupportsMultistep):
    """Opens ``waits`` from an epoch's first batch to its last, and in those of a validation."""

    waits: Waits | None = None  # of the fit to come

    def __init__(self) -> None:
        self._calls = 0

    def _open(self, wanted: bool) -> None:
        assert self.waits is not None
        self.waits.inside = wanted

    def on_train_batch_start(self, *_: Any) -> None:
        """From the first batch of an epoch on."""
        self._open(True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """To its last; what comes between two batches is inside."""
        if trainer.is_last_batch:
            self._open(False)

    def on_validation_batch_start(self, *_: Any) -> None:
        """A batch of a validation."""
        self._open(True)

    def on_validation_batch_end(self, *_: Any) -> None:
        """The logits may be looked at by others."""
        self._open(False)


# --- a whole fit on meta tensors ------------------------------------------------------------------


class _Meta(CPUAccelerator):
    def setup_device(self, device: torch.device) -> None:
        """There is nothing to set up."""


class MetaStrategy(SingleDeviceStrategy):
    """Trains on the meta device: shapes and types without numbers, where every read raises."""

    def __init__(self) -> None:
        super().__init__(device=torch.device("meta"), accelerator=_Meta())

    def teardown(self) -> None:
        """The weights can't come back from there."""


@contextmanager
def meta_device() -> Iterator[None]:
    """What Lightning and torch need to train on the meta device."""
    autocast = torch.autocast

    def on_cpu(device_type: str, *arguments: Any, **more: Any) -> Any:
        return autocast("cpu" if device_type == "meta" else device_type, *arguments, **more)

    module = import_module("torch.optim.optimizer")  # torch.optim itself hides it
    known = module._get_fused_kernels_supported_devices  # noqa: SLF001 (nothing else asks torch)
    yes: Callable[..., bool] = lambda *_, **__: True  # noqa: E731  # asks the device for a sum
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "autocast", on_cpu)
        patch.setattr(module, "_get_fused_kernels_supported_devices", lambda: [*known(), "meta"])
        for loop in ("fit_loop", "evaluation_loop"):
            patch.setattr(f"lightning.pytorch.loops.{loop}.has_len_all_ranks", yes)
        yield
