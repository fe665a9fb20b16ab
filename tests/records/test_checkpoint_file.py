"""A sealed checkpoint is found damaged by any change, and runs no code."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest
import torch

from cifar_lab.records.checkpoint_file import DamagedError, load, seal, verify


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": {"w": torch.arange(1000.0)}, "global_step": 3}, path)
    seal(path)
    return path


def test_a_sealed_checkpoint_loads_with_and_without_us(sealed: Path) -> None:
    assert torch.equal(load(sealed)["state_dict"]["w"], torch.arange(1000.0))
    for mmap in (False, True):
        assert torch.load(sealed, weights_only=True, mmap=mmap)["global_step"] == 3
    assert zipfile.ZipFile(sealed).testzip() is None


def test_any_flipped_bit_is_found(sealed: Path) -> None:
    data = sealed.read_bytes()
    for position in (*range(0, len(data), 97), *range(len(data) - 100, len(data))):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        sealed.write_bytes(flipped)
        with pytest.raises(DamagedError):
            verify(sealed)


def test_any_truncation_is_found(sealed: Path) -> None:
    data = sealed.read_bytes()
    for length in (0, 1, 63, 64, 71, 100, len(data) // 2, len(data) - 1):
        sealed.write_bytes(data[:length])
        with pytest.raises(DamagedError):
            verify(sealed)


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.path}",)


def test_a_sealed_pickle_with_a_payload_is_refused_and_never_runs(tmp_path: Path) -> None:
    path, proof = tmp_path / "last.ckpt", tmp_path / "proof"
    torch.save({"state_dict": {}, "global_step": Payload(proof)}, path)
    seal(path)
    with pytest.raises(DamagedError, match="safely"):
        load(path)
    assert not proof.exists()
    torch.load(path, weights_only=False)  # the payload is a real one
    assert proof.exists()
