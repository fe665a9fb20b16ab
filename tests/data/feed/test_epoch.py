"""Positions, calls and shares of an epoch, held against plain counting."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import pytest
import torch

from cifar_lab.data.feed.epoch import (
    Batch,
    EpochLoader,
    Multistep,
    Share,
    batches_in,
    epoch_order,
    images_in,
    stream,
)


def batch(*shape: int) -> Batch:
    return torch.zeros(*shape, 3, 4, 4), torch.zeros(*shape)


def test_a_batch_is_one_and_a_block_as_many_as_it_stacks() -> None:
    assert (batches_in(batch(7)), images_in(batch(7))) == (1, 7)
    assert (batches_in(batch(5, 7)), images_in(batch(5, 7))) == (5, 35)


# --- order ----------------------------------------------------------------------------------------


def test_a_stream_is_a_function_of_seed_epoch_and_purpose() -> None:
    keys = [(s, e, p) for s in (0, 1) for e in (0, 1) for p in ("order", "augment")]
    first = [stream(*key).initial_seed() for key in keys]  # type: ignore[arg-type]
    assert first == [stream(*key).initial_seed() for key in keys]  # type: ignore[arg-type]
    assert len(set(first)) == len(keys)


def test_the_order_is_a_permutation_that_depends_on_seed_and_epoch() -> None:
    def order(seed: int, epoch: int, shuffle: bool = True) -> list[int]:
        return epoch_order(50, seed=seed, epoch=epoch, shuffle=shuffle).tolist()

    assert order(0, 0, shuffle=False) == order(3, 5, shuffle=False) == list(range(50))
    orders = [order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(one) == list(range(50)) for one in orders)
    assert len(set(map(tuple, orders))) == 4
    assert order(1, 1) == orders[-1]
    # its own stream: what augmentation draws tells nothing of it
    by_hand = torch.randperm(50, generator=stream(1, 1, "order")).tolist()
    assert order(1, 1) == by_hand


# --- where a loader is ----------------------------------------------------------------------------


class Counting(EpochLoader):
    """Four batches of one image, or several for each call, labelled 10 * epoch + position."""

    def _batches(self, epoch: int, first: int) -> Iterator[Batch]:
        if self.multistep is None:
            for position in range(first, 4):
                yield torch.zeros(1, 3, 4, 4), torch.tensor([10 * epoch + position])
            return
        while first < 4:
            end = self.multistep.end(epoch, first)
            labels = torch.arange(first, end).view(-1, 1) + 10 * epoch
            yield torch.zeros(end - first, 1, 3, 4, 4), labels
            first = end


def counting() -> Counting:
    share = Share(count=4, batch_size=1, drop_last=False, rank=0, world_size=1)
    cpu = torch.device("cpu")
    return Counting(
        share=share, indices=torch.arange(4), seed=0, shuffle=False, device=cpu, channels_last=False
    )


def labels_of(batches: Iterator[Batch]) -> list[int]:
    return [int(label) for _, labels in batches for label in labels.flatten()]


def test_each_iteration_is_the_next_epoch() -> None:
    loader = counting()
    assert (loader.epoch, loader.position, len(loader)) == (0, 0, 4)
    assert labels_of(iter(loader)) == [0, 1, 2, 3]
    assert loader.state_dict() == {"epoch": 0, "position": 4}
    assert labels_of(iter(loader)) == [10, 11, 12, 13]
    assert loader.state_dict() == {"epoch": 1, "position": 4}


def test_making_an_iterator_begins_nothing() -> None:
    loader = counting()
    iter(loader), iter(loader)
    assert loader.state_dict() == {"epoch": 0, "position": 0}
    assert labels_of(iter(loader)) == [0, 1, 2, 3]


def test_the_position_counts_a_batch_before_it_is_handed_out() -> None:
    loader = counting()
    assert [loader.position for _ in loader] == [1, 2, 3, 4]
    loader.multistep = Multistep(size=3, full=4, batches=4, max_steps=None)
    assert [loader.position for _ in loader] == [3, 4]
    assert len(loader) == 2


def test_setting_an_epoch_begins_it_from_the_start() -> None:
    loader = counting()
    next(iter(loader))
    loader.set_epoch(5)
    assert loader.state_dict() == {"epoch": 5, "position": 0}
    assert labels_of(iter(loader)) == [50, 51, 52, 53]
    loader.batch_sampler.sampler.set_epoch(5)  # where Lightning looks for it
    assert labels_of(iter(loader)) == [50, 51, 52, 53]


@pytest.mark.parametrize("position", range(5))
def test_a_restored_loader_hands_out_what_was_still_to_come(position: int) -> None:
    loader = counting()
    loader.load_state_dict({"epoch": 2, "position": position})
    # an epoch that was over is followed by the next
    expected = [20, 21, 22, 23][position:] or [30, 31, 32, 33]
    epoch = expected[0] // 10
    assert loader.state_dict() == {"epoch": epoch, "position": position % 4}
    again = counting()
    again.load_state_dict(loader.state_dict())
    loader.set_epoch(epoch)  # as Lightning does in an epoch that it takes up
    assert labels_of(iter(loader)) == expected
    assert labels_of(iter(again)) == expected  # and without
    # only that once, and only in that epoch
    loader.set_epoch(epoch)
    assert loader.state_dict() == {"epoch": epoch, "position": 0}
    other = counting()
    other.load_state_dict({"epoch": 2, "position": 1})
    other.set_epoch(3)
    assert labels_of(iter(other)) == [30, 31, 32, 33]


def test_a_restored_epoch_is_followed_by_the_next() -> None:
    loader = counting()
    assert labels_of(iter(loader)) == [0, 1, 2, 3]
    loader.load_state_dict({"epoch": 2, "position": 1})
    assert labels_of(iter(loader)) == [21, 22, 23]
    assert labels_of(iter(loader)) == [30, 31, 32, 33]
    loader.load_state_dict({"epoch": 2, "position": 1})
    loader.set_epoch(2)
    assert labels_of(iter(loader)) == [21, 22, 23]
    # the position was the restored epoch's, once
    loader.set_epoch(2)
    assert labels_of(iter(loader)) == [20, 21, 22, 23]


# --- several steps per call -----------------------------------------------------------------------

CUTS = [
    (size, full, full + short) for size in (1, 2, 3, 5) for full in range(8) for short in (0, 1)
]


@pytest.mark.parametrize(("size", "full", "batches"), CUTS, ids=str)
def test_blocks_are_those_of_plain_counting(size: int, full: int, batches: int) -> None:
    multistep = Multistep(size=size, full=full, batches=batches, max_steps=None)
    # the full batches in groups of `size`, then the short one alone
    ends = [*range(size, full, size), *([full] if full else []), *range(full + 1, batches + 1)]
    assert multistep.calls_per_epoch == len(ends)
    assert [multistep.batches_done(index) for index in range(len(ends) + 1)] == [0, *ends]
    for position in range(batches):
        assert multistep.end(0, position) == next(end for end in ends if end > position)
        # begun ones don't count
        assert multistep.calls_done(position) == sum(end <= position for end in ends)
    assert multistep.calls_done(batches) == len(ends)


@pytest.mark.parametrize("max_steps", range(1, 22))
def test_a_block_ends_where_the_fit_does(max_steps: int) -> None:
    multistep = Multistep(size=3, full=7, batches=7, max_steps=max_steps)
    unbounded = Multistep(size=3, full=7, batches=7, max_steps=None)
    for epoch in range(3):
        for position in range(7):
            end, made = multistep.end(epoch, position), 7 * epoch + position
            if made < max_steps:
                assert end == min(unbounded.end(epoch, position), max_steps - 7 * epoch)
            else:  # beyond it nothing is asked for but by a loader's look ahead
                assert end == unbounded.end(epoch, position)


@pytest.mark.parametrize(
    ("size", "full", "batches"), [(0, 1, 1), (1, -1, 0), (1, 2, 1), (1, 2, 4)], ids=str
)
def test_blocks_that_can_not_be_are_refused(size: int, full: int, batches: int) -> None:
    with pytest.raises(AssertionError):
        Multistep(size=size, full=full, batches=batches, max_steps=None)


# --- shares ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("count", range(14))
def test_shares_are_those_of_plain_dealing(count: int, world_size: int, drop_last: bool) -> None:
    size = 6
    shares = [
        Share(count=count, batch_size=size, drop_last=drop_last, rank=r, world_size=world_size)
        for r in range(world_size)
    ]
    batches = [list(range(count))[i : i + size] for i in range(0, count, size)]
    if batches and len(batches[-1]) < size:
        last = batches.pop()
        kept = [] if drop_last else last[: len(last) - len(last) % world_size]
        batches += [kept] if kept else []
    dealt = [list(chain(*(batch[r::world_size] for batch in batches))) for r in range(world_size)]
    for share, expected in zip(shares, dealt, strict=True):
        assert share.of(torch.arange(count)).tolist() == expected
        assert share.num_batches == len(batches)
        assert share.used == sum(map(len, batches))
        assert share.local_batch_size == size // world_size


@pytest.mark.parametrize(
    "wrong",
    [
        {"rank": -1},
        {"rank": 2},
        {"batch_size": 0},
        {"batch_size": 5},
        {"world_size": 0},
        {"batch_size": -2},
    ],
    ids=str,
)
def test_shares_that_can_not_be_are_refused(wrong: dict[str, int]) -> None:
    right = {"count": 9, "batch_size": 4, "drop_last": False, "rank": 0, "world_size": 2}
    Share(**right)  # type: ignore[arg-type]
    with pytest.raises((AssertionError, ZeroDivisionError)):
        Share(**{**right, **wrong})  # type: ignore[arg-type]
