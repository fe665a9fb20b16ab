"""Where CIFAR-10 is found, what is cached, and when the cache may be used."""

from __future__ import annotations

import logging
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cifar_lab.data.dataset import digest_of, split_digest
from cifar_lab.data.fetch.cache import Entry, cache_folder
from cifar_lab.data.fetch.locate import Fetching, open_from, verify_cache
from cifar_lab.errors import InputError
from tests.data.conftest import Fake, Folders, OpenFake, Serve

JPEG_ZIP = Path("../shared/data/cifar10-jpeg.zip").absolute()

pytestmark = pytest.mark.usefixtures("empty_home")


@pytest.fixture(autouse=True)
def warnings_only(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="cifar_lab.data")


def flip_byte(path: Path, position: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


# --- a root that was given -------------------------------------------------------------------


def test_every_official_layout_gives_the_same_data_and_shares_one_entry(
    fake: Fake, open_fake: OpenFake, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = fake.write_archive(tmp_path / "a").parent
    roots = {
        "archive": [folder, folder / fake.archive.name],
        "pickles": [
            fake.write_pickles(tmp_path / "b"),
            fake.write_pickles(tmp_path / "c" / fake.archive.folder).parent,
        ],
    }
    entries = set()
    for layout, paths in roots.items():
        for path in paths:
            for _ in range(2):
                opened = open_fake(path)
                data = opened.dataset
                assert (data.name, data.layout, data.official) == ("cifar10", layout, True)
                assert data.digest == fake.digest
                np.testing.assert_array_equal(data.train.images, fake.train.images)
                np.testing.assert_array_equal(data.test.labels, fake.test.labels)
                entries.add(opened.entry)
    assert len(entries) == 1
    assert open_fake(None).dataset.digest == fake.digest
    assert not caplog.records


def test_class_folders_and_a_zip_are_not_official_and_give_one_digest(
    class_folders: Folders, open_fake: OpenFake, tmp_path: Path
) -> None:
    path = Path(shutil.make_archive(str(tmp_path / "images"), "zip", class_folders.root))
    folder, zipped = open_fake(class_folders.root), open_fake(path)
    assert (folder.dataset.layout, zipped.dataset.layout) == ("folders", "zip")
    assert folder.dataset.official is zipped.dataset.official is False
    assert folder.dataset.digest == zipped.dataset.digest == class_folders.digest
    assert folder.entry != zipped.entry
    assert (open_fake(class_folders.root).state, open_fake(path).state) == ("ok", "ok")


def test_archive_stands_in_for_damaged_pickles_beside_it(
    fake: Fake, open_fake: OpenFake, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = fake.write_archive(tmp_path / "data").parent
    pickles = fake.write_pickles(root / fake.archive.folder)
    flip_byte(pickles / "test_batch")
    opened = open_fake(root)
    assert opened.dataset.layout == "archive"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "test_batch: has MD5" in caplog.text


def test_damaged_pickles_are_not_passed_over_for_class_folders(
    fake: Fake, open_fake: OpenFake, class_folders: Folders, tmp_path: Path
) -> None:
    pickles = fake.write_pickles(class_folders.root / fake.archive.folder)
    flip_byte(pickles / "test_batch")
    with pytest.raises(InputError, match="test_batch: has MD5"):
        open_fake(class_folders.root)


def test_official_root_that_went_bad_is_wrong_input_though_the_cache_is_whole(
    fake: Fake, open_fake: OpenFake, tmp_path: Path
) -> None:
    root = fake.write_pickles(tmp_path / "data")
    open_fake(root)
    flip_byte(root / "data_batch_5")
    with pytest.raises(InputError, match=f"^data.root={root}: {root}/data_batch_5: has MD5"):
        open_fake(root)


def test_root_without_data_is_told_what_is_there_and_what_is_wanted(
    open_fake: OpenFake, tmp_path: Path
) -> None:
    (tmp_path / "root" / "photos").mkdir(parents=True)
    (tmp_path / "root" / "a.txt").touch()
    for root, reason in {
        tmp_path / "root": r"holds no CIFAR-10 \(there is a.txt, photos/\); data.root must be",
        tmp_path / "root" / "photos": r"holds no CIFAR-10 \(it is empty\)",
        tmp_path / "nowhere": "does not exist",
        tmp_path / "root" / "a.txt": "is neither cifar-10-python.tar.gz nor a .zip",
    }.items():
        with pytest.raises(InputError, match=f"^data.root={root}: {reason}") as caught:
            open_fake(root)
        assert "\n" not in str(caught.value)
    assert not cache_folder(None).exists()


def test_given_root_never_leads_to_fetching_or_to_the_cache(
    fake: Fake, open_fake: OpenFake, tmp_path: Path, serve: Serve
) -> None:
    server = serve(fake.content)
    open_fake(fake.write_pickles(tmp_path / "data"))
    with pytest.raises(InputError, match="does not exist"):
        open_fake(tmp_path / "gone", offline=False, sources=[server.url("whole")])
    assert server.requests == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_root_is_wrong_input(fake: Fake, open_fake: OpenFake, tmp_path: Path) -> None:
    root = fake.write_pickles(tmp_path / "data")
    (root / "data_batch_1").chmod(0)
    with pytest.raises(InputError, match=r"data_batch_1 can't be read \(Permission denied\)"):
        open_fake(root)


# --- no root ---------------------------------------------------------------------------------


@pytest.mark.parametrize("root", [None, ""])
def test_what_torchvision_left_in_data_is_found(
    fake: Fake, open_fake: OpenFake, empty_home: Path, root: str | None
) -> None:
    fake.write_pickles(empty_home / "data" / fake.archive.folder)
    opened = open_fake(root)
    assert opened.dataset.official
    assert opened.dataset.digest == fake.digest
    shutil.rmtree(empty_home / "data")
    assert open_fake(root).state == "ok"


def test_what_keras_left_is_found(fake: Fake, open_fake: OpenFake) -> None:
    fake.write_pickles(Path("~/.keras/datasets/cifar-10-batches-py").expanduser())
    assert open_fake().dataset.layout == "pickles"


def test_unsound_finds_are_passed_over_with_a_line_each(
    fake: Fake, open_fake: OpenFake, empty_home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flip_byte(fake.write_pickles(empty_home / "data" / fake.archive.folder) / "test_batch")
    fake.write_archive(empty_home / "data")
    assert open_fake().dataset.layout == "archive"
    assert len(caplog.records) == 1
    assert "test_batch: has MD5" in caplog.text


def test_class_folders_in_data_are_not_taken_for_cifar10(
    open_fake: OpenFake, class_folders: Folders, empty_home: Path
) -> None:
    class_folders.root.rename(empty_home / "data")
    with pytest.raises(InputError, match=r"^data.offline=true: CIFAR-10 is not on this machine"):
        open_fake()


def test_offline_opens_no_socket_and_names_every_way_out(
    open_fake: OpenFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = []

    def connect(*args: object) -> None:
        attempts.append(args)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket.socket, "connect", connect)
    with pytest.raises(InputError, match=r"data.root .*data.offline=false .*data=synthetic"):
        open_fake(sources=["http://127.0.0.1:9/x"])
    assert not attempts
    assert not cache_folder(None).exists()
    with pytest.raises(InputError, match="no connection"):
        open_fake(sources=["http://127.0.0.1:9/x"], offline=False)
    assert attempts


def test_public_entry_refuses_what_is_not_official(fake: Fake, tmp_path: Path) -> None:
    root = fake.write_pickles(tmp_path / "data")
    offline = Fetching(offline=True, sources=[], min_rate=0, stall_s=1)
    with pytest.raises(InputError, match="c99cafc152244af753f735de768cd75f"):
        open_from(root=str(root), cache=None, fetching=offline)


# --- the cache -------------------------------------------------------------------------------


def test_cached_arrays_are_read_only_maps_of_one_file(
    open_fake: OpenFake, class_folders: Folders
) -> None:
    opened = open_fake(class_folders.root)
    for split in (opened.dataset.train, opened.dataset.test):
        assert split.images.flags.c_contiguous
        assert not split.images.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            split.labels[0] = 0
    assert (opened.entry / "test.bin").stat().st_size == 10 * 3073


def test_digests_are_those_of_the_files_and_of_the_arrays(
    open_fake: OpenFake, class_folders: Folders
) -> None:
    opened = open_fake(class_folders.root)
    sums = (opened.entry / "SHA256SUMS").read_text().split()
    assert sums[1::2] == ["train.bin", "test.bin"]
    assert sums[::2] == [split_digest(opened.dataset.train), split_digest(opened.dataset.test)]
    assert opened.dataset.digest == digest_of(*sums[::2])
    if tool := shutil.which("sha256sum"):
        subprocess.run([tool, "-c", "SHA256SUMS"], cwd=opened.entry, check=True)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "first pixel of train": lambda entry: flip_byte(entry / "train.bin", 0),
    "last label of test": lambda entry: flip_byte(entry / "test.bin", -1),
    "a digest": lambda entry: flip_byte(entry / "SHA256SUMS", 0),
    "a digest's name": lambda entry: flip_byte(entry / "SHA256SUMS", -2),
    "dataset.json": lambda entry: flip_byte(entry / "dataset.json", 0),
    "count": lambda entry: (entry / "dataset.json").write_text(
        (entry / "dataset.json").read_text().replace(": 20", ": 30")
    ),
    "truncated": lambda entry: os.truncate(entry / "train.bin", 3073),
    "empty": lambda entry: os.truncate(entry / "test.bin", 0),
    "missing file": lambda entry: (entry / "test.bin").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_cache_is_rebuilt_with_one_warning(
    open_fake: OpenFake,
    class_folders: Folders,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], object],
) -> None:
    entry = open_fake(class_folders.root).entry
    damage(entry)
    again = open_fake(class_folders.root)
    assert again.state == "rebuilt"
    assert again.dataset.digest == class_folders.digest
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "damaged" in caplog.text
    assert open_fake(class_folders.root).state == "ok"


def test_damaged_cache_is_never_used_when_the_source_is_damaged_too(
    open_fake: OpenFake, class_folders: Folders, tmp_path: Path
) -> None:
    entry = open_fake(class_folders.root).entry
    flip_byte(entry / "train.bin", 5)
    image = class_folders.root / "test/cat/0003.png"
    stat = image.stat()
    flip_byte(image, 60)
    os.utime(image, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(InputError, match=re.escape(str(image))):
        open_fake(class_folders.root)


def test_damaged_official_cache_is_rebuilt_from_where_it_came_without_a_root(
    fake: Fake, open_fake: OpenFake, tmp_path: Path
) -> None:
    entry = open_fake(fake.write_pickles(tmp_path / "data")).entry
    flip_byte(entry / "test.bin")
    assert open_fake().state == "rebuilt"
    flip_byte(entry / "test.bin")
    shutil.rmtree(tmp_path / "data")
    with pytest.raises(InputError, match=r"damaged: test.bin"):
        open_fake()


def test_changed_source_is_noticed_and_decoded_again(
    open_fake: OpenFake, class_folders: Folders, caplog: pytest.LogCaptureFixture
) -> None:
    before = open_fake(class_folders.root).dataset
    image = class_folders.root / "train/horse/0017.png"
    Image.new("RGB", (32, 32), "red").save(image)
    after = open_fake(class_folders.root)
    assert after.state == "rebuilt"
    assert after.dataset.digest != before.digest
    assert (after.dataset.train.images[17] == np.array([255, 0, 0])[:, None, None]).all()
    assert "has changed since it was cached" in caplog.text
    # what was mapped before stays what it was
    assert split_digest(before.train) == split_digest(class_folders.train)


def test_what_a_crash_left_half_written_is_written_over_without_a_word(
    open_fake: OpenFake, class_folders: Folders, caplog: pytest.LogCaptureFixture
) -> None:
    entry = open_fake(class_folders.root).entry
    (entry / "dataset.json").unlink()
    (entry / "test.bin").unlink()
    (entry / "test.bin.part").write_bytes(b"half")
    assert open_fake(class_folders.root).state == "built"
    assert sorted(path.name for path in entry.iterdir()) == [
        "SHA256SUMS",
        "dataset.json",
        "test.bin",
        "train.bin",
    ]
    assert not caplog.records


def test_crash_while_a_changed_source_is_cached_does_not_mix_old_and_new(
    open_fake: OpenFake, class_folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_fake(class_folders.root)
    shutil.copytree(class_folders.root, tmp_path / "before")
    Image.new("RGB", (32, 32), "red").save(class_folders.root / "train/horse/0014.png")
    with monkeypatch.context() as crash:
        crash.setattr(Entry, "_write_origin", lambda *_: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            open_fake(class_folders.root)
    shutil.rmtree(class_folders.root)
    (tmp_path / "before").rename(class_folders.root)  # with the times that it had
    assert open_fake(class_folders.root).dataset.digest == class_folders.digest


def test_cache_folder_follows_the_argument_then_xdg_then_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cache_folder(str(tmp_path / "mine")) == tmp_path / "mine"
    assert cache_folder(None) == Path(os.environ["XDG_CACHE_HOME"]) / "cifar_lab"
    for unset in ("", "relative/is/to/be/ignored"):
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert cache_folder(None) == Path.home() / ".cache" / "cifar_lab"


def test_cache_that_cannot_be_made_names_the_key(
    open_fake: OpenFake, class_folders: Folders, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    cache = tmp_path / "file" / "cache"
    with pytest.raises(InputError, match=f"^data.cache={cache}: can't be written"):
        open_fake(class_folders.root, cache=cache)


def test_full_disk_names_the_key_and_leaves_nothing(
    open_fake: OpenFake, class_folders: Folders
) -> None:
    # the system's limit on a file's size: the same OSError out of write() as on a full disk
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
    try:
        with pytest.raises(InputError, match=r"^data.cache=.*: can't be written \(File too large"):
            open_fake(class_folders.root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(cache_folder(None).rglob("*.part")) == []
    assert open_fake(class_folders.root).state == "built"


def test_waiting_for_another_process_is_said_once(
    open_fake: OpenFake, class_folders: Folders, caplog: pytest.LogCaptureFixture
) -> None:
    entry = Entry(cache_folder(None), open_fake(class_folders.root).entry.name)
    flip_byte(entry.folder / "test.bin")
    opened = []
    with entry.lock():
        thread = threading.Thread(target=lambda: opened.append(open_fake(class_folders.root)))
        thread.start()
        deadline = time.monotonic() + 30
        while "waiting for another process" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert not opened
    thread.join()
    assert opened[0].state == "rebuilt"
    assert caplog.text.count("waiting for another process") == 1


# --- verifying it all ------------------------------------------------------------------------


def test_verify_says_ok_rebuilt_or_why_not(
    fake: Fake, open_fake: OpenFake, class_folders: Folders, tmp_path: Path
) -> None:
    kept = open_fake(fake.write_pickles(tmp_path / "data")).entry
    folders = open_fake(class_folders.root).entry
    names = {kept.name, folders.name}
    states = dict(verify_cache(cache=None, archives=[fake.archive]))
    assert states == dict.fromkeys(names, "ok")
    flip_byte(kept / "train.bin")
    flip_byte(folders / "train.bin")
    states = dict(verify_cache(cache=None, archives=[fake.archive]))
    assert states == dict.fromkeys(names, "rebuilt")
    flip_byte(kept / "train.bin")
    flip_byte(folders / "train.bin")
    shutil.rmtree(tmp_path / "data")
    shutil.rmtree(class_folders.root)
    states = dict(verify_cache(cache=None, archives=[fake.archive]))
    assert states.keys() == names
    for state in states.values():
        assert state.startswith("damaged: train.bin does not have the SHA-256")
    assert "does not exist" in states[folders.name]
    assert "data.root" in states[kept.name]


def test_verify_needs_no_source_while_the_digests_hold(
    open_fake: OpenFake, class_folders: Folders
) -> None:
    open_fake(class_folders.root)
    shutil.rmtree(class_folders.root)
    assert [state for _, state in verify_cache(cache=None)] == ["ok"]


# --- real images -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not JPEG_ZIP.exists(), reason="the real images are not beside the project")
def test_real_images_open_twice_and_have_the_published_means(
    open_fake: OpenFake, tmp_path: Path
) -> None:
    opened = open_fake(JPEG_ZIP)
    data = opened.dataset
    assert (len(data.train), len(data.test)) == (50_000, 10_000)
    assert np.bincount(data.train.labels).tolist() == [5_000] * 10
    mean = data.train.images.mean((0, 2, 3)) / 255
    np.testing.assert_allclose(mean, [0.4913, 0.4821, 0.4465], atol=5e-5)
    with zipfile.ZipFile(JPEG_ZIP) as archive, archive.open("test/cat/0001.jpg") as file:
        expected = np.asarray(Image.open(file)).transpose(2, 0, 1)
    assert (data.test.images[data.test.labels == 3] == expected).all((1, 2, 3)).sum() == 1
    assert (open_fake(JPEG_ZIP).state, opened.state) == ("ok", "built")
    shutil.rmtree(opened.entry)
