"""Checkpoint files that know whether they are whole.

A checkpoint file is what `torch.save` wrote, with a SHA-256 of everything before it in the ZIP
comment: one file, so that checkpoint and digest can't be torn apart by a crash, a copy or a link.
`torch.load` and every ZIP tool read it as before. (torch's own reader ignores the ZIP's CRCs.)
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

from cifar_lab.errors import InputError
from cifar_lab.records.files import DIGEST_CHARACTERS, DIGEST_LABEL, sync_folder

log = logging.getLogger("cifar_lab")

# the end-of-central-directory record of a ZIP without a comment, which torch writes last
_END_SIGNATURE, _END_BYTES = b"PK\x05\x06", 22


class DamagedError(ValueError):
    """A checkpoint that is not what was once written, or nothing that may be loaded."""


def add_digest(path: Path) -> None:
    """Adds the digest to a file that `torch.save` has just written, and flushes it to the disk."""
    data = path.read_bytes()
    end = data[-_END_BYTES:]
    assert end.startswith(_END_SIGNATURE), f"{path}: no plain ZIP"
    assert end.endswith(b"\0\0"), f"{path}: its ZIP has a comment already"
    comment_length = struct.pack("<H", len(DIGEST_LABEL) + DIGEST_CHARACTERS)
    digest = hashlib.sha256(memoryview(data)[:-2])
    digest.update(comment_length + DIGEST_LABEL)
    with open(path, "r+b") as file:
        file.seek(-2, os.SEEK_END)
        file.write(comment_length + DIGEST_LABEL + digest.hexdigest().encode())
        file.flush()
        os.fsync(file.fileno())


def verify(path: Path) -> None:
    """Raises DamagedError where the file is not, to the bit, the one that got its digest."""
    try:
        if path.exists() and not path.is_file():  # a pipe, which would keep its reader for ever
            raise DamagedError(f"{path.name} is no file")
        data = path.read_bytes()
    except OSError as error:
        raise DamagedError(f"{path.name} can't be read ({error.strerror})") from error
    if not data:
        raise DamagedError(f"{path.name} is empty")
    body, digest = memoryview(data)[:-DIGEST_CHARACTERS], data[-DIGEST_CHARACTERS:]
    if bytes(body[-len(DIGEST_LABEL) :]) != DIGEST_LABEL:
        raise DamagedError(f"{path.name} is cut off, or carries no digest")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise DamagedError(f"{path.name} is damaged: its digest differs")


def load(path: Path) -> dict[str, Any]:
    """The checkpoint on the CPU: tensors and plain values, no code is run.

    Raises:
        DamagedError: the digest differs, or the file holds something else than such values.
    """
    import torch

    verify(path)
    _check_stored(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen kinds here
        # torch's own words advise to load it all the same
        named = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
        what = f"it names {named[1]}" if named else "it holds something else"
        raise DamagedError(
            f"{path.name} can't be loaded safely: {what}, and a checkpoint is tensors and plain "
            "values alone"
        ) from error
    if not isinstance(found, dict) or "state_dict" not in found:
        raise DamagedError(f"{path.name} is no checkpoint of a run")
    return found


def _check_stored(path: Path) -> None:
    # torch.save packs nothing; torch.load would unpack whatever a file says that it holds
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            packed = [
                i.filename for i in infos if i.compress_type or i.file_size != i.compress_size
            ]
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise DamagedError(f"{path.name} can't be loaded safely: {error}") from error
    if packed:
        raise DamagedError(f"{path.name} can't be loaded safely: {packed[0]} in it is compressed")


FOLDER = "checkpoints"


LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"
# relative to the run folder
NAMES = tuple(f"{FOLDER}/{name}" for name in (LAST, PREVIOUS, BEST))


def link(source: Path, target: Path) -> None:
    """A second name for the same file, put in place at once: checkpoints are never changed."""
    beside = target.with_name(f".{target.name}.partial")
    beside.unlink(missing_ok=True)
    try:
        os.link(source, beside)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, beside)
        with open(beside, "rb") as file:
            os.fsync(file.fileno())
    os.replace(beside, target)
    beside.unlink(missing_ok=True)  # rename does nothing where both are names of one file
    sync_folder(target.parent)


def newest_usable(run_dir: Path) -> Path | None:
    """The checkpoint to continue from: ``last.ckpt``, or ``previous.ckpt`` where that is damaged.

    A damaged one is reported and set aside as ``*.damaged``; None where there is no checkpoint.

    Raises:
        InputError: there are some, and all are damaged.
    """
    folder = run_dir / FOLDER
    damaged: list[tuple[Path, DamagedError]] = []
    for path in (folder / LAST, folder / PREVIOUS):
        if not path.exists():
            continue
        try:
            load(path)
        except DamagedError as error:
            damaged.append((path, error))
            continue
        for bad, reason in damaged:
            os.replace(bad, bad.with_name(f"{bad.name}.damaged"))
            log.warning("%s; kept as %s.damaged, going on from %s", reason, bad.name, path.name)
        return path
    if damaged:
        raise InputError(
            f"hydra.run.dir={run_dir}: {'; '.join(str(error) for _, error in damaged)}; "
            "put a copy back into checkpoints/, or choose another folder to start over"
        )
    return None


def best_checkpoint(run_dir: Path, best_step: int) -> tuple[Path, dict[str, Any]]:
    """The best epoch's checkpoint and its file: ``best.ckpt``, or another that holds that step.

    Args:
        run_dir: of the run.
        best_step: ``global_step`` where the best epoch ended.

    Raises:
        DamagedError: none that is whole holds it.
    """
    reasons = []
    for name in (BEST, LAST, PREVIOUS):
        path = run_dir / FOLDER / name
        try:
            found = load(path)
        except DamagedError as error:
            reasons.append(str(error))
            continue
        if found["global_step"] == best_step:
            if reasons:
                log.warning("%s; testing %s, which holds the same step", reasons[0], name)
            return path, found
        reasons.append(f"{name} holds step {found['global_step']}")
    raise DamagedError(f"no checkpoint holds the best epoch (step {best_step}): {reasons[0]}")


def remove_partial(run_dir: Path) -> None:
    """Removes what a killed process left half-written."""
    for path in (run_dir / FOLDER).glob(".*.partial"):
        path.unlink(missing_ok=True)
