"""What the figures were measured on."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import cifar_lab
from cifar_lab.errors import InputError
from cifar_lab.records.environment import git_state, package_versions

# In a process of its own: the one that measures never loads torch.
_PROBE = """
import json, torch
cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
print(json.dumps({
    "device": "cuda" if cuda else "mps" if mps else "cpu",
    "gpu": torch.cuda.get_device_name() if cuda else None,
    "cuda": torch.version.cuda,
    "cudnn": torch.backends.cudnn.version() if cuda else None,
    "threads": torch.get_num_threads(),
}))
"""
DEVICES = ("auto", "cpu", "cuda", "mps")


def describe(device: str, threads: int | None) -> dict[str, Any]:
    """Hardware, versions and the state of the repository; ``device`` is what will be used.

    Raises:
        InputError: the device asked for isn't there.
    """
    found: dict[str, Any] = json.loads(
        subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, check=True).stdout
    )
    if device not in ("auto", "cpu", found["device"]):
        raise InputError(
            f"--device={device}: torch finds none on this machine; use cpu, or auto "
            f"(here {found['device']})"
        )
    if device != "auto":
        found["device"] = device
    if threads is not None:
        found["threads"] = threads
    return {
        "machine": {
            **found,
            "cpu": _cpu_name(),
            "cores": os.cpu_count(),
            "system": f"{platform.system()} {platform.release()}",
            "python": platform.python_version(),
            "load_before": os.getloadavg()[0],
        },
        "packages": package_versions(),
        "git": dict(git_state(Path(cifar_lab.__file__).parent)),
    }


def caption(described: Mapping[str, Any]) -> str:
    """One line: device, cores, threads, torch."""
    machine, packages = described["machine"], described["packages"]
    device = machine["gpu"] if machine["device"] == "cuda" else machine["cpu"]
    return (
        f"{device}, {machine['cores']} cores, {machine['threads']} threads, "
        f"torch {packages['torch']}, Python {machine['python']}"
    )


def _cpu_name() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
