"""Nodes, parts and numbers that can't be a run: one line each, before anything is on disk."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hydra.experimental.callback import Callback
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchvision.transforms import v2

from cifar_lab.config.compose import compose
from cifar_lab.config.schema import Root
from cifar_lab.config.targets import locate
from cifar_lab.data.augment import Stage, Transform
from cifar_lab.errors import InputError
from cifar_lab.run import compatibility
from cifar_lab.run.networks import build_network
from cifar_lab.run.parts import build_part
from cifar_lab.training.classifier import Classifier
from tests.conftest import TINY, record_of

Lab = Callable[..., tuple[int, str, str]]
HERE = "tests.run.test_one_line"
NEEDED = ("data", "augment", "model", "loss", "optimizer", "scheduler", "trainer")


class Failing(nn.Module):
    """Ends in its constructor, in whichever way it is told."""

    endings: ClassVar[dict[str, BaseException]] = {
        "key": KeyError("nope"),
        "exit": SystemExit(3),
        "stop": KeyboardInterrupt("by itself"),
        "network": OSError("Name or service not known"),
        "assertion": AssertionError(),
    }

    def __init__(self, how: str) -> None:
        super().__init__()
        raise self.endings[how]


class Leaving(nn.Module):
    """Ends in its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3072, 10)

    def forward(self, images: Tensor) -> Tensor:
        raise SystemExit(4)


