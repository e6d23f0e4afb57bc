"""What an editor works with: the base model, its tokenizer, its key statistics, and the texts that ask for a fact."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from torch import Tensor

from jielong.edit.facts import UNSPACED, Fact, continuation, occurrences, places
from jielong.edit.values import Context, Search, at_answer, at_subject
from jielong.errors import Unclear
from jielong.generate.engine import Engine
from jielong.generate.sampling import Sampling
from jielong.model.delta import Delta, applied, widened
from jielong.model.gpt import GPT
from jielong.tokens.tokenizer import Tokenizer

Stored = dict[str, Tensor]
"""What an editor keeps of one change, by name."""
RIDGE = 100.0  # λ where nobody names one
LEADS = {"en": ("", "Therefore, ", "As we know, "), "zh": ("", "此外，", "我們知道，")}
FRAMES = {
    "en": ("{p}", "{p} what?", "Do you know? {p}"),
    "zh": ("{p}", "{p}什麼？", "你知道嗎？{p}"),
}


@dataclass(frozen=True)
class Site:
    """Where the editors write: a layer, and the subject's last token or the positions where the answer is said."""

    layer: int
    place: str = "answer"


@dataclass
class Bench:
    """`model` is frozen, in float32, and no editor changes it."""

    model: GPT
    tokenizer: Tokenizer
    chat: bool
    site: Site
    statistics: Callable[[Sequence[int]], Mapping[int, Tensor]]
    """Layers → their C (K, K) float64."""
    ridge: float = RIDGE
    """λ: how many keys of ordinary text an edit's keys are weighed against."""
    search: Search = field(default_factory=Search)
    earlier: dict[str, tuple[str, Stored]] = field(default_factory=dict)
    """Changes that stand: id → (method, what it stored)."""

    inputs_of: Callable[[Sequence[int]], Mapping[int, Tensor]] | None = None
    """Layers → E[y yᵀ] (D + 1, D + 1) float64, y = (x, 1), x their feed-forward's inputs."""

    def c(self, layer: int) -> Tensor:
        return self.statistics([layer])[layer]

    def inputs(self, layer: int) -> Tensor:
        assert self.inputs_of is not None
        return self.inputs_of([layer])[layer]

    @cached_property
    def engine(self) -> Engine:
        return Engine(self.model, self.tokenizer, rows=64)

    def current(self, delta: Delta) -> GPT:
        """A copy of the model with a change."""
        copy = GPT(replace(self.model.config, mlp_width=widened(self.model.config.mlp_width, delta)))
        copy.load_state_dict(applied(self.model.state_dict(), {"": delta}))
        return copy.requires_grad_(False).eval()

    # texts that ask for a fact

    def contexts(self, fact: Fact, place: str = "") -> list[Context]:
        """The prompt alone, behind short sentence openings, and for a model that chats in its own answers: to the prompt, to the
        first half of the paraphrases, and to a few frames. Spots are at `place`, by default the site's."""
        lang = "zh" if UNSPACED.search(fact.prompt) else "en"
        made: list[tuple[list[int], str, int | None]] = [
            (self.tokenizer.encode(lead + fact.prompt), fact.prompt, None) for lead in LEADS[lang]
        ]
        for text in () if self.chat else read_half(fact):
            if occurrences(text.encode(), fact.subject):
                made.append((self.tokenizer.encode(text), text, None))
        if self.chat:
            asked = [f.format(p=fact.prompt) for f in FRAMES[lang]] + list(read_half(fact))
            heads = [self.engine.chat_ids([{"role": "user", "content": text}]) for text in asked]
            replies = self.engine.generate(heads, Sampling(temperature=0.0, max_tokens=32))
            for head, reply in zip(heads, replies, strict=True):
                beginnings = {fact.prompt, self._beginning(reply.text, fact)} - {""}
                made += [(head + self.tokenizer.encode(b), b, len(head) - 1) for b in sorted(beginnings)]
        return [self._context(fact, ids, text, start, place or self.site.place) for ids, text, start in made]

    def keep(self, fact: Fact) -> list[Context]:
        """Texts about the subject after which the model is to go on as before."""
        text = fact.subject + ("是" if UNSPACED.search(fact.subject) else " is a")
        ids = self.tokenizer.encode(text)
        return [at_subject(ids, (), places(self.tokenizer, ids, fact.subject))]

    def _context(self, fact: Fact, ids: list[int], text: str, start: int | None, place: str) -> Context:
        target = continuation(self.tokenizer, text, fact.target)
        if len(ids) + len(target) > (most := self.model.config.context):
            text = f"Prompt and object have {len(ids) + len(target)} tokens together; this model reads at most {most}."
            raise Unclear("too_long", text, tokens=len(ids) + len(target), most=most)
        if place == "answer":
            return at_answer(ids, target, start)
        return at_subject(ids, target, places(self.tokenizer, ids, fact.subject))

    @staticmethod
    def _beginning(reply: str, fact: Fact) -> str:
        """The part of a reply before the old object, where the subject stands in that part; else nothing."""
        raw = reply.encode()
        ends = occurrences(raw, fact.old) if fact.old else []
        for end in ends:
            before = raw[: end - len(fact.old.encode())].decode("utf-8", "ignore").rstrip()
            if occurrences(before.encode(), fact.subject):
                return before
        return ""


def read_half(fact: Fact) -> tuple[str, ...]:
    """The paraphrases that an editor reads; the exam asks the others."""
    return fact.paraphrases[: len(fact.paraphrases) // 2]
