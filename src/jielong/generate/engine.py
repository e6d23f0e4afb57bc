"""The generation engine: one conversation streamed token by token, or many prompts in one batch."""

from __future__ import annotations

import math
import secrets
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jielong.errors import UserError
from jielong.generate.sampling import Sampling, draw, penalise
from jielong.model.cache import KVCache
from jielong.model.gpt import GPT, causal_mask, load_model
from jielong.run import Artifact
from jielong.tokens.chat import encode_chat, fit
from jielong.tokens.tokenizer import Tokenizer


@dataclass
class Step:
    """One generated token. `text` is what became readable with it: never half a character."""

    token_id: int
    text: str
    bytes: bytes
    logprob: float
    """Natural log of the model's own probability, before temperature and the cuts."""
    top: list[tuple[int, bytes, float]] = field(default_factory=list)
    """The likeliest tokens: (id, bytes, log-probability)."""
    finish: str | None = None
    """stop, length or cancelled on the last step."""


class Utf8Stream:
    """Bytes in, whole characters out."""

    def __init__(self) -> None:
        import codecs

        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, data: bytes, final: bool = False) -> str:
        return self._decoder.decode(data, final)


class Engine:
    """A model with its tokenizer, ready to continue text. Not thread-safe: the caller takes turns."""

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        name: str = "model",
        card: dict[str, Any] | None = None,
        chat: bool = True,
    ):
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.name = name
        self.card = card or {}
        self.context = model.config.context
        self.chat = chat

    @classmethod
    def load(cls, folder: Path | str, threads: int = 0) -> Engine:
        """The engine of a base or fine-tuned artifact. Raises UserError when it is damaged."""
        from jielong.train.loop import use_threads

        folder = Path(folder)
        artifact = Artifact(folder)
        artifact.verify()
        use_threads(threads)
        tokenizer = Tokenizer.load(folder / "tokenizer.json")
        kind = artifact.card["kind"]
        return cls(load_model(folder), tokenizer, artifact.name, artifact.card, chat=kind == "sft")

    def chat_ids(self, messages: Sequence[dict[str, str]], add_generation_prompt: bool = True) -> list[int]:
        """The prompt of a conversation; the oldest turns are left out where the context is too short."""
        kept = fit(self.tokenizer, list(messages), max(1, self.context * 3 // 4))
        return encode_chat(self.tokenizer, kept, add_generation_prompt)[0]

    def _check(self, prompt: list[int]) -> None:
        if not prompt:
            raise UserError("The prompt is empty.")
        if len(prompt) >= self.context:
            raise UserError(f"The prompt has {len(prompt)} tokens; this model reads at most {self.context - 1}.")
        if min(prompt) < 0 or max(prompt) >= self.tokenizer.vocab_size:
            raise UserError(f"A token id must lie between 0 and {self.tokenizer.vocab_size - 1}.")

    def _is_end(self, token: int) -> bool:
        return token in (self.tokenizer.end_of_text, self.tokenizer.im_end, self.tokenizer.pad)

    @torch.inference_mode()
    def stream(
        self, prompt_ids: list[int], sampling: Sampling, cancel: threading.Event | None = None
    ) -> Iterator[Step]:
        """Continue `prompt_ids`, one Step per token; the last one carries `finish`.

        Raises UserError when the prompt is empty, too long or no token ids.
        """
        self._check(prompt_ids)
        room = min(sampling.max_tokens, self.context - len(prompt_ids))
        generator = torch.Generator().manual_seed(secrets.randbits(62) if sampling.seed is None else sampling.seed)
        cache = KVCache(self.model.config, 1, len(prompt_ids) + room)
        logits = self._forward([prompt_ids], cache)[0]  # (V,)
        decoder, text, out = Utf8Stream(), "", []
        longest_stop = max((len(s) for s in sampling.stop), default=0)
        told = 0
        for n in range(room):
            token = draw(penalise(logits, prompt_ids + out, sampling.repetition_penalty), sampling, generator)
            out.append(token)
            step = self._step(token, logits, sampling.top_logprobs)
            ended = self._is_end(token)
            text += decoder.push(step.bytes, final=ended or n + 1 == room)
            at = min((i for i in (text.find(s) for s in sampling.stop if s) if i >= 0), default=-1)
            if ended or at >= 0:
                step.finish = "stop"
            elif n + 1 == room:
                step.finish = "length"
            elif cancel is not None and cancel.is_set():
                step.finish = "cancelled"
            # hold back what may become a stop string
            end = at if at >= 0 else len(text) if step.finish else max(told, len(text) - max(0, longest_stop - 1))
            step.text, told = text[told:end], max(told, end)
            yield step
            if step.finish:
                return
            logits = self._forward([[token]], cache)[0]

    def _step(self, token: int, logits: Tensor, top: int) -> Step:
        logprobs = torch.log_softmax(logits.float(), -1)
        best = []
        if top:
            values, index = logprobs.topk(min(top, len(logprobs)))
            best = [(i, self.tokenizer.token_bytes(i), v) for i, v in zip(index.tolist(), values.tolist(), strict=True)]
        return Step(token, "", self.tokenizer.token_bytes(token), float(logprobs[token]), best)

    def _forward(self, rows: list[list[int]], cache: KVCache) -> Tensor:
        """Logits (B, V) after each row; every row has the same number of tokens."""
        tokens = torch.tensor(rows)  # (B, T)
        T = tokens.shape[1]
        positions = torch.arange(cache.length, cache.length + T).unsqueeze(0)
        mask = torch.zeros(1, 1, T, cache.length + T)
        mask[..., cache.length :] = causal_mask(T)
        hidden = self.model(tokens, mask, cache=cache, positions=positions)
        cache.advance(T)
        return self.model.logits(hidden[:, -1])

    @torch.inference_mode()
    def generate(self, prompts: list[list[int]], max_tokens: int = 48, batch: int = 128) -> list[list[int]]:
        """Greedy continuations of many prompts, without the end token; for examinations.

        Prompts are sorted by length and batched with padding on the left, which the mask hides.
        """
        answers: list[list[int]] = [[] for _ in prompts]
        by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        for at in range(0, len(prompts), batch):
            part = by_length[at : at + batch]
            for i, tokens in zip(part, self._greedy([prompts[i] for i in part], max_tokens), strict=True):
                answers[i] = tokens
        return answers

    def _greedy(self, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
        for prompt in prompts:
            self._check(prompt)
        longest = max(map(len, prompts))
        pads = torch.tensor([longest - len(p) for p in prompts])  # (B,)
        tokens = torch.tensor([[self.tokenizer.pad] * (longest - len(p)) + p for p in prompts])
        cache = KVCache(self.model.config, len(prompts), longest + max_tokens)
        answers: list[list[int]] = [[] for _ in prompts]
        alive = list(range(len(prompts)))
        for _ in range(max_tokens):
            T = tokens.shape[1]
            end = cache.length + T
            query = torch.arange(cache.length, end)  # (T,)
            key = torch.arange(end)
            seen = (key <= query.unsqueeze(1)) & (key >= pads.view(-1, 1, 1))  # (B, T, S)
            seen |= key == query.unsqueeze(1)  # padding sees itself, so that no row is empty
            mask = torch.zeros(seen.shape).masked_fill_(~seen, -math.inf).unsqueeze(1)
            positions = (query.unsqueeze(0) - pads.unsqueeze(1)).clamp_min(0)
            hidden = self.model(tokens, mask, cache=cache, positions=positions)
            cache.advance(T)
            choice = self.model.logits(hidden[:, -1]).argmax(-1).tolist()
            keep = [n for n, token in enumerate(choice) if not self._is_end(token)]
            for n in keep:
                answers[alive[n]].append(choice[n])
            if not keep:
                break
            if len(keep) < len(alive):
                rows = torch.tensor(keep)
                cache.keep(rows)
                pads, alive = pads[rows], [alive[n] for n in keep]
            tokens = torch.tensor([[choice[n]] for n in keep])
        return answers

    def answer(self, messages: Sequence[dict[str, str]], sampling: Sampling | None = None) -> str:
        """The whole answer to a conversation."""
        steps = self.stream(self.chat_ids(messages), sampling or Sampling(temperature=0.0))
        return "".join(step.text for step in steps)
