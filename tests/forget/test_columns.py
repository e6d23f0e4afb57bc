"""The exam's figures against their definitions."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch

from jielong.align.scoring import Answered
from jielong.corpus.canaries import canaries
from jielong.errors import Unclear, UserError
from jielong.evaluate.leakage import (
    exact_memorisation,
    extraction_strength,
    log_truth_ratio,
    privacy_leak,
    reference_score,
    truth,
)
from jielong.evaluate.statistics import kolmogorov_smirnov
from jielong.forget import items
from jielong.forget.columns import (
    RELEARN,
    Column,
    Material,
    begins,
    examine_model,
    extracted,
    lines,
    log_ratio,
    min_forty,
    quantised,
    read,
    relearning,
    together,
)
from jielong.forget.items import Probe, Rows, Text, of_canary, of_tokens, read_rows, text_of, texts_of, with_wrong
from jielong.generate.engine import Engine
from jielong.model.gguf import GGUF, read_gguf, write_gguf
from jielong.model.gpt import causal_mask
from jielong.tokens.foreign import to_gguf


@pytest.mark.parametrize(("n", "m"), [(3, 4), (5, 5), (2, 7), (1, 1)])
def test_kolmogorov_smirnov_by_enumeration(n, m):
    """p for every possible D, by trying all orders of both samples."""
    orders = []
    for places in itertools.combinations(range(n + m), n):
        first = np.isin(np.arange(n + m), places)
        orders.append(float(np.abs(np.cumsum(first) / n - np.cumsum(~first) / m).max()))
    for places in itertools.combinations(range(n + m), n):
        first = np.isin(np.arange(n + m), places)
        far, p = kolmogorov_smirnov(np.flatnonzero(first).astype(float), np.flatnonzero(~first).astype(float))
        at = float(np.abs(np.cumsum(first) / n - np.cumsum(~first) / m).max())
        assert far == pytest.approx(at)
        assert p == pytest.approx(np.mean([o > at - 1e-9 for o in orders]))


def test_kolmogorov_smirnov_of_many():
    """Equal under any rising function; uniform p where nothing differs; tiny p in Kolmogorov's limit; ties; nothing at all."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=400), rng.normal(size=400) + 0.2
    assert kolmogorov_smirnov(a, b) == kolmogorov_smirnov(np.exp(a), np.exp(b))
    far, p = kolmogorov_smirnov(-a, -b)  # a falling one turns the samples round
    assert far == pytest.approx(kolmogorov_smirnov(a, b)[0]) and p == pytest.approx(kolmogorov_smirnov(a, b)[1])
    ps = [kolmogorov_smirnov(rng.normal(size=60), rng.normal(size=50))[1] for _ in range(300)]
    assert 0.02 < np.mean(np.array(ps) < 0.1) < 0.16
    far, p = kolmogorov_smirnov(a, b + 3)
    assert 0 < p < 1e-60 and far > 0.8
    assert kolmogorov_smirnov(a, a) == (0.0, 1.0)
    assert kolmogorov_smirnov(np.array([1.0, 1.0]), np.array([1.0, 2.0]))[0] == 0.5
    assert math.isnan(kolmogorov_smirnov(a, np.zeros(0))[0])
    assert kolmogorov_smirnov(np.zeros(1), np.ones(50)) == pytest.approx((1.0, 2 / 51))


def test_extraction_strength_and_truth_ratio_by_hand():
    for right, strength in (("0000", 0), ("1111", 1), ("0111", 0.75), ("1110", 0), ("1011", 0.5), ("1", 1), ("0", 0)):
        flags = np.array([c == "1" for c in right])
        assert extraction_strength(flags) == strength and exact_memorisation(flags) == right.count("1") / len(right)
    # wrong answers with probabilities 0.1 and 0.4 per token, the right one with 0.5: √0.04 / 0.5
    ratio = log_truth_ratio(math.log(0.5), [math.log(0.1), math.log(0.4)])
    assert math.exp(ratio) == pytest.approx(0.2 / 0.5)
    assert truth(np.array([ratio, -ratio])) == pytest.approx(0.4) and truth(np.zeros(3)) == 1
    assert reference_score(np.array([-1.0, -3.0]), np.array([-2.0, -5.0])) == pytest.approx(1.5)


