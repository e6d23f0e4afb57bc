"""Feedback in and out: JSONL in TRL's dataset formats, and the feedback that Open WebUI exports."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jielong.errors import UserError
from jielong.feedback.labels import Messages, Pair, Thumb
from jielong.feedback.store import PERSON, Answer, Event, Store
from jielong.tokens.chat import chat_ids, check_messages
from jielong.tokens.tokenizer import Tokenizer

FORMATS = ("unpaired-preference", "preference", "prompt-completion")
Row = dict[str, Any]


def export(store: Store, form: str) -> Iterator[Row]:
    """Rows in one of TRL's conversational formats: thumbs as unpaired preferences, comparisons as preferences,
    demonstrations as prompts with completions. What its user did not consent to is left out."""
    if form not in FORMATS:
        raise UserError(f"The format must be one of {', '.join(FORMATS)}, not {form!r}.")
    events = [e for e in store.current() if e.consent]
    answers = store.answers_of([i for e in events for i in (e.answer, e.other) if i])

    def said(text: str) -> list[Row]:
        return [{"role": "assistant", "content": text}]

    for e in events:
        own = answers.get(e.answer or "")
        if own is None:
            continue
        if e.kind == "thumb" and form == "unpaired-preference":
            yield {"prompt": own.messages, "completion": said(own.text), "label": e.value == "up", "user": e.user}
        elif e.kind == "teach" and form == "prompt-completion":
            yield {"prompt": own.messages, "completion": said(e.text), "user": e.user}
        elif e.kind == "compare" and form == "preference" and e.value in ("answer", "other"):
            rival = answers.get(e.other or "")
            if rival is not None:
                better, worse = (own, rival) if e.value == "answer" else (rival, own)
                yield {
                    "prompt": own.messages, "chosen": said(better.text), "rejected": said(worse.text), "user": e.user
                }  # fmt: skip


def labels(store: Store, tokenizer: Tokenizer, people_only: bool = False) -> tuple[list[Thumb], list[Pair]]:
    """What a reward model learns from: thumbs, comparisons, and demonstrations as better than the answers that they were
    written for; with `people_only` nothing that a simulated teacher pressed."""
    events = [e for e in store.current() if e.consent]
    answers = store.answers_of([i for e in events for i in (e.answer, e.other) if i])
    if people_only:
        answers = {key: a for key, a in answers.items() if a.source == PERSON}
    thumbs, pairs = [], []
    coded = {key: encoded(a, tokenizer) for key, a in answers.items()}
    for e in events:
        if e.answer not in coded:
            continue
        messages, prompt, ids = coded[e.answer]
        if e.kind == "thumb":
            thumbs.append(Thumb(messages, prompt, ids, e.value == "up", e.user))
        elif e.kind == "compare" and e.value in ("answer", "other") and e.other in coded:
            rival = coded[e.other][2]
            better, worse = (ids, rival) if e.value == "answer" else (rival, ids)
            pairs.append(Pair(messages, prompt, better, worse, e.user))
        elif e.kind == "teach" and e.text.strip() != answers[e.answer].text.strip():
            taught = encoded(dataclasses.replace(answers[e.answer], text=e.text, answer_ids=[]), tokenizer)
            pairs.append(Pair(messages, taught[1], taught[2], ids, e.user))  # better than what it was written for
    return thumbs, pairs


def encoded(answer: Answer, tokenizer: Tokenizer) -> tuple[Messages, tuple[int, ...], tuple[int, ...]]:
    """(messages, prompt ids, answer ids). The stored ids where they are this tokenizer's, else the text's."""
    messages = tuple((m["role"], m["content"]) for m in answer.messages)
    prompt, ids = answer.prompt_ids, answer.answer_ids
    inside = max([*prompt, *ids], default=-1) < tokenizer.vocab_size
    if not (prompt and ids and inside and tokenizer.decode(i for i in ids if i not in tokenizer.ends) == answer.text):
        prompt = chat_ids(tokenizer, answer.messages, True)
        ids = chat_ids(tokenizer, [*answer.messages, {"role": "assistant", "content": answer.text}])[len(prompt) :]
        last = max((n for n, i in enumerate(ids) if i in tokenizer.ends), default=len(ids) - 1)
        ids = ids[: last + 1]  # what a template writes after the end of a turn is no part of it
    return messages, tuple(prompt), tuple(ids)


def statistics(store: Store) -> Row:
    """Counts in all and per user, with what shows a user who is against everyone else."""
    everything, events = store.all_events(), store.current()
    answers = store.answers_of([e.answer for e in events if e.answer])
    votes: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for e in events:
        if e.kind == "thumb" and e.answer:
            votes[e.answer].append((e.user, 1 if e.value == "up" else -1))
    users: dict[str, Row] = {}
    for user in sorted({e.user for e in events}):
        own = [e for e in events if e.user == user]
        thumbs = [e for e in own if e.kind == "thumb"]
        agree = []
        for e in thumbs:
            others = sum(v for u, v in votes[e.answer or ""] if u != user)
            if others:
                agree.append((others > 0) == (e.value == "up"))
        days = Counter(int(e.created // 86_400) for e in own)
        users[user] = {
            "events": len(own),
            "share": round(len(own) / len(events), 3),
            "up": sum(e.value == "up" for e in thumbs),
            "down": sum(e.value == "down" for e in thumbs),
            "agrees_with_others": round(sum(agree) / len(agree), 3) if agree else None,
            "days_at_the_cap": sum(n >= store.cap for n in days.values()),
        }
    return {
        "stored": len(everything),
        "counting": dict(Counter(e.kind for e in events)),
        "up": sum(e.value == "up" for e in events),
        "down": sum(e.value == "down" for e in events),
        "without_consent": sum(not e.consent for e in events),
        "sources": dict(Counter(answers[e.answer].source for e in events if e.answer in answers)),
        "reasons": dict(Counter(r for e in events for r in e.reasons).most_common(20)),
        "users": users,
    }


# import


def read(path: Path) -> list[tuple[list[Answer], Event]]:
    """The feedback of a file: JSONL or a JSON list of TRL's or hh-rlhf's rows, or Open WebUI's export. Raises UserError
    that names the place."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}).") from error
    try:
        whole = json.loads(text)
        rows = whole if isinstance(whole, list) else [whole]
        numbered = list(enumerate(rows, 1))
    except ValueError:
        numbered = []
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                try:
                    numbered.append((number, json.loads(line)))
                except ValueError as error:
                    raise UserError(f"{path}, line {number}: {error}.") from error
    found = []
    for number, row in numbered:
        try:
            made = _from_webui(row) if isinstance(row, dict) and "snapshot" in row else _from_row(row)
        except UserError as error:
            raise UserError(f"{path}, record {number}: {error}") from None
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"{path}, record {number} is no feedback that is known here ({error!r}).") from error
        if made:
            found.append(made)
    if not found:
        raise UserError(f"{path} holds no feedback.")
    return found


