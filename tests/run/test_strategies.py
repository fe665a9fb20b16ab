"""Which of Lightning's strategies a run may have: known before any process is started."""

from __future__ import annotations

from typing import Any

import pytest
from lightning.pytorch.strategies import StrategyRegistry

from cifar_lab.errors import InputError
from cifar_lab.run.compatibility import check_strategy

THEIRS = "lightning.pytorch.strategies"


def of(name: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": f"{THEIRS}.{name}", **arguments}


@pytest.mark.parametrize(
    ("strategy", "devices"),
    [
        *[("auto", 2), ("ddp", 2), ("ddp", [0, 1]), ("single_device", 1), ("single_device", [0])],
        *[("auto", -1), ("ddp_find_unused_parameters_true", 2)],
        (of("DDPStrategy", process_group_backend="gloo", static_graph=True), 2),
        (of("DDPStrategy", process_group_backend=None), 2),
        (of("SingleDeviceStrategy", device="cpu"), 1),
    ],
    ids=str,
)
def test_one_device_or_copies_of_the_network(strategy: object, devices: object) -> None:
    check_strategy({"strategy": strategy, "devices": devices})


@pytest.mark.parametrize(
    ("strategy", "devices", "said"),
    [
        ("single_device", 2, "trainer.devices=2: trainer.strategy=single_device uses one"),
        ("single_device", [0, 1], "trainer.devices=[0, 1]: "),
        (of("SingleDeviceStrategy"), -1, "uses one; set trainer.devices=1"),
        ("fsdp", 2, "trainer.strategy=fsdp: must be auto"),
        ("ddp_nonsense", 1, "trainer.strategy=ddp_nonsense: must be auto"),
        (of("ModelParallelStrategy"), 2, "ModelParallelStrategy: must be auto"),
        (of("FSDPStrategy"), 1, "FSDPStrategy: must be auto"),
        ({"_target_": "torch.nn.Identity"}, 1, "Identity: must be auto"),
        (of("DDPStrategy", process_group_backend="nonsense"), 2, "process_group_backend=nonsense"),
        # reduces nothing: it is for torch's own tests
        (of("DDPStrategy", process_group_backend="fake"), 2, "process_group_backend=fake"),
        (of("DDPStrategy", static_grahp=True), 2, "did you mean static_graph?"),
    ],
    ids=str,
)
def test_others_are_one_line(strategy: object, devices: object, said: str) -> None:
    with pytest.raises(InputError) as refused:
        check_strategy({"strategy": strategy, "devices": devices})
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_every_name_of_lightnings_is_decided() -> None:
    for name in StrategyRegistry.available_strategies():
        if name.startswith("ddp") or name == "single_device":
            check_strategy({"strategy": name, "devices": 1})
        else:
            with pytest.raises(InputError):
                check_strategy({"strategy": name, "devices": 1})
