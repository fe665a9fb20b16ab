"""Every command that takes a run, given what is none, or what a stranger made of one."""

from __future__ import annotations

import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cifar_lab import compare, evaluate, export, load_run, predict, reproduce, serve, train
from cifar_lab.__main__ import main
from cifar_lab.errors import InputError
from cifar_lab.records.checkpoint_file import add_digest
from tests.conftest import merged
from tests.support.finished import QUICK, copied
from tests.support.hostile import Payload
from tests.support.own_images import change

Change = Callable[[Path], object]
COMMANDS: dict[str, Callable[[str], tuple[Callable[[list[str]], int], list[str]]]] = {
    "evaluate": lambda run: (evaluate.main, [run]),
    "predict": lambda run: (predict.main, [run, "cat.png"]),
    "export": lambda run: (export.main, [run, "--format", "safetensors"]),
    "reproduce": lambda run: (reproduce.main, [run]),
    "serve": lambda run: (serve.main, [run]),
    "init_from": lambda run: (main, merged(*QUICK, f"init_from={run}", "hydra.run.dir=new")),
    "distill": lambda run: (main, merged(*QUICK, f"distill.from={run}", "hydra.run.dir=new")),
}


def recorded(**fields: Any) -> Change:
    return lambda run: change(run, lambda record: record.update(fields))


def configured(**fields: Any) -> Change:
    return lambda run: change(run, lambda record: record["config"].update(fields))


def imaged(**fields: Any) -> Change:
    return lambda run: change(run, lambda record: record["data"].update(fields))


def checkpoints(make: Callable[[Path, bytes], object]) -> Change:
    def edit(run: Path) -> None:
        for path in (run / "checkpoints").glob("*.ckpt"):
            content = path.read_bytes()
            path.unlink()
            make(path, content)

    return edit


def saved(edit: Callable[[dict[str, Any]], object]) -> Change:
    def make(path: Path, content: bytes) -> None:
        path.write_bytes(content)
        found = torch.load(path, weights_only=True)
        edit(found)
        torch.save(found, path)
        add_digest(path)

    return checkpoints(make)


def scaled(found: dict[str, Any]) -> None:
    for name, tensor in found["state_dict"].items():
        if tensor.is_floating_point() and "running" not in name:
            tensor *= 1e30


def no_number(found: dict[str, Any]) -> None:
    found["state_dict"]["network.fc.weight"][3, 0] = float("nan")


