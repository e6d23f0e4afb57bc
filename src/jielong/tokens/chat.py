"""Chat templates and their loss mask: ChatML, as Qwen uses it, for home-grown models; an imported model's own Jinja."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from jielong.errors import UserError
from jielong.tokens.tokenizer import IM_END, IM_START, Tokenizer

ROLES = ("system", "user", "assistant")

# ChatML for the tools that read tokenizer_config.json
JINJA = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# for imported models that never learnt to chat (GPT-2)
PLAIN = (
    "{% for m in messages %}{{ m['role'] | capitalize + ': ' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
GUARD = "\ue000"  # a private character; it keeps a user's text from being read as a special token


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
    """Token ids, and for each whether it is to be learnt: the assistant's words and the end of its turn. Whoever wants no
    more than the ids has them faster from `chat_ids`: an imported template is written anew for every answer that is learnt.

    Raises UserError for messages that are none, or that the model's own template refuses.
    """
    check_messages(messages)
    if tokenizer.imported:
        return _encode_template(tokenizer, messages, add_generation_prompt)
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


def chat_ids(
    tokenizer: Tokenizer, messages: Sequence[dict[str, str]], add_generation_prompt: bool = False
) -> list[int]:
    """The token ids of `encode_chat`, in time that grows with the conversation's length and not with its square."""
    if not tokenizer.imported:
        return encode_chat(tokenizer, messages, add_generation_prompt)[0]
    check_messages(messages)
    pieces = render(tokenizer, messages, add_generation_prompt).split(GUARD)
    return [token for piece in pieces for token in tokenizer.encode_spans(piece)[0]]


def render(tokenizer: Tokenizer, messages: Sequence[dict[str, str]], add_generation_prompt: bool) -> str:
    """The conversation as the imported model's template writes it; special tokens within contents carry GUARD."""
    specials = _special_names(tokenizer)
    guarded = [{"role": m["role"], "content": _guard(m["content"], specials)} for m in messages]
    try:
        return _template(tokenizer.template or PLAIN).render(
            messages=guarded,
            add_generation_prompt=add_generation_prompt,
            **{k: tokenizer.settings.get(k) or "" for k in ("bos_token", "eos_token", "pad_token", "unk_token")},
        )
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"The model's chat template refuses this conversation: {error}") from error


def _encode_template(
    tokenizer: Tokenizer, messages: Sequence[dict[str, str]], add_generation_prompt: bool
) -> tuple[list[int], list[bool]]:
    text = render(tokenizer, messages, add_generation_prompt)
    # an answer is what the template adds to the prompt that asks for it, up to and with the token that ends it
    answers = []
    for n, message in enumerate(messages):
        if message["role"] == "assistant" and n:
            start = render(tokenizer, messages[:n], True)
            if text.startswith(start):
                answers.append((len(start), len(render(tokenizer, messages[: n + 1], False))))
    ids: list[int] = []
    learn: list[bool] = []
    at = 0
    for piece in text.split(GUARD):  # almost always one piece
        tokens, spans = tokenizer.encode_spans(piece)
        ids += tokens
        learn += [any(a <= at + start and at + end <= b for a, b in answers) for start, end in spans]
        at += len(piece) + len(GUARD)
    for n in range(len(ids) - 1, -1, -1):  # what the template writes after the end of an answer is not learnt
        if learn[n] and ids[n] not in tokenizer.ends and any(i in tokenizer.ends for i in _before(ids, learn, n)):
            learn[n] = False
    return ids, learn


def _before(ids: list[int], learn: list[bool], n: int) -> list[int]:
    """The learnt tokens directly before position n."""
    start = n
    while start and learn[start - 1]:
        start -= 1
    return ids[start:n]


@lru_cache(maxsize=8)
def _template(source: str) -> Any:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise UserError(f"The model's chat template refuses this conversation: {message}")

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    env.globals["raise_exception"] = refuse
    env.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return env.from_string(source)
    except Exception as error:
        raise UserError(f"The model's chat template cannot be read: {error}") from error


def _special_names(tokenizer: Tokenizer) -> tuple[str, ...]:
    return tuple(t.content for t in tokenizer.rust.get_added_tokens_decoder().values() if t.special)


def _guard(text: str, specials: tuple[str, ...]) -> str:
    text = text.replace(GUARD, "")
    if not any(s in text for s in specials):
        return text
    return re.sub("|".join(map(re.escape, specials)), lambda m: m[0][0] + GUARD + m[0][1:], text)


def fit(tokenizer: Tokenizer, messages: list[dict[str, str]], longest: int) -> list[dict[str, str]]:
    """Drop the oldest turns (a system message stays) until the prompt has at most `longest` tokens; the last one stays in any
    case. The work grows with what is kept, not with the square of what was sent: a client may send thousands of turns."""
    system = [m for m in messages[:1] if m["role"] == "system"]
    turns = messages[len(system) :]
    last = len(turns) - 1
    # a conversation may begin with its first message, whoever said it, and else with a user's
    starts = [n for n, m in enumerate(turns) if m["role"] == "user" or n in (0, last)]

    def fits(count: int) -> bool:
        """From the `count`-th start, counted from the end."""
        return len(chat_ids(tokenizer, system + turns[starts[-count] :], True)) <= longest

    kept, most = 1, 2  # the first fits, or there is nothing shorter
    while most <= len(starts) and fits(most):
        kept, most = most, 2 * most
    over = min(most, len(starts) + 1)  # does not fit, or is not there
    while over - kept > 1:
        middle = (kept + over) // 2
        kept, over = (middle, over) if fits(middle) else (kept, middle)
    return system + turns[starts[-kept] :] if turns else messages


__all__ = ["IM_END", "IM_START", "JINJA", "PLAIN", "chat_ids", "check_messages", "encode_chat", "fit", "render"]


def spell(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text that tokens stand for, special ones in it as ends of lines."""
    lines: list[list[int]] = [[]]
    for token in ids:
        if tokenizer.token_bytes(token):
            lines[-1].append(token)
        elif lines[-1]:
            lines.append([])
    return "\n".join(tokenizer.decode(line) for line in lines if line)
