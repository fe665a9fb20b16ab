"""Muon: momentum whose steps are orthogonal matrices; what is no matrix gets Nesterov's SGD.

Source: K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024,
kellerjordan.github.io/posts/muon). torch's own of this name takes matrices alone, no filters of
four dimensions and nothing beside them, and always iterates in bfloat16 (torch 2.15).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.sgd import sgd

from cifar_lab.config.validate import emulates_bfloat16
from cifar_lab.errors import InputError
from cifar_lab.training.fused_sgd import moves_all

# of the quintic polynomial: the slope at 0 is large, and values in 0.7..1.2 stay there
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_TINY = 1e-7
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def orthogonalized(matrices: Tensor, *, steps: int, dtype: torch.dtype) -> Tensor:
    """The nearest orthogonal matrices, roughly: singular values come to lie in about 0.5..1.5.

    A Newton-Schulz iteration: for ``U S V^T`` it gives ``U S' V^T``, with no decomposition.

    Args:
        matrices: (..., m, n).
        steps: of the iteration; 5 bring singular values from 1% of the norm on into the range.
        dtype: that is computed in.

    Returns:
        (..., m, n) in ``dtype``.
    """
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x: Tensor = (matrices.mT if tall else matrices).to(dtype)
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + _TINY)  # no singular value above 1
    for _ in range(steps):
        gram = _product(x, x.mT)
        x = a * x + _product(b * gram + _product(c * gram, gram), x)
    return x.mT if tall else x


def _product(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right``; of bfloat16 without instructions for it in float32, and rounded once.

    Which is what the instructions do. torch's own product took 15 times as long on a processor
    that has AVX2 alone, and a step of ``cnn_strong`` 21 times (docs/benchmarks.md).
    """
    if left.dtype is torch.bfloat16 and left.device.type == "cpu" and emulates_bfloat16():
        return (left.float() @ right.float()).to(left.dtype)
    return left @ right


class Muon(Optimizer):
    """Filters and matrices by Muon, everything else by SGD with momentum, in one optimizer.

    A parameter of two or more dimensions in a group with ``orthogonal`` is taken as a matrix of one
    row per output. Its momentum's step is made orthogonal, and so moves all directions alike::

        buffer = momentum * buffer + gradient
        step   = orthogonalized(gradient + momentum * buffer)    (nesterov; else of the buffer)
        weight = weight * sqrt(rows) / norm(weight)              (normalize)
        weight = weight * (1 - lr * weight_decay) - lr * step

    The others step as `torch.optim.SGD` does, weight decay being added to the gradient. Steps of
    the two kinds are of different sizes: parameters that are not orthogonal want a group of their
    own (``optimizer/groups=muon``).

    Args:
        params: parameters, (name, parameter) pairs, or groups of them.
        lr: learning rate.
        momentum: in [0, 1).
        nesterov: looks one step ahead.
        weight_decay: of the matrices decoupled, as in AdamW; of the rest as in SGD.
        orthogonal: whether a group's matrices are stepped by Muon.
        normalize: whether they are scaled to a norm of sqrt(rows) before the step, as the
            speedrun does; weight decay has no effect on their direction then.
        iterations: Newton-Schulz steps.
        dtype: of these, ``float32`` or ``bfloat16``.

    Raises:
        InputError: a number out of range, no such dtype, or nothing to make orthogonal.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        momentum: float,
        nesterov: bool,
        weight_decay: float,
        orthogonal: bool,
        normalize: bool,
        iterations: int,
        dtype: Literal["float32", "bfloat16"],
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "orthogonal": orthogonal,
            "normalize": normalize,
            "iterations": iterations,
            "dtype": dtype,
            # for a recorded step: the rate may be a tensor on the device, and nothing waits for it
            "capturable": True,
        }
        super().__init__(params, defaults)
        for group in self.param_groups:
            _check(group)
        stepped = [p for g in self.param_groups if g["orthogonal"] for p in g["params"]]
        if orthogonal and all(p.ndim < 2 for p in stepped):
            raise InputError(
                "orthogonal=true: there is no filter and no matrix among its parameters; use "
                "optimizer=sgd, or a group with orthogonal: true"
            )

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of every parameter that has a gradient; the closure's loss, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            matrices = [p for p in trained if group["orthogonal"] and p.ndim > 1]
            rest = [p for p in trained if not (group["orthogonal"] and p.ndim > 1)]
            if matrices:
                self._step_matrices(matrices, group)
            if rest:
                self._step_rest(rest, group)
        return loss

    def _step_matrices(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        lr, dtype = group["lr"], _DTYPES[group["dtype"]]
        ends = "until" in group  # with a rate of 0 from there on, and its weights stay
        if ends and not isinstance(lr, Tensor) and lr == 0:
            return
        # those of one shape at once: a small network's time goes into launching kernels
        alike: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for parameter in parameters:
            matrix = self._with_momentum(parameter, group).reshape(len(parameter), -1)
            alike[tuple(matrix.shape)].append((parameter, matrix))
        for pairs in alike.values():
            stack = torch.stack([matrix for _, matrix in pairs])
            orthogonal = orthogonalized(stack, steps=group["iterations"], dtype=dtype)
            for (parameter, _), step in zip(pairs, orthogonal, strict=True):
                if group["normalize"]:
                    # what begins as zeros stays so until its first step
                    scale = len(parameter) ** 0.5 / parameter.norm().clamp_min(_TINY)
                    if ends and isinstance(lr, Tensor):
                        scale = torch.where(lr > 0, scale, torch.ones_like(scale))
                    parameter.mul_(scale)
                if group["weight_decay"]:
                    parameter.mul_(1 - lr * group["weight_decay"])
                parameter.sub_(step.view(parameter.shape) * lr)

    def _step_rest(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        momentum = group["momentum"]
        sgd(
            parameters,
            [_gradient(p) for p in parameters],
            [self._buffer(p) if momentum else None for p in parameters],
            # takes a rate on the device too
            fused=all(p.device.type != "cpu" or moves_all(p.dtype) for p in parameters),
            weight_decay=group["weight_decay"],
            momentum=momentum,
            lr=group["lr"],
            dampening=0.0,
            nesterov=group["nesterov"] and momentum > 0,
            maximize=False,
        )

    def _with_momentum(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        gradient, momentum = _gradient(parameter), group["momentum"]
        if not momentum:
            return gradient
        buffer = self._buffer(parameter).mul_(momentum).add_(gradient)
        return gradient.add(buffer, alpha=momentum) if group["nesterov"] else buffer

    def _buffer(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum_buffer"]
        return buffer


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _check(group: dict[str, Any]) -> None:
    if not 0 <= group["momentum"] < 1:
        raise InputError(f"momentum={group['momentum']}: must lie in [0, 1)")
    for name in ("lr", "weight_decay"):
        if group[name] < 0:
            raise InputError(f"{name}={group[name]}: must be at least 0")
    if not isinstance(group["iterations"], int) or not 1 <= group["iterations"] <= 20:
        raise InputError(f"iterations={group['iterations']}: must lie in 1..20")
    if group["dtype"] not in _DTYPES:
        raise InputError(f"dtype={group['dtype']}: must be one of {', '.join(_DTYPES)}")
