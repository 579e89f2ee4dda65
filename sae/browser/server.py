"""The server of the page: on this machine only, for its own page only, and with texts as texts.

Names in addresses are numbers, so that nothing that a stranger wrote is ever a path.
"""

import json
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from urllib.parse import urlsplit

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from .layout import FILE_DTYPES
from .notes import Notes, read_explanations, write_explanations
from .payload import LIST_COLUMNS, about_context, about_index, about_latent, about_related, list_columns
from .store import Index, Latent, Place

PAGE = Path(__file__).parent / "page"
KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
_OURS = ("127.0.0.1", "localhost", "::1")
_MAX_BODY = 2**22
_PORTS = 50


@runtime_checkable
class Live(Protocol):
    """The language model, for texts that a user types."""

    def state(self) -> dict[str, Any]:
        """Whether it is there, and why not."""

    def read(self, text: str, place: str) -> dict[str, Any]:
        """The latents of every token of a text."""

    def steer(self, text: str, place: str, edits: list[dict[str, Any]], new_tokens: int) -> dict[str, Any]:
        """What the model writes, clean and with latents changed."""


class _Refused(Exception):
    """A request that is not answered."""


class OnlyOurPage:
    """Answers this machine's own page alone: a page of another site can neither read nor steer.

    The Host must be this machine's, whatever the port, which a tunnel may change; an Origin must be that Host's.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer, with the headers that every answer has."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                ours = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = message | {"headers": [*message["headers"], *ours]}
            await send(message)

        given = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        reason = why_refused(given, scope["method"])
        app = self._app if reason is None else PlainTextResponse(reason, 403)
        await app(scope, receive, with_headers)


def why_refused(headers: Mapping[str, str], method: str) -> str | None:
    """Why a request is not of this machine's own page; None if it is."""
    host = headers.get("host", "")
    if _hostname(host) not in _OURS:
        return "the Host must be this machine"
    origin = headers.get("origin")
    if origin is not None and origin != f"http://{host}":
        return "the Origin must be this page"
    opens = headers.get("sec-fetch-mode") == "navigate" and method == "GET"
    if headers.get("sec-fetch-site", "none") not in ("same-origin", "none") and not opens:
        return "only this page may ask"
    return None


