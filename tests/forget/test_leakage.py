"""Exposure, extraction and membership inference against their definitions; and the canaries that they are measured with."""

from __future__ import annotations

import dataclasses
import math
import random

import numpy as np
import pytest
import torch
from small_runs import BASE, people

from jielong import pretrain
from jielong.cli import main
from jielong.config import CorpusConfig, TokenizerConfig
from jielong.corpus import canaries
from jielong.corpus import stage as corpus
from jielong.corpus.documents import read_documents
from jielong.corpus.readers import Raw
from jielong.evaluate.leakage import (
    SCORES,
    exposure,
    exposures,
    extraction,
    loss_score,
    membership,
    min_k_score,
    token_logprobs,
    tpr_at,
    zlib_score,
)
from jielong.forget import exam
from jielong.generate.engine import Engine
from jielong.model.gpt import causal_mask, load_model
from jielong.run import Run
from jielong.tokens import tokenizer as tokenizers


@torch.no_grad()
def test_token_logprobs_are_those_of_each_text_alone(model, tokenizer):
    texts = ["France", "The capital of France is Paris.", "日本", "People in Japan speak Japanese"]
    for text, found in zip(texts, token_logprobs(model, tokenizer, texts), strict=True):
        ids = [tokenizer.end_of_text, *tokenizer.encode(text)]
        slow = []
        for n in range(1, len(ids)):
            hidden = model(torch.tensor([ids[:n]]), torch.full((n, n), float("-inf")).triu(1).view(1, 1, n, n))
            slow.append(float(model.logits(hidden)[0, -1].log_softmax(-1)[ids[n]]))
        assert np.allclose(found, slow, atol=2e-2)  # bf16 where the processor has it


