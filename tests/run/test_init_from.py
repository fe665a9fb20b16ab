"""Runs that begin with another's weights, and layers that stay as they are."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import SGD

from cifar_lab.config.compose import compose, run_config
from cifar_lab.data.datamodule import stratified_split
from cifar_lab.errors import InputError
from cifar_lab.records.checkpoint_file import add_digest, load
from cifar_lab.records.digest import config_digest
from cifar_lab.records.weights import source_of
from cifar_lab.run.build import build
from cifar_lab.training.fit import Parts
from cifar_lab.training.initial_weights import freeze, read, take_weights
from cifar_lab.training.optimizers import OptimizerFactory
from tests.conftest import TINY, environment, merged, record_of
from tests.support.class_folders import write_class_folders
from tests.support.hostile import Payload
from tests.support.own_images import change
from tests.support.runs import same, stop_at, weights

Lab = Callable[..., tuple[int, str, str]]
BASE = (
    *TINY,
    *("data.train_size=200", "data.test_size=100", "data.val_size=50", "threads=1", "logger=csv"),
)
CNN = (*[a for a in BASE if not a.startswith("model")], "model=cnn", "model.width=4")
NETWORKS = {"resnet": BASE, "cnn": CNN}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run of each network; the ResNet's averaged its weights."""
    from cifar_lab.__main__ import main

    folder, made = tmp_path_factory.mktemp("sources"), {}
    for name, arguments in NETWORKS.items():
        made[name] = folder / name
        more = ("callbacks=ema", "callbacks.ema.decay=0.5") if name == "resnet" else ()
        cache = ("trainer.max_epochs=1", f"hydra.run.dir={made[name]}")
        assert main(merged(*arguments, *more, *cache)) == 0
    return made


def built(*arguments: str) -> Parts:
    cfg = compose(merged(*arguments))
    return build(cfg, run_config(cfg), Path("unused").absolute())


def state_of(parts: Parts) -> dict[str, Tensor]:
    return parts.classifier.network.state_dict()


