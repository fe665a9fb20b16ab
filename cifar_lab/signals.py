"""Ctrl-C and SIGTERM, from the first instant on: either ends the run in order, with 130 or 143.

Outside training the signal ends what is going on at once. While `deferred` is on, the first one
waits for `poll`, which the training loop calls between two steps, so that what is saved is whole;
a second one doesn't wait. Inside `shielded` none interrupts: what is being written gets written.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from cifar_lab.errors import Interrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_deferring = False
_shields = 0
_received: int | None = None


def _handle(signum: int, frame: FrameType | None) -> None:
    global _received
    first, _received = _received is None, signum
    if not (_shields or (_deferring and first)):
        raise Interrupted(signum)


def install() -> None:
    """Takes both signals over. Lightning adds its own SIGTERM handler in fit: call it again there.

    A process that was started with SIGINT ignored (``nohup``, ``cmd &`` in a script) keeps that.
    """
    for signum in _SIGNALS:
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, _handle)


@contextmanager
def prevailing() -> Iterator[None]:
    """An error that a signal led to is `Interrupted`: an import that it broke off says anything."""
    global _received
    _received = None
    try:
        yield
    except Exception as error:
        if _received is not None:
            raise Interrupted(_received) from error
        raise


@contextmanager
def deferred() -> Iterator[None]:
    """While it lasts the first signal is kept for `poll`."""
    global _deferring, _received
    _deferring, _received = True, None
    try:
        yield
    finally:
        _deferring = False
    poll()


@contextmanager
def shielded() -> Iterator[None]:
    """While it lasts signals wait; what came in between is for the next `poll`."""
    global _shields
    _shields += 1
    try:
        yield
    finally:
        _shields -= 1


def pending() -> int:
    """The signal that waits for `poll`; 0 where none does."""
    return _received or 0


def receive(signum: int) -> None:
    """Takes a signal that another process of the run got as this one's own."""
    global _received
    _received = signum


def poll() -> None:
    """Raises `Interrupted` if a signal waits."""
    global _received
    if _received is not None:
        signum, _received = _received, None
        raise Interrupted(signum)
