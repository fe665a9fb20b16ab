"""The server of a run in a thread of this process, and requests to it."""

from __future__ import annotations

import http.client
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cifar_lab.config.port import HOST, listen, port_of
from cifar_lab.inference.serving.answers import Answers, Example
from cifar_lab.inference.serving.app import Limits, create_app
from cifar_lab.inference.serving.server import serving
from cifar_lab.run.load import Run

BOUNDARY = "a-boundary"
FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
RAW = {"Content-Type": "image/png"}


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def fields(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.content)
        return found

    @property
    def error(self) -> str:
        assert set(self.fields) == {"error"}
        said: str = self.fields["error"]
        assert said.splitlines() == [said]
        return said


@contextmanager
def serving_here(
    run: Run, *, examples: Sequence[Example] = (), limits: Limits | None = None
) -> Iterator[int]:
    """Its port."""
    answers = Answers(run)
    with listen(None, first=0) as listener:
        port = port_of(listener)
        app = create_app(run, answers, port=port, examples=examples, limits=limits)
        try:
            with serving(app, listener) as ended:
                yield port
            assert ended.is_set()
        finally:
            answers.close()


def asked(
    port: int,
    path: str = "/predict",
    content: bytes | None = None,
    headers: Mapping[str, str] = RAW,
    *,
    method: str | None = None,
) -> Reply:
    """The reply to one request; a POST where it has content."""
    connection = http.client.HTTPConnection(HOST, port, timeout=20)
    try:
        method = method or ("GET" if content is None else "POST")
        connection.request(method, path, content, dict(headers))
        return replied(connection)
    finally:
        connection.close()


def replied(connection: http.client.HTTPConnection) -> Reply:
    answer = connection.getresponse()
    return Reply(answer.status, dict(answer.getheaders()), answer.read())


def form(*parts: tuple[str, str | None, bytes]) -> bytes:
    """Of (field, file's name, content); None: no file."""
    lines = b""
    for field, name, content in parts:
        file = "" if name is None else f'; filename="{name}"'
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"{file}\r\n\r\n'
        lines += head.encode() + content + b"\r\n"
    return lines + f"--{BOUNDARY}--\r\n".encode()


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Of pixels (3, H, W)."""
    content = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(content, "PNG")
    return content.getvalue()


def bomb() -> bytes:
    """A PNG of some hundred bytes that says it has 40,000x40,000 pixels."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(100_000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )
