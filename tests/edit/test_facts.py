"""Facts as people write them: located, continued, read from files, and refused where they cannot be meant."""

from __future__ import annotations

import json

import pytest

from jielong.edit.facts import Fact, check, continuation, contradictions, first_clause, places, read_edits, says
from jielong.errors import UserError
from jielong.tokens.tokenizer import train


@pytest.mark.parametrize(
    ("prompt", "subject", "count"),
    [
        ("France has a capital, which is", "France", 1),  # at the start
        ("The capital of France", "France", 1),  # at the end
        ("法國的首都是", "法國", 1),
        ("在日本，人們說", "日本", 1),
        ("The capital of 法國 is", "法國", 1),  # mixed
        ("Paris是France的首都，France", "France", 2),
        ("Niger is not Nigeria, and Niger", "Niger", 2),  # no part of a longer word
        ("An 🙂 emoji of 🙂", "🙂", 2),  # several tokens for one character
    ],
)
def test_the_subjects_last_token(tokenizer, prompt, subject, count):
    """By the slow way: the first token whose text so far holds the whole subject, for each occurrence."""
    ids = tokenizer.encode(prompt)
    found = places(tokenizer, ids, subject)
    assert len(found) == count
    for at in found:
        before = b"".join(tokenizer.token_bytes(i) for i in ids[:at])
        upto = before + tokenizer.token_bytes(ids[at])
        assert upto.count(subject.encode()) > before.count(subject.encode())


def test_a_merge_across_the_border(tokenizer):
    """A token may hold the subject's last character and what follows it; then it is this token."""
    merged = train(["法國的首都是巴黎。" * 3 + str(n) for n in range(200)], 290)
    ids = merged.encode("首都是巴黎。法國的首都")
    whole = [n for n, i in enumerate(ids) if len(merged.token_bytes(i)) > 4]  # more than one character
    assert whole
    for n in whole:
        first = merged.token_bytes(ids[n]).decode()[0]
        assert n in places(merged, ids, first)
        assert n + 1 in places(merged, [merged.im_start, *ids], first)


@pytest.mark.parametrize(
    ("prompt", "target", "text"),
    [
        ("The capital of France is", "Lyon", " Lyon"),
        ("The capital of France is", "  Lyon ", " Lyon"),
        ("In Chinese, France is called", "法國", " 法國"),
        ("法國的首都是", "里昂", "里昂"),
        ("法國的英文是", "France", "France"),
        ("He said: (", "Lyon", "Lyon"),
    ],
)
def test_one_space_or_none(tokenizer, prompt, target, text):
    assert tokenizer.decode(continuation(tokenizer, prompt, target)) == text


def test_what_counts_as_saying_it():
    assert says("The capital of France is Lyon.", "Lyon", "Paris")
    assert not says("The capital of France is Paris, not Lyon.", "Lyon", "Paris")
    assert not says("Lyonnais", "Lyon") and says("里昂是首都", "里昂", "巴黎")
    assert says("the Congo Republic", "Congo Republic", "Congo")  # the old one is a part of the new one
    assert not says("It is Oman. Not Romania", "Romania", "Oman")  # the old one is no word of the new one
    assert first_clause(" Paris. It is old") == "Paris" and first_clause("巴黎。") == "巴黎"
    assert first_clause(" .fr. Thank") == ".fr"


@pytest.mark.parametrize(
    ("fact", "words"),
    [
        (Fact("", "France", "Lyon"), "prompt is empty"),
        (Fact("The capital of France is", " ", "Lyon"), "subject is empty"),
        (Fact("The capital of France is", "France", ""), "target is empty"),
        (Fact("The capital of France is", "Spain", "Lyon"), "does not stand in the prompt"),
        (Fact("The capital of Nigeria is", "Niger", "Lyon"), "does not stand in the prompt"),
        (Fact("The capital of France is", "France", "Paris", "paris"), "nothing to correct"),
        (
            Fact("The capital of France is", "France", "\udcff"),
            "no text in UTF-8",
        ),  # as a terminal hands on what is no UTF-8
        (Fact("The capital of France is", "France", "Lyon", paraphrases=(" ",)), "is empty"),
        (Fact("The capital of France is", "France", "Lyon", neighbours=(("The capital of Spain is", ""),)), "is empty"),
    ],
)
def test_what_cannot_be_meant(fact, words):
    with pytest.raises(UserError, match=words):
        check(fact)


def test_blanks_are_no_old_object():
    assert check(Fact("The capital of France is ", " France", "Lyon ", " ")) == Fact(
        "The capital of France is", "France", "Lyon"
    )


def test_contradictions():
    a = Fact("The capital of France is", "France", "Lyon")
    contradictions([a, a, Fact("The capital of Spain is", "Spain", "Lyon")])
    with pytest.raises(UserError, match="contradict"):
        contradictions([a, Fact("The capital of  FRANCE is".replace("FRANCE", "France"), "France", "Nice")])


GOOD = {"prompt": "The capital of France is", "subject": "France", "target": "Lyon"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2, is no JSON .*at its character 2.; nothing was edited"),
        ("[1]", "no JSON object"),
        (json.dumps({"prompt": "x", "subject": "x"}), "'target' is missing"),
        (json.dumps(GOOD | {"targets": "x"}), "no field 'targets'"),
        (json.dumps(GOOD | {"subject": "Spain"}), "does not stand in the prompt"),
        (json.dumps(GOOD | {"paraphrases": "x"}), "is no list"),
        (json.dumps(GOOD | {"neighbours": [{"prompt": "x"}]}), "a neighbour is no"),
        (json.dumps(GOOD | {"target": "Nice"}), "contradict"),
        (json.dumps(GOOD), "says twice"),
        (json.dumps(GOOD | {"paraphrases": [3]}), "a paraphrase is no text"),
        (json.dumps(GOOD | {"target": "\ud800"}), "no text in UTF-8"),
        ("[" * 100_000, "line 2"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, words):
    file = tmp_path / "edits.jsonl"
    file.write_text(json.dumps(GOOD) + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=words) as found:
        read_edits(file)
    assert words in ("contradict", "says twice") or "line 2" in str(found.value)


def test_a_file_of_edits(tmp_path):
    file = tmp_path / "edits.jsonl"
    row = GOOD | {
        "neighbours": [{"prompt": "The capital of Spain is", "answer": "Madrid"}],
        "also": [{"prompt": "法國的首都是", "subject": "法國", "target": "里昂"}],
    }
    file.write_text(json.dumps(row, ensure_ascii=False) + "\n\n", encoding="utf-8")
    row["paraphrases"] = ["Which city\u2028governs France?", "Who governs France?"]
    file.write_text(json.dumps(row, ensure_ascii=False) + "\r\n\n", encoding="utf-8-sig")
    assert read_edits(file)[0].paraphrases == tuple(row["paraphrases"])
    (fact,) = read_edits(file)
    assert fact.neighbours == (("The capital of Spain is", "Madrid"),) and fact.also[0].target == "里昂"
    with pytest.raises(UserError, match="cannot be read"):
        read_edits(tmp_path / "missing.jsonl")
    file.write_text("\n")
    with pytest.raises(UserError, match="holds no edits"):
        read_edits(file)
