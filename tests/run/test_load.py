"""A run is read back from its folder alone, as it was tested, and repeats its own test."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.prune import random_unstructured

from cifar_lab import Run, compare, load_run, train
from cifar_lab.data.fetch.cifar100 import FINE
from cifar_lab.data.synthetic import make_synthetic
from cifar_lab.errors import InputError
from cifar_lab.inference.evaluation import evaluate
from cifar_lab.inference.images import own_images
from cifar_lab.records.checkpoint_file import add_digest
from tests.conftest import REPOSITORY, environment, merged, record_of
from tests.support.class_folders import write_class_folders
from tests.support.finished import CNN, QUICK, copied, finish
from tests.support.own_images import change
from tests.support.runs import stop_at

Lab = Callable[..., tuple[int, str, str]]
SEVEN = ("rose", "daisy", "$a$ tulip$", "été", "lily of the valley", "10", "9")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finish(tmp_path_factory.mktemp("load") / "run", *QUICK)


def holds(run: Run) -> None:
    """What was loaded answers as the run's own test did, and that test can be repeated."""
    with np.load(run.folder / "predictions.npz") as saved:
        labels, logits = torch.from_numpy(saved["labels"]), torch.from_numpy(saved["logits"])
        assert tuple(saved["classes"]) == run.classes
    data = own_images(run)
    again = evaluate(run, data, held_out=data)
    assert again.accuracy == run.metrics["test/acc"]
    assert again.loss == run.metrics["test/loss"]
    assert torch.equal(again.outputs.logits, logits)
    assert torch.equal(again.outputs.labels, labels)
    images = torch.from_numpy(np.array(data.dataset.test.images))[: len(labels)]
    with torch.no_grad():
        said = run.model(images.to(run.model.offset) / 255)
    # bfloat16 was the run's precision and is not the loaded network's
    near = 0.02 if run.config["trainer"].get("precision") == "bf16-mixed" else 1e-4
    torch.testing.assert_close(said.float(), logits, rtol=near, atol=near)
    torch.testing.assert_close(run.predict(images), logits.softmax(1), rtol=near, atol=near)