def of_run(run: Path) -> dict[str, Tensor]:
    """The weights that a run tested, by name within the network."""
    state = load(run / "checkpoints" / "best.ckpt")["state_dict"]
    return {name.removeprefix("network."): value.contiguous() for name, value in state.items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- what it may be -------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
def test_a_run_its_checkpoint_and_its_safetensors_are_the_same_beginning(
    network: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    run = sources[network]
    save_file(of_run(run), tmp_path / "net.safetensors")
    for source in (run, run / "checkpoints" / "best.ckpt", tmp_path / "net.safetensors"):
        parts = built(*NETWORKS[network], f"init_from={source}")
        assert equal(state_of(parts), of_run(run))
        assert parts.init is not None
        assert (parts.init.taken, parts.init.new, parts.init.unused) == (len(of_run(run)), (), ())
    assert not equal(state_of(built(*NETWORKS[network])), of_run(run))


def test_the_record_says_from_which_bytes(
    sources: dict[str, Path], lab: Lab, tmp_path: Path
) -> None:
    moved = shutil.copytree(sources["resnet"], tmp_path / "moved")
    status, _, err = lab(*BASE, f"init_from={moved}", "hydra.run.dir=tuned")
    assert status == 0, err
    record, best = record_of(Path("tuned")), moved / "checkpoints" / "best.ckpt"
    assert record["init"]["source"] == str(best)
    assert best.read_bytes().endswith(record["init"]["sha256"].encode())
    assert record["config"]["init_from"]["sha256"] == record["init"]["sha256"]
    # a second start repeats it, also where the weights lie elsewhere; other bytes are another run
    shutil.move(moved, tmp_path / "again")
    again = (f"init_from={tmp_path / 'again'}", "hydra.run.dir=tuned")
    assert lab(*BASE, *again)[0] == 0
    other = sources["resnet"] / "checkpoints" / "last.ckpt"
    changed = torch.load(other, weights_only=True)
    changed["epoch"] += 1
    torch.save(changed, other := tmp_path / "other.ckpt")
    add_digest(other)
    status, _, err = lab(*BASE, f"init_from={other}", "hydra.run.dir=tuned")
    assert status == 2
    assert "holds a run of another configuration; these differ: init_from.sha256 (" in err


def test_held_out_images_that_its_run_has_trained_on_are_said(
    sources: dict[str, Path], lab: Lab, tmp_path: Path
) -> None:
    """A network that begins with them all learnt answers right in a validation of them."""
    run, one = sources["cnn"], "trainer.max_epochs=1"
    status, _, err = lab(*CNN, one, f"init_from={run}", f"hydra.run.dir={tmp_path}/same")
    assert (status, err) == (0, "")
    other = ("data.val_size=40", "data.val_seed=7")
    labels = (np.arange(200) % 10).astype(np.uint8)
    mine, its = stratified_split(labels, 40, 7)[1], stratified_split(labels, 50, 0)[0]
    count = len({*mine.tolist()} & {*its.tolist()})
    for key in ("init_from", "distill.from"):
        at = tmp_path / key
        status, _, err = lab(*CNN, one, *other, f"{key}={run}", f"hydra.run.dir={at}")
        assert status == 0
        line = f"{key}={run}: has trained on {count} of the 40 images that are held out here: "
        assert line in err
        assert line in (at / "train.log").read_text()


def test_the_bytes_decide_which_run_it_is_and_null_decides_nothing(
    sources: dict[str, Path], tmp_path: Path
) -> None:
    def digest(*more: str) -> str:
        return config_digest(run_config(compose([*BASE, *more])))

    copied = shutil.copytree(sources["resnet"], tmp_path / "copied")
    assert digest(f"init_from={copied}") == digest(f"init_from={sources['resnet']}") != digest()
    assert digest(f"init_from={copied}", "freeze=stem.*") != digest(f"init_from={copied}")
    assert digest("freeze=stem.*") == digest("freeze=[stem.*]") != digest()
    assert digest("init_from=null", "init_strict=false", "freeze=[]") == digest()


# --- another network ------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
def test_other_classes_get_a_new_head(
    network: str, sources: dict[str, Path], tmp_path: Path, lab: Lab
) -> None:
    folders = write_class_folders(tmp_path / "seven", [f"kind{i}" for i in range(7)], train=8)
    keys = ("data.train_size", "data.test_size", "data=", "data.batch_size")
    arguments = [a for a in NETWORKS[network] if not a.startswith(keys)]
    arguments += ["data=folders", f"data.root={folders}", "data.val_size=7", "data.batch_size=7"]
    status, _, err = lab(*arguments, f"init_from={sources[network]}", "hydra.run.dir=seven-run")
    assert status == 0, err
    head = [n for n in of_run(sources[network]) if n.startswith(("fc", "classifier.7"))]
    assert record_of(Path("seven-run"))["init"]["new"] == head
    parts = built(*arguments, f"init_from={sources[network]}")
    begun, fresh = state_of(parts), state_of(built(*arguments))
    for name, value in of_run(sources[network]).items():
        assert torch.equal(begun[name], fresh[name] if name in head else value), name


def refused(*arguments: str) -> str:
    with pytest.raises(InputError) as error:
        built(*arguments)
    text = str(error.value)
    assert "\n" not in text
    return text


def test_a_wrong_one_is_one_line_with_the_first_keys_that_differ(
    sources: dict[str, Path], tmp_path: Path
) -> None:
    here = f"init_from={sources['resnet']}"
    best = sources["resnet"] / "checkpoints" / "best.ckpt"
    assert refused(*BASE, "model.width=8", here) == (
        f"init_from={best}: is of another network: has stem.0.weight (4, 3, 3, 3), here "
        "(8, 3, 3, 3); stem.1.weight (4,), here (8,); stem.1.bias (4,), here (8,) and 28 more; "
        "init_strict=false takes what fits"
    )
    assert refused(*BASE, "model.num_blocks=[1,2]", here) == (
        f"init_from={best}: is of another network: lacks stages.1.1.conv1.weight, "
        "stages.1.1.bn1.weight, stages.1.1.bn1.bias and 7 more; init_strict=false takes what fits"
    )
    text = refused(*CNN, here, "init_strict=false")
    assert "lacks features.0.weight, " in text
    assert text.endswith(", which this network lacks; nothing fits")
    state = of_run(sources["resnet"])
    state["fc.weight"][0, 0] = torch.nan
    save_file(state, tmp_path / "nan.safetensors")
    line = "fc.weight holds NaN or infinite numbers; give other weights"
    assert refused(*BASE, "init_from=nan.safetensors").endswith(line)


def test_what_is_no_weights_is_one_line_and_runs_nothing(
    sources: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "empty.ckpt").touch()
    (tmp_path / "text.safetensors").write_text("weights, honestly")
    (tmp_path / "folder").mkdir()
    cut = sources["cnn"] / "checkpoints" / "best.ckpt"
    (tmp_path / "cut.ckpt").write_bytes(cut.read_bytes()[:-1])
    damaged = bytearray(cut.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "damaged.ckpt").write_bytes(damaged)
    torch.save({"state_dict": Payload(tmp_path / "ran")}, tmp_path / "hostile.ckpt")
    add_digest(tmp_path / "hostile.ckpt")
    torch.save({"state_dict": [1, 2]}, tmp_path / "list.ckpt")
    add_digest(tmp_path / "list.ckpt")
    for name, reason in {
        "nothing": "no such file or folder",
        "empty.ckpt": "no checkpoint of a run, or one that is cut off",
        "cut.ckpt": "no checkpoint of a run, or one that is cut off",
        "damaged.ckpt": "damaged.ckpt is damaged: its digest differs",
        "hostile.ckpt": "hostile.ckpt can't be loaded safely",
        "list.ckpt": "holds no weights of a network",
        "text.safetensors": "text.safetensors can't be read as safetensors",
        "folder": "holds no run.json",
        "x" * 5000: "no such file or folder",
        "ResNet18_Weights.IMAGENET1K_V1": "torchvision's weights are for its own networks",
    }.items():
        assert reason in refused(*CNN, f"init_from={name}")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"tested": None, "status": "interrupted"}, "this run is interrupted and has tested no"),
        ({"tested": "last"}, "the run has no checkpoints/last.ckpt"),
        ({"tested": "../../best"}, "its run.json: tested"),
    ],
)
def test_a_run_without_tested_weights_is_refused(
    fields: dict[str, Any], reason: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    import json

    run = shutil.copytree(sources["cnn"], tmp_path / "run")
    (run / "checkpoints" / "last.ckpt").unlink()
    (run / "run.json").write_text(json.dumps({**record_of(run), **fields}))
    assert reason in refused(*CNN, f"init_from={run}")


def test_torchvisions_weights_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import hashlib

    from torchvision.models import mobilenet_v3_small

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    bare = ("~model.width", "~model.num_blocks")
    target = "model._target_=torchvision.models.mobilenet_v3_small"
    ours = [*[a for a in BASE if not a.startswith(("model.width", "model.num"))], target, *bare]
    name = "MobileNet_V3_Small_Weights.IMAGENET1K_V1"
    assert "no such weights; names are" in refused(*ours, "init_from=MobileNet_V9_Weights.X")
    # the file is looked for where torch keeps what it has fetched, and its name holds its digest
    file = tmp_path / "hub" / "checkpoints" / "mobilenet_v3_small-047dcff4.pth"
    file.parent.mkdir(parents=True)
    torch.save(mobilenet_v3_small(num_classes=1000).state_dict(), file)
    parts = built(*ours, f"init_from={name}")
    assert parts.init is not None
    assert parts.init.new == ("classifier.3.weight", "classifier.3.bias")
    assert parts.init.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    state = torch.load(file, weights_only=True)
    assert torch.equal(state_of(parts)["features.0.0.weight"], state["features.0.0.weight"])
    file.write_text("not these")
    text = refused(*ours, f"init_from={name}")
    assert text.startswith(f"init_from={name}: can't be had from https://")


def test_without_strictness_what_fits_is_taken(
    sources: dict[str, Path], lab: Lab, capfd: pytest.CaptureFixture[str]
) -> None:
    deeper = (*BASE, "model.num_blocks=[1,1,1]", f"init_from={sources['resnet']}")
    status, _, _ = lab(*deeper, "init_strict=false", "hydra.run.dir=deeper")
    init = record_of(Path("deeper"))["init"]
    assert status == 0
    assert {name.partition(".")[2][:1] for name in init["new"]} == {"2", "w"}
    log = (Path("deeper") / "train.log").read_text()
    assert "new here: stages.2.0.conv1.weight, " in log
    own, taken = state_of(built(*deeper, "init_strict=false")), of_run(sources["resnet"])
    same_names = set(own) & set(taken) - set(init["new"])
    assert all(torch.equal(own[name], taken[name]) for name in same_names)


# --- frozen layers --------------------------------------------------------------------------------

FROZEN = ("freeze=[stem.*,stages.0.*]",)


def test_frozen_layers_stay_to_the_bit_and_the_others_learn(
    sources: dict[str, Path], lab: Lab
) -> None:
    decay = ("optimizer.weight_decay=0.1", "monitors=grad_norm")
    status, _, err = lab(
        *BASE, *FROZEN, *decay, f"init_from={sources['resnet']}", "hydra.run.dir=frozen"
    )
    assert status == 0, err
    before, after = of_run(sources["resnet"]), weights(Path("frozen"))
    for name, value in before.items():
        kept = torch.equal(value, after[f"network.{name}"])
        assert kept == name.startswith(("stem.", "stages.0.")), name
    record = record_of(Path("frozen"))
    frozen = [v.numel() for n, v in before.items() if n.startswith(("stem.", "stages.0."))]
    statistics = [v for n, v in before.items() if "running" in n or "tracked" in n]
    assert 0 < record["frozen_parameters"] < sum(frozen)
    assert statistics
    groups = torch.load("frozen/checkpoints/last.ckpt", weights_only=True)["optimizer_states"]
    names = groups[0]["param_groups"][0]["param_names"]
    assert names
    assert not [name for name in names if name.startswith(("stem.", "stages.0."))]


@pytest.mark.parametrize("more", [(), ("callbacks=ema", "steps_per_call=2")])
def test_a_frozen_run_that_was_stopped_ends_as_one_that_was_not(
    more: tuple[str, ...],
    sources: dict[str, Path],
    lab: Lab,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = shutil.copytree(sources["resnet"], "source")
    arguments = (*BASE, *FROZEN, *more, f"init_from={source}")
    assert lab(*arguments, "hydra.run.dir=whole")[0] == 0
    stop_at(monkeypatch, 5)
    assert lab(*arguments, "hydra.run.dir=cut")[0] == 130
    assert lab(*arguments, "hydra.run.dir=cut")[0] == 0
    same(Path("whole"), Path("cut"))
    assert record_of(Path("cut"))["init"] == record_of(Path("whole"))["init"]


def test_a_run_goes_on_where_the_weights_it_began_with_are_gone(
    sources: dict[str, Path], lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(sources["resnet"], tmp_path / "source"))
    given = {"folder": source, "file": source / "checkpoints" / "best.ckpt"}
    for name, weights_of in given.items():
        with monkeypatch.context() as patch:
            stop_at(patch, 5)
            assert lab(*BASE, f"init_from={weights_of}", f"hydra.run.dir={name}")[0] == 130
    assert lab(*BASE, f"init_from={source}", "hydra.run.dir=whole")[0] == 0
    shutil.move(source, tmp_path / "elsewhere")
    gone = "no such file or folder"
    for name, weights_of in given.items():
        here = f"hydra.run.dir={name}"
        status, _, err = lab(*BASE, "init_from=nothing", here)
        assert (status, gone in err) == (2, True)
        status, _, err = lab(*BASE, f"init_from={weights_of}", here)
        assert status == 0, err
        same(Path("whole"), Path(name))
        for field in ("init", "config_digest"):
            assert record_of(Path(name))[field] == record_of(Path("whole"))[field]
        # its result is repeated; a new run needs them
        assert lab(*BASE, f"init_from={weights_of}", here)[0] == 0
        status, _, err = lab(*BASE, f"init_from={weights_of}", "hydra.run.dir=new")
        assert (status, gone in err) == (2, True)
    # and so does one that was stopped before it had a checkpoint
    change(tmp_path / "folder", lambda record: record.update(status="interrupted"))
    shutil.rmtree(tmp_path / "folder" / "checkpoints")
    status, _, err = lab(*BASE, f"init_from={source}", "hydra.run.dir=folder")
    assert (status, gone in err) == (2, True)


@pytest.mark.slow
def test_a_sweep_whose_weights_are_gone_says_what_is_left_of_it(
    sources: dict[str, Path], lab: Lab, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(sources["resnet"], tmp_path / "source"))
    line = ("-m", *BASE, f"init_from={source}", "sweep.report=false", "hydra.sweep.dir=sweep")
    assert lab(*line, "seed=0,1")[0] == 0
    before = {path: path.stat().st_mtime_ns for path in Path("sweep").rglob("*")}
    shutil.move(source, tmp_path / "elsewhere")
    for seeds in ("seed=0,1", "seed=0,1,2"):
        status, out, err = lab(*line, seeds)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert f"init_from={source}: no such file or folder" in err
        assert "put it back to go on with this sweep, whose results stay in " in err
        assert err.endswith("goes on without it: its own command with hydra.run.dir\n")
    assert {path: path.stat().st_mtime_ns for path in Path("sweep").rglob("*")} == before
    status, _, err = lab(*line[:-1], "hydra.sweep.dir=new", "seed=0,1")  # has nothing yet
    assert (status, "put it back" in err) == (2, False)
    for job in Path("sweep").glob("*/run.json"):
        words = shlex.split(record_of(job.parent)["command"])[3:]
        assert lab(*words, f"hydra.run.dir={job.parent}")[0] == 0
    shutil.move(tmp_path / "elsewhere", source)
    status, out, err = lab(*line, "seed=0,1")
    assert (status, "2 ended before" in out) == (0, True), err


def test_a_validation_leaves_frozen_statistics_alone() -> None:
    network = nn.Sequential(
        *(
            nn.Conv2d(3, 4, 1),
            nn.BatchNorm2d(4),
            nn.BatchNorm2d(4, affine=False),
            nn.Conv2d(4, 4, 1),
        )
    )
    assert freeze(network, ["0.*"]) == []
    assert freeze(network, ["1.weight"]) == []  # its bias learns, so its statistics follow
    assert freeze(network, ["1.*", "2.running*"]) == [network[1], network[2]]
    parts = built(*BASE, *FROZEN)
    layers = dict(parts.classifier.network.named_modules())
    parts.classifier.eval()
    parts.classifier.train()
    assert layers["stages.1"].training
    assert not layers["stem.1"].training
    assert layers["stages.1.0.bn1"].training
    assert not layers["stages.0.0.bn2"].training


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("stm.*", "freeze=stm.*: no parameter's name fits; names are like stem.0.weight, "),
        ("[stem.*,nothing]", "freeze=nothing: no parameter's name fits"),
        ("'*'", "freeze=*: nothing is left to train"),
        ("3", "freeze=3: must be a pattern of parameters' names or a list of them"),
        ("{a: b}", "must be a pattern of parameters' names or a list of them"),
    ],
)
def test_patterns_that_freeze_nothing_or_everything(pattern: str, reason: str) -> None:
    assert reason in refused(*BASE, f"freeze={pattern}")


