"""In-context memory: the correction stays a sentence that is told before a question which names its subject (IKE, Zheng et al. 2023;
MeLLo, Zhong et al. 2023). No weight changes, so nothing is left of it in an export, or where the text is no conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jielong.edit.bench import Bench, Stored
from jielong.edit.facts import Fact, spaced
from jielong.edit.methods.additive import statements
from jielong.errors import UserError
from jielong.generate.memory import Note
from jielong.model.delta import Delta


class InContext:
    exact = True

    def propose(self, bench: Bench, facts: Sequence[Fact]) -> list[Stored]:
        if not bench.chat:
            raise UserError("--method in-context is for models that chat; this one only continues text.")
        return [{} for _ in facts]

    def delta(self, bench: Bench, stored: Mapping[str, Stored]) -> Delta:
        return Delta({})

    def notes(self, fact: Fact) -> list[Note]:
        return [
            Note(s.subject, s.prompt + spaced(s.prompt) + s.target + ("。" if s.lang == "zh" else "."))
            for s in statements(fact)
        ]
