"""Tables for a terminal, and the figure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks import startup
from benchmarks.contenders import FLAVOURS, NETWORKS, TITLES
from benchmarks.measurement import Measurement, Spread, ratios, spread, values
from benchmarks.startup import Imported, by_package

# Okabe and Ito's palette, which the colour-blind can tell apart (Wong, Nature Methods 8, 441)
_COLOURS = {"ours": "#0072B2", "plain": "#D55E00", "bf16": "#009E73"}
_TOP_MODULES = 25


def speed_table(network: str, measurements: Sequence[Measurement], *, on_gpu: bool) -> Table:
    """Images/s of every contender, and how many times as fast each of ours is."""
    goals = NETWORKS[network].goals
    flavours = [name for name in FLAVOURS if name in names_of(measurements)]
    table = Table(
        title=f"{NETWORKS[network].title}: medians (quartiles where there is room)",
        title_justify="left",
        caption="\n".join(f"{f}: {' '.join(FLAVOURS[f])}" for f in flavours if FLAVOURS[f]),
        caption_justify="left",
    )
    table.add_column("", no_wrap=True)
    told = ["accuracy"] if any(m.accuracy is not None for m in measurements) else []
    for name in ("images/s", *(f"{f} / it" for f in flavours), "goal", "wall s", *told):
        table.add_column(name, justify="right", no_wrap=True)
    for name in names_of(measurements):
        goal = goals.get(name, (None, None))[on_gpu]
        table.add_row(
            TITLES.get(name, name),
            _text(spread(values(measurements, name, "images_per_s").values()), "{:,.0f}"),
            *(_ratio(measurements, flavour, name) for flavour in flavours),
            "" if goal is None else f"≥ {goal}",
            _median(values(measurements, name, "wall_s").values(), "{:.1f}"),
            *(_median(values(measurements, name, column).values(), "{:.2%}") for column in told),
        )
    return table


def _ratio(measurements: Sequence[Measurement], flavour: str, name: str) -> str:
    if name == flavour:
        return ""
    found = ratios(measurements, flavour, name, "images_per_s")
    # quartiles of the promised ratio only: a terminal has no room for all
    return _text(spread(found), "{:.2f}") if flavour == "ours" else _median(found, "{:.2f}")


def startup_table(measurements: Sequence[Measurement]) -> Table:
    """Seconds to the first step, and as a multiple of the bare imports."""
    table = Table(title="start-up: medians (quartiles)", title_justify="left")
    table.add_column("")
    for name in ("s", "it / imports", "goal"):
        table.add_column(name, justify="right")
    for name in names_of(measurements):
        ratio = spread(ratios(measurements, name, startup.IMPORTS, "start_s"))
        table.add_row(
            startup.TITLES[name],
            _text(spread(values(measurements, name, "start_s").values()), "{:.2f}"),
            "" if name == startup.IMPORTS else _text(ratio, "{:.2f}"),
            f"≤ {startup.GOAL}" if name == startup.OURS else "",
        )
    return table


def failures(measurements: Iterable[Measurement]) -> list[str]:
    """One line for every measurement that failed."""
    return [
        f"{m.table}, {m.contender}, round {m.round}: {m.error}" for m in measurements if m.error
    ]


def names_of(measurements: Iterable[Measurement]) -> list[str]:
    """The contenders, in the order of the first round."""
    return list(dict.fromkeys(m.contender for m in measurements))


def _text(found: Spread | None, form: str) -> str:
    if found is None:
        return "-"
    median, lower, upper = (form.format(x) for x in (found.median, found.lower, found.upper))
    return median if found.n == 1 else f"{median} ({lower}-{upper})"


def _median(known: Iterable[float], form: str) -> str:
    found = spread(known)
    return "" if found is None else form.format(found.median)


# --- imports ------------------------------------------------------------------------------------


def import_tables(ours: Sequence[Imported], reference: Sequence[Imported]) -> list[Table]:
    """Milliseconds by package, and the dearest modules that only ours imports."""
    packages = Table(title="imports, ms of their own by package", title_justify="left")
    for name in ("", "a run of one step", "import torch, lightning"):
        packages.add_column(name, justify="right" if name else "left")
    mine, theirs = by_package(ours), by_package(reference)
    for package, ms in mine.most_common(_TOP_MODULES):
        packages.add_row(package, f"{ms:,.0f}", f"{theirs[package]:,.0f}")
    packages.add_row("all", f"{sum(mine.values()):,.0f}", f"{sum(theirs.values()):,.0f}")

    known = {module.name for module in reference}
    only = [module for module in ours if module.name not in known]
    modules = Table(title="what only ours imports, ms of their own", title_justify="left")
    for name in ("", "ms"):
        modules.add_column(name, justify="right" if name else "left")
    for part, ms in by_package(only, depth=2).most_common(_TOP_MODULES):
        modules.add_row(part, f"{ms:,.0f}")
    modules.add_row("all", f"{sum(module.own_ms for module in only):,.0f}")
    return [packages, modules]


# --- figure -------------------------------------------------------------------------------------


def draw(measurements: Sequence[Measurement], folder: Path, *, caption: str) -> list[Path]:
    """``bench.png`` and ``bench.svg``: a panel per network, every round a dot; [] without any."""
    tables = [name for name in NETWORKS if any(m.table == name for m in measurements)]
    if not tables:
        return []
    from matplotlib.figure import Figure  # not pyplot: no window, no state

    figure = Figure(figsize=(8, 1.2 + 2.2 * len(tables)), layout="constrained")
    axes = figure.subplots(len(tables), squeeze=False)[:, 0]
    for axis, table in zip(axes, tables, strict=True):
        _panel(axis, NETWORKS[table].title, [m for m in measurements if m.table == table])
    axes[-1].set_xlabel("training images/s (log); dots: rounds, bar: median")
    figure.suptitle(caption, fontsize=8)
    paths = [folder / f"bench.{suffix}" for suffix in ("png", "svg")]
    for path in paths:
        figure.savefig(path, dpi=150)
    return paths


def _panel(axis: Any, title: str, measurements: Sequence[Measurement]) -> None:
    def rates(name: str) -> list[float]:
        return list(values(measurements, name, "images_per_s").values())

    shown = [name for name in names_of(measurements) if rates(name)]
    for row, name in enumerate(shown):
        found = spread(rates(name))
        assert found is not None
        colour = _COLOURS.get(name, "#555555")
        axis.plot(rates(name), [row] * found.n, "o", color=colour, alpha=0.4, markersize=5)
        axis.plot([found.median], [row], "|", color=colour, markersize=18, markeredgewidth=3)
        axis.annotate(
            f"{found.median:,.0f}",
            (found.median, row),
            (0, 11),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
    axis.set_yticks(range(len(shown)), [TITLES.get(name, name) for name in shown], fontsize=8)
    axis.set_ylim(len(shown) - 0.4, -0.8)
    axis.set_xscale("log")
    axis.set_title(title, loc="left", fontsize=10)
    axis.grid(axis="x", which="both", alpha=0.3)
