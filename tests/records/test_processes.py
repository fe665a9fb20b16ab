"""Exactly one process of a run writes its record, whatever a shell or a launcher says.

The variables are those that torchrun (torch 2.15) and srun, salloc and sbatch (SLURM 22.05) set.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.rank_zero import _get_rank

from cifar_lab.config.compose import compose
from cifar_lab.config.validate import check_processes
from cifar_lab.errors import InputError
from cifar_lab.records.processes import FIRST_VARIABLE, World, find, first_of, settle
from cifar_lab.run.trainer import plugins_of
from tests.conftest import TINY, environment, merged, record_of

Lab = Callable[..., tuple[int, str, str]]


def torchrun(rank: int, size: int = 2) -> dict[str, str]:
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29400", "TORCHELASTIC_RUN_ID": "none"}
    number = str(rank)
    return {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": str(size), **where}


def srun(rank: int, size: int = 2) -> dict[str, str]:
    number = str(rank)
    return {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NAME": "python",
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": number,
        "SLURM_LOCALID": number,
        "SLURM_NODEID": "0",
        "SLURM_NTASKS": str(size),
        "SLURM_NNODES": "1",
        "SLURM_STEP_NODELIST": "localhost",
    }


def in_a_batch_script(tasks: int = 1) -> dict[str, str]:
    return {k: v for k, v in srun(0, tasks).items() if "STEP" not in k}


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """Sets variables as if the command had been typed there; nothing of a launcher is set else."""
    # known to monkeypatch, so that what the lab removes comes back
    for name in [*torchrun(0), *srun(0), "NODE_RANK", "GROUP_RANK", FIRST_VARIABLE]:
        monkeypatch.delenv(name, raising=False)

    def set_all(variables: dict[str, str]) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_all


def test_of_any_subset_of_the_variables_one_process_is_the_first() -> None:
    both = [{**srun(rank), **torchrun(rank)} for rank in range(2)]
    launched = 0
    for chosen in itertools.product((False, True), repeat=len(both[0])):
        worlds = [
            find({name: env[name] for name, kept in zip(env, chosen, strict=True) if kept})
            for env in both
        ]
        if worlds[0].joined:
            launched += 1
            assert [(w.rank, w.size) for w in worlds] == [(0, 2), (1, 2)]
        else:  # each is a run of its own, and writes its record
            assert worlds == [World(), World()]
    assert launched > 100
    assert find(torchrun(1)).launcher == "torchrun"
    assert find(srun(1)).launcher == "srun"


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"RANK": "1"},
        {"LOCAL_RANK": "1", "WORLD_SIZE": "2"},
        {"SLURM_PROCID": "1", "SLURM_NTASKS": "2"},
        in_a_batch_script(),
        in_a_batch_script(2),
        srun(0, 1),
        torchrun(0, 1),
        # what SLURM calls the shell of an allocation, and a batch script
        *[{**srun(0), "SLURM_STEP_ID": str(number)} for number in (0xFFFFFFFA, 0xFFFFFFFB)],
        # of two launchers a part each; numbers that don't agree; no numbers
        {"TORCHELASTIC_RUN_ID": "none", "MASTER_ADDR": "a", **in_a_batch_script(2)},
        {**torchrun(5), "WORLD_SIZE": "2"},
        {**srun(0), "SLURM_PROCID": "one"},
    ],
    ids=lambda variables: " ".join(f"{k}={v}" for k, v in variables.items())[:40] or "none",
)
def test_a_process_that_was_started_alone_is_the_first_for_every_library(
    shell: Callable[[dict[str, str]], None], variables: dict[str, str]
) -> None:
    shell(variables)
    assert settle() == World()
    assert _get_rank() in (None, 0)  # Lightning's own, by which it silences logging
    assert "LOCAL_RANK" not in os.environ
    (plugin,) = plugins_of(compose([]))
    assert type(plugin) is LightningEnvironment
    assert not plugin.creates_processes_externally


def test_lightning_is_told_who_started_the_process(
    shell: Callable[[dict[str, str]], None],
) -> None:
    shell(srun(1))
    (plugin,) = plugins_of(compose(["trainer=ddp"]))
    assert isinstance(plugin, SLURMEnvironment)
    assert not plugin.auto_requeue
    assert (plugin.world_size(), plugin.global_rank()) == (2, 1)
    plugin.validate_settings(num_devices=2, num_nodes=1)
    shell(torchrun(1))  # within srun torchrun is the one that counts
    (plugin,) = plugins_of(compose(["trainer=ddp"]))
    assert isinstance(plugin, TorchElasticEnvironment)


def test_processes_that_lightning_starts_know_their_first_and_leave_no_trace(
    shell: Callable[[dict[str, str]], None],
) -> None:
    shell({})
    before = dict(os.environ)
    code = (
        "from cifar_lab.records import processes\n"
        "print(processes.settle().rank, processes.resume_from())"
    )
    with first_of(["seed=1"], Path("some/last.ckpt")):
        assert find() == World()
        os.environ["LOCAL_RANK"] = "0"  # as Lightning does for the first, before it starts others
        assert sys.argv[1:] == ["seed=1"]
        others = environment(LOCAL_RANK="1")
        command = [sys.executable, "-c", code]
        out = subprocess.run(command, env=others, capture_output=True, text=True).stdout
        assert out.split() == ["1", "some/last.ckpt"]
        # one that is not started by the first itself belongs to no run
        nested = f"import subprocess, sys; sys.exit(subprocess.run({command!r}).returncode)"
        done = subprocess.run(
            [sys.executable, "-c", nested], env=others, capture_output=True, text=True
        )
        assert done.returncode == 1
        assert f"InputError: {FIRST_VARIABLE}={os.getpid()}" in done.stderr.splitlines()[-1]
        assert "unset it" in done.stderr
    assert dict(os.environ) == before


DDP: dict[str, Any] = {"strategy": "ddp", "devices": 2}
REFUSED = [
    (DDP, World("srun", 4, 3, 1, 2, "SLURM_STEP_NUM_TASKS=4"), "srun started 4 processes"),
    (DDP, World("srun", 2, 1, 0, 2, "SLURM_NTASKS=2"), "trainer.num_nodes=1"),
    ({"devices": 1}, World("srun", 2, 0, 0, 1, "SLURM_NTASKS=2"), "(SLURM_NTASKS=2)"),
    ({"devices": "auto"}, World("torchrun", 2, 1, 1), "trainer.devices=1"),
    ({**DDP, "num_nodes": 2, "devices": 1}, World("torchrun", 2, 1, 1), "trainer.devices=1"),
    ({**DDP, "num_nodes": 2}, World(), "with srun or torchrun"),
    ({**DDP, "strategy": "ddp_spawn"}, World(), "use trainer.strategy=ddp"),
    ({**DDP, "strategy": "ddp_notebook_find_unused_parameters_true"}, World(), "=ddp"),
    ({**DDP, "strategy": {"_target_": "x", "start_method": "fork"}}, World(), "=ddp"),
]


@pytest.mark.parametrize(("trainer", "world", "part"), REFUSED, ids=str)
def test_processes_that_the_run_does_not_want_are_refused(
    trainer: dict[str, Any], world: World, part: str
) -> None:
    with pytest.raises(InputError) as raised:
        check_processes(trainer, "cpu", world)
    assert part in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("trainer", "world"),
    [
        ({"devices": 1}, World()),
        (DDP, World()),
        (DDP, World("lightning", rank=1, local_rank=1)),
        (DDP, World("torchrun", 2, 1, 1, 1)),
        ({"devices": [0, 3]}, World("srun", 2, 1, 1, 1)),
        ({"devices": "0,3"}, World("srun", 2, 1, 1)),
        ({"devices": "2", "num_nodes": 2}, World("srun", 4, 2, 0, 2)),
    ],
    ids=str,
)
def test_as_many_processes_as_devices_are_a_run(trainer: dict[str, Any], world: World) -> None:
    check_processes(trainer, "cpu", world)


def test_what_another_launcher_started_is_refused(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    status, _, err = lab(*TINY)
    assert status == 2
    assert err.startswith("cifar_lab: OMPI_COMM_WORLD_SIZE=2: mpirun started 2 processes")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (TINY, "trainer.devices=1: torchrun started 2 processes (WORLD_SIZE=2)"),
        ((*TINY, "hydra.run.dir=run"), "trainer.devices=1: torchrun started 2 processes"),
        ((*TINY, "trainer.devices=2"), "hydra.run.dir: the 2 processes that torchrun started"),
        (("-m", *TINY, "seed=0,1"), "-m: torchrun started 2 processes (WORLD_SIZE=2)"),
    ],
)
def test_a_launch_that_can_be_no_run_is_one_line(
    lab: Lab,
    tmp_path: Path,
    shell: Callable[[dict[str, str]], None],
    arguments: tuple[str, ...],
    part: str,
) -> None:
    if part.startswith("trainer") and "hydra.run.dir=run" not in arguments:
        arguments = (*arguments, "hydra.run.dir=other")
    shell(torchrun(0))
    status, out, err = lab(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"cifar_lab: {part}")
    assert len(err.strip().splitlines()) == 1
    assert not list(tmp_path.glob("*"))


def test_a_run_typed_in_an_allocation_leaves_its_record(
    lab: Lab, tmp_path: Path, shell: Callable[[dict[str, str]], None]
) -> None:
    shell({**in_a_batch_script(2), "RANK": "1", "LOCAL_RANK": "1", "SLURM_PROCID": "1"})
    status, out, err = lab(*TINY, "trainer.max_epochs=1", "hydra.run.dir=run")
    assert (status, err) == (0, "")
    assert "test accuracy" in out
    assert record_of(tmp_path / "run")["status"] == "finished"


def test_the_srun_on_a_clusters_login_node_is_no_warning(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "srun").touch(mode=0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    status, _, err = lab(*TINY, "trainer.max_epochs=1", "hydra.run.dir=run")
    assert (status, err) == (0, "")


def started_side_by_side(
    folder: Path, variables: Callable[[int], dict[str, str]], *arguments: str
) -> list[subprocess.CompletedProcess[str]]:
    """Two processes as a launcher starts them: each for itself."""
    command = [sys.executable, "-m", "cifar_lab", *merged(*arguments)]
    processes = [
        subprocess.Popen(
            command,
            cwd=folder,
            env=environment(**variables(rank)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    return [
        subprocess.CompletedProcess(command, p.returncode, out, err)
        for p in processes
        for out, err in [p.communicate(timeout=200)]
    ]


@pytest.mark.slow
def test_ranks_that_srun_started_share_one_run_and_continue_it_together(tmp_path: Path) -> None:
    def step(rank: int) -> dict[str, str]:
        return {**srun(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29417"}

    run = (*TINY, "trainer=ddp", "trainer.accelerator=cpu", "scheduler=constant")
    for epochs in (1, 2, 2):
        arguments = (*run, f"trainer.max_epochs={epochs}", "hydra.run.dir=run")
        first, second = started_side_by_side(tmp_path, step, *arguments)
        assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
        assert "test accuracy" in first.stdout
        assert (second.stdout, second.stderr) == ("", "")
        record = record_of(tmp_path / "run")
        assert (record["status"], record["epochs"]) == ("finished", epochs)
    one, other = started_side_by_side(tmp_path, step, *run, "seed=1", "hydra.run.dir=run")
    assert (one.returncode, other.returncode) == (2, 2)
    assert "seed (0 there, 1 here)" in one.stderr
    # two epochs in two goes are two epochs
    arguments = (*run, "trainer.max_epochs=2", "hydra.run.dir=whole")
    assert started_side_by_side(tmp_path, step, *arguments)[0].returncode == 0
    losses = [
        {k: v for k, v in record_of(tmp_path / name)["metrics"].items() if k.endswith("/loss")}
        for name in ("run", "whole")
    ]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_ranks_that_torchrun_started_share_one_run(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command += ["--master-port=29418", "-m", "cifar_lab"]
    run = merged(*TINY, "trainer=ddp", "trainer.accelerator=cpu", "hydra.run.dir=run")
    done = subprocess.run(
        [*command, *run], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test accuracy") == 1
    record = record_of(tmp_path / "run")
    assert (record["status"], record["steps"]) == ("finished", 16)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["tested"] == "best"