RUNS = {
    "cnn": CNN,
    "resnet10": QUICK,
    "two block counts": (*QUICK, "model.num_blocks=[1]"),
    "the best of several": (*QUICK, "trainer.max_epochs=4", "optimizer.lr=0.3"),
    "nothing held out": (*QUICK, "data.val_size=0"),
    "averages": (*CNN, "callbacks=ema", "callbacks.ema.decay=0.9"),
    "averages, nothing held out": (*QUICK, "callbacks=ema", "data.val_size=0"),
    "float64": (*QUICK, "trainer.precision=64-true"),
    "bfloat16": (*QUICK, "trainer.precision=bf16-mixed"),
    "a part of the test": (*QUICK, "trainer.limit_test_batches=2"),
    "views averaged": (*CNN, "tta=flip"),
    "half": (*QUICK, "data.normalization=half"),
    "smoothed labels": (*QUICK, "loss.label_smoothing=0.1"),
    "torchvision": (
        *[a for a in QUICK if not a.startswith("model")],
        *("model=resnet10", "~model.num_blocks", "~model.width", "~model.stochastic_depth"),
        *("~model.bn_momentum", "~model.train_scale", "~model.identity"),
        "model._target_=torchvision.models.squeezenet1_1",
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_loaded_as_it_was_tested(tmp_path: Path, name: str) -> None:
    holds(load_run(finish(tmp_path / "run", *RUNS[name])))


@pytest.mark.slow
def test_a_compiled_run_is_loaded_uncompiled(tmp_path: Path) -> None:
    holds(load_run(finish(tmp_path / "run", *QUICK, "compile=default")))


def test_an_interrupted_and_resumed_run_is_loaded_from_a_moved_folder(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (*CNN, "callbacks=ema", f"hydra.run.dir={tmp_path}/run")
    stop_at(monkeypatch, 4)
    assert lab(*arguments)[0] == 130
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"is interrupted, and has tested nothing.*ckpt=last"):
        load_run("run")
    assert load_run("run", "last").record.status == "interrupted"
    assert lab(*arguments)[0] == 0
    (tmp_path / "elsewhere").mkdir()
    holds(load_run(shutil.move(tmp_path / "run", tmp_path / "elsewhere" / "moved")))


def test_seven_classes_from_folders_with_pictures_of_another_size(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "mine", SEVEN, size=(50, 36))
    folders = ("data=folders", f"data.root={root}", "data.val_size=0.25", "data.batch_size=8")
    kept = [a for a in QUICK if not a.startswith("data")]
    run = load_run(finish(tmp_path / "run", *kept, *folders, "data.image_size=24"))
    assert run.classes == tuple(sorted(SEVEN))
    assert run.image_size == (24, 24)
    holds(run)
    pictures = sorted((root / "test" / "rose").iterdir())
    by_path, by_picture = run.predict(pictures), run.predict([Image.open(p) for p in pictures])
    assert torch.equal(by_path, by_picture)
    assert by_path.shape == (2, 7)
    (root / "test" / "rose" / "000.png").unlink()
    with pytest.raises(InputError, match="other images are where its own were"):
        own_images(run)
    shutil.rmtree(root)
    with pytest.raises(InputError, match=r"its images are not here .*give them with --data PATH"):
        own_images(load_run(tmp_path / "run"))


def test_cifar_100(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "hundred", FINE.classes, train=2, test=1)
    kept = [a for a in QUICK if not a.startswith("data")]
    data = ("data=cifar100", f"data.root={root}", "data.val_size=100", "data.batch_size=25")
    run = load_run(finish(tmp_path / "run", *kept, *data))
    assert run.classes == FINE.classes
    holds(run)


def test_a_record_of_before_tells_what_it_can(finished: Path, tmp_path: Path) -> None:
    old = copied(finished, tmp_path / "old")

    def forget(record: dict[str, Any]) -> None:
        for key in ("image_size", "mean", "std"):
            del record["data"][key]

    change(old, forget)
    then, now = load_run(old), load_run(finished)
    assert (then.mean, then.std, then.image_size) == (now.mean, now.std, now.image_size)
    change(old, lambda record: record["data"].update(name="folders"))
    with pytest.raises(InputError, match=r"older version.*run it again"):
        load_run(old)


def test_loading_draws_no_random_number_and_changes_no_file(finished: Path) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    state = torch.get_rng_state()
    run = load_run(finished)
    assert torch.equal(torch.get_rng_state(), state)
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before
    run.config["model"]["width"] = 7
    run.metrics.clear()
    assert run.config["model"]["width"] == 4
    assert run.metrics
    assert run.digest == load_run(finished, run.checkpoint).digest
    assert not run.model.training


# --- what predict takes ----------------------------------------------------------------------


def test_all_ways_to_give_images_are_one(finished: Path, tmp_path: Path) -> None:
    run = load_run(finished)
    pixels = make_synthetic(train_size=20, test_size=10, data_seed=1).test.images
    paths = [tmp_path / f"{i}.png" for i in range(len(pixels))]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image.transpose(1, 2, 0)).save(path)
    expected = run.predict(pixels)
    torch.testing.assert_close(expected.sum(1), torch.ones(10))
    for images in (
        pixels.transpose(0, 2, 3, 1),
        torch.from_numpy(pixels),
        torch.from_numpy(pixels).float() / 255,
        pixels.astype(np.float64) / 255,
        paths,
        [str(path) for path in paths],
        [Image.open(path) for path in paths],
        list(pixels),
    ):
        torch.testing.assert_close(run.predict(images), expected)
    torch.testing.assert_close(run.predict(pixels[0]), expected[:1])
    torch.testing.assert_close(run.predict(paths[0]), expected[:1])
    torch.testing.assert_close(run.predict(pixels, batch_size=3), expected)
    assert run.predict([]).shape == (0, 10)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (np.zeros((2, 3, 40, 40), np.uint8), "are 40x40 pixels, and this run's are 32x32"),
        (np.zeros((2, 32, 32), np.uint8), "have shape 2x32x32"),
        (np.zeros((2, 4, 32, 32), np.uint8), "have shape 2x4x32x32"),
        (np.full((1, 3, 32, 32), 255.0), "reach from 255 to 255; floats must lie in 0..1"),
        (np.full((1, 3, 32, 32), np.nan), "reach from nan"),
        (np.full((1, 3, 32, 32), -0.1), "floats must lie in 0..1"),
        (np.zeros((1, 3, 32, 32), np.int64), "int64; must be uint8, or float in 0..1"),
        (7, "can't be a int"),
        ([None], r"images\[0\]: can't be a NoneType"),
        ("nowhere.png", "nowhere.png: does not exist"),
    ],
)
def test_other_images_are_refused(finished: Path, images: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_run(finished).predict(images)


# --- folders that are no finished run -------------------------------------------------------------


def test_what_is_no_finished_run_is_one_line(finished: Path, tmp_path: Path) -> None:
    def refused(said: str, folder: Path | str, ckpt: str | Path = "best") -> None:
        with pytest.raises(InputError, match=said) as error:
            load_run(folder, ckpt)
        assert "\n" not in str(error.value)

    refused("nowhere: does not exist; give the folder of a run", "nowhere")
    refused("run.json: is no folder; give the folder of a run", finished / "run.json")
    old = REPOSITORY / "tests" / "fixtures" / "runs_of_af3b1f8" / "seed0"
    refused("older version, which did not record the names of its classes", old)
    refused("holds no run.json; give the folder of a run; there are runs below it", finished.parent)
    broken = copied(finished, tmp_path / "broken")
    (broken / "run.json").write_text("{")
    refused("its run.json: ", broken)
    running = copied(finished, tmp_path / "running")
    change(running, lambda r: r.update(status="running", pid=1, pid_started=None, host="x"))
    change(running, lambda r: r.update(heartbeat="2999-01-01T00:00:00+00:00"))
    refused("process 1 on x is running in it; wait", running)
    none = copied(finished, tmp_path / "none")
    shutil.rmtree(none / "checkpoints")
    refused("no checkpoint holds the best epoch", none)
    refused("last.ckpt: does not exist; it holds no checkpoint", none, "last")
    refused("does not exist; its checkpoints are best.ckpt, last.ckpt", finished, "x.ckpt")
    cut = copied(finished, tmp_path / "cut")
    path = cut / "checkpoints" / "last.ckpt"
    path.write_bytes(path.read_bytes()[:-1000])
    refused("last.ckpt is cut off", cut, "last")
    ended = copied(finished, tmp_path / "ended")
    change(ended, lambda r: r.update(status="failed", data=None))
    refused("ended before it had read its images", ended)


def test_a_checkpoint_of_another_network_names_what_differs(finished: Path, tmp_path: Path) -> None:
    other = finish(tmp_path / "other", *QUICK, "model.width=5")
    with pytest.raises(InputError, match=r"of another network .*stem\.0\.weight 5x3x3x3, not 4x3"):
        load_run(finished, other / "checkpoints" / "last.ckpt")
    cnn = finish(tmp_path / "cnn", *CNN)
    with pytest.raises(InputError, match=r"lacks stem\.0\.weight, lacks .* and \d+ more"):
        load_run(finished, cnn / "checkpoints" / "last.ckpt")


# --- a folder from anybody ------------------------------------------------------------------------


def test_a_network_from_elsewhere_is_called_only_where_it_is_trusted(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_net.py").write_text(
        "from torch import nn\n"
        "print('imported')\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self, num_classes: int) -> None:\n"
        "        super().__init__(nn.Flatten(), nn.Linear(3072, num_classes))\n"
        "        self.calls = 0\n"
        "    def forward(self, images):\n"
        "        self.calls += self.training\n"
        "        return super().forward(images) / (1 + self.calls)\n"
        "    def get_extra_state(self):\n"
        "        return {'calls': self.calls}\n"
        "    def set_extra_state(self, state):\n"
        "        self.calls = state['calls']\n"
    )
    base = [a for a in QUICK if not a.startswith("model")]
    model = ("model=cnn", "~model.width", "~model.dropout", "model._target_=own_net.Net")
    run = train(merged(*base, *model, f"hydra.run.dir={tmp_path}/run"))
    holds(run)  # what is typed is trusted
    del sys.modules["own_net"]
    with pytest.raises(InputError, match=r"own_net\.Net: is not a part of a run.*--trust own_net"):
        load_run(tmp_path / "run")
    assert "own_net" not in sys.modules
    again = load_run(tmp_path / "run", trust=["own_net"])
    holds(again)
    assert (
        again.model.network.state_dict()["_extra_state"]["calls"] > 0
    )  # its extra state, which scales its logits
    begun = (f"init_from={tmp_path}/run", f"hydra.run.dir={tmp_path}/begun")
    assert train(merged(*base, *model, *begun)).record.init is not None
    del sys.modules["own_net"]
    (tmp_path / "own_net.py").unlink()
    with pytest.raises(InputError, match=r"^model\._target_=own_net\.Net: No module named 'own_"):
        load_run(tmp_path / "run", trust=["own_net"])


class Pruned(nn.Sequential):
    """A weight that is made of others in each forward pass."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(3072, num_classes))
        random_unstructured(self[1], "weight", amount=0.5)


class Tempered(nn.Module):
    """A single parameter in float64."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(3072, num_classes)
        self.temperature = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(images.flatten(1))
        return logits / self.temperature.float()


class Habits(nn.Sequential):
    """An initialization of its own, and a mode that it doesn't give itself back from."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(3072, num_classes))
        self.initialize()

    def initialize(self, std: float = 0.01) -> None:
        assert isinstance(std, float)
        nn.init.normal_(self.get_parameter("1.weight"), 0, std)

    def train(self, mode: bool = True) -> None:  # type: ignore[override]  # as people write it
        super().train(mode)


@pytest.mark.parametrize("network", [Pruned, Tempered, Habits], ids=lambda kind: kind.__name__)
def test_a_network_with_ways_of_its_own_is_loaded_as_it_was_tested(
    tmp_path: Path, network: type[nn.Module]
) -> None:
    base = [a for a in QUICK if not a.startswith("model")]
    target = f"model._target_={__name__}.{network.__name__}"
    model = ("model=cnn", "~model.width", "~model.dropout", target)
    finish(tmp_path / "run", *base, *model)
    holds(load_run(tmp_path / "run", trust=["tests"]))


@pytest.mark.parametrize(
    "node",
    [
        {"_target_": "os.system", "command": "touch pwned"},
        {"_target_": "torch.load", "f": "evil.pt"},
        {"_target_": "timm.models.load_state_dict", "checkpoint_path": "evil.pt"},
        {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": "pwned"},
        {"_target_": "cifar_lab.data.fetch.download.fetch"},
        {"_target_": "torch.nn.Sequential", "_args_": [{"_target_": "subprocess.run"}]},
        {"_target_": "timm.create_model", "model_name": "hf-hub:somebody/evil"},
        {"_target_": "cifar_lab.model.cnn.CNN", "width": "${oc.env:HOME}", "dropout": 0.5},
    ],
)
def test_a_record_calls_nothing_but_networks(
    finished: Path, tmp_path: Path, node: dict[str, Any]
) -> None:
    hostile = copied(finished, tmp_path / "hostile")
    change(hostile, lambda record: record["config"].update(model=node))
    before = set(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=r"not a part of a run|no interpolation|timm's own"):
        load_run(hostile)
    assert set(tmp_path.rglob("*")) == before


def test_a_records_data_opens_no_socket_and_calls_no_code(finished: Path, tmp_path: Path) -> None:
    hostile = copied(finished, tmp_path / "hostile")
    change(hostile, lambda r: r["config"]["data"].update(_target_="os.system"))
    with pytest.raises(InputError, match="not a part of a run"):
        own_images(load_run(hostile))
    node = record_of(hostile)["config"]["data"] | {
        "_target_": "cifar_lab.data.datamodule.Cifar10",
        "root": None,
        "offline": False,
        "cache": str(tmp_path / "theirs"),
        "sources": ["http://127.0.0.1:9/x"],
        "min_rate": 1.0,
        "stall_s": 1.0,
        "transform": {"_target_": "os.getcwd"},
    }
    for key in ("train_size", "test_size", "data_seed"):
        del node[key]
    change(hostile, lambda r: r["config"].update(data=node))
    with pytest.raises(InputError, match="is not on this machine"):
        own_images(load_run(hostile))
    assert not (tmp_path / "theirs").exists()


def test_a_link_does_not_lead_out_of_the_folder(finished: Path, tmp_path: Path) -> None:
    linked = copied(finished, tmp_path / "linked")
    (linked / "checkpoints" / "best.ckpt").unlink()
    (linked / "checkpoints" / "best.ckpt").symlink_to(finished / "checkpoints" / "best.ckpt")
    with pytest.raises(InputError, match="leads out of the run folder"):
        load_run(linked)
    assert load_run(linked, finished / "checkpoints" / "best.ckpt")  # what is named is meant


def test_a_packed_checkpoint_is_not_unpacked(finished: Path, tmp_path: Path) -> None:
    import zipfile

    path = tmp_path / "bomb.ckpt"
    source = finished / "checkpoints" / "last.ckpt"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    add_digest(path)
    with pytest.raises(InputError, match="in it is compressed"):
        load_run(finished, path)


def test_weights_that_are_none_are_refused(finished: Path, tmp_path: Path) -> None:
    found = torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)
    for name, value in (("text", "no tensor"), ("sparse", torch.zeros(10).to_sparse())):
        found["state_dict"]["network.fc.bias"] = value
        path = tmp_path / f"{name}.ckpt"
        torch.save(found, path)
        add_digest(path)
        with pytest.raises(InputError, match=r"fc\.bias|does not fit|loaded safely"):
            load_run(finished, path)


# --- for a notebook -------------------------------------------------------------------------------


def test_importing_the_package_loads_nothing() -> None:
    code = "import sys, cifar_lab; print(sorted({'torch', 'pandas', 'hydra'} & set(sys.modules)))"
    code += "; from cifar_lab import compare; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[:2] == ["[]", "False"]


def test_train_and_compare(tmp_path: Path) -> None:
    lines = [merged(*QUICK, f"optimizer.lr={lr}", f"hydra.run.dir=runs/{lr}") for lr in (0.01, 0.1)]
    runs = [train(line) for line in lines]
    table = compare("runs")
    assert table["place"].tolist() == [1, 2]
    by_lr = dict(zip(table["optimizer.lr"], table["test/acc mean"], strict=True))
    assert by_lr == {0.01: runs[0].metrics["test/acc"], 0.1: runs[1].metrics["test/acc"]}
    assert train(lines[0]).digest == runs[0].digest  # finished: read, not run again
    with pytest.raises(InputError, match="did you mean"):
        train(["modle=cnn"])
    with pytest.raises(InputError, match="flags are the command line's"):
        train(["-m", "seed=0,1"])
    with pytest.raises(RuntimeError, match="became NaN or infinite"):
        train(merged(*QUICK, "optimizer.lr=1e30", "hydra.run.dir=diverged"))
    with pytest.raises(InputError, match="does not exist"):
        compare("nowhere")
    with pytest.raises(InputError, match=r"holds no run\.json"):
        compare(Path("runs/0.01/checkpoints"))