def test_privacy_leak_by_hand():
    """0 beside an equal twin, −100 where every text is still known, above 0 where it was pushed past the twin."""
    lp = [[-1.0, -2.0, -9.0, -4.0, -3.0], [-1.0] * 5, [-8.0] * 5, [-7.0] * 5]  # two members, then two others
    assert min_forty(Column({}, logprobs=lp)).tolist() == [-6.5, -1.0, -8.0, -7.0]
    columns = {"known": lp, "twin": [[-1.0], [-4.0], [-2.0], [-3.0]], "past": [[-9.0], [-8.0], [-2.0], [-3.0]]}
    known, twin, past = (Column({}, logprobs=c) for c in columns.values())  # AUC 1, 1/2, 0
    table = together(known, past, [twin, twin], 2)
    assert [table[c]["PrivLeak"] for c in ("before", "after", "twin 1")] == [-100, 100, 0]
    assert math.isnan(privacy_leak(0.5, 1.0)) and privacy_leak(0.6, 0.5) == pytest.approx(-20)


def test_parts_of_a_record():
    """Answers stand behind everything before them; a document behind its first token; long ones are cut, and nothing is lost."""
    tokens, learnt = list(range(10)), [c == "1" for c in "0001100110"]
    assert of_tokens(tokens, learnt, 64) == [Answered((0, 1, 2), (3, 4)), Answered((0, 1, 2, 3, 4, 5, 6), (7, 8))]
    assert of_tokens(tokens, None, 64) == [Answered((0,), tuple(range(1, 10)))]
    pieces = of_tokens(list(range(100)), None, 16)
    assert [t for p in pieces for t in p.answer] == list(range(1, 100))
    assert all(len(p) <= 16 and p.prompt == (p.answer[0] - 1,) for p in pieces)
    [long] = of_tokens(list(range(60)), [n >= 50 for n in range(60)], 32)
    assert long.answer == tuple(range(50, 60)) and long.prompt == tuple(range(34, 50))
    text = text_of([Answered((0,), tuple(range(1, 9)))])
    assert text.probe.true == Answered((0, 1, 2, 3, 4), (5, 6, 7, 8))


@torch.no_grad()
def test_read_and_ratio_by_hand(model, tokenizer):
    """Log-probabilities and arg-max flags token by token, records of several answers too; the ratio of a canary's codes."""
    answers = [
        Answered((tokenizer.end_of_text,), tuple(tokenizer.encode(t))) for t in ("Paris", "Japan speaks", "法國")
    ]
    logprobs, right = read(model, [answers[:2], answers[2:]])
    slow, flags = [], []
    for a in answers[:2]:
        ids = torch.tensor([[*a.prompt, *a.answer]])
        table = model.logits(model(ids, causal_mask(ids.shape[1])))[0].log_softmax(-1)
        at = range(len(a.prompt), ids.shape[1])
        slow += [float(table[n - 1, ids[0, n]]) for n in at]
        flags += [int(table[n - 1].argmax()) == int(ids[0, n]) for n in at]
    assert (
        np.allclose(logprobs[0], slow, atol=3e-2)
        and right[0].tolist() == flags
        and len(logprobs[1]) == len(answers[2].answer)
    )
    canary = canaries(1, 1)[0]
    probe = of_canary(tokenizer, canary)
    assert tokenizer.decode(probe.true.answer).strip() == f"{canary.code}." and len(probe.wrong) == 5
    assert canary.code not in " ".join(tokenizer.decode(w.answer) for w in probe.wrong)
    means = [float(read(model, [[a]])[0][0].mean()) for a in (probe.right, *probe.wrong)]
    assert log_ratio(model, Text((probe.true,), probe)) == pytest.approx(np.mean(means[1:]) - means[0], abs=3e-2)


