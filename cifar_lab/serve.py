"""``python -m cifar_lab.serve RUN``: a finished run's network behind a page on this machine.

    python -m cifar_lab.serve RUN [--port N] [--ckpt best|last|FILE] [--trust MODULE]

A picture is dropped, pasted or chosen on the page; POST /predict answers the same in JSON, /docs
describes it. Nothing leaves this machine, and nobody else's can reach it. Ctrl-C ends it.

--port   8000, or the next one that is free
--trust  a module of your own that a record may name
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from cifar_lab.config.command import Parser, run_command, usage_in
from cifar_lab.errors import InputError

FIRST_PORT = 8000
_NEEDED = ("fastapi", "uvicorn", "python_multipart")


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until Ctrl-C (130) or SIGTERM (143); 2: wrong input."""
    return run_command(
        arguments, lambda words: _serve(_parse(words)), text=__doc__, stopped="serve ended"
    )


def _serve(given: argparse.Namespace) -> int:
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise InputError(
            f"serve: needs {' and '.join(missing)}; pip install 'cifar-lab[serve,explain]'"
        )
    from cifar_lab.config.port import listen, port_of
    from cifar_lab.run.load import load_run

    with listen(given.port, first=FIRST_PORT) as listener:
        run = load_run(given.run, given.ckpt, trust=given.trust)
        from cifar_lab.inference.serving.answers import Answers, examples_of
        from cifar_lab.inference.serving.app import create_app
        from cifar_lab.inference.serving.server import serving

        try:
            examples = examples_of(run)
        except InputError as error:
            examples = []
            print(f"cifar_lab: no examples: {error}", file=sys.stderr)
        if find_spec("captum") is None:
            print(
                "cifar_lab: no activation maps: they need captum; pip install 'cifar-lab[explain]'",
                file=sys.stderr,
            )
        answers, port = Answers(run), port_of(listener)
        app = create_app(run, answers, port=port, examples=examples)
        try:
            with serving(app, listener) as ended:
                print(
                    f"cifar_lab: {Path(given.run)}: {len(run.classes)} classes, "
                    f"{run.checkpoint.name}; Ctrl-C ends it\nhttp://127.0.0.1:{port}/",
                    flush=True,
                )
                ended.wait()
        finally:
            answers.close()
    raise RuntimeError("the server ended by itself")


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = Parser(usage_in(__doc__))
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--port", type=int)
    parser.add_argument("--ckpt", default="best")
    parser.add_argument("--trust", action="append", default=[])
    return parser.parse_args(list(words))


if __name__ == "__main__":
    status = main()
    if threading.active_count() > 1:
        # a picture is still being answered, and Python would wait for it
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
