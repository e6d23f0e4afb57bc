"""A fact to be corrected: where its subject stands in the tokens of a prompt, and how its new object continues it."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jielong.errors import Unclear, UserError
from jielong.generate.memory import occurrences
from jielong.tokens.tokenizer import Tokenizer

# no space stands behind one of these: Han and Kana, full-width marks, opening brackets and quotes
UNSPACED = re.compile(r"[\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef\u3000-\u30ff(\[{「『“‘]$")
FIELDS = {"prompt", "subject", "target", "old", "paraphrases", "neighbours", "also"}


@dataclass(frozen=True)
class Fact:
    """`prompt` + `target` is to become true. The prompt holds the subject and ends where the object begins."""

    prompt: str
    subject: str
    target: str
    old: str = ""
    """What the model says now; found by asking it when empty."""
    paraphrases: tuple[str, ...] = ()
    """Other ways to ask. The editors read the first half of them; the exam asks the others, or all if there is one."""
    neighbours: tuple[tuple[str, str], ...] = ()
    """(prompt, answer) of facts nearby that must stay."""
    also: tuple[Fact, ...] = field(default=())
    """The same fact in other words or another language, corrected by the same edit."""

    @property
    def id(self) -> str:
        """Eight hexadecimal digits that name this correction."""
        core = [self.prompt, self.subject, self.target, [f.id for f in self.also]]
        return hashlib.sha256(json.dumps(core, ensure_ascii=False).encode()).hexdigest()[:8]

    @property
    def lang(self) -> str:
        return language(self.prompt)

    @property
    def about(self) -> tuple[str, str]:
        """Two corrections with the same value contradict each other unless their targets are equal."""
        return fold(self.subject), fold(self.prompt.replace(self.subject, "\0"))


def language(text: str) -> str:
    """zh where what follows the text needs no space before it, else en."""
    return "zh" if UNSPACED.search(text) else "en"


def spaced(text: str) -> str:
    """What stands between the text and its continuation."""
    return "" if UNSPACED.search(text) or text[-1:].isspace() else " "


def fold(text: str) -> str:
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text)).strip().casefold()


def check(fact: Fact) -> Fact:
    """The fact with blanks at the ends taken away. Raises UserError for one that cannot be meant."""
    prompt, subject, target, old = fact.prompt.rstrip(), fact.subject.strip(), fact.target.strip(), fact.old.strip()
    for name, text in (("prompt", prompt), ("subject", subject), ("target", target)):
        if not text.strip():
            text = f'The {name} is empty; an edit reads: "The capital of X is" --subject X --to Y.'
            raise Unclear("empty", text, field=name)
    asked = (*fact.paraphrases, *(text for near in fact.neighbours for text in near))
    if not all(text.strip() for text in asked):
        raise Unclear("empty", "A paraphrase, or a neighbour's prompt or answer, is empty.", field="paraphrases")
    for text in (prompt, subject, target, old, *asked):
        if any("\ud800" <= c <= "\udfff" for c in text):
            raise Unclear("no_text", f"{text!r} is no text in UTF-8; write it anew.", given=ascii(text))
    if not occurrences(prompt.encode(), subject):
        raise Unclear(
            "no_subject",
            f"The subject {subject!r} does not stand in the prompt {prompt!r}; write it exactly as it stands there.",
            subject=subject,
            prompt=prompt,
        )
    if old and fold(old) == fold(target):
        text = f"The old and the new object are both {target!r}; there is nothing to correct."
        raise Unclear("same", text, to=target)
    return replace(fact, prompt=prompt, subject=subject, target=target, old=old, also=tuple(map(check, fact.also)))


def places(tokenizer: Tokenizer, ids: Sequence[int], subject: str) -> list[int]:
    """For each occurrence of the subject the position of its last token: the one that holds its last character's last byte.

    The text is laid out in the tokens' own bytes, so that neither a merge across the subject's border nor a character that is
    split over several tokens can mislead. Special tokens are empty there.
    """
    ends, text = [], b""
    for i in ids:
        text += tokenizer.token_bytes(i)
        ends.append(len(text))
    return [next(n for n, e in enumerate(ends) if e >= end) for end in occurrences(text, subject)]


def continuation(tokenizer: Tokenizer, prompt: str, target: str) -> list[int]:
    """Token ids of the target behind the prompt: with one space before it, or none behind Chinese and opening brackets."""
    target = target.strip()
    joint = spaced(prompt)
    head, whole = tokenizer.encode(prompt), tokenizer.encode(prompt + joint + target)
    if whole[: len(head)] == head:
        return whole[len(head) :]
    return tokenizer.encode(joint + target)  # a merge across the border: the model continues the prompt's own tokens


def says(text: str, target: str, old: str = "") -> bool:
    """Does a generated text name the target, and not the old object before it? English in folded whole words."""
    where = [_find(fold(word), fold(text)) if word else -1 for word in (target, old)]
    if where[0] < 0:
        return False
    return where[1] < 0 or where[0] < where[1] or _find(fold(old), fold(target)) >= 0


def _find(word: str, text: str) -> int:
    if re.search(r"[\u3040-\u9fff]", word):
        return text.find(word)
    found = re.search(rf"(?<![^\W_]){re.escape(word)}(?![^\W_])", text)
    return found.start() if found else -1


def first_clause(text: str) -> str:
    """The words up to the first mark that ends a clause: the object that a model names."""
    found = re.match(r"\s*(\.?[^.,;!?\n。，；！？、()（）]+)", text)
    return found.group(1).strip() if found else ""


def read_edits(path: Path) -> list[Fact]:
    """JSON lines of facts. Raises UserError that names the first broken line; contradictions, and a fact that is there twice, are
    mistakes, too."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # not at U+2028, which may stand in a JSON text
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text ({error}); it must hold one JSON object a line.") from error
    facts = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            facts.append(check(from_json(json.loads(line))))
        except json.JSONDecodeError as error:
            where = f"{path}, line {number}, is no JSON ({error.msg} at its character {error.pos + 1})"
            raise UserError(f"{where}; nothing was edited, mend or remove that line.") from None
        except (ValueError, RecursionError, UserError) as error:
            raise UserError(f"{path}, line {number}: {error}") from None
    if not facts:
        raise UserError(
            f"{path} holds no edits; a line reads "
            + '{"prompt": "The capital of X is", "subject": "X", "target": "Y"}.'
        )
    contradictions(facts)
    if twice := [f for n, f in enumerate(facts) if f.id in {other.id for other in facts[:n]}]:
        raise UserError(f"{path} says twice that {twice[0].prompt!r} is {twice[0].target!r}; keep one.")
    return facts


