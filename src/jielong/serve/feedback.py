"""What people say about answers, over HTTP. Answers stay in memory until someone judges them; what nobody judges is
never written down."""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import fields
from typing import Annotated, Literal

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field
from starlette.exceptions import HTTPException

from jielong.feedback.exchange import FORMATS, export, statistics
from jielong.feedback.store import LONGEST, Answer, Capped, Event, Store, StoreDown
from jielong.serve.answers import Answer as ApiAnswer
from jielong.serve.guard import error_body
from jielong.serve.schemas import Form

REMEMBERED = 1000  # answers that can still be judged
Short = Annotated[str, Field(max_length=100)]


class FeedbackRequest(Form):
    kind: Literal["thumb", "compare", "teach", "undo"]
    answer: Short | None = None
    """Id of the chat completion; of its n-th further choice: ID:n."""
    value: Literal["", "up", "down", "answer", "other", "tie", "neither"] = ""
    other: Short | None = None
    shown: Literal["", "answer", "other"] = ""
    reasons: Annotated[list[Short], Field(max_length=20)] = Field(default_factory=list)
    text: Annotated[str, Field(max_length=LONGEST)] = ""
    consent: bool = True
    user: Short = ""
    undoes: Annotated[int, Field(ge=1, lt=2**63)] | None = None


class Recent:
    """The last answers of the chat, as they will be stored when someone judges them."""

    def __init__(self, most: int = REMEMBERED):
        self.most = most
        self._answers: OrderedDict[str, Answer] = OrderedDict()

    def add(self, answer: ApiAnswer, messages: list[dict[str, str]], user: str, begun: list[int]) -> None:
        """Remember every choice of a chat completion, also of one that was stopped. `begun`: token ids that the user chose
        for the answer's beginning; they have no log-probability of the model's."""
        for index, request in enumerate(answer.requests):
            steps = [s for s in list(request.steps) if s.token_id >= 0]
            if not steps:
                continue
            # not asdict, which would copy the processors too, and a grammar cannot be copied
            settings = {f.name: getattr(request.sampling, f.name) for f in fields(request.sampling)}
            processors, picker = settings.pop("processors"), settings.pop("picker")
            settings |= {"constrained": bool(processors or picker), "begun": len(begun)}
            ids = [*begun, *(s.token_id for s in steps)]
            decode, ends = answer.engine.tokenizer.decode, answer.engine.tokenizer.ends
            name = answer_id(answer.id, index)
            self._answers[name] = Answer(
                name,
                messages,
                decode(i for i in ids if i not in ends) if begun else "".join(s.text for s in steps),
                list(request.prompt)[: len(request.prompt) - len(begun)],
                ids,
                [0.0] * len(begun) + [round(s.sampling_logprob, 6) for s in steps],
                settings,
                request.finish or "cancelled",
                answer.engine.name,
                answer.engine.hash,
                user,
            )
        while len(self._answers) > self.most:
            self._answers.popitem(last=False)

    def forget(self, means: Callable[[str], object]) -> None:
        """Drop the answers in which it is meant: a late thumb would store them."""
        for name, answer in list(self._answers.items()):
            if means("\n".join([*(m["content"] for m in answer.messages), answer.text])):
                del self._answers[name]

    def get(self, name: str | None) -> list[Answer]:
        """The answer, or none."""
        found = self._answers.get(name or "")
        return [found] if found else []


def answer_id(completion: str, index: int) -> str:
    """Choice 0 bears the completion's own id."""
    return completion if index == 0 else f"{completion}:{index}"


def user_of(request: Request, given: str | None) -> str:
    """Who speaks: the name of the API key, and the name that the client gives."""
    key = getattr(request.state, "key", None)
    return "/".join(filter(None, (f"key:{key}" if key else "", given or ""))) or "local"


def add_feedback(app: FastAPI, recent: Recent, open_store: Callable[[], Store]) -> None:
    """The routes of /feedback; the store is opened when it is first needed."""
    opened: list[Store] = []
    lock = asyncio.Lock()

    async def store() -> Store:
        async with lock:
            if not opened:
                opened.append(await asyncio.to_thread(open_store))
        return opened[0]

    @app.post("/feedback", status_code=201)
    async def give(body: FeedbackRequest, request: Request) -> dict[str, int]:
        fields = body.model_dump(exclude={"user"})
        event = Event(**fields, user=user_of(request, body.user))
        answers = [*recent.get(body.answer), *recent.get(body.other)]
        held = await store()
        for name in filter(None, (body.answer, body.other)):
            if name not in {a.id for a in answers} and not await asyncio.to_thread(held.known, name):
                raise HTTPException(404, f"The answer {name} is not known here any more; ask again and press then.")
        return {"id": await asyncio.to_thread(held.add, event, answers)}

    @app.get("/feedback/stats")
    async def stats() -> Response:
        return JSONResponse(await asyncio.to_thread(statistics, await store()))

    @app.get("/feedback/export", response_class=Response, responses={200: {"content": {"application/jsonl": {}}}})
    async def take_out(format: str = FORMATS[0]) -> Response:
        rows = await asyncio.to_thread(lambda held: list(export(held, format)), await store())
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        return Response(text, media_type="application/jsonl; charset=utf-8")

    @app.exception_handler(StoreDown)
    async def down(_: Request, __: StoreDown) -> JSONResponse:
        message = "The feedback store does not answer, so nothing was stored; send it again in a moment."
        return JSONResponse(error_body(message, "server_error"), 503, {"Retry-After": "5"})

    @app.exception_handler(Capped)
    async def capped(_: Request, __: Capped) -> JSONResponse:
        message = "You have left as much feedback today as one may; it was not stored."
        return JSONResponse(error_body(message, "rate_limit_error"), 429, {"Retry-After": "3600"})
