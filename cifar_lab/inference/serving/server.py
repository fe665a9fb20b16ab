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
def serving(app: ASGIApp, listener: socket.socket) -> Iterator[threading.Thread]:
    """Answers what comes to a socket of `cifar_lab.config.port.listen`, while it lasts.

    What is being answered at the end is told so; nobody is waited for.

    Yields:
        The thread; alive as long as it serves.
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
    thread = threading.Thread(target=server.run, args=([listener],), name="serve", daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        server.should_exit = True
        thread.join(_END_S)
