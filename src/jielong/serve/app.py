"""The HTTP API, OpenAI-compatible (docs/http-api.md), and the web page."""

from __future__ import annotations

import asyncio
import base64
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from jielong.errors import Unclear, UserError
from jielong.feedback.store import Store
from jielong.generate.engine import Engine
from jielong.run import Run
from jielong.serve.answers import Answer, event
from jielong.serve.detect import Detection, add_detect
from jielong.serve.edit import add_edit
from jielong.serve.feedback import Recent, add_feedback, user_of
from jielong.serve.forget import add_forget
from jielong.serve.forgetter import Forgetter
from jielong.serve.guard import Guard, error_body
from jielong.serve.improve import Trainer, add_improve
from jielong.serve.keys import Keys
from jielong.serve.metrics import Metrics
from jielong.serve.models import Models, Served
from jielong.serve.prompts import add_prompts
from jielong.serve.reward import RewardModel, add_reward
from jielong.serve.schemas import ChatRequest, CompletionRequest, DetokenizeRequest, EmbeddingRequest, TokenizeRequest
from jielong.serve.worker import Busy, Closing, Ticket, Worker

PAGE = Path(__file__).parent / "page"
WAITING = 64  # requests beyond those in the batch; one more is answered 429
STREAMED: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}
REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"


def error(status: int, message: str, kind: str = "invalid_request_error", param: str | None = None) -> JSONResponse:
    headers = {"Retry-After": "1"} if status in (429, 503) else None
    return JSONResponse(error_body(message, kind, param), status_code=status, headers=headers)


