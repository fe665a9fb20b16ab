from __future__ import annotations

import pytest
import torch

from benchmarks.feed import images_per_s, our_feed, pil_feed, table
from cifar_lab.data.synthetic import make_synthetic

CPU = torch.device("cpu")


def test_both_feeds_give_batches_alike_and_every_turn_a_figure() -> None:
    split = make_synthetic(train_size=60, test_size=10, data_seed=0).train
    feeds = {"ours": our_feed(split, 20, CPU), "PIL": pil_feed(split, 20, CPU, workers=0)}
    ours, pil = (torch.cat([next(feed)[0] for _ in range(30)]) for feed in feeds.values())
    assert ours.shape == pil.shape == (600, 3, 32, 32)
    assert ours.mean() == pytest.approx(float(pil.mean()), abs=0.05)
    assert ours.std() == pytest.approx(float(pil.std()), abs=0.05)
    rates = images_per_s(
        {name: (feed, len) for name, feed in feeds.items()}, turns=2, turn_s=0.01, device=CPU
    )
    assert [len(values) for values in rates.values()] == [2, 2]
    assert all(value > 0 for values in rates.values() for value in values)


def test_ratios_are_of_the_medians_to_the_first_variant() -> None:
    shown = table("title", {"ours": [100.0, 300.0, 200.0], "other": [50.0, 40.0, 90.0]})
    assert shown.splitlines()[-1].split() == ["other", "50", "40", "90", "4.00"]
