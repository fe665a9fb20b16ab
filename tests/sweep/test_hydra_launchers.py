"""Whichever launcher runs a grid, and wherever: its status is what the records of the jobs say."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, run_job
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from cifar_lab.errors import JobFailed
from cifar_lab.records.record import RunRecord
from cifar_lab.sweep.hydra_launchers import failure
from tests.conftest import record_of
from tests.sweep.conftest import SMALL
from tests.sweep.test_sweep import FATE

Lab = Callable[..., tuple[int, str, str]]
LAUNCHERS = ("basic", "forked")


class ForkedLauncher(Launcher):
    """Each job in a process of its own, as Hydra's joblib plugin and others run them."""

    __module__ = "hydra_plugins.forked"  # where Hydra wants its plugins
    running: ForkedLauncher
    jobs: list[DictConfig]

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.context, self.task, self.config = hydra_context, task_function, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        loader = self.context.config_loader
        self.jobs = [loader.load_sweep_config(self.config, list(job)) for job in job_overrides]
        for number, job in enumerate(self.jobs):
            with open_dict(job):
                job.hydra.job.id = job.hydra.job.num = number
        ForkedLauncher.running = self
        fork = multiprocessing.get_context("fork")
        returned = []
        for number in range(len(self.jobs)):
            with ProcessPoolExecutor(1, mp_context=fork) as pool:
                returned.append(pool.submit(_run, number).result())
        return returned


def _run(number: int) -> JobReturn:
    launcher = ForkedLauncher.running
    return run_job(
        hydra_context=launcher.context,
        task_function=launcher.task,
        config=launcher.jobs[number],
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )


@pytest.fixture(autouse=True)
def forked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """``hydra/launcher=forked``."""
    monkeypatch.setitem(sys.modules, "hydra_plugins.forked", sys.modules[__name__])
    Plugins.instance().register(ForkedLauncher)
    node = {"_target_": "hydra_plugins.forked.ForkedLauncher"}
    ConfigStore.instance().store("forked", node, group="hydra/launcher", provider="tests")
    yield
    del ConfigStore.instance().repo["hydra"]["launcher"]["forked.yaml"]


def sweep(launcher: str) -> tuple[str, ...]:
    return ("-m", *SMALL, "threads=1", f"hydra/launcher={launcher}", "hydra.sweep.dir=sweep")


def statuses(folder: Path) -> list[str]:
    return sorted(record_of(path.parent)["status"] for path in folder.glob("*/run.json"))


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_job_that_fails_anywhere_is_listed_and_the_sweep_ends_with_1(
    lab: Lab, tmp_path: Path, launcher: str
) -> None:
    status, _, err = lab(*sweep(launcher), "optimizer.lr=0.1,1e30")
    assert status == 1, err
    assert statuses(tmp_path / "sweep") == ["diverged", "finished"]
    listed = err[err.index("1 of 2 jobs failed:\n") :].strip().splitlines()
    assert len(listed) == 2
    assert listed[1].startswith("  optimizer.lr=1e+30: diverged: the training loss became NaN")
    assert "Traceback" not in err
    # repeated: what has finished is not run again, and the status stays
    assert lab(*sweep(launcher), "optimizer.lr=0.1,1e30")[0] == 1
    assert lab(*sweep(launcher), "optimizer.lr=0.1")[0] == 0


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_job_that_is_refused_leaves_no_record_and_fails_the_sweep(
    lab: Lab, tmp_path: Path, launcher: str
) -> None:
    status, _, err = lab(*sweep(launcher), "model.num_blocks=[1],[0]", "~callbacks")
    assert status == 1, err
    assert statuses(tmp_path / "sweep") == ["finished"]
    assert "  model.num_blocks=[0]: model.num_blocks=[0]: " in err


def test_a_process_that_is_killed_fails_the_sweep(lab: Lab, fates: str) -> None:
    status, _, err = lab(*sweep("forked"), FATE, f"{fates}=kill,none")
    assert status == 1, err
    assert "the launcher stopped: BrokenProcessPool" in err
    # neither the one that was lost nor the one that the launcher never started counts as done
    assert "2 of 2 jobs failed:" in err
    assert "callbacks.fate.how=kill: interrupted: its process is gone" in err, err


def test_a_wrong_point_and_a_folder_in_use_are_wrong_input(lab: Lab, tmp_path: Path) -> None:
    status, out, err = lab(*sweep("basic"), "model.width=4,abc", "callbacks.pictures={}")
    assert (status, out) == (2, "")
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "sweep").exists()
    (tmp_path / "sweep").mkdir()
    with FileLock(tmp_path / "sweep" / ".lock"):
        status, _, err = lab(*sweep("basic"), "seed=0,1")
    assert status == 2
    assert "another sweep runs in it" in err
    assert os.listdir(tmp_path / "sweep") == [".lock"]


def returned(raised: Exception | None) -> JobReturn:
    done = JobReturn(status=JobStatus.COMPLETED if raised is None else JobStatus.FAILED)
    done.return_value = raised
    return done


REFUSED = JobFailed("the folder holds another run", "x")


@pytest.mark.parametrize(
    ("record", "done", "lost", "reason"),
    [
        ({"status": "finished"}, None, "", ""),
        ({"status": "finished"}, returned(None), "", ""),
        ({"status": "pruned"}, returned(None), "", ""),
        ({"status": "finished"}, returned(REFUSED), "", "the folder holds another run"),
        ({"status": "finished"}, returned(OSError("full")), "", "OSError: full"),
        ({"status": "failed", "error": "KeyError: 1"}, returned(None), "", "failed: KeyError: 1"),
        ({"status": "running"}, None, "gone", "running: its process is gone"),
        (None, returned(REFUSED), "", "the folder holds another run"),
        (None, returned(None), "", "left no record"),
        (None, None, "TimeoutError", "TimeoutError"),
    ],
)
def test_the_record_decides_whatever_the_launcher_hands_back(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    record: dict[str, Any] | None,
    done: JobReturn | None,
    lost: str,
    reason: str,
) -> None:
    typed = None if record is None else RunRecord.model_validate(record)
    monkeypatch.setattr("cifar_lab.sweep.hydra_launchers.record_of", lambda _: typed)
    assert failure(tmp_path, done, lost) == reason


def test_why_a_job_failed_survives_the_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(REFUSED))
    assert (error.reason, error.folder) == (REFUSED.reason, REFUSED.folder)