def _from_row(row: Row) -> tuple[list[Answer], Event]:
    user = str(row.get("user") or "imported")
    if "label" in row:
        answer = _answer(_messages(row["prompt"]), _text(row["completion"]), user)
        if not isinstance(row["label"], bool):
            raise UserError("label must be true or false.")
        return [answer], Event("thumb", user, answer.id, "up" if row["label"] else "down")
    if "chosen" in row:
        prompt, chosen, rejected = _split(row)
        better, worse = _answer(prompt, chosen, user), _answer(prompt, rejected, user)
        return [better, worse], Event("compare", user, better.id, "answer", other=worse.id)
    if "completion" in row:
        answer = _answer(_messages(row["prompt"]), _text(row["completion"]), user)
        return [answer], Event("teach", user, answer.id, text=answer.text)
    raise UserError("a row needs label, chosen and rejected, or completion.")


def _from_webui(row: Row) -> tuple[list[Answer], Event] | None:
    """Open WebUI: {data: {rating, reason, comment}, meta: {message_id}, snapshot: {chat: {chat: {history}}}}."""
    data, chat = row["data"], row["snapshot"]["chat"]
    history = chat.get("chat", chat)["history"]["messages"]
    rating = {"1": "up", "-1": "down"}.get(str(data.get("rating")))
    if rating is None:
        return None  # a draw, or nothing pressed
    at = row["meta"]["message_id"]
    said = history[at]["content"]
    model = str(data.get("model_id") or "")
    path, seen = [], {at}
    at = history[at].get("parentId")
    while at and at not in seen:
        seen.add(at)
        path.append({"role": history[at]["role"], "content": history[at]["content"]})
        at = history[at].get("parentId")
    messages = path[::-1]
    check_messages(messages)
    user = f"webui:{row.get('user_id') or 'unknown'}"
    answer = _answer(messages, said, user, model)
    reasons = [str(r) for r in [data.get("reason"), *(data.get("tags") or [])] if r]
    comment = str(data.get("comment") or "")
    event = Event("thumb", user, answer.id, rating, reasons=reasons, text=comment)
    if row.get("created_at"):
        event.created = float(row["created_at"])
    return [answer], event


def _answer(messages: list[dict[str, str]], text: str, user: str, model: str = "") -> Answer:
    digest = hashlib.sha256(json.dumps([messages, text], ensure_ascii=False).encode()).hexdigest()[:32]
    return Answer(f"imported-{digest}", messages, text, [], [], [], {}, "stop", model, "", user)


def _messages(prompt: Any) -> list[dict[str, str]]:
    if isinstance(prompt, str):
        return hh_messages(prompt) if "\n\nHuman:" in prompt else [{"role": "user", "content": prompt}]
    messages = [{"role": m["role"], "content": m["content"]} for m in prompt]
    check_messages(messages)
    return messages


def _text(completion: Any) -> str:
    return completion if isinstance(completion, str) else "".join(m["content"] for m in completion)


def _split(row: Row) -> tuple[list[dict[str, str]], str, str]:
    """(prompt, chosen, rejected), also where the prompt is what both begin with."""
    chosen, rejected = row["chosen"], row["rejected"]
    if "prompt" in row:
        return _messages(row["prompt"]), _text(chosen), _text(rejected)
    if isinstance(chosen, str):
        chosen, rejected = hh_messages(chosen), hh_messages(rejected)
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    if not shared or len(chosen) != shared + 1 or len(rejected) != shared + 1:
        raise UserError("chosen and rejected must differ in their last turn only.")
    return _messages(chosen[:shared]), chosen[-1]["content"], rejected[-1]["content"]


def hh_messages(text: str) -> list[dict[str, str]]:
    """ "\\n\\nHuman: … \\n\\nAssistant: …" → messages."""
    pieces = re.split(r"\n\n(Human|Assistant):", text)[1:]
    turns = zip(pieces[::2], pieces[1::2], strict=True)
    messages = [{"role": "user" if who == "Human" else "assistant", "content": said.strip()} for who, said in turns]
    check_messages(messages)
    return messages
