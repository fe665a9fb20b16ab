"""How figures are written for people: in the bar, the log and the closing table."""

from __future__ import annotations

from collections.abc import Iterator

from rich.text import Text


def epoch_rows(
    epoch: str, metrics: dict[str, float], speed: float, total_s: float, *, best: bool
) -> tuple[Text, Text]:
    """The header and one finished epoch, in columns; the best validation so far has a star."""
    columns = [("epoch", epoch)]
    for name, value in _shown(metrics):
        columns.append((name, f"{value}{' *' if best else '  '}" if name == "val/acc" else value))
    columns += [("images/s", f"{speed:,.0f}"), ("time", clock(total_s))]
    header = "".join(f"{name:>{_width(name)}}" for name, _ in columns)
    row = Text("".join(f"{value:>{_width(name)}}" for name, value in columns), no_wrap=True)
    if best:
        row.stylize("bold")
    return Text(header, style="dim", no_wrap=True), row


def _width(column: str) -> int:
    return {"epoch": 9, "time": 9}.get(column, 12)


def log_line(metrics: dict[str, float], speed: float, total_s: float) -> str:
    """One finished epoch as text, for the log.

    Args:
        metrics: by name; accuracies are fractions.
        speed: training images/s.
        total_s: of the epoch, validation included.
    """
    parts = [f"{name} {value}" for name, value in _shown(metrics)]
    return ", ".join([*parts, images_per_s(speed), f"{total_s:.1f} s"])


def _shown(metrics: dict[str, float]) -> Iterator[tuple[str, str]]:
    for name in ("train/loss", "train/acc", "val/loss", "val/acc"):
        if name in metrics:
            value = metrics[name]
            yield name, percent(value) if name.endswith("acc") else f"{value:.4f}"


def percent(fraction: float) -> str:
    """A fraction in [0, 1] as percent with one decimal."""
    return f"{100 * fraction:.1f} %"


def images_per_s(rate: float) -> str:
    """A rate with thousands apart."""
    return f"{rate:,.0f} images/s"


def csv_cell(value: object) -> object:
    """A value as a spreadsheet may be given it: text that it would take for a formula has a ``'``.

    A folder's or a class's name may come from anybody; numbers stay what they are. Source:
    https://owasp.org/www-community/attacks/CSV_Injection
    """
    if not isinstance(value, str) or not value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, whole_s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{whole_s:02}" if hours else f"{minutes}:{whole_s:02}"
