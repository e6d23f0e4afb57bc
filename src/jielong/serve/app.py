"""The HTTP API (an OpenAI-compatible subset; docs/http-api.md) and the web page."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from jielong.config import ServeConfig
from jielong.errors import UserError
from jielong.generate.engine import Engine, Step
from jielong.generate.sampling import Sampling
from jielong.run import Run
from jielong.serve.schemas import ChatRequest, CompletionRequest

PAGE = Path(__file__).parent / "page"
WAITING = 16  # requests that may wait for their turn; one more is answered 429
LARGEST_BODY = 1_000_000  # bytes
LOOPBACK = {"127.0.0.1", "localhost", "::1"}
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; style-src 'self'; script-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}
REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"


class Busy(Exception):
    """The queue is full."""


class Turnstile:
    """One generation at a time; the others wait in order, at most WAITING of them."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.waiting = 0

    async def __aenter__(self) -> None:
        if self.waiting >= WAITING:
            raise Busy
        self.waiting += 1
        try:
            await self.lock.acquire()
        finally:
            self.waiting -= 1

    async def __aexit__(self, *_: Any) -> None:
        self.lock.release()


def error(status: int, message: str, kind: str = "invalid_request_error", param: str | None = None) -> JSONResponse:
    body = {"error": {"message": message, "type": kind, "param": param, "code": None}}
    headers = {"Retry-After": "1"} if status == 429 else None
    return JSONResponse(body, status_code=status, headers=headers)