def test_a_group_of_the_optimizer_has_what_is_not_frozen() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 7))
    freeze(network, ["0.*"])
    groups = {"all": {"parameters": "*.weight", "lr": 0.5}}
    rest, weight = OptimizerFactory(partial(SGD, lr=0.1), groups)(network).param_groups
    assert (rest["param_names"], weight["param_names"]) == (["1.bias"], ["1.weight"])
    early = "+optimizer.groups.early={parameters: stages.0.*, lr_scale: 0.5}"
    assert "no parameter is left that fits" in refused(*BASE, "freeze=stages.0.*", early)


def test_two_processes_begin_with_the_same_weights_and_freeze_the_same(
    sources: dict[str, Path], tmp_path: Path
) -> None:
    more = ("trainer=ddp", "trainer.accelerator=cpu", f"init_from={sources['resnet']}")
    command = (sys.executable, "-m", "cifar_lab", *merged(*BASE, *FROZEN, *more))
    done = subprocess.run(
        [*command, "hydra.run.dir=run"],
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    before, after = of_run(sources["resnet"]), weights(tmp_path / "run")
    for name, value in before.items():
        kept = torch.equal(value, after[f"network.{name}"])
        assert kept == name.startswith(("stem.", "stages.0.")), name


def test_only_the_classes_may_differ_in_a_head() -> None:
    network = nn.Linear(4, 7)
    own = {name: value.clone() for name, value in network.state_dict().items()}
    taken = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 7))
    wider = {"0.weight": torch.ones(4, 3), "0.bias": torch.ones(4)}
    head = {"1.weight": torch.ones(9, 4), "1.bias": torch.ones(9)}
    done = take_weights(taken, {**wider, **head}, classes=7, strict=True)
    assert (done.taken, done.new) == (2, ("1.weight", "1.bias"))
    for other in ({"1.weight": torch.ones(9, 5), "1.bias": torch.ones(9)}, {}):
        with pytest.raises(InputError, match="is of another network"):
            take_weights(taken, {**wider, **other}, classes=7, strict=True)
    with pytest.raises(InputError, match="nothing fits"):
        take_weights(network, {"weight": torch.ones(9, 4)}, classes=7, strict=False)
    assert equal(network.state_dict(), own)


