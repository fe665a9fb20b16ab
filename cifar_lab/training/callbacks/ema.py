"""An exponential moving average of the weights, which is what validation and test see."""

from __future__ import annotations

from lightning.pytorch import Trainer
from torch.optim.swa_utils import get_ema_multi_avg_fn

from cifar_lab.errors import InputError
from cifar_lab.training.callbacks.averages import Averages
from cifar_lab.training.layout import ChecksLayout, Layout


class Ema(Averages, ChecksLayout):
    """After every optimizer step ``average = decay * average + (1 - decay) * weights``.

    BatchNorm's running statistics are averaged too. Source: Polyak and Juditsky,
    doi:10.1137/0330046; the form is that of arXiv:1703.01780.

    Args:
        decay: in (0, 1); .99 looks about 100 steps back.
        start_step: optimizer steps before the average begins; it is the weights themselves so far.
    """

    def __init__(self, *, decay: float, start_step: int) -> None:
        if not 0 < decay < 1:
            raise InputError(f"decay={decay}: must lie in (0, 1), e.g. 0.99")
        if start_step < 0:
            raise InputError(f"start_step={start_step}: must be at least 0")
        super().__init__(get_ema_multi_avg_fn(decay))
        self._start_step = start_step

    def check_layout(self, trainer: Trainer, layout: Layout) -> None:
        """Raises InputError where the average would be of the last weights alone, or of none."""
        if self._start_step and self._start_step > layout.steps - 2:
            raise InputError(
                f"start_step={self._start_step}: the fit ends after {layout.steps} optimizer "
                f"steps, and there would be no average; must be at most {max(0, layout.steps - 2)}"
            )

    def had_no_part(self, trainer: Trainer, layout: Layout) -> str | None:
        """The fit ended before the first average."""
        return "no weights were averaged" if self.averaged_none() else None

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """After every step from ``start_step`` on; ``step_idx`` counts from 0."""
        return step_idx is not None and step_idx >= self._start_step
