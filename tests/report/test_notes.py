"""What is averaged or compared though it differs is said; what doesn't differ is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cifar_lab.report.compare import rank
from cifar_lab.report.groups import group
from cifar_lab.report.notes import notes
from cifar_lab.report.read import Reader
from tests.report.conftest import config_of, write_run

OLD, NEW = {"torch": "2.14.0", "numpy": "2.3.0"}, {"torch": "2.15.0", "numpy": "2.3.0"}
SHA = "c" * 40
ONLY = "optimizer.lr=0.1 model.num_blocks=[1,1]"  # the name of a configuration alone


def notes_of(root: Path) -> list[str]:
    groups, _ = group(Reader(root).read().runs)
    return notes(groups, rank(groups))


def start(step: int = 0, **fields: Any) -> dict[str, Any]:
    git = {"sha": SHA, "dirty": False, "diff": None}
    return {"resumed_from_step": step, "git": git, "packages": NEW, "device": "cpu", **fields}


def git(diff: str | None) -> dict[str, Any]:
    return {"sha": SHA, "dirty": True, "diff": diff}


def test_runs_made_alike_have_no_notes(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path / f"a{seed}", seed=seed, packages=NEW, starts=[start()])
        write_run(tmp_path / f"b{seed}", seed=seed, lr=0.2, packages=NEW, starts=[start()])
    assert notes_of(tmp_path) == []


@pytest.mark.parametrize("name", ["cifar-lab", "torch", "torchvision", "lightning", "numpy"])
def test_versions_of_a_package_that_are_mixed_are_named_with_their_configurations(
    tmp_path: Path, name: str
) -> None:
    write_run(tmp_path / "a0", seed=0, packages={name: "2.14.0"})
    write_run(tmp_path / "a1", seed=1, packages={name: "2.15.0"})
    write_run(tmp_path / "b0", seed=0, lr=0.2, packages={name: "2.15.0"})
    assert notes_of(tmp_path) == [
        f"results are of 2 versions of {name}: 2.14.0 (lr=0.1); 2.15.0 (lr=0.1, lr=0.2). "
        "Means over more than one: lr=0.1"
    ]


def test_own_code_that_is_mixed_is_told_of_where_it_has_a_part(tmp_path: Path) -> None:
    for seed, version in enumerate(("0123", "4567")):
        own = {**NEW, "nets": version}
        write_run(tmp_path / f"a{seed}", seed=seed, packages=own, starts=[start(packages=own)])
        write_run(tmp_path / f"b{seed}", seed=seed, lr=0.2, packages=NEW, starts=[start()])
    assert notes_of(tmp_path) == [
        "results are of 2 versions of nets: 0123 (lr=0.1); 4567 (lr=0.1). "
        "Means over more than one: lr=0.1"
    ]


def test_configurations_compared_across_versions_are_told_of_too(tmp_path: Path) -> None:
    write_run(tmp_path / "a", packages=OLD)
    write_run(tmp_path / "b", lr=0.2, packages=NEW)
    assert notes_of(tmp_path) == [
        "results are of 2 versions of torch: 2.14.0 (lr=0.1); 2.15.0 (lr=0.2)"
    ]


def test_what_is_never_compared_may_differ(tmp_path: Path) -> None:
    other = {"name": "synthetic", "digest": "5" * 64}
    write_run(tmp_path / "a", packages=OLD, device="a")
    write_run(tmp_path / "b", lr=0.2, packages=NEW, device="b", data=other)
    write_run(tmp_path / "c", lr=0.3, packages=NEW, device="b", data=other)
    write_run(tmp_path / "d", packages=NEW, status="failed", test=None, seed=0)
    assert notes_of(tmp_path) == []


def test_records_without_versions_are_of_an_unknown_one(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", lr=0.2, packages={"torch": "2.15.0"}, git=None)
    code, torch = notes_of(tmp_path)
    assert code == "results are of 2 versions of the code: ccccccc (lr=0.1); unknown (lr=0.2)"
    assert torch.endswith("torch: 2.15.0 (lr=0.2); unknown (lr=0.1)")


def test_two_different_changes_at_one_commit_are_two_versions(tmp_path: Path) -> None:
    write_run(tmp_path / "a0", seed=0, git=git("12ab"))
    write_run(tmp_path / "a1", seed=1, git=git("34cd"))
    assert notes_of(tmp_path) == [
        f"results are of 2 versions of the code: ccccccc with changes 12ab ({ONLY}); "
        f"ccccccc with changes 34cd ({ONLY}). Means over more than one: {ONLY}"
    ]


def test_the_same_change_twice_is_one_version(tmp_path: Path) -> None:
    write_run(tmp_path / "a0", seed=0, git=git("12ab"))
    write_run(tmp_path / "a1", seed=1, git=git("12ab"))
    assert notes_of(tmp_path) == []


@pytest.mark.parametrize("changed", [{"sha": SHA, "dirty": True}, git(None)])
def test_changes_that_the_record_does_not_identify_are_told_of(
    tmp_path: Path, changed: dict[str, Any]
) -> None:
    write_run(tmp_path / "a0", seed=0, git=changed)
    assert notes_of(tmp_path) == []  # alone it is compared with nothing
    write_run(tmp_path / "a1", seed=1, git=changed)
    assert notes_of(tmp_path) == [
        "uncommitted changes that the record doesn't identify, so that the code may differ from "
        "run to run: a0, a1"
    ]


def test_a_run_continued_under_another_version_or_device_is_told_of(tmp_path: Path) -> None:
    begun = start(packages=OLD, device="cpu: old", git={"sha": "d" * 40, "dirty": False})
    write_run(tmp_path / "a", starts=[begun, start(40)], packages=NEW)
    code, torch, device = notes_of(tmp_path)
    assert code == (
        f"results are of 2 versions of the code: ccccccc ({ONLY}); ddddddd ({ONLY}). "
        "Begun with one, continued with another: a"
    )
    assert "versions of torch: 2.14.0" in torch
    assert torch.endswith("Begun with one, continued with another: a")
    assert device.startswith("times are of 2 devices: cpu (")


def test_a_start_whose_work_was_lost_has_no_part_in_the_result(tmp_path: Path) -> None:
    lost = start(packages=OLD, device="cpu: old")
    write_run(tmp_path / "a", starts=[lost, start(0), start(40)], packages=NEW)
    assert notes_of(tmp_path) == []


@pytest.mark.parametrize("fields", [{}, {"starts": []}])
def test_without_starts_the_record_itself_is_the_one(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    write_run(tmp_path / "a", packages=OLD, **fields)
    [run] = Reader(tmp_path).read().runs
    assert [start.packages for start in run.starts] == [OLD]


def test_times_of_different_devices_or_threads_are_named(tmp_path: Path) -> None:
    for seed, (device, threads) in enumerate([("cpu: x", 1), ("cpu: x", 2), ("1 x H100", 2)]):
        write_run(tmp_path / str(seed), seed=seed, device=device, threads=threads)
    write_run(tmp_path / "3", seed=3, device="1 x H100", threads=8)
    assert notes_of(tmp_path) == [
        f"times are of 3 devices: 1 x H100 ({ONLY}); cpu: x, threads=1 ({ONLY}); "
        f"cpu: x, threads=2 ({ONLY}). Means over more than one: {ONLY}"
    ]


def test_seeds_that_ended_without_a_result_leave_a_mean_of_survivors(tmp_path: Path) -> None:
    for number, status in enumerate(["failed", "diverged", "pruned"]):
        write_run(tmp_path / f"{status}0", lr=number + 1)
        write_run(tmp_path / f"{status}1", lr=number + 1, seed=1, status=status, test=None)
    write_run(tmp_path / "stopped", lr=9)
    write_run(tmp_path / "stopped1", lr=9, seed=1, status="interrupted", test=None)
    assert notes_of(tmp_path) == [
        "means of the seeds that survived, others failed, diverged or were pruned: lr=2, lr=1, lr=3"
    ]


def test_a_failed_seed_that_finished_elsewhere_has_survived(tmp_path: Path) -> None:
    write_run(tmp_path / "a0", seed=0)
    write_run(tmp_path / "a1", seed=1, status="failed", test=None)
    write_run(tmp_path / "again", seed=1)
    assert notes_of(tmp_path) == []


def test_a_finished_run_without_a_test_accuracy_is_told_of(tmp_path: Path) -> None:
    write_run(tmp_path / "a0", seed=0)
    write_run(tmp_path / "a1", seed=1, test=None)
    assert notes_of(tmp_path) == ["finished runs without a test accuracy, not counted: a1"]


def test_a_run_that_was_not_made_as_configured_is_told_of(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", lr=0.2, departures=["no weights were averaged", "and more"])
    assert notes_of(tmp_path) == [
        "runs that were not made as configured, and count: b (no weights were averaged)"
    ]


def test_runs_of_different_lengths_are_told_of(tmp_path: Path) -> None:
    write_run(tmp_path / "a0", seed=0)
    write_run(tmp_path / "a1", seed=1, val=(0.3, 0.4, 0.5, 0.5, 0.5))
    write_run(tmp_path / "b0", lr=0.2)
    assert notes_of(tmp_path) == [
        "means over runs of different lengths, and mean curves whose ends are of the longer ones: "
        "lr=0.1 (3 to 5 epochs)"
    ]


def limited(lr: float, **trainer: Any) -> dict[str, Any]:
    config = config_of(lr, [1, 1], seed=0)
    config["trainer"] |= trainer
    return config


def test_a_test_on_a_part_of_the_images_is_told_of(tmp_path: Path) -> None:
    write_run(tmp_path / "a", lr=0.1, config=limited(0.1, limit_test_batches=1.0))
    write_run(tmp_path / "b", lr=0.2, config=limited(0.2, limit_test_batches=1.0))
    assert notes_of(tmp_path) == []
    write_run(tmp_path / "c", lr=0.3, config=limited(0.3, limit_test_batches=1))
    [note] = notes_of(tmp_path)
    assert note.startswith("test accuracies are of a part of the test images, and not of the same")
    assert "all images (lr=0.1" in note
    assert "trainer.limit_test_batches=1 (lr=0.3" in note


def test_selection_on_different_images_is_told_of(tmp_path: Path) -> None:
    for name, size in (("a", 50), ("b", 100)):
        config = config_of(0.1, [1, 1], seed=0)
        config["data"]["val_size"] = size
        write_run(tmp_path / name, config=config)
    assert notes_of(tmp_path) == [
        "the best is selected by accuracies on different images: data.val_size=100 and 50"
    ]


def test_configurations_that_cannot_be_ranked_with_the_others_are_named(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", lr=0.2, val=())
    write_run(tmp_path / "c0", lr=0.3, seed=0)
    write_run(tmp_path / "c1", lr=0.3, seed=1, val=(), epochs=3)
    assert notes_of(tmp_path) == [
        "not ranked with the others, for lack of a validation accuracy of every seed: "
        "lr=0.2, lr=0.3"
    ]


def test_each_data_set_has_notes_of_its_own(tmp_path: Path) -> None:
    write_run(tmp_path / "a", packages=OLD)
    write_run(tmp_path / "b", lr=0.2, packages=NEW)
    write_run(tmp_path / "c", data={"name": "synthetic", "digest": "5" * 64})
    [note] = notes_of(tmp_path)
    assert note.startswith("cifar10: results are of 2 versions of torch")
