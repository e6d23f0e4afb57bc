"""POST /v1/detect, and what the server remembers and marks: one per model, by what its run has."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import Field

from jielong.detect.examination import Examination, Tools
from jielong.detect.ledger import FILE, Ledger
from jielong.detect.reference import Reference, fitting
from jielong.detect.stage import LEDGER
from jielong.detect.watermark import Key, load_key, marked
from jielong.errors import UserError
from jielong.generate.engine import Engine
from jielong.generate.request import Request as Generation
from jielong.generate.sampling import Sampling
from jielong.run import Run
from jielong.serve.models import Served
from jielong.serve.schemas import Body
from jielong.serve.worker import Worker

LONGEST = 100_000
"""Characters of a text, some forty pages. What ledger and watermark do with it takes a second at most, and so long others wait
for them."""


class DetectRequest(Body):
    text: Annotated[str, Field(max_length=LONGEST)]
    alpha: Annotated[float, Field(gt=0, le=0.5, allow_inf_nan=False)] = 0.01
    methods: Annotated[list[Annotated[str, Field(max_length=40)]], Field(max_length=16)] = Field(default_factory=list)
    observer: str | None = None
    """Another model of this server."""
    tokens: bool = False
    """Also every token with its rank."""
    top: Annotated[int, Field(ge=0, le=20)] = 0
    """So many likeliest tokens beside each."""


@dataclass
class Detection:
    """The watermark keys, "" = of every model, and the ledger, if the server keeps one."""

    keys: dict[str, Key] = field(default_factory=dict)
    ledger: Ledger | None = None

    def __post_init__(self) -> None:
        # one thread: what is looked for after an answer finds that answer
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="ledger")

    def key(self, engine: Engine) -> Key | None:
        return self.keys.get(engine.name) or self.keys.get("")

    def marked(self, engine: Engine, sampling: Sampling) -> Sampling:
        """The settings of a request, with the model's mark in them, if it has one."""
        key = self.key(engine)
        if key is None:
            return sampling
        key.fit(engine.tokenizer, engine.name)
        return marked(key, sampling)

    def remember(self, id: str, engine: Engine, requests: list[Generation], user: str) -> None:
        """Enter finished answers into the ledger, where there is one."""
        if self.ledger:
            texts = [r.text for r in requests]
            self.thread.submit(self._write, id, texts, engine.name, user)

    def _write(self, id: str, texts: list[str], model: str, user: str) -> None:
        assert self.ledger
        for index, text in enumerate(texts):
            try:
                self.ledger.add(id if index == 0 else f"{id}:{index}", text, model, user)
            except (UserError, OSError) as problem:  # the answer is given all the same
                print(f"jielong: the ledger: {problem}", file=sys.stderr)

    def close(self) -> None:
        self.thread.shutdown(wait=True)


def detection_of(watermark: tuple[str, ...], ledger: bool, served: list[Served], own: Run) -> Detection:
    """By the server's settings. Raises UserError for a key that is none, or that fits no model; for a damaged ledger."""
    keys: dict[str, Key] = {}
    names = {s.engine.name for s in served}
    for entry in watermark:
        name, equals, path = entry.rpartition("=")
        if equals and name not in names:
            raise UserError(
                f"--watermark {entry}: there is no model {name!r}; this server has {', '.join(sorted(names))}."
            )
        keys[name] = load_key(Path(path))
    for s in served:
        if key := keys.get(s.engine.name) or keys.get(""):
            key.fit(s.engine.tokenizer, s.engine.name)
    book = Ledger(own.path / LEDGER) if ledger or (own.path / LEDGER / FILE).exists() else None
    found = Detection(keys, book if ledger else None)
    if book:
        book.entries()
    return found


def add_detect(app: FastAPI, worker: Worker, detection: Detection, find: Callable[[str | None], Served]) -> None:
    """The route /v1/detect; references are read when they are first needed, also new ones."""
    references: dict[tuple[Path, str], Reference] = {}
    books: dict[Path, Ledger] = {}

    def tools(served: Served, observer: Engine | None) -> Tools:
        reference, book = None, detection.ledger
        if served.run:
            artifact = fitting(Run(served.run), served.engine.hash)
            if artifact:
                at = (artifact.path, artifact.hash)
                reference = references.get(at) or references.setdefault(at, Reference.load(artifact))
            if book is None and (served.run / LEDGER / FILE).exists():
                book = books.setdefault(served.run, Ledger(served.run / LEDGER))
        key = detection.key(served.engine)
        return Tools(served.engine, observer, reference, [key] if key else [], book)

    async def in_thread(job: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(detection.thread, job)

    @app.post("/v1/detect")
    async def detect(body: DetectRequest, request: Request) -> Response:
        served = find(body.model)
        observer = find(body.observer).engine if body.observer else None
        held = await in_thread(lambda: tools(served, observer))
        look = await asyncio.to_thread(
            Examination, body.text, held, tuple(body.methods), body.top if body.tokens else 0
        )
        while await worker.call(look.step):  # between two steps of the engines
            if await request.is_disconnected():
                return Response(status_code=499)

        def told() -> str:  # in the thread, too: a long text has very many places
            more = {"language": look.lang, "model": served.engine.name}
            more |= {"tokens": look.tokens()} if body.tokens else {}
            return json.dumps(look.report(body.alpha).json() | more, ensure_ascii=False, allow_nan=False)

        return Response(await in_thread(told), media_type="application/json")
