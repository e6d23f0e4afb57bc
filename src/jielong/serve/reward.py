"""POST /reward: how much people would like an answer, for one's own scripts and for OpenRLHF and verl
(docs/rlhf-servers.md)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field, model_validator
from starlette.exceptions import HTTPException

from jielong.align.scoring import Answered, Scored, parts, score
from jielong.errors import UserError
from jielong.run import CARD, Artifact, Run
from jielong.serve.schemas import Form, Message, Text
from jielong.serve.worker import Worker
from jielong.tokens.chat import ROLES, chat_ids
from jielong.tokens.tokenizer import IM_START, SPECIAL, Tokenizer
from jielong.train.loop import dtype_of

MOST = 256  # answers in a request
LONGEST = 2048  # tokens of a conversation with its answer: attention's memory grows with the square
CHUNK = 512  # tokens that are scored between two steps of those who generate, unless one conversation is longer
NONE = "This server has no reward model: the run has none yet (`jielong improve` makes one), or it was started with --reward off."


class Judged(Form):
    """An answer to a conversation. `ended`: it is complete, so that the token that ends an answer follows it."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=10_000)]
    answer: Text
    ended: bool = True


class RewardRequest(Form):
    """One of three: `query` as OpenRLHF sends it (whole texts in the model's chat template; what it sends beside them is not
    needed), `messages` with `answer`, or several of those as `answers`. A bare list stands for `answers`."""

    query: Annotated[list[Text], Field(min_length=1, max_length=MOST)] | None = None
    answers: Annotated[list[Judged], Field(min_length=1, max_length=MOST)] | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=10_000)] | None = None
    answer: Text | None = None
    ended: bool = True

    @model_validator(mode="before")
    @classmethod
    def bare(cls, value: Any) -> Any:
        return {"answers": value} if isinstance(value, list) else value

    @model_validator(mode="after")
    def one_form(self) -> RewardRequest:
        if (self.messages is None) != (self.answer is None):
            raise ValueError("messages and answer belong together")
        if sum(form is not None for form in (self.query, self.answers, self.messages)) != 1:
            raise ValueError("give one of query, answers, or messages with answer")
        return self


class RewardModel:
    """A reward model with its vocabulary."""

    def __init__(self, model: Scored, tokenizer: Tokenizer, name: str = "reward", precision: str = "fp32"):
        self.model, self.tokenizer, self.name = model.requires_grad_(False).eval(), tokenizer, name
        self.dtype = dtype_of("auto" if precision == "int8" else precision)
        self.longest = min(model.body.config.context, LONGEST)
        self.folder: Path | None = None

    @classmethod
    def load(cls, artifact: Artifact, precision: str = "fp32") -> RewardModel:
        """Raises UserError when the artifact is no reward model."""
        check(artifact)
        tokenizer = Tokenizer.load(artifact.file("tokenizer.json"))
        made = cls(Scored.load(artifact.path), tokenizer, artifact.name, precision)
        made.folder = artifact.path
        return made

    def gone(self) -> bool:
        """Was its artifact taken away (jielong forget)?"""
        return self.folder is not None and not (self.folder / CARD).is_file()

    def read(self, body: RewardRequest) -> list[Answered]:
        """What is to be scored, in order. Raises UserError that names the first text that cannot be."""
        if body.query is not None:
            found = [Answered((), tuple(text_ids(self.tokenizer, text))) for text in body.query]
        else:
            given = body.answers or [Judged(messages=body.messages or [], answer=body.answer or "", ended=body.ended)]
            found = [answered(self.tokenizer, [m.plain() for m in g.messages], g.answer, g.ended) for g in given]
        for n, one in enumerate(found):
            if not len(one):
                raise UserError(f"Text {n} is empty; send the whole conversation with its answer.")
            if len(one) > self.longest:
                raise UserError(f"Text {n} has {len(one)} tokens; the reward model reads at most {self.longest}.")
        return found

    def score(self, sequences: Sequence[Answered]) -> list[float]:
        return score(self.model, sequences, self.dtype).tolist()


