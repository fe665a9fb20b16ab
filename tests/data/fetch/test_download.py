"""Fetching, against a server on loopback that this file's tests start."""

from __future__ import annotations

import json
import logging
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from cifar_lab.data.fetch.cache import cache_folder
from cifar_lab.data.fetch.download import fetch
from cifar_lab.errors import InputError
from tests.data.conftest import Fake, OpenFake, Serve, Server

NAME = "cifar-10-python.tar.gz"


@pytest.fixture(autouse=True)
def all_messages(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="cifar_lab.data")


@dataclass
class Fetched:
    """Fetches from the named answers of one server into one folder."""

    fake: Fake
    server: Server
    folder: Path

    @property
    def part(self) -> Path:
        return self.folder / f"{NAME}.part"

    def __call__(self, *answers: str, min_rate: float = 0, stall_s: float = 5) -> Path:
        urls = [self.server.url(answer) for answer in answers]
        archive = self.fake.archive
        path = fetch(archive, urls, self.folder, min_rate=min_rate, stall_s=stall_s)
        assert path.read_bytes() == self.fake.content
        assert [file.name for file in self.folder.iterdir()] == [NAME]
        return path


@pytest.fixture
def fetched(fake: Fake, serve: Serve, tmp_path: Path) -> Fetched:
    folder = tmp_path / "downloads"
    folder.mkdir()
    return Fetched(fake, serve(fake.content), folder)


def ranges(server: Server) -> list[str]:
    return [asked for _, asked in server.requests]


def dropped(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize("answer", ["whole", "paced", "busyonce", "redirect", "cut", "noranges"])
def test_sound_source_delivers_without_a_complaint(
    fetched: Fetched, caplog: pytest.LogCaptureFixture, answer: str
) -> None:
    fetched(answer)
    assert dropped(caplog) == []


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("missing", r"404 Not Found"),
        ("busy", r"503 Service Unavailable"),
        ("stalled", r"no answer for 0.3 s"),
        ("silent", r"no answer for 0.3 s"),
        ("trickle", r"0.1 kB/s over 0.3 s, less than data.min_rate=20000"),
        ("wrong", r"sends something else \(its MD5 is not "),
        ("page", r"sends something else \(36 bytes, of unknown type\)"),
        ("drip", r"broke off \("),
        ("endless", r"sends something else \(more than \d+ bytes\)"),
    ],
)
def test_unsound_source_is_dropped_with_one_line_and_the_next_goes_on(
    fetched: Fetched, caplog: pytest.LogCaptureFixture, answer: str, reason: str
) -> None:
    fetched(answer, "whole", min_rate=20_000, stall_s=0.3)
    (line,) = dropped(caplog)
    assert re.fullmatch(
        rf"http://127.0.0.1:\d+/{answer}/{NAME}: {reason}.*; trying the next source", line
    )


