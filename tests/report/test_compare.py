"""Configurations are grouped, selected and told apart as the method says."""

from __future__ import annotations

import shlex
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cifar_lab.report.compare import Ranking, best_run, confusions, indistinguishable, rank
from cifar_lab.report.groups import Group, Key, group, level_of
from cifar_lab.report.notes import notes
from cifar_lab.report.read import Reader
from cifar_lab.report.statistics import against_best, mcnemar
from cifar_lab.report.verdict import alike, failures, method, repeat_command, selected_note, verdict
from tests.report.conftest import config_of, write_run


def read_groups(root: Path) -> tuple[list[Group], list[Key]]:
    return group(Reader(root).read().runs)


def ranking_of(root: Path) -> Ranking:
    [ranking] = rank(read_groups(root)[0])
    return ranking


def write_seeds(root: Path, name: str, tests: list[float], **fields: Any) -> None:
    for seed, test in enumerate(tests):
        write_run(root / f"{name}-{seed}", seed=seed, test=test, **fields)


def test_runs_that_differ_by_seed_and_paths_are_one_configuration(tmp_path: Path) -> None:
    for seed in range(3):
        elsewhere = config_of(0.1, [1, 1], slots=seed, seed=seed)
        elsewhere["data"]["root"] = f"/other/{seed}"
        write_run(tmp_path / str(seed), seed=seed, config=elsewhere)
    [only], keys = read_groups(tmp_path)
    assert len(only.counted) == 3
    assert keys == []


def test_a_configuration_is_named_by_as_few_keys_as_tell_it_apart(tmp_path: Path) -> None:
    # momentum changes together with lr: it tells nothing more
    for number, (lr, blocks) in enumerate([(0.1, (1,)), (0.1, (1, 1)), (0.3, (1,))]):
        config = config_of(lr, blocks, seed=0)
        config["optimizer"]["momentum"] = 9 * lr
        write_run(tmp_path / str(number), lr=lr, num_blocks=blocks, config=config)
    groups, keys = read_groups(tmp_path)
    assert [key.key for key in keys] == ["optimizer.lr", "model.num_blocks"]
    assert groups[0].label == "lr=0.1 num_blocks=[1]"
    assert keys[0].levels == ("0.1", "0.3")
    assert (keys[0].numeric, keys[1].numeric) == (True, False)


def test_different_values_never_share_a_level(tmp_path: Path) -> None:
    # a line or a cell of a chart would be the mean over them
    rates, targets = (0.10001, 0.100012), ("torch.optim.SGD", "mine.SGD")
    for number, (lr, target) in enumerate(product(rates, targets)):
        config = config_of(lr, [1, 1], seed=0)
        config["optimizer"]["_target_"] = target
        write_run(tmp_path / str(number), config=config)
    groups, keys = read_groups(tmp_path)
    assert {key.key: key.levels for key in keys} == {
        "optimizer.lr": ("0.10001", "0.100012"),
        "optimizer._target_": ("mine.SGD", "torch.optim.SGD"),
    }
    shown = {tuple(level_of(key, one) for key in keys) for one in groups}
    assert len(shown) == 4


def test_the_same_seed_again_is_counted_once_the_latest(tmp_path: Path) -> None:
    write_run(tmp_path / "a", test=0.4, ended="2026-01-02T00:00:00Z")
    write_run(tmp_path / "b", test=0.5, ended="2026-01-01T00:00:00Z")
    [only], _ = read_groups(tmp_path)
    assert [run.name for run in only.counted] == ["a"]
    assert [run.name for run in only.repeated] == ["b"]
    assert "repeat a seed" in notes([only], [])[0]


def test_only_finished_runs_count_and_the_others_are_told_of(tmp_path: Path) -> None:
    write_seeds(tmp_path, "good", [0.5, 0.6])
    for seed, status in enumerate(["failed", "diverged", "pruned", "interrupted"], start=2):
        # it ended before its data were read
        write_run(
            tmp_path / status, seed=seed, status=status, test=None, data=None, error="why\nand how"
        )
    groups, _ = read_groups(tmp_path)
    [only] = groups
    assert len(only.counted) == 2
    assert only.test is not None
    assert only.test.mean == pytest.approx(0.55)
    assert {run.status for run in failures(groups)} == {
        "failed",
        "diverged",
        "pruned",
        "interrupted",
    }
    assert {run.error for run in failures(groups)} == {"why"}
    assert any("survived" in note for note in notes(groups, rank(groups)))