class Half(Transform):
    """Loses half of each image."""

    stage = Stage.NORMALIZED

    def draw(self, count: int, generator: torch.Generator, size: int) -> Tensor:
        return torch.zeros(count)

    def apply(self, images: Tensor, labels: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        return images[..., :16], labels


class NoDraw(Half):
    """Ends in its draw."""

    def draw(self, count: int, generator: torch.Generator, size: int) -> Tensor:
        raise RuntimeError("no draw")


class NoPair(Half):
    """Forgets the labels, and more."""

    def apply(self, images: Tensor, labels: Tensor, draws: Tensor) -> Any:
        return images, labels, draws


def nothing() -> None:
    """Gives no part."""


class Warning(nn.Module):
    """Warns in its constructor and its forward, and has too few outputs."""

    def __init__(self, outputs: int = 3) -> None:
        warnings.warn("old weights", FutureWarning, stacklevel=1)
        super().__init__()
        self.head = nn.Linear(3072, outputs)

    def forward(self, images: Tensor) -> Tensor:
        warnings.warn("slow", stacklevel=1)
        logits: Tensor = self.head(images.flatten(1))
        return logits


def of_the_head(params: Any, lr: float) -> SGD:
    """Wants a parameter by its name."""
    return SGD([dict(params)["head.weight"]], lr=lr)


def of_matrices(params: Any, lr: float) -> SGD:
    """Looks at shapes, and at two parameters or more."""
    first, second, *others = params
    for name, parameter in (first, second, *others):
        if parameter.ndim != 2:
            raise ValueError(f"{name} of shape {tuple(parameter.shape)} is no matrix")
    return SGD([first, second, *others], lr=lr)


def in_need(params: Any, lr: float, need: int) -> SGD:
    """Takes a further argument."""
    return SGD(params, lr=lr)


class FailingStep(SGD):
    """Ends in its first step."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # as a person writes it
        raise RuntimeError("no step for filters")


class Ruining(SGD):
    """Leaves no numbers."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for parameter in self.param_groups[0]["params"]:
            parameter.data.fill_(math.nan)


class NoRate(Optimizer):
    """Finds its own step."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})


def late(step: int, total_steps: int) -> float:
    """Ends at its sixth step."""
    return [1.0, 1.0, 1.0, 1.0, 1.0][step]


class LateScheduler(LRScheduler):
    """Ends after its second epoch."""

    def get_lr(self) -> list[float]:  # type: ignore[override]
        return [(0.1, 0.1)[self.last_epoch] for _ in self.base_lrs]


class Growing(LRScheduler):
    """Ends up beyond all numbers."""

    def get_lr(self) -> list[float]:  # type: ignore[override]
        return [group["lr"] * 1e200 for group in self.optimizer.param_groups]


class FailingCallback(Callback):
    """Ends in its constructor."""

    def __init__(self) -> None:
        raise RuntimeError("no such host")


def net(target: str, *more: str) -> tuple[str, ...]:
    return ("model=cnn", f"model._target_={target}", "~model.width", "~model.dropout", *more)


def own_optimizer(name: str, *more: str) -> tuple[str, ...]:
    left = ("fused", "momentum", "nesterov", "weight_decay")
    return (f"optimizer._target_={HERE}.{name}", *(f"~optimizer.{key}" for key in left), *more)


def own_schedule(name: str, *more: str) -> tuple[str, ...]:
    return ("scheduler=none", f"scheduler._target_={HERE}.{name}", *more)


OWN_TRANSFORM = ("data.loader=torchvision", "augment=none")


def to_picture() -> Any:
    return v2.ToPILImage()


def normalizing() -> Any:
    return v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5], [0.5])])


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, labels)


LINES: list[tuple[tuple[str, ...], str]] = [
    *[
        (
            (f"~{group}._target_",),
            f"{group}._target_: missing; must be the dotted name of a class or function",
        )
        for group in (*NEEDED, "logger.csv", "callbacks.checkpoints")
    ],
    *[
        ((f"{path}._target_={value}",), f"{path}._target_={value}: must be the dotted name")
        for path in ("optimizer", "logger.csv")
        for value in ("null", "5", "[]")
    ],
    *[
        ((f"~{key}",), f"~{key}: a run needs it; {key}=... gives it another value")
        for key in Root.__dataclass_fields__
        if key not in (*NEEDED, "callbacks", "monitors", "logger", "sweep")
    ],
    (("~optimizer.nope",), "~optimizer.nope: there is nothing of this name to leave out"),
    (("logger.csv=5",), "logger.csv=5: must be a node with a _target_, or null to leave it out"),
    (("callbacks.checkpoints=x",), "callbacks.checkpoints=x: must be a node with a _target_"),
    (("+monitors.x=5",), "monitors.x=5: must be a node with a _target_"),
    (("+callbacks._target_=a.B",), "callbacks._target_=a.B: must lie below a name of its own"),
    (("augment.transforms=null",), "augment.transforms=null: must be a dictionary"),
    # interpolations that lead nowhere
    *[
        ((f"{key}=${{nope}}",), f"{key}: Interpolation key 'nope' not found")
        for key in (
            *("seed", "optimizer.lr", "logger.csv._target_", "hydra.run.dir", "hydra.job.name"),
            *("hydra.output_subdir", "hydra.job.chdir", "hydra.verbose"),
            *("hydra.job_logging.root.level", "hydra.job.config.override_dirname.kv_sep"),
        )
    ],
    (("+hydra.job.env_set.A=${nope:1}",), "hydra.job.env_set.A: Unsupported interpolation type"),
    (("+hydra.callbacks.x=5",), "hydra.callbacks.x=5: must be a node with a _target_"),
    (("+hydra.callbacks.x._target_=nope.X",), "hydra.callbacks.x._target_=nope.X: No module named"),
    # of a sweep
    *[
        (("-m", "seed=0,1", f"{key}=${{nope}}"), f"{key}: Interpolation key 'nope' not found")
        for key in ("hydra.output_subdir", "hydra.job.name", "hydra.sweep.dir", "sweep.slots")
    ],
    (("-m", "seed=0,1", "hydra.sweeper.params=5"), "hydra.sweeper.params=5: must be keys and"),
    (("-m", "seed=0,1", "hydra.launcher._target_=nope.X"), "Invalid plugin 'nope.X'"),
    # parts of another kind
    *[
        ((f"+{group}.x._target_={target}",), f"{group}.x._target_: gives {given}; must give a ")
        for group in ("callbacks", "monitors", "logger")
        for target, given in (("torch.nn.Identity", "Identity"), (f"{HERE}.nothing", "NoneType"))
    ],
    (
        ("+callbacks.x={_target_: torchmetrics.Accuracy, task: multiclass, num_classes: 10}",),
        "callbacks.x._target_: gives MulticlassAccuracy; must give a lightning.pytorch.Callback",
    ),
    (net(f"{HERE}.nothing"), "model._target_: gives None"),
    # constructors and networks that end in whatever way
    *[
        (
            net(f"{HERE}.Failing", f"+model.how={how}"),
            f"model: {said}",
        )
        for how, said in (
            ("key", "KeyError: 'nope', test_one_line.py:"),
            ("exit", "SystemExit: 3, test_one_line.py:"),
            ("stop", "KeyboardInterrupt: by itself, test_one_line.py:"),
            ("assertion", "AssertionError: no reason given, test_one_line.py:"),
            ("network", "OSError: Name or service not known, test_one_line.py:"),
        )
    ],
    (
        net(f"{HERE}.Leaving"),
        f"model._target_={HERE}.Leaving: fails on images of 3x32x32 in training (SystemExit: 4, ",
    ),
    # weights that are of other classes
    (
        net("torchvision.models.resnet18", "+model.weights=IMAGENET1K_V1"),
        "model.weights=IMAGENET1K_V1: are weights for 1000 classes, and the data has 10; use "
        "init_from=ResNet18_Weights.IMAGENET1K_V1, which begins with them under a new head",
    ),
    (
        net("torchvision.models.resnet18", "+model.pretrained=true"),
        "model.pretrained=true: are weights for 1000 classes",
    ),
    (
        net("torchvision.models.resnet18", "+model.weights=NOPE"),
        "model.weights=NOPE: must be IMAGENET1K_V1, DEFAULT or null",
    ),
    # weights of the classes
    (("+loss.weight=[1,2]",), "loss.weight=[1,2]: must be 10 numbers, one for each class"),
    (("+loss.weight=[1,1,1,1,1,1,1,1,1,-1]",), "loss.weight=[1,1,1,1,1,1,1,1,1,-1]: must be at"),
    (("+loss.weight=[0,0,0,0,0,0,0,0,0,0]",), "loss.weight=[0,0,0,0,0,0,0,0,0,0]: must be at"),
    (("+loss.weight=[a,b]",), 'loss.weight=["a", "b"]: must be a list of numbers'),
    (("+loss.weight=5",), "loss.weight=5: must be a list of numbers or null"),
    (("optimizer.groups=[]",), "optimizer.groups=[]: must be keys and their values, as {a: 1}"),
    (
        ("trainer.strategy=ddp", "trainer.devices=2", "data.batch_size=2", *net(f"{HERE}.Normed")),
        "data.batch_size=2: is one image on each of trainer.devices=2; must be larger",
    ),
    (("+loss.weight=[]",), "loss.weight=[]: must be a list of numbers"),
    # numbers out of range
    (("loss.label_smoothing=-0.5",), "loss.label_smoothing=-0.5: must lie in [0, 1)"),
    (("loss.label_smoothing=1",), "loss.label_smoothing=1: must lie in [0, 1)"),
    (("scheduler.warmup_fraction=2",), "scheduler.warmup_fraction=2: must lie in [0, 1)"),
    (("scheduler.final_factor=-1",), "scheduler.final_factor=-1: must lie in [0, 1]"),
    (
        ("scheduler=onecycle", "scheduler.initial_factor=2"),
        "scheduler.initial_factor=2: must lie in [0, 1]",
    ),
    (
        ("scheduler=wsd", "scheduler.warmup_fraction=0.5", "scheduler.decay_fraction=0.6"),
        "scheduler.decay_fraction=0.6: must be above 0, and at most 1",
    ),
    (("scheduler=step", "scheduler.gamma=-1"), "scheduler.gamma=-1: must be above 0"),
    (("scheduler=step", "scheduler.step_size=-1"), "scheduler.step_size=-1: must be above 0"),
    (("scheduler=step", "scheduler.step_size=0"), "scheduler.step_size=0: must be above 0"),
    (("scheduler=plateau", "scheduler.patience=-1"), "scheduler.patience=-1: must be at least 0"),
    *[
        ((f"trainer.{key}={value}",), f"trainer.{key}={value}: must be at least {least}")
        for key, value, least in (
            ("accumulate_grad_batches", 0, 1),
            ("check_val_every_n_epoch", 0, 1),
            ("check_val_every_n_epoch", -1, 1),
            ("log_every_n_steps", -5, 0),
            ("num_sanity_val_steps", -2, -1),
            ("gradient_clip_val", -1, 0),
            ("min_epochs", -1, 0),
            ("min_steps", -1, 0),
        )
    ],
    *[
        (
            (f"trainer.limit_{split}_batches=0.001",),
            f"trainer.limit_{split}_batches=0.001: leaves no batch of the {count} for {split}; "
            f"must be at least {least}, or a whole number of batches",
        )
        for split, count, least in (("train", 8, 0.125), ("val", 4, 0.25), ("test", 4, 0.25))
    ],
    (
        ("trainer.overfit_batches=0.0001", "data.shuffle=false"),
        "trainer.overfit_batches=0.0001: leaves no batch of the 8 for train",
    ),
    (("trainer.val_check_interval=100",), "trainer.val_check_interval=100: must be at most 8"),
    (("threads=100000",), "threads=100000: must lie in 1..1024, or null for all cores"),
    (("threads=99999999999999",), "threads=99999999999999: must lie in 1..1024"),
    (
        ("callbacks.checkpoints.every_minutes=0",),
        "callbacks.checkpoints.every_minutes=0: must be above 0, or null",
    ),
    (
        ("callbacks=early_stopping", "callbacks.early_stopping.patience=-1"),
        "callbacks.early_stopping.patience=-1: must be at least 0",
    ),
    (("trainer.max_time={minutes: -5}",), "trainer.max_time={'minutes': -5}: must be above 0"),
    (("seed=1.5",), "seed=1.5: must be an integer"),
    (("optimizer.lr=[0.1]",), "optimizer.lr=[0.1]: must be a number"),
    (
        ("optimizer=adamw", "optimizer.betas=[0.9]"),
        "optimizer.betas=[0.9]: must be a list of 2 (a number each)",
    ),
    (("optimizer.groups=5",), "optimizer.groups=5: must be groups, each under a name of its own"),
    (("+optimizer.groups.x=5",), "optimizer.groups.x=5: must say its parameters and their options"),
    (("scheduler=plateau", "scheduler.monitor=5"), "scheduler.monitor=5: must be a metric's name"),
    *[
        (
            (
                *("scheduler=step", "scheduler._target_=torch.optim.lr_scheduler.MultiStepLR"),
                *("~scheduler.step_size", f"+scheduler.milestones={value}"),
            ),
            f"scheduler.milestones={value}: must be a list of whole numbers",
        )
        for value in ("5", "[-1]")
    ],
    # augmentations, and a profiler
    *[
        ((f"+augment.transforms.x._target_={HERE}.{name}",), said)
        for name, said in (
            ("NoDraw", "augment: RuntimeError: no draw, test_one_line.py:"),
            ("NoPair", "augment: too many values to unpack"),
            ("Half", "augment.transforms: give images (2, 3, 32, 16) and labels (2,) for images"),
        )
    ],
    *[
        ((*OWN_TRANSFORM, f"data.transform={{_target_: {target}}}"), f"data.transform: {said}")
        for target, said in (
            (
                "torchvision.transforms.v2.MixUp",
                "fails on an image (3, 32, 32) of bytes (ValueError: labels should be index",
            ),
            (f"{HERE}.to_picture", "gives Image; it must give a tensor (3, H, W)"),
            (
                f"{HERE}.normalizing",
                "gives torch.float32 from -1 to 1; must be torch.uint8, or floats",
            ),
        )
    ],
    # what is set of a part that another option doesn't have
    (
        ("experiment=cnn_strong", "augment=none"),
        "augment.transforms.crop._target_: missing; must be the dotted name of a class or "
        "function; ~augment.transforms.crop leaves it out",
    ),
    (
        (f"loss._target_={HERE}.loss", "~loss.label_smoothing"),
        f"loss.logits: missing; {HERE}.loss needs it, or is called later: _partial_: true",
    ),
    (("trainer.max_epochs=-1", "trainer.max_steps=5"), "trainer.max_epochs=-1: must be at least 1"),
    (("augment._target_=builtins.dict",), "augment._target_: gives dict; must give a cifar_lab."),
    (("data._target_=builtins.dict", "~data.normalization"), "data._target_: gives dict; must"),
    (
        ("trainer.profiler={_target_: torch.nn.Identity}",),
        "trainer.profiler._target_: gives Identity; must give one of lightning.pytorch.profilers",
    ),
    # optimizers and schedules of one's own are tried with what they will get, to their end
    (own_optimizer("of_the_head"), "optimizer: KeyError: 'head.weight', test_one_line.py:"),
    (own_optimizer("of_matrices"), "optimizer: stem.0.weight of shape (4, 3, 3, 3) is no matrix"),
    (own_optimizer("in_need"), f"optimizer.need: missing; {HERE}.in_need needs it"),
    (own_optimizer("FailingStep"), "optimizer: RuntimeError: no step for filters, test_one_line"),
    (
        own_optimizer("NoRate", "~optimizer.lr"),
        "optimizer._target_: NoRate has groups of parameter",
    ),
    (
        ("optimizer=adamw", "optimizer.fused=false", "+optimizer.capturable=true"),
        "optimizer: AssertionError: If capturable=True, params and state_steps must be on",
    ),
    (own_optimizer("Ruining"), "optimizer._target_: Ruining makes weights NaN or infinite in its"),
    (own_schedule("late"), "scheduler: IndexError: list index out of range, test_one_line.py:"),
    (
        own_schedule("LateScheduler"),
        "scheduler: IndexError: tuple index out of range, test_one_line.py:",
    ),
    (
        own_schedule("Growing", "trainer.max_epochs=4"),
        "scheduler._target_: gives a rate of inf after 1 of 4 steps; it must give finite ones",
    ),
    (("+hydra.callbacks.x._target_=torch.nn.Identity",), "hydra.callbacks.x._target_=torch.nn.Id"),
    ((f"+hydra.callbacks.x._target_={HERE}.nothing",), "hydra.callbacks.x._target_: gives NoneTyp"),
    ((f"+hydra.callbacks.x._target_={HERE}.FailingCallback",), "hydra.callbacks.x: no such host"),
    (
        ("-m", "seed=0,1", f"+hydra.callbacks.x._target_={HERE}.FailingCallback"),
        f"+hydra.callbacks.x._target_={HERE}.FailingCallback: RuntimeError: no such host",
    ),
    # what a constructor or a forward warns of stands before no line
    (net(f"{HERE}.Warning"), f"model._target_={HERE}.Warning: gives 3 outputs, and the data has"),
    (
        net("torchvision.models.googlenet"),
        "model._target_=torchvision.models.googlenet: gives a GoogLeNetOutputs in training",
    ),
    (
        ("+logger.x={_target_: lightning.pytorch.loggers.CSVLogger, flush_logs_every_n_steps: 0}",),
        "logger.x.flush_logs_every_n_steps=0: must be at least 1",
    ),
    (
        (
            "+monitors.x={_target_: lightning.pytorch.callbacks.ThroughputMonitor, "
            "batch_size_fn: len}",
        ),
        "monitors.x.batch_size_fn=len: ",
    ),
    *[
        (
            ("-m", "sweep=optuna", "optimizer.lr=interval(0.01,0.1)", f"sweep.storage={storage}"),
            f"sweep.storage={storage}: {said}",
        )
        for storage, said in (
            ("nonsense", "Could not parse SQLAlchemy URL"),
            ("sqlite:////nowhere/x.db", "(sqlite3.OperationalError) unable to open"),
        )
    ],
    # what is empty, too long, or no more than signs
    (("hydra.run.dir=",), "hydra.run.dir=: is empty; give a path, or . for the working directory"),
    (("-m", "seed=0,1", "hydra.sweep.dir="), "hydra.sweep.dir=: is empty; give a path"),
    *[
        ((*("-m", "seed=0,1")[:sweep], f"hydra.{kind}.dir={'a' * 300}"), f"hydra.{kind}.dir=/")
        for kind, sweep in (("run", 0), ("sweep", 2))
    ],
    (("init_from=''",), "init_from=: no such file or folder; must be a run folder"),
    (("~",), "~: there is nothing of this name to leave out"),
    (("+=3",), "+=3: must be the name of an option"),
    (("model=''", "model.width=4"), "model=: must be the name of an option"),
    (
        ("-m", "+optimizer=sgd,adamw"),
        "optimizer=sgd: +optimizer: the group has an option; give it without +: optimizer=...",
    ),
    (("data.workers=1000000",), "data.workers=1000000: must be a whole number in 0..1024"),
    *[
        ((f"trainer.max_time={value}",), f"trainer.max_time={value}: must be days, hours, minutes")
        for value in ("abc", "01:30", "1:2:3:4")
    ],
    *[
        ((f"+{key}=3",), f"{key}: is what a run gives by itself; leave it out")
        for key in ("logger.csv.save_dir", "data.seed", "optimizer.params", "scheduler.step")
    ],
    # observers
    *[
        (
            (f"+monitors.x._target_=lightning.pytorch.callbacks.{name}", "logger=none"),
            f"{name}: writes to the loggers, and logger=none leaves it none; add logger=csv",
        )
        for name in ("LearningRateMonitor", "DeviceStatsMonitor")
    ],
    *[
        (
            (
                f"+{group}.x._target_=lightning.pytorch.callbacks.TQDMProgressBar",
                "monitors=progress",
            ),
            f"{group}.x: monitors.progress shows the progress already; ~monitors.progress leaves",
        )
        for group in ("callbacks", "monitors")
    ],
    # an image alone in the last batch: its statistics have no spread
    (
        net(f"{HERE}.Normed", "data.val_size=199"),
        "data.batch_size=50: the last batch of the 401 training images has one; set "
        f"data.drop_last=true, or another data.batch_size or data.val_size (model._target_={HERE}"
        ".Normed: ValueError: Expected more than 1 value per channel when training",
    ),
    (
        net(f"{HERE}.Normed", "data.batch_size=1"),
        "data.batch_size=1: is one image; must be larger for this network (model._target_=",
    ),
]


class Normed(nn.Sequential):
    """A BatchNorm over the images alone."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(3072, 10), nn.BatchNorm1d(10))


@pytest.mark.filterwarnings("default")  # as outside of tests
@pytest.mark.parametrize(("arguments", "line"), LINES, ids=lambda value: str(value)[:60])
def test_what_can_be_no_run_is_one_line(
    lab: Lab, tmp_path: Path, arguments: tuple[str, ...], line: str
) -> None:
    small = [a for a in TINY if not (a.startswith("model.") and "model=cnn" in arguments)]
    status, out, err = lab(*small, *arguments)
    assert (status, out) == (2, ""), err
    assert err.startswith(f"cifar_lab: {line}"), err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "outputs").exists()


