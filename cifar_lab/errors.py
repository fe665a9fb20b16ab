"""How a run can end other than well: each becomes an exit status and one clear line."""

from __future__ import annotations

from collections.abc import Sequence


def printable(text: str) -> str:
    """Text from elsewhere as one line that any terminal may be sent.

    A file's name may hold line breaks, bytes that are no UTF-8, or what a terminal takes for a
    command: each such character becomes its escape, as in ``\\n`` or ``\\x1b``.
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


class InputError(ValueError):
    """The person's input is wrong (exit status 2).

    The message is one line: the value, what is allowed, and what to do, e.g.
    ``data.val_size=60000: must lie in 0..49999 (the training split has 50000 images)``.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class Diverged(RuntimeError):
    """A loss became NaN or infinite (exit status 1, ``status: diverged``)."""


class Interrupted(BaseException):
    """Ctrl-C (130) or SIGTERM (143). Not an ``Exception``: nothing below may swallow it.

    Attributes:
        exit_status: 128 + the signal's number.
        told: whether the command that continues has been printed already.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by signal {signum}")
        self.exit_status = 128 + signum
        self.told = False


class JobFailed(RuntimeError):
    """A job of a sweep has ended with another status than 0.

    It is raised to Hydra's launchers, which carry it out of whatever process the job ran in.

    Attributes:
        reason: one line.
        folder: of the job.
    """

    def __init__(self, reason: str, folder: str) -> None:
        super().__init__(reason, folder)
        self.reason = reason
        self.folder = folder

    def __str__(self) -> str:
        return f"{self.reason}; folder: {self.folder}"


def memory_ran_out(error: str) -> bool:
    """Whether an error, as a record has it, is of too little memory: on the CPU or on a device."""
    words = ("OutOfMemoryError", "MemoryError", "DefaultCPUAllocator", "out of memory")
    return any(word in error for word in words)


def reason_of(error: BaseException) -> str:
    """The first line of what an error says, or its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def listed(names: Sequence[str], most: int, separator: str = ", ") -> str:
    """``a, b and 3 more``: as many names as a line takes."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return separator.join(names[:most]) + more
