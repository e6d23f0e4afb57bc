"""The bodies of requests, checked. What OpenAI's clients send and we do not know is ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from jielong.errors import UserError
from jielong.generate.constrain import JsonProcessor
from jielong.generate.engine import Engine
from jielong.generate.sampling import Sampling

MOST_TOKENS = 131_072
Text = Annotated[str, Field(max_length=2_000_000)]
Ids = Annotated[list[Annotated[int, Field(ge=0, strict=True)]], Field(max_length=MOST_TOKENS)]
Finite = Field(allow_inf_nan=False)


class Form(BaseModel):
    """Unknown fields are ignored; a known one must have its type: no "5" for 5, no false for 0."""

    model_config = ConfigDict(extra="ignore", strict=True)


class Body(Form):
    model: str | None = None
    user: str | None = None


class Part(Form):
    """A part of a message; only text is understood."""

    type: Literal["text"]
    text: Text


class Message(Form):
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[Part]

    def plain(self) -> dict[str, str]:
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class JsonSchema(Form):
    name: str | None = None
    json_schema: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Form):
    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def complete(self) -> ResponseFormat:
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("type json_schema needs json_schema.schema")
        return self


class StreamOptions(Form):
    include_usage: bool = False


class Common(Body):
    """What chat and plain completions share."""

    temperature: Annotated[float, Field(ge=0, le=5, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=1_000_000)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=5, allow_inf_nan=False)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]] | None = None
    max_tokens: Annotated[int, Field(ge=0, le=MOST_TOKENS)] | None = None
    stop: (
        Annotated[str, Field(max_length=1000)]
        | Annotated[list[Annotated[str, Field(max_length=1000)]], Field(max_length=16)]
        | None
    ) = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    n: Annotated[int, Field(ge=1, le=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    ignore_eos: bool = False

    @field_validator("logit_bias")
    @classmethod
    def biases_are_ids(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        if value and not all(key.isascii() and key.isdigit() and len(key) < 10 for key in value):
            raise ValueError("keys must be token ids")
        return value

    def sampling(self, engine: Engine, top: int, longest: int, index: int = 0) -> Sampling:
        """The settings of the `index`-th of n answers. Raises UserError for what this model cannot do."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        bias = {int(k): v for k, v in (self.logit_bias or {}).items()}
        if bias and max(bias) >= engine.vocab_size:
            raise UserError(f"logit_bias names the token {max(bias)}; this model has {engine.vocab_size}.")
        form = self.response_format
        processors = ()
        if form and form.type != "text":
            schema = form.json_schema.json_schema if form.json_schema else {"type": "object"}
            processors = (JsonProcessor(engine.tokenizer, schema),)
        return Sampling(
            temperature=0.7 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=max(0, self.top_k or 0),
            min_p=self.min_p or 0.0,
            repetition_penalty=self.repetition_penalty or 1.0,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            logit_bias=bias,
            max_tokens=longest,
            stop=tuple(s for s in stop if s),
            seed=None if self.seed is None else (self.seed + index) % 2**63,
            top_logprobs=top,
            ignore_end=self.ignore_eos,
            processors=processors,
        )


class ChatRequest(Common):
    messages: Annotated[list[Message], Field(min_length=1, max_length=10_000)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    continue_from: Ids | None = None
    """The beginning of the answer as token ids, which the model continues."""

    @property
    def longest(self) -> int:
        return self.max_completion_tokens or self.max_tokens or 512


class CompletionRequest(Common):
    prompt: (
        Text
        | Ids
        | Annotated[list[Text], Field(min_length=1, max_length=256)]
        | Annotated[list[Ids], Field(min_length=1, max_length=256)]
    )
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    suffix: None = None
    best_of: Literal[1] | None = None

    @property
    def longest(self) -> int:
        return 16 if self.max_tokens is None else self.max_tokens


class EmbeddingRequest(Body):
    input: (
        Text
        | Ids
        | Annotated[list[Text], Field(min_length=1, max_length=256)]
        | Annotated[list[Ids], Field(min_length=1, max_length=256)]
    )
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: None = None


class TokenizeRequest(Body):
    prompt: Text | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=10_000)] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True

    @model_validator(mode="after")
    def one_of_both(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self


class DetokenizeRequest(Body):
    tokens: Ids
