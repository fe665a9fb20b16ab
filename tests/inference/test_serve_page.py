"""docs/serve.md: its lines as they are printed, and its table against the endpoint's."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from cifar_lab import load_run, serve
from cifar_lab.inference.serving.app import Limits
from tests.conftest import REPOSITORY, environment
from tests.support.serving import asked, serving_here

PAGE = (REPOSITORY / "docs" / "serve.md").read_text()


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")
def test_its_lines_run_as_they_are_printed(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (80, 60), "orange").save(tmp_path / "cat.jpg")
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()]
    curls = [line for line in lines if line.startswith("curl")]
    assert len(curls) == 4
    with serving_here(load_run(finished)) as port:
        for line in curls:
            done = subprocess.run(
                ["bash", "-c", line.replace("8000", str(port))],
                env=environment(),
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert done.returncode == 0, done.stderr
            if "|" not in line:
                said = json.loads(done.stdout)
                assert ("top" in said) != ("openapi" in said)
        table = re.findall(r"^\| (\d+(?:, \d+)*) \|", PAGE, re.MULTILINE)
        responses = asked(port, "/openapi.json").fields["paths"]["/predict"]["post"]["responses"]
    printed = {status for cell in table for status in cell.split(", ")}
    assert printed | {"200"} == set(responses)
    with Image.open(tmp_path / "map.png") as image:
        assert image.size == (32, 32)
    (command,) = (line for line in lines if "cifar_lab.serve" in line)
    python, _, module, *words = shlex.split(command)
    assert (python, module) == ("python", "cifar_lab.serve")
    assert serve.main(words) == 2  # the run of the line isn't here: it is read, and looked for
    assert words[0] in capsys.readouterr().err


def test_its_limits_are_those_of_the_code() -> None:
    limits = Limits()
    for text in (
        f"more than {limits.bytes / 2**20:g} MiB; refused",
        f"within {limits.seconds:g} s",
        f"more than {limits.waiting} requests at a time",
        f"without it {serve.FIRST_PORT}, or the next one",
    ):
        assert text in PAGE