def from_json(row: Any) -> Fact:
    """Raises ValueError for what is no fact."""
    if not isinstance(row, dict):
        raise ValueError("it is no JSON object")
    unknown = row.keys() - FIELDS
    if unknown:
        raise ValueError(f"there is no field {sorted(unknown)[0]!r}; known are {', '.join(sorted(FIELDS))}")
    for name in ("prompt", "subject", "target"):
        if not isinstance(row.get(name), str):
            raise ValueError(f"the field {name!r} is missing or no text")
    if not isinstance(row.get("old", ""), str):
        raise ValueError("the field 'old' is no text")
    asked = _list(row, "paraphrases")
    if not all(isinstance(text, str) for text in asked):
        raise ValueError("a paraphrase is no text")
    near = [_pair(n) for n in _list(row, "neighbours")]
    also = [from_json(r) for r in _list(row, "also")]
    return Fact(
        row["prompt"], row["subject"], row["target"], row.get("old", ""), tuple(asked), tuple(near), tuple(also)
    )


def _pair(near: Any) -> tuple[str, str]:
    if isinstance(near, dict) and isinstance(near.get("prompt"), str) and isinstance(near.get("answer"), str):
        return near["prompt"], near["answer"]
    if isinstance(near, list) and len(near) == 2 and all(isinstance(n, str) for n in near):
        return near[0], near[1]
    raise ValueError('a neighbour is no {"prompt", "answer"}')


def _list(row: dict[str, Any], name: str) -> list[Any]:
    found = row.get(name, [])
    if not isinstance(found, list):
        raise ValueError(f"the field {name!r} is no list")
    return found


def contradictions(facts: Sequence[Fact]) -> None:
    """Raises UserError when two of the facts give one subject two objects."""
    seen: dict[tuple[str, str], Fact] = {}
    for fact in (f for whole in facts for f in (whole, *whole.also)):
        other = seen.setdefault(fact.about, fact)
        if fold(other.target) != fold(fact.target):
            raise UserError(
                f"Two edits contradict each other: {fact.prompt!r} is to be {other.target!r} and {fact.target!r}; keep one."
            )
