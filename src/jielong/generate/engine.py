"""The generation engine: requests join and leave a running batch at every step.

One engine serves chat, evaluation and (later) rollouts and detection. `submit` hands in a request from any thread; one thread
at a time calls `step`, or `stream` and `generate`, which do so until their own requests are answered.

A step reads a part of the waiting prompts, then draws one token for everyone who is generating. The sequences of a step
stand side by side in the cache: first those that generate, then those whose prompts are still being read.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jielong.errors import UserError
from jielong.generate.lookup import guess
from jielong.generate.memory import Memory
from jielong.generate.prefix import PrefixCache
from jielong.generate.request import Request, Step, raw_logprobs
from jielong.generate.sampling import Sampling
from jielong.model.gpt import GPT, load_model
from jielong.model.lora import merged_state
from jielong.model.runtime import make_runtime
from jielong.run import Artifact
from jielong.tokens.chat import chat_ids, fit
from jielong.tokens.tokenizer import Tokenizer

CHUNK = 512  # tokens of prompts that are read between two steps of those who generate


def chats(card: dict[str, Any], tokenizer: Tokenizer) -> bool:
    """Was the model of this card taught to answer in conversations?"""
    taught = card["kind"] in ("sft", "ppo", "dpo", "kto", "rloo", "grpo") or bool(card["metrics"].get("chat"))
    return taught or tokenizer.template is not None


def talks(artifact: Artifact) -> None:
    """Raises UserError for an artifact that says nothing: one that is no model, or a reward model, which gives marks."""
    if not artifact.file("model.json").is_file() or artifact.file("score.safetensors").is_file():
        raise UserError(f"{artifact.path} is no model that talks; name another one, such as base or sft.")


class Slot:
    """A request in the batch; its place in the list is its row of the cache."""

    def __init__(self, request: Request):
        self.request = request
        self.length = 0
        """Positions of the cache that are filled."""

    @property
    def reading(self) -> bool:
        return self.length < len(self.request.prompt) and not self.request.answer


class Engine:
    """A model with its tokenizer, ready to continue text."""

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        name: str = "model",
        card: dict[str, Any] | None = None,
        chat: bool = True,
        precision: str = "fp32",
        device: str = "cpu",
        rows: int = 32,
        cache_bytes: int = 2 << 30,
        prefix_bytes: int = 256 << 20,
        lookup: int = 0,
    ):
        """rows: requests that are worked on at once, the others wait; cache_bytes: the most that their keys and values may
        take (one request is always let in); prefix_bytes: size of the prefix cache, 0 = none; lookup: tokens to guess from the text so far and verify in one pass (speculative decoding), 0 = none."""
        self.runtime = make_runtime(model.config, merged_state(model), precision, device)
        self.tokenizer = tokenizer
        self.name = name
        self.card = card or {}
        self.hash = ""
        """Of the artifact, where it was loaded from one."""
        self.memory = Memory()
        """What it is told about subjects that are asked about."""
        self.context = model.config.context
        self.vocab_size = model.config.vocab_size
        self.chat = chat
        self.rows, self.cache_bytes, self.lookup = rows, cache_bytes, lookup
        self.prefixes = PrefixCache(prefix_bytes)
        self.cache = self.runtime.cache()
        self.slots: list[Slot] = []
        self.waiting: deque[Request] = deque()
        self._lock = threading.Lock()
        self.stats = {"prompt_tokens": 0, "generated_tokens": 0, "steps": 0, "guessed": 0, "guessed_right": 0}

    @classmethod
    def load(cls, folder: Path | str, threads: int = 0, **options: Any) -> Engine:
        """The engine of an artifact that talks. Raises UserError for another one, and when it is damaged."""
        from jielong.train.loop import has_bf16, use_threads

        folder = Path(folder)
        artifact = Artifact(folder)
        artifact.verify()
        talks(artifact)
        use_threads(threads)
        if options.get("precision") == "auto":
            options["precision"] = "bf16" if has_bf16() or options.get("device") == "cuda" else "fp32"
        tokenizer = Tokenizer.load(folder / "tokenizer.json")
        chat = chats(artifact.card, tokenizer)
        engine = cls(load_model(folder), tokenizer, artifact.name, artifact.card, chat=chat, **options)
        engine.hash, engine.memory = artifact.hash, Memory.load(folder)
        return engine

    # requests

    def chat_ids(self, messages: Sequence[dict[str, str]], add_generation_prompt: bool = True) -> list[int]:
        """The prompt of a conversation; the oldest turns are left out where the context is too short. Where the last message names
        a subject that the memory knows, what it knows stands before it."""
        kept = fit(self.tokenizer, self.memory.told(messages), max(1, self.context * 3 // 4))
        return chat_ids(self.tokenizer, kept, add_generation_prompt)

    def check(self, prompt: Sequence[int], answer: bool = True) -> None:
        """Raises UserError for a prompt that is empty, no list of token ids, or leaves no room for an answer."""
        longest = self.context - 1 if answer else self.context
        if not prompt:
            raise UserError("The prompt is empty.")
        if len(prompt) > longest:
            raise UserError(f"The prompt has {len(prompt)} tokens; this model reads at most {longest}.")
        if min(prompt) < 0 or max(prompt) >= self.vocab_size:
            raise UserError(f"A token id must lie between 0 and {self.vocab_size - 1}.")

    def submit(
        self, prompt: list[int], sampling: Sampling, sink: Callable[[Step], None] | None = None, score: bool = False
    ) -> Request:
        """Hand in a request; `sink` is called with every Step as it comes. With `score` the prompt's own tokens get
        log-probabilities too, and max_tokens may be 0. Raises UserError for a bad prompt. Thread-safe."""
        self.check(prompt, answer=sampling.max_tokens > 0)
        request = Request(list(prompt), sampling, self.tokenizer, self.context - len(prompt), sink, score)
        with self._lock:
            self.waiting.append(request)
        return request

    def cancel(self, request: Request) -> None:
        """Stop a request: it gets no further token, and its place is free at the next step. Thread-safe."""
        request.cancelled.set()

    def fail(self, problem: Exception) -> None:
        """End every request with finish "error" and begin with an empty batch, after a step that raised."""
        with self._lock:
            requests = [*(s.request for s in self.slots), *self.waiting]
            self.slots, self.waiting = [], deque()
        self.cache, self.prefixes = self.runtime.cache(), PrefixCache(self.prefixes.limit)
        for request in requests:
            if request.finish is None:
                request.error, request.finish = problem, "error"
                request.sink(Step(-1, "", b"", 0.0, finish="error"))

    @torch.inference_mode()
    def embed(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Mean of the last hidden states over the tokens of each prompt, of length 1: (B, D) float32."""
        vectors = []
        for prompt in prompts:
            self.check(prompt, answer=False)
            hidden = self.runtime.forward([prompt], [0], self.runtime.cache())  # (T, D)
            vectors.append(torch.nn.functional.normalize(hidden.float().mean(0), dim=0).cpu())
        return torch.stack(vectors)

    @property
    def busy(self) -> bool:
        return bool(self.slots or self.waiting)

    # the batch

    @torch.inference_mode()
    def step(self) -> bool:
        """One step for everyone; False when there was nothing to do. Not for two threads at once."""
        self._release()
        self._admit()
        if not self.slots:
            return False
        self.stats["steps"] += 1
        fresh = self._read()
        writing = [s for s in self.slots if not s.reading and s not in fresh]
        if writing:
            self._write(writing)
        self._release()
        return True

    def _admit(self) -> None:
        with self._lock:
            while self.waiting and len(self.slots) < self.rows:
                ends = [len(r.prompt) + r.room for r in [self.waiting[0], *(s.request for s in self.slots)]]
                if self.slots and self.cache.bytes(len(self.slots) + 1, max(ends)) > self.cache_bytes:
                    break
                request = self.waiting.popleft()
                if request.cancelled.is_set():
                    request.finish = "cancelled"
                    request.sink(Step(-1, "", b"", 0.0, finish="cancelled"))
                    continue
                self.slots.append(slot := Slot(request))
                row = len(self.slots) - 1
                self.cache.reserve(row + 1, len(request.prompt) + 1)
                if not request.score:
                    slot.length = request.cached = self.prefixes.restore(request.prompt, self.cache, row)

    def _release(self) -> None:
        """Take out who has finished; the last rows move into the holes, generating ones before reading ones."""
        for row in reversed(range(len(self.slots))):
            slot = self.slots[row]
            request = slot.request
            if request.cancelled.is_set() and request.finish is None:
                request.finish = "cancelled"
                request.sink(Step(-1, request.held(), b"", 0.0, finish="cancelled"))
            if request.finish is None:
                continue
            if not request.score:
                known = [*request.prompt, *request.answer][: slot.length]
                self.prefixes.keep(known, self.cache, row)
            if not slot.reading:
                row = self._fill(row, max(i for i, s in enumerate(self.slots) if not s.reading))
            self._fill(row, len(self.slots) - 1)
            self.slots.pop()
        if not self.slots and not self.waiting:
            self.cache.shrink()

    def _fill(self, hole: int, row: int) -> int:
        """Move `row` into `hole`; returns the new hole."""
        if row != hole:
            self.cache.move(row, hole, self.slots[row].length)
            self.slots[hole] = self.slots[row]
        return row

    def _read(self) -> list[Slot]:
        """Read a part of the prompts; returns the slots whose prompts are read, their first tokens drawn."""
        first = sum(not s.reading for s in self.slots)
        group: list[Slot] = []
        parts: list[list[int]] = []
        left = CHUNK
        for slot in self.slots[first:]:
            part = slot.request.prompt[slot.length : slot.length + left]
            if not part:
                break
            group.append(slot)
            parts.append(part)
            left -= len(part)
        if not group:
            return []
        hidden = self._forward(parts, group, first)
        done = []
        end = 0
        for slot, part in zip(group, parts, strict=True):
            start, end = end, end + len(part)
            if slot.request.score:
                self._score(slot, part, hidden[start:end])
            slot.length += len(part)
            self.stats["prompt_tokens"] += len(part)
            if slot.length == len(slot.request.prompt):
                done.append((slot, hidden[end - 1]))
        if done:
            logits = self.runtime.logits(torch.stack([h for _, h in done]))
            for (slot, _), row, best, total in zip(done, logits, *self.runtime.likeliest(logits), strict=True):
                if slot.request.room <= 0:
                    slot.request.finish = "length"
                    slot.request.sink(Step(-1, "", b"", 0.0, finish="length"))
                else:
                    slot.request.take(row, best, total)
                    self.stats["generated_tokens"] += 1
        return [slot for slot, _ in done]

    def _write(self, group: list[Slot]) -> None:
        """One more token, or several that were guessed and proved right, for everyone who generates."""
        parts = [[s.request.last] for s in group]
        if self.lookup:
            for slot, part in zip(group, parts, strict=True):
                request = slot.request
                room = min(self.lookup, request.room - len(request.answer) - 1)
                part += guess(request.prompt, request.answer, room) if room > 0 else []
        logits = self.runtime.logits(self._forward(parts, group, 0))  # (N, V)
        best, total = self.runtime.likeliest(logits)
        n = 0
        for slot, part in zip(group, parts, strict=True):
            self.stats["guessed"] += len(part) - 1
            for t in range(len(part)):
                slot.length += 1
                token = slot.request.take(logits[n + t], best[n + t], total[n + t])
                self.stats["generated_tokens"] += 1
                # a guess is right when it is what would have been drawn: the answer is the same with and without it
                if slot.request.finish or t + 1 == len(part) or part[t + 1] != token:
                    break
                self.stats["guessed_right"] += 1
            n += len(part)

    def _forward(self, parts: list[list[int]], group: list[Slot], row: int) -> Tensor:
        """Hidden states (N, D) of the parts, which continue the group's rows."""
        return self.runtime.forward(parts, [s.length for s in group], self.cache, row)

    def _score(self, slot: Slot, part: list[int], hidden: Tensor) -> None:
        """Log-probabilities of the prompt's tokens that follow those of `part`, whose hidden states (T, D) are given."""
        request = slot.request
        for at in range(0, len(part), 64):  # a block of logits at a time: (64, V)
            logits = self.runtime.logits(hidden[at : at + 64])
            _, totals = self.runtime.likeliest(logits)
            for t, (row, total) in enumerate(zip(logits, totals, strict=True), start=slot.length + at + 1):
                if t < len(request.prompt):
                    token = request.prompt[t]
                    logprob, top = raw_logprobs(row, token, total, request.sampling.top_logprobs, self.tokenizer)
                    data = self.tokenizer.token_bytes(token)
                    request.scores.append(Step(token, "", data, logprob, logprob, top))

    # whole answers

    def stream(self, prompt: list[int], sampling: Sampling, cancel: threading.Event | None = None) -> Iterator[Step]:
        """Continue a prompt, one Step per token; the last one carries `finish`. Raises UserError for a bad prompt."""
        steps: deque[Step] = deque()
        request = self.submit(prompt, sampling, steps.append)
        try:
            while True:
                while steps:
                    yield (step := steps.popleft())
                    if step.finish:
                        return
                if cancel is not None and cancel.is_set():
                    self.cancel(request)
                self.step()
        finally:
            if request.finish is None:  # the reader has gone
                self.cancel(request)

    def generate(self, prompts: Sequence[list[int]], sampling: Sampling | None = None) -> list[Request]:
        """Answer many prompts; greedy by default. The requests hold answer ids, steps and finish, in order."""
        sampling = sampling or Sampling(temperature=0.0, max_tokens=48)
        requests = [self.submit(p, sampling) for p in prompts]
        while any(r.finish is None for r in requests):
            self.step()
        return requests

    def answer(self, messages: Sequence[dict[str, str]], sampling: Sampling | None = None) -> str:
        """The whole answer to a conversation."""
        steps = self.stream(self.chat_ids(messages), sampling or Sampling(temperature=0.0))
        return "".join(step.text for step in steps)
