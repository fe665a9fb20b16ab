"""An ingredient that a run names but that could not act in it is refused, in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor, nn

from cifar_lab.config.compose import compose, run_config
from cifar_lab.records.digest import config_digest
from cifar_lab.run.build import build
from tests.config.test_experiments import EXPERIMENTS
from tests.conftest import TINY, merged

Lab = Callable[..., tuple[int, str, str]]


class Deaf(nn.Module):
    """Takes label smoothing, and ignores it."""

    def __init__(self, label_smoothing: float) -> None:
        super().__init__()

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, labels)


SCHEDULE_FREE = ("optimizer=schedule_free", "callbacks=schedule_free", "scheduler=none")
DEAF = "loss._target_=tests.config.test_cannot_act.Deaf"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((DEAF, "loss.label_smoothing=0.1"), "loss.label_smoothing=0.1: the loss is the same "),
        (
            ("callbacks=ema", "callbacks.ema.start_step=15"),
            "callbacks.ema.start_step=15: the fit ends after 16 optimizer steps, and there would "
            "be no average; must be at most 14",
        ),
        (("callbacks=ema", "callbacks.ema.decay=0.0"), "callbacks.ema.decay=0.0: must lie in (0, "),
        (
            ("callbacks=sam", "callbacks.sam.start_fraction=0.97"),
            "callbacks.sam.start_fraction=0.97: of 16 optimizer steps none would be made so",
        ),
        (
            ("callbacks=sam", "trainer.precision=bf16-true"),
            "callbacks.sam: its steps are lost where weights are rounded to half precision",
        ),
        (
            ("callbacks=lookahead", "trainer.precision=bf16-true"),
            "callbacks.lookahead: its steps are lost where weights are rounded to half precision",
        ),
        (
            ("callbacks=lookahead", "trainer.val_check_interval=4"),
            "trainer.val_check_interval=4: validates after every 4 optimizer steps, between ",
        ),
        (
            (
                "callbacks=lookahead",
                *("trainer.val_check_interval=5", "trainer.check_val_every_n_epoch=null"),
            ),
            "trainer.val_check_interval=5: validates after every 5 optimizer steps, between ",
        ),
        (
            ("callbacks=swa", "callbacks.swa.bn_images=1"),
            "callbacks.swa.bn_images=1: must be at least 2, or null",
        ),
        (
            ("+augment.sizes=[[0,16],[1,32]]", "trainer.max_steps=8"),
            "augment.sizes: comes to images of 32 pixels in epoch 1, counted from 0, and trainer."
            "max_steps=8 ends before",
        ),
        (
            ("+augment.sizes=[[0,16],[2,32]]", "trainer.max_steps=100"),
            "augment.sizes: comes to images of 32 pixels in epoch 2, counted from 0, and trainer."
            "max_epochs=2 ends before",
        ),
        (
            ("+optimizer.groups.all={parameters: '*', until: 0.5}",),
            "optimizer.groups: each parameter is in a group that stops, the last one at until=0.5",
        ),
        (
            (*SCHEDULE_FREE, "optimizer.warmup_steps=17"),
            "optimizer.warmup_steps=17: the fit ends after 16 optimizer steps, and would never be ",
        ),
        ((*SCHEDULE_FREE, "optimizer.warmup_steps=-1"), "optimizer.warmup_steps=-1: must be at le"),
        (
            (*SCHEDULE_FREE, "+optimizer.groups.n={parameters: norms, momentum: 0.0}"),
            "optimizer.momentum=0.0: must lie in (0, 1)",
        ),
        (
            ("scheduler=triangular", "scheduler.warmup_fraction=1.5"),
            "scheduler.warmup_fraction=1.5: must lie in [0, 1)",
        ),
        (
            ("scheduler=triangular", "scheduler.warmup_fraction=-0.1"),
            "scheduler.warmup_fraction=-0.1: must lie in [0, 1)",
        ),
        (("scheduler.final_factor=2.0",), "scheduler.final_factor=2.0: must lie in [0, 1]"),
        (
            ("scheduler=onecycle", "scheduler.initial_factor=-1.0"),
            "scheduler.initial_factor=-1.0: must lie in [0, 1]",
        ),
        (
            ("scheduler=wsd", "scheduler.decay_fraction=0.96"),
            "scheduler.decay_fraction=0.96: must be above 0, and at most 1 with ",
        ),
        (
            ("freeze=[stem.1.running_mean]",),
            "freeze=stem.1.running_mean: fits statistics alone",
        ),
        (("freeze=[*]",), "freeze=*: nothing is left to train"),
        (("tta=null",), "tta=null: must have a value; leave it out for the default"),
        (("matmul_precision=null",), "matmul_precision=null: must have a value; leave it out for "),
        (("matmul_precision=low",), "matmul_precision=low: Invalid value 'low', expected one of "),
        (("tta=flop",), "tta=flop: must be none, flip, flip+shift"),
        (
            ("model=cnn", "+model.stochastic_depth=0.1"),
            "model.stochastic_depth: unknown key",
        ),
        (
            ("optimizer=muon", "optimizer.groups.rest.parameters=['*']"),
            "optimizer.orthogonal=true: there is no filter and no matrix among its parameters",
        ),
        (
            ("model=timm", "+model.options.drop_path_rate=0.1", "model.name=vgg11"),
            "model.name=vgg11: VGG.__init__() got an unexpected keyword argument 'drop_path_rate'",
        ),
        (
            ("model=timm", "+model.options.checkpoint_path=a.pt"),
            "model.options.checkpoint_path: is the data's, or none of this; leave it out",
        ),
        (("tuned_batch_size=0",), "tuned_batch_size=0: must be at least 1, or null"),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else "",
)
def test_it_is_refused(lab: Lab, tmp_path: Path, arguments: tuple[str, ...], line: str) -> None:
    if set(SCHEDULE_FREE) <= set(arguments):
        pytest.importorskip("schedulefree")
    other = any(argument.startswith("model=") for argument in arguments)
    tiny = [argument for argument in TINY if not (other and argument.startswith("model"))]
    status, _, err = lab(*tiny, *arguments, f"hydra.run.dir={tmp_path}/run")
    assert (status, err.count("\n")) == (2, 1), err
    assert err.startswith(f"cifar_lab: {line}"), err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("callbacks=ema", "callbacks.ema.start_step=14"),
        ("callbacks=sam", "callbacks.sam.start_fraction=0.96"),
        ("callbacks=lookahead", "trainer.val_check_interval=5"),
        ("callbacks=lookahead", "trainer.val_check_interval=3", "trainer.limit_val_batches=0"),
        ("callbacks=[lookahead,ema]", "trainer.val_check_interval=3"),
        ("+augment.sizes=[[0,16],[1,32]]", "trainer.max_steps=9"),
        ("+optimizer.groups.most={parameters: ['*.weight', norms], until: 0.5}",),
        (*SCHEDULE_FREE, "optimizer.warmup_steps=16"),
        # strengths that a sweep may begin with
        ("loss.label_smoothing=0.0", "model.stochastic_depth=0.0", "trainer.gradient_clip_val=0.0"),
        ("augment=strong", "augment.transforms.mixup.p=0.0", "augment.transforms.cutout.size=0"),
    ],
    ids=lambda value: value[-1],
)
def test_what_can_act_is_built(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    if set(SCHEDULE_FREE) <= set(arguments):
        pytest.importorskip("schedulefree")
    selects = "callbacks.checkpoints.monitor=null"
    cfg = compose(merged(*TINY, selects, *arguments))
    build(cfg, run_config(cfg), tmp_path / "run")


@pytest.mark.parametrize(("tuned", "said"), [(201, True), (200, False), (12, True), (13, False)])
def test_rates_that_were_found_with_another_batch(
    lab: Lab, tmp_path: Path, tuned: int, said: bool
) -> None:
    # 50 images a step
    arguments = (f"tuned_batch_size={tuned}", "trainer.limit_train_batches=1")
    status, _, err = lab(*TINY, *arguments, f"hydra.run.dir={tmp_path}/run")
    assert status == 0, err
    text = f"50 images per optimizer step, and the learning rates were found with {tuned}: scale "
    assert err.startswith(text) == said, err
    assert err.count("\n") == said
    assert (text in (tmp_path / "run" / "train.log").read_text()) == said


def test_what_changes_the_weights_makes_another_run() -> None:
    options = ("default", "sam", "lookahead", "swa", "ema", "[sam,swa]", "[sam,lookahead]")
    overrides = [[f"callbacks={option}"] for option in options]
    overrides.append(["callbacks=sam", "callbacks.sam.rho=0.1"])
    digests = {config_digest(run_config(compose(each))) for each in overrides}
    assert len(digests) == len(overrides)


def test_a_batch_that_was_said_makes_no_other_run() -> None:
    said, unsaid = (run_config(compose([f"tuned_batch_size={n}"])) for n in ("100", "null"))
    assert config_digest(said) == config_digest(unsaid)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_says_which_batch_its_rates_are_for(name: str) -> None:
    default, config = run_config(compose([])), run_config(compose([f"experiment={name}"]))
    if config["optimizer"] == default["optimizer"]:
        assert config["tuned_batch_size"] is None
    else:
        assert config["tuned_batch_size"] == config["data"]["batch_size"]
