"""How fast training goes, known without waiting for the device."""

from __future__ import annotations

from collections import deque
from operator import add
from typing import Any, NamedTuple

import torch
from torch import Tensor

WINDOW_S = 10.0  # images/s and time left follow the last seconds, not the whole run


class Sample(NamedTuple):
    """How far training was at one moment: all counts since this process began to train."""

    training_s: float
    batches: int
    images: float

    def plus(self, other: Sample) -> Sample:
        """The sum of both, count by count."""
        return Sample(*map(add, self, other))


class Rate:
    """Recent speed, over a sliding window of training time.

    Args:
        window_s: length of the window.
    """

    def __init__(self, *, window_s: float = WINDOW_S) -> None:
        self._window_s = window_s
        self._samples: deque[Sample] = deque()

    def add(self, sample: Sample) -> None:
        """Appends a sample; older ones stay while they are needed to span the window."""
        self._samples.append(sample)
        while len(self._samples) > 2 and sample.training_s - self._samples[1].training_s >= (
            self._window_s
        ):
            self._samples.popleft()

    def per_s(self) -> tuple[float, float] | None:
        """(batches/s, images/s), or None before two moments are known."""
        if len(self._samples) < 2:
            return None
        first, last = self._samples[0], self._samples[-1]
        elapsed = last.training_s - first.training_s
        if elapsed <= 0 or last.batches <= first.batches:
            return None
        return (last.batches - first.batches) / elapsed, (last.images - first.images) / elapsed


class LaggedCopy:
    """Brings a small tensor to the host without waiting: `read` gives what an earlier call copied.

    On CUDA the copy goes through pinned memory and an event says when it is whole; elsewhere it is
    read directly (on MPS that waits, twice a second).
    """

    def __init__(self) -> None:
        self._pinned: Tensor | None = None
        self._copied: torch.cuda.Event | None = None
        self._coming: Any = None

    def read(self, source: Tensor, moment: Any) -> tuple[list[float], Any] | None:
        """The values and the ``moment`` of the newest whole copy; None if no new one is whole."""
        if source.device.type != "cuda":
            return source.tolist(), moment
        ready = None
        if self._copied is not None:
            if not self._copied.query():
                return None  # the device is behind: the buffer is still being written
            assert self._pinned is not None
            ready = self._pinned.tolist(), self._coming
        if self._pinned is None:
            self._pinned = torch.empty_like(source, device="cpu", pin_memory=True)
        self._pinned.copy_(source, non_blocking=True)
        self._copied = torch.cuda.Event()
        self._copied.record(torch.cuda.current_stream(source.device))
        self._coming = moment
        return ready

    def forget(self) -> None:
        """Drops the copy on its way: it belongs to sums that have been reset since."""
        self._copied = None
