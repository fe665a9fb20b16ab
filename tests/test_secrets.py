"""A secret reaches the library that it is for, and no byte of a run folder or of what is printed.

A canary is planted in each place where a person can give one.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cifar_lab.config.compose import compose, run_config
from cifar_lab.config.written import config_to_keep
from cifar_lab.records import credentials
from cifar_lab.records.digest import config_digest
from tests.conftest import TINY, record_of

Lab = Callable[..., tuple[int, str, str]]
CANARY = "CANARY-4711"
# A logger of a person's own: it says in a file beside what it was given, and can stop or fail.
TRACKER = """
import logging, signal
from pathlib import Path

from lightning.pytorch.loggers.logger import DummyLogger


class Tracker(DummyLogger):
    def __init__(self, api_key: str, url: str = "", note: str = "", then: str = "") -> None:
        super().__init__()
        self.given, self.then = (api_key, url, note), then
        print("logging in with", *self.given)
        logging.getLogger("tracker").warning("made with %s", self.given)

    def log_metrics(self, metrics, step=None) -> None:
        Path("given").write_text(" ".join(self.given))
        logging.getLogger("tracker").warning("posting with %s", self.given)
        if self.then == "stop":
            signal.raise_signal(signal.SIGTERM)
        if self.then == "fail":
            raise RuntimeError(f"{self.given[1]} refuses {self.given[0]}")
"""


@pytest.fixture(autouse=True)
def guarded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Streams are guarded as in a process of the command line; the logger lies beside."""
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))
    monkeypatch.setattr(credentials, "_known", [])
    monkeypatch.setattr(credentials, "_guarding", False)
    credentials.guard_streams()
    (tmp_path / "tracker.py").write_text(TRACKER)
    (tmp_path / "notifier.py").write_text(NOTIFIER)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("tracker", None)
    sys.modules.pop("notifier", None)


def own_logger(api_key: str, **more: str) -> None:
    """The logger as an option in ./conf."""
    folder = Path("conf/logger")
    folder.mkdir(parents=True, exist_ok=True)
    node = {"_target_": "tracker.Tracker", "api_key": api_key, **more}
    lines = [f"  {key}: '{value}'" for key, value in node.items()]
    (folder / "tracker.yaml").write_text(
        "\n".join(["defaults: [csv, tensorboard]", "tracker:", *lines]) + "\n"
    )


def holders(folder: Path) -> list[str]:
    """The files below with a canary in their bytes or their name."""
    return [
        str(path)
        for path in folder.rglob("*")
        if "CANARY" in path.name or (path.is_file() and b"CANARY" in path.read_bytes())
    ]


# A callback of Hydra's, which says what it was given in a file beside, and fails.
NOTIFIER = """
from pathlib import Path

from hydra.experimental.callback import Callback


class Notifier(Callback):
    def __init__(self, token: str) -> None:
        self.token = token

    def on_run_end(self, config, **_) -> None:
        Path("notified").write_text(self.token)
        raise RuntimeError(f"refused: {self.token}")
"""


