"""docs/use.md: its commands and its Python, in their order, as they are printed."""

from __future__ import annotations

import io
import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from cifar_lab import evaluate, predict
from cifar_lab.__main__ import main
from cifar_lab.data.synthetic import make_synthetic
from tests.conftest import REPOSITORY

PAGE = (REPOSITORY / "docs" / "use.md").read_text()
COMMANDS = {
    "cifar_lab": main,
    "cifar_lab.evaluate": evaluate.main,
    "cifar_lab.predict": predict.main,
}


def test_the_page_runs_as_it_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pictures").mkdir()
    pixels = make_synthetic(train_size=10, test_size=10, data_seed=7).test.images
    for index, image in enumerate(pixels[:3]):
        picture = Image.fromarray(image.transpose(1, 2, 0)).resize((80, 60))
        picture.save(tmp_path / "pictures" / f"{index}.jpg")
        picture.save(tmp_path / "cat.jpg")
    said = ""
    for language, text in re.findall(
        r"^```(bash|python)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE
    ):
        if language == "python":
            exec(text, {})
            continue
        for line in text.splitlines():
            before, pipe, command = line.rpartition(" | ")
            if pipe:
                content = (tmp_path / before.removeprefix("cat ")).read_bytes()
                monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
            python, _, module, *arguments = shlex.split(command)
            assert python == "python"
            status = COMMANDS[module](arguments)
            out, err = capfd.readouterr()
            assert (status, err) == (0, ""), line
            said += out
    assert "ensemble of 2" in said
    assert "mean corruption error" in said
    assert "not comparable with figures of the published archive" in said
    assert (tmp_path / "answers.png").exists()
    assert (tmp_path / "first" / "evaluation" / "reliability.png").exists()
