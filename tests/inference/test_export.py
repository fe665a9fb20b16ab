"""`python -m cifar_lab.export`: files that answer as the checkpoint does, and say what they are."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hydra.utils import instantiate
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file

from cifar_lab import Run, load_run
from cifar_lab.errors import InputError
from cifar_lab.export import main
from cifar_lab.inference.export import export, images_for
from cifar_lab.records.checkpoint_file import add_digest
from cifar_lab.records.digest import run_digest
from tests.conftest import REPOSITORY, environment, record_of
from tests.support.class_folders import write_class_folders, zipped
from tests.support.finished import CNN, QUICK, copied, finish
from tests.support.own_images import change

SEVEN = ("rose", "daisy", "$a$ tulip$", "été", "lily of the valley", "10", "9")
Asked = Callable[..., tuple[int, str, str]]


@pytest.fixture
def asked(capfd: pytest.CaptureFixture[str]) -> Asked:
    def call(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        status = main(list(map(str, arguments)))
        return status, *capfd.readouterr()

    return call


def some(run: Run, count: int) -> NDArray[np.float32]:
    """Images in [0, 1] that no one has checked anything with."""
    generator = np.random.default_rng(count)
    return generator.random((count, 3, *run.image_size), np.float32)


def expected(run: Run, images: NDArray[np.float32]) -> NDArray[np.float32]:
    with torch.no_grad():
        logits = run.model(torch.from_numpy(images).to(run.model.offset))
    return np.asarray(logits.float().numpy())


def by_onnx(path: Path, images: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(path)
    assert [put.name for put in session.get_inputs()] == ["images"]
    assert session.get_inputs()[0].shape == ["batch", *images.shape[1:]]
    logits: NDArray[np.float32] = session.run(["logits"], {"images": images})[0]
    return logits


def by_rebuilding(path: Path, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """As the metadata of safetensors say, without a line of `cifar_lab.inference`."""
    with safe_open(path, framework="pt") as file:
        its = file.metadata()
    network = instantiate(json.loads(its["model"])).to(getattr(torch, its["dtype"])).eval()
    network.load_state_dict(load_file(path))
    mean, std = (torch.tensor(json.loads(its[k])).view(-1, 1, 1) for k in ("mean", "std"))
    given = ((torch.from_numpy(images) - mean) / std).to(getattr(torch, its["dtype"]))
    with torch.no_grad():
        logits = network(given)
        if its["tta"] == "flip":
            logits = (logits + network(given.flip(-1))) / 2
        else:
            assert its["tta"] == "none"
    return np.asarray(logits.float().numpy())


READERS = {"onnx": by_onnx, "safetensors": by_rebuilding}
RUNS = {
    "cnn, views averaged": (*CNN, "tta=flip"),
    "resnet10": QUICK,
    "two block counts, averages": (*QUICK, "model.num_blocks=[1]", "callbacks=ema"),
    "float64": (*CNN, "trainer.precision=64-true"),
    "stochastic depth, bfloat16": (
        *QUICK,
        *("model.stochastic_depth=0.5", "trainer.precision=bf16-mixed", "data.normalization=half"),
    ),
}


QUICKLY = ("cnn, views averaged", "two block counts, averages")


@pytest.mark.parametrize(
    "name",
    [n if n in QUICKLY else pytest.param(n, marks=pytest.mark.slow) for n in RUNS],
)
def test_a_file_answers_as_its_checkpoint(tmp_path: Path, name: str) -> None:
    run = load_run(finish(tmp_path / "run", *RUNS[name]))
    moved = Path(shutil.move(tmp_path / "run", tmp_path / "moved"))
    run = load_run(moved)
    data = images_for(run, None)
    for form, read in READERS.items():
        out = tmp_path / f"file.{form}"
        done = export(run, out, data, form=form, seconds=0)  # type: ignore[arg-type]
        assert (done.top1, done.checked, done.size) == (200, 200, out.stat().st_size)
        assert done.difference < 1e-4
        assert bool(done.notes) == (name == "float64" and form == "onnx")
        for count in (1, 2, 7):
            images = some(run, count)
            np.testing.assert_allclose(
                read(out, images), expected(run, images), atol=1e-4, rtol=1e-4
            )
        # in float32, where the run's own test was in another precision
        near = 0.0051 if "bfloat16" in name else 1e-9
        assert done.accuracy == pytest.approx(run.metrics["test/acc"], abs=near)


def facts_of(path: Path) -> dict[str, str]:
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata())
    if path.suffix == ".onnx":
        return {p.key: p.value for p in onnx.load(path).metadata_props}
    with zipfile.ZipFile(path) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("/extra/metadata.json"))
        found: dict[str, str] = json.loads(archive.read(name))
        return found


@pytest.fixture(scope="module")
def shipped(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Forms of one run."""
    folder = tmp_path_factory.mktemp("shipped")
    run = load_run(finished)
    data = images_for(run, None)
    files = {"torch": "a.pt2", "safetensors": "a.safetensors", "int8": "q.onnx"}
    for form, name in files.items():
        int8 = form == "int8"
        export(
            run,
            folder / name,
            data,
            form="onnx" if int8 else form,  # type: ignore[arg-type]
            quantize="int8" if int8 else None,
            seconds=0.02,
        )
    return {form: folder / name for form, name in files.items()}


