"""A run's network behind a page and a JSON endpoint."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BaseModel
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from cifar_lab.config.port import HOST
from cifar_lab.data.pictures import FORMATS, MOST_PIXELS
from cifar_lab.errors import InputError
from cifar_lab.inference.serving.answers import Answer, Answers, Example, base_name
from cifar_lab.inference.serving.guard import Guard

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cifar_lab.run.load import Run

log = logging.getLogger("cifar_lab.serve")
_FILES = Path(__file__).parent / "page"
_PLAIN = ("", "application/octet-stream")  # content types of bytes without an envelope
_TAKEN = "send multipart/form-data with a file, or the picture itself as image/* or octet-stream"


@dataclass(frozen=True)
class Limits:
    """What a request may cost.

    Attributes:
        bytes: of its body.
        seconds: to send it, and again to be answered.
        waiting: requests at a time; one more is told to come again.
    """

    bytes: int = 20 * 2**20
    seconds: float = 30.0
    waiting: int = 16


class Problem(BaseModel):
    """Why there is no answer."""

    error: str


_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": text}
    for status, text in (
        (400, "No file, several, or a broken form"),
        (403, "From another site, or under another name than this machine's"),
        (408, "The request was not sent in time"),
        (413, "Too large"),
        (415, "Neither a form nor a picture"),
        (422, "No readable picture, too many pixels, or a wrong parameter"),
        (500, "It failed here"),
        (503, "Too many requests at a time, or the server is ending"),
        (504, "Not answered in time"),
    )
}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_FORM = {
    "schema": {
        "type": "object",
        "required": ["file"],
        "properties": {"file": {"type": "string", "format": "binary"}},
    }
}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": _FORM,
            "image/*": _BINARY,
            "application/octet-stream": _BINARY,
        },
    }
}


def create_app(
    run: Run,
    answers: Answers,
    *,
    port: int,
    examples: Sequence[Example] = (),
    limits: Limits | None = None,
) -> ASGIApp:
    """The page, ``POST /predict`` and what describes it.

    Args:
        run: as `load_run` gives it.
        answers: of that run.
        port: that it will be served on: requests for another host or port are refused.
        examples: that the page offers.
        limits: of a request; None: the usual ones.
    """
    limits = limits or Limits()
    # FastAPI's own pages load scripts from elsewhere
    app = FastAPI(
        title=f"cifar_lab: {run.folder.name}",
        summary="What a finished run's network says to a picture.",
        version=run.digest[:12],
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        # since 0.165 it reports to whom the environment names
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    _say_errors_in_json(app)
    _add_pages(app, run, examples, limits, origin=f"http://{HOST}:{port}")
    occupied = _places(limits.waiting)

    @app.post(
        "/predict",
        response_model=Answer,
        responses=_PROBLEMS,
        openapi_extra=_BODY,
        summary="The likeliest classes of a picture",
        description=f"A picture of any size and mode ({', '.join(FORMATS)}), at most "
        f"{limits.bytes / 2**20:g} MiB and {MOST_PIXELS:,} pixels; of what isn't square the middle "
        "counts. The content decides what it is, not its name or type.",
    )
    async def predict(
        request: Request,
        top: Annotated[int, Query(ge=1, le=1000, description="so many classes")] = 5,
        input: Annotated[bool, Query(description="adds input_png")] = False,
        explain: Annotated[bool, Query(description="adds map_png")] = False,
    ) -> Answer:
        with occupied():
            try:
                async with asyncio.timeout(limits.seconds):
                    name, content = await _sent(request)
            except TimeoutError as error:
                raise HTTPException(
                    408, f"the picture was not sent within {limits.seconds:g} s"
                ) from error
            future = answers.ask(content, name, top=top, show_input=input, explain=explain)
            try:
                return await asyncio.wait_for(asyncio.wrap_future(future), limits.seconds)
            except TimeoutError as error:
                raise HTTPException(504, f"no answer within {limits.seconds:g} s") from error
            except InputError as error:
                raise HTTPException(422, str(error)) from error

    return Guard(app, port=port, most_bytes=limits.bytes)


def _places(count: int) -> Callable[[], AbstractContextManager[None]]:
    """So many may be inside at a time."""
    inside = 0

    @contextmanager
    def occupied() -> Iterator[None]:
        nonlocal inside
        if inside >= count:
            raise HTTPException(
                503, f"{count} requests are being answered; ask again", {"Retry-After": "1"}
            )
        inside += 1
        try:
            yield
        finally:
            inside -= 1

    return occupied


async def _sent(request: Request) -> tuple[str | None, bytes]:
    """The name and the content of the picture."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        async with request.form(max_files=1, max_fields=8) as form:
            files = [part for part in form.values() if isinstance(part, UploadFile)]
            if not files:
                raise HTTPException(400, f"the form holds no file; {_TAKEN}")
            return base_name(files[0].filename), await files[0].read()
    if kind in _PLAIN or kind.startswith("image/"):
        content = await request.body()
        if not content:
            raise HTTPException(400, f"the request is empty; {_TAKEN}")
        return None, content
    raise HTTPException(415, f"Content-Type={kind[:100]}: can't be read; {_TAKEN}")


def _say_errors_in_json(app: FastAPI) -> None:
    def problem(status: int, text: str, headers: Any = None) -> JSONResponse:
        return JSONResponse({"error": text}, status, headers)

    @app.exception_handler(StarletteHTTPException)
    async def refused(request: Request, error: StarletteHTTPException) -> Response:
        text = str(error.detail)
        if error.status_code in (404, 405):
            text = f"{request.method} {request.url.path[:100]}: {text}; see /docs"
        return problem(error.status_code, text, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where, given = first["loc"][-1], str(first.get("input"))[:100]
        return problem(422, f"{where}={given}: {first['msg'][0].lower()}{first['msg'][1:]}")

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=400)  # nobody reads it

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        log.error("%s %s failed", request.method, request.url.path[:100], exc_info=error)
        said = (str(error).splitlines() or [""])[0][:200]
        return problem(500, f"it failed here ({type(error).__name__}: {said})")


def _add_pages(
    app: FastAPI, run: Run, examples: Sequence[Example], limits: Limits, *, origin: str
) -> None:
    environment = Environment(
        loader=FileSystemLoader(_FILES), autoescape=True, undefined=StrictUndefined
    )
    render = environment.get_template
    record = run.record
    page = render("page.html").render(
        name=run.folder.name,
        network=str((record.config or {}).get("model", {}).get("_target_", "")).rpartition(".")[2],
        parameters=record.parameters,
        accuracy=run.metrics.get("test/acc"),
        checkpoint=run.checkpoint.name,
        digest=run.digest,
        classes=run.classes,
        size=run.image_size,
        labels=[one.label for one in examples],
        most_bytes=limits.bytes,
        suffixes=", ".join(FORMATS),
    )

    def add(path: str, content: str | bytes, kind: str) -> None:
        async def answer() -> Response:
            return Response(content, media_type=kind)

        app.add_api_route(path, answer, include_in_schema=False, response_model=None)

    # every path is one of these: none is looked for on the disk
    add("/", page, "text/html")
    add("/page.css", (_FILES / "page.css").read_bytes(), "text/css")
    add("/page.js", (_FILES / "page.js").read_bytes(), "text/javascript")
    for index, one in enumerate(examples):
        add(f"/examples/{index}.png", one.png, "image/png")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(render("docs.html").render(api=app.openapi(), origin=origin))
