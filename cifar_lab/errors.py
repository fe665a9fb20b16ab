"""How a run can end other than well: each becomes an exit status and one clear line."""

from __future__ import annotations

from collections.abc import Sequence


class InputError(ValueError):
    """The person's input is wrong (exit status 2).

    The message is one line: the value, what is allowed, and what to do, e.g.
    ``data.val_size=60000: must lie in 0..49999 (the training split has 50000 images)``.
    """


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
