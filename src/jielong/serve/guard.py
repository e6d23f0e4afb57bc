"""What every request passes before a route sees it: host, key, size, type; and every answer: headers, id, counts."""

from __future__ import annotations

import json
import re
import time
import uuid
from typing import Any

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jielong.serve.keys import Keys
from jielong.serve.metrics import Metrics

MISTAKE = "invalid_request_error"
LARGEST_BODY = 4_000_000  # bytes
LOOPBACK = {"127.0.0.1", "localhost", "::1"}
OPEN = {"/health", "/", "/favicon.ico"}  # without a key; and the page's files
HEADERS = {
    "content-security-policy": "default-src 'self'; style-src 'self'; script-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
}


def error_body(message: str, kind: str = MISTAKE, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """OpenAI's form of a mistake."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class TooLarge(HTTPException):
    """The body exceeds LARGEST_BODY."""

    def __init__(self) -> None:
        super().__init__(413, f"The request is larger than {LARGEST_BODY} bytes.")


class Guard:
    """ASGI middleware. Without keys only requests to a loopback name pass, so that no other web site can reach the
    server by a name of its own (DNS rebinding); with keys every request but OPEN needs one."""

    def __init__(self, app: ASGIApp, keys: Keys | None, metrics: Metrics):
        self.app, self.keys, self.metrics = app, keys, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        given = headers.get("x-request-id", "")
        request_id = given if re.fullmatch(r"[\w.:-]{1,128}", given) else f"req_{uuid.uuid4().hex}"
        started, status = time.perf_counter(), 500

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                have = {k.lower() for k, _ in message["headers"]}
                extra = {**HEADERS, "x-request-id": request_id}
                message["headers"] += [(k.encode(), v.encode()) for k, v in extra.items() if k.encode() not in have]
            await send(message)

        size = 0

        async def read() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > LARGEST_BODY:
                raise TooLarge
            return message

        refused = self._refuse(scope, headers)
        try:
            if refused:
                await respond(answer, *refused)
            else:
                await self.app(scope, read, answer)
        finally:
            self.metrics.request(scope["path"], status, time.perf_counter() - started)

    def _refuse(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str, str] | None:
        path = scope["path"]
        if self.keys is None:
            host = headers.get("host", "").rsplit(":", 1)[0].strip("[]")
            if host not in LOOPBACK and host != "testserver":
                return 403, "This server answers only on its loopback address.", MISTAKE
        elif path not in OPEN and not path.startswith("/page/") and scope["method"] != "OPTIONS":
            scheme, _, key = headers.get("authorization", "").partition(" ")
            name = self.keys.accept(key.strip()) if scheme.lower() == "bearer" else None
            scope.setdefault("state", {})["key"] = name
            if name is None:
                return (
                    401,
                    "Send a valid key: Authorization: Bearer KEY (make one with `jielong key`).",
                    "authentication_error",
                )
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > LARGEST_BODY:
            return 413, f"The request is larger than {LARGEST_BODY} bytes.", MISTAKE
        if scope["method"] == "POST" and not headers.get("content-type", "").lower().startswith("application/json"):
            return 415, "Send JSON with Content-Type: application/json.", MISTAKE
        return None


async def respond(send: Send, status: int, message: str, kind: str) -> None:
    body = json.dumps(error_body(message, kind)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 413:
        headers.append((b"connection", b"close"))  # the rest of the body is not read
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