def test_the_test_accuracy_never_selects_where_something_was_held_out(tmp_path: Path) -> None:
    write_seeds(tmp_path, "a", [0.5, 0.5], lr=0.1, val=(0.7,))
    write_seeds(tmp_path, "b", [0.9, 0.9], lr=0.2, val=(0.6,))
    ranking = ranking_of(tmp_path)
    assert ranking.held_out
    assert ranking.ranked[0].label == "lr=0.1"
    assert (
        "worse" in verdict(ranking) or "noise" in verdict(ranking) or "no test" in verdict(ranking)
    )


def test_where_nothing_was_held_out_the_report_says_so(tmp_path: Path) -> None:
    write_seeds(tmp_path, "a", [0.5, 0.5], lr=0.1, val=())
    write_seeds(tmp_path, "b", [0.9, 0.9], lr=0.2, val=())
    ranking = ranking_of(tmp_path)
    assert not ranking.held_out
    assert ranking.ranked[0].label == "lr=0.2"
    assert any("nothing was held out" in note for note in notes(ranking.ranked, [ranking]))


def test_data_sets_are_never_compared_with_each_other(tmp_path: Path) -> None:
    write_run(tmp_path / "a", lr=0.1)
    write_run(tmp_path / "b", lr=0.2, data={"name": "synthetic", "digest": "5" * 64})
    write_run(tmp_path / "c", lr=0.1, data={"name": "cifar10", "digest": "6" * 64})
    rankings = rank(read_groups(tmp_path)[0])
    assert [r.data_name for r in rankings] == ["cifar10 d7c0b9ac", "synthetic", "cifar10 66666666"]
    assert all(len(r.ranked) == 1 and not r.comparisons for r in rankings)


def test_two_seeds_and_more_are_compared_by_welch_corrected_for_the_choice(tmp_path: Path) -> None:
    write_seeds(tmp_path, "a", [0.90, 0.91, 0.92], lr=0.1, val=(0.9,))
    write_seeds(tmp_path, "b", [0.80, 0.81, 0.79], lr=0.2, val=(0.8,))
    write_seeds(tmp_path, "c", [0.90, 0.93], lr=0.3, val=(0.7,))
    ranking = ranking_of(tmp_path)
    assert [c.test for c in ranking.comparisons] == ["Welch", "Welch"]
    best, *others = [group.test for group in ranking.ranked]
    assert best is not None
    found = against_best(best, [other for other in others if other])
    assert [(c.p, c.p_adjusted) for c in ranking.comparisons] == found
    assert [group.label for group in indistinguishable(ranking)] == ["lr=0.3"]
    assert "It is better, beyond noise (Welch's t test, test accuracies of 3 and 3 seeds: p = " in (
        verdict(ranking)
    )
    assert verdict(ranking).endswith(", corrected for the choice of the best of 3).")
    assert alike(ranking) == "1 of the 2 others can't be told from it by these runs."
    assert "independent seeds" in method(ranking)
    assert "lucky in validation" in selected_note(ranking)


