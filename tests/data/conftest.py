"""A small archive in the official format, class folders, and a server on loopback."""

from __future__ import annotations

import hashlib
import io
import struct
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cifar_lab.data.dataset import CLASSES, Split, digest_of, split_digest
from cifar_lab.data.fetch.archive import Archive
from cifar_lab.data.fetch.locate import Fetching, Opened, open_from


def random_split(count: int, rng: np.random.Generator) -> Split:
    pixels = rng.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    return Split(pixels, rng.permutation(np.arange(count, dtype=np.uint8) % 10))


def python2_pickle(split: Split) -> bytes:
    """The batch as the official files hold it: protocol 2, written by Python 2 and its NumPy."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    count = len(split)
    labels = b"](" + b"".join(b"K" + bytes([label]) for label in split.labels) + b"e"
    shape = b"M" + struct.pack("<H", count) + b"M" + struct.pack("<H", 3072) + b"\x86"
    dtype = (
        b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    pixels = split.images.tobytes()
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R" + (
        b"(K\x01" + shape + dtype + b"\x89T" + struct.pack("<i", len(pixels)) + pixels + b"tb"
    )
    pairs = (text(b"batch_label") + text(b"a batch")) + text(b"labels") + labels
    return b"\x80\x02}(" + pairs + text(b"data") + array + b"u."


@dataclass
class Fake:
    """A data set in the official format that isn't the official one."""

    archive: Archive
    content: bytes
    batches: dict[str, bytes]
    train: Split
    test: Split

    @property
    def digest(self) -> str:
        return digest_of(split_digest(self.train), split_digest(self.test))

    def write_archive(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / self.archive.name
        path.write_bytes(self.content)
        return path

    def write_pickles(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.batches.items():
            (folder / name).write_bytes(content)
        return folder


def make_fake(seed: int, batch: int = 20) -> Fake:
    rng = np.random.default_rng(seed)
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    splits = {name: random_split(batch, rng) for name in names}
    batches = {name: python2_pickle(split) for name, split in splits.items()}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        # the official archive's members come in no order, with others between them
        for name in ["batches.meta", *reversed(names), "readme.html"]:
            content = batches.get(name, b"something else")
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    content = buffer.getvalue()
    md5s = {name: hashlib.md5(content).hexdigest() for name, content in batches.items()}
    md5 = hashlib.md5(content).hexdigest()
    archive = Archive("cifar-10-python.tar.gz", len(content), md5, md5s)
    train = [splits[name] for name in names[:-1]]
    joined = Split(
        np.concatenate([part.images for part in train]),
        np.concatenate([part.labels for part in train]),
    )
    return Fake(archive, content, batches, joined, splits["test_batch"])


@pytest.fixture(scope="session")
def fake() -> Fake:
    return make_fake(seed=0)


@pytest.fixture(scope="session")
def other_fake() -> Fake:
    return make_fake(seed=1)


@dataclass
class Folders:
    """Class folders with two training images and one test image per class."""

    root: Path
    train: Split
    test: Split

    @property
    def digest(self) -> str:
        return digest_of(split_digest(self.train), split_digest(self.test))


@pytest.fixture
def class_folders(tmp_path: Path) -> Folders:
    return write_class_folders(tmp_path / "images")


def write_class_folders(root: Path, seed: int = 0) -> Folders:
    rng = np.random.default_rng(seed)
    splits = {}
    for name, each in (("train", 2), ("test", 1)):
        pixels = rng.integers(0, 256, (10 * each, 3, 32, 32), dtype=np.uint8)
        labels = np.tile(np.arange(10, dtype=np.uint8), each)
        for index, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            folder = root / name / CLASSES[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{index:04}.png")
        splits[name] = Split(pixels, labels)
    return Folders(root, splits["train"], splits["test"])


@pytest.fixture
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory and a home that hold no data, and no proxy on the way to loopback."""
    home = tmp_path / "home" / "work"
    home.mkdir(parents=True)
    monkeypatch.chdir(home)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CIFAR_LAB_DATA", raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return home


@dataclass
class Server:
    """A server whose answer is chosen by the first part of the path: ``/cut/anything``.

    Attributes:
        content: the file that it has.
        requests: (path, Range header or "") of each request so far.
        stop: set when the server ends; answers that hang wait for it.
    """

    content: bytes
    port: int = 0
    requests: list[tuple[str, str]] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def url(self, answer: str) -> str:
        return f"http://127.0.0.1:{self.port}/{answer}/cifar-10-python.tar.gz"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_data: Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        data = self.server_data
        data.requests.append((self.path, self.headers.get("Range", "")))
        answer = self.path.removeprefix("http://cifar.invalid").split("/")[1]
        with suppress(BrokenPipeError, ConnectionResetError):  # the client had enough
            getattr(self, f"answer_{answer}")()

    def end_headers(self) -> None:
        self.send_header("Connection", "close")  # some answers end early on purpose
        super().end_headers()

    def start(self, content: bytes, *, ranges: bool = True) -> bytes:
        """Sends the head; returns the body that is to follow."""
        asked = self.headers.get("Range", "")
        begin = int(asked.removeprefix("bytes=").rstrip("-")) if asked and ranges else 0
        self.send_response(206 if begin else 200)
        if begin:
            last = len(content) - 1
            self.send_header("Content-Range", f"bytes {begin}-{last}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        return content[begin:]

    def send_status(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def answer_whole(self) -> None:
        self.wfile.write(self.start(self.server_data.content))

    def answer_paced(self) -> None:
        """Whole, in 20 pieces over 0.4 s."""
        body = self.start(self.server_data.content)
        step = len(body) // 20 + 1
        for begin in range(0, len(body), step):
            self.wfile.write(body[begin : begin + step])
            self.server_data.stop.wait(0.02)

    def answer_trickle(self) -> None:
        """100 bytes/s, so that something always comes."""
        for byte in self.start(self.server_data.content):
            self.wfile.write(bytes([byte]))
            if self.server_data.stop.wait(0.01):
                return

    def answer_stalled(self) -> None:
        body = self.start(self.server_data.content)
        self.wfile.write(body[: len(body) // 3])
        self.server_data.stop.wait()

    def answer_silent(self) -> None:
        self.server_data.stop.wait()

    def first_time(self) -> bool:
        return [path for path, _ in self.server_data.requests].count(self.path) == 1

    def answer_cut(self) -> None:
        """Breaks off half-way, the first time."""
        body = self.start(self.server_data.content)
        self.wfile.write(body[: len(body) // 2] if self.first_time() else body)

    def answer_eighths(self) -> None:
        """Breaks off after an eighth of the file, every time."""
        content = self.server_data.content
        self.wfile.write(self.start(content)[: len(content) // 8 + 1])

    def answer_longer(self) -> None:
        self.wfile.write(self.start(self.server_data.content + b"more"))

    def answer_drip(self) -> None:
        """Breaks off after 100 bytes, every time."""
        self.wfile.write(self.start(self.server_data.content)[:100])

    def answer_wrong(self) -> None:
        self.wfile.write(self.start(bytes(len(self.server_data.content))))

    def answer_wrongcut(self) -> None:
        """Half of something else, then nothing any more."""
        if self.first_time():
            body = self.start(bytes(len(self.server_data.content)))
            self.wfile.write(body[: len(body) // 2])
        else:
            self.send_status(404)

    def answer_page(self) -> None:
        self.wfile.write(self.start(b"<html>please accept our terms</html>", ranges=False))

    def answer_endless(self) -> None:
        """No Content-Length, and more than there should be."""
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.server_data.content + b"more")

    def answer_noranges(self) -> None:
        self.wfile.write(self.start(self.server_data.content, ranges=False))

    def answer_refuserange(self) -> None:
        if "Range" in self.headers:
            self.send_status(416)
        else:
            self.answer_whole()

    def answer_missing(self) -> None:
        self.send_status(404)

    def answer_busy(self) -> None:
        self.send_status(503, Retry_After="0")

    def answer_busyonce(self) -> None:
        if self.first_time():
            self.send_status(503, Retry_After="0")
        else:
            self.answer_whole()

    def answer_redirect(self) -> None:
        self.send_status(302, Location=self.path.replace("redirect", "whole"))

    def answer_official(self) -> None:
        """As if the official archive began: a length, some bytes, then nothing."""
        self.send_response(200)
        self.send_header("Content-Length", "170498071")
        self.end_headers()
        self.wfile.write(b"begin")
        self.server_data.stop.wait()


@pytest.fixture
def serve(empty_home: Path) -> Iterator[Callable[[bytes], Server]]:
    """Starts servers on loopback for the length of the test."""
    running: list[tuple[ThreadingHTTPServer, Server]] = []

    def start(content: bytes) -> Server:
        data = Server(content)
        handler = type("Handler", (_Handler,), {"server_data": data})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        data.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        running.append((server, data))
        return data

    yield start
    for server, data in running:
        data.stop.set()
        server.shutdown()
        server.server_close()


@pytest.fixture
def open_fake(fake: Fake) -> Callable[..., Opened]:
    """`open_from` for the small archive; what isn't said is offline and without a root."""

    def open_it(root: Path | str | None = None, *, data: Fake = fake, **given: Any) -> Opened:
        cache = given.pop("cache", None)
        fetching = {"offline": True, "sources": [], "min_rate": 0, "stall_s": 5} | given
        return open_from(
            root=None if root is None else str(root),
            cache=None if cache is None else str(cache),
            fetching=Fetching(**fetching),
            archive=data.archive,
        )

    return open_it
