"""Tasks, demonstrations, label probabilities and calibration, each against a slow or a hand-made reference."""

from __future__ import annotations

import json
import math
from collections import Counter

import numpy as np
import pytest
import torch

from jielong.errors import UserError
from jielong.generate.sampling import Sampling
from jielong.model.gpt import causal_mask
from jielong.prompt.answer import calibrate, label_ids, label_logprobs, prompt_ids, reply
from jielong.prompt.form import Prompt
from jielong.prompt.shots import Chooser, Grams, embeddings, grams, in_turns
from jielong.prompt.task import Item, exact, f1, read_task, words

POOL = [Item(t, (a,)) for t, a in [
    ("the cat sat", "x"), ("a dog ran", "y"), ("the cats sit", "x"), ("日本的首都", "y"), ("法國的首都", "x"), ("tokyo", "y"),
]]  # fmt: skip


def test_words_and_metrics():
    assert words("The Paris, of France!") == ["paris", "of", "france"] and words("台北市 101") == [
        "台",
        "北",
        "市",
        "101",
    ]
    assert words("A") == ["a"]  # nothing but an article is still an answer
    assert exact(" paris.", ["Rome", "Paris"]) == 1 and exact("Paris France", ["Paris"]) == 0
    assert exact("ＡＢＣ", ["abc"]) == 1
    assert f1("the red big ball", ["red ball"]) == pytest.approx(2 * 2 / (3 + 2))
    assert f1("blue", ["red ball", "blue sky"]) == pytest.approx(2 / 3) and f1("", ["x"]) == 0
    assert f1("x x y", ["x y y"]) == pytest.approx(2 * 2 / 6)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (['{"input": "a", "output": "b"}', '{"input": "a", "out'], "line 2 is no valid JSON"),
        (['{"input": "", "output": "b"}'], "line 1 needs a text as input"),
        (["[]"], "line 1 needs a text as input"),
        (['{"input": "a", "output": 3}'], "line 1: output must be a text"),
        (['{"input": "a", "output": []}'], "line 1: output must be a text"),
        (['{"input": "a", "output": "b", "labels": ["b", " "]}'], "line 1: labels must be a text, or a list"),
        (['{"input": "a", "output": "b", "labels": ["b", "b"]}'], "two different"),
        (['{"input": "a", "output": "b", "labels": ["b", "c"]}', '{"input": "x", "output": "d"}'], "line 2: the output 'd' is not among"),
        (['{"input": "a", "output": "b", "labels": ["b", "c"]}', '{"input": "x", "output": "b", "labels": ["b", "d"]}'], "line 2: labels differ"),
        (['{"input": "a", "output": "b"}', '{"input": "x", "output": "b", "labels": ["b", "d"]}'], "line 2: labels differ"),
        (['{"input": "a", "output": "b", "labels": ["b", "c\\nd"]}'], "must stand on one line"),
        (['{"input": "a \\ud800", "output": "b"}'], "line 1: input is not valid Unicode: its character 3"),
        (['{"input": "a", "output": "\\ud800"}'], "line 1: output is not valid Unicode"),
        (["[" * 100_000], "line 1 is no valid JSON"),
        (["", " "], "has no examples"),
    ],
)  # fmt: skip
def test_a_wrong_task_names_its_line(tmp_path, lines, told):
    file = tmp_path / "t.jsonl"
    file.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(UserError, match=told):
        read_task(file)


def test_lines_of_a_task_end_at_newlines_only(tmp_path):
    file = tmp_path / "t.jsonl"
    rows = [{"input": f"one\u2028two\x85three {n}", "output": "x"} for n in range(2)]
    file.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    assert [i.input for i in read_task(file).items] == [r["input"] for r in rows]


