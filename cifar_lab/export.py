"""``python -m cifar_lab.export RUN``: a finished run's network as a file that runs elsewhere.

    python -m cifar_lab.export RUN [--format onnx|torch|safetensors] [--quantize int8]
                               [--out FILE] [--force] [--ckpt best|last|FILE] [--data PATH]
                               [--json] [--trust MODULE]

The file takes images (N, 3, H, W), float32 in [0, 1], and gives logits; normalization and the run's
test-time augmentation are inside. It is held against the checkpoint on 256 test images before it
takes its place. Status 1: it doesn't answer as it should, and was not kept.

--format    onnx (default), torch (for torch.export.load), safetensors (weights, and how to rebuild)
--quantize  int8, of onnx: calibrated on held-out images
--out       the file (RUN/export/model.onnx, model-int8.onnx, model.pt2, model.safetensors)
--force     replaces a file that is there
--data      where the run's images lie now, or others of its classes
--trust     a module of your own that the record may name
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifar_lab.config.command import Parser, run_command, usage_in
from cifar_lab.errors import InputError
from cifar_lab.records.files import expanded

if TYPE_CHECKING:
    from cifar_lab.inference.export import Exported
    from cifar_lab.run.load import Run


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; its exit status: 0, 1 where the file fails its check, 2 for wrong input.

    130, 143: stopped by Ctrl-C, SIGTERM.
    """
    return run_command(arguments, lambda words: _export(_parse(words)), text=__doc__)


def _export(given: argparse.Namespace) -> int:
    from rich.console import Console

    from cifar_lab.inference.export import CheckFailed, check_installed, export, images_for
    from cifar_lab.run.load import load_run

    check_installed(given.format)
    run = load_run(given.run, given.ckpt, trust=given.trust)
    out = _out(given, run)
    data = images_for(run, given.data)
    console = Console(stderr=True)
    try:
        with console.status("") as status:  # on a terminal alone
            done = export(
                run,
                out,
                data,
                form=given.format,
                quantize=given.quantize,
                done=lambda step: status.update(step),
            )
    except CheckFailed as error:
        print(f"cifar_lab: {run.folder}: {error}; no file was kept", file=sys.stderr)
        return 1
    # of these weights on these images
    own = given.ckpt == "best" and given.data is None
    recorded = run.metrics.get("test/acc") if own else None
    if given.json:
        print(json.dumps(_json(done, run, recorded), indent=2))
    else:
        _print(done, run, recorded)
    return 0


def _out(given: argparse.Namespace, run: Run) -> Path:
    from cifar_lab.inference.export import SUFFIXES

    suffix = SUFFIXES[given.format]
    if given.out is None:
        quantized = "" if given.quantize is None else f"-{given.quantize}"
        out = run.folder / "export" / f"model{quantized}{suffix}"
        if (run.folder / "export").is_symlink():
            raise InputError(f"{out.parent}: leads out of the run folder; give --out FILE")
    else:
        out = expanded(given.out).absolute()
        if out.suffix != suffix:
            raise InputError(f"--out {given.out}: --format {given.format} makes a {suffix} file")
        if not out.parent.is_dir():
            raise InputError(f"--out {given.out}: there is no folder {out.parent}")
    if out.is_dir():
        raise InputError(f"--out {out}: is a folder; give a file")
    if out.exists() and not given.force:
        raise InputError(f"--out {out}: is there already; --force replaces it")
    return out


def _print(done: Exported, run: Run, recorded: float | None) -> None:
    def line(name: str, text: str) -> None:
        print(f"{name:<13}{text}")

    line("file", f"{done.path} ({done.size:,} bytes)")
    line("from", f"{run.checkpoint.name} ({run.digest[:12]}), tta={run.model.tta}")
    line("input", str(done.facts["input"]))
    same = f"{done.top1} of {done.checked} test images get the checkpoint's class"
    line("checked", f"{same}, logits within {done.difference:.2g}")
    before = "" if done.before is None else f", {100 * done.before:.2f} % in float32"
    line("accuracy", f"{100 * done.accuracy:.2f} % of {done.facts['tested_on']}{before}")
    if recorded is not None:
        line("", f"{100 * recorded:.2f} % in the run's own test")
    if done.before is not None:
        line("calibrated", f"on {done.facts['calibrated_on']}")
    for one in done.latency:
        of = done.facts["latency"]["of"]
        images = f"{one.images} image{'s' * (one.images > 1)}"
        line(
            "latency",
            f"{one.median:.2f} of {of} ({one.low:.2f} to {one.high:.2f} in 80 % of "
            f"{one.rounds} rounds) for {images}",
        )
    for note in done.notes:
        print(f"cifar_lab: {note}", file=sys.stderr)


def _json(done: Exported, run: Run, recorded: float | None) -> dict[str, Any]:
    return {
        "file": str(done.path),
        "bytes": done.size,
        "checkpoint": str(run.checkpoint),
        "checked": {
            "images": done.checked,
            "same_class": done.top1,
            "largest_difference": done.difference,
        },
        "recorded_accuracy": recorded,
        "notes": list(done.notes),
        "metadata": done.facts,
    }


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = Parser(usage_in(__doc__))
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--format", choices=("onnx", "torch", "safetensors"), default="onnx")
    parser.add_argument("--quantize", choices=("int8",))
    parser.add_argument("--out")
    parser.add_argument("--force", action="store_true")
    parser.add_argument("--ckpt", default="best")
    parser.add_argument("--data")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--trust", action="append", default=[])
    given = parser.parse_args(list(words))
    if given.quantize is not None and given.format != "onnx":
        raise InputError(f"--quantize {given.quantize}: is for --format onnx alone")
    return given


if __name__ == "__main__":
    sys.exit(main())