def test_every_file_says_what_it_is(shipped: dict[str, Path], finished: Path) -> None:
    run, record = load_run(finished), record_of(finished)
    for form, path in shipped.items():
        its = facts_of(path)
        assert json.loads(its["classes"]) == list(run.classes)
        assert its["checkpoint_sha256"] == run.digest
        assert its["run_digest"] == run_digest(record["config_digest"], record["data"]["digest"])
        assert its["tested_on"].startswith("200 test images of synthetic (")
        assert its["input"] == "images: float32 (N, 3, 32, 32), RGB in [0, 1] (8-bit values / 255)"
        accuracy = json.loads(its["accuracy"])
        if form != "int8":
            assert accuracy == run.metrics["test/acc"]
        assert ("latency" in its) == (form != "safetensors")
        if "latency" in its:
            ratios = json.loads(its["latency"])["ratios"]
            assert [one["images"] for one in ratios] == [1, 64]
            assert all(0 < r["low"] <= r["median"] <= r["high"] for r in ratios)
            assert all(5 <= r["rounds"] <= 50 for r in ratios)
    onnx.checker.check_model(shipped["int8"], full_check=True)


def test_nothing_of_this_machine_is_in_a_file(shipped: dict[str, Path], finished: Path) -> None:
    own = [str(REPOSITORY), str(finished), str(Path.home()), "site-packages", ".py"]
    for path in shipped.values():
        content = path.read_bytes()
        if path.suffix == ".pt2":
            with zipfile.ZipFile(path) as archive:
                content = b"".join(archive.read(name) for name in archive.namelist())
        # the root of a container may be its home
        assert not [word for word in own if len(word) > 5 and word.encode() in content], path


def test_int8_is_smaller_and_says_what_it_costs(shipped: dict[str, Path], finished: Path) -> None:
    its, run = facts_of(shipped["int8"]), load_run(finished)
    assert its["quantized"] == "int8"
    assert its["calibrated_on"] == "200 held-out images"
    assert json.loads(its["latency"])["of"] == "float32"
    assert json.loads(its["accuracy_before"]) == run.metrics["test/acc"]
    test = images_for(run, None).dataset.test
    images = test.images.astype(np.float32) / np.float32(255)
    said = by_onnx(shipped["int8"], images)
    assert json.loads(its["accuracy"]) == float((said.argmax(1) == test.labels).mean())
    assert (said.argmax(1) == expected(run, images).argmax(1)).mean() > 0.9
    weights = {i.name: i.data_type for i in onnx.load(shipped["int8"]).graph.initializer}
    assert onnx.TensorProto.INT8 in weights.values()


@pytest.mark.slow
def test_without_held_out_images_training_images_calibrate(tmp_path: Path) -> None:
    run = load_run(finish(tmp_path / "run", *CNN, "data.val_size=0"))
    done = export(run, tmp_path / "a.onnx", images_for(run, None), quantize="int8", seconds=0)
    assert done.facts["calibrated_on"] == "512 training images"
    assert done.size < 0.4 * 1_000_000