def test_a_task_is_read(tmp_path):
    file = tmp_path / "t.jsonl"
    rows = [{"input": " a ", "output": ["b", "c"], "labels": ["b", "c"]}, {"input": "d", "output": "c", "other": 1}]
    file.write_text("\ufeff" + "\n\n".join(map(json.dumps, rows)), encoding="utf-8")
    task = read_task(file)
    assert task.items == (Item("a", ("b", "c")), Item("d", ("c",))) and task.labels == ("b", "c") and task.name == "t"


def test_similarity_against_brute_force():
    corpus = [i.input for i in POOL]
    n, bags = len(corpus), [Counter(grams(t)) for t in corpus]

    def idf(gram):
        return 1 + math.log((1 + n) / (1 + sum(gram in bag for bag in bags)))

    def cosine(a, b):
        known = {g for bag in bags for g in bag}
        a, b = ({g: c * idf(g) for g, c in bag.items() if g in known} for bag in (a, b))
        length = math.sqrt(sum(v * v for v in a.values()) * sum(v * v for v in b.values()))
        return sum(v * b.get(g, 0) for g, v in a.items()) / length

    vectors = Grams(corpus)
    for text in ("the cat", "德國的首都", "dogs"):
        slow = [cosine(Counter(grams(text)), bag) for bag in bags]
        assert np.allclose(vectors(corpus) @ vectors([text])[0], slow)
        best = sorted(range(n), key=lambda k: -slow[k])[:3]
        assert Chooser(POOL, "similar").pick(text, 3) == [POOL[k] for k in reversed(best)]
    assert {i.input for i in Chooser(POOL, "similar").pick("德國的首都", 2)} == {"日本的首都", "法國的首都"}
    assert Grams(["a"])(["zzz"]).sum() == 0  # nothing in common is no error


def test_grams_by_hand():
    assert grams("Ab") == ["a", "b", " a", "ab", "b ", " ab", "ab ", " ab "]


def test_demonstrations_never_show_the_question_and_random_ones_are_one_draw():
    for how in ("random", "similar"):
        chooser = Chooser(POOL, how, seed=3)
        for item in POOL:
            assert item not in chooser.pick(item.input, len(POOL))
    draws = {tuple(i.input for i in Chooser(POOL, "random", seed=s).pick("?", 3)) for s in range(12)}
    assert len(draws) > 4
    chooser = Chooser(POOL, "random", seed=1)
    assert chooser.pick("?", 4) == chooser.pick("!", 4) == Chooser(POOL, "random", seed=1).pick("?", 6)[:4]
    import random

    for seed in range(5):  # two answers, three times each: they come in turns
        turns = in_turns(POOL, random.Random(seed))
        assert sorted(i.input for i in turns) == sorted(i.input for i in POOL)
        for n in range(0, 6, 2):
            assert {i.outputs[0] for i in turns[n : n + 2]} == {"x", "y"}


def test_embeddings_are_the_models_own(engine):
    vectors = embeddings(engine)
    texts = [i.input for i in POOL]
    near = vectors(texts) @ vectors(["法國"])[0]
    found = Chooser(POOL, "embedding", vectors=vectors).pick("法國", 2)
    assert [i.input for i in found] == [texts[k] for k in np.argsort(near)[-2:]]


def slow_logprob(model, prompt, label):
    ids = torch.tensor([[*prompt, *label]])
    with torch.no_grad():
        logprobs = model.logits(model(ids, causal_mask(ids.shape[1]))).double().log_softmax(-1)[0]
    return sum(float(logprobs[len(prompt) - 1 + k, t]) for k, t in enumerate(label))


def test_label_probabilities_against_the_plain_pass(engine, model):
    labels = ("Paris", "日文", "p", "Japan speak")
    ids = label_ids(engine, labels)
    assert {len(i) for i in ids} != {1}  # labels of several tokens are among them
    prompts = [engine.tokenizer.encode(t) for t in ["The capital of France is", "日本", "a"] * 7]  # more than one group
    found = label_logprobs(engine, prompts, labels)
    for n in range(3):
        for k, own in enumerate(ids):
            assert found[n, k] == pytest.approx(slow_logprob(model, prompts[n], own), abs=1e-4)
    assert np.allclose(found, np.tile(found[:3], (7, 1)), atol=1e-5)


