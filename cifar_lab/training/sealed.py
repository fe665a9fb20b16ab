"""Checkpoint files that know whether they are whole.

A sealed checkpoint is what `torch.save` wrote, with a SHA-256 of everything before it in the ZIP
comment: one file, so that checkpoint and digest can't be torn apart by a crash, a copy or a link.
`torch.load` and every ZIP tool read it as before. (torch's own reader ignores the ZIP's CRCs.)
"""

from __future__ import annotations

import hashlib
import os
import struct
from pathlib import Path
from typing import Any

_LABEL = b"sha256:"
_DIGEST_CHARACTERS = 64
# the end-of-central-directory record of a ZIP without a comment, which torch writes last
_END_SIGNATURE, _END_BYTES = b"PK\x05\x06", 22


class DamagedError(ValueError):
    """A checkpoint that is not what was once written, or nothing that may be loaded."""


def seal(path: Path) -> None:
    """Adds the digest to a file that `torch.save` has just written, and flushes it to the disk."""
    data = path.read_bytes()
    end = data[-_END_BYTES:]
    assert end.startswith(_END_SIGNATURE), f"{path}: no plain ZIP"
    assert end.endswith(b"\0\0"), f"{path}: its ZIP has a comment already"
    comment_length = struct.pack("<H", len(_LABEL) + _DIGEST_CHARACTERS)
    digest = hashlib.sha256(memoryview(data)[:-2])
    digest.update(comment_length + _LABEL)
    with open(path, "r+b") as file:
        file.seek(-2, os.SEEK_END)
        file.write(comment_length + _LABEL + digest.hexdigest().encode())
        file.flush()
        os.fsync(file.fileno())


def verify(path: Path) -> None:
    """Raises DamagedError where the file is not, to the bit, the one that was sealed."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DamagedError(f"{path.name} can't be read ({error.strerror})") from error
    if not data:
        raise DamagedError(f"{path.name} is empty")
    body, digest = memoryview(data)[:-_DIGEST_CHARACTERS], data[-_DIGEST_CHARACTERS:]
    if bytes(body[-len(_LABEL) :]) != _LABEL:
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
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen kinds here
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DamagedError(f"{path.name} can't be loaded safely: {reason[0]}") from error
    if not isinstance(found, dict) or "state_dict" not in found:
        raise DamagedError(f"{path.name} is no checkpoint of a run")
    return found
