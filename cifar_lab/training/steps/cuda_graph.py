"""A whole optimizer step (forward, backward, update, metrics) as one CUDA graph.

A small network's step is some hundred kernels of a few microseconds; launching them one by one from
Python takes longer than running them. Recorded once, they are launched together. The recipe is that
of torch's notes on CUDA graphs (docs.pytorch.org, "CUDA semantics", whole-network capture).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.optim import Optimizer

from cifar_lab.data.datamodule import DataModule
from cifar_lab.errors import InputError
from cifar_lab.training.steps.multistep import obstacle

# Steps made kernel by kernel before the recording: they allocate, choose algorithms, compile.
WARMUP_STEPS = 3


def check(optimizer: Optimizer, *, device: str, precision: str) -> None:
    """Raises InputError where a step can't be recorded: it would have to wait for the device."""
    if device != "cuda":
        raise InputError(
            f"cuda_graph=true: needs a CUDA device, and this is {device}; set cuda_graph=false"
        )
    if precision in ("16-mixed", "16"):
        raise InputError(
            f"cuda_graph=true: with trainer.precision={precision} each step reads back whether the "
            "gradients overflowed; set trainer.precision=bf16-mixed"
        )
    if not all(group.get("fused") or group.get("capturable") for group in optimizer.param_groups):
        raise InputError(
            f"cuda_graph=true: {type(optimizer).__name__} as it is set reads its learning rate "
            "on the CPU; set optimizer.fused=true (or capturable, where it has that)"
        )


def check_calls(
    trainer: Trainer, data: DataModule, *, steps_per_call: int, singly: str | None
) -> None:
    """Raises InputError where there are no calls of several steps, which are what is recorded.

    Args:
        trainer: with the configured callbacks.
        data: of the fit.
        steps_per_call: as configured.
        singly: why the network's own training has to see every step; None: it needn't.
    """
    if steps_per_call == 1:
        raise InputError(
            "cuda_graph=true: records the steps of a call that makes several; "
            "set steps_per_call=16, say"
        )
    if reason := obstacle(trainer, data, singly):
        raise InputError(
            f"cuda_graph=true: {reason}, so that no step can be recorded; set cuda_graph=false"
        )


class GraphedStep:
    """Makes optimizer steps: the first few kernel by kernel, then as replays of one recording.

    The learning rate becomes a float32 on the device while the optimizer steps, in every step
    alike, so that results do not depend on where a run was stopped and its recording made anew. In
    the optimizer's groups, for schedulers and checkpoints, it stays the number it was.

    Args:
        step: (images, labels) -> None. Runs on the device alone: it reads and writes the same
            tensors every time and waits for nothing. The gradients are None when it begins.
        optimizer: whose steps ``step`` makes; its state exists after the first.
        batch_size: images of the batches worth recording; a short last one isn't.
        device: of all tensors.
    """

    def __init__(
        self,
        *,
        step: Callable[[Tensor, Tensor], None],
        optimizer: Optimizer,
        batch_size: int,
        device: torch.device,
    ) -> None:
        self._capturable_step = step
        self._optimizer = optimizer
        self._batch_size = batch_size
        self._device = device
        self._rates = [torch.zeros((), device=device) for _ in optimizer.param_groups]
        self._warmup_left = WARMUP_STEPS
        self._replay: Callable[[], None] | None = None
        self._inputs: tuple[Tensor, ...] = ()
        self._gradients: list[Tensor | None] = []
        self._side: torch.cuda.Stream | None = None

    def __call__(self, images: Tensor, labels: Tensor) -> None:
        """One optimizer step with (B, 3, H, W) images and (B, ...) labels on the device."""
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            rate.fill_(group["lr"])  # its value travels with the kernel: nothing waits
        if len(images) == self._batch_size and not self._warmup_left:
            self._replay_step(images, labels)
            return
        self._optimizer.zero_grad()
        if len(images) != self._batch_size:
            self._run(images, labels)
            return
        self._warmup_left -= 1
        with self.on_side_stream():
            self._run(images, labels)

    def _replay_step(self, images: Tensor, labels: Tensor) -> None:
        if self._replay is None:
            self._inputs = inputs = (images.clone(), labels.clone())
            self._optimizer.zero_grad()
            self._replay = self.capture(lambda: self._run(*inputs, capturing=True))
            self._gradients = [p.grad for p in self._parameters()]
        for recorded, value in zip(self._inputs, (images, labels), strict=True):
            recorded.copy_(value)
        self._replay()
        # a short batch in between has put its own in their place, and callbacks read them
        for parameter, gradient in zip(self._parameters(), self._gradients, strict=True):
            parameter.grad = gradient

    def _run(self, images: Tensor, labels: Tensor, *, capturing: bool = False) -> None:
        groups: list[dict[str, Any]] = self._optimizer.param_groups
        before = [dict(group) for group in groups]
        for group, rate in zip(groups, self._rates, strict=True):
            group["lr"] = rate
            if capturing and "capturable" in group:
                group["capturable"] = True  # fused Adam is, and yet wants to be told
        try:
            self._capturable_step(images, labels)
        finally:
            for group, values in zip(groups, before, strict=True):
                group.update(values)

    def _parameters(self) -> list[Tensor]:
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    # --- what only CUDA has --------------------------------------------------------------------

    @contextmanager
    def on_side_stream(self) -> Iterator[None]:
        """On a stream of its own, as torch wants the steps before a recording."""
        main = torch.cuda.current_stream(self._device)
        if self._side is None:  # one for all: memory is kept for each stream apart
            self._side = torch.cuda.Stream(self._device)
        self._side.wait_stream(main)
        with torch.cuda.stream(self._side):
            yield
        main.wait_stream(self._side)

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """Records what ``run`` would launch; what is returned launches it."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        replay: Callable[[], None] = graph.replay
        return replay
