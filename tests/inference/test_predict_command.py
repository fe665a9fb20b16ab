"""`python -m cifar_lab.predict`: every way to give pictures and to get answers."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cifar_lab import load_run
from cifar_lab.data.synthetic import make_synthetic
from cifar_lab.errors import InputError
from cifar_lab.inference.prediction import activation_maps, find_pictures
from cifar_lab.predict import main
from tests.support.finished import QUICK, finish

PIXELS = make_synthetic(train_size=20, test_size=12, data_seed=1).test.images


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "below").mkdir(parents=True)
    for index, image in enumerate(PIXELS):
        place = folder / "below" if index > 8 else folder
        Image.fromarray(image.transpose(1, 2, 0)).save(place / f"{index:02}.png")
    return folder


def answers(
    capfd: pytest.CaptureFixture[str], *arguments: object, status: int = 0
) -> tuple[list[dict[str, Any]], str]:
    capfd.readouterr()
    assert main([*map(str, arguments), "--json"]) == status
    out, err = capfd.readouterr()
    found: list[dict[str, Any]] = json.loads(out)
    return found, err


def test_the_answers_are_the_models(
    finished: Path, pictures: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found, err = answers(capfd, finished, pictures, "--top", 10)
    assert err == ""
    run = load_run(finished)
    expected = run.predict(PIXELS)
    names = [str(p) for p in sorted(pictures.rglob("*.png"))]
    assert [one["file"] for one in found] == names
    for one in found:
        row = expected[int(Path(one["file"]).stem)]
        by_name = {each["class"]: each["probability"] for each in one["top"]}
        assert [by_name[name] for name in run.classes] == pytest.approx(row.tolist(), abs=1e-6)
        given = [each["probability"] for each in one["top"]]
        assert given == sorted(given, reverse=True)


def test_folders_patterns_and_standard_input(
    finished: Path,
    pictures: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = (pictures / "03.png").read_bytes()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    found, _ = answers(capfd, finished, "-", f"{pictures}/0[3-5].png", pictures / "03.png")
    assert [Path(one["file"]).name for one in found] == [
        *("-", "03.png", "04.png", "05.png", "03.png")
    ]
    assert found[0]["top"] == found[1]["top"] == found[4]["top"]
    assert find_pictures([f"{pictures}/**/1*.png"]) == [
        str(pictures / "below" / f"{i}.png") for i in (10, 11)
    ]
    (pictures.parent / "empty").mkdir()
    for nothing, said in ((pictures.parent / "empty", "holds no picture"), ("x*.png", "no file")):
        with pytest.raises(InputError, match=said):
            find_pictures([str(nothing)])


def test_a_broken_picture_is_one_line_and_the_others_go_on(
    finished: Path, pictures: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (pictures / "00-empty.png").touch()
    (pictures / "01-text.png").write_text("no picture")
    found, err = answers(capfd, finished, pictures, "nowhere.jpg", status=1)
    assert err.count("\n") == 3
    assert "00-empty.png: is empty" in err
    assert "01-text.png: is no readable picture; must be PNG" in err
    assert "nowhere.jpg: does not exist" in err
    assert sum(one["error"] is None for one in found) == len(PIXELS)
    assert sum(one["error"] is not None for one in found) == 3
    assert main([str(finished), "nowhere.jpg"]) == 1
    out, err = capfd.readouterr()
    assert (out, err) == ("", "cifar_lab: nowhere.jpg: does not exist\n")


def test_csv_and_text(finished: Path, pictures: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (pictures / "broken.png").touch()
    assert main([str(finished), str(pictures), "--csv", "--top", "2"]) == 1
    rows = list(csv.DictReader(io.StringIO(capfd.readouterr().out)))
    assert len(rows) == len(PIXELS) + 1
    assert list(rows[0]) == [
        *("file", "class_1", "probability_1", "class_2", "probability_2", "error")
    ]
    assert [row["error"] != "" for row in rows].count(True) == 1
    assert main([str(finished), str(pictures / "03.png")]) == 0
    line = capfd.readouterr().out
    assert line.startswith(f"{pictures / '03.png'}  ")
    assert line.count("%") == 3


NAMES = (
    *("a b 'q\".png", "new\nline.png", "\x1b[31m.png", "$x^$.png", "=1+1.png", "[1].png"),
    "latin\udce9.png",  # a byte that is no UTF-8
)


def test_names_of_every_kind(
    finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "names"
    folder.mkdir()
    for name in NAMES:
        Image.fromarray(PIXELS[0].transpose(1, 2, 0)).save(folder / name)
    (folder / "bad\n\x1b\udce9.png").touch()
    (folder / "folder.png").mkdir()  # no picture
    os.mkfifo(folder / "pipe.png")
    monitored = ("--sheet", str(tmp_path / "sheet.png"))
    for how in ((), ("--csv",), ("--json",), monitored):
        capfd.readouterr()
        assert main([str(finished), str(folder), *how]) == 1
        out, err = capfd.readouterr()
        assert err == (
            f"cifar_lab: {folder}/bad\\n\\x1b\\udce9.png: is empty\n"
            f"cifar_lab: {folder}/pipe.png: is no file\n"
        )
        if how in ((), monitored):
            assert len(out.splitlines()) == len(NAMES)
            assert out.replace("\n", "").isprintable()
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size[0] > 100
    assert main([str(finished), str(folder / "=1+1.png"), "x" * 300, "~nobody-of-this/x"]) == 1
    assert capfd.readouterr().err.splitlines() == [
        f"cifar_lab: {'x' * 300}: can't be read (File name too long)",
        "cifar_lab: ~nobody-of-this/x: does not exist",
    ]


def test_a_thousand_files_go_through_in_batches(
    finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    many = tmp_path / "many"
    many.mkdir()
    for index in range(1000):
        image = np.roll(PIXELS[index % len(PIXELS)], index % 32, 2)
        Image.fromarray(image.transpose(1, 2, 0)).save(many / f"{index:04}.bmp")
    found, err = answers(capfd, finished, many)
    assert err == ""
    assert len(found) == 1000


@pytest.mark.parametrize("explain", [False, True])
def test_a_sheet(
    finished: Path, another: Path, pictures: Path, explain: bool, tmp_path: Path
) -> None:
    for run in (finished, another):
        extra = ["--explain"] if explain else []
        assert main([str(run), str(pictures), "--sheet", "sheet.png", *extra]) == 0
        with Image.open("sheet.png") as sheet:
            width, height = sheet.size
        assert width > (1500 if explain else 900)
        assert height > 600


def test_a_map_shows_where_the_class_was_seen(tmp_path: Path) -> None:
    """A network that looks at one corner alone is explained by that corner."""
    run = load_run(finish(tmp_path / "run", *QUICK, "model.num_blocks=[1]", "model.width=4"))

    class Corner(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = torch.nn.Identity()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen = self.map(images * 1)[:, :, :8, :8].mean((1, 2, 3))
            logits: torch.Tensor = seen[:, None] * torch.arange(10, device=images.device)
            return logits

    run.model.network = Corner()
    maps = activation_maps(run, np.full((2, 3, 32, 32), 255, np.uint8), [9, 9])
    assert maps.shape == (2, 32, 32)
    assert maps.min() >= 0
    assert maps.max() <= 1
    run.model.network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10))
    with pytest.raises(InputError, match="no layer of this network has a map"):
        activation_maps(run, PIXELS, [0] * len(PIXELS))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the following arguments are required: IMAGE"),
        (["x.png", "--json", "--csv"], "--json and --csv: give one of them"),
        (["x.png", "--explain"], "--explain: draws into the sheet; add --sheet out.png"),
        (["x.png", "--sheet", "out.txt"], "--sheet=out.txt: must be a .png"),
        (["x.png", "--sheet", "no/out.png"], "there is no folder no"),
        (["x.png", "--sheet="], "--sheet=: must be a .png"),
        (["x.png", "--sheet", "~nobody-of-this/x.png"], "there is no folder ~nobody-of-this"),
        (["x.png", "--sheet", "f.png"], "--sheet=f.png: is a folder"),
        (["there.png", "--sheet", "./there.png"], "is one of the pictures; give another file"),
        (["x.png", ""], "'': an argument is empty; is its variable set?"),
        (["x.png", "--ckpt="], "ckpt: is empty; must be best, last or a file"),
        (["x.png", "--ckpt", "/dev/zero"], "zero is no file"),
        (["x.png", "--ckpt", "x" * 300], "can't be read (File name too long)"),
        (["x.png", "--top", "0"], "0: must be at least 1"),
        (["x.png", "--ckpt", "y.ckpt"], "y.ckpt: does not exist"),
    ],
)
def test_wrong_input_is_one_line(
    finished: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    Path("f.png").mkdir()
    Image.new("RGB", (32, 32)).save("there.png")
    capfd.readouterr()
    assert main([str(finished), *arguments]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1


def test_what_is_no_run(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([str(tmp_path), "x.png"]) == 2
    assert "holds no run.json; give the folder of a run" in capfd.readouterr().err