PLACES: dict[str, tuple[str, ...]] = {
    "an option's file": (),
    "an override": (f"logger.tracker.api_key={CANARY}",),
    "a URL": (f"+logger.tracker.url=https://bob:{CANARY}@host/x",),
    "a URL with a token": (f"'+logger.tracker.url=\"https://host/x?token={CANARY}\"'",),
    "a dictionary": (f"+logger.more={{_target_: tracker.Tracker, api_key: {CANARY}}}",),
    "the environment": ("logger.tracker.api_key=${oc.env:THE_KEY}",),
    "a job's environment": (f"+hydra.job.env_set.MY_TOKEN={CANARY}",),
    "a header": (f"'+logger.tracker.note=\"Authorization: Bearer {CANARY}\"'",),
    "a monitor": (
        f"+monitors.x={{_target_: lightning.pytorch.callbacks.LambdaCallback, password: {CANARY}}}",
    ),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("then", ["", "fail"])
def test_no_byte_of_a_run_holds_it(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, place: str, then: str
) -> None:
    monkeypatch.setenv("THE_KEY", CANARY)
    own_logger(CANARY if place == "an option's file" else "CANARY-of-file", then=then)
    typed = [argument.strip("'") for argument in PLACES[place]]
    short = ("trainer.max_epochs=1", "trainer.limit_train_batches=1", "data.train_size=300")
    status, out, err = lab(*TINY, *short, "logger=tracker", "hydra.run.dir=run", *typed)
    assert "CANARY" not in out + err, (out, err)
    assert holders(Path("run")) == []
    if place == "a monitor":  # which takes no such key
        assert status == 2
        return
    assert status == (1 if then else 0), err
    assert "logging in with ***" in out
    assert (
        place == "a job's environment" or CANARY in Path("given").read_text() or "more" in typed[0]
    )
    assert "posting with" in Path("run/train.log").read_text()
    kept = record_of(Path("run"))["config"]["logger"]["tracker"]
    if place == "the environment":
        assert kept["api_key"] == "${oc.env:THE_KEY}"


def test_what_comes_from_the_environment_is_kept_as_it_was_typed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("THE_KEY", "somebody")
    monkeypatch.setenv("THE_RATE", "0.5")
    monkeypatch.setenv("CIFAR_LAB_DATA", "/some/where")
    own_logger("unused")
    cfg = compose(
        [
            *("logger=tracker", "+logger.tracker.note=${oc.env:THE_KEY}"),
            *('optimizer.lr="${oc.decode:${oc.env:THE_RATE}}"', "data.batch_size=64"),
        ]
    )
    kept = config_to_keep(cfg, run_config(cfg))
    assert kept["logger"]["tracker"]["note"] == "${oc.env:THE_KEY}"
    # what decides a result, and where its images lay, is on record as it was
    assert kept["optimizer"]["lr"] == 0.5
    assert kept["data"]["root"] == "/some/where"
    assert config_digest(kept) == config_digest(run_config(cfg))


def continue_line(err: str) -> list[str]:
    line = err.strip().splitlines()[-1]
    command = shlex.split(line.removeprefix("cifar_lab: to continue: "))
    assert command[:3] == ["python", "-m", "cifar_lab"], line
    return command[3:]


def test_a_run_that_was_stopped_says_what_to_give_again(lab: Lab) -> None:
    own_logger("unused", then="stop")
    arguments = (*TINY, "logger=tracker", f"logger.tracker.api_key={CANARY}", "hydra.run.dir=run")
    status, _, err = lab(*arguments)
    assert status == 143
    said, line = err.strip().splitlines()[-2:]
    assert said == (
        "cifar_lab: *** in logger.tracker.api_key stands for what is written nowhere: give it "
        "again, best by its variable, as in logger.tracker.api_key='${oc.env:NAME}' "
        "(docs/secrets.md)"
    )
    copied = continue_line(line)
    status, _, err = lab(*copied)
    assert status == 2
    assert err == (
        "cifar_lab: logger.tracker.api_key=***: *** stands for what was written nowhere; put it "
        "there, or give it by its variable, as in logger.tracker.api_key='${oc.env:NAME}' "
        "(docs/secrets.md)\n"
    )
    # with another key it is the same run, and goes on
    own_logger("unused")
    typed = [a.replace("***", "CANARY-new") for a in copied]
    status, out, err = lab(*typed)
    assert status == 0, err
    assert "CANARY" not in out + err
    assert len(record_of(Path("run"))["starts"]) == 2
    assert holders(Path("run")) == []


def test_a_run_whose_secret_is_a_variable_goes_on_as_printed(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_KEY", CANARY)
    own_logger("${oc.env:THE_KEY}", then="stop")
    status, out, err = lab(*TINY, "logger=tracker", "hydra.run.dir=run")
    assert status == 143
    assert "stands for" not in err
    own_logger("${oc.env:THE_KEY}")
    status, out, err = lab(*continue_line(err))
    assert status == 0, err
    assert "CANARY" not in out + err
    assert holders(Path("run")) == []


def test_no_byte_of_a_sweep_holds_it(lab: Lab) -> None:
    own_logger(CANARY)
    status, out, err = lab(
        *("-m", *TINY, "trainer.max_epochs=1", "trainer.limit_train_batches=1", "seed=0,1"),
        *("logger=tracker", f"+logger.tracker.url=ftp://a:{CANARY}@h,ftp://b:{CANARY}@h"),
        "hydra.sweep.dir=sweep",
    )
    assert status == 0, err
    assert "CANARY" not in out + err
    assert CANARY in Path("given").read_text()
    assert holders(Path("sweep")) == []
    names = {path.name for path in Path("sweep").iterdir()}
    assert {"results.csv", "sweep.json", "report"} <= names
    assert "***@h" in Path("sweep/results.csv").read_text()


def test_a_callback_of_hydras_gets_it_and_nothing_else_does(
    lab: Lab, recwarn: pytest.WarningsRecorder
) -> None:
    path = Path("conf/hydra/callbacks/own.yaml")
    path.parent.mkdir(parents=True)
    path.write_text(f"own: {{_target_: notifier.Notifier, token: {CANARY}}}\n")
    short = (*TINY, "trainer.max_epochs=1", "trainer.limit_train_batches=1")
    status, out, err = lab(*short, "hydra/callbacks=own", "hydra.run.dir=run")
    assert status == 0, err
    assert Path("notified").read_text() == CANARY
    assert "CANARY" not in out + err
    assert holders(Path("run")) == []


def test_nor_under_hydras_own_launcher_and_flags(lab: Lab) -> None:
    own_logger("unused")
    short = (*TINY, "trainer.max_epochs=1", "trainer.limit_train_batches=1")
    # in a query within quotes, too
    more = f"'+logger.tracker.url=\"https://h/x?b=1&password={CANARY}\"'".strip("'")
    secret = ("logger=tracker", f"logger.tracker.api_key={CANARY}", more)
    status, out, err = lab(
        "-m", *short, *secret, "seed=0,1", "hydra/launcher=basic", "hydra.sweep.dir=sweep"
    )
    assert status == 0, err
    assert "CANARY" not in out + err
    assert holders(Path("sweep")) == []
    status, out, err = lab("--config-dir", "conf", *short, *secret, "hydra.run.dir=run")
    assert status == 0, err
    assert "CANARY" not in out + err
    assert holders(Path("run")) == []


def test_a_storage_that_refuses_is_named_without_its_password(lab: Lab) -> None:
    pytest.importorskip("optuna")
    status, out, err = lab(
        *("-m", *TINY, "sweep=optuna", "optimizer.lr=interval(0.01,0.1)", "sweep.n_trials=1"),
        *(f"sweep.storage=postgresql://bob:{CANARY}@nowhere.invalid/x", "hydra.sweep.dir=sweep"),
    )
    assert status == 2
    assert "CANARY" not in out + err
    assert "sweep.storage=postgresql://bob:***@nowhere.invalid/x: " in err
    assert holders(Path("sweep")) == []


def test_sources_of_the_data_are_named_without_their_passwords(lab: Lab) -> None:
    # a port that nobody listens on
    source = f"http://bob:{CANARY}@127.0.0.1:9/cifar-10-python.tar.gz"
    status, out, err = lab("data=cifar10", f"data.sources=[{source}]")
    assert status == 2
    assert "CANARY" not in out + err
    assert "http://bob:***@127.0.0.1:9/cifar-10-python.tar.gz: no connection" in err
