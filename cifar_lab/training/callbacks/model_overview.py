"""What TensorBoard says of a run besides its curves: configuration, graph, first-layer filters."""

from __future__ import annotations

import copy
import logging
import warnings
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from cifar_lab.training.loggers.tensorboard import TensorBoard, decoration
from cifar_lab.training.trial import untouched

log = logging.getLogger("cifar_lab")
FILTERS = "model/first_layer_filters"
_FILTER_PIXELS = 36  # the width that a filter gets at least, on the screen
_IN_A_ROW = 8


class ModelOverview(Callback):
    """Writes into TensorBoard; does nothing without one.

    Once per run: the resolved configuration (Text), the network (Graphs; left out where it can't
    be traced). The filters of the first convolution on RGB images, before the first step and after
    the last one (Images). Neither weights nor RNGs nor running statistics change.

    Args:
        graph: whether to trace the network: 0.03 s for a small one, 0.1 s for a ResNet-18, more the
            deeper it is.
    """

    def __init__(self, *, graph: bool) -> None:
        self._graph = graph

    @rank_zero_only
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes what is known before the first step, in the run's first start."""
        network = pl_module.network
        assert isinstance(network, nn.Module)
        for board in _boards(trainer):
            if not board.begins:
                continue
            with decoration("the configuration"):
                board.experiment.add_text("configuration", as_text(pl_module.hparams["config"]), 0)
            _add_filters(board, network, 0)
            if self._graph:
                _add_graph(board, network, trainer.datamodule.dataset.image_size)  # type: ignore[attr-defined]  # ours
            _save(board)

    @rank_zero_only
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the filters again, of the last epoch's weights."""
        network = pl_module.network
        assert isinstance(network, nn.Module)
        # the number of the last step: TensorBoard.resume() drops what is numbered higher
        step = max(0, trainer.global_step - 1)
        for board in _boards(trainer):
            _add_filters(board, network, step)
            _save(board)


def _boards(trainer: Trainer) -> list[TensorBoard]:
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoard)]


def as_text(config: dict[str, Any]) -> str:
    """The configuration as YAML in a Markdown code block."""
    import yaml

    # dashes would end the block early: no string of a configuration has three backticks
    return f"```yaml\n{yaml.safe_dump(config, sort_keys=False, allow_unicode=True)}```"


def filter_sheet(network: nn.Module) -> Tensor | None:
    """(3, H, W) in [0, 1]: the filters of the first convolution with three input channels.

    Grey is zero; the largest weight of all is black or white, so that filters can be compared.
    None where the network has no such convolution.
    """
    from torchvision.utils import make_grid

    first = next(
        (m for m in network.modules() if isinstance(m, nn.Conv2d) and m.in_channels == 3), None
    )
    if first is None or first.groups > 1:
        return None
    with untouched(first):  # spectral_norm's estimate moves where its weight is read in training
        weights = first.eval().weight.detach().float().cpu()
    if not bool(torch.isfinite(weights).all()):
        return None
    shade = 0.5 + weights / (2 * weights.abs().max().clamp(min=1e-12))
    scale = -(-_FILTER_PIXELS // weights.shape[-1])
    large = shade.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    sheet: Tensor = make_grid(large, nrow=_IN_A_ROW, padding=2, pad_value=1.0)
    return sheet


def _add_filters(board: TensorBoard, network: nn.Module, step: int) -> None:
    with decoration("the first layer's filters"):
        if (sheet := filter_sheet(network)) is not None:
            board.experiment.add_image(FILTERS, sheet, step)


def _save(board: TensorBoard) -> None:
    with decoration("configuration, filters or graph"):
        board.save()


def _add_graph(board: TensorBoard, network: nn.Module, size: tuple[int, ...]) -> None:
    try:
        traced, images = _traced(network, size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            board.experiment.add_graph(traced, images)  # as it is: tracing it again is a no-op
    except Exception as error:  # any network may be trained, whether it can be traced or not
        log.debug("no network graph for TensorBoard: %s", error)


def _traced(network: nn.Module, size: tuple[int, ...]) -> tuple[torch.jit.ScriptModule, Tensor]:
    # of a copy: a hook, a compiled forward or running statistics of the original stay untouched
    copied = copy.deepcopy(network).cpu().eval().requires_grad_(False)
    dtype = next((p.dtype for p in copied.parameters()), torch.float32)
    images = torch.zeros(1, *size, dtype=dtype)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        # add_graph knows no other way than torch.jit.trace, which torch has deprecated
        warnings.simplefilter("ignore")
        # unchecked: the check traces a second time, for two thirds of the time
        return torch.jit.trace(copied, images, check_trace=False), images
