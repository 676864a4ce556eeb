"""Who may ask the local page, and how much it may store: a gate in front of its server.

A page that is served to this computer alone is still reached by every web site that a browser on this computer shows:
a site sends requests here, under its own name (which it lets lead here) or under the page's. Of a request the browser
says where it comes from, by ``Host``, ``Origin`` and ``Sec-Fetch-Site``, which no site can change. Programs on this
computer can do what they like anyway; against them stand the limits alone.
"""

import os
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

# One request may be as large, a photo with what a form puts around it; all that is stored, photos and maps, together.
LARGEST_PHOTO = 20 * 2**20
LARGEST_REQUEST = LARGEST_PHOTO + 2**16
LARGEST_STORE = 200 * 2**20
MOST_FILES = 2000

_NAMES = ("127.0.0.1", "localhost")
# What the page consists of, and what it may ask: nothing from elsewhere, and nobody may show it in a frame.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; object-src 'none'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

# ASGI's own types: a request, a message of it, and who takes both.
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class Store:
    """The folder of uploads and of pictures that the page shows: the oldest go when it is full.

    Args:
        folder: nothing else is in it.
        largest: how many bytes it may hold, with all that is being uploaded.
        most: how many files.
    """

    def __init__(self, folder: Path, largest: int = LARGEST_STORE, most: int = MOST_FILES) -> None:
        self._folder, self._largest, self._most = folder, largest, most
        self._arriving = 0
        # What is there before anything is uploaded are the page's examples.
        self._kept: frozenset[Path] = frozenset()

    def keep(self) -> None:
        """Never remove what is there now."""
        self._kept = frozenset(path for _, _, path in self._files())

    def take(self, size: int) -> bool:
        """Make room for what arrives; False if too much arrives at once."""
        arriving = self._arriving + size
        if 2 * arriving > self._largest:
            return False
        self._arriving = arriving
        self._remove_oldest(self._largest - arriving)
        return True

    def took(self, size: int) -> None:
        """Note that what was to arrive is here, or never comes."""
        self._arriving -= size

    def _remove_oldest(self, room: int) -> None:
        files = sorted(self._files())
        total, count = sum(size for _, size, _ in files), len(files)
        for _, size, path in files:
            if total <= room and count < self._most:
                return
            if path not in self._kept:
                path.unlink(missing_ok=True)
                total, count = total - size, count - 1
                if path.parent != self._folder:
                    _remove_if_empty(path.parent)

    def _files(self) -> list[tuple[float, int, Path]]:
        """Return when each file was last used, its size and where it is."""
        files = []
        for folder, _, names in os.walk(self._folder):
            for path in (Path(folder, name) for name in names):
                try:
                    stat = path.lstat()
                except FileNotFoundError:
                    continue
                files.append((stat.st_mtime, stat.st_size, path))
        return files


class Gate:
    """Lets through what the page itself asks, and says of all else why not.

    Args:
        app: the page's server.
        store: where it keeps what is uploaded.
    """

    def __init__(self, app: Application, store: Store) -> None:
        self._app, self._store = app, store

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, _with_headers(send))
        else:
            # The page opens no web socket.
            await send({"type": "websocket.close"})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = _headers(scope)
        if too_large := _unbounded(scope, headers):
            await _refuse(send, *too_large)
            return
        if foreign := _foreign(scope, headers):
            await _read_away(receive)
            await _refuse(send, *foreign)
            return
        if "content-length" not in headers:
            await self._app(scope, receive, send)
            return
        size = int(headers["content-length"][0])
        if not self._store.take(size):
            await _read_away(receive)
            await _refuse(send, HTTPStatus.SERVICE_UNAVAILABLE, "too much is being uploaded at once. Try again.")
            return
        try:
            await self._app(scope, receive, send)
        finally:
            self._store.took(size)


def _headers(scope: Scope) -> dict[str, list[str]]:
    """Return what each header says; a list, for one may be sent twice."""
    headers: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
    return headers


def _foreign(scope: Scope, headers: Mapping[str, Sequence[str]]) -> tuple[HTTPStatus, str] | None:
    """Return the refusal of what does not come from the page itself, or None."""
    hosts = headers.get("host", [])
    if len(hosts) != 1 or hosts[0].partition(":")[0].lower() not in _NAMES:
        # Under another name, which leads here, a site would be the page's own origin.
        return HTTPStatus.MISDIRECTED_REQUEST, "the page must be asked as 127.0.0.1 or localhost. Open that address."
    is_own = all(origin == f"http://{hosts[0]}" for origin in headers.get("origin", []))
    is_own &= all(site in ("same-origin", "none") for site in headers.get("sec-fetch-site", []))
    if not (is_own or _is_link_to_page(scope, headers)):
        return HTTPStatus.FORBIDDEN, "requests must come from the page itself. Open the page."
    if "://" in scope["path"] or "/proxy=" in scope["path"]:
        # Gradio would fetch it, with this computer's address.
        return HTTPStatus.FORBIDDEN, "the page asks nothing of other computers. Upload a file."
    return None


def _is_link_to_page(scope: Scope, headers: Mapping[str, Sequence[str]]) -> bool:
    """Tell whether somebody follows a link to the page, which may stand anywhere."""
    return (
        scope["method"] == "GET"
        and scope["path"] == "/"
        and headers.get("sec-fetch-mode") == ["navigate"]
        and headers.get("sec-fetch-dest") == ["document"]
        and "origin" not in headers
    )


def _unbounded(scope: Scope, headers: Mapping[str, Sequence[str]]) -> tuple[HTTPStatus, str] | None:
    """Return the refusal of what is too large, or does not say how large it is, or None."""
    if scope["method"] in ("GET", "HEAD", "OPTIONS") and not {"content-length", "transfer-encoding"} & {*headers}:
        return None
    lengths = headers.get("content-length", [])
    if "transfer-encoding" in headers or len(lengths) != 1 or not lengths[0].isdecimal():
        return HTTPStatus.LENGTH_REQUIRED, "a request must say how large it is. Send Content-Length."
    if int(lengths[0]) > LARGEST_REQUEST:
        return (
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"a photo must be at most {LARGEST_PHOTO >> 20} MB. Make it smaller.",
        )
    return None


def _with_headers(send: Send) -> Send:
    """Return what sends the same with the headers of this file."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            ours = {name.lower().encode(): text.encode() for name, text in HEADERS.items()}
            others = [(name, text) for name, text in message.get("headers", []) if name.lower() not in ours]
            message = {**message, "headers": [*others, *ours.items()]}
        await send(message)

    return sending


async def _read_away(receive: Receive) -> None:
    """Let a request that is not too large come to its end: who sends hears no answer before it is sent."""
    while (await receive()).get("more_body", False):
        pass


async def _refuse(send: Send, status: HTTPStatus, reason: str) -> None:
    text = reason.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(text)).encode())]
    # What is not read of the request is dropped with the connection.
    headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": int(status), "headers": headers})
    await send({"type": "http.response.body", "body": text})


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        # Something else is in it, or it is gone.
        return
