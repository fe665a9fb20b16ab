"""The port on which a command serves this machine, and nobody else."""

from __future__ import annotations

import socket
from contextlib import suppress

from cifar_lab.errors import InputError

HOST = "127.0.0.1"
TRIED = 20  # ports from the first one on


def listen(port: int | None, *, first: int) -> socket.socket:
    """A socket that listens on ``port`` of this machine's own address.

    Args:
        port: None: ``first``, or the next one that nobody listens on, or else any.
        first: where the search begins.

    Raises:
        InputError: ``port`` is no port, or is taken.
    """
    if port is not None:
        if not 0 < port < 2**16:
            raise InputError(f"--port={port}: must lie in 1..65535; leave it out for a free one")
        try:
            return socket.create_server((HOST, port))
        except OSError as error:
            reason = error.strerror or str(error)
            raise InputError(
                f"--port={port}: can't be listened on ({reason.partition(' (')[0]}); give another, "
                "or leave it out for a free one"
            ) from error
    for tried in (*range(first, min(first + TRIED, 2**16)), 0):
        with suppress(OSError):
            return socket.create_server((HOST, tried))
    raise InputError("--port: no free port on this machine")


def port_of(listener: socket.socket) -> int:
    """The port that a socket of `listen` has."""
    return int(listener.getsockname()[1])
