"""The guard before the pages of ``cmt-med view``: only the person at this machine, on a page of ours, gets anything.

A web page that is open in the same browser can send requests to 127.0.0.1, too. It does not know the token, cannot
forge Host or Origin, and is refused by each of these on its own.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_TARGET = 200  # bytes of a request's path
MAX_HEADERS = 60  # a browser sends about 15
MAX_HEADER_BYTES = 16_384
ROUTES = re.compile(rb"(|viewer\.js|page\.css|cases\.json|case/[0-9]{1,6}(/(prediction|reference|image/[0-9]{1,3}))?)")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]


class Guard:
    """An ASGI application in front of another.

    Args:
        app: gets the requests that pass, with the token taken off their path.
        token: first part of the path of every request.
        port: that the server listens on; Host and Origin must name it.
    """

    def __init__(self, app: App, token: str, port: int) -> None:
        self.app = app
        self.token = token.encode()
        self.hosts = {f"{name}:{port}".encode() for name in ("127.0.0.1", "localhost")}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve or refuse one request."""
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        refusal = self.refusal(scope)
        if refusal is not None:
            await _answer(send, refusal)
            return
        rest = "/" + scope["raw_path"][len(self.token) + 2 :].decode("ascii")
        await self.app({**scope, "path": rest, "raw_path": rest.encode()}, receive, _with_headers(send))

    def refusal(self, scope: Scope) -> int | None:
        """The status of a request that is refused; None for one that is served."""
        path, headers = scope.get("raw_path") or b"", scope["headers"]
        if scope["method"] != "GET":
            return 405
        if len(path) > MAX_TARGET:
            return 414
        if len(headers) > MAX_HEADERS or sum(len(name) + len(value) for name, value in headers) > MAX_HEADER_BYTES:
            return 431
        values = {name: [value for key, value in headers if key == name] for name, _ in headers}
        if b"transfer-encoding" in values or values.get(b"content-length", [b"0"]) != [b"0"]:
            return 413  # no request has a body
        host = values.get(b"host", [])
        if len(host) != 1 or host[0] not in self.hosts:
            return 421
        if any(origin != b"http://" + host[0] for origin in values.get(b"origin", [])):
            return 403
        parts = path.split(b"/", 2)
        if len(parts) < 3 or parts[0] or not secrets.compare_digest(parts[1], self.token):
            return 403
        if any(site not in (b"same-origin", b"none") for site in values.get(b"sec-fetch-site", [])):
            # the file that the browser was opened with is another site; what it leads to is a whole page, never a part
            asked = [values.get(name) for name in (b"sec-fetch-mode", b"sec-fetch-dest")]
            if parts[2] or asked != [[b"navigate"], [b"document"]]:
                return 403
        if scope["query_string"] or not ROUTES.fullmatch(parts[2]):
            return 404
        return None


async def _answer(send: Send, status: int) -> None:
    body = b"refused\n"
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode()), *_HEADERS]
    # the rest of a body that was not read must not be taken for the next request
    await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})


def _with_headers(send: Send) -> Send:
    async def wrapped(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *_HEADERS]
        await send(message)

    return wrapped
