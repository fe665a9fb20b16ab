"""docs/export.md, reproduce.md, fine-tuning.md: their commands and Python as they stand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from cifar_lab import export, reproduce
from cifar_lab.__main__ import main
from tests.conftest import REPOSITORY, record_of
from tests.support.class_folders import write_class_folders

COMMANDS = {
    "cifar_lab": main,
    "cifar_lab.export": export.main,
    "cifar_lab.reproduce": reproduce.main,
}


def run_page(name: str, capfd: pytest.CaptureFixture[str]) -> str:
    """Runs all of a page; returns what its commands printed."""
    text, said = (REPOSITORY / "docs" / name).read_text(), ""
    blocks = re.findall(r"^```(bash|python)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    for language, block in blocks:
        if language == "python":
            exec(block, {})
            continue
        for line in block.splitlines():
            python, _, module, *arguments = shlex.split(line)
            assert python == "python"
            capfd.readouterr()
            assert COMMANDS[module](arguments) == 0, line
            said += capfd.readouterr().out
    return said


def test_reproduce(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_page("reproduce.md", capfd).rstrip().endswith("\nreproduced to the bit")


@pytest.mark.slow
def test_fine_tuning(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_class_folders(tmp_path / "plants", [f"kind{i}" for i in range(7)], train=8)
    run_page("fine-tuning.md", capfd)
    init = record_of(tmp_path / "plants-run")["init"]
    assert init["new"] == ["fc.weight", "fc.bias"]
    page = (REPOSITORY / "docs" / "fine-tuning.md").read_text()
    assert f"best.ckpt: {init['taken']} tensors" in page
    assert record_of(tmp_path / "plants-run-2")["init"]["taken"] == init["taken"]
    assert record_of(tmp_path / "frozen")["frozen_parameters"] > 0
    assert record_of(tmp_path / "deeper")["init"]["new"]


@pytest.mark.slow
def test_export(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run_page("export.md", capfd)
    names = {path.name for path in (tmp_path / "first" / "export").iterdir()}
    assert names == {"model.onnx", "model-int8.onnx", "model.pt2"}
    assert (tmp_path / "weights.safetensors").exists()
