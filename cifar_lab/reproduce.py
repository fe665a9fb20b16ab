"""``python -m cifar_lab.reproduce RUN``: runs a finished run again, and compares.

    python -m cifar_lab.reproduce RUN [--out DIR] [--trust MODULE] [data.root=PATH …]

Builds the configuration that RUN's run.json holds, says what is different here, runs it into a new
folder beside RUN, and compares weights, metrics and predictions: to the bit where nothing is
different, else within the spread that the recorded seeds show. Status 0: reproduced; 1: it is not.
Nothing is fetched. Keys that change no result may be given, and init_from.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from cifar_lab import signals
from cifar_lab.errors import InputError, Interrupted

_USAGE = "python -m cifar_lab.reproduce RUN [--out DIR] [--trust MODULE] [data.root=PATH …]"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; its exit status: 0 reproduced, 1 not, 2 wrong input, 130, 143 stopped."""
    signals.install()
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if {"-h", "--help"} & set(words):
            print(__doc__)
            return 0
        return _reproduce(_parse(words))
    except InputError as error:
        print(f"cifar_lab: {error}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        return stop.exit_status


def _reproduce(given: argparse.Namespace) -> int:
    from cifar_lab.run.reproduce import plan, reproduce

    planned = plan(given.run, given.overrides, out=given.out, trust=given.trust)
    print(f"again        {given.run}\ninto         {planned.asked.run_dir}")
    print(f"different    {planned.otherwise or 'nothing'}", flush=True)
    done = reproduce(planned)
    if done.status:
        return done.status
    print()
    for line in (*done.same, *done.differing):
        print(line)
    print(f"\n{done.verdict}")
    return 0 if done.reproduced else 1


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; usage: {_USAGE}")


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--trust", action="append", default=[])
    return parser.parse_intermixed_args(list(words))


if __name__ == "__main__":
    sys.exit(main())
