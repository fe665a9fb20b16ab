from __future__ import annotations

import numpy as np
import pytest
from rich.console import Console

from benchmarks import show, startup
from benchmarks.measurement import Measurement, ratios, spread, values


def one(contender: str, round_: int, rate: float | None, error: str | None = None) -> Measurement:
    return Measurement(
        table="cnn",
        contender=contender,
        round=round_,
        position=1,
        images_per_s=rate,
        wall_s=1.0,
        error=error,
    )


def shown(table: object) -> str:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_ratios_are_taken_within_a_round() -> None:
    # the machine was half as fast in the second round: the ratio doesn't notice
    measured = [one("ours", 1, 200), one("bare", 1, 100), one("ours", 2, 100), one("bare", 2, 50)]
    assert ratios(measured, "ours", "bare", "images_per_s") == [2, 2]


def test_a_round_in_which_one_side_failed_gives_no_ratio() -> None:
    measured = [
        *(one("ours", 1, 200), one("bare", 1, None, "exit status 1")),
        *(one("ours", 2, None), one("bare", 2, 100)),
        *(one("ours", 3, 300), one("bare", 3, 100)),
    ]
    assert ratios(measured, "ours", "bare", "images_per_s") == [3]
    assert values(measured, "bare", "images_per_s") == {2: 100, 3: 100}


def test_quartiles_are_numpys() -> None:
    known = [3.0, 9.0, 1.0, 4.0, 7.0, 2.0]
    found = spread(known)
    assert found is not None
    quartiles = np.quantile(known, [0.25, 0.5, 0.75])
    assert [found.lower, found.median, found.upper] == pytest.approx(list(quartiles))
    assert found.n == 6


def test_one_value_is_its_own_median_and_none_has_none() -> None:
    found = spread([2.5])
    assert found is not None
    assert (found.lower, found.median, found.upper) == (2.5, 2.5, 2.5)
    assert spread([]) is None


def test_the_table_shows_ratios_goals_and_gaps() -> None:
    measured = [
        *(one("ours", 1, 3000), one("plain", 1, 4000), one("bare", 1, 2000)),
        one("peer", 1, None, "exit status 3: no"),
    ]
    lines = shown(show.speed_table("cnn", measured, on_gpu=False)).splitlines()
    bare = next(line for line in lines if "bare PyTorch" in line)
    assert [cell.strip() for cell in bare.split("│")[2:6]] == ["2,000", "1.50", "2.00", "≥ 0.98"]
    peer = next(line for line in lines if "peer" in line)
    assert [cell.strip() for cell in peer.split("│")[2:5]] == ["-", "-", ""]
    assert show.failures(measured) == ["cnn, peer, round 1: exit status 3: no"]


def start(contender: str, seconds: float) -> Measurement:
    return Measurement(
        table=startup.TABLE, contender=contender, round=1, position=1, start_s=seconds
    )


def test_our_start_counts_from_the_start_of_the_process() -> None:
    measured = [start("interpreter", 0.5), start("imports", 4.0), start("ours", 4.5)]
    corrected = startup.with_interpreter(measured)
    assert values(corrected, "ours", "start_s") == {1: 5.0}
    assert ratios(corrected, "ours", "imports", "start_s") == [1.25]
    assert "1.25" in shown(show.startup_table(corrected))


def test_import_times_add_up_by_package() -> None:
    text = (
        "import time: self [us] | cumulative | imported package\n"
        "import time:      1500 |       1500 |     torch.nn\n"
        "some warning\n"
        "import time:       500 |       2000 |   torch\n"
        "import time:       250 |        250 | rich.table\n"
    )
    modules = startup.read_importtime(text)
    assert [(m.name, m.own_ms, m.total_ms) for m in modules] == [
        ("torch.nn", 1.5, 1.5),
        ("torch", 0.5, 2.0),
        ("rich.table", 0.25, 0.25),
    ]
    assert startup.by_package(modules) == {"torch": 2.0, "rich": 0.25}
    only_ours = shown(show.import_tables(modules, modules[1:])[1])
    assert "torch.nn" in only_ours
    assert "rich" not in only_ours
