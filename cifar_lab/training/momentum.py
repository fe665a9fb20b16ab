"""Momentum buffers that exist before the step that needs them.

torch's fused SGD makes its buffers as uninitialized memory, for the kernel to fill at the first
step. Two things come in between: float16's gradient scaler, with which the kernel skips a step that
overflowed (the first ones do, routinely), and parameters that join later, as layers that thaw do:
a step with buffers for some of a group's parameters fails.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import SGD, Optimizer


def keep_momentum_defined(optimizer: Optimizer) -> None:
    """Has a fused SGD begin with zeros where its own first step may not fill the buffers.

    That is torch's rule in other words: it begins with the gradient, which is ``momentum * 0 +
    gradient``. (Not with dampening, which it leaves out of the first step: `checks.check_devices`
    refuses that with a scaler.) Buffers that exist and ordinary first steps are left alone, and so
    are other optimizers: the states of fused Adam and Adagrad begin with zeros as it is, and the
    scaler doesn't call the unfused ones for a step that overflowed.
    """
    if isinstance(optimizer, SGD):
        optimizer.register_step_pre_hook(_fill)


def _fill(optimizer: Optimizer, *_: Any) -> None:
    may_skip = getattr(optimizer, "found_inf", None) is not None  # the scaler sets it for a step
    for group in optimizer.param_groups:
        if not group["fused"] or not group["momentum"] or group["dampening"]:
            continue
        # by `requires_grad`: where Lightning hands backward over as a closure, no gradient is there
        trained = [p for p in group["params"] if p.requires_grad]
        new = [p for p in trained if "momentum_buffer" not in optimizer.state.get(p, ())]
        if may_skip or len(new) < len(trained):
            for p in new:
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