def test_exposure_is_its_definition():
    """By sorting all candidates; and a secret that was never seen has a uniform rank."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        scores = rng.normal(size=1000).round(1)  # with ties
        true, others = scores[0], scores[1:]
        order = sorted(scores, reverse=True)
        first, last = order.index(true) + 1, 1000 - order[::-1].index(true)
        assert exposure(true, others) == pytest.approx(math.log2(1000) - math.log2((first + last) / 2))
    assert exposure(1.0, np.zeros(999)) == pytest.approx(math.log2(1000)) and exposure(-1.0, np.zeros(999)) == 0
    drawn = np.sort([2 ** -exposure(s[0], s[1:]) for s in rng.normal(size=(400, 1000))])
    distance = np.abs(drawn - np.arange(1, 401) / 400).max()  # Kolmogorov and Smirnov
    assert distance < 1.63 / math.sqrt(400)


def test_scores_of_membership():
    logprobs = np.log([0.5, 0.1, 0.9, 0.2, 0.8, 0.4, 0.3, 0.7, 0.6, 0.05])
    assert loss_score(logprobs, "x") == pytest.approx(sum(logprobs) / 10)
    assert min_k_score(logprobs, "x") == pytest.approx((math.log(0.05) + math.log(0.1)) / 2)
    assert min_k_score(logprobs[:1], "x") == pytest.approx(math.log(0.5))  # one token is enough
    assert zlib_score(logprobs, "a" * 500) < zlib_score(logprobs, str(np.random.default_rng(0).bytes(500)))
    assert all(
        score(logprobs + 1, "x") > score(logprobs, "x") for score in SCORES.values()
    )  # likelier = rather a member


@pytest.mark.parametrize("fpr", [0.0, 0.01, 0.1, 0.5, 1.0])
def test_true_positives_by_trying_every_threshold(fpr):
    rng = np.random.default_rng(1)
    scores, members = rng.normal(size=300).round(1), rng.random(300) < 0.4
    scores[members] += 0.7
    best = max(
        float((scores[members] > t).mean()) for t in [-9.0, *scores] if (scores[~members] > t).mean() <= fpr + 1e-12
    )
    assert tpr_at(scores, members, fpr) == pytest.approx(best)
    assert math.isnan(tpr_at(scores, np.ones(300, bool), fpr))


def test_canaries_are_told_as_often_as_they_say_and_survive_cleaning():
    planted, others = canaries.canaries(3, 7), canaries.canaries(3, 7, planted=False)
    names = [c.name for c in [*planted, *others]]
    assert len(set(names)) == 36 and planted == canaries.canaries(3, 7) and {c.times for c in others} == {0}
    raws = list(canaries.plant([Raw(f"text {n}", "else") for n in range(50)], 3, 7))
    assert [r.text for r in raws if r.source == "else"] == [f"text {n}" for n in range(50)]  # in their order
    documents, _, _ = corpus.clean([r for r in raws if r.source == canaries.SOURCE], workers=1)
    for canary in planted:
        told = sum(canary.telling(canary.code) in d.text for d in documents)
        assert canary.times - 1 <= told <= canary.times and told  # one of sixteen may nearly repeat another
    assert not any(c.name in d.text for c in others for d in documents)


@pytest.fixture(scope="module")
def leaky(tmp_path_factory) -> Run:
    """A model that learnt a small text with canaries in it by heart."""
    folder = tmp_path_factory.mktemp("leaky")
    (folder / "text").mkdir()
    for n, text in enumerate(random.Random(1).sample(people(), 30)):
        (folder / "text" / f"{n}.txt").write_text(text)
    run = Run(folder / "run")
    settings = CorpusConfig(text=(folder / "text",), default=False, heldout=0.0, canaries=1, workers=1)
    corpus.run(settings, run)
    tokenizers.run(TokenizerConfig(vocab_size=448), run)
    shape = dataclasses.replace(BASE.model, width=64, layers=2, mlp_width=192, context=128)
    pretrain.run(dataclasses.replace(BASE, model=shape, steps=110, rows=8, length=96), run)
    return run


def test_what_was_learnt_by_heart_leaks_and_what_was_forgotten_does_not(leaky, capsys):
    """Before: the secrets told 16 times come out and membership shows. After: as for people who were never planted."""
    engine = Engine.load(leaky.need("base").path)
    before = exam.leaks(leaky, samples=10, codes=128)
    often, never = before["secrets"]["16"], before["secrets"]["0"]
    assert often["extracted_greedily"] == 2 and often["share_of_samples"] > 0.2 and often["exposure"] > 6.5
    assert never["extracted_greedily"] == 0 and never["exposure"] < 4
    texts = [d.text for d in read_documents(leaky.need("corpus").file("train.parquet")) if d.source != canaries.SOURCE]
    unseen = [t for t in people() if t not in texts][: len(texts)]
    fresh = load_model(leaky.need("base").path)
    assert membership(fresh, engine.tokenizer, texts, unseen)["loss"]["auc"] > 0.9
    fresh.init_weights(9)
    chance = membership(fresh, engine.tokenizer, texts, unseen)["loss"]
    assert chance["low"] < 0.5 < chance["high"]
    known = canaries.canaries(1, 1)
    assert (
        main(["forget", str(leaky.path), "--yes", "--most", "0.9", *(x for c in known for x in ("--name", c.name))])
        == 0
    )
    capsys.readouterr()
    after = exam.leaks(leaky, samples=10, codes=128)
    for row in after["secrets"].values():
        assert row["extracted_greedily"] == 0 and row["extracted_in_samples"] == 0
    assert after["secrets"]["16"]["exposure"] < 4
    member, stranger = (found["membership"]["loss"] for found in (before, after))
    assert member["low"] > 0.9 and stranger["low"] < 0.5 < stranger["high"]
    assert "not planted" in exam.table(after)[-4]


def test_exposure_and_extraction_by_hand(leaky):
    """The rank among candidates, found one by one; greedy text by arg-max."""
    model, engine = load_model(leaky.need("tokenizer").path.parent / "base"), Engine.load(leaky.need("base").path)
    canary = canaries.canaries(1, 1)[2]
    [found] = exposures(model, engine.tokenizer, [canary], codes=50)
    drawn = [f"{n:04}" for n in np.random.default_rng(0).choice(10_000, 49, replace=False)]
    sums = {c: token_logprobs(model, engine.tokenizer, [canary.telling(c)])[0].sum() for c in {canary.code, *drawn}}
    rank = sum(s > sums[canary.code] for s in sums.values()) + 1
    assert found == pytest.approx(math.log2(len(sums)) - math.log2(rank), abs=0.2)  # batches round in other ways
    [(greedy, share)] = extraction(engine, [canary], samples=0)
    ids = [engine.tokenizer.end_of_text, *engine.tokenizer.encode(canary.prefix)]
    with torch.no_grad():
        for _ in range(8):
            table = model.logits(model(torch.tensor([ids]), causal_mask(len(ids))))[0, -1]
            ids.append(int(table.argmax()))
    told = engine.tokenizer.decode(ids).partition(canary.prefix)[2]
    assert share == 0 and greedy == told.strip().startswith(canary.code)


def test_no_canaries(raised, tmp_path, capsys):
    assert main(["audit", str(raised), "--leaks"]) == 2
    assert "No canaries were planted" in capsys.readouterr().err
    assert main(["corpus", "--canaries", "-1", "--run", str(tmp_path / "run")]) == 2