def test_single_runs_are_compared_by_mcnemar_on_runs_of_the_same_seed(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    right = {name: random.random(1000) < share for name, share in (("a", 0.9), ("b", 0.7))}
    write_run(tmp_path / "a0", lr=0.1, seed=0, val=(0.9,), predictions=random.random(1000) < 0.5)
    write_run(tmp_path / "a1", lr=0.1, seed=1, val=(0.9,), predictions=right["a"])
    write_run(tmp_path / "b1", lr=0.2, seed=1, val=(0.8,), predictions=right["b"])
    write_run(tmp_path / "c2", lr=0.3, seed=2, val=(0.7,), predictions=random.random(1000) < 0.8)
    ranking = ranking_of(tmp_path)
    first, second = ranking.comparisons
    assert (first.test, second.test) == ("McNemar", "McNemar")
    assert first.p == mcnemar(right["a"], right["b"])[0]
    assert first.p_adjusted == 3 * first.p  # of 3 pairs
    assert "seeds 1 and 1" in first.why
    assert "seeds 0 and 2" in second.why


def test_one_run_each_never_makes_a_configuration_better(tmp_path: Path) -> None:
    # one seed, with an average of weights: its network is the better one, beyond all doubt
    random = np.random.default_rng(0)
    for name, lr, share in (("swa", 0.1, 0.9), ("b", 0.2, 0.7), ("c", 0.3, 0.7)):
        right = random.random(2000) < share
        test = float(right.mean())
        write_run(tmp_path / name, lr=lr, val=(test,), test=test, predictions=right)
    ranking = ranking_of(tmp_path)
    assert max(c.p_adjusted or 1 for c in ranking.comparisons) < 1e-6
    assert "Of these two trained networks it is the better, beyond noise" in verdict(ranking)
    assert verdict(ranking).endswith("one run each can't tell: give more seeds.")
    assert len(indistinguishable(ranking)) == 2
    assert alike(ranking) == "2 of the 2 others can't be told from it by these runs."
    assert "Says nothing of the configurations" in method(ranking)


def test_one_seed_among_repeated_ones_is_not_tested(tmp_path: Path) -> None:
    # by another test it would be a second chance of a false alarm
    write_seeds(tmp_path, "a", [0.90, 0.91], lr=0.1, val=(0.9,))
    write_seeds(tmp_path, "b", [0.80, 0.82], lr=0.2, val=(0.8,))
    write_seeds(tmp_path, "c", [0.70], lr=0.3, val=(0.7,), predictions=np.ones(100, bool))
    first, second = ranking_of(tmp_path).comparisons
    assert (first.test, second.test) == ("Welch", "none")
    assert second.p_adjusted is None
    assert second.why == "only 2 and 1 seeds"
    assert first.p_adjusted == first.p  # what wasn't tested is no comparison to correct for


def test_a_best_of_one_seed_among_repeated_ones_is_said_to_be_untested(tmp_path: Path) -> None:
    write_seeds(tmp_path, "a", [0.95], lr=0.1, val=(0.9,), predictions=np.ones(100, bool))
    write_seeds(tmp_path, "b", [0.80, 0.82], lr=0.2, val=(0.8,))
    write_seeds(tmp_path, "c", [0.70, 0.71], lr=0.3, val=(0.7,))
    ranking = ranking_of(tmp_path)
    assert verdict(ranking).endswith("no test is possible (only 1 and 2 seeds).")
    assert method(ranking) == ""


def test_seeds_without_any_spread_are_not_tested(tmp_path: Path) -> None:
    write_seeds(tmp_path, "a", [0.9, 0.9], lr=0.1, val=(0.9,))
    write_seeds(tmp_path, "b", [0.1, 0.1], lr=0.2, val=(0.1,))
    ranking = ranking_of(tmp_path)
    assert verdict(ranking).endswith("no test is possible (no spread between the 2 and 2 seeds).")


def test_other_test_images_are_not_paired(tmp_path: Path) -> None:
    write_run(tmp_path / "a", lr=0.1, val=(0.9,), predictions=np.ones(100, bool))
    write_run(tmp_path / "b", lr=0.2, val=(0.8,), predictions=np.zeros(90, bool))
    [comparison] = ranking_of(tmp_path).comparisons
    assert comparison.test == "none"


def test_confusions_add_up_to_the_accuracy_over_all_seeds(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    right = [random.random(200) < 0.8 for _ in range(3)]
    for seed, answers in enumerate(right):
        write_run(tmp_path / str(seed), seed=seed, predictions=answers)
    [confusion] = confusions(ranking_of(tmp_path))
    assert confusion.runs == 3
    assert confusion.counts.sum() == 600
    assert np.trace(confusion.counts) == sum(int(r.sum()) for r in right)


def test_the_command_repeats_the_run_in_a_folder_of_its_own(tmp_path: Path) -> None:
    overrides = ["model.num_blocks=[1, 1]", "hydra.run.dir=/x y", "resume=must", "seed=3"]
    write_run(tmp_path / "a", val=(0.6,), overrides=overrides)
    words = shlex.split(repeat_command(best_run(ranking_of(tmp_path))))
    assert words == ["python", "-m", "cifar_lab", "model.num_blocks=[1, 1]", "seed=3"]


def test_two_networks_may_differ_the_other_way_round_than_the_means(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    shares = {"a0": (0.1, 0, 0.95), "a1": (0.1, 1, 0.6), "b1": (0.2, 1, 0.7)}
    for name, (lr, seed, share) in shares.items():
        right = random.random(1000) < share
        test = float(right.mean())
        write_run(tmp_path / name, lr=lr, seed=seed, val=(1 - lr,), test=test, predictions=right)
    ranking = ranking_of(tmp_path)
    [comparison] = ranking.comparisons
    assert "seeds 1 and 1" in comparison.why
    assert comparison.difference > 0
    assert comparison.pair is not None
    assert comparison.pair < 0
    assert "Of these two trained networks it is the worse, beyond noise" in verdict(ranking)