def make_app(engine: Engine, run_path: Path | None = None) -> FastAPI:
    """The application around one engine."""
    app = FastAPI(title="jielong", docs_url=None, redoc_url=None)
    turnstile = Turnstile()

    @app.middleware("http")
    async def guard(request: Request, call_next: Any) -> Response:
        host = (request.headers.get("host") or "").rsplit(":", 1)[0].strip("[]")
        if host not in LOOPBACK and host != "testserver":
            return error(403, "This server answers only on its loopback address.")
        if int(request.headers.get("content-length") or 0) > LARGEST_BODY:
            return error(413, f"The request is larger than {LARGEST_BODY} bytes.")
        if request.method == "POST" and not request.headers.get("content-type", "").startswith("application/json"):
            return error(415, "Send JSON with Content-Type: application/json.")
        response = await call_next(request)
        for key, value in HEADERS.items():
            response.headers.setdefault(key, value)
        return response

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, problem: RequestValidationError) -> JSONResponse:
        first = problem.errors()[0]
        where = ".".join(str(p) for p in first["loc"][1:])
        return error(400, f"{where}: {first['msg']}" if where else first["msg"], param=where or None)

    @app.exception_handler(UserError)
    async def mistaken(_: Request, problem: UserError) -> JSONResponse:
        return error(400, str(problem))

    @app.exception_handler(Busy)
    async def busy(_: Request, __: Busy) -> JSONResponse:
        return error(429, "Too many requests are waiting; try again in a moment.", "rate_limit_error")

    @app.exception_handler(HTTPException)
    async def http(_: Request, problem: HTTPException) -> JSONResponse:
        return error(problem.status_code, str(problem.detail))

    def check_model(name: str | None) -> None:
        if name and name not in (engine.name, "jielong"):
            raise HTTPException(404, f"The model {name!r} does not exist; this server has {engine.name!r}.")

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok", "model": engine.name}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": engine.name, "object": "model", "created": 0, "owned_by": "you"}]}

    @app.get("/v1/run")
    async def lineage() -> dict[str, Any]:
        card = {k: engine.card.get(k) for k in ("kind", "name", "created", "seed", "version", "parents", "seconds")}
        metrics = engine.card.get("metrics") or {}
        card |= {k: metrics.get(k) for k in ("parameters", "steps", "tokens")}
        return {"card": card, "context": engine.context, "report": bool(report_file())}

    def report_file() -> Path | None:
        file = run_path / "report" / "report.html" if run_path else None
        return file if file and file.is_file() else None

    @app.get("/report")
    async def report() -> Response:
        file = report_file()
        if file is None:
            raise HTTPException(404, "This run has no report yet; make it with `jielong report`.")
        return HTMLResponse(file.read_text(encoding="utf-8"), headers={"Content-Security-Policy": REPORT_POLICY})

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        check_model(body.model)
        messages = [m.model_dump() for m in body.messages]
        prompt = engine.chat_ids(messages)
        prefix = body.continue_from or []
        if any(not 0 <= t < engine.tokenizer.vocab_size for t in prefix):
            raise UserError(f"continue_from holds ids outside 0…{engine.tokenizer.vocab_size - 1}.")
        sampling = body.sampling(bool(body.logprobs), body.top_logprobs)
        return await respond(Answer(engine, "chat", prompt + prefix, sampling, bool(body.logprobs)), body, request)

    @app.post("/v1/completions")
    async def complete(body: CompletionRequest, request: Request) -> Response:
        check_model(body.model)
        prompt = engine.tokenizer.encode(body.prompt) if isinstance(body.prompt, str) else body.prompt
        sampling = body.sampling(body.logprobs is not None, body.logprobs or 0)
        prompt = prompt or [engine.tokenizer.end_of_text]
        return await respond(Answer(engine, "text", prompt, sampling, body.logprobs is not None), body, request)

    async def respond(answer: Answer, body: ChatRequest | CompletionRequest, request: Request) -> Response:
        if turnstile.waiting >= WAITING:
            raise Busy
        engine._check(answer.prompt)
        if body.stream:
            usage = bool(body.stream_options and body.stream_options.get("include_usage"))
            return StreamingResponse(
                sse(answer, usage), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
            )
        async with turnstile:
            steps = []
            async for step in steps_of(answer):
                steps.append(step)
                if await request.is_disconnected():
                    answer.cancel.set()
        return JSONResponse(answer.whole(steps))

    async def sse(answer: Answer, usage: bool) -> AsyncIterator[str]:
        try:
            async with turnstile:
                count = 0
                yield answer.event(answer.chunk(None))
                async for step in steps_of(answer):
                    count += 1
                    yield answer.event(answer.chunk(step))
                if usage:
                    yield answer.event(answer.usage_chunk(count))
                yield "data: [DONE]\n\n"
        except UserError as problem:
            yield answer.event({"error": {"message": str(problem), "type": "invalid_request_error"}})
        finally:
            answer.cancel.set()  # the client may have gone

    async def steps_of(answer: Answer) -> AsyncIterator[Step]:
        iterator: Iterator[Step] = engine.stream(answer.prompt, answer.sampling, answer.cancel)
        while (step := await asyncio.to_thread(next, iterator, None)) is not None:
            yield step

    @app.get("/")
    async def index() -> Response:
        return FileResponse(PAGE / "index.html", headers={"Cache-Control": "no-cache"})

    @app.get("/page/{name}")
    async def asset(name: str) -> Response:
        known = {p.name: p for p in PAGE.iterdir()}
        if name not in known:
            raise HTTPException(404, "There is no such file.")
        return FileResponse(known[name], headers={"Cache-Control": "no-cache"})

    return app


