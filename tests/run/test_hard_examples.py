"""Training on what a proxy finds hard: against airbench96_faster's two runs, and in a run."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar_lab.config.compose import compose, run_config
from cifar_lab.errors import InputError
from cifar_lab.records.digest import config_digest
from cifar_lab.run.build import build
from cifar_lab.training.hard_examples import HardExamples
from cifar_lab.training.optimizers import OptimizerFactory
from cifar_lab.training.schedules import triangular
from tests.conftest import TINY, merged, record_of
from tests.support.runs import same, stop_at, weights

Lab = Callable[..., tuple[int, str, str]]
SMALL = (
    *[a for a in TINY if not a.startswith("model")],
    *("model=speednet", "model.widths=[8,8,8]", "threads=1", "logger=csv"),
    *("data.train_size=200", "data.test_size=100", "data.val_size=50", "data.batch_size=25"),
)
HARD = ("hard_examples.share=0.4", "hard_examples.proxy={widths: [4,4,4]}", "hard_examples.every=3")
LINE = partial(triangular, warmup_fraction=0.1, initial_factor=0.2, final_factor=0.0)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(5))


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(20, 3, 6, 6, generator=generator),
            torch.randint(0, 5, (20,), generator=generator),
        )
        for _ in range(count)
    ]


def proxy_of(module: nn.Module, **more: Any) -> HardExamples:
    settings: dict[str, Any] = {
        "loss": nn.CrossEntropyLoss(label_smoothing=0.2),
        "optimizer": OptimizerFactory(
            partial(torch.optim.SGD, lr=0.1, momentum=0.85, nesterov=True, weight_decay=0.01)
        ),
        "schedule": LINE,
        "share": 0.5,
        "every": 4,
    }
    return HardExamples(module, **(settings | more))


def test_it_chooses_what_the_script_s_first_run_masks() -> None:
    proxy = network()
    proxy(batches(1)[0][0])  # its lazy layer
    theirs = copy.deepcopy(proxy)
    hard = proxy_of(proxy)
    hard.start(torch.device("cpu"), 10)
    optimizer = torch.optim.SGD(
        theirs.parameters(), lr=0.1, momentum=0.85, nesterov=True, weight_decay=0.01
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: LINE(step, 10))
    loss_fn = nn.CrossEntropyLoss(label_smoothing=0.2, reduction="none")
    for step, (images, labels) in enumerate(batches(10)):
        kept, its = hard.choose((images, labels))
        # airbench96_faster, train_proxy; the mean over the chosen in place of their sum
        with torch.set_grad_enabled(step % 4 == 0):
            losses = loss_fn(theirs(images), labels)
        mask = torch.zeros(20, dtype=torch.bool)
        mask[losses.argsort()[-10:]] = True
        if step % 4 == 0:
            optimizer.zero_grad()
            ((losses * mask).sum() / 10).backward()
            optimizer.step()
        scheduler.step()
        assert torch.equal(kept, images[mask])
        assert torch.equal(its, labels[mask])
    mine = proxy.state_dict()
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(mine[name], value)


def test_mixed_labels_are_ranked_too() -> None:
    proxy = network()
    hard = proxy_of(proxy, share=0.01)
    images, labels = batches(1)[0]
    proxy(images)
    hard.start(torch.device("cpu"), 3)
    mixed = 0.7 * F.one_hot(labels, 5) + 0.3 * F.one_hot(labels.roll(1), 5)
    with torch.no_grad():
        worst = F.cross_entropy(
            proxy(images), mixed, reduction="none", label_smoothing=0.2
        ).argmax()
    kept, its = hard.choose((images, mixed))
    assert torch.equal(kept, images[worst][None])  # one at least
    assert torch.equal(its, mixed[worst][None])


def test_a_run_goes_on_to_the_bit_with_its_proxy(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    choose = HardExamples.choose

    def looked(self: HardExamples, batch: Any) -> Any:
        kept = choose(self, batch)
        seen.append(len(kept[0]))
        return kept

    monkeypatch.setattr(HardExamples, "choose", looked)
    arguments = (*SMALL, *HARD, "callbacks=ema", "callbacks.ema.decay=0.5")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    status, _, err = lab(*arguments, f"hydra.run.dir={whole}")
    assert status == 0, err
    assert seen == [10] * 12
    with monkeypatch.context() as patch:
        stop_at(patch, 8)
        assert lab(*arguments, f"hydra.run.dir={cut}")[0] == 130
    status, _, err = lab(*arguments, "steps_per_call=3", f"hydra.run.dir={cut}")
    assert status == 0, err
    same(whole, cut)
    proxies = [
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["hard_examples"]
        for folder in (whole, cut)
    ]
    one, other = (found["proxy"] for found in proxies)
    assert all(torch.equal(one[name], other[name]) for name in one)
    # the whitening saw the images, and nothing of the proxy is among the network's weights
    assert torch.equal(one["whiten.weight"], weights(whole)["network.whiten.weight"])
    assert one["head.weight"].shape == (10, 4)
    assert record_of(whole)["config"]["hard_examples"]["share"] == 0.4


def test_a_second_pass_is_over_the_same_images_and_no_random_number_is_taken(
    tmp_path: Path,
) -> None:
    cfg = compose(merged(*SMALL, *HARD))
    classifier = build(cfg, run_config(cfg), tmp_path / "unused").classifier
    hard = classifier.hard_examples
    assert hard is not None
    hard.proxy = nn.Sequential(nn.Dropout(0.5), nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    hard.start(torch.device("cpu"), 5)
    batch = torch.randn(25, 3, 32, 32), torch.randint(0, 10, (25,))
    before = torch.get_rng_state()
    images, labels = hard.choose(batch)
    assert torch.equal(torch.get_rng_state(), before)
    again = classifier.loss_again(batch)
    torch.testing.assert_close(again, F.cross_entropy(classifier(images), labels))


def test_a_schedule_free_optimizer_steps_the_proxy_too(tmp_path: Path) -> None:
    pytest.importorskip("schedulefree")
    free = ("optimizer=schedule_free", "scheduler=constant", "callbacks=schedule_free")
    cfg = compose(merged(*SMALL, *HARD, *free))
    hard = build(cfg, run_config(cfg), tmp_path / "unused").classifier.hard_examples
    assert hard is not None
    before = copy.deepcopy(hard.proxy.state_dict())["head.weight"]
    hard.start(torch.device("cpu"), 5)
    hard.choose((torch.randn(25, 3, 32, 32), torch.randint(0, 10, (25,))))
    assert not torch.equal(hard.proxy.state_dict()["head.weight"], before)


def test_a_digest_without_it_is_what_it_was() -> None:
    def digest(*arguments: str) -> str:
        return config_digest(run_config(compose(merged(*SMALL, *arguments))))

    assert digest("hard_examples.every=3") == digest()
    assert digest(*HARD) != digest()


def test_what_can_t_choose_is_one_line(tmp_path: Path) -> None:
    share, proxy, _ = HARD
    two = ("trainer.devices=2", "trainer.strategy=ddp", "data.batch_size=50")
    for arguments, message in (
        ((share,), "hard_examples.proxy=null: must be arguments of model"),
        (("hard_examples.share=1.0", proxy), "hard_examples.share=1.0: must lie in (0, 1)"),
        (("hard_examples.share=half", proxy), "hard_examples.share=half: must be a number"),
        ((share, proxy, "hard_examples.every=0"), "hard_examples.every=0: must be at least 1"),
        ((share, "hard_examples.proxy={width: 3}"), "hard_examples.proxy: model.width: "),
        ((share, "hard_examples.proxy={depth: 5}"), "hard_examples.proxy: model.depth=5: "),
        ((*HARD, "scheduler=step"), "the proxy makes its own steps: scheduler is one of"),
        ((*HARD, "cuda_graph=true"), "cuda_graph=true"),
        ((*HARD, "trainer.accumulate_grad_batches=2"), "accumulate_grad_batches must be 1"),
        ((*HARD, *two), "2 processes would train a proxy"),
    ):
        cfg = compose(merged(*SMALL, *arguments))
        with pytest.raises(InputError) as error:
            build(cfg, run_config(cfg), tmp_path / "unused")
        assert message in str(error.value), arguments
        assert "\n" not in str(error.value)


def test_images_are_ranked_by_the_run_s_own_loss() -> None:
    images, labels = batches(1)[0]
    weight = torch.tensor([1.0, 0.01, 5.0, 1.0, 0.1])
    losses: list[nn.Module] = [nn.CrossEntropyLoss(weight=weight), nn.MultiMarginLoss(margin=3.0)]
    for loss in losses:
        proxy = network()
        proxy(images)
        hard = proxy_of(proxy, loss=loss, share=0.25)
        hard.start(torch.device("cpu"), 3)
        twin = copy.deepcopy(proxy).train()
        each = torch.stack(
            [loss_of(loss, row, label) for row, label in zip(twin(images), labels, strict=True)]
        )
        expected = each.topk(5).indices.sort().values
        kept, _ = hard.choose((images, labels))
        assert torch.equal(kept, images[expected])
        assert loss.reduction == "mean"


def loss_of(loss: nn.Module, row: Tensor, label: Tensor) -> Tensor:
    # a weighted mean of one has no weight
    weight = getattr(loss, "weight", None)
    value: Tensor = loss(row[None], label[None])
    return value if weight is None else value * weight[label]


def test_a_loss_of_whole_batches_alone_ranks_nothing() -> None:
    with pytest.raises(InputError, match="ranks images by their own losses, and function has no"):
        proxy_of(network(), loss=F.cross_entropy)


def test_as_many_images_as_there_are_is_no_choice(tmp_path: Path) -> None:
    _, proxy, _ = HARD
    for share, message in (
        ("0.99", "hard_examples.share=0.99: keeps all 25 images of a batch; must be at most "),
        ("0.96", None),
        ("0.02", "hard_examples.share=0.02: keeps one of a batch's 25 images; must be larger"),
    ):
        arguments = [*SMALL, "data.drop_last=true", f"hard_examples.share={share}", proxy]
        if share == "0.02":  # maps of 1x1, of which one image has no variance
            arguments = [a for a in arguments if not a.startswith(("model", "hard_examples.p"))]
            arguments += ["model=resnet10", "model.num_blocks=[1,1,1,1,1,1]", "model.width=4"]
            arguments += ["hard_examples.proxy={width: 2}"]
        cfg = compose(merged(*arguments))
        if message is None:
            build(cfg, run_config(cfg), tmp_path / "unused")
            continue
        with pytest.raises(InputError) as error:
            build(cfg, run_config(cfg), tmp_path / "unused")
        assert str(error.value).startswith(message)
        assert "\n" not in str(error.value)
