"""Run folders that commit af3b1f8 wrote, before the packages were parted."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cifar_lab.records.digest import config_digest
from cifar_lab.records.record import RunRecord
from tests.conftest import record_of

Lab = Callable[..., tuple[int, str, str]]
FIXTURE = Path(__file__).parents[1] / "fixtures" / "runs_of_af3b1f8"
RUN = (
    *("data=synthetic", "data.train_size=200", "data.test_size=60", "data.val_size=40"),
    *("data.batch_size=32", "model=resnet10", "model.num_blocks=[1]", "model.width=4"),
    *("trainer=cpu", "threads=1", "logger=csv"),
)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURE, tmp_path / "runs"))


@pytest.mark.parametrize("name", ["seed0", "seed1", "interrupted"])
def test_the_record_is_read_and_its_digest_still_holds(name: str) -> None:
    record = RunRecord.read(FIXTURE / name)
    assert record.config is not None
    assert record.config_digest == config_digest(record.config)
    assert record.data.digest
    (start,) = record.all_starts
    assert start.git == record.git


def test_a_finished_run_is_answered_from_its_folder(lab: Lab, runs: Path) -> None:
    before = record_of(runs / "seed0")
    status, out, err = lab(*RUN, "trainer.max_epochs=2", "seed=0", f"hydra.run.dir={runs}/seed0")
    assert status == 0
    assert "test accuracy  20.0 %, loss 2.2444" in out
    assert "this run was made with code af3b1f8" in err
    assert record_of(runs / "seed0") == before


def test_the_report_takes_the_seeds_together(runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from cifar_lab.report.__main__ import main

    assert main([str(runs)]) == 0
    out = capfd.readouterr().out
    assert "3 runs: 2 finished, 1 interrupted" in out
    assert "17.5 ± 3.5 %   18.3 ± 2.4 %" in out  # of seeds 0 and 1
    assert "unreadable" not in out


def test_an_interrupted_run_goes_on_to_the_weights_that_it_would_have_reached(
    lab: Lab, runs: Path
) -> None:
    folder = runs / "interrupted"
    assert record_of(folder)["steps"] == 70
    status, _, err = lab(*RUN, "trainer.max_epochs=30", "seed=2", f"hydra.run.dir={folder}")
    assert status == 0, err
    assert f"{folder}: goes on, though begun with code af3b1f8" in err
    record = record_of(folder)
    assert (record["status"], record["steps"]) == ("finished", 150)
    first, _ = record["starts"]
    assert first["git"]["sha"].startswith("af3b1f8")
    with (
        np.load(folder / "predictions.npz") as mine,
        np.load(FIXTURE / "interrupted-whole.npz") as whole,
    ):
        # another processor adds in another order
        np.testing.assert_allclose(mine["logits"], whole["logits"], rtol=1e-3, atol=1e-4)
