"""A person's own YAML below ./conf: what is wrong in it is one line with file, line and remedy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cifar_lab.__main__ import main
from cifar_lab.config.compose import compose, run_config
from cifar_lab.config.files import with_place
from cifar_lab.config.schema import conf_dir
from cifar_lab.errors import InputError
from tests.sweep.conftest import SMALL

Lab = Callable[..., tuple[int, str, str]]


def write(name: str, content: str | bytes) -> str:
    """Writes conf/NAME.yaml of the working directory; returns the override that chooses it."""
    path = Path("conf", f"{name}.yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    group, _, option = name.rpartition("/")
    return f"{group}={option}"


# (file, content, where in it, what the line says)
WRONG: list[tuple[str, str | bytes, str, str]] = [
    ("experiment/x", "optimizer:\n\tlr: 0.1\n", ":2", "a tab; YAML is indented with spaces"),
    ("model/x", "_target_: torch.nn.Linear\nwidth:\t4\n", ":2", "a tab; YAML is"),
    ("experiment/x", "seed: 1\nseed: 2\n", ":2", "seed: a second time; leave one of them out"),
    ("optimizer/x", "lr: 1\nb: 2\nlr: 3\n", ":3", "lr: a second time"),
    ("experiment/x", "- a\n- b\n", ":1", "holds a list; must be lines of `key: value`"),
    ("model/x", "- a\n", ":1", "holds a list"),
    ("experiment/x", "# mine\ntext\n", ":2", "holds no more than a value"),
    ("optimizer/x", "5\n", ":1", "holds no more than a value"),
    ("experiment/x", "seed=1\n", ":1", "holds no more than a value"),
    ("experiment/x", "", "", "is empty, and would change nothing"),
    ("debug/x", "# a comment\n", "", "is empty, and would change nothing"),
    ("sweep/x", "", "", "is empty, and would change nothing"),
    ("model/x", "", "", "model._target_: missing; must be the dotted name"),
    ("experiment/x", "a: 1\n---\nb: 2\n", ":2", "--- begins a second document"),
    ("experiment/x", "? [a, b]\n: 5\n", ":1", "a key must be text"),
    ("experiment/x", "seed: !!python/object:os.system x\n", ":1", "use a node with _target_"),
    ("experiment/x", "model: {width: ${nope}}\n", ":1", "an interpolation needs quotes"),
    ("experiment/x", 'model: {width: "${"}\n', ":1", "${ is no interpolation; must be ${key}"),
    ("experiment/x", "data:\n  root: a: b\n", ":2", "is no YAML (mapping values are not"),
    ("experiment/x", "data:\n  root: @home\n", ":2", "quote text that holds"),
    ("experiment/x", "optimizer: {lr: 1\n", ":2", "is no YAML"),
    ("experiment/x", b"data:\n  root: J\xf6rg\n", ":2", "the byte 0xf6 is no UTF-8; save the file"),
    ("experiment/x", "seed: 1\n".encode("utf-16"), "", "is UTF-16; save it as UTF-8"),
    ("experiment/x", "seed: 1\n\0", ":2", "a character that YAML doesn't allow"),
    ("experiment/x", "# @package _global_ please\nseed: 1\n", "", "must be # @package _global_"),
    ("experiment/x", "# @package experiment\nseed: 1\n", "", "must be # @package _global_"),
    ("sweep/x", "hydra: {mode: RUN}\n", ":1", "first line must be # @package _global_"),
    ("experiment/x", "defaults: resnet10\n", ":1", "defaults: must be a list"),
    ("experiment/x", "defaults:\n  - /model: cnn\n", ":2", "`- override /model: cnn`"),
    ("experiment/x", "defaults:\n  - override model: cnn\n", ":2", "`- override /model: cnn`"),
    ("experiment/x", "defaults:\n  - override /modell: cnn\n", ":2", "modell: unknown key"),
    ("experiment/x", "defaults:\n  - override /model: cnnn\n", ":2", "model=cnnn: no such option"),
    ("experiment/x", "defaults:\n  - x\n", "", "lead back to where they began"),
    # what Hydra passes over without a word, or calls an unknown key
    *[
        (f"{group}/x", f"# @package _global_\ndefaults:\n  - {form}{other}: y\n", ":3", said)
        for form in ("/", "override /")
        for group, other, said in (
            ("experiment", "experiment", "`- y` takes that one in, before this file's own keys"),
            ("sweep", "sweep", "`- y` takes that one in, before this file's own keys"),
            ("debug", "debug", "`- y` takes that one in, before this file's own keys"),
            ("experiment", "sweep", "can't be chosen here; give sweep=y on the command line"),
            ("experiment", "debug", "can't be chosen here; give debug=y on the command line"),
            ("sweep", "debug", "can't be chosen here; give debug=y on the command line"),
        )
    ],
    (
        *("sweep/x", "# @package _global_\ndefaults:\n  - /experiment: y\n", ":3"),
        "`- override /experiment: y`",
    ),
    ("experiment/x", "model: resnet10\n", ":1", "with `- override /model: resnet10`"),
    ("experiment/x", "seed: 1\noptimizer:\n", ":2", "with `- override /optimizer: NAME`"),
    ("experiment/x", "callbacks: [a]\n", ":1", "callbacks: holds a list; must be lines"),
    ("experiment/x", "optimizer.lr: 0.1\n", ":1", "must be optimizer: and below it, indented, lr"),
    ("experiment/x", "seed: 1\nseeed: 2\n", ":2", "seeed: unknown key (did you mean seed?)"),
    ("experiment/x", "optimizer:\n  lrr: 1\n", ":2", "optimizer.lrr: unknown key (did you mean lr"),
    ("experiment/x", "hydra:\n  nope: 1\n", ":2", "hydra.nope: unknown key"),
    ("experiment/x", "seed: abc\n", ":1", "seed=abc: must be an integer"),
    ("experiment/x", "seed: [1, 2]\n", ":1", "seed=[1, 2]: must be an integer"),
    ("experiment/x", "seed: null\n", ":1", "seed: Incompatible value 'None'"),
    ("experiment/x", "compile: fast\n", ":1", "expected one of [none, default, max]"),
    ("experiment/x", "logger:\n  csv: []\n", "", "a list where there are lines of `key: value`"),
    ("experiment/x", "optimizer:\n  lr: 0,1\n", ":2", "optimizer.lr=0,1: must be a number"),
    ("experiment/x", "model:\n  width: ${nope}\n", ":2", "model.width: Interpolation key 'nope'"),
    ("experiment/x", "hydra:\n  verbose: ${nope}\n", ":2", "hydra.verbose: Interpolation key"),
    ("experiment/x", "slots: 2\n", ":1", "slots: is called sweep.slots now"),
    (
        "optimizer/x",
        "_target_: torch.optim.SGD\nlr: -1\n",
        ":2",
        "optimizer.lr=-1: must be above 0",
    ),
    ("callbacks/x", "mine: 5\n", ":1", "callbacks.mine=5: must be a node with a _target_"),
    ("callbacks/x", "_target_: a.B\n", ":1", "callbacks._target_=a.B: must lie below a name"),
]


@pytest.mark.parametrize(
    ("name", "content", "line", "said"), WRONG, ids=lambda value: str(value)[:40]
)
def test_what_is_wrong_in_a_file_is_one_line_with_its_place(
    name: str,
    content: str | bytes,
    line: str,
    said: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    choice = write(name, content)
    assert main(["data=synthetic", choice]) == 2
    out, err = capfd.readouterr()
    assert err.startswith(f"cifar_lab: conf/{name}.yaml{line}: "), err
    assert said in err
    assert (out, len(err.splitlines())) == ("", 1)
    assert not (tmp_path / "outputs").exists()


PLAIN = "# @package _global_\noptimizer:\n  lr: 0.07\n"


@pytest.mark.parametrize(
    "content",
    [
        PLAIN,
        "optimizer:\n  lr: 0.07\n",
        f"# what it tries\n{PLAIN}",
        PLAIN.encode("utf-8-sig"),
        PLAIN.replace("\n", "\r\n"),
        "defaults:\n  - override /optimizer: sgd\noptimizer:\n  lr: 0.07\n",
    ],
    ids=[
        "as it is",
        "no header",
        "header below",
        "byte-order mark",
        "Windows",
        "no header, groups",
    ],
)
def test_a_file_whose_meaning_is_clear_works(content: str | bytes) -> None:
    choice = write("experiment/mine", content)
    assert run_config(compose([choice])) == run_config(compose(["optimizer.lr=0.07"]))


def test_a_byte_order_mark_hides_no_key() -> None:
    choice = write("optimizer/mine", "﻿_target_: torch.optim.SGD\nlr: 0.5\n")
    optimizer = compose([choice]).optimizer
    assert (optimizer["_target_"], optimizer["lr"]) == ("torch.optim.SGD", 0.5)


def test_an_empty_file_of_parts_leaves_them_out() -> None:
    assert run_config(compose([write("logger/mine", "")]))["logger"] == {}


def test_settings_of_a_sweep_need_no_header() -> None:
    assert compose([write("sweep/mine", "slots: 2\n")]).sweep.slots == 2


def test_a_file_that_would_never_be_read_is_told() -> None:
    write("model/cnn", "_target_: nets.Mine\n")
    with pytest.raises(InputError, match=r"conf/model/cnn\.yaml: the package's file of this name"):
        compose([])
    write("model/cnn", (conf_dir() / "model" / "cnn.yaml").read_bytes())
    compose([])


def test_a_name_that_hydra_passes_over_is_told() -> None:
    Path("conf/experiment").mkdir(parents=True)
    Path("conf/experiment/mine.yml").write_text(PLAIN)
    with pytest.raises(InputError, match=r"conf/experiment/mine\.yml: must be called mine\.yaml"):
        compose(["experiment=mine"])
    with pytest.raises(InputError, match="experiment=nope: no such option"):
        compose(["experiment=nope"])


def test_a_value_that_was_typed_has_no_place_in_a_file() -> None:
    compose([write("experiment/mine", PLAIN)])
    said = "optimizer.lr=0: must be above 0"
    assert with_place(said, ["experiment=mine"]) == f"conf/experiment/mine.yaml:3: {said}"
    for typed in ("optimizer.lr=0", "+optimizer.lr=0", "optimizer={lr: 0}"):
        assert with_place(said, ["experiment=mine", typed]) == said
    compose([])
    assert with_place(said, []) == said


@pytest.mark.parametrize("content", ["seed: abc\n", "seeed: 1\n"])
def test_a_point_of_a_sweep_says_the_same(lab: Lab, content: str) -> None:
    write("experiment/other", PLAIN)
    write("experiment/mine", content)
    status, _, err = lab("-m", *SMALL, "experiment=other,mine", "hydra.sweep.dir=sweep")
    assert status == 2
    assert err.startswith("cifar_lab: experiment=mine: conf/experiment/mine.yaml:1: see"), err
    assert len(err.splitlines()) == 1
    assert not Path("sweep").exists()


def test_a_file_takes_another_of_its_group_in_and_chooses_among_those_before() -> None:
    write("experiment/base", "seed: 7\ntuned_batch_size: 5\n")
    write("experiment/mine", "defaults:\n  - base\nseed: 8\n")
    write("sweep/mine", "# @package _global_\ndefaults:\n  - override /experiment: base\n")
    cfg = compose(["experiment=mine"])
    assert (cfg.seed, cfg.tuned_batch_size) == (8, 5)
    assert compose(["sweep=mine"]).seed == 7
