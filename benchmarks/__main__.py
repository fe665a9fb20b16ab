"""Ours against a bare loop, the original report's and a Lightning template: one session, one table.

    python -m benchmarks [--short] [--networks cnn,resnet10,resnet1111] [--rounds N]
    python -m benchmarks --also 'peer=python peer.py'     another program in the same table
    python -m benchmarks --imports                        where the time of start-up goes

Every measurement is a process of its own; the order rotates from round to round, ratios are taken
within a round, figures are medians with quartiles. All train the same network, optimizer, batch and
precision without augmentation. Leave the machine alone meanwhile.

--also NAME=COMMAND (or NETWORK:NAME=COMMAND for one table) runs a command of the shell. Its last
line may be JSON with images_per_s and accuracy; else its last number counts: an accuracy with a per
cent sign or up to 1, else images/s. Wall time is always measured.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.arguments import read
from benchmarks.session import Session
from cifar_lab import signals, streams
from cifar_lab.errors import InputError, Interrupted


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints, writes; 1 where a contender failed, 2 for wrong input, 130 for Ctrl-C."""
    streams.open_missing()
    signals.install()
    try:
        given = read(sys.argv[1:] if arguments is None else arguments, __doc__)
        with tempfile.TemporaryDirectory(prefix="cifar_lab_bench_") as temporary:
            session = Session(given, Path(temporary))
            return session.show_imports() if given.imports else session.run()
    except InputError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        return stop.exit_status


if __name__ == "__main__":
    sys.exit(main())