class Answer:
    """One request's answer in OpenAI's forms."""

    def __init__(self, engine: Engine, kind: str, prompt: list[int], sampling: Sampling, logprobs: bool):
        self.engine, self.kind, self.prompt, self.sampling, self.logprobs = engine, kind, prompt, sampling, logprobs
        self.cancel = threading.Event()
        self.id = ("chatcmpl-" if kind == "chat" else "cmpl-") + uuid.uuid4().hex
        self.created = int(time.time())

    @staticmethod
    def event(data: dict[str, Any]) -> str:
        return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"

    def _head(self, suffix: str = "") -> dict[str, Any]:
        name = "chat.completion" + suffix if self.kind == "chat" else "text_completion"
        return {"id": self.id, "object": name, "created": self.created, "model": self.engine.name}

    def _token(self, token_id: int, raw: bytes, logprob: float) -> dict[str, Any]:
        name = raw.decode("utf-8", "replace") if raw else self.engine.tokenizer.name(token_id)
        return {"token": name, "id": token_id, "bytes": list(raw), "logprob": max(logprob, -9999.0)}

    def _logprob(self, step: Step) -> dict[str, Any]:
        top = [self._token(i, raw, value) for i, raw, value in step.top]
        return {**self._token(step.token_id, step.bytes, step.logprob), "top_logprobs": top}

    def _logprobs(self, steps: list[Step]) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        if self.kind == "chat":
            return {"content": [self._logprob(s) for s in steps]}
        entries = [self._logprob(s) for s in steps]
        return {
            "tokens": [e["token"] for e in entries],
            "token_logprobs": [e["logprob"] for e in entries],
            "top_logprobs": [{t["token"]: t["logprob"] for t in e["top_logprobs"]} for e in entries],
        }

    def chunk(self, step: Step | None) -> dict[str, Any]:
        """A streamed part; the first one (None) names the role."""
        steps = [step] if step else []
        text = step.text if step else ""
        choice: dict[str, Any] = {"index": 0, "finish_reason": step.finish if step else None}
        choice["logprobs"] = self._logprobs(steps) if steps else None
        if self.kind == "chat":
            choice["delta"] = {"content": text} if step else {"role": "assistant", "content": ""}
        else:
            choice["text"] = text
        return {**self._head(".chunk"), "choices": [choice]}

    def usage(self, count: int) -> dict[str, int]:
        return {"prompt_tokens": len(self.prompt), "completion_tokens": count, "total_tokens": len(self.prompt) + count}

    def usage_chunk(self, count: int) -> dict[str, Any]:
        return {**self._head(".chunk"), "choices": [], "usage": self.usage(count)}

    def whole(self, steps: list[Step]) -> dict[str, Any]:
        """The answer in one piece."""
        text = "".join(s.text for s in steps)
        choice: dict[str, Any] = {"index": 0, "finish_reason": steps[-1].finish if steps else "stop"}
        choice["logprobs"] = self._logprobs(steps)
        if self.kind == "chat":
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        return {**self._head(), "choices": [choice], "usage": self.usage(len(steps))}


def pick_model(run: Run, name: str) -> Path:
    """The artifact to talk with: the named one, else sft, else base."""
    if name:
        return run.need(name).path
    for candidate in ("sft", "base"):
        if run.artifact(candidate):
            return run.need(candidate).path
    return run.need("sft").path


def free_port(host: str, port: int | None) -> socket.socket:
    """A listening socket. Raises UserError when the named port, or 50 from 8000 on, are in use."""
    for candidate in [port] if port is not None else range(8000, 8050):
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, candidate))
            return sock
        except OSError:
            sock.close()
    if port is not None:
        raise UserError(f"Port {port} is in use; leave --port out to take a free one, or stop the other program.")
    raise UserError("The ports 8000 to 8049 are all in use; name another one with --port.")


def run(config: ServeConfig, run: Run) -> None:
    """Serve until Ctrl-C. Raises UserError for a wrong host, a port in use or a missing model."""
    import uvicorn

    if config.host not in LOOPBACK:
        raise UserError(
            f"--host {config.host} is not a loopback address; use 127.0.0.1 (others cannot reach the page)."
        )
    if config.port is not None and not 0 <= config.port < 65536:
        raise UserError("--port must lie between 0 and 65535.")
    engine = Engine.load(pick_model(run, config.model), config.threads)
    sock = free_port(config.host, config.port)
    host = f"[{config.host}]" if ":" in config.host else config.host
    url = f"http://{host}:{sock.getsockname()[1]}"
    print(f"Open {url}  (Ctrl-C stops)", flush=True)
    if config.open and (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or sys.platform in ("darwin", "win32")
    ):
        import webbrowser

        threading.Timer(0.5, webbrowser.open, [url]).start()
    app = make_app(engine, run.path)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2))
    sock.listen(128)
    server.run(sockets=[sock])
