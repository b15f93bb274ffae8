"""Who may reach the app: loopback without a password, everybody else after logging in.

An ASGI middleware, because the rooms talk to the browser through a WebSocket. It also keeps other
web pages out: their requests have another Origin, or (by DNS rebinding) another Host.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from html import escape
from typing import Any
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response

from dreambooth_core.environment import LOOPBACK

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

LOGIN, LOGOUT = "/login", "/logout"

_COOKIE = "dreambooth_app"
_WRONG_S = 1.0
_MAX_BODY = 4096
_SAFE = ("GET", "HEAD")
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'self'"
)
"""The browser itself refuses every call to another host. Vue compiles its templates: eval."""

_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


class AccessControl:
    """Refuses foreign requests and, with a password, those without a session."""

    def __init__(self, app: Any, *, password: str | None) -> None:
        self._app, self._password = app, password
        self._sessions: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request, or pass it on."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if why := self._foreign(scope, headers):
            await _refuse(scope, receive, send, PlainTextResponse(why, status_code=403))
            return
        if self._password is not None:
            answer = await self._log_in(scope, receive)
            if answer is not None:
                await _refuse(scope, receive, send, answer)
                return
        await self._app(scope, receive, _with_headers(send))

    def _foreign(self, scope: Scope, headers: Headers) -> str | None:
        """Why the request comes from another page, or None."""
        host = headers.get("host", "")
        name = urlsplit(f"//{host}").hostname or ""
        if self._password is None and name not in LOOPBACK:
            return f"this app answers at {', '.join(LOOPBACK)} alone"
        origin = headers.get("origin")
        changes = scope["type"] == "websocket" or scope["method"] not in _SAFE
        if changes and origin is not None and urlsplit(origin).netloc != host:
            return "this request comes from another page"
        return None

    async def _log_in(self, scope: Scope, receive: Receive) -> Response | None:
        """The answer for a browser without a session; None for one with a session."""
        token = _cookies(scope).get(_COOKIE, "")
        path = scope["path"]
        if path == LOGOUT:
            self._sessions.discard(token)
            return RedirectResponse(LOGIN, status_code=303)
        if token in self._sessions:
            return RedirectResponse("/", status_code=303) if path == LOGIN else None
        if path != LOGIN:
            return RedirectResponse(LOGIN, status_code=303)
        if scope.get("method") != "POST":
            return HTMLResponse(_login_page(""), headers=_HEADERS)
        given = await _password_in(Request(scope, receive))
        if not hmac.compare_digest(given.encode(), (self._password or "").encode()):
            await asyncio.sleep(_WRONG_S)
            page = _login_page("That is not the password.")
            return HTMLResponse(page, status_code=401, headers=_HEADERS)
        token = secrets.token_urlsafe(32)
        self._sessions.add(token)
        answer = RedirectResponse("/", status_code=303)
        answer.set_cookie(
            _COOKIE, token, httponly=True, samesite="strict", secure=scope["scheme"] == "https"
        )
        return answer


async def _refuse(scope: Scope, receive: Receive, send: Send, answer: Response) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008})
    else:
        await answer(scope, receive, send)


def _with_headers(send: Send) -> Send:
    async def wrapped(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return wrapped


def _cookies(scope: Scope) -> dict[str, str]:
    return Request({**scope, "type": "http"}).cookies


async def _password_in(request: Request) -> str:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_BODY:
            return ""
    return parse_qs(body.decode("utf-8", errors="replace")).get("password", [""])[0]


def _login_page(message: str) -> str:
    alert = f'<p class="problem" role="alert">{escape(message)}</p>' if message else ""
    return _PAGE.replace("ALERT", alert)


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Log in - DreamBooth</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<style>
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 22rem; margin: 18vh auto 0; padding: 0 1.5rem; }
h1 { font-size: 1.6rem; letter-spacing: -.02em; }
label, input, button { display: block; width: 100%; font: inherit; box-sizing: border-box; }
input { margin: .3rem 0 1rem; padding: .6rem .8rem; }
button { padding: .6rem .8rem; cursor: pointer; }
</style></head>
<body><main><h1>DreamBooth</h1>ALERT
<form method="post" action="/login"><label for="password">Password</label>
<input id="password" name="password" type="password" autocomplete="current-password" autofocus
required><button>Log in</button></form></main></body></html>
"""
