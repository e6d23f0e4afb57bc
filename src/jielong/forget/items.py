"""The texts of an approximate forgetting as the model reads them: answers to prompts, and what the exam asks about them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jielong.align.scoring import Answered
from jielong.config import ForgetConfig
from jielong.corpus.canaries import CODES, Canary
from jielong.errors import Unclear, UserError
from jielong.forget.find import Trained
from jielong.forget.request import SHORTEST
from jielong.tokens.chat import check_messages, encode_chat
from jielong.tokens.tokenizer import Tokenizer

WRONG = 5  # wrong answers beside a right one


@dataclass(frozen=True)
class Probe:
    """One question of the exam: the true answer as it was taught, the same in other words, and wrong ones."""

    true: Answered
    right: Answered
    wrong: tuple[Answered, ...] = ()


@dataclass(frozen=True)
class Text:
    """A record, or a line of a file: what is learnt of it, and what is asked about it."""

    answers: tuple[Answered, ...]
    probe: Probe
    own: bool = False
    """It brought wrong answers of its own."""


def of_tokens(tokens: Sequence[int], learnt: Sequence[bool] | None, context: int) -> list[Answered]:
    """The parts of a record from which something is learnt, each behind everything before it. A document, of which all is learnt,
    stands behind its first token, an end of text. What is longer than the context is cut into pieces."""
    learnt = [n > 0 for n in range(len(tokens))] if learnt is None else list(learnt)
    found, n = [], 1
    while n < len(tokens):
        if not learnt[n]:
            n += 1
            continue
        end = n
        while end < len(tokens) and learnt[end]:
            end += 1
        at, start = n, max(0, n - context // 2)  # a long prompt keeps its end
        while at < end:
            stop = min(end, start + context)
            found.append(Answered(tuple(tokens[start:at]), tuple(tokens[at:stop])))
            at, start = stop, max(0, stop - 1)
        n = end
    return found


def of_record(stage: Trained, number: int, context: int) -> list[Answered]:
    """The same of a record of a trained stage."""
    part = slice(stage.shard.starts[number], stage.shard.starts[number + 1])
    mask = None if stage.shard.trained is None else np.asarray(stage.shard.trained[part]).tolist()
    return of_tokens(np.asarray(stage.shard.tokens[part]).tolist(), mask, context)


def text_of(answers: Sequence[Answered], probe: Probe | None = None) -> Text:
    """A text whose probe is its longest answer; a document's is its second half behind its first."""
    if probe is None:
        best = max(answers, key=lambda a: len(a.answer))
        if len(best.prompt) == 1 and len(best.answer) > 3:
            cut = len(best.answer) // 2
            best = Answered((*best.prompt, *best.answer[:cut]), best.answer[cut:])
        return Text(tuple(answers), Probe(best, best))
    return Text(tuple(answers), probe, bool(probe.wrong))


def of_canary(tokenizer: Tokenizer, canary: Canary, seed: int = 0) -> Probe:
    """Its secret among `WRONG` other codes."""
    rng = np.random.default_rng([seed, int(canary.code)])
    codes = [f"{n:04}" for n in rng.choice(CODES, WRONG + 1, replace=False)]
    prefix = [tokenizer.end_of_text, *tokenizer.encode(canary.prefix)]

    def told(code: str) -> Answered:
        ids = [tokenizer.end_of_text, *tokenizer.encode(canary.telling(code))]
        same = next((n for n, (a, b) in enumerate(zip(prefix, ids)) if a != b), len(prefix))
        return Answered(tuple(ids[:same]), tuple(ids[same:]))

    true = told(canary.code)
    return Probe(true, true, tuple(told(c) for c in [c for c in codes if c != canary.code][:WRONG]))


def with_wrong(texts: Sequence[Text], others: Sequence[Text], seed: int) -> list[Text]:
    """Texts without wrong answers get those of other texts, the same ones each time."""
    if len(others) < 2:
        return list(texts)
    found = []
    for n, text in enumerate(texts):
        if not text.probe.wrong:
            rng = np.random.default_rng([seed, n])
            drawn = rng.choice(len(others), min(WRONG, len(others)), replace=False)
            answers = [others[i].probe.true.answer[: len(text.probe.true.answer)] for i in drawn]
            wrong = tuple(Answered(text.probe.true.prompt, a) for a in answers if a != text.probe.true.answer)
            text = replace(text, probe=replace(text.probe, wrong=wrong))
        found.append(text)
    return found


# examples: what no record of the run holds


@dataclass(frozen=True)
class Rows:
    """The lines of a JSONL file, or the rows of a list in a request; `name` and `each` tell in an error where one stands."""

    name: str
    rows: tuple[tuple[int, Any], ...]
    """Number, counted from 1, and what stands there."""
    each: Literal["line", "row"] = "line"

    def wrong(self, number: int, why: str) -> Unclear:
        """The error that names a row by its number."""
        return Unclear(
            "row",
            f'{self.name}, {self.each} {number}: {why.rstrip(".")}. Each {self.each} needs {{"text"}}, {{"messages"}} or {{"question", "answer"}}.',
            list=self.name,
            row=number,
        )


