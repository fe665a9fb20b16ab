"""What a run was made with: code, packages, device, process."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from importlib import metadata
from importlib.machinery import PathFinder
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

# Parts of this package that another is the better part of.
_MADE_OF = {
    "cifar_lab.model.timm_network": "timm",
    "cifar_lab.training.schedule_free": "schedulefree",
}
# Groups of a configuration that decide no result.
_OBSERVING = ("logger", "monitors")
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


def package_versions(config: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Installed versions of the packages a result depends on.

    Args:
        config: of a run: also of what else its parts come from. Of a person's own module, which has
            no version, twelve digits of the SHA-256 of its file; nothing is imported for it.
    """
    versions = {name: version for name in PACKAGES if (version := _version(name)) is not None}
    deciding = {key: value for key, value in (config or {}).items() if key not in _OBSERVING}
    for named in _targets(deciding):
        target = _MADE_OF.get(named.rpartition(".")[0], named)
        package = target.partition(".")[0]
        if package not in ("cifar_lab", *PACKAGES):
            versions |= _version_of(package, target)
    return versions


@lru_cache  # of a sweep it is asked for each job
def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        if isinstance(target := node.get("_target_"), str):
            yield target
        node = list(node.values())
    for part in node if isinstance(node, list) else ():
        yield from _targets(part)


def _version_of(package: str, target: str) -> dict[str, str]:
    """Under the package's or the module's name; empty where neither is found."""
    module, file, places = "", None, None
    for part in target.split("."):
        name = f"{module}.{part}".lstrip(".")
        spec = PathFinder.find_spec(name, places) if part.isidentifier() else None
        if spec is None:
            break
        module, file, places = name, spec.origin, spec.submodule_search_locations
        if places is None:
            break
    try:
        if file is None or "site-packages" in Path(file).parts:
            version = _version(package)
            return {} if version is None else {package: version}
        with open(file, "rb") as opened:
            return {module: hashlib.file_digest(opened, "sha256").hexdigest()[:_DIFF_CHARACTERS]}
    except (OSError, ValueError):
        return {}


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
