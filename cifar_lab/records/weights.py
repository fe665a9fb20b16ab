"""Weights to begin with: what ``init_from`` names, and the bytes that it stands for.

The supervisor of a sweep asks too, so nothing here needs torch;
`cifar_lab.training.initial_weights` reads them.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from cifar_lab.errors import InputError
from cifar_lab.records.files import carried_digest, expanded
from cifar_lab.records.record import FILE_NAME, RunRecord

SAFETENSORS = ".safetensors"
_TEACHERS = (
    "must be the folder of a finished run, or several as in distill.from=[outputs/a,outputs/b]"
)
_TORCHVISION = re.compile(r"\w+_Weights\.\w+")
ALLOWED = (
    "must be a run folder, a checkpoint file of a run, a .safetensors file, or the name of "
    "torchvision's weights, e.g. ResNet18_Weights.IMAGENET1K_V1"
)


def source_of(init_from: str) -> dict[str, Any]:
    """What ``init_from`` names, without torch: ``{"path", "sha256"}``, or ``{"torchvision"}``.

    Where the file lies decides nothing about a run, its bytes do; a checkpoint's SHA-256 is the one
    that it carries, and is verified when it is read.

    Args:
        init_from: a run folder (the weights that it tested), a checkpoint file of a run, a
            ``.safetensors`` file, or the name of torchvision's weights.

    Raises:
        InputError: there is no such thing, or a run that has tested no weights.
    """
    path = expanded(init_from)
    try:
        found = path.is_dir() or path.is_file()
    except (OSError, ValueError):  # a name that is too long, or with a null character
        found = False
    if not found or not init_from.strip():
        if _TORCHVISION.fullmatch(init_from):
            return {"torchvision": init_from}
        raise InputError(f"init_from={init_from}: no such file or folder; {ALLOWED}")
    file = _tested(f"init_from={init_from}", path, ALLOWED) if path.is_dir() else path
    try:
        status = file.stat()
        sha256 = _digest(file.absolute(), status.st_size, status.st_mtime_ns)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"init_from={init_from}: {reason}; {ALLOWED}") from error
    return {"path": str(file.absolute()), "sha256": sha256}


def teachers_of(given: Any) -> dict[str, list[str]]:
    """The files behind ``distill.from``, without torch: ``{"paths", "sha256"}``, one for each run.

    Args:
        given: a run folder or a list of them.

    Raises:
        InputError: it is none, or a run that has tested no weights.
    """
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        raise InputError(f"distill.from={given}: {_TEACHERS}")
    paths, digests = [], []
    for text in texts:
        key, folder = f"distill.from={text}", expanded(text)
        try:
            if not folder.is_dir():
                raise InputError(f"{key}: is no folder; {_TEACHERS}")
            file = _tested(key, folder, _TEACHERS).absolute()
            status = file.stat()
            digests.append(_digest(file, status.st_size, status.st_mtime_ns))
        except InputError:
            raise
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise InputError(f"{key}: {reason}; {_TEACHERS}") from error
        paths.append(str(file))
    if len({*digests}) < len(digests):
        raise InputError(f"distill.from={','.join(texts)}: names one run twice; {_TEACHERS}")
    return {"paths": paths, "sha256": digests}


def _tested(key: str, folder: Path, allowed: str) -> Path:
    """The checkpoint with the weights that the run in ``folder`` tested."""
    if not (folder / FILE_NAME).is_file():
        raise InputError(f"{key}: holds no {FILE_NAME}; {allowed}")
    try:
        record = RunRecord.read(folder)
    except (OSError, ValueError) as error:
        raise InputError(f"{key}: its {FILE_NAME}: {error}") from error
    if record.status == "running" or record.tested is None:
        last = folder / "checkpoints" / "last.ckpt"
        if allowed is ALLOWED and last.is_file():  # which is taken by its file as well
            allowed = f"give one of its checkpoints, e.g. {last}"
        raise InputError(
            f"{key}: this run is {record.status} and has tested no weights yet; {allowed}"
        )
    name = f"checkpoints/{record.tested}.ckpt"
    if not (folder / name).is_file():
        raise InputError(
            f"{key}: the run has no {name}, which would hold the weights that it tested; {allowed}"
        )
    return folder / name


@lru_cache
def _digest(file: Path, size: int, changed: int) -> str:
    if file.suffix != SAFETENSORS:
        return carried_digest(file)
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
