"""The chat template (ChatML, as Qwen uses it) and its loss mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jielong.errors import UserError
from jielong.tokens.tokenizer import IM_END, IM_START, Tokenizer

ROLES = ("system", "user", "assistant")

# the same template for the tools that read tokenizer_config.json
JINJA = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def check_messages(messages: Any) -> None:
    """Raises UserError unless `messages` is a list of {"role", "content"}."""
    if not isinstance(messages, (list, tuple)) or not messages:
        raise UserError('A conversation must be a non-empty list of {"role": …, "content": …}.')
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise UserError(f"A message's role must be one of {', '.join(ROLES)}.")
        if not isinstance(message.get("content"), str):
            raise UserError("A message's content must be text.")


def encode_chat(
    tokenizer: Tokenizer, messages: Sequence[dict[str, str]], add_generation_prompt: bool = False
) -> tuple[list[int], list[bool]]:
    """Token ids, and for each whether it is to be learnt: the assistant's words and the end of its turn."""
    check_messages(messages)
    ids: list[int] = []
    learn: list[bool] = []
    newline = tokenizer.encode("\n")

    def add(tokens: list[int], flag: bool) -> None:
        ids.extend(tokens)
        learn.extend([flag] * len(tokens))

    for message in messages:
        mine = message["role"] == "assistant"
        add([tokenizer.im_start, *tokenizer.encode(message["role"]), *newline], False)
        add([*tokenizer.encode(message["content"]), tokenizer.im_end], mine)
        add(newline, False)
    if add_generation_prompt:
        add([tokenizer.im_start, *tokenizer.encode("assistant"), *newline], False)
    return ids, learn


def fit(tokenizer: Tokenizer, messages: list[dict[str, str]], longest: int) -> list[dict[str, str]]:
    """Drop the oldest turns (a system message stays) until the prompt has at most `longest` tokens."""
    system = [m for m in messages[:1] if m["role"] == "system"]
    turns = messages[len(system) :]
    while len(turns) > 1 and len(encode_chat(tokenizer, system + turns, True)[0]) > longest:
        turns = turns[1:]
        while len(turns) > 1 and turns[0]["role"] != "user":
            turns = turns[1:]
    return system + turns


__all__ = ["IM_END", "IM_START", "JINJA", "check_messages", "encode_chat", "fit"]
