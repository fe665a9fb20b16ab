"""What each ingredient is worth: Welch's difference and Holm's correction against references."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from cifar_lab.report.ablation import worths
from cifar_lab.report.compare import rank
from cifar_lab.report.figures import ingredients, saved
from cifar_lab.report.groups import group
from cifar_lab.report.markdown import render_markdown
from cifar_lab.report.notes import notes
from cifar_lab.report.page import render_page
from cifar_lab.report.read import Reader
from cifar_lab.report.statistics import difference, holm
from cifar_lab.report.write import compare_runs


def test_holm_is_the_example_of_its_definition() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_difference_is_welch_s() -> None:
    a, b = [0.91, 0.93, 0.92], [0.90, 0.89, 0.88, 0.91]
    found, theirs = difference(a, b), stats.ttest_ind(a, b, equal_var=False)
    assert found.mean == pytest.approx(np.mean(a) - np.mean(b))
    assert found.p == pytest.approx(float(theirs.pvalue))
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.mean < found.high
    assert difference([0.9], b).p is None
    assert difference([0.9, 0.9], [0.8, 0.8]).low == pytest.approx(0.1)
    one_side = difference([0.85, 0.85, 0.85], b)  # without a warning
    assert one_side.p == pytest.approx(float(stats.ttest_1samp(b, 0.85).pvalue))


def write(
    folder: Path,
    ablation: str | None,
    seed: int,
    accuracy: float,
    *,
    held_out: float | None = None,
    tta: str = "flip",
    typed: tuple[str, ...] = (),
) -> None:
    config: dict[str, Any] = {"seed": seed, "model": {"width": 4}, "ablation": ablation, "tta": tta}
    config |= {"typed": list(typed)}  # whatever it sets
    record = {
        "schema": 1,
        "status": "finished",
        "config": config,
        "seed": seed,
        "overrides": [f"ablation={ablation}", f"seed={seed}", "data.root=a.zip", *typed],
        "data": {"name": "cifar10", "digest": "d", "official": True},
        "metrics": {"test/acc": accuracy, "val/acc": held_out or accuracy - 0.01},
        "timings": {"fit_s": 10.0 + seed},
        "ended": f"2026-01-01T00:00:0{seed}+00:00",
    }
    run = folder / f"{ablation}-{seed}-{'-'.join(typed)}"
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps(record))


def test_the_whole_recipe_is_held_against_itself_without_each(tmp_path: Path) -> None:
    values = {None: 0.90, "without_flip": 0.85, "without_tta": 0.90, "without_drag": 0.95}
    for ablation, accuracy in values.items():
        for seed in range(3):
            write(tmp_path, ablation, seed, accuracy + 0.001 * seed)
    groups, _ = group(Reader(tmp_path).read().runs)
    (ranking,) = rank(groups)
    found = {worth.name: worth for worth in worths(ranking)}
    assert list(found) == ["flip", "tta", "drag"]  # the most useful first
    flip, tta, drag = found.values()
    assert flip.held_out is not None
    assert flip.held_out.mean == pytest.approx(0.05)
    assert (flip.verdict, tta.verdict, drag.verdict) == ("helps", "not more than noise", "harms")
    assert flip.p is not None
    assert flip.p_holm == pytest.approx(3 * flip.p)
    assert flip.seconds is not None
    assert flip.seconds.mean == 0


def test_what_acts_in_the_test_alone_is_judged_there(tmp_path: Path) -> None:
    for seed in range(3):
        write(tmp_path, None, seed, 0.90 + 0.001 * seed, held_out=0.8 + 0.01 * seed)
        write(
            tmp_path,
            "without_tta",
            seed,
            0.88 + 0.001 * seed,
            held_out=0.8 + 0.01 * seed,
            tta="none",
        )
        write(tmp_path, "without_flip", seed, 0.85, held_out=0.7 + 0.01 * seed)
    groups, _ = group(Reader(tmp_path).read().runs)
    found = {worth.name: worth for worth in worths(rank(groups)[0])}
    assert found["tta"].held_out is None
    assert found["tta"].verdict == "helps"
    assert found["flip"].held_out is not None


def test_page_markdown_and_figure_show_the_same_rows(tmp_path: Path) -> None:
    for ablation, accuracy in {None: 0.9, "without_flip": 0.8, "without_a$b": 0.95}.items():
        for seed in range(2):
            write(tmp_path, ablation, seed, accuracy + 0.001 * seed)
    report = compare_runs(tmp_path, Reader(tmp_path))
    assert report is not None
    page, markdown = render_page(report, watch_s=None), render_markdown(report, figures=[])
    for name, number in (("flip", "+10.00 ("), ("a$b", "-5.00 (")):
        assert f"<tr><td>{name}</td><td>2, 2</td><td>{number}" in page
        assert f"| {name} | 2, 2 | {number}" in markdown
    figure = ingredients(report.rankings[0])
    assert figure is not None
    saved(figure, "svg")  # what stands between dollars is no formula
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == [r"a\$b", "flip"]  # from below


def test_alone_is_held_against_nothing(tmp_path: Path) -> None:
    for seed in range(2):
        write(tmp_path, "bare", seed, 0.7 + 0.001 * seed)
        write(tmp_path, "only_flip", seed, 0.8 + 0.001 * seed)
    groups, _ = group(Reader(tmp_path).read().runs)
    (worth,) = worths(rank(groups)[0])
    assert worth.added
    assert worth.test is not None
    assert worth.test.mean == pytest.approx(0.1)


def test_other_runs_have_no_such_table(tmp_path: Path) -> None:
    for seed in range(2):
        write(tmp_path, None, seed, 0.9)
    groups, _ = group(Reader(tmp_path).read().runs)
    assert worths(rank(groups)[0]) == []


def test_recipes_are_held_against_themselves_alone(tmp_path: Path) -> None:
    one, other = ("experiment=one",), ("experiment=other",)
    for seed in range(2):
        write(tmp_path, None, seed, 0.9, typed=one)
        write(tmp_path, "without_flip", seed, 0.8, typed=one)
        write(tmp_path, "without_crop", seed, 0.5, typed=other)  # of a recipe that isn't there
        write(tmp_path, "only_flip", seed, 0.6, typed=one)  # nor is this one, bare
    groups, _ = group(Reader(tmp_path).read().runs)
    rankings = rank(groups)
    assert [worth.name for worth in worths(rankings[0])] == ["flip"]
    (said,) = [note for note in notes(groups, rankings) if "table of ingredients" in note]
    assert said.count("without_crop") == said.count("only_flip") == 1
    # two recipes, each by itself
    for seed in range(2):
        write(tmp_path, None, seed, 0.7, typed=other)
    groups, _ = group(Reader(tmp_path).read().runs)
    found = {worth.name: worth.test for worth in worths(rank(groups)[0])}
    assert found["flip"] is not None
    assert found["crop"] is not None
    assert found["flip"].mean == pytest.approx(0.1)
    assert found["crop"].mean == pytest.approx(0.2)
