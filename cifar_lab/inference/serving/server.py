"""The server: it listens in a thread, so that a signal ends the command at once."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

_END_S = 0.8


@contextmanager
def serving(app: ASGIApp, listener: socket.socket) -> Iterator[threading.Event]:
    """Answers what comes to a socket of `cifar_lab.config.port.listen`, while it lasts.

    What is being answered at the end is told so; nobody is waited for.

    Yields:
        Set as soon as it serves no longer.
    """
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        loop="asyncio",
        lifespan="off",
        proxy_headers=False,
        server_header=False,
        access_log=False,
        log_config=None,
        log_level=logging.CRITICAL,  # what fails here is logged by the app
        timeout_graceful_shutdown=0,
    )
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # a broken form is answered
    server = uvicorn.Server(config)
    # No Thread.join: where a signal's exception ends that, Python 3.11 takes the thread for ended
    ended = threading.Event()

    def run() -> None:
        try:
            server.run([listener])
        finally:
            ended.set()

    threading.Thread(target=run, name="serve", daemon=True).start()
    try:
        yield ended
    finally:
        server.should_exit = True
        ended.wait(_END_S)
