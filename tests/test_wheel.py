"""A built wheel trains with no repository beside it: conf/ travels inside."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

from tests.conftest import REPOSITORY, TINY, environment, merged, record_of


def test_an_installed_wheel_trains_from_any_folder(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path)]
    subprocess.run([*build, str(REPOSITORY)], check=True, capture_output=True, text=True)
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "site-packages"  # a wheel is a zip of what lies there
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    assert (installed / "cifar_lab" / "py.typed").exists()  # its types count where it is used
    for file in (REPOSITORY / "cifar_lab").rglob("*.*"):  # pages and templates too
        if "__pycache__" not in file.parts:
            assert (installed / file.relative_to(REPOSITORY)).exists()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def run(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=elsewhere,
            env=environment(PYTHONPATH=str(installed)),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = run("-c", "import cifar_lab.config.schema as c; print(c.__file__, c.conf_dir())")
    assert all(Path(path).is_relative_to(installed) for path in where.split())
    run("-m", "cifar_lab", *merged(*TINY, "trainer.max_epochs=1", "hydra.run.dir=run"))
    record = record_of(elsewhere / "run")
    assert record["status"] == "finished"
    (elsewhere / "run").rename(tmp_path / "moved")
    measured = json.loads(run("-m", "cifar_lab.evaluate", str(tmp_path / "moved"), "--json"))
    assert measured["runs"][0]["accuracy"] == record["metrics"]["test/acc"]
    # its conf/ alone, and one process for both
    both = (
        "import sys; from cifar_lab import export, reproduce; given = sys.argv[1:]\n"
        "sys.exit(export.main([*given, '--format', 'safetensors']) or reproduce.main(given))"
    )
    said = run("-c", both, str(tmp_path / "moved"))
    assert said.rstrip().endswith("reproduced to the bit")
    assert (tmp_path / "moved" / "export" / "model.safetensors").exists()
