from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from torchvision import transforms

from benchmarks import child, random_images
from benchmarks.contenders import MAKERS, NETWORKS, WARMUP_STEPS, Workload
from benchmarks.programs import bare, harness, report_loop
from benchmarks.programs.harness import Clock, Settings, UnofficialCIFAR10

IMAGES = 2000


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("random_images") / "data"
    random_images.make(folder, IMAGES)
    return folder


def settings(data: Path, **more: object) -> Settings:
    given: dict[str, object] = {
        "data": data,
        "network": "cnn",
        "batch_size": 4,
        "steps": 3,
        "device": torch.device("cpu"),
        "precision": "32-true",
        "workers": 0,
        "tuned": False,
    }
    return Settings(**{**given, **more})  # type: ignore[arg-type]


def arguments(data: Path) -> list[str]:
    return [
        *(f"--data={data}", "--network=cnn", "--batch-size=4", "--steps=3", "--device=cpu"),
        *("--precision=32-true", "--workers=0", "--threads=1"),
    ]


@pytest.mark.parametrize("program", [bare, report_loop])
def test_a_program_ends_with_its_rate(
    program: object, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    harness.run(program.train, arguments(data))  # type: ignore[attr-defined]
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["steps"] == 3
    # 3 steps of 4 images
    assert told["images_per_s"] * told["step_ms"] / 1e3 == pytest.approx(4)


def test_the_template_ends_with_its_rate(data: Path, tmp_path: Path) -> None:
    workload = Workload(
        data=data,
        network="cnn",
        batch_size=4,
        steps=3,
        device="cpu",
        precision="32-true",
        threads=1,
        workers=1,
    )
    contender = MAKERS["template"](workload)
    ended = child.run(contender.command(tmp_path), cwd=tmp_path, timeout_s=120, env={})
    assert ended.status == 0, ended.errors
    told = contender.read(ended, tmp_path)
    assert told.images_per_s is not None
    assert told.images_per_s > 0
    assert "Epoch 0" in ended.errors  # its bar was drawn, as for a person
    assert (tmp_path / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize("tuned", [False, True])
def test_the_bare_loop_makes_its_steps_tuned_or_not(
    tuned: bool, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bare, "keep_freed_memory", lambda: None)  # for the whole process
    chosen = settings(data, tuned=tuned, batch_size=2, steps=1)
    clock = Clock(chosen)
    bare.train(chosen, clock)
    assert clock.result()["images_per_s"] > 0


def test_all_programs_see_the_same_pixels(data: Path) -> None:
    images, labels = bare.training_split(settings(data))
    half = (0.5, 0.5, 0.5)
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(half, half)])
    report = UnofficialCIFAR10(data, transform=transform)
    assert len(images) == len(report) == IMAGES
    for index in (0, 7, IMAGES - 1):
        image, label = report[index]
        torch.testing.assert_close(images[index], image)
        assert labels[index] == label


def test_ours_reads_the_same_images_from_the_zip(data: Path) -> None:
    from cifar_lab.data.dataset import CLASSES
    from cifar_lab.data.fetch import folders

    train, test, _ = folders.read_zip(
        data / random_images.ZIP_NAME, folders.list_zip(data / random_images.ZIP_NAME, CLASSES)
    )
    pixels = {image.tobytes() for image in UnofficialCIFAR10(data).data.transpose(0, 3, 1, 2)}
    assert {image.tobytes() for image in train.images} == pixels
    assert len(test.labels) == random_images.TEST_IMAGES


@pytest.mark.parametrize(
    ("network", "parameters"),
    [("cnn", 1_276_234), ("resnet10", 11_173_962), ("resnet1111", 4_903_242)],
)
def test_the_networks_are_those_of_the_goals(network: str, parameters: int, data: Path) -> None:
    assert set(NETWORKS) == {"cnn", "resnet10", "resnet1111"}
    made = harness.make_network(settings(data, network=network))
    assert sum(p.numel() for p in made.parameters()) == parameters


def test_the_clock_leaves_out_warm_up_and_pauses(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    clock = Clock(settings(data, steps=4))
    for _ in range(WARMUP_STEPS):
        now += 100
        assert not clock.step(10)
    for step in range(4):
        clock.pause()
        now += 50  # a validation
        clock.resume()
        now += 2
        assert clock.step(10) == (step == 3)
    assert clock.result() == {"images_per_s": 5.0, "step_ms": 2000.0, "steps": 4}