def test_refused_connection_and_unknown_scheme_are_dropped(
    fetched: Fetched, fake: Fake, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        refusing = f"http://127.0.0.1:{free.getsockname()[1]}/{NAME}"
    urls = [refusing, "gopher://127.0.0.1/x", fetched.server.url("whole")]
    fetch(fake.archive, urls, fetched.folder, min_rate=0, stall_s=5)
    first, second = dropped(caplog)
    assert first == f"{refusing}: no connection (Connection refused); trying the next source"
    assert "gopher" in second


def test_slow_but_steady_source_is_kept_without_a_least_rate(
    fetched: Fetched, caplog: pytest.LogCaptureFixture
) -> None:
    fetched("paced", min_rate=0, stall_s=0.1)
    assert dropped(caplog) == []


def test_broken_off_transfer_goes_on_where_it_stopped(fetched: Fetched, fake: Fake) -> None:
    fetched("cut")
    assert ranges(fetched.server) == ["", f"bytes={len(fake.content) // 2}-"]


def test_next_source_goes_on_where_the_last_one_stopped(fetched: Fetched, fake: Fake) -> None:
    fetched("stalled", "whole", stall_s=0.2)
    assert ranges(fetched.server) == ["", f"bytes={len(fake.content) // 3}-"]


def test_next_call_goes_on_where_the_last_one_stopped(fetched: Fetched, fake: Fake) -> None:
    fetched.part.write_bytes(fake.content[:1000])
    fetched("whole")
    assert ranges(fetched.server) == ["bytes=1000-"]


def test_whole_part_is_taken_without_a_request(fetched: Fetched, fake: Fake) -> None:
    fetched.part.write_bytes(fake.content)
    fetched("whole")
    assert fetched.server.requests == []


def test_source_that_keeps_breaking_off_is_kept_while_it_gets_on(
    fetched: Fetched, caplog: pytest.LogCaptureFixture
) -> None:
    fetched("eighths")
    assert len(fetched.server.requests) == 8
    assert dropped(caplog) == []


def test_source_that_continues_another_file_is_dropped(
    fetched: Fetched, fake: Fake, caplog: pytest.LogCaptureFixture
) -> None:
    fetched.part.write_bytes(fake.content[:1000])
    fetched("longer", "whole")
    (line,) = dropped(caplog)
    assert "continues something else (bytes 1000-" in line


@pytest.mark.parametrize("answer", ["noranges", "refuserange"])
def test_source_that_cannot_continue_starts_over(
    fetched: Fetched, fake: Fake, caplog: pytest.LogCaptureFixture, answer: str
) -> None:
    fetched.part.write_bytes(fake.content[:1000])
    fetched(answer)
    assert dropped(caplog) == []


@pytest.mark.parametrize("length", [1000, None, 10**6], ids=["some", "all", "too many"])
def test_wrong_earlier_bytes_cost_one_more_try_of_the_same_source(
    fetched: Fetched, fake: Fake, length: int | None
) -> None:
    fetched.part.write_bytes(bytes(length or len(fake.content)))
    fetched("whole")
    assert ranges(fetched.server)[-1] == ""


def test_wrong_bytes_of_one_source_do_not_spoil_the_next(
    fetched: Fetched, caplog: pytest.LogCaptureFixture
) -> None:
    fetched("wrongcut", "whole")
    given_up, again = dropped(caplog)
    assert "404" in given_up
    assert "once more from the start" in again


def test_source_that_is_wrong_from_the_start_and_after_continuing_is_dropped(
    fetched: Fetched, caplog: pytest.LogCaptureFixture
) -> None:
    fetched.part.write_bytes(bytes(1000))
    fetched("wrong", "whole")
    again, given_up = dropped(caplog)
    assert "once more from the start" in again
    assert given_up.endswith("trying the next source")
    assert ranges(fetched.server) == ["bytes=1000-", "", ""]


def test_when_all_fail_each_reason_is_listed_with_the_ways_out(fetched: Fetched) -> None:
    with pytest.raises(InputError) as caught:
        fetched("missing", "page", "busy")
    start, reasons = f"data.sources: {NAME} could not be fetched: ", r"404 N.*; .*sends.*; .*503 S"
    assert str(caught.value).startswith(start)
    assert re.search(reasons, str(caught.value))
    assert f"; put the file into {fetched.folder} by hand, set data.root" in str(caught.value)
    assert list(fetched.folder.iterdir()) == []
    with pytest.raises(InputError, match=r"data.sources is empty"):
        fetched()


def test_proxy_from_the_environment_is_used(
    fetched: Fetched, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{fetched.server.port}")
    url = f"http://cifar.invalid/whole/{NAME}"
    fetch(fake.archive, [url], fetched.folder, min_rate=0, stall_s=5)
    assert fetched.server.requests == [(url, "")]


def test_folder_that_cannot_be_written_names_the_key_and_tries_no_other_source(
    fetched: Fetched, fake: Fake
) -> None:
    fetched.part.mkdir()  # a folder can't be opened as a file, not even by root
    urls = [fetched.server.url("whole")] * 2
    with pytest.raises(InputError, match=r"^data.cache="):
        fetch(fake.archive, urls, fetched.folder, min_rate=0, stall_s=5)
    assert len(fetched.server.requests) == 1


def test_unset_root_fetches_once_and_the_kept_archive_mends_the_cache(
    fake: Fake, open_fake: OpenFake, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve(fake.content)
    online = {"offline": False, "sources": [server.url("missing"), server.url("whole")]}
    opened = open_fake(**online)
    assert (opened.state, opened.dataset.layout, opened.dataset.official) == (
        "built",
        "archive",
        True,
    )
    assert opened.dataset.digest == fake.digest
    assert len(server.requests) == 2
    assert open_fake(**online).state == "ok"
    content = bytearray((opened.entry / "train.bin").read_bytes())
    content[77] ^= 4
    (opened.entry / "train.bin").write_bytes(content)
    assert open_fake(**online).state == "rebuilt"
    assert len(server.requests) == 2


# --- many processes --------------------------------------------------------------------------

CLIENT = """
import json, logging, os, signal, sys
from cifar_lab.data.fetch.archive import Archive
from cifar_lab.data.fetch.locate import Fetching, open_from
import cifar_lab.data.fetch.download
logging.basicConfig(format="%(message)s")
archive, sources, fatal_fsync = json.loads(sys.argv[1])
calls = []
fsync = os.fsync

def fsync_or_die(descriptor):
    calls.append(descriptor)
    if len(calls) == fatal_fsync:
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(descriptor)

os.fsync = fsync_or_die
fetching = Fetching(offline=False, sources=sources, min_rate=0, stall_s=20)
print("ready", flush=True)
opened = open_from(root=None, cache=None, fetching=fetching, archive=Archive(**archive))
assert "torch" not in sys.modules and "hydra" not in sys.modules
print(opened.state, opened.dataset.digest)
"""


def start_client(fake: Fake, *sources: str, fatal_fsync: int = 0) -> subprocess.Popen[str]:
    """Opens the data in a process of its own, which kills itself at the numbered call of fsync."""
    identity = json.dumps([asdict(fake.archive), sources, fatal_fsync])
    return subprocess.Popen(
        [sys.executable, "-c", CLIENT, identity],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_eight_processes_at_once_make_one_request_and_get_the_same_data(
    fake: Fake, serve: Serve
) -> None:
    server = serve(fake.content)
    clients = [start_client(fake, server.url("paced")) for _ in range(8)]
    outputs = [client.communicate(timeout=100) for client in clients]
    assert [client.returncode for client in clients] == [0] * 8, outputs
    states = sorted(output.split()[1] for output, _ in outputs)
    assert states == ["built"] + ["ok"] * 7
    assert {output.split()[2] for output, _ in outputs} == {fake.digest}
    assert len(server.requests) == 1


def kill_then_call_again(fake: Fake, open_fake: OpenFake, server: Server, kills: int) -> set[str]:
    """Kills a client at random moments of its work; returns what each kill left on disk."""
    rng = random.Random(0)
    left = set()
    for number in range(kills):
        cache = cache_folder(None)
        # the transfer, and then, without one, the short time of decoding and writing
        answer, longest_s = ("paced", 0.6) if number % 2 else ("whole", 0.04)
        client = start_client(fake, server.url(answer))
        assert client.stdout is not None
        assert client.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0, longest_s))
        client.send_signal(signal.SIGKILL)
        client.communicate(timeout=30)
        left.add(" ".join(sorted(path.name for path in cache.rglob("*") if path.is_file())))
        assert_clean_call(fake, open_fake, server, cache)
        os.rename(cache, cache.with_name(f"killed-{number}"))
    return left


def assert_clean_call(fake: Fake, open_fake: OpenFake, server: Server, cache: Path) -> None:
    opened = open_fake(offline=False, sources=[server.url("whole")])
    assert opened.dataset.digest == fake.digest
    assert opened.state in ("ok", "built")
    assert list(cache.rglob("*.part")) == []


def test_process_killed_before_any_of_its_files_is_safe_leaves_no_stumbling_block(
    fake: Fake, open_fake: OpenFake, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve(fake.content)
    cache = cache_folder(None)
    for number in range(1, 6):  # the archive, two splits, their digests, their description
        client = start_client(fake, server.url("whole"), fatal_fsync=number)
        _, errors = client.communicate(timeout=60)
        assert client.returncode == -signal.SIGKILL, errors
        assert list(cache.rglob("*.part"))
        assert_clean_call(fake, open_fake, server, cache)
        os.rename(cache, cache.with_name(f"killed-{number}"))
    assert dropped(caplog) == []


def test_killed_process_leaves_nothing_that_the_next_trips_over(
    fake: Fake, open_fake: OpenFake, serve: Serve
) -> None:
    kill_then_call_again(fake, open_fake, serve(fake.content), kills=4)


@pytest.mark.slow
def test_process_killed_at_twenty_moments_leaves_nothing_that_the_next_trips_over(
    fake: Fake, open_fake: OpenFake, serve: Serve
) -> None:
    left = kill_then_call_again(fake, open_fake, serve(fake.content), kills=20)
    assert len(left) > 1, f"the moments were all alike: {left}"


def test_transfer_of_a_killed_process_goes_on(
    fake: Fake, open_fake: OpenFake, serve: Serve
) -> None:
    server = serve(fake.content)
    part = cache_folder(None) / f"{NAME}.part"
    client = start_client(fake, server.url("stalled"))
    deadline = time.monotonic() + 30
    while not (part.exists() and part.stat().st_size == len(fake.content) // 3):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    client.kill()
    client.communicate(timeout=30)
    open_fake(offline=False, sources=[server.url("whole")])
    assert ranges(server) == ["", f"bytes={len(fake.content) // 3}-"]
