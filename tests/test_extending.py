"""docs/extending.md: every block of every section, run as it is printed, in an empty folder."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

Lab = Callable[..., tuple[int, str, str]]
PAGE = (REPOSITORY / "docs" / "extending.md").read_text()
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))
LINES = 20
KINDS = (
    *("network", "dataset", "optimizer", "schedule", "loss", "metric", "callback", "logger"),
    *("augmentation", "recipe"),
)


def blocks(section: str, *languages: str) -> list[str]:
    found = re.findall(r"^```(\w+)\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    return [text for language, text in found if language in languages]


@pytest.fixture
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The working directory, as `python -m` has it; what was imported from it is forgotten."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(file).is_relative_to(tmp_path):
            del sys.modules[name]


def test_there_is_a_section_for_each_kind() -> None:
    assert len(SECTIONS) == len(KINDS)
    for kind, title in zip(KINDS, SECTIONS, strict=True):
        assert re.match(rf"An? {kind}\b", title)


@pytest.mark.parametrize("title", SECTIONS)
@pytest.mark.usefixtures("importable")
def test_a_section_runs_as_it_is_printed(lab: Lab, tmp_path: Path, title: str) -> None:
    for text in blocks(SECTIONS[title], "python", "yaml"):
        name = text.partition("\n")[0].removeprefix("# ")
        content = text.partition("\n")[2] if name.endswith(".yaml") else text
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
        assert sum(bool(line.strip()) for line in text.splitlines()) < LINES
    commands = [line for text in blocks(SECTIONS[title], "bash") for line in text.splitlines()]
    assert commands
    for command in commands:
        program = shlex.split(command)
        assert program[:3] == ["python", "-m", "cifar_lab"]
        status, _, err = lab(*program[3:])
        assert (status, err) == (0, "")
