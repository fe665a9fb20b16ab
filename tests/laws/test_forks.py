"""What is forked from finds CUDA untouched, and knows its devices before it asks for one.

A process that has asked the driver for anything, if only how many devices there are, has children
that can't use a GPU; ``torch.cuda.is_initialized()`` doesn't say that. NVML tells the number
without the driver: that is played here, as on a machine with one GPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cifar_lab.sweep import process
from tests.conftest import TINY, environment

_FORK = """
import os, sys
import torch
torch.cuda._device_count_nvml = lambda: 1
if True:
    {action}
child = os.fork()
if not child:
    clean = not torch.cuda._is_in_bad_fork() and torch.cuda._cached_device_count is None
    os._exit(0 if clean else 9)
os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))  # the preload ends with 0 else
"""


def status_after(action: str, *arguments: str, cwd: Path) -> int:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _FORK.format(action=action), *arguments],
        cwd=cwd,
        # Lightning's import sets the variable in this process: the driver is then not asked
        env=environment(XDG_CACHE_HOME=str(cwd / "cache"), PYTORCH_NVML_BASED_CUDA_CHECK="0"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode in (0, 9), done.stderr
    return done.returncode


def test_what_a_sweep_preloads_leaves_cuda_alone(tmp_path: Path) -> None:
    assert status_after("import cifar_lab.sweep.preload", cwd=tmp_path) == 0


def test_a_run_on_the_cpu_leaves_cuda_alone_checkpoints_and_all(tmp_path: Path) -> None:
    run = "from cifar_lab.__main__ import main; assert main(sys.argv[1:]) == 0"
    arguments = (*TINY, "threads=1", f"hydra.run.dir={tmp_path}/run")
    assert status_after(run, *arguments, cwd=tmp_path) == 0
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


@pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="this torch knows no CUDA")
def test_a_question_to_the_driver_would_be_seen(tmp_path: Path) -> None:
    assert status_after("torch.cuda.is_available()", cwd=tmp_path) == 9


def look(expected: str) -> int:
    """In a worker: its devices are named, and nobody has asked for one yet."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES") == expected
    # in no other words does torch say it
    asked = torch.cuda._is_in_bad_fork() or torch.cuda._cached_device_count is not None  # noqa: SLF001
    return 0 if named and not asked else 1


def test_a_job_knows_its_devices_before_it_asks_for_one() -> None:
    worker = process.start(
        "tests.laws.test_forks:look",
        "GPU-5a",
        environment={**os.environ, "CUDA_VISIBLE_DEVICES": "GPU-5a"},
    )
    worker.join(120)
    assert worker.exitcode == 0