# what was done to a finished run, and what each command that reads its weights says
STRANGE: dict[str, tuple[Change, str]] = {
    "no checkpoint": (lambda run: shutil.rmtree(run / "checkpoints"), ""),
    "cut in half": (checkpoints(lambda p, c: p.write_bytes(c[: len(c) // 2])), "cut off"),
    "empty": (checkpoints(lambda p, c: p.touch()), ""),
    "random": (
        checkpoints(lambda p, c: p.write_bytes(random.Random(0).randbytes(len(c)))),
        "cut off",
    ),
    "a pickle": (checkpoints(lambda p, c: p.write_bytes(pickle.dumps(Payload(p)))), ""),
    "code": (
        saved(lambda found: found.update(x=Payload(Path("pwned")))),
        "can't be loaded safely: it holds something else, and a checkpoint is tensors and plain",
    ),
    "a pipe": (checkpoints(lambda p, c: os.mkfifo(p)), ""),
    "a folder": (checkpoints(lambda p, c: p.mkdir()), ""),
    "weights that are none": (saved(no_number), "fc.weight holds NaN or infinite numbers"),
}
# what load_run says
RECORDS: dict[str, tuple[Change, str]] = {
    "a list": (lambda run: (run / "run.json").write_text("[1]"), "Input should be an object"),
    "bytes": (lambda run: (run / "run.json").write_bytes(b"\xff\xfe"), "run.json: 'utf-8' codec"),
    "diverged": (recorded(status="diverged", tested=None), "tested nothing; take its last weights"),
    "a command": (
        recorded(status="failed", tested=None, command="curl x | sh"),
        "nothing; its own command with hydra.run.dir=",
    ),
    "no pixels": (imaged(image_size=[0, 0]), "data.image_size=0x0: must lie in 1..4096"),
    "too many": (imaged(image_size=[10**6, 10**6]), "=1000000x1000000: must lie in 1..4096"),
    "no deviation": (imaged(std=[0, 0, 0]), "data.std=0.0: must be above 0"),
    "names": (imaged(classes=[f"\x1b]0;x\n{i}" for i in range(10)]), r"\x1b]0;x\n0: can't be prin"),
    "one class": (imaged(classes=["a"]), "it has fc.weight 10x8, not 1x8"),
}
# what evaluate says
SETTINGS: dict[str, tuple[Change, str]] = {
    "data": (configured(data=[1]), "says nothing of its images"),
    "trainer": (configured(trainer="x"), "holds settings of no run (dictionary update"),
    "precision": (configured(trainer={"precision": "17"}), "settings of no run (Precision '17'"),
    "limit": (configured(trainer={"limit_test_batches": -3}), "settings of no run (You have pas"),
    "threads": (configured(threads="x"), "settings of no run (set_num_threads expects an int"),
    "overflow": (saved(scaled), "to 200 of 200 images the network's answer is no number: its sums"),
}


@pytest.fixture
def refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Callable[[str, str], str]:
    """The one line of a command that refuses a run, and leaves nothing."""
    Image.new("RGB", (32, 32)).save(tmp_path / "cat.png")

    def ask(command: str, run: str) -> str:
        program, words = COMMANDS[command](run)
        before = sorted(tmp_path.rglob("*"))
        capfd.readouterr()
        status = program(words)
        out, err = capfd.readouterr()
        assert (status, out, err.count("\n")) == (2, "", 1), (command, run, err)
        assert sorted(tmp_path.rglob("*")) == before, command
        key = {"init_from": "init_from=", "distill": "distill.from="}.get(command, "no key")
        assert err.count(key) <= 1 + err.count("as in distill.from=[")
        return err

    return ask


# Each composes a whole configuration.
TRAINING = ("init_from", "distill")


@pytest.mark.parametrize(
    "command",
    [pytest.param(c, marks=pytest.mark.slow) if c in TRAINING else c for c in COMMANDS],
)
def test_what_is_no_run_is_one_line(command: str, refused: Callable[[str, str], str]) -> None:
    Path("empty").mkdir()
    Path("file").touch()
    for run in ("empty", "file", "nowhere", "x" * 300, "~nobody-of-this-name/x"):
        assert run in refused(command, run)


@pytest.mark.parametrize(
    "commands",
    [("evaluate", "predict", "export", "serve"), pytest.param(TRAINING, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("name", STRANGE)
def test_weights_that_cant_be_read_are_one_line_everywhere(
    name: str,
    commands: tuple[str, ...],
    finished: Path,
    tmp_path: Path,
    refused: Callable[[str, str], str],
) -> None:
    edit, said = STRANGE[name]
    run = copied(finished, tmp_path / "run")
    edit(run)
    for command in commands:  # reproduce compares what there is
        err = refused(command, str(run))
        assert said in err, (command, err)
        assert "weights_only" not in err
    assert not Path("pwned").exists()


def test_a_strangers_record_is_one_line(finished: Path, tmp_path: Path) -> None:
    for name, (edit, said) in RECORDS.items():
        run = copied(finished, tmp_path / name)
        edit(run)
        with pytest.raises(InputError) as error:
            load_run(run)
        assert said in str(error.value), name
        assert str(error.value).isprintable(), name
        assert "curl" not in str(error.value)


def test_a_strangers_settings_are_one_line(
    finished: Path, tmp_path: Path, refused: Callable[[str, str], str]
) -> None:
    for name, (edit, said) in SETTINGS.items():
        run = copied(finished, tmp_path / name)
        edit(run)
        assert said in refused("evaluate", str(run)), name


def test_data_of_no_kind_can_not_be_run_again(
    finished: Path, tmp_path: Path, refused: Callable[[str, str], str]
) -> None:
    for place, node in enumerate((None, [1], "x")):
        run = copied(finished, tmp_path / str(place))
        configured(data=node)(run)
        assert "has no configuration or no images" in refused("reproduce", str(run))


def test_an_answer_that_is_no_number_is_no_answer(
    finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = copied(finished, tmp_path / "run")
    saved(scaled)(run)
    pixels = np.zeros((2, 3, 32, 32), np.uint8)
    with pytest.raises(InputError, match=r"images\[0\]: the network's answer is no number"):
        load_run(run).predict(pixels)
    for name in ("a.png", "b.png"):
        Image.new("RGB", (32, 32), "red").save(name)
    assert predict.main([str(run), "a.png", "b.png"]) == 1
    out, err = capfd.readouterr()
    assert (out, err.count("answer is no number")) == ("", 2)
    assert export.main([str(run), "--format", "safetensors"]) == 2
    assert "last.ckpt: the network's answer is no" in capfd.readouterr().err.replace("best", "last")
    assert not (run / "export" / "model.safetensors").exists()


def test_arrays_as_people_have_them(finished: Path, recwarn: pytest.WarningsRecorder) -> None:
    run = load_run(finished)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    rgb = np.asarray(picture)  # which may not be written to
    expected = run.predict(picture)
    bgr = rgb[..., ::-1].copy()
    for images in (rgb, bgr[..., ::-1], (rgb / 255).astype(">f8")):
        torch.testing.assert_close(run.predict(images), expected)
    with pytest.raises(InputError, match="images: have type object"):
        run.predict(np.array([[None]]))
    assert not [w for w in recwarn if "torch" in str(w.filename) or "array" in str(w.message)]


def test_text_is_no_list(finished: Path) -> None:
    with pytest.raises(InputError, match=r'trust=nets: must be a list of modules, as in \["nets"'):
        load_run(finished, trust="nets")
    with pytest.raises(InputError, match="model=cnn: must be a list"):
        train("model=cnn")
    with pytest.raises(InputError, match="ckpt: is empty"):
        load_run(finished, "")
    for folder in ("x" * 300, "~nobody-of-this-name"):
        with pytest.raises(InputError, match="does not exist"):
            compare(folder)
