"""Runs that learn from finished ones: the loss, the ensemble, what is refused, exact resume."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import log_softmax, softmax
from torch import nn

from cifar_lab.config.compose import compose, run_config
from cifar_lab.errors import InputError
from cifar_lab.records.digest import config_digest
from cifar_lab.run.build import build
from cifar_lab.run.load import load_run
from cifar_lab.training.distillation import Distillation
from cifar_lab.training.fit import Parts
from tests.conftest import TINY, merged, record_of
from tests.support.class_folders import write_class_folders
from tests.support.runs import same, stop_at, weights

Lab = Callable[..., tuple[int, str, str]]
SMALL = (
    *[a for a in TINY if not a.startswith("model")],
    *("model=cnn", "model.width=4", "threads=1", "logger=csv", "augment=strong"),
    *("data.train_size=200", "data.test_size=100", "data.val_size=50", "data.batch_size=25"),
)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two finished runs, the second on images that were normalized otherwise."""
    from cifar_lab.__main__ import main

    folder, made = tmp_path_factory.mktemp("teachers"), []
    for seed, more in ((1, ()), (2, ("data.normalization=half", "tta=flip"))):
        made.append(folder / str(seed))
        once = ("trainer.max_epochs=1", f"seed={seed}", f"hydra.run.dir={made[-1]}")
        assert main(merged(*SMALL, *more, *once)) == 0
    return made


def built(*arguments: str) -> Parts:
    own = "data=folders" in arguments
    base = [a for a in SMALL if not own or not a.startswith(("data.train", "data.test"))]
    cfg = compose(merged(*base, *arguments))
    return build(cfg, run_config(cfg), Path("unused").absolute())


def distillation_of(parts: Parts) -> Distillation:
    found = parts.classifier._distillation
    assert found is not None
    return found


# --- the loss -------------------------------------------------------------------------------------


def test_the_loss_is_hinton_s() -> None:
    torch.manual_seed(0)
    networks = [nn.Sequential(nn.Flatten(), nn.Linear(12, 5)).double() for _ in range(2)]
    images, logits = torch.randn(6, 3, 2, 2).double(), torch.randn(6, 5).double()
    t, w, loss = 3.0, 0.7, torch.tensor(1.25).double()
    found = Distillation(networks, temperature=t, weight=w)(loss, logits, images)
    theirs = [n(images).detach().numpy() for n in networks]
    target = np.mean([softmax(one / t, axis=1) for one in theirs], axis=0)
    divergence = (target * (np.log(target) - log_softmax(logits.numpy() / t, axis=1))).sum(1)
    assert float(found) == pytest.approx((1 - w) * 1.25 + w * t**2 * divergence.mean())


def test_teachers_learn_nothing_and_stay_in_evaluation() -> None:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Dropout(0.5), nn.Linear(12, 5))
    before = copy.deepcopy(teacher.state_dict())
    distillation = Distillation([teacher], temperature=2.0, weight=1.0)
    images, logits = torch.randn(6, 3, 2, 2), torch.randn(6, 5, requires_grad=True)
    first = distillation(torch.tensor(0.0), logits, images)
    first.backward()
    assert logits.grad is not None
    assert all(p.grad is None for p in teacher.parameters())
    assert torch.equal(distillation(torch.tensor(0.0), logits, images), first)
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert copy.deepcopy(distillation) is distillation


def test_one_who_says_what_the_teacher_says_has_nothing_to_learn() -> None:
    images = torch.randn(6, 3, 2, 2)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    logits = teacher(images).detach().requires_grad_()
    loss = Distillation([teacher], temperature=4.0, weight=1.0)(torch.tensor(0.0), logits, images)
    loss.backward()
    assert logits.grad is not None
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    assert float(logits.grad.abs().max()) < 1e-6


def test_smaller_images_are_enlarged_for_the_teacher() -> None:
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16, 5))
    distillation = Distillation([teacher], temperature=1.0, weight=0.5, image_size=4)
    colours = torch.randn(6, 3, 1, 1)
    expected = distillation.targets(colours.expand(-1, -1, 4, 4))
    torch.testing.assert_close(distillation.targets(colours.expand(-1, -1, 2, 2)), expected)


# --- from a configuration -------------------------------------------------------------------------


def test_an_ensemble_is_asked_as_each_was_trained(teachers: list[Path]) -> None:
    parts = built(f"distill.from=[{teachers[0]},{teachers[1]}]", "distill.temperature=1")
    pixels = torch.rand(5, 3, 32, 32)
    mean, std = (
        torch.tensor(c).view(-1, 1, 1) for c in (parts.data.channel_mean, parts.data.channel_std)
    )
    found = distillation_of(parts).targets((pixels - mean) / std)
    runs = [load_run(folder) for folder in teachers]
    runs[1].model.tta = "none"  # one view, whatever it was tested with
    with torch.no_grad():
        expected = torch.stack([run.model(pixels).softmax(1) for run in runs]).mean(0)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_a_second_pass_over_a_batch_has_the_teacher_too(teachers: list[Path]) -> None:
    parts = built(f"distill.from={teachers[0]}", "distill.weight=0.9")
    classifier = parts.classifier.eval()
    images, labels = torch.randn(8, 3, 32, 32), torch.randint(0, 10, (8,))
    logits = classifier(images)
    expected = distillation_of(parts)(F.cross_entropy(logits, labels), logits, images)
    torch.testing.assert_close(classifier.loss_again((images, labels)), expected)