def check(artifact: Artifact) -> None:
    """Raises UserError when the artifact is no reward model."""
    if artifact.card["kind"] != "reward":
        raise UserError(f"{artifact.path} is no reward model but {artifact.card['kind']}; name another with --reward.")


def opener(name: str, run: Run, precision: str) -> Callable[[], RewardModel | None]:
    """What loads the reward model when it is first asked for; it returns None where there is none. Raises UserError at once
    when the named artifact is missing or no reward model."""
    if name and name != "off":
        check(run.need(name))

    def load() -> RewardModel | None:
        found = None if name == "off" else run.artifact(name) if name else run.newest("reward")
        return RewardModel.load(found, precision) if found else None

    return load


def answered(tokenizer: Tokenizer, messages: Sequence[dict[str, str]], answer: str, ended: bool) -> Answered:
    """A conversation and an answer to it as the reward model has learnt from them: up to the token that ends the answer, or
    without that where the answer was cut off. Special tokens in a text stay text."""
    prompt = chat_ids(tokenizer, messages, True)
    ids = chat_ids(tokenizer, [*messages, {"role": "assistant", "content": answer}])[len(prompt) :]
    last = max((n for n, i in enumerate(ids) if i in tokenizer.ends), default=len(ids))
    return Answered(tuple(prompt), tuple(ids[: last + ended]))


def text_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """A conversation with its answer, written out by the model's chat template → token ids. Here alone the special tokens in
    a text count, since the other side has nothing else to say them with. What a template writes after the end of the
    answer is left out: the reward is that of the answer's last token. Raises UserError for a text without the template of
    a home-grown model."""
    if tokenizer.imported:
        ids = tokenizer.encode(text, markup=True)
    else:
        ids = _chatml_ids(tokenizer, text)
    last = max((n for n, i in enumerate(ids) if i in tokenizer.ends), default=len(ids))
    beyond = ids[last + 1 :]
    blank = not b"".join(tokenizer.token_bytes(i) for i in beyond).strip()
    return ids[: last + 1] if blank and all(tokenizer.token_bytes(i) for i in beyond) else ids


def _chatml_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """As encode_chat cuts them: a role, its line break and the words after it do not grow together."""
    if f"{IM_START}assistant\n" not in text:
        raise UserError(
            f"A text holds no answer in this model's chat template ({IM_START}assistant …); let the client apply the "
            "template of the exported tokenizer (OpenRLHF: --data.apply_chat_template)."
        )
    ids: list[int] = []
    before = ""
    for piece in re.split(f"({'|'.join(map(re.escape, SPECIAL))})", text):
        if piece in SPECIAL:
            ids += tokenizer.encode(piece, markup=True)
        else:
            role = re.match(f"({'|'.join(ROLES)})(\n)", piece) if before == IM_START else None
            for part in (*role.groups(), piece[role.end() :]) if role else (piece,):
                ids += tokenizer.encode(part)
        before = piece
    return ids


def add_reward(app: FastAPI, worker: Worker, load: Callable[[], RewardModel | None] | None) -> None:
    """The route /reward; the model is loaded when it is first needed."""
    loaded: list[RewardModel] = []
    lock = asyncio.Lock()

    async def model() -> RewardModel:
        async with lock:
            if loaded and loaded[0].gone():
                loaded.clear()
            if not loaded:
                found = await asyncio.to_thread(load) if load else None
                if found is None:
                    raise HTTPException(404, NONE)
                loaded.append(found)
        return loaded[0]

    @app.post("/reward")
    async def reward(body: RewardRequest, request: Request) -> Response:
        judge = await model()
        sequences = await asyncio.to_thread(judge.read, body)
        rewards = [0.0] * len(sequences)
        for group in parts([len(s) for s in sequences], CHUNK):
            if await request.is_disconnected():
                return Response(status_code=499)  # nobody reads it
            own = [sequences[i] for i in group]
            # between two steps of the engines: beside them it would only fight for the same cores
            for i, value in zip(group, await worker.call(lambda own=own: judge.score(own)), strict=True):
                rewards[i] = value
        # `scores` and `extra_logs` are what OpenRLHF looks for beside the rewards
        return JSONResponse({"model": judge.name, "rewards": rewards, "scores": rewards, "extra_logs": {}})