def test_a_label_that_begins_another_ends_with_the_end(engine):
    tokens = engine.tokenizer
    ids = label_ids(engine, ("Ja", "Japan"))
    if tokens.encode("Japan")[: len(tokens.encode("Ja"))] == tokens.encode("Ja"):
        assert all(i[-1] == tokens.im_end for i in ids)
    a, b = label_ids(engine, ("x", "xz"))
    assert a == [*tokens.encode("x"), tokens.im_end] and b == [*tokens.encode("xz"), tokens.im_end]
    assert label_ids(engine, ("x", "y")) == [tokens.encode("x"), tokens.encode("y")]


def test_wrong_labels_and_prompts_that_are_too_long(engine):
    with pytest.raises(UserError, match="has no tokens"):
        label_ids(engine, ("good", " "))

    class Nothing:
        """A vocabulary for which some words are nothing."""

        def encode(self, text):
            return [ord(c) for c in text if c.isascii()]

    engine.tokenizer, kept = Nothing(), engine.tokenizer
    with pytest.raises(UserError, match="'好' has no tokens in this model's vocabulary"):
        label_ids(engine, ("good", "好"))
    with pytest.raises(UserError, match="'b好' has the same tokens as another one"):
        label_ids(engine, ("b", "b好"))
    engine.tokenizer = kept
    with pytest.raises(UserError, match="Show fewer examples"):
        label_logprobs(engine, [[5] * 64], ("a", "b"))


def test_calibration_by_hand():
    # the prompt prefers the first label (0.8 to 0.2 without a question); 0.6 to 0.4 then speaks for the second
    found = calibrate(np.array([[0.6, 0.4], [0.9, 0.1]]), np.array([[0.8, 0.2]]))
    assert found[0] == pytest.approx([0.75 / 2.75, 2 / 2.75]) and found[1] == pytest.approx(
        [1.125 / 1.625, 0.5 / 1.625]
    )


def test_calibrated_replies_equal_the_formula(engine, model):
    from dataclasses import replace

    prompt = Prompt("p", "", (("sun", "x"),), labels=("x", "y"), calibrated=True)
    ids = label_ids(engine, prompt.labels)

    def p(text):
        row = prompt_ids(engine, prompt, {}, text)
        e = np.exp([slow_logprob(model, row, own) for own in ids])
        return e / e.sum()

    prior = np.mean([p("N/A"), p("[MASK]"), p("")], 0)
    wanted = p("rain") / prior
    found = reply(engine, [prompt], [{}], ["rain"], Sampling())[0]
    assert found.probabilities == pytest.approx(wanted / wanted.sum(), abs=1e-4)
    assert found.text == prompt.labels[int(wanted.argmax())]
    plain = reply(engine, [replace(prompt, calibrated=False)], [{}], ["rain"], Sampling())[0]
    assert plain.probabilities == pytest.approx(p("rain"), abs=1e-4)


def test_the_form_of_a_prompt_with_and_without_chat(engine):
    prompt = Prompt("p", "Rule.", (("a", "b"),), "<{{input}}>")
    chat = engine.tokenizer.decode(prompt_ids(engine, prompt, {}, "q"))
    assert [s for s in ("Rule.", "a", "b", "<q>") if s in chat] == ["Rule.", "a", "b", "<q>"]
    engine.chat = False
    assert (
        engine.tokenizer.decode(prompt_ids(engine, prompt, {}, "q"))
        == "Rule.\n\nInput: a\nOutput: b\n\nInput: <q>\nOutput:"
    )
    assert engine.tokenizer.decode(prompt_ids(engine, Prompt("p"), {}, "q")) == "Input: q\nOutput:"
    assert label_ids(engine, ("x", "y")) == [engine.tokenizer.encode(" x"), engine.tokenizer.encode(" y")]