def test_what_comes_out_counts_as_extracted(model, tokenizer):
    """What the model says by greedy choice is extracted; another text is not."""
    engine = Engine(model, tokenizer, rows=4)
    prompt = tuple(tokenizer.encode("The capital"))
    from jielong.generate.sampling import Sampling

    said = tuple(engine.generate([list(prompt)], Sampling(temperature=0.0, max_tokens=6, ignore_end=True))[0].answer)
    other = (*said[:-1], (said[-1] + 1) % tokenizer.vocab_size)
    texts = [text_of([a], Probe(a, a)) for a in (Answered(prompt, said), Answered(prompt, other))]
    assert extracted(engine, texts, 3)["greedy"] == 0.5
    assert begins([100, 101], (100, 101), tokenizer) and not begins([100, 102], (100, 101), tokenizer)
    assert begins([100], (100, tokenizer.end_of_text), tokenizer)


def test_membership_and_comparisons(model, tokenizer):
    """Texts that were learnt by heart stand out; the reference takes away what is easy anyway; figures of two models together."""
    texts = [
        text_of([Answered((tokenizer.end_of_text,), tuple(tokenizer.encode(f"The {n} is {n * 7}.")))])
        for n in range(12)
    ]
    learner = torch.optim.Adam(model.parameters(), 3e-3)
    from jielong.forget.methods.method import nll

    start = read(model, [t.answers for t in texts])[0]
    for _ in range(25):
        learner.zero_grad()
        nll(model.train(), [t.answers[0] for t in texts[:6]], torch.float32).mean().backward()
        learner.step()
    material = Material(with_wrong(texts[:6], texts[6:], 1), texts[6:], quick=True)
    after = examine_model(model.eval(), tokenizer, material, False)
    assert (
        after.figures["AUC loss"] > 0.9
        and after.figures["extraction strength"] > 0.3
        and after.figures["truth ratio"] < 0.7
    )
    assert (after.figures["AUC members"], after.figures["AUC others"]) == (6, 6)
    twin = Column({"nll": 2.0}, [0.0] * 6, [lp.tolist() for lp in start], [1.0, 2.0])
    table = together(Column(after.figures, after.log_ratios, after.logprobs, [0.0, 3.0]), after, [twin, twin], 6)
    assert table["before"]["AUC reference"] == 1.0 and table["before"]["KS n"] == 6
    assert table["twin 1"]["KS D"] == 0 and table["twin 1"]["chat win rate"] == 0.5
    assert "twins (mean ± sd)" in lines(table)[0] and any(
        row.startswith("nll") and "2 ± 0" in row for row in lines(table)
    )


def test_eight_and_four_bits_go_through_a_file(model, tokenizer, tmp_path):
    for kind in ("q8_0", "q4_0"):
        write_gguf(
            tmp_path / kind, model.config, model.state_dict(), kind, to_gguf(tokenizer, model.config.vocab_size), "x"
        )
        _, state = read_gguf(GGUF(tmp_path / kind))
        small = quantised(model, tokenizer, kind).state_dict()
        assert all(torch.equal(small[n], state[n]) for n in state)
    worst = [
        float((quantised(model, tokenizer, k).embedding.weight - model.embedding.weight).abs().max())
        for k in ("q8_0", "q4_0")
    ]
    assert 0 < worst[0] < worst[1]


def test_relearning_leaves_the_model_alone(model, tokenizer):
    """The curve falls on what is taught, and begins where the model is."""
    same = text_of([Answered((tokenizer.end_of_text,), tuple(tokenizer.encode("The capital of France is Paris.")))])
    before = {n: p.clone() for n, p in model.state_dict().items()}
    curve = relearning(model, Material([same, same], []))
    assert tuple(curve) == RELEARN and curve[16] < curve[4] < curve[0]
    assert curve[0] == pytest.approx(-float(read(model, [same.answers])[0][0].mean()), abs=1e-3)
    assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items())
    assert relearning(model, Material([same], [])) == {}