def make_app(
    served: list[Served],
    keys: Keys | None = None,
    origins: tuple[str, ...] = (),
    waiting: int = WAITING,
    feedback: Callable[[], Store] | None = None,
    trainer: Trainer | None = None,
    renewed: Callable[[str], Served | None] | None = None,
    reward: Callable[[], RewardModel | None] | None = None,
    detection: Detection | None = None,
    edits: Run | None = None,
    threads: int = 0,
    forgetter: Forgetter | None = None,
) -> FastAPI:
    """The application around one or more engines; the first one answers who names none. `feedback` opens the store of what
    people say about answers; without it nobody is asked. `trainer` lets the page train from it. `renewed(name)` loads the
    model that is to answer from now on, None while that is still `name`. `reward` loads the model behind /reward.
    `detection` marks and remembers answers; `edits` is the run whose facts may be corrected, with
    `threads` threads (0: all cores); `forgetter` lets a run forget."""
    recent = Recent()
    detection = detection or Detection()
    models = Models(served)
    find = models.find
    worker = Worker([s.engine for s in served], waiting + sum(s.engine.rows for s in served))

    changing = asyncio.Lock()

    async def switch() -> str:
        """Serve what the run serves now; the name of the model. Requests that run are not disturbed."""
        async with changing:
            new = await asyncio.to_thread(renewed, models.default.engine.name) if renewed else None
            if new is not None:
                if models.has(new.engine.name, new.engine.hash):
                    models.switch(new.engine.name)
                else:
                    models.add(new, worker)
            models.drop_gone()
            return models.default.engine.name

    async def watch() -> None:
        while True:
            await asyncio.sleep(1.0)
            try:
                await switch()
            except UserError as problem:  # a damaged file: the old model goes on
                print(f"jielong: {problem}", file=sys.stderr)
                await asyncio.sleep(30.0)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        worker.start()
        watching = asyncio.ensure_future(watch()) if renewed else None
        yield
        if watching:
            watching.cancel()
        for work in filter(None, (trainer, forgetter)):
            await asyncio.to_thread(work.close)
        worker.stop()
        await asyncio.to_thread(detection.close)

    app = FastAPI(title="jielong", docs_url=None, redoc_url=None, lifespan=lifespan)
    add_errors(app)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok", "model": models.default.engine.name}

    def describe(name: str) -> dict[str, Any]:
        engine = find(name).engine
        return {"id": name, "object": "model", "created": 0, "owned_by": "you", "max_model_len": engine.context}

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [describe(name) for name in models]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        return describe(find(name).engine.name)

    @app.get("/v1/run")
    async def lineage(model: str | None = None) -> dict[str, Any]:
        engine = (found := find(model)).engine
        card = {k: engine.card.get(k) for k in ("kind", "name", "created", "seed", "version", "parents", "seconds")}
        metrics = engine.card.get("metrics") or {}
        card |= {k: metrics.get(k) for k in ("parameters", "steps", "tokens")}
        told = {"card": card, "context": engine.context, "report": bool(report_file(found)), "models": list(models)}
        can = {"feedback": feedback, "improve": trainer, "edit": edits, "forget": forgetter}
        return told | {name: part is not None for name, part in can.items()}

    def report_file(found: Served) -> Path | None:
        file = found.run / "report" / "report.html" if found.run else None
        return file if file and file.is_file() else None

    @app.get("/report", response_class=HTMLResponse)
    async def report(model: str | None = None) -> Response:
        file = report_file(find(model))
        if file is None:
            raise HTTPException(404, "This run has no report yet; make it with `jielong report`.")
        return HTMLResponse(file.read_text(encoding="utf-8"), headers={"Content-Security-Policy": REPORT_POLICY})

    @app.post("/v1/chat/completions", responses=STREAMED)
    async def chat(body: ChatRequest, request: Request) -> Response:
        engine = find(body.model).engine
        messages = [m.plain() for m in body.messages]
        prompt = await asyncio.to_thread(engine.chat_ids, messages)
        prompt += body.continue_from or []
        n, top = body.n or 1, (body.top_logprobs or 0) if body.logprobs else 0
        settings = [detection.marked(engine, body.sampling(engine, top, body.longest, k)) for k in range(n)]
        work = [(prompt, s) for s in settings]
        ticket = worker.submit(engine, work)
        answer = Answer(engine, "chat", ticket.requests, bool(body.logprobs), n)
        who, begun = user_of(request, body.user), body.continue_from or []

        def done() -> None:
            if feedback:
                recent.add(answer, messages, who, begun)
            detection.remember(answer.id, engine, answer.requests, who)

        ticket.then = done
        return await respond(answer, ticket, body, request)

    @app.post("/v1/completions", responses=STREAMED)
    async def complete(body: CompletionRequest, request: Request) -> Response:
        engine = find(body.model).engine
        prompts = await asyncio.to_thread(token_ids, engine, body.prompt)
        n, scored = body.n or 1, body.logprobs is not None
        if body.longest == 0 and not body.echo:
            raise UserError("max_tokens 0 makes sense only with echo.")
        settings = [body.sampling(engine, body.logprobs or 0, body.longest, k) for k in range(n * len(prompts))]
        work = [(prompts[k // n], detection.marked(engine, s)) for k, s in enumerate(settings)]
        ticket = worker.submit(engine, work, score=bool(body.echo and scored))
        answer = Answer(engine, "text", ticket.requests, scored, n, bool(body.echo))
        who = user_of(request, body.user)
        ticket.then = lambda: detection.remember(answer.id, engine, answer.requests, who)
        return await respond(answer, ticket, body, request)

    async def respond(
        answer: Answer, ticket: Ticket, body: ChatRequest | CompletionRequest, request: Request
    ) -> Response:
        if body.stream:
            usage = bool(body.stream_options and body.stream_options.include_usage)
            parts = sse(answer, ticket, usage)
            return StreamingResponse(parts, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        with ticket:
            reading = asyncio.ensure_future(ticket.done())
            gone = asyncio.ensure_future(disconnected(request))
            try:
                await asyncio.wait({reading, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not reading.done():
                    return Response(status_code=499)  # nobody reads it
            finally:
                reading.cancel()
                gone.cancel()
        for r in answer.requests:
            if r.error:
                raise r.error
        metrics.first_token(ticket.first)
        return JSONResponse(answer.whole())

    async def disconnected(request: Request) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    async def sse(answer: Answer, ticket: Ticket, usage: bool) -> AsyncIterator[str]:
        with ticket:  # left when the client goes: what is not finished is cancelled
            yield "".join(event(answer.chunk(index, None)) for index in range(len(ticket.requests)))
            first = True
            async for batch in ticket.batches():
                if first:
                    metrics.first_token(ticket.first)
                    first = False
                failed = next((index for index, step in batch if step.finish == "error"), None)
                if failed is not None:
                    yield event(error_body(str(ticket.requests[failed].error), "server_error"))
                    return
                yield "".join(event(answer.chunk(index, step)) for index, step in batch)
            if usage:
                yield event(answer.usage_chunk())
        yield "data: [DONE]\n\n"  # when the answer is remembered

    if feedback:
        add_feedback(app, recent, feedback)
    if trainer:
        add_improve(app, trainer, switch)
    if edits:
        add_edit(app, edits, switch, threads)
    if forgetter:
        add_forget(app, forgetter, switch, recent.forget)
    add_reward(app, worker, reward)
    add_detect(app, worker, detection, find)
    add_prompts(app, lambda model: find(model).run)

    @app.post("/v1/embeddings")
    async def embed(body: EmbeddingRequest) -> dict[str, Any]:
        engine = find(body.model).engine
        prompts = await asyncio.to_thread(token_ids, engine, body.input)
        vectors = await worker.call(lambda: engine.embed(prompts))

        def form(vector: Any) -> Any:
            return (
                vector.tolist()
                if body.encoding_format == "float"
                else base64.b64encode(vector.numpy().tobytes()).decode()
            )

        data = [{"object": "embedding", "index": i, "embedding": form(v)} for i, v in enumerate(vectors)]
        count = sum(map(len, prompts))
        usage = {"prompt_tokens": count, "total_tokens": count}
        return {"object": "list", "model": engine.name, "data": data, "usage": usage}

    @app.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> dict[str, Any]:
        engine = find(body.model).engine
        if body.messages is not None:
            from jielong.tokens.chat import encode_chat

            messages = [m.plain() for m in body.messages]
            ids = (await asyncio.to_thread(encode_chat, engine.tokenizer, messages, body.add_generation_prompt))[0]
        else:
            encode = engine.tokenizer.prompt if body.add_special_tokens else engine.tokenizer.encode
            ids = await asyncio.to_thread(encode, body.prompt or "")
        return {"count": len(ids), "max_model_len": engine.context, "tokens": ids}

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> dict[str, str]:
        engine = find(body.model).engine
        if body.tokens and max(body.tokens) >= engine.vocab_size:
            raise UserError(f"A token id must lie between 0 and {engine.vocab_size - 1}.")
        return {"prompt": engine.tokenizer.decode(body.tokens)}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def prometheus() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return FileResponse(PAGE / "index.html", headers={"Cache-Control": "no-cache"})

    @app.get("/page/{name}", include_in_schema=False)
    async def asset(name: str) -> Response:
        known = {p.name: p for p in PAGE.iterdir()}
        if name not in known:
            raise HTTPException(404, "There is no such file.")
        return FileResponse(known[name], headers={"Cache-Control": "no-cache"})

    metrics = Metrics(worker, {getattr(route, "path", "") for route in app.routes})
    if origins:
        from starlette.middleware.cors import CORSMiddleware

        app.add_middleware(CORSMiddleware, allow_origins=list(origins), allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(Guard, keys=keys, metrics=metrics)
    app.state.worker = worker
    return app


def token_ids(engine: Engine, given: str | list[Any]) -> list[list[int]]:
    """A text, token ids, or a list of either → lists of token ids. An empty text is the token that ends texts, which
    stands before every text that the model has read."""
    if isinstance(given, str) or not given or isinstance(given[0], int):
        given = [given]
    prompts = [engine.tokenizer.prompt(g) if isinstance(g, str) else list(g) for g in given]
    return [p or [engine.tokenizer.end_of_text] for p in prompts]


def add_errors(app: FastAPI) -> None:
    """Every mistake in OpenAI's form."""

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, problem: RequestValidationError) -> JSONResponse:
        first = problem.errors()[0]
        where = ".".join(str(p) for p in first["loc"][1:])
        return error(400, f"{where}: {first['msg']}" if where else first["msg"], param=where or None)

    @app.exception_handler(UserError)
    async def mistaken(_: Request, problem: UserError) -> JSONResponse:
        return error(400, str(problem))

    @app.exception_handler(Unclear)
    async def unclear(_: Request, problem: Unclear) -> JSONResponse:
        """With the code and the values from which a program says it in its own words."""
        body = error_body(str(problem), code=problem.code)
        body["error"]["values"] = problem.values
        return JSONResponse(body, status_code=400)

    @app.exception_handler(Busy)
    async def busy(_: Request, __: Busy) -> JSONResponse:
        return error(429, "Too many requests are waiting; try again in a moment.", "rate_limit_error")

    @app.exception_handler(Closing)
    async def closing(_: Request, __: Closing) -> JSONResponse:
        return error(503, "The server is shutting down.", "server_error")

    @app.exception_handler(HTTPException)
    async def http(_: Request, problem: HTTPException) -> JSONResponse:
        return error(problem.status_code, str(problem.detail))

    @app.exception_handler(Exception)
    async def ours(_: Request, __: Exception) -> JSONResponse:
        return error(500, "The server made a mistake; its log says more.", "server_error")