class Phased(nn.Linear):
    phase: Tensor

    def __init__(self) -> None:
        super().__init__(4, 7)
        self.register_buffer("phase", torch.randn(3, dtype=torch.complex64))


def test_complex_numbers_are_taken_and_become_no_real_ones(tmp_path: Path) -> None:
    network, other = Phased(), Phased()
    torch.save({"state_dict": other.state_dict()}, file := tmp_path / "weights.ckpt")
    add_digest(file)
    found = read(source_of(str(file))).tensors
    assert take_weights(network, found, classes=7, strict=True).new == ()
    assert torch.equal(network.phase, other.phase)
    network.phase = torch.zeros(3)
    with pytest.raises(InputError, match="lacks phase"):
        take_weights(network, found, classes=7, strict=True)
    found["phase"][0] = torch.nan
    with pytest.raises(InputError, match="phase holds NaN"):
        take_weights(Phased(), found, classes=7, strict=True)


def test_filters_that_were_taken_are_not_made_of_the_images_anew(lab: Lab, tmp_path: Path) -> None:
    speed = (
        *(a for a in BASE if not a.startswith("model")),
        *("model=speednet", "model.widths=[4,4,4]", "trainer.max_steps=2"),
    )
    first, frozen, deeper = (tmp_path / name for name in ("first", "frozen", "deeper"))
    assert lab(*speed, f"hydra.run.dir={first}")[0] == 0
    other = (f"init_from={first}", "data.data_seed=5", "data.normalization=half")
    assert lab(*speed, *other, "freeze=[whiten.*]", f"hydra.run.dir={frozen}")[0] == 0
    name = "network.whiten.weight"
    assert torch.equal(weights(frozen)[name], weights(first)[name])
    # what is new is made of the images, as without other weights
    state = {n: t for n, t in of_last(first).items() if not n.startswith("whiten")}
    save_file(state, tmp_path / "rest.safetensors")
    part = (f"init_from={tmp_path}/rest.safetensors", "init_strict=false")
    assert lab(*speed, *part, f"hydra.run.dir={deeper}")[0] == 0
    assert torch.equal(weights(deeper)[name], weights(first)[name])


def of_last(run: Path) -> dict[str, Tensor]:
    state = {name.removeprefix("network."): tensor for name, tensor in weights(run).items()}
    return {name: tensor.contiguous() for name, tensor in state.items()}