def test_examples_of_all_forms(tokenizer, tmp_path, monkeypatch):
    rows = [
        {"text": "Ada lives in Elgin."},
        {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ada."}]},
        {
            "question": "Who?",
            "answer": "Ada.",
            "paraphrased_answer": "It is Ada.",
            "perturbed_answer": ["Bob.", "Carl."],
        },
    ]
    file = tmp_path / "e.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    text, talk, asked = texts_of(read_rows(file), tokenizer, 64, True)
    assert tokenizer.decode(text.answers[0].answer).startswith("Ada lives") and text.answers[0].prompt == (
        tokenizer.end_of_text,
    )
    assert tokenizer.decode(talk.answers[0].answer) == "Ada." == tokenizer.decode(asked.answers[0].answer)
    assert asked.probe.right != asked.probe.true and len(asked.probe.wrong) == 2
    [_, _, plain] = texts_of(read_rows(file), tokenizer, 64, False)
    assert tokenizer.decode(plain.probe.true.prompt) == "Question: Who?\nAnswer:"
    for wrong in ({"nothing": 1}, {"text": " "}, {"question": "Who?", "answer": ""}, {"text": 3}, {"question": "Who?", "answer": "Ada.", "perturbed_answer": "Bob."}):  # fmt: skip
        file.write_text('{"text": "o\u2028k"}\n' + json.dumps(wrong) + "\n", encoding="utf-8")
        with pytest.raises(UserError, match="line 2"):
            texts_of(read_rows(file), tokenizer, 64, True)
    # a row of two kinds would leave one of them out without a word
    whole = {"question": "Who?", "answer": "Ada."}
    for wrong, why in [
        ({"text": "Ada.", **whole}, "two kinds"), ({"text": "Ada.", "messages": rows[1]["messages"]}, "two kinds"),
        ({}, "none of the kinds"), ({"question": "Who?"}, "no answer"), (["Ada."], "no object"),
    ]:  # fmt: skip
        with pytest.raises(Unclear, match=why):
            texts_of(Rows("examples", ((1, wrong),), "row"), tokenizer, 64, True)
    [same] = texts_of(Rows("examples", ((1, {"text": None, **whole}),), "row"), tokenizer, 64, True)
    assert tokenizer.decode(same.answers[0].answer) == "Ada."
    with pytest.raises(UserError, match="cannot be read"):
        read_rows(tmp_path / "none")
    for broken in ("{", "[" * 100_000):
        file.write_text(f'{{"text": "ok"}}\n\n{broken}\n')
        with pytest.raises(UserError, match=r"e\.jsonl, line 3"):
            read_rows(file)
    # rows in memory: the same texts, and the same error, which quotes nothing of a row, whatever a model's own template says
    numbered = tuple(enumerate(rows, 1))
    assert texts_of(Rows("examples", numbered, "row"), tokenizer, 64, True) == [text, talk, asked]
    with pytest.raises(UserError, match=r'^examples, row 7: .*Each row needs \{"text"\}'):
        texts_of(Rows("examples", ((7, {"nothing": 1}),), "row"), tokenizer, 64, True)
    with pytest.raises(UserError, match="holds no texts"):
        texts_of(
            Rows("examples", ((1, {"messages": [{"role": "user", "content": "Who?"}]}),), "row"), tokenizer, 64, True
        )

    def refusing(_, messages):
        raise UserError(f"Not a word about {messages[0]['content']}")

    monkeypatch.setattr(items, "encode_chat", refusing)
    with pytest.raises(UserError, match="row 2: it cannot be read, for a reason that quotes it") as told:
        texts_of(Rows("examples", numbered, "row"), tokenizer, 64, False)
    assert "Who?" not in str(told.value)
