"""The Classifier under Lightning is a bare PyTorch loop, and its metrics are torchmetrics'."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from torch import nn
from torchmetrics.functional.classification import multiclass_accuracy

from cifar_lab.data.augment import Pipeline, RandomFlip
from cifar_lab.data.datamodule import Synthetic
from cifar_lab.errors import Diverged
from cifar_lab.model.resnet import ResNet
from cifar_lab.training.classifier import Classifier
from cifar_lab.training.library_logging import route_library_logging
from cifar_lab.training.schedules import constant, cosine
from tests.conftest import FEED
from tests.support.runs import begin

SCHEDULE = partial(cosine, warmup_fraction=0.1, final_factor=0.0)
EPOCHS = 2


def data(**changes: object) -> Synthetic:
    settings: dict[str, object] = {
        **FEED,
        "train_size": 300,
        "test_size": 90,
        "data_seed": 0,
        "batch_size": 40,
        "val_size": 60,
        "augment": Pipeline(transforms={"flip": RandomFlip(p=0.5)}),
        "seed": 3,
    }
    return Synthetic(**{**settings, **changes})  # type: ignore[arg-type]


def fitted(folder: Path, *, lr: float = 0.05, **changes: object) -> tuple[Classifier, Trainer]:
    route_library_logging()
    seed_everything(11, verbose=False)
    classifier = Classifier(
        network=ResNet(num_blocks=[1, 1], width=4),
        loss=nn.CrossEntropyLoss(),
        optimizer=partial(torch.optim.SGD, lr=lr, momentum=0.9),
        schedule=SCHEDULE,
        config={},
    )
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_epochs=EPOCHS,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(classifier, datamodule=data(**changes))
    return classifier, trainer


def test_a_fit_equals_a_bare_loop_to_the_bit(tmp_path: Path) -> None:
    classifier, _ = fitted(tmp_path)
    feed = data()
    feed.setup()
    loader = feed.train_dataloader()
    seed_everything(11, verbose=False)
    network = ResNet(num_blocks=[1, 1], width=4)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    total = EPOCHS * len(loader)
    step = 0
    for epoch in range(EPOCHS):
        loader.set_epoch(epoch)
        for images, labels in loader:
            optimizer.param_groups[0]["lr"] = 0.05 * SCHEDULE(step, total)
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images), labels).backward()
            optimizer.step()
            step += 1
    ours, bare = classifier.network.state_dict(), network.state_dict()
    assert all(torch.equal(ours[name], bare[name]) for name in bare)


def test_metrics_are_those_of_the_whole_split(tmp_path: Path) -> None:
    classifier, trainer = fitted(tmp_path)
    feed = trainer.datamodule  # type: ignore[attr-defined]
    batches = list(feed.val_dataloader())
    classifier.eval()
    with torch.no_grad():
        logits = torch.cat([classifier(images) for images, _ in batches])
    labels = torch.cat([labels for _, labels in batches])
    expected_loss = nn.functional.cross_entropy(logits.double(), labels)
    expected_acc = multiclass_accuracy(logits, labels, 10, average="micro")
    assert len(labels) == 60
    assert float(trainer.callback_metrics["val/loss"]) == pytest.approx(float(expected_loss))
    assert float(trainer.callback_metrics["val/acc"]) == pytest.approx(float(expected_acc))


def test_the_test_keeps_every_logit_in_the_order_of_the_dataset(tmp_path: Path) -> None:
    classifier, trainer = fitted(tmp_path)
    trainer.test(classifier, datamodule=trainer.datamodule, verbose=False)  # type: ignore[attr-defined]
    dataset = trainer.datamodule.dataset  # type: ignore[attr-defined]
    assert classifier.test_labels.tolist() == dataset.test.labels.tolist()
    assert classifier.test_logits.shape == (90, 10)
    accuracy = (classifier.test_logits.argmax(1) == classifier.test_labels).double().mean()
    assert float(trainer.callback_metrics["test/acc"]) == float(accuracy)


@pytest.mark.parametrize("val_size", [0, 60])
def test_a_diverged_fit_names_the_first_bad_step(tmp_path: Path, val_size: int) -> None:
    with pytest.raises(Diverged, match=r"training loss became NaN or infinite at step [1-9]"):
        fitted(tmp_path, lr=1e20, val_size=val_size)


def test_mixed_labels_count_as_the_larger_share() -> None:
    classifier = Classifier(
        network=nn.Identity(),
        loss=nn.CrossEntropyLoss(),
        optimizer=torch.optim.SGD,
        schedule=constant,
        config={},
    )
    # of every sample two classes have a share, and the answer is the larger, the smaller or neither
    larger = torch.arange(12) % 10
    smaller, neither = (larger + 3) % 10, (larger + 5) % 10
    labels = 0.7 * nn.functional.one_hot(larger, 10) + 0.3 * nn.functional.one_hot(smaller, 10)
    answers = torch.cat([larger[:5], smaller[5:8], neither[8:]])
    logits = 3.0 * nn.functional.one_hot(answers, 10)
    begin(classifier)
    classifier.training_step((logits, labels), 0)
    loss_sum, correct, count = classifier.running_train().tolist()
    assert (correct, count) == (5, 12)
    assert loss_sum / 12 == pytest.approx(float(nn.functional.cross_entropy(logits, labels)))