def test_a_process_without_cifar_lab_loads_the_program(
    shipped: dict[str, Path], finished: Path, tmp_path: Path
) -> None:
    run = load_run(finished)
    module = torch.export.load(shipped["torch"]).module()
    for count in (1, 2, 7):
        images = some(run, count)
        with torch.no_grad():
            said = module(torch.from_numpy(images)).numpy()
        np.testing.assert_allclose(said, expected(run, images), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_a_process_that_has_no_cifar_lab(shipped: dict[str, Path], finished: Path) -> None:
    run = load_run(finished)
    images = some(run, 3)
    np.save("images.npy", images)
    code = (
        "import sys, numpy, torch\n"
        "sys.modules['cifar_lab'] = None\n"
        f"module = torch.export.load({str(shipped['torch'])!r}).module()\n"
        "images = torch.from_numpy(numpy.load('images.npy'))\n"
        "numpy.save('logits.npy', module(images).detach().numpy())\n"
    )
    subprocess.run([sys.executable, "-c", code], env=environment(PYTHONPATH=""), check=True)
    np.testing.assert_allclose(np.load("logits.npy"), expected(run, images), atol=1e-5)


def test_exported_weights_begin_a_run(
    shipped: dict[str, Path], finished: Path, tmp_path: Path
) -> None:
    begun = finish(tmp_path / "run", *QUICK, f"init_from={shipped['safetensors']}")
    init = record_of(begun)["init"]
    assert (init["taken"], init["new"], init["unused"]) == (
        len(load_file(shipped["safetensors"])),
        [],
        [],
    )


def test_seven_classes_from_folders_and_images_that_have_moved(
    tmp_path: Path, asked: Asked
) -> None:
    root = write_class_folders(tmp_path / "mine", SEVEN, size=(50, 36))
    folders = ("data=folders", f"data.root={root}", "data.val_size=0.25", "data.batch_size=8")
    kept = [a for a in CNN if not a.startswith("data")]
    run = finish(tmp_path / "run", *kept, *folders, "data.image_size=24")
    out = tmp_path / "seven.onnx"
    status, said, err = asked(run, "--out", out)
    assert (status, err) == (0, "")
    assert "input        images: float32 (N, 3, 24, 24), RGB in [0, 1]" in said
    assert json.loads(facts_of(out)["classes"]) == sorted(SEVEN)
    assert by_onnx(out, np.zeros((5, 3, 24, 24), np.float32)).shape == (5, 7)
    moved = zipped(root, tmp_path / "moved.zip")
    shutil.rmtree(root)
    status, _, err = asked(run, "--out", out, "--force")
    assert (status, "give them with --data PATH" in err) == (2, True)
    status, said, _ = asked(run, "--data", moved, "--json", "--quantize", "int8", "--out", "q.onnx")
    found = json.loads(said)
    assert status == 0
    assert found["metadata"]["accuracy_before"] == record_of(run)["metrics"]["test/acc"]
    assert "held-out" in found["metadata"]["calibrated_on"]


def test_a_compiled_run_is_exported_uncompiled(finished: Path, tmp_path: Path) -> None:
    compiled = copied(finished, tmp_path / "run")
    change(compiled, lambda record: record["config"].update(compile="max"))
    run = load_run(compiled)
    out = tmp_path / "a.safetensors"
    done = export(run, out, images_for(run, None), form="safetensors", seconds=0)
    assert done.accuracy == run.metrics["test/acc"]


def test_the_command(finished: Path, tmp_path: Path, asked: Asked) -> None:
    run = copied(finished, tmp_path / "run")
    status, out, err = asked(run, "--format", "safetensors")
    assert (status, err) == (0, "")
    path = run / "export" / "model.safetensors"
    assert f"file         {path} ({path.stat().st_size:,} bytes)" in out
    assert "checked      200 of 200 test images get the checkpoint's class, logits within 0" in out
    assert "% in the run's own test" in out
    before = load_file(path)
    status, out, err = asked(run, "--format", "safetensors")
    assert (status, out, "is there already; --force replaces it" in err) == (2, "", True)
    assert asked(run, "--format", "safetensors", "--force")[0] == 0
    assert all(torch.equal(t, before[name]) for name, t in load_file(path).items())
    last = run / "checkpoints" / "last.ckpt"
    status, out, _ = asked(
        run, "--format", "safetensors", "--ckpt", last, "--json", "--out", "x.safetensors"
    )
    found = json.loads(out)
    assert found["file"] == str(tmp_path / "x.safetensors")
    assert found["recorded_accuracy"] is None
    assert found["metadata"]["checkpoint_sha256"] == load_run(run, "last").digest
    assert list((run / "export").iterdir()) == [path]


def test_wrong_input_is_one_line_and_makes_nothing(
    finished: Path, another: Path, tmp_path: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copied(finished, tmp_path / "run")
    hostile = copied(finished, tmp_path / "hostile")
    change(hostile, lambda r: r["config"].update(model={"_target_": "os.system", "command": "ls"}))
    empty = copied(finished, tmp_path / "empty")
    shutil.rmtree(empty / "checkpoints")
    linked = copied(finished, tmp_path / "linked")
    (tmp_path / "elsewhere").mkdir()
    (linked / "export").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "zero.ckpt").write_text("")
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    state["state_dict"]["network.fc.bias"][3] = torch.nan
    torch.save(state, tmp_path / "nan.ckpt")
    add_digest(tmp_path / "nan.ckpt")
    other = write_class_folders(tmp_path / "other", ("cat", "unicorn"))
    (tmp_path / "cache").mkdir()  # of decoded folders
    before = set(tmp_path.glob("[!c]*/**/*"))
    for arguments, said in (
        ((), "usage: python -m cifar_lab.export RUN"),
        ((run, run), "unrecognized arguments"),
        ((run, "--format", "tflite"), "invalid choice: 'tflite'"),
        ((run, "--quantize", "int4"), "invalid choice: 'int4'"),
        ((run, "--quantize", "int8", "--format", "torch"), "is for --format onnx alone"),
        ((run, "--out", "model.pt"), "--format onnx makes a .onnx file"),
        ((run, "--out", "model"), "--format onnx makes a .onnx file"),
        ((run, "--out="), "--format onnx makes a .onnx file"),
        ((run, "--out", "nowhere/model.onnx"), "there is no folder"),
        ((run, "--out", "file/model.onnx"), "there is no folder"),
        ((run, "--out", "folder.onnx", "--force"), "is a folder"),
        (("nowhere",), "nowhere: does not exist"),
        (("file",), "file: is no folder"),
        ((tmp_path,), "there are runs below it"),
        ((empty,), "no checkpoint holds the best epoch"),
        ((hostile,), "is not a part of a run"),
        ((linked,), "leads out of the run folder"),
        ((run, "--ckpt", "x.ckpt"), "x.ckpt: does not exist"),
        ((run, "--ckpt", "zero.ckpt"), "zero.ckpt is empty"),
        ((run, "--ckpt", "nan.ckpt"), "nan.ckpt: fc.bias holds NaN or infinite numbers"),
        ((run, "--ckpt", another / "checkpoints" / "last.ckpt"), "is of another network"),
        ((run, "--data", "nowhere"), "nowhere: does not exist"),
        ((run, "--data", other), "the class unicorn is none of this run's 10"),
    ):
        status, out, err = asked(*arguments)
        assert (status, out) == (2, ""), (arguments, err)
        assert said in err.splitlines()[-1], (arguments, err)
    assert set(tmp_path.glob("[!c]*/**/*")) == before
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    status, _, err = asked(run)
    assert status == 2
    assert err == ("cifar_lab: --format onnx: needs onnxscript; pip install 'cifar-lab[onnx]'\n")
    assert asked("--help")[0] == 0


@contextmanager
def full_disk(most: int) -> Iterator[None]:
    """No file may have more bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_what_was_there(finished: Path, tmp_path: Path, asked: Asked) -> None:
    run = load_run(finished)
    missing = tmp_path / "no" / "where" / "a.safetensors"
    with pytest.raises(InputError, match="can't be written"):
        export(run, missing, images_for(run, None), form="safetensors")
    out = tmp_path / "model.safetensors"
    out.write_text("old")
    with full_disk(4096):
        status, _, err = asked(finished, "--format", "safetensors", "--out", out, "--force")
    assert (status, "can't be written (File too large); give another file" in err) == (2, True)
    assert out.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["model.safetensors"]


def run_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, forward: str) -> Path:
    """A finished run of a network of one's own."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / f"{name}.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, num_classes: int) -> None:\n"
        "        super().__init__()\n"
        "        self.fc = nn.Linear(3, num_classes)\n"
        "    def forward(self, images):\n"
        f"        {forward}\n"
    )
    kept = [a for a in QUICK if not a.startswith("model")]
    model = ("model=cnn", "~model.width", "~model.dropout", f"model._target_={name}.Net")
    return finish(tmp_path / name, *kept, *model)


def test_a_file_that_answers_otherwise_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: Asked
) -> None:
    random = "return self.fc(images.mean((2, 3))) + torch.rand(10)"
    run = run_of(tmp_path, monkeypatch, "random_net", random)
    out = tmp_path / "model.onnx"
    out.write_text("old")
    status, said, err = asked(run, "--trust", "random_net", "--out", out, "--force")
    assert (status, said, err.count("\n")) == (1, "", 1)
    assert "its logits differ from the checkpoint's by up to" in err
    assert out.read_text() == "old"
    assert not list(tmp_path.glob(".model*"))
    untraceable = (
        "return self.fc(images.mean((2, 3))) if images.sum() > 0 else self.fc(images.amax((2, 3)))"
    )
    run = run_of(tmp_path, monkeypatch, "branching_net", untraceable)
    status, said, err = asked(run, "--trust", "branching_net", "--out", out, "--force")
    assert (status, said, err.count("\n")) == (1, "", 1)
    assert "this network can't be exported: " in err
    assert "is not a part of a run" in asked(run)[2]
