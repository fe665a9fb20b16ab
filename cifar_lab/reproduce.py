"""``python -m cifar_lab.reproduce RUN``: runs a finished run again, and compares.

    python -m cifar_lab.reproduce RUN [--data PATH] [--init-from RUN|FILE] [--distill-from RUN]
                                  [--out DIR] [--trust MODULE]

Builds the configuration that RUN's run.json holds, says what is different here, runs it into a new
folder beside RUN, and compares weights, metrics and predictions: to the bit where nothing is
different, else within the spread that the recorded seeds show. Status 0: reproduced; 1: it is not.

--data          where its images lie now; nothing is fetched
--init-from     where the weights lie now that it began with
--distill-from  where a run lies now that it learned from; once for each, in their order
--out           another new folder; one that holds a start of this reproduction goes on
--trust         a module of your own that the record may name
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cifar_lab import streams
from cifar_lab.config.command import Parser, run_command, usage_in


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; its exit status: 0 reproduced, 1 not, 2 wrong input, 130, 143 stopped."""
    return run_command(arguments, lambda words: _reproduce(_parse(words)), text=__doc__)


def _reproduce(given: argparse.Namespace) -> int:
    from cifar_lab.run.reproduce import plan, reproduce

    planned = plan(
        Path(given.run),
        data=given.data,
        init_from=given.init_from,
        distill_from=given.distill_from,
        out=None if given.out is None else Path(given.out),
        trust=given.trust,
    )
    _say(f"again        {given.run}", f"into         {planned.asked.run_dir}")
    _say(f"different    {planned.otherwise or 'nothing'}")
    for note in planned.notes:
        print(f"cifar_lab: {given.run}: {note}", file=sys.stderr)
    done = reproduce(planned)
    if done.status:
        return done.status
    _say("", *done.same, *done.differing, *done.lacking, "", done.verdict)
    return 0 if done.reproduced else 1


def _say(*lines: str) -> None:
    try:
        print("\n".join(lines), flush=True)
    except BrokenPipeError:  # the status is the answer
        streams.discard_output()


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = Parser(usage_in(__doc__))
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--data")
    parser.add_argument("--init-from")
    parser.add_argument("--distill-from", action="append", default=[])
    parser.add_argument("--out")
    parser.add_argument("--trust", action="append", default=[])
    given = parser.parse_args(list(words))
    for flag in ("data", "init_from", "distill_from", "out"):
        if getattr(given, flag) in ("", [""]):
            parser.error(f"--{flag.replace('_', '-')}: is empty")
    return given


if __name__ == "__main__":
    sys.exit(main())
