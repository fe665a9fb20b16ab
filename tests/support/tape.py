"""A stand-in for a CUDA graph: the operators of one run, with the tensors that they had then.

As there, recording runs nothing that stays: what it changed is put back. A replay repeats the
operators on the very tensors of the recording and puts the results where they were then; Python is
not asked again, so numbers and choices that it made are those of the recording.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cifar_lab.training.steps.cuda_graph import GraphedStep


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class Tape(TorchDispatchMode):
    """Records while it is entered; `replay` repeats."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # of torch
        self._calls: list[tuple[Any, Any, dict[str, Any], list[tuple[int, Tensor]]]] = []
        self._made: dict[int, Tensor] = {}  # kept alive: no memory is used twice
        self._before: dict[int, tuple[Tensor, Tensor]] = {}
        self._rng = torch.get_rng_state()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for tensor in _tensors((args, kwargs)):
            place = _storage(tensor)
            if place and place not in self._made and place not in self._before:
                bytes_now = torch.tensor([], dtype=torch.uint8).set_(tensor.untyped_storage())
                self._before[place] = bytes_now, bytes_now.clone()
        given = {_storage(tensor) for tensor in _tensors((args, kwargs))}
        out = func(*args, **kwargs)
        new = [(i, t) for i, t in enumerate(_tensors(out)) if _storage(t) not in given]
        self._made |= {_storage(t): t for _, t in new}
        self._calls.append((func, args, kwargs, new))
        return out

    def put_back(self) -> None:
        """Everything that was there before the recording, as it was."""
        for now, before in self._before.values():
            now.copy_(before)
        torch.set_rng_state(self._rng)

    def replay(self) -> None:
        """The operators once more."""
        with torch.no_grad():
            for func, args, kwargs, made in self._calls:
                results = list(_tensors(func(*args, **kwargs)))
                for index, recorded in made:
                    recorded.detach().copy_(results[index].detach())


class Taped(GraphedStep):
    """A recorded step, on the CPU.

    Attributes:
        recordings: of all instances.
        replays: likewise.
    """

    recordings = 0
    replays = 0

    @contextmanager
    def on_side_stream(self) -> Iterator[None]:
        """There is one stream."""
        yield

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """Records on a `Tape`."""
        type(self).recordings += 1
        with Tape() as tape:
            run()
        tape.put_back()

        def replay() -> None:
            type(self).replays += 1
            tape.replay()

        return replay
