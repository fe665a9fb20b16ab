"""What a request must be before anything looks at it: from this machine, from this page, not large.

Any web page that a person has open may send requests to 127.0.0.1. Here it is kept from having
answers (a name of its own that leads here, "DNS rebinding") and from making work.
"""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

NAMES = ("127.0.0.1", "localhost", "[::1]")
# Nothing from elsewhere is loaded or asked, and nobody may put the page into theirs.
SENT = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}


class Guard:
    """Refuses what must not reach the app, and adds `SENT` to every answer.

    Args:
        app: what is guarded.
        port: that it is served on.
        most_bytes: of a request's body.
    """

    def __init__(self, app: ASGIApp, *, port: int, most_bytes: int) -> None:
        self.app = app
        self.most_bytes = most_bytes
        self.hosts = [f"{name}:{port}" for name in NAMES]
        if port == 80:  # which browsers leave out
            self.hosts += NAMES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        started = False

        async def sending(message: MutableMapping[str, Any]) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message).update(SENT)
            await send(message)

        refused = self._refused(scope)
        try:
            if refused is not None:
                await refused(scope, receive, sending)
            else:
                await self.app(scope, self._bounded(receive), sending)
        except asyncio.CancelledError:  # nobody but the server's end cancels
            if not started:
                ending = JSONResponse({"error": "the server is ending"}, 503)
                await ending(scope, receive, sending)

    def _refused(self, scope: Scope) -> JSONResponse | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "").lower()
        if host not in self.hosts:
            return JSONResponse(
                {
                    "error": f"Host={host[:100]}: must be {self.hosts[0]} or {self.hosts[1]} "
                    "(through a tunnel: with the same port on either side)"
                },
                403,
            )
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        following_a_link = (
            scope["method"] == "GET"
            and headers.get("sec-fetch-mode") == "navigate"
            and headers.get("sec-fetch-dest") == "document"
        )
        strange = origin is not None and origin.lower() != f"http://{host}"
        if strange or (site not in (None, "none", "same-origin") and not following_a_link):
            return JSONResponse({"error": "a page of another site may not ask here"}, 403)
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self.most_bytes:
            return JSONResponse({"error": self.too_large}, 413)
        return None

    @property
    def too_large(self) -> str:
        """What is said of a body above the bound."""
        return f"the request has more than {self.most_bytes / 2**20:g} MiB"

    def _bounded(self, receive: Receive) -> Receive:
        """Ends the reading of a body that turns out to be too large."""
        left = self.most_bytes

        async def receiving() -> MutableMapping[str, Any]:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise HTTPException(413, self.too_large)
            return message

        return receiving
