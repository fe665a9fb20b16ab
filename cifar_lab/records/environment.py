"""What a run was made with: code, packages, device, process."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "cifar-lab",
    "torch",
    "torchvision",
    "lightning",
    "hydra-core",
    "omegaconf",
    "torchmetrics",
    "tensorboard",
    "numpy",
)


_DIFF_CHARACTERS = 12


# What is read of uncommitted files: who keeps images in the checkout shall not wait for them.
_MOST_DIFF_BYTES = 16 * 2**20


def cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def process_started(pid: int) -> int | None:
    """When process ``pid`` started, in clock ticks since boot; None where /proc doesn't say."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # the command (field 2) is in parentheses and may hold spaces; starttime is field 22
    return int(stat.rpartition(")")[2].split()[19])


def package_versions() -> dict[str, str]:
    """Installed versions of the packages a result depends on."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


@lru_cache
def git_state(package: Path) -> Mapping[str, Any]:
    """``{"sha", "dirty", "diff"}`` of the checkout that holds ``package``; None where none does.

    ``diff`` tells one set of uncommitted changes from another: twelve digits of a SHA-256, None
    without any. All as it was when this process first asked: what is edited later doesn't run.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            timeout=10,
            check=True,
        ).stdout

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # else it is installed inside a checkout
        top = Path(git("rev-parse", "--show-toplevel").removesuffix("\n"))
        sha = git("rev-parse", "HEAD").strip()
        changed = git("status", "--porcelain", "-z", "--untracked-files=all", "--no-renames")
        diff = _digest_of_files(top, [entry[3:] for entry in changed.split("\0") if entry])
    except (OSError, subprocess.SubprocessError):
        return {"sha": None, "dirty": None, "diff": None}
    return {"sha": sha, "dirty": bool(changed), "diff": diff if changed else None}


def _digest_of_files(top: Path, names: Sequence[str]) -> str:
    """Of what the files hold now, rather than of ``git diff``, which settings of git's change."""
    digest, left = hashlib.sha256(), _MOST_DIFF_BYTES
    for name in sorted(names):
        path = top / name
        try:
            status = path.lstat()
            kind = f"{status.st_mode & 0o100:o} {status.st_size}"
            content = b""
            if stat.S_ISLNK(status.st_mode):
                kind, content = "link", os.fsencode(os.readlink(path))
            elif stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    content = file.read(left)
                left -= len(content)
            else:
                kind = "other"  # a repository inside this one
        except FileNotFoundError:
            kind, content = "gone", b""
        digest.update(f"{name}\0{kind}\0".encode("utf-8", "surrogateescape"))
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()[:_DIFF_CHARACTERS]
