"""Steps of the engine in OpenAI's forms."""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass, field
from typing import Any, Literal

from jielong.generate.engine import Engine
from jielong.generate.request import Request, Step

LEAST = -9999.0  # what OpenAI writes for "very unlikely"


@dataclass
class Answer:
    """One API request's answer: `requests` are prompt-major, n answers for each prompt."""

    engine: Engine
    kind: Literal["chat", "text"]
    requests: list[Request]
    logprobs: bool
    n: int = 1
    echo: bool = False
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.id = ("chatcmpl-" if self.kind == "chat" else "cmpl-") + uuid.uuid4().hex
        self._offsets = [0] * len(self.requests)

    def head(self, suffix: str = "") -> dict[str, Any]:
        name = "chat.completion" + suffix if self.kind == "chat" else "text_completion"
        return {"id": self.id, "object": name, "created": self.created, "model": self.engine.name}

    def _token(self, token_id: int, raw: bytes, logprob: float) -> dict[str, Any]:
        return {"token": self.name(token_id, raw), "id": token_id, "bytes": list(raw), "logprob": max(logprob, LEAST)}

    def name(self, token_id: int, raw: bytes) -> str:
        """A token's text; a special token's own name; part of a character as OpenAI's completions write it."""
        if not raw:
            return self.engine.tokenizer.name(token_id)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{b:02x}" for b in raw)

    def _entry(self, step: Step) -> dict[str, Any]:
        top = [self._token(i, raw, value) for i, raw, value in step.top]
        own = self._token(step.token_id, step.bytes, step.logprob)
        return {**own, "sampling_logprob": max(step.sampling_logprob, LEAST), "top_logprobs": top}

    def _logprobs(self, index: int, steps: list[Step]) -> dict[str, Any] | None:
        """Of `steps`; for plain completions the prompt's first token has no probability, and stands for itself."""
        if not self.logprobs:
            return None
        steps = [s for s in steps if s.token_id >= 0]
        if self.kind == "chat":
            return {"content": [self._entry(s) for s in steps], "refusal": None}
        names = [self.name(s.token_id, s.bytes) for s in steps]
        offsets = []
        for step in steps:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(step.bytes.decode("utf-8", "ignore"))
        top: list[dict[str, float] | None] = []
        for step, name in zip(steps, names, strict=True):
            found = {self.name(i, raw): max(value, LEAST) for i, raw, value in step.top}
            top.append({**found, name: max(step.logprob, LEAST)})
        values: list[float | None] = [max(s.logprob, LEAST) for s in steps]
        return {"tokens": names, "token_logprobs": values, "top_logprobs": top, "text_offset": offsets}

    def _echoed(self, index: int) -> tuple[str, list[Step]]:
        """The prompt's text and, where they were scored, its tokens, the first one as probability 1."""
        request = self.requests[index]
        text = self.engine.tokenizer.decode(request.prompt)
        if not request.score:
            return text, []
        first = request.prompt[0]
        return text, [Step(first, "", self.engine.tokenizer.token_bytes(first), 0.0), *request.scores]

    def chunk(self, index: int, step: Step | None) -> dict[str, Any]:
        """A streamed part; the first one of each choice (None) names the role, or echoes the prompt."""
        finish = step.finish if step else None
        choice: dict[str, Any] = {"index": index, "finish_reason": openai_finish(finish)}
        choice["logprobs"] = self._logprobs(index, [step]) if step else None
        if self.kind == "chat":
            choice["delta"] = {"content": step.text} if step else {"role": "assistant", "content": ""}
        else:
            choice["text"] = step.text if step else self._echoed(index)[0] if self.echo else ""
        return {**self.head(".chunk"), "choices": [choice]}

    def usage(self) -> dict[str, Any]:
        """Tokens; a prompt counts once, however many answers it has."""
        prompts = sum(len(r.prompt) for r in self.requests[:: self.n])
        answers = sum(len(r.answer) for r in self.requests)
        return {
            "prompt_tokens": prompts,
            "completion_tokens": answers,
            "total_tokens": prompts + answers,
            "prompt_tokens_details": {"cached_tokens": sum(r.cached for r in self.requests[:: self.n])},
        }

    def usage_chunk(self) -> dict[str, Any]:
        return {**self.head(".chunk"), "choices": [], "usage": self.usage()}

    def whole(self) -> dict[str, Any]:
        """The answer in one piece."""
        choices = []
        for index, request in enumerate(self.requests):
            steps, text = request.steps, request.text
            if self.echo:
                prompt, scored = self._echoed(index)
                text, steps = prompt + text, [*scored, *steps]
            choice: dict[str, Any] = {"index": index, "finish_reason": openai_finish(request.finish)}
            choice["logprobs"] = found = self._logprobs(index, steps)
            if found and self.echo:
                found["token_logprobs"][0] = found["top_logprobs"][0] = None
            if self.kind == "chat":
                choice["message"] = {"role": "assistant", "content": text, "refusal": None}
            else:
                choice["text"] = text
            choices.append(choice)
        return {**self.head(), "choices": choices, "usage": self.usage()}


def openai_finish(finish: str | None) -> str | None:
    """Clients know stop and length; a cancelled answer is one that became no longer."""
    return "stop" if finish == "cancelled" else finish


def event(data: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"