def test_a_last_image_alone_trains_where_the_network_takes_it_or_it_does_not_come(
    lab: Lab, tmp_path: Path
) -> None:
    """Maps larger than 1x1 have a spread of their own; a dropped or limited batch never comes."""
    alone = ("data.val_size=199", "trainer.max_epochs=1")
    normed = net(f"{HERE}.Normed")
    small = [a for a in TINY if not a.startswith("model")]
    for name, arguments in {
        "maps": (*TINY, *alone),
        "dropped": (*small, *normed, *alone, "data.drop_last=true"),
        "limited": (*small, *normed, *alone, "trainer.limit_train_batches=8"),
    }.items():
        status, _, err = lab(*arguments, f"hydra.run.dir={tmp_path}/{name}")
        assert (status, err) == (0, ""), name
        assert record_of(tmp_path / name)["status"] == "finished"


def test_weights_of_the_classes_are_a_tensor_and_part_of_the_run(lab: Lab, tmp_path: Path) -> None:
    weights = [1, 2, 1, 1, 1, 1, 1, 1, 1, 0.5]
    cfg = OmegaConf.create({"loss": {"_target_": "torch.nn.CrossEntropyLoss", "weight": weights}})
    loss = build_part("loss", cfg.loss)
    assert torch.equal(loss.weight, torch.tensor(weights))
    run = tmp_path / "run"
    given = f"+loss.weight={weights}".replace(" ", "")
    status, _, err = lab(*TINY, given, "trainer.max_epochs=1", f"hydra.run.dir={run}")
    assert (status, err) == (0, "")
    assert record_of(run)["config"]["loss"]["weight"] == weights


