"""The bodies of requests, checked."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from jielong.generate.sampling import Sampling


class Message(BaseModel):
    role: Literal["system", "user", "assistant"]
    content: str


class Common(BaseModel):
    """What chat and plain completions share."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = None
    temperature: float = Field(0.7, ge=0, le=5)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    min_p: float = Field(0.0, ge=0, le=1)
    repetition_penalty: float = Field(1.0, gt=0, le=5)
    max_tokens: int = Field(256, ge=1, le=4096)
    stop: str | list[str] | None = None
    seed: int | None = None
    stream: bool = False
    stream_options: dict | None = None
    n: Literal[1] = 1

    def sampling(self, logprobs: bool, top: int) -> Sampling:
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            max_tokens=self.max_tokens,
            stop=tuple(s for s in stop if s),
            seed=self.seed,
            top_logprobs=top if logprobs else 0,
        )


class ChatRequest(Common):
    messages: list[Message] = Field(min_length=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)
    continue_from: list[int] | None = None
    """The beginning of the answer as token ids, which the model continues."""


class CompletionRequest(Common):
    prompt: str | list[int]
    logprobs: int | None = Field(None, ge=0, le=20)
