"""Standard streams that the shell has closed (``>&-``), which Python leaves out."""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper

_STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


def open_missing() -> None:
    """Opens what is missing of standard input, output and error on the null device.

    Otherwise the next file that is opened has its number, and what libraries print ends in it.
    """
    for number, (name, mode) in enumerate(_STREAMS):
        if not _is_open(number):
            # the lowest free number, which is this one: those below it are open by now
            null = os.open(os.devnull, os.O_RDWR)
            assert null == number
            os.set_inheritable(null, True)
        if getattr(sys, name) is None:
            stream = open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115  (stays open)
            setattr(sys, name, stream)


def take_any_name() -> None:
    """Standard output takes names of files that are no UTF-8, as standard error does: escaped."""
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def discard_output() -> None:
    """Standard output is the null device from now on: its reader (``| head``) is gone."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (flushed when the interpreter ends)


def output_is_refused(*, ask: bool = False) -> str | None:
    """Why what was printed can't be written, in the system's words; None where it can.

    Args:
        ask: print an empty line to find out: what was refused before may be gone by now.
    """
    try:
        if ask:
            print()
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except (OSError, ValueError) as error:  # what is left of it stays, and is refused again
        return getattr(error, "strerror", None) or str(error)
    return None


def say_refused(reason: str, prefix: str = "cifar_lab: ") -> None:
    """One line on standard error in the place of what Python says when it ends."""
    discard_output()
    print(f"{prefix}standard output can't be written ({reason})", file=sys.stderr)


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True
