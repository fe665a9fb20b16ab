"""`python -m cifar_lab.serve`: how it starts, what it refuses, how it ends."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cifar_lab import predict, serve
from cifar_lab.config.port import HOST, listen, port_of
from cifar_lab.data.synthetic import make_synthetic
from tests.conftest import environment
from tests.support.finished import copied
from tests.support.serving import Reply, asked, png

PICTURE = png(make_synthetic(train_size=20, test_size=1, data_seed=1).test.images[0])


def free_port() -> int:
    with listen(None, first=8000) as free:
        return port_of(free)


class Client(threading.Thread):
    """Asks a server that is about to start in this process, then sends the process a signal."""

    def __init__(self, port: int, signum: int) -> None:
        super().__init__()
        self.port, self.signum = port, signum
        self.replies: list[Reply] = []
        self.start()

    def run(self) -> None:
        try:
            for _ in range(1000):
                with socket.socket() as probe:
                    if probe.connect_ex((HOST, self.port)) == 0:
                        break
                time.sleep(0.01)
            self.replies.append(asked(self.port, "/predict?explain=true", PICTURE))
            self.replies.append(asked(self.port, "/"))
        finally:
            os.kill(os.getpid(), self.signum)


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_it_serves_the_run_until_a_signal_ends_it(
    finished: Path, signum: int, status: int, capfd: pytest.CaptureFixture[str]
) -> None:
    client = Client(free_port(), signum)
    capfd.readouterr()
    assert serve.main([str(finished), "--port", str(client.port)]) == status
    client.join(10)
    assert [one.status for one in client.replies] == [200, 200]
    assert b"/examples/9.png" in client.replies[1].content
    out, err = capfd.readouterr()
    assert out == (
        f"cifar_lab: {finished}: 10 classes, best.ckpt; Ctrl-C ends it\n"
        f"http://127.0.0.1:{client.port}/\n"
    )
    assert err == "\ncifar_lab: serve ended\n"
    with listen(client.port, first=0):  # free again, at once
        pass


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_picture_that_is_being_answered_does_not_hold_it_up(
    finished: Path, tmp_path: Path, signum: int, status: int
) -> None:
    """Its thread can't be stopped, and Python waits for threads: it would never end."""
    code = (
        "import runpy, sys, threading\n"
        "import cifar_lab.inference.serving.answers as answers\n"
        "def never(*arguments):\n"
        f"    open({str(tmp_path / 'asked')!r}, 'w').close()\n"
        "    threading.Event().wait()\n"
        "answers.Answers._answer = never\n"
        f"sys.argv = ['serve', {str(finished)!r}]\n"
        "runpy.run_module('cifar_lab.serve', run_name='__main__')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        process.stdout.readline()
        found = re.search(r":(\d+)/", process.stdout.readline())
        assert found is not None
        replies: list[int] = []
        client = threading.Thread(
            target=lambda: replies.append(asked(int(found[1]), content=PICTURE).status)
        )
        client.start()
        while not (tmp_path / "asked").exists():
            time.sleep(0.02)
        process.send_signal(signum)
        assert process.wait(20) == status
        client.join(10)
        assert replies == [503]
        assert process.stderr.read() == "\ncifar_lab: serve ended\n"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def test_what_is_no_run_is_said_as_predict_says_it(
    finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a_file").touch()
    emptied, running = (copied(finished, tmp_path / name) for name in ("emptied", "running"))
    for file in (emptied / "checkpoints").iterdir():
        file.unlink()
    record = (running / "run.json").read_text()
    running.joinpath("run.json").write_text(
        record.replace('"status": "finished"', '"status": "interrupted"').replace(
            '"tested": "best"', '"tested": null'
        )
    )
    other = [str(finished), "--ckpt", str(tmp_path / "no.ckpt")]
    for words in (
        *[[str(tmp_path / name)] for name in ("nowhere", "a_file", "emptied", "running")],
        *[[str(tmp_path)], [str(finished.parent)], [str(finished), "--ckpt", "a_file"], other],
    ):
        run, *options = words
        assert predict.main([run, "x.png", *options]) == 2
        said = capfd.readouterr().err
        assert serve.main([run, *options]) == 2
        out, err = capfd.readouterr()
        assert (out, err) == ("", said)
        assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the following arguments are required: RUN; usage: python -m cifar_lab.serve RUN"),
        (["x", "y"], "unrecognized arguments: y"),
        (["x", "--port", "http"], "argument --port: invalid int value: 'http'"),
        (["x", "--port", "0"], "--port=0: must lie in 1..65535; leave it out for a free one"),
        (["x", "--host", "0.0.0.0"], "unrecognized arguments: --host 0.0.0.0"),
    ],
)
def test_wrong_input_is_one_line(
    arguments: list[str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert serve.main(arguments) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert said in err
    assert len(err.splitlines()) == 1


def test_what_is_not_installed_is_one_line(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    missing = {"fastapi", "uvicorn", "python_multipart"}
    found = importlib.util.find_spec
    monkeypatch.setattr(serve, "find_spec", lambda name: None if name in missing else found(name))
    assert serve.main([str(finished)]) == 2
    assert capfd.readouterr().err == (
        "cifar_lab: serve: needs fastapi and uvicorn and python_multipart; "
        "pip install 'cifar-lab[serve,explain]'\n"
    )
    missing.remove("fastapi")
    assert serve.main(["nowhere"]) == 2
    assert "serve: needs uvicorn and python_multipart;" in capfd.readouterr().err


def test_without_captum_and_its_images_it_serves_and_says_what_is_missing(
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(serve, "find_spec", lambda name: None if name == "captum" else found(name))
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    moved = copied(finished, tmp_path / "moved")
    record = (moved / "run.json").read_text()
    assert '"data_seed": 0' in record
    (moved / "run.json").write_text(record.replace('"data_seed": 0', '"data_seed": 1'))
    client = Client(free_port(), signal.SIGTERM)
    assert serve.main([str(moved), "--port", str(client.port)]) == 143
    client.join(10)
    err = capfd.readouterr().err
    assert f"cifar_lab: no examples: {moved}: other images are where its own were" in err
    assert "cifar_lab: no activation maps: they need captum; pip install 'cifar-lab[ex" in err
    answer, page = client.replies
    assert (answer.status, answer.fields["map_png"]) == (200, None)
    assert "need captum" in answer.fields["note"]
    assert b"examples" not in page.content
