"""What a day found, as Markdown for docs/benchmarks.md."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from scipy import stats

Row = Mapping[str, Any]


def markdown(state: Mapping[str, Any]) -> str:
    """All blocks of a ``gpu_day.json`` that have something to show."""
    call = state["calls"][-1]
    machine, packages = call["machine"], call["packages"]
    parts = [
        f"{machine['gpu'] or machine['cpu']}, driver {call['driver']}, {machine['cores']} cores, "
        f"torch {packages['torch']} (CUDA {machine['cuda']}, cuDNN {machine['cudnn']}), Python "
        f"{machine['python']}; data digest `{str(call['data'])[:8]}…`; "
        f"{state['calls'][0]['started'][:10]}."
    ]
    results = state["results"]
    for block, show in (
        ("laws", _laws),
        ("speed", _speed),
        ("recipes", _runs),
        ("seeds", _runs),
        ("ablations", _ablations),
        ("slots", _slots),
    ):
        if results.get(block):
            parts.append(f"### {block}\n\n" + show(results[block]))
    cut = [
        f"{block}: {name} ({result['status']})"
        for block, tasks in results.items()
        for name, result in tasks.items()
        if result["status"] != "done"
    ]
    parts += ["Not done: " + "; ".join(cut) + "."] if cut else []
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _laws(tasks: Mapping[str, Any]) -> str:
    lines = []
    for name, result in tasks.items():
        if not result["rows"]:
            continue
        counts, *failures = result["rows"]
        lines.append(f"- {name}: " + ", ".join(f"{n} {end}" for end, n in counts.items()))
        lines += [f"  - {failure['end']}: `{failure['test']}`" for failure in failures]
    return "\n".join(lines)


def _speed(tasks: Mapping[str, Any]) -> str:
    parts = []
    for network, result in tasks.items():
        rows = [row for row in result["rows"] if row.get("images_per_s")]
        names = list(dict.fromkeys(row["name"] for row in rows))
        ours = {row["round"]: row["images_per_s"] for row in rows if row["name"] == "ours"}
        lines = []
        for name in names:
            own = [row for row in rows if row["name"] == name]
            rates = [row["images_per_s"] for row in own]
            ratios = [
                row["images_per_s"] / ours[row["round"]] for row in own if row["round"] in ours
            ]
            peak = own[-1].get("peak_mb")
            lines.append(
                [
                    name,
                    f"{statistics.median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})",
                    f"{statistics.median(row['step_ms'] for row in own):.3f}",
                    f"{statistics.median(ratios):.2f}" if ratios else "",
                    f"{peak:,.0f}" if peak else "",
                    str(len(own)),
                ]
            )
        head = (network, "images/s", "ms a step", "times ours", "peak MB", "n")
        failed = {row["name"]: row["error"] for row in result["rows"] if row.get("error")}
        parts.append(
            _table(head, lines) + "".join(f"\n\nfailed: {n}: {e}" for n, e in failed.items())
        )
    return "\n\n".join(parts)


def _runs(tasks: Mapping[str, Any]) -> str:
    lines = []
    for name, result in tasks.items():
        rows = [row for row in result["rows"] if row.get("test/acc") is not None]
        without = [row["test/acc_without_tta"] for row in rows if row.get("test/acc_without_tta")]
        seconds = [row["fit_s"] for row in rows if row.get("fit_s")]
        lines.append(
            [
                name,
                interval([row["test/acc"] for row in rows]),
                interval(without),
                f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"
                if seconds
                else "",
                f"{result['seconds']:.0f}",
                str(len(rows)),
            ]
        )
    head = ("recipe", "test accuracy, %", "without views", "fit s", "whole s", "n")
    return _table(head, lines)


def _ablations(tasks: Mapping[str, Any]) -> str:
    """A recipe whole and without each ingredient; `cifar_lab.report` has the differences."""
    by_ablation = {}
    for name, result in tasks.items():
        for ablation in dict.fromkeys(row["ablation"] for row in result["rows"]):
            rows = [row for row in result["rows"] if row["ablation"] == ablation]
            by_ablation[f"{name}, {ablation or 'whole'}"] = {**result, "rows": rows}
    return _runs(by_ablation)


def interval(accuracies: Sequence[float]) -> str:
    """Mean in per cent with its 95% interval (Student's t), where there are two."""
    if not accuracies:
        return ""
    mean = 100 * statistics.mean(accuracies)
    if len(accuracies) < 2:
        return f"{mean:.2f}"
    n = len(accuracies)
    half = 100 * stats.t.ppf(0.975, n - 1) * statistics.stdev(accuracies) / n**0.5
    return f"{mean:.2f} ± {half:.2f}"


def _slots(tasks: Mapping[str, Any]) -> str:
    rows = [row for result in tasks.values() for row in result["rows"]]
    first = rows[0]["wall_s"] if rows else 1.0
    lines = [
        [
            str(row["slots"]),
            f"{row['wall_s']:.1f}",
            f"{first / row['wall_s']:.2f}",
            f"{row['images_per_s_each'] or 0:,.0f}",
            str(row["finished"]),
        ]
        for row in rows
    ]
    return _table(("at a time", "wall s", "times one", "images/s each", "finished"), lines)