def test_weights_by_name_are_torchvisions_to_fetch_where_the_classes_are_theirs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    node = {"_target_": "torchvision.models.resnet18", "weights": "IMAGENET1K_V1"}
    cfg: Any = OmegaConf.create({"model": node, "data": {"offline": True}})
    with pytest.raises(InputError) as told:
        build_network(cfg, 1000, 32)
    assert str(told.value) == (
        "model.weights=IMAGENET1K_V1: data.offline=true, and there is no "
        f"{tmp_path}/hub/checkpoints/resnet18-f37072fd.pth"
    )


def test_a_network_that_is_called_as_its_module_is_found() -> None:
    for name in ("alexnet", "googlenet", "vgg11"):
        assert callable(locate("model", f"torchvision.models.{name}"))


def test_a_typed_interpolation_that_leads_somewhere_is_a_value() -> None:
    assert compose(["optimizer.lr=${seed}", "hydra.job.name=x${seed}"]).optimizer.lr == 0


@pytest.mark.filterwarnings("default")
def test_warnings_come_when_all_is_built(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a line that refuses there is none."""
    said: list[str] = []
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_, **__: said.append(message))
    arguments = (*[a for a in TINY if not a.startswith("model")], *net(f"{HERE}.Warning"))
    assert lab(*arguments)[0] == 2
    assert said == []
    assert lab(*arguments, "+model.outputs=10", "trainer.max_epochs=1")[0] == 0
    assert "old weights" in map(str, said)


def test_statistics_of_the_cpu_need_psutil_where_they_are_asked_for(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(name: str) -> ModuleSpec | None:
        return None if name == "psutil" else ModuleSpec(name, None)

    monkeypatch.setattr(compatibility, "find_spec", find)
    target = "+monitors.x._target_=lightning.pytorch.callbacks.DeviceStatsMonitor"
    for given in ((), ("+monitors.x.cpu_stats=true",)):
        assert lab(*TINY, target, *given) == (
            *(2, ""),
            "cifar_lab: DeviceStatsMonitor: reads the CPU with the package psutil; pip install "
            "psutil, or leave the callback out\n",
        )
    status, _, err = lab(*TINY, target, "+monitors.x.cpu_stats=false", "trainer.max_epochs=1")
    assert (status, err) == (0, "")


def test_a_dashboard_is_named_where_there_is_something_to_see(lab: Lab) -> None:
    for logger, named in (("csv", False), ("none", False), ("tensorboard", True)):
        given = (f"logger={logger}", f"hydra.run.dir={logger}", "trainer.max_epochs=1")
        status, out, err = lab(*TINY, *given)
        assert (status, err) == (0, "")
        assert ("tensorboard --logdir" in out) == named


@pytest.mark.parametrize("loader", ["device", "torchvision"])
def test_overfitting_trains_on_the_same_batches_in_every_epoch(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, loader: str
) -> None:
    """The first ones, in their order, and unaugmented with augment=none."""
    seen: list[Tensor] = []
    step = Classifier.training_step

    def noted(self: Classifier, batch: Any, batch_idx: int) -> Any:
        seen.append(batch[0].detach().clone())
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", noted)
    given = ("trainer.overfit_batches=2", "data.shuffle=false", "augment=none")
    status, _, err = lab(*TINY, *given, f"data.loader={loader}", "trainer.max_epochs=3")
    assert (status, err) == (0, "")
    assert len(seen) == 6
    assert not torch.equal(seen[0], seen[1])
    for epoch in (1, 2):
        assert torch.equal(seen[0], seen[2 * epoch])
        assert torch.equal(seen[1], seen[2 * epoch + 1])