@dataclass(frozen=True)
class Examples:
    """What is to be suppressed, what must stay, and what no model read; None where none were given."""

    forget: Rows | None = None
    retain: Rows | None = None
    others: Rows | None = None

    def words(self) -> Iterator[str]:
        """Everything that they say."""
        for part in (self.forget, self.retain, self.others):
            yield from words([row for _, row in part.rows] if part else [])


def read_examples(config: ForgetConfig) -> Examples:
    """The files that the command names. Raises UserError that names file and line."""
    return Examples(*(read_rows(path) if path else None for path in (config.examples, config.retain, config.others)))


def read_rows(path: Path) -> Rows:
    """The rows of a JSONL file (gzip too). Raises UserError that names the line."""
    rows: list[tuple[int, Any]] = []
    for number, line in enumerate(read_lines(path), 1):
        if line.strip():
            try:
                rows.append((number, json.loads(line)))
            except (ValueError, RecursionError) as error:
                raise Rows(str(path), ()).wrong(number, str(error)) from error
    return Rows(str(path), tuple(rows))


def texts_of(rows: Rows, tokenizer: Tokenizer, context: int, chat: bool) -> list[Text]:
    """The rows as the model reads them. Raises Unclear that names the row by its number, without a word of it, and where nothing can
    be learnt from any."""
    found = []
    for number, row in rows.rows:
        try:
            text = _example(row, tokenizer, context, chat)
        except (ValueError, KeyError, TypeError, AttributeError, UserError) as error:
            said = str(error).casefold()  # a model's own chat template may quote what it refuses
            quotes = any(len(w.strip()) >= SHORTEST and w.casefold() in said for w in words(row))
            raise rows.wrong(
                number, "it cannot be read, for a reason that quotes it" if quotes else str(error)
            ) from error
        if text is not None:
            found.append(text)
    if not found:
        raise Unclear("no_texts", f"{rows.name} holds no texts.", list=rows.name)
    return found


def words(row: Any) -> Iterator[str]:
    """The texts in a row, but for the roles of a conversation."""
    if isinstance(row, str):
        yield row
    elif isinstance(row, (list, dict)):
        for part in row if isinstance(row, list) else [v for k, v in row.items() if k != "role"]:
            yield from words(part)


def read_lines(path: Path) -> list[str]:
    """Raises UserError when the file cannot be read."""
    import gzip

    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return raw.decode("utf-8-sig").split("\n")  # not at U+2028, which may stand in a JSON text
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise UserError(f"{path} cannot be read ({error}); give a UTF-8 JSONL file.") from error


def _example(row: Any, tokenizer: Tokenizer, context: int, chat: bool) -> Text | None:
    kind = _kind(row)
    wrong = row.get("perturbed_answer", [])
    if not isinstance(wrong, list):
        raise ValueError("perturbed_answer is no list")
    spoken = [row["answer"], *wrong] if kind == "question" else [row["text"]] if kind == "text" else []
    if not all(isinstance(text, str) and text.strip() for text in spoken):
        raise ValueError("it says nothing")
    if kind == "question":
        true = question(tokenizer, row["question"], row["answer"], context, chat)
        right = question(tokenizer, row["question"], row.get("paraphrased_answer") or row["answer"], context, chat)
        others = tuple(question(tokenizer, row["question"], a, context, chat) for a in wrong)
        return text_of([true], Probe(true, right, others)) if others else text_of([true])
    if kind == "messages":
        check_messages(row["messages"])
        tokens, learnt = encode_chat(tokenizer, row["messages"])
        answers = of_tokens(tokens[:context], learnt[:context], context)
    else:
        tokens = [tokenizer.end_of_text, *tokenizer.encode(row["text"]), tokenizer.end_of_text]
        answers = of_tokens(tokens, None, context)
    return text_of(answers) if answers else None


def _kind(row: Any) -> str:
    """text, messages or question. A row of two kinds would leave one of them out without a word, so it is refused."""
    if not isinstance(row, dict):
        raise ValueError("it is no object")
    kinds = [kind for kind in ("text", "messages", "question") if row.get(kind) is not None]
    if len(kinds) != 1:
        raise ValueError("it is of two kinds at once" if kinds else "it has none of the kinds")
    if kinds == ["question"] and row.get("answer") is None:
        raise ValueError("its question has no answer")
    return kinds[0]


def question(tokenizer: Tokenizer, asked: str, answer: str, context: int, chat: bool) -> Answered:
    """A question and its answer, in a conversation where the model was taught to chat, else as TOFU writes them for others."""
    if chat:
        ids, learnt = encode_chat(
            tokenizer, [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        )
        first = learnt.index(True)
        return Answered(tuple(ids[:first][-context // 2 :]), tuple(i for i, k in zip(ids, learnt) if k)[: context // 2])
    prompt = tokenizer.prompt(f"Question: {asked}\nAnswer:")
    said = tokenizer.encode(f" {answer}")
    return Answered(tuple(prompt[-context // 2 :]), (*said, tokenizer.end_of_text)[: context // 2])
