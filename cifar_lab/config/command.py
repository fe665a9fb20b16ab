"""What the commands beside a run share: how arguments are read, and how they end."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

from cifar_lab import signals, streams
from cifar_lab.errors import InputError, Interrupted, printable

if TYPE_CHECKING:
    from rich.console import Console

# What is wrong with a path as it was given, wherever that shows
_OF_A_PATH = (errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES)


class Parser(argparse.ArgumentParser):
    """Raises InputError, with the usage, where argparse would print a page and end the process."""

    def __init__(self, usage: str) -> None:
        super().__init__(usage=usage, add_help=False, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """As one line."""
        raise InputError(f"{message}; usage: {self.usage}")


def usage_in(text: str | None) -> str:
    """The command line in a command's docstring, its second paragraph, on one line."""
    return " ".join((text or "\n\n").split("\n\n")[1].split())


def run_command(
    arguments: Sequence[str] | None,
    command: Callable[[list[str]], int],
    *,
    text: str | None,
    prefix: str = "cifar_lab: ",
    stopped: str | None = None,
) -> int:
    """Runs a command; returns its exit status: its own, 2 for wrong input, 130 or 143 when stopped.

    Args:
        arguments: None: those of this process.
        command: the arguments -> the exit status.
        text: what ``--help`` prints.
        prefix: of the line that says what is wrong.
        stopped: what is said where a signal is the way to end it.
    """
    streams.open_missing()
    streams.take_any_name()
    signals.install()
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if {"-h", "--help"} & set(words):
            print(text)
            status = 0
        else:
            if "" in words:  # as "$RUN" gives one where RUN isn't set: not the working directory
                raise InputError("'': an argument is empty; is its variable set?")
            with signals.prevailing():
                status = command(words)
        if (reason := streams.output_is_refused()) is not None:
            streams.say_refused(reason, prefix)
            return 1
        return status
    except InputError as error:
        print(f"{prefix}{error}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        if stopped:
            print(f"\n{prefix}{stopped}", file=sys.stderr)
        return stop.exit_status
    except BrokenPipeError:  # `| head`: the reader has what it wanted
        streams.discard_output()
        return 0
    except OSError as error:
        if error.errno in _OF_A_PATH and error.filename is not None:
            print(f"{prefix}{printable(str(error.filename))}: {error.strerror}", file=sys.stderr)
            return 2
        if (reason := streams.output_is_refused(ask=True)) is None:
            raise
        streams.say_refused(reason, prefix)
        return 1


def table_console() -> Console:
    """For tables: into a file or a pipe goes all of their width."""
    from rich.console import Console

    class Table(Console):
        def on_broken_pipe(self) -> None:
            # `| head`: rich would end the process, with what is still to be written left undone
            self.quiet = True
            streams.discard_output()

    console = Table(highlight=False)
    return console if console.is_terminal else Table(highlight=False, width=140)
