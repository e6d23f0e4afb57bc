"""One request: its prompt, its draws, its text, and when it ends."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from jielong.generate.sampling import Sampling, draw, shape_logits
from jielong.tokens.tokenizer import Tokenizer


@dataclass
class Step:
    """One generated token. `text` is what became readable with it: never half a character."""

    token_id: int
    text: str
    bytes: bytes
    logprob: float
    """Natural log of the model's own ("raw") probability, before penalties, temperature and cuts."""
    sampling_logprob: float = 0.0
    """Natural log of the probability with which it was drawn, after all of them; 0 where the likeliest was taken."""
    top: list[tuple[int, bytes, float]] = field(default_factory=list)
    """The likeliest tokens of the raw distribution: (id, bytes, log-probability)."""
    finish: str | None = None
    """stop, length, cancelled or error on the last step; after the latter two there may be no token: its id is -1."""


class Utf8Stream:
    """Bytes in, whole characters out."""

    def __init__(self) -> None:
        import codecs

        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, data: bytes, final: bool = False) -> str:
        return self._decoder.decode(data, final)


class TextStream:
    """Tokens' bytes in, readable text out, cut before the first stop string, which may cross tokens."""

    def __init__(self, stop: tuple[str, ...]):
        self.stop = tuple(s for s in stop if s)
        self._held_back = max((len(s) for s in self.stop), default=1) - 1
        self._decoder = Utf8Stream()
        self._text = ""  # what has not been told yet

    def push(self, data: bytes, final: bool) -> tuple[str, bool]:
        """(text to tell now, whether a stop string was reached). What may become a stop string is held back."""
        self._text += self._decoder.push(data, final)
        at = min((i for i in map(self._text.find, self.stop) if i >= 0), default=-1)
        end = at if at >= 0 else len(self._text) if final else max(0, len(self._text) - self._held_back)
        told, self._text = self._text[:end], self._text[end:]
        return told, at >= 0

    def flush(self) -> str:
        """What was held back."""
        return self._text + self._decoder.push(b"", True)


class Request:
    """A prompt to be continued. The engine feeds it logits; it draws, reads and decides when to end.

    Its random numbers come from its own seed only, so that its answer does not depend on who else is in the batch.
    """

    def __init__(
        self,
        prompt: list[int],
        sampling: Sampling,
        tokenizer: Tokenizer,
        room: int,
        sink: Callable[[Step], None] | None = None,
        score: bool = False,
    ):
        self.prompt, self.sampling, self.tokenizer = prompt, sampling, tokenizer
        self.room = min(sampling.max_tokens, room)
        """Tokens that the answer may have."""
        self.sink = sink or (lambda step: None)
        self.cancelled = threading.Event()
        self.answer: list[int] = []
        self.steps: list[Step] = []
        self.finish: str | None = None
        self.error: Exception | None = None
        self.score = score
        self.scores: list[Step] = []
        """With `score`: the prompt's own tokens from the second on, as if they had been drawn."""
        self.cached = 0
        """Tokens of the prompt that came from the prefix cache."""
        seed = secrets.randbits(62) if sampling.seed is None else sampling.seed
        self.generator = torch.Generator().manual_seed(seed)
        self._text = TextStream(sampling.stop)

    @property
    def last(self) -> int:
        """The token that the model reads next."""
        return self.answer[-1] if self.answer else self.prompt[-1]

    @property
    def text(self) -> str:
        """The answer so far."""
        return "".join(step.text for step in self.steps)

    def held(self) -> str:
        """The text that was held back when the request was stopped."""
        return self._text.flush()

    def take(self, logits: Tensor, best: int, total: float) -> int:
        """Draw from logits (V,) and tell the step; returns the token. `best` is the likeliest token, `total` is log Σ exp of
        the logits.

        When a processor fails, only this request ends, with finish "error" and the reason in `error`; -1 is returned.
        """
        try:
            return self._take(logits, best, total)
        except Exception as problem:  # whatever a processor raises must not stop the others in the batch
            self.error, self.finish = problem, "error"
            self.sink(Step(-1, "", b"", 0.0, finish="error"))
            return -1

    def _take(self, logits: Tensor, best: int, total: float) -> int:
        s = self.sampling
        if s.temperature <= 0 and s.plain:
            token, sampled = best, 0.0
        else:
            token, sampled = draw(shape_logits(logits, s, self.prompt, self.answer), s, self.generator, self.answer)
        logprob, top = raw_logprobs(logits, token, total, s.top_logprobs, self.tokenizer)
        self.answer.append(token)
        ended = token in self.tokenizer.ends and not s.ignore_end
        full = len(self.answer) >= self.room
        data = self.tokenizer.token_bytes(token)
        text, stopped = self._text.push(data, ended or full)
        finish = "stop" if ended or stopped else "length" if full else None
        if finish is None and self.cancelled.is_set():
            finish = "cancelled"
        if finish == "cancelled":
            text += self._text.flush()
        self.finish = finish
        step = Step(token, text, data, logprob, sampled, top, finish)
        self.steps.append(step)
        self.sink(step)
        return token


def raw_logprobs(
    logits: Tensor, token: int, total: float, top: int, tokenizer: Tokenizer
) -> tuple[float, list[tuple[int, bytes, float]]]:
    """The token's log-probability under logits (V,) float32, and the `top` likeliest tokens; total = log Σ exp."""
    best = []
    if top:
        values, index = logits.topk(min(top, len(logits)))
        pairs = zip(index.tolist(), values.tolist(), strict=True)
        best = [(i, tokenizer.token_bytes(i), v - total) for i, v in pairs]
    return float(logits[token]) - total, best