def _hostname(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


Answer = Callable[[Request], Awaitable[Response]]


class Json(JSONResponse):
    """Plain values as ASCII, so that half a surrogate pair, which a stranger's JSON may hold, can be sent too."""

    def render(self, content: Any) -> bytes:
        """Bytes of the answer."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


class Pages:
    """The answers to the page's requests."""

    def __init__(self, index: Index, notes: Notes, live: Live) -> None:
        self.index, self.notes, self.live, self.names = index, notes, live, list(index.places)

    def place_of(self, request: Request) -> Place:
        """The place that is asked for."""
        number = request.path_params["place"]
        if not 0 <= number < len(self.names):
            raise _Refused(f"there is no place {number}")
        return self.index[self.names[number]]

    def latent_of(self, request: Request) -> Latent:
        """The latent that is asked for."""
        place, number = self.place_of(request), request.path_params["latent"]
        if not 0 <= number < place.num_latents:
            raise _Refused(f"{place.name} has latents 0 to {place.num_latents - 1}, not {number}")
        return place[number]

    async def about(self, request: Request) -> Response:
        """The index, in short, and whether the language model is there."""
        return Json(await run_in_threadpool(about_index, self.index) | {"live": self.live.state()})

    async def vocabulary(self, request: Request) -> Response:
        """The texts of all tokens."""
        return Json(await run_in_threadpool(lambda: self.index.vocabulary))

    async def columns(self, request: Request) -> Response:
        """The list of a place, column by column."""
        return Response(
            await run_in_threadpool(packed_columns, self.place_of(request)), media_type="application/x-columns"
        )

    async def latent(self, request: Request) -> Response:
        """A latent."""
        return Json(await run_in_threadpool(about_latent, self.latent_of(request)))

    async def related(self, request: Request) -> Response:
        """Its neighbours, and what fires with it."""
        return Json(await run_in_threadpool(about_related, self.latent_of(request)))

    async def context(self, request: Request) -> Response:
        """More of one passage."""
        at, found = request.path_params["position"], self.latent_of(request)
        if not 0 <= at < self.index.num_tokens:
            raise _Refused("there is no such token")
        return Json(await run_in_threadpool(lambda: about_context(found.context(at, 160, 160))))

    async def active(self, request: Request) -> Response:
        """The latents that are active on a token."""
        at, place = request.path_params["position"], self.place_of(request)
        if not 0 <= at < self.index.num_tokens:
            raise _Refused("there is no such token")
        return Json([list(each) for each in await run_in_threadpool(place.active_at, at)])

    async def search(self, request: Request) -> Response:
        """The latents whose passages hold a text."""
        text, place = request.query_params.get("text", ""), self.place_of(request)
        if not 0 < len(text) <= 200:
            raise _Refused("a text to search for must have 1 to 200 characters")
        return Json([list(each) for each in await run_in_threadpool(place.search, text)])

    async def read_notes(self, request: Request) -> Response:
        """The notes of a place."""
        return Json(self.notes.of(self.place_of(request).name))

    async def write_note(self, request: Request) -> Response:
        """Keep a note."""
        found = self.latent_of(request)
        return Json(await run_in_threadpool(self.notes.put, found.place.name, found.index, await body_of(request)))

    async def explanations(self, request: Request) -> Response:
        """Explanations, written out or read in."""
        place = self.place_of(request)
        if request.method == "GET":
            text = write_explanations(
                self.notes.of(place.name), model=str(self.index.header.about.get("model")), layer=place.name
            )
            return PlainTextResponse(text, media_type="application/jsonl")
        lines = (await content_of(request)).decode("utf-8", "replace").splitlines()
        found = [each for each in read_explanations(lines) if each[0] < place.num_latents]
        return Json({"count": await run_in_threadpool(self.notes.put_many, place.name, found)})

    async def read_text(self, request: Request) -> Response:
        """The latents of every token of a text."""
        body = await body_of(request)
        return Json(
            await run_in_threadpool(
                self.live.read, text_in(body), self.names[number_in(body, "place", len(self.names))]
            )
        )

    async def steer(self, request: Request) -> Response:
        """What the model writes, clean and steered."""
        body = await body_of(request)
        name = self.names[number_in(body, "place", len(self.names))]
        edits = checked_edits(body.get("edits"), self.index[name].num_latents)
        new_tokens = number_in(body, "new_tokens", 257)
        return Json(await run_in_threadpool(self.live.steer, text_in(body), name, edits, new_tokens))

    async def live_state(self, request: Request) -> Response:
        """Whether the language model is there."""
        return Json(self.live.state())

    async def page(self, request: Request) -> Response:
        """A file of the page."""
        name = request.path_params.get("name", "index.html")
        files = {path.name: path for path in PAGE.iterdir() if path.suffix in KINDS}
        if name not in files:
            return PlainTextResponse("there is no such page", 404)
        return Response(files[name].read_bytes(), media_type=KINDS[files[name].suffix])


def make_app(index: Index, notes: Notes, live: Live) -> Starlette:
    """The pages and the data of an index."""
    pages = Pages(index, notes, live)
    at_place, at_latent = "/api/place/{place:int}", "/api/place/{place:int}/latent/{latent:int}"
    routes = [
        Route("/api/index", pages.about), Route("/api/vocabulary", pages.vocabulary),
        Route("/api/live", pages.live_state),
        Route(f"{at_place}/columns", pages.columns), Route(f"{at_place}/search", pages.search),
        Route(f"{at_place}/active/{{position:int}}", pages.active), Route(f"{at_place}/notes", pages.read_notes),
        Route(f"{at_place}/explanations", pages.explanations, methods=["GET", "POST"]),
        Route(at_latent, pages.latent), Route(f"{at_latent}/related", pages.related),
        Route(f"{at_latent}/context/{{position:int}}", pages.context),
        Route(f"{at_latent}/note", pages.write_note, methods=["PUT"]),
        Route("/api/try", pages.read_text, methods=["POST"]), Route("/api/steer", pages.steer, methods=["POST"]),
        Route("/", pages.page), Route("/{name}", pages.page),
    ]  # fmt: skip
    handlers: Any = {_Refused: _told, ValueError: _told, OSError: _told}
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.add_middleware(OnlyOurPage)
    return app


async def _told(request: Request, error: Exception) -> Response:
    return Json({"error": " ".join(str(error).split())[:400]}, 404 if isinstance(error, _Refused) else 400)


async def content_of(request: Request) -> bytes:
    """The bytes that were sent. Raises ValueError if they are too many."""
    content = b""
    async for part in request.stream():
        content += part
        if len(content) > _MAX_BODY:
            raise ValueError(f"what is sent must be at most {_MAX_BODY} bytes")
    return content


async def body_of(request: Request) -> dict[str, Any]:
    """The JSON object that was sent. Raises ValueError if it is none, or too large."""
    content = await content_of(request)
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        raise ValueError("what is sent must be JSON") from None
    if not isinstance(found, dict):
        raise ValueError("what is sent must be a JSON object")
    return found


def text_in(body: dict[str, Any]) -> str:
    """The text of a request. Raises ValueError unless there is one of a sensible length."""
    text = body.get("text")
    if not isinstance(text, str) or not 0 < len(text) <= 20_000:
        raise ValueError("text must have 1 to 20,000 characters")
    return text


def number_in(body: dict[str, Any], name: str, limit: int) -> int:
    """A whole number of a request. Raises ValueError unless it is between 0 and the limit."""
    value = body.get(name)
    if type(value) is not int or not 0 <= value < limit:
        raise ValueError(f"{name} must be a whole number from 0 to {limit - 1}")
    return value


def checked_edits(edits: Any, num_latents: int) -> list[dict[str, Any]]:
    """Changes of latents: {latent, strength}, in units of the latent's maximum; strength null ablates."""
    if not isinstance(edits, list) or not 0 < len(edits) <= 20:
        raise ValueError("edits must be a list of 1 to 20 changes")
    found = []
    for edit in edits:
        if not isinstance(edit, dict):
            raise ValueError("a change must be an object with latent and strength")
        strength = edit.get("strength")
        if strength is not None and not (type(strength) in (int, float) and abs(strength) <= 1000):
            raise ValueError("strength must be a number from -1000 to 1000, or null to ablate")
        found.append({"latent": number_in(edit, "latent", num_latents), "strength": strength})
    return found


def packed_columns(place: Place) -> bytes:
    """The columns of the list: each as numbers of its type, in the order of LIST_COLUMNS, padded to 4 bytes."""
    parts = []
    for name, values in list_columns(place).items():
        content = np.ascontiguousarray(values, FILE_DTYPES[LIST_COLUMNS[name]]).tobytes()
        parts.append(content + bytes(-len(content) % 4))
    return b"".join(parts)


def free_socket(port: int) -> socket.socket:
    """A socket on this machine alone, at the first free port from `port` on. Raises OSError if many are taken."""
    for candidate in range(port, port + _PORTS):
        bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            bound.bind(("127.0.0.1", candidate))
            bound.listen()
            return bound
        except OSError:
            bound.close()
    raise OSError(f"port must be free, but {port} to {port + _PORTS - 1} are taken; give another --port")


def serve(app: Starlette, bound: socket.socket) -> None:
    """Answer until Ctrl-C."""
    config = uvicorn.Config(app, log_level="error", access_log=False, lifespan="off", ws="none")
    uvicorn.Server(config).run(sockets=[bound])
