"""Feedback in the form in which models learn from it."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

Messages = tuple[tuple[str, str], ...]
"""((role, content), …): a conversation up to the answer."""


@dataclass(frozen=True)
class Thumb:
    """One answer and whether its user liked it. Token ids include the end token, where the answer has one."""

    messages: Messages
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    up: bool
    user: str


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, the better one first."""

    messages: Messages
    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    user: str


def prompt_key(messages: Messages) -> str:
    """Identity of a prompt: its words without case, width, punctuation and spaces."""
    text = unicodedata.normalize("NFKC", "\n".join(f"{role}:{content}" for role, content in messages)).casefold()
    return hashlib.sha256(re.sub(r"[\W_]+", "", text).encode()).hexdigest()[:16]


def is_held_out(messages: Messages, share: float, seed: int) -> bool:
    """Does the prompt belong to the held-out share? By its key, so that no prompt is on both sides."""
    digest = hashlib.sha256(f"{seed}/{prompt_key(messages)}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def paired(thumbs: Sequence[Thumb]) -> list[Pair]:
    """Every 👍 beside every 👎 of the same prompt by the same user: comparisons that nobody had to make."""
    groups: dict[tuple[str, str], list[Thumb]] = {}
    for t in thumbs:
        groups.setdefault((prompt_key(t.messages), t.user), []).append(t)
    return [
        Pair(a.messages, a.prompt, a.answer, b.answer, a.user)
        for group in groups.values()
        for a in group
        for b in group
        if a.up and not b.up and a.answer != b.answer
    ]
