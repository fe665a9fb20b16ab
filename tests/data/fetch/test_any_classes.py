"""Class folders with any names and any pictures."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from cifar_lab.data.copies import lines_of
from cifar_lab.data.dataset import (
    CLASSES,
    channel_statistics,
    digest_of,
    number_images,
    split_digest,
)
from cifar_lab.data.fetch.locate import Opened, open_folders, verify_cache
from cifar_lab.errors import InputError
from tests.support.class_folders import write_class_folders, zipped

pytestmark = pytest.mark.usefixtures("empty_home")
SEVEN = ("rose", "daisy", "Tulip", "été", "lily of the valley", "10", "9")


def opened(root: Path | str | None, image_size: int = 32) -> Opened:
    return open_folders(root=None if root is None else str(root), cache=None, image_size=image_size)


@pytest.mark.parametrize("count", [2, 7, 300])
def test_classes_are_those_of_the_folders_in_the_order_of_their_names(
    tmp_path: Path, count: int
) -> None:
    names = [f"kind {number}" for number in range(count)] if count != 7 else list(SEVEN)
    root = write_class_folders(tmp_path / "mine", names, train=2, test=1, size=(8, 8))
    found = opened(root, 8)
    data = found.dataset
    assert (data.name, data.official, data.image_size) == ("folders", False, (3, 8, 8))
    assert data.classes == tuple(sorted(names))
    assert data.train.labels.tolist() == [*range(count)] * 2
    assert data.test.labels.tolist() == [*range(count)]
    assert data.train.labels.dtype.itemsize == (1 if count <= 256 else 2)
    folder = root / "test" / data.classes[-1]
    expected = np.asarray(Image.open(folder / "000.png")).transpose(2, 0, 1)
    np.testing.assert_array_equal(data.test.images[-1], expected)
    assert data.digest == digest_of(split_digest(data.train), split_digest(data.test))
    again = opened(root, 8)
    assert (found.state, again.state) == ("built", "ok")
    assert again.dataset.classes == data.classes
    np.testing.assert_array_equal(again.dataset.train.labels, data.train.labels)
    in_zip = opened(zipped(root, tmp_path / "mine.zip"), 8).dataset
    assert (in_zip.digest, in_zip.classes) == (data.digest, data.classes)
    assert [state for _, state in verify_cache(cache=None)] == ["ok", "ok"]


def test_two_bytes_a_label_at_an_odd_place_in_the_file(tmp_path: Path) -> None:
    names = [f"{number}" for number in range(301)]
    root = write_class_folders(tmp_path / "mine", names, train=1, test=1, size=(5, 5))
    labels = opened(root, 5).dataset.train.labels  # behind 301 * 75 bytes
    assert labels.flags.aligned
    assert sorted(labels.tolist()) == [*range(301)]


@pytest.mark.parametrize("size", [(48, 48), (60, 40), (40, 60), (20, 24), (33, 32)])
def test_pictures_of_other_sizes_are_resized_and_that_is_said(
    tmp_path: Path, size: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="cifar_lab.data")
    root = write_class_folders(tmp_path / "mine", ["a", "b"], train=3, test=2, size=size)
    Image.new("RGB", (32, 32), (9, 8, 7)).save(root / "train/a/999.png")
    found = opened(root)
    said = [r.getMessage() for r in caplog.records if "resized" in r.getMessage()]
    assert said == [
        "10 of the 11 pictures were resized to 32x32, of those that are not square the middle; "
        "data.image_size sets the size"
    ]
    assert found.resized == opened(root).resized == 10
    with Image.open(root / "test/b/001.png") as picture:
        expected = ImageOps.fit(picture, (32, 32), method=Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(
        found.dataset.test.images[-1], np.asarray(expected).transpose(2, 0, 1)
    )


def test_shrinking_is_antialiased(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "mine", ["a", "b"])
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[::2] = 200  # every second row: the nearest pixels would be all of one kind
    Image.fromarray(stripes).save(root / "train/a/000.png")
    image = opened(root).dataset.train.images[0]
    assert np.abs(image[:, 2:-2].astype(int) - 100).max() <= 3


def test_a_photograph_is_turned_as_its_camera_noted(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "mine", ["a", "b"])
    half = np.zeros((32, 32, 3), np.uint8)
    half[:16] = 255
    picture, exif = Image.fromarray(half), Image.Exif()
    exif[0x0112] = 3  # upside down
    picture.save(root / "train/a/000.png", exif=exif)
    image = opened(root).dataset.train.images[0]
    assert (image[:, :16] == 0).all()
    assert (image[:, 16:] == 255).all()


def test_each_image_size_has_a_cache_entry_and_a_digest(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "mine", ["a", "b"], size=(40, 40))
    found = {size: opened(root, size) for size in (16, 32, 40)}
    assert len({one.entry for one in found.values()}) == 3
    assert len({one.dataset.digest for one in found.values()}) == 3
    assert [one.resized for one in found.values()] == [12, 12, 0]
    assert opened(root, 16).dataset.digest == found[16].dataset.digest


def test_channel_statistics_are_kept_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_class_folders(tmp_path / "mine", ["a", "b"])
    data = opened(root).dataset
    assert data.statistics == channel_statistics(data.train.images)
    monkeypatch.setattr("cifar_lab.data.dataset.channel_statistics", None)
    monkeypatch.setattr("cifar_lab.data.fetch.locate.channel_statistics", None)
    assert opened(root).dataset.statistics == data.statistics


def test_images_of_one_colour_are_taken_and_refused_where_they_would_be_divided_by(
    tmp_path: Path,
) -> None:
    root = tmp_path / "mine"
    for split in ("train", "test"):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            Image.new("RGB", (32, 32), (5, 5, 5)).save(root / split / name / "0.png")
    data = opened(root).dataset
    with pytest.raises(InputError, match=r"data\.normalization=half"):
        data.statistics  # noqa: B018  # computed here


def test_a_moved_folder_holds_the_same_images(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "mine", SEVEN)
    before = opened(root)
    after = opened(root.rename(tmp_path / "moved"))
    assert after.dataset.digest == before.dataset.digest
    assert after.entry != before.entry


def test_a_damaged_entry_is_mended_with_its_own_size_and_classes(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "mine", SEVEN, size=(20, 30))
    before = opened(root, 16)
    (before.entry / "train.bin").write_bytes(b"")
    assert dict(verify_cache(cache=None)) == {before.entry.name: "rebuilt"}
    after = opened(root, 16)
    assert (after.state, after.dataset.digest) == ("ok", before.dataset.digest)
    assert after.dataset.classes == before.dataset.classes


def test_an_entry_whose_description_was_altered_is_damaged(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "mine", SEVEN)
    entry = opened(root).entry
    described = json.loads((entry / "dataset.json").read_text())
    for change in ({"image_size": 16}, {"image_size": "32"}, {"classes": 3}, {"new": 1}):
        (entry / "dataset.json").write_text(json.dumps({**described, **change}))
        assert opened(root).state == "rebuilt"
    (entry / "dataset.json").write_text("[]")
    assert opened(root).state == "rebuilt"


def test_copies_are_counted_among_any_number_of_classes(tmp_path: Path) -> None:
    names = [f"{number:03}" for number in range(300)]
    root = write_class_folders(tmp_path / "mine", names, train=1, test=1, size=(4, 4))
    for name in ("007", "263"):  # 256 apart: one byte would not tell these labels apart
        shutil.copy(root / "train/000/000.png", root / "train" / name / "copy.png")
    data = opened(root, 4).dataset
    assert lines_of(data)[-1] == "1 different images occur with more than one label"
    assert len(number_images(data.train.images)[0]) == 302


# --- what is refused ------------------------------------------------------------------------------


def refusal(root: Path | None) -> str:
    with pytest.raises(InputError) as refused:
        opened(root)
    line = str(refused.value)
    assert "\n" not in line
    assert len(line) < 400
    return line


def test_classes_that_differ_are_named(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "mine", SEVEN)
    (root / "test/rose").rename(root / "test/roses")
    shutil.rmtree(root / "test/daisy")
    line = (
        "train/ and test/ must hold the same classes; only train/ has daisy, rose; only test/ has "
        "roses"
    )
    assert refusal(root) == f"data.root={root}: {line}"
    assert refusal(zipped(root, tmp_path / "a.zip")).endswith(line)


@pytest.mark.parametrize("count", [1, 1001])
def test_so_few_or_so_many_classes_are_refused(tmp_path: Path, count: int) -> None:
    root = tmp_path / "mine"
    for split in ("train", "test"):
        for number in range(count):
            (root / split / str(number)).mkdir(parents=True)
            (root / split / str(number) / "0.png").touch()
    assert refusal(root).endswith(f"train/ and test/ hold {count} classes; must be 2 to 1,000")


def test_many_classes_that_differ_are_counted(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    for split in ("train", "test"):
        for number in range(50):
            (root / split / f"{split}{number:02}").mkdir(parents=True)
    assert "only train/ has train00, train01, train02, train03, train04 and 45 more;" in refusal(
        root
    )


def test_a_name_that_can_not_be_printed_is_refused(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "mine", ["a", "b\x1b[31m"])
    assert refusal(root).endswith(r"'b\x1b[31m' is no name for a class; rename the folder")


def test_a_root_is_needed_and_told_what_it_must_be(tmp_path: Path) -> None:
    wanted = "a folder or a .zip with train/<class>/ and test/<class>/"
    assert refusal(None) == f"data.root=null: data=folders needs {wanted}"
    (tmp_path / "empty").mkdir()
    for root, reason in {
        tmp_path / "nowhere": f"does not exist; data.root must be {wanted}",
        tmp_path / "empty": f"holds no class folders (it is empty); data.root must be {wanted}",
    }.items():
        assert refusal(root) == f"data.root={root}: {reason}"
    file = tmp_path / "a.tar.gz"
    file.write_bytes(b"no zip")
    assert refusal(file).endswith("is not a .zip with train/<class>/ and test/<class>/")


def test_cifar10_keeps_wanting_its_own(tmp_path: Path, open_fake) -> None:  # type: ignore[no-untyped-def]
    root = write_class_folders(tmp_path / "mine", SEVEN)
    with pytest.raises(InputError, match=re.escape("(data=folders takes any classes)")):
        open_fake(root)
    other = write_class_folders(tmp_path / "ten", CLASSES)
    assert open_fake(other).dataset.digest == opened(other).dataset.digest
    large = write_class_folders(tmp_path / "large", CLASSES, size=(40, 40))
    with pytest.raises(InputError, match="is 40x40 pixels; images must be 32x32"):
        open_fake(large)


def test_an_entry_of_before_still_loads(tmp_path: Path, open_fake, fake) -> None:  # type: ignore[no-untyped-def]
    root = fake.write_pickles(tmp_path / "data")
    entry = open_fake(root).entry
    described = json.loads((entry / "dataset.json").read_text())
    before = {key: described[key] for key in ("layout", "fingerprints", "images")}
    (entry / "dataset.json").write_text(json.dumps(before))
    found = open_fake(root)
    assert (found.state, found.dataset.classes) == ("ok", CLASSES)
    assert (found.dataset.name, found.dataset.digest) == ("cifar10", fake.digest)
