"""The official archive and its pickles: nothing is unpickled that isn't theirs."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cifar_lab.data.fetch.archive import OFFICIAL, read_archive, read_pickles
from cifar_lab.errors import InputError
from tests.data.conftest import Fake


def test_archive_and_pickles_give_the_pixels_and_labels_that_went_in(
    fake: Fake, tmp_path: Path
) -> None:
    path = fake.write_archive(tmp_path)
    folder = fake.write_pickles(tmp_path / "batches")
    for train, test in (read_archive(path, fake.archive), read_pickles(folder, fake.archive)):
        for read, written in ((train, fake.train), (test, fake.test)):
            assert read.images.dtype == read.labels.dtype == np.uint8
            np.testing.assert_array_equal(read.images, written.images)
            np.testing.assert_array_equal(read.labels, written.labels)


def test_checksums_are_torchvisions() -> None:
    cifar = pytest.importorskip("torchvision.datasets").CIFAR10
    assert OFFICIAL.name == cifar.filename
    assert OFFICIAL.md5 == cifar.tgz_md5
    assert OFFICIAL.folder == cifar.base_folder
    assert list(OFFICIAL.members.items()) == [tuple(pair) for pair in cifar.train_list] + [
        tuple(pair) for pair in cifar.test_list
    ]


@pytest.mark.parametrize("name", ["data_batch_1", "data_batch_4", "test_batch"])
def test_altered_or_truncated_pickle_is_named_with_both_md5s(
    fake: Fake, tmp_path: Path, name: str
) -> None:
    content = fake.batches[name]
    for wrong in (content[:-1], content[:9] + b"?" + content[10:], b""):
        folder = fake.write_pickles(tmp_path)
        (folder / name).write_bytes(wrong)
        with pytest.raises(InputError) as caught:
            read_pickles(folder, fake.archive)
        message = str(caught.value)
        assert str(folder / name) in message
        assert hashlib.md5(wrong).hexdigest() in message
        assert fake.archive.members[name] in message
        assert "\n" not in message


def test_missing_pickles_are_named(fake: Fake, tmp_path: Path) -> None:
    folder = fake.write_pickles(tmp_path)
    (folder / "data_batch_2").unlink()
    (folder / "test_batch").unlink()
    with pytest.raises(InputError, match=r"lacks data_batch_2, test_batch"):
        read_pickles(folder, fake.archive)


def test_altered_archive_is_refused_before_it_is_unpacked(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_tar(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("unpacked")

    monkeypatch.setattr(tarfile, "open", no_tar)
    path = fake.write_archive(tmp_path)
    middle = len(fake.content) // 2
    path.write_bytes(fake.content[:middle] + b"?" + fake.content[middle + 1 :])
    with pytest.raises(InputError, match=f"has {fake.archive.md5}: it is altered"):
        read_archive(path, fake.archive)
    path.write_bytes(fake.content[:middle])
    with pytest.raises(InputError, match=rf"has {middle} bytes, .* has {len(fake.content)}"):
        read_archive(path, fake.archive)


def test_member_with_a_wrong_md5_is_refused_though_the_archive_is_right(
    fake: Fake, tmp_path: Path
) -> None:
    path = fake.write_archive(tmp_path)
    wrong = replace(fake.archive, members={**fake.archive.members, "data_batch_3": "0" * 32})
    with pytest.raises(InputError, match=re.escape(f"{path}!data_batch_3: has MD5")):
        read_archive(path, wrong)


def test_archive_without_a_member_names_it(fake: Fake, tmp_path: Path) -> None:
    path = fake.write_archive(tmp_path)
    wrong = replace(fake.archive, members={**fake.archive.members, "data_batch_6": "0" * 32})
    with pytest.raises(InputError, match="lacks data_batch_6"):
        read_archive(path, wrong)


class _Attack:
    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self.mark,)


def test_a_pickle_cannot_run_code_even_with_the_right_md5(fake: Fake, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    folder = fake.write_pickles(tmp_path / "batches")
    content = pickle.dumps(_Attack(str(mark)), protocol=2)
    (folder / "data_batch_1").write_bytes(content)
    md5 = hashlib.md5(content).hexdigest()
    fooled = replace(fake.archive, members={**fake.archive.members, "data_batch_1": md5})
    with pytest.raises(InputError, match=r"mkdir: has no place in a CIFAR batch"):
        read_pickles(folder, fooled)
    assert not mark.exists()
