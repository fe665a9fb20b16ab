"""What runs on a forge: workflows, pre-commit, templates and the citation say what is there."""

from __future__ import annotations

import re
import shlex
import tomllib
from importlib import metadata
from typing import Any

import pytest
import yaml

from tests.conftest import REPOSITORY

TARGETS = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))


def read(name: str) -> Any:
    return yaml.safe_load((REPOSITORY / name).read_text())


def steps(job: dict[str, Any]) -> list[str]:
    return [step["run"] for step in job["steps"] if "run" in step]


def test_the_workflow_tests_every_python_on_linux_and_macos_and_the_wheel() -> None:
    jobs = read(".github/workflows/ci.yml")["jobs"]
    matrix = jobs["test"]["strategy"]["matrix"]
    assert matrix["os"] == ["ubuntu-latest", "macos-latest"]
    assert matrix["python"] == ["3.11", "3.12", "3.13"]
    assert "make check" in steps(jobs["check"])
    assert "make test" in steps(jobs["test"])
    assert any("cifar-lab experiment=" in run for run in steps(jobs["wheel"]))
    made = [line for job in jobs.values() for run in steps(job) for line in run.splitlines()]
    targets = {word for line in made if line.startswith("make ") for word in line.split()[1:]}
    assert targets <= TARGETS
    assert all("timeout-minutes" in job for job in jobs.values())


@pytest.mark.parametrize("tool", ["ruff", "mypy"])
def test_before_a_commit_runs_the_tool_of_the_lock(tool: str) -> None:
    (hooks,) = (repo["hooks"] for repo in read(".pre-commit-config.yaml")["repos"])
    entries = [shlex.split(hook["entry"])[0] for hook in hooks if hook["id"].startswith(tool)]
    assert entries
    assert set(entries) == {f".venv/bin/{tool}"}  # that of `make setup`, which installs the lock
    lock = (REPOSITORY / "requirements.lock").read_text()
    assert re.findall(rf"^{tool}==(\S+)", lock, re.MULTILINE) == [metadata.version(tool)]


def test_the_citation_is_one() -> None:
    citation = read("CITATION.cff")
    # what https://github.com/citation-file-format/citation-file-format 1.2.0 requires
    assert {"authors", "cff-version", "message", "title"} <= set(citation)
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    assert all("name" in author or "family-names" in author for author in citation["authors"])
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert citation["license"] == project["license"]


def test_updates_and_templates_are_read() -> None:
    updates = read(".github/dependabot.yml")["updates"]
    assert {one["package-ecosystem"] for one in updates} == {"pip", "github-actions"}
    forms = list((REPOSITORY / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert len(forms) == 2
    for path in forms:
        form = yaml.safe_load(path.read_text())
        assert {"name", "description", "body"} <= set(form)
        assert all(part["attributes"]["label"] for part in form["body"])
    template = (REPOSITORY / ".github" / "pull_request_template.md").read_text()
    named = set(re.findall(r"`make ([a-z-]+)`", template))
    assert named
    assert named <= TARGETS