def test_it_is_recorded_resumed_to_the_bit_and_alike_in_calls_of_several_steps(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teachers: list[Path]
) -> None:
    arguments = (*SMALL, f"distill.from={teachers[0]}", "callbacks=ema", "callbacks.ema.decay=0.5")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert lab(*arguments, f"hydra.run.dir={whole}")[0] == 0
    with monkeypatch.context() as patch:
        stop_at(patch, 8)
        assert lab(*arguments, f"hydra.run.dir={cut}")[0] == 130
    status, _, err = lab(*arguments, "steps_per_call=3", f"hydra.run.dir={cut}")
    assert status == 0, err
    same(whole, cut)
    record = record_of(whole)
    run = load_run(teachers[0])
    assert record["config"]["distill"]["from"] == {
        "paths": [str(run.checkpoint)],
        "sha256": [run.digest],
    }
    alone = tmp_path / "alone"
    assert lab(*SMALL, "trainer.max_epochs=1", f"hydra.run.dir={alone}")[0] == 0
    # nothing of the teacher is in the checkpoint
    assert weights(alone).keys() == weights(whole).keys()
    assert record["parameters"] == record_of(alone)["parameters"]
    assert "distill" not in record_of(alone)["config"]


@pytest.mark.slow
def test_all_ingredients_together_go_on_to_the_bit(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teachers: list[Path]
) -> None:
    base = [a for a in SMALL if not a.startswith(("model", "augment", "callbacks"))]
    arguments = (
        *(*base, "model=resnet10", "model.num_blocks=[1,1]", "model.width=4"),
        *("augment=trivial", "+augment.sizes=[[0,16],[1,32]]", "tta=flip"),
        "+augment.transforms.cutmix={_target_: cifar_lab.data.augment.CutMix, alpha: 1.0, p: 0.5}",
        *(f"distill.from=[{teachers[0]},{teachers[1]}]", "hard_examples.share=0.5"),
        *("hard_examples.proxy={width: 2}", "callbacks=[sam,lookahead,ema]"),
        *("optimizer=muon", "loss.label_smoothing=0.1", "trainer.precision=bf16-mixed"),
    )
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    status, _, err = lab(*arguments, f"hydra.run.dir={whole}")
    assert status == 0, err
    with monkeypatch.context() as patch:
        stop_at(patch, 8)
        assert lab(*arguments, f"hydra.run.dir={cut}")[0] == 130
    assert lab(*arguments, f"hydra.run.dir={cut}")[0] == 0
    same(whole, cut)


def test_what_decides_is_the_weights_and_not_where_they_lie(
    teachers: list[Path], tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(teachers[0], moved)

    def digest(*arguments: str) -> str:
        return config_digest(run_config(compose(merged(*SMALL, *arguments))))

    there = digest(f"distill.from={teachers[0]}")
    assert digest(f"distill.from=[{moved}]", "distill.trust=[nets]") == there
    for other in (
        f"distill.from={teachers[1]}",
        f"distill.from=[{teachers[0]},{teachers[1]}]",
        "distill.from=null",
    ):
        assert digest(other) != there
    assert digest(f"distill.from={teachers[0]}", "distill.weight=0.1") != there
    assert digest("distill.weight=0.1") == digest()  # of no teacher


def refused(teachers: list[Path], tmp_path: Path) -> list[tuple[tuple[str, ...], str]]:
    one = f"distill.from={teachers[0]}"
    begun = tmp_path / "begun"
    shutil.copytree(teachers[0], begun)
    text = (begun / "run.json").read_text()
    (begun / "run.json").write_text(text.replace('"tested": "', '"tested": null, "was": "'))
    foreign = tmp_path / "foreign"
    shutil.copytree(teachers[0], foreign)
    text = (foreign / "run.json").read_text()
    (foreign / "run.json").write_text(text.replace("cifar_lab.model.cnn.CNN", "nets.Tiny"))
    folder = "must be the folder of a finished run"
    write_class_folders(tmp_path / "own", ("cat", "dog"))
    own = ("data=folders", f"data.root={tmp_path}/own")
    return [
        (("distill.from=nowhere",), f"distill.from=nowhere: is no folder; {folder}"),
        (("distill.from=[]",), f"distill.from=[]: {folder}"),
        (("distill.from=3",), f"distill.from=3: {folder}"),
        ((f"distill.from={tmp_path}",), f"distill.from={tmp_path}: holds no run.json; {folder}"),
        ((f"distill.from={begun}",), "has tested no weights yet"),
        ((f"distill.from=[{teachers[0]},{teachers[0]}]",), "names one run twice"),
        ((one, "distill.temperature=0"), "distill.temperature=0: must be above 0"),
        ((one, "distill.temperature=hot"), "distill.temperature=hot: must be a number"),
        ((one, "distill.weight=0"), "distill.weight=0: must lie in (0, 1]; with 0 the teacher"),
        ((one, "distill.weight=1.5"), "distill.weight=1.5: must lie in (0, 1]"),
        ((one, "distill.trust=nets"), "distill.trust=nets: must be a list of modules"),
        ((f"distill.from={foreign}",), "distill.trust=nets"),
        ((one, *own, "data.val_size=0"), "must know the same classes in the same order"),
    ]


def test_what_can_t_teach_is_one_line(teachers: list[Path], tmp_path: Path) -> None:
    for arguments, message in refused(teachers, tmp_path):
        with pytest.raises(InputError) as error:
            built(*arguments)
        assert message in str(error.value), arguments
        assert "\n" not in str(error.value)


def test_a_teacher_that_changed_since_is_refused(teachers: list[Path], tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(teachers[0], mine)
    cfg = compose(merged(*SMALL, f"distill.from={mine}"))
    config: dict[str, Any] = run_config(cfg)
    config["distill"]["from"]["sha256"] = ["0" * 64]
    with pytest.raises(InputError, match="has changed since this run was asked for"):
        build(cfg, config, tmp_path / "unused")
