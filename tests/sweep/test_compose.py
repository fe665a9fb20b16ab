"""What is composed from another point equals what Hydra composes."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
from hydra.core.config_loader import ConfigLoader
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from cifar_lab.config.compose import run_config
from cifar_lab.config.schema import TRAINER_DEFAULTS
from cifar_lab.sweep.compose import Composer
from tests.support.hydra import hydra_of

Swept = dict[str, list[str]]


class Counting:
    """Hydra's loader, which counts what it is asked for."""

    def __init__(self, loader: ConfigLoader) -> None:
        self.asked = 0
        self._loader = loader

    def load_sweep_config(self, master: DictConfig, overrides: list[str]) -> DictConfig:
        self.asked += 1
        return self._loader.load_sweep_config(master, overrides)


def everything(cfg: DictConfig) -> Any:
    """What a composition holds: values and interpolations, types and what they take, flags."""
    nodes: list[Any] = []

    def visit(node: DictConfig, path: str) -> None:
        flags = OmegaConf.is_struct(node), OmegaConf.is_readonly(node)
        nodes.append((path, OmegaConf.get_type(node), flags))
        for key, child in dictionaries(node):
            visit(child, f"{path}.{key}")

    visit(cfg, "")
    return OmegaConf.to_container(cfg, resolve=False), nodes, taken_in(copy.deepcopy(cfg))


def dictionaries(node: DictConfig) -> list[tuple[Any, DictConfig]]:
    known = (k for k in node if not OmegaConf.is_missing(node, k))
    own = [k for k in known if not OmegaConf.is_interpolation(node, str(k))]
    return [(key, node[key]) for key in own if OmegaConf.is_dict(node[key])]


def taken_in(node: DictConfig) -> list[tuple[str, list[str]]]:
    """Which values every key takes, by the type that it was declared with; they stay there."""
    found = [entry for _, child in dictionaries(node) for entry in taken_in(child)]
    for key in map(str, node):
        made = []
        for probe in ("a word", 0.5, None):
            try:
                node[key] = probe
            except OmegaConfBaseException as error:
                made.append(type(error).__name__)
            else:
                made.append(repr(node[key]))
        found.append((key, made))
    return found


FIXED = ["data=synthetic", "model=resnet10", "hydra.sweep.dir=sweep", "seed=3"]
SWEEPS: list[tuple[list[str], Swept, int]] = [
    (
        [],
        {
            "optimizer.lr": ["0.1", "1e-3", "${optimizer.weight_decay}"],
            "model.num_blocks": ["[1]", "[1,1]"],
        },
        1,
    ),
    # a value of another kind, and none
    ([], {"threads": ["1", "null"], "trainer.limit_train_batches": ["1", "0.5"]}, 1),
    ([], {"model.num_blocks": ["[1]", "null", "[2,2]"]}, 2),
    # groups are composed anew, the values below them are not
    ([], {"optimizer": ["sgd", "adamw"], "optimizer.lr": ["0.1", "0.2", "0.3"]}, 2),
    ([], {"augment": ["none", "strong"]}, 2),
    ([], {"+model.extra": ["[1]", "{a:1}", "{b:2}"]}, 3),
    ([], {"callbacks.checkpoints": ["null", "{monitor:val/loss}"]}, 2),
    # what is set before or after a swept value, over or below it, is left to Hydra
    (["data.data_seed=5"], {"data": ["{val_size:1}", "{val_size:2}"]}, 2),
    (["optimizer={lr:0.5}"], {"optimizer.lr": ["0.1", "0.2"]}, 2),
    (["+model.extra={a:1}"], {"++model.extra.a": ["2", "3"]}, 2),
    ([], {"+trainer.max_time": ["1", "2"]}, 2),
]


@pytest.mark.parametrize(("fixed", "swept", "by_hydra"), SWEEPS, ids=lambda value: str(value)[:40])
def test_a_composed_copy_is_what_hydra_composes(
    fixed: list[str], swept: Swept, by_hydra: int
) -> None:
    loader, master = hydra_of(*FIXED)
    counting = Counting(loader)
    composer = Composer(counting, master, list(swept))  # type: ignore[arg-type]
    for values in itertools.product(*swept.values()):
        own = [f"{key}={value}" for key, value in zip(swept, values, strict=True)]
        overrides = [FIXED[0], *own, *FIXED[1:2], *FIXED[3:], *fixed]
        composed = composer.compose(overrides)
        expected = loader.load_sweep_config(master, overrides)
        assert everything(composed) == everything(expected), overrides
    assert counting.asked == by_hydra


def test_a_run_config_is_everything_but_what_is_of_no_run_or_left_at_its_default() -> None:
    loader, master = hydra_of()
    cfg = loader.load_sweep_config(master, [*FIXED[:2], "optimizer.lr=${optimizer.weight_decay}"])
    bare = cfg.copy()
    with open_dict(bare):
        del bare["hydra"], bare["sweep"], bare.optimizer["groups"]
        del bare["init_from"], bare["init_strict"], bare["freeze"]
        del bare["distill"], bare["hard_examples"]
        for key in TRAINER_DEFAULTS:
            del bare.trainer[key]
    expected = OmegaConf.to_container(bare, resolve=True, enum_to_str=True)
    assert isinstance(expected, dict)
    assert list(run_config(cfg).items()) == list(expected.items())


def test_what_hydra_refuses_is_refused_in_its_words() -> None:
    loader, master = hydra_of()
    composer = Composer(loader, master, ["threads"])
    composer.compose(["threads=1"])
    for wrong in ("threads=abc", "threads=[1", "thread=1"):
        with pytest.raises(HydraException) as expected:
            loader.load_sweep_config(master, [wrong])
        with pytest.raises(HydraException) as raised:
            composer.compose([wrong])
        assert str(raised.value) == str(expected.value)


def test_values_drawn_once_for_a_sweep_are_the_same_in_every_point() -> None:
    loader, master = hydra_of()
    drawn = master.hydra.sweep.dir
    composer = Composer(loader, master, ["seed"])
    folders = {composer.compose([f"seed={seed}"]).hydra.sweep.dir for seed in range(3)}
    assert folders == {drawn}
