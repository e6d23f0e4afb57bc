"""Watermarks: exact nulls, no distortion, power, the same bits everywhere."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from jielong.detect.normalise import normalise
from jielong.detect.tokenstats import beginning, read
from jielong.detect.watermark import examine, load_key, make_key, marked, race
from jielong.detect.watermark.greenlist import Bias
from jielong.detect.watermark.gumbel import Race
from jielong.detect.watermark.key import Key
from jielong.detect.watermark.prf import numbers, seed_of, uniform
from jielong.detect.watermark.race import Races
from jielong.detect.watermark.scheme import SCHEMES, counted, seed_at, seeds_of
from jielong.errors import UserError
from jielong.generate.engine import Engine
from jielong.generate.sampling import Sampling, distribution, draw
from jielong.model.gpt import causal_mask

SCHEME = ("gumbel", "greenlist")
MASK = (1 << 64) - 1


@pytest.fixture(scope="module")
def print_of(tokenizer):
    return tokenizer.fingerprint


def a_key(scheme, seed, vocabulary, **settings):
    secret = random.Random(seed).randbytes(32).hex()
    return Key(scheme, f"wm-{seed}", secret, vocabulary, **{"context": 4, **settings})


@pytest.fixture
def engine(model, tokenizer):
    return Engine(model, tokenizer)


def slow_number(seed, token):
    """SplitMix64 in Python's own integers."""
    x = (seed + (token + 1) * 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return (x ^ (x >> 31)) >> 12


def test_the_numbers_are_these_integers():
    assert seed_of(bytes(32), [1, 2, 3, 4]) == seed_of(bytes(32), (1, 2, 3, 4)) != seed_of(bytes(32), [1, 2, 4, 3])
    assert seed_of(bytes(range(32)), [7, 300, 49151, 0]) == 18210037335216174082
    for seed in (0, 1, 1 << 63, MASK, 18210037335216174082):
        ids = torch.tensor([0, 1, 5, 3071, 49151])
        assert numbers(seed, ids).tolist() == [slow_number(seed, i) for i in ids.tolist()]
    u = uniform(numbers(5, torch.arange(20_000)))
    assert u.min() > 0 and u.max() < 1 and abs(float(u.mean()) - 0.5) < 4 / math.sqrt(12 * 20_000)
    assert uniform(torch.tensor([0, 2**52 - 1])).tolist() == [2.0**-53, 1.0 - 2.0**-53]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_the_numbers_are_the_same_on_a_gpu():
    ids = torch.arange(50_000)
    assert torch.equal(numbers(123456789, ids), numbers(123456789, ids.cuda()).cpu())


@pytest.mark.parametrize("scheme", SCHEME)
def test_tails_are_exact(scheme):
    """Against the sums written out in high precision."""
    from fractions import Fraction

    key = a_key(scheme, 1, "x")
    tail = SCHEMES[scheme].tail
    if scheme == "greenlist":
        for g, n in ((0, 5), (3, 10), (40, 60), (60, 60)):
            exact = sum(math.comb(n, k) * Fraction(1, 4) ** k * Fraction(3, 4) ** (n - k) for k in range(g, n + 1))
            assert tail(key, float(g), n) == pytest.approx(float(exact), rel=1e-9)
    else:
        for s, n in ((0.5, 1), (10.0, 10), (90.0, 40), (300.0, 100)):
            exact = float(sum(Fraction(s) ** k / math.factorial(k) for k in range(n))) * math.exp(-s)
            assert tail(key, s, n) == pytest.approx(exact, rel=1e-9)
    assert tail(key, 5000.0, 5000) > 0 and 0 < tail(key, 4000.0 if scheme == "greenlist" else 1e6, 4000) <= 1e-299


def human(rng, words=60):
    """A text that repeats itself, as people do."""
    bank = [
        "the",
        "capital",
        "of",
        "France",
        "is",
        "Paris",
        "and",
        "people",
        "in",
        "Japan",
        "speak",
        "Japanese",
        "日本",
        "的",
        "首都",
    ]
    return " ".join(rng.choice(bank) for _ in range(words))


def p_values(scheme, tokenizer, apart, context=1):
    """Of texts under keys that have nothing to do with them; characters, one of which is the context, repeat the most."""
    rng, found = random.Random(7), []
    vocabulary = tokenizer.fingerprint
    for n in range(400):
        key = a_key(scheme, n, vocabulary, context=context)
        ids = list(human(rng).encode())
        _, values = counted(key, ids, apart)
        weights = SCHEMES[scheme].weigh(key, values)
        found.append(SCHEMES[scheme].tail(key, float(weights.sum()), len(weights)))
    return np.array(found)


@pytest.mark.parametrize("scheme", SCHEME)
def test_null_p_values_are_uniform_and_only_without_repetition(scheme, tokenizer):
    """P(p ≤ α) ≤ α within the binomial spread, and near it for the continuous one; the same numbers for what is repeated break
    it grossly."""
    p = p_values(scheme, tokenizer, apart=True)
    for alpha in (0.5, 0.2, 0.05, 0.01):
        assert (p <= alpha).mean() <= alpha + 3.3 * math.sqrt(alpha * (1 - alpha) / len(p))
    if scheme == "gumbel":
        gap = np.abs(np.sort(p) - (np.arange(len(p)) + 0.5) / len(p)).max()
        assert gap < 1.63 / math.sqrt(len(p)), "Kolmogorov and Smirnov at 1 %"
    wrong = p_values(scheme, tokenizer, apart=False)
    assert (wrong <= 0.01).mean() > 0.05


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7}, {"top_p": 0.9}, {"top_k": 5}])
def test_gumbel_draws_from_the_models_distribution(settings):
    """χ² of the token over random keys against the probabilities that chance would use (3,000 keys, α = 0.001)."""
    sampling = Sampling(**{"temperature": 1.0, **settings})
    logits = torch.randn(12, generator=torch.Generator().manual_seed(3)) * 1.5
    p = distribution(logits, sampling).double().numpy()
    counts = np.zeros(len(p))
    for n in range(3000):
        own = marked(a_key("gumbel", n, "x"), sampling)
        token, logprob = draw(logits, own, torch.Generator().manual_seed(1), [9, 8, 7, 6])
        assert logprob == pytest.approx(math.log(p[token]), abs=1e-5)
        counts[token] += 1
    seen = p > 0
    assert counts[~seen].sum() == 0
    statistic = float(((counts - 3000 * p)[seen] ** 2 / (3000 * p[seen])).sum())
    freedom = int(seen.sum()) - 1
    # Wilson and Hilferty's cube root of χ² is nearly normal
    z = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    assert z < 3.1


def test_greenlist_is_the_distribution_with_a_bias_and_does_distort():
    key = a_key("greenlist", 1, "x", green=0.5, bias=3.0)
    logits, answer = torch.zeros(4000), [1, 2, 3, 4]
    shifted = Bias(key)(answer, logits)
    green = [slow_number(seed_of(key.bytes, answer), i) < 2**51 for i in range(4000)]
    assert shifted.tolist() == [3.0 if g else 0.0 for g in green]
    assert abs(sum(green) / 4000 - 0.5) < 0.03
    assert torch.equal(Bias(key)([1, 2, 3], logits), logits)  # not yet a context


def test_places_that_are_not_marked():
    key = a_key("gumbel", 1, "x", context=2)
    assert seed_at(key, [5]) is None
    assert seed_at(key, [5, 6]) == seed_of(key.bytes, [5, 6])
    assert seed_at(key, [5, 6, 7, 5, 6]) == seed_of(key.bytes, [5, 6], 1)  # the context came before
    assert seed_at(key, [5, 5, 5, 5]) == seed_of(key.bytes, [5, 5], 2)
    assert counted(key, [5, 6, 7, 5, 6, 8])[0] == [2, 3, 4, 5]
    old = replace(key, again=False)  # a key of format 1 leaves these to chance
    assert seed_at(old, [5, 6, 7, 5, 6]) is None and seed_at(old, [5, 5, 5]) is None
    assert seed_at(old, [6, 5, 5]) == seed_at(key, [6, 5, 5]) is not None
    assert counted(old, [5, 6, 7, 5, 6, 8])[0] == [2, 3, 4]


@pytest.mark.parametrize("again", [True, False])
def test_what_is_drawn_is_what_is_looked_for(again):
    """The seed at every place of an answer that repeats itself, one by one and all at once; none of them twice."""
    rng = random.Random(2)
    for context in (1, 2, 3):
        key = a_key("gumbel", 1, "x", context=context, again=again)
        ids = [rng.randrange(3) for _ in range(60)]
        one_by_one = {t: s for t in range(len(ids)) if (s := seed_at(key, ids[:t])) is not None}
        assert one_by_one == seeds_of(key, ids) and len(set(one_by_one.values())) == len(one_by_one)


def test_what_is_repeated_is_drawn_anew():
    """The tokens after the first and the second time of a context are independent draws (3,000 keys, χ² of the table, α =
    0.001): a model neither repeats itself more than by chance, nor less."""
    logits = torch.tensor([1.0, 0.5, 0.0])
    p = distribution(logits, Sampling(temperature=1.0)).double().numpy()
    table = np.zeros((3, 3))
    for n in range(3000):
        picker = Race(a_key("gumbel", n, "x", context=1))
        first = picker([7], torch.from_numpy(p))
        table[first, picker([7, first, 7], torch.from_numpy(p))] += 1
    expected = 3000 * np.outer(p, p)
    assert ((table - expected) ** 2 / expected).sum() < 26.1  # 8 degrees of freedom


# with the model


def test_the_tail_of_the_tosses_by_enumeration():
    rng = np.random.default_rng(1)
    chance, worth = rng.random(9), np.array([3, 1, 4, 1, 5, 9, 2, 6, 0])
    cases = [(sum(worth[list(won)]), np.prod([c if i in won else 1 - c for i, c in enumerate(chance)]))
             for r in range(10) for won in itertools.combinations(range(9), r)]  # fmt: skip
    for total in range(int(worth.sum()) + 1):
        assert race.tail(chance, worth, total) == pytest.approx(sum(p for w, p in cases if w >= total), rel=1e-12)
    # a tail far below the rounding error of 1
    assert race.tail(np.full(60, 1e-3), np.ones(60, dtype=int), 60) == pytest.approx(1e-180, rel=1e-9)
    assert race.weights(np.array([1.0, 0.5]))[1] == round(16 * math.log(1 + 0.8 / (0.2 * 0.5)))


def test_races_by_their_definition(engine, model, tokenizer):
    """Against u^(1/p) in Python's floats, at two temperatures, where the context of the model ends within the text."""
    key = a_key("gumbel", 5, tokenizer.fingerprint, context=2)
    ids = (tokenizer.encode("People in Japan speak Japanese, 日本的人說日文。") * 9)[:100]
    found = read(engine, [ids], probes=[Races(key, ids)])[0].probed
    assert found.shape == (100, 6) and found[:2].isnan().all() and not found[2:].isnan().any()
    with torch.no_grad():
        x = torch.tensor([[beginning(tokenizer), *ids[:63]]])
        logits = model.logits(model(x, causal_mask(64)))[0].double()
    for t in (2, 3, 40, 63):
        seed = seed_at(key, ids[:t])
        u = [(slow_number(seed, v) + 0.5) / 2**52 for v in range(logits.shape[1])]
        for n, temperature in enumerate(race.TEMPERATURES[:2]):
            p = (logits[t] / temperature).softmax(0).tolist()
            winner = max(range(len(p)), key=lambda v: math.log(u[v]) / p[v])
            assert float(found[t, 2 * n]) == pytest.approx(math.log(p[ids[t]]), abs=1e-3)
            assert bool(found[t, 2 * n + 1]) == (winner == ids[t])


def race_p_values(apart):
    """Of one text that repeats itself, before a model that sees one token only, under keys that have nothing to do with it."""
    rng = random.Random(3)
    table = torch.randn(4, 4, generator=torch.Generator().manual_seed(2)) * 1.5
    ids = [rng.randrange(4) for _ in range(40)]
    logits = table[[0, *ids[:-1]]]
    found = []
    for n in range(400):
        races = Races(a_key("gumbel", n, "x", context=1), ids)
        races.seeds = seeds_of(races.key, ids, apart)
        columns = races(range(40), logits)[1:].numpy()
        chance, won = np.exp(columns[:, 0]), columns[:, 1] > 0
        worth = race.weights(chance)
        found.append(race.tail(chance, worth, int(worth[won].sum())))
    return np.array(found)


def test_null_p_values_of_the_races_are_uniform_and_only_with_numbers_of_their_own():
    p = race_p_values(apart=True)
    for alpha in (0.5, 0.2, 0.05, 0.01):
        assert (p <= alpha).mean() <= alpha + 3.3 * math.sqrt(alpha * (1 - alpha) / len(p))
    gap = np.abs(np.sort(p) - (np.arange(len(p)) + 0.5) / len(p)).max()
    assert gap < 1.63 / math.sqrt(len(p)) + 0.02  # sums of whole numbers come in steps
    assert (race_p_values(apart=False) <= 0.01).mean() > 0.05


def test_a_model_sees_more_than_the_key_alone(model, tokenizer):
    """Answers of 40 tokens of a model that is rather sure of itself; the text is read without the prompt."""
    with torch.no_grad():
        model.embedding.weight.mul_(3)
    engine, ids_of = Engine(model, tokenizer, name="sft"), []
    keys = [a_key("gumbel", n, tokenizer.fingerprint, context=1) for n in range(4)]
    for n, key in enumerate(keys):
        sampling = replace(marked(key, Sampling(temperature=0.7)), max_tokens=40, ignore_end=True, seed=n)
        ids_of.append(engine.submit([tokenizer.end_of_text], sampling))
    while engine.step():
        pass
    for key, other, request in zip(keys, keys[::-1], ids_of, strict=True):
        ids = request.answer
        seen = read(engine, [ids], probes=[Races(key, ids)])[0].probed
        found = race.examine_races(key, seen, normalise("x" * 40), [(t, t + 1) for t in range(40)])
        _, values = counted(key, ids)
        alone = SCHEMES["gumbel"].tail(key, float(SCHEMES["gumbel"].weigh(key, values).sum()), len(values))
        assert found.p < 1e-9 and found.p < alone and found.null == "random-key" and found.n == 39
        assert "temperature 0.7" in found.notes[0]
        seen = read(engine, [ids], probes=[Races(other, ids)])[0].probed
        assert race.examine_races(other, seen, normalise("x" * 40), [(t, t + 1) for t in range(40)]).p > 1e-4
    short = race.examine_races(keys[0], seen[:9], normalise("x" * 9), [(t, t + 1) for t in range(9)])
    assert short.p is None and "too short" in short.notes[0]


def long_answers(engine, sampling, count=6, tokens=60):
    sampling = replace(sampling, max_tokens=tokens, ignore_end=True)
    prompts = [[engine.tokenizer.end_of_text, n + 40] for n in range(count)]
    return [engine.submit(p, replace(sampling, seed=n)) for n, p in enumerate(prompts)]


@pytest.mark.parametrize("scheme", SCHEME)
def test_the_mark_is_found_with_its_key_only(scheme, engine, tokenizer):
    key, other = (a_key(scheme, n, tokenizer.fingerprint, bias=4.0) for n in (1, 2))
    requests = long_answers(engine, marked(key, Sampling(temperature=1.0)), 3, 60)
    while engine.step():
        pass
    right = [
        SCHEMES[scheme].tail(key, float(SCHEMES[scheme].weigh(key, v).sum()), len(v))
        for r in requests
        for _, v in [counted(key, r.answer)]
    ]
    wrong = [
        SCHEMES[scheme].tail(other, float(SCHEMES[scheme].weigh(other, v).sum()), len(v))
        for r in requests
        for _, v in [counted(other, r.answer)]
    ]
    assert max(right) < 1e-6 and min(wrong) > 1e-4


@pytest.mark.parametrize("scheme", SCHEME)
def test_an_answer_is_the_same_alone_and_among_others(scheme, engine, tokenizer):
    sampling = marked(a_key(scheme, 3, tokenizer.fingerprint), Sampling(temperature=1.0))
    together = long_answers(engine, sampling, 3, 20)
    while engine.step():
        pass
    backwards = [engine.submit(r.prompt, r.sampling) for r in together[::-1]]
    while engine.step():
        pass
    assert [r.answer for r in backwards[::-1]] == [r.answer for r in together]
    for n, request in enumerate(together):
        alone = engine.submit(request.prompt, request.sampling)
        while engine.step():
            pass
        assert alone.answer == request.answer, n


def test_asking_again_gives_another_answer(engine, tokenizer):
    sampling = marked(
        a_key("gumbel", 3, tokenizer.fingerprint), Sampling(temperature=1.0, max_tokens=12, ignore_end=True)
    )
    answers = {
        tuple(engine.generate([[engine.tokenizer.end_of_text]], replace(sampling, seed=n))[0].answer) for n in range(4)
    }
    assert len(answers) == 4


def test_gumbel_marks_nothing_at_temperature_0(engine, tokenizer):
    plain = Sampling(temperature=0.0, max_tokens=20, ignore_end=True)
    sampling = marked(a_key("gumbel", 3, tokenizer.fingerprint), plain)
    prompt = [[engine.tokenizer.end_of_text]]
    assert engine.generate(prompt, sampling)[0].answer == engine.generate(prompt, plain)[0].answer


def test_examine_counts_the_text_as_it_is_read_again(engine, tokenizer):
    key = a_key("gumbel", 5, tokenizer.fingerprint, context=1)
    text = "People in Japan speak Japanese, 日本的人說日文。 The capital of France is Paris; " * 2
    normal = normalise(text)
    found = examine(key, *tokenizer.encode_spans(normal.text), normal)
    assert found.null == "random-key" and found.n == len(found.spans) and 0 < found.p <= 1
    assert all(0 <= s.start < s.end <= len(text) for s in found.spans)
    assert found.score == pytest.approx(sum(s.value for s in found.spans) / found.n, abs=1e-3)
    short = examine(key, *tokenizer.encode_spans("Hi"), normalise("Hi"))
    assert short.p is None and "too short" in short.notes[0]


def test_a_vocabulary_is_fingerprinted_once(tokenizer, monkeypatch):
    """A vocabulary of 50,000 takes 0.15 s, and every marked request asks for it."""
    assert len(tokenizer.fingerprint) == 16
    monkeypatch.setattr("jielong.tokens.tokenizer.hashlib.sha256", lambda _: pytest.fail("it was computed again"))
    a_key("gumbel", 3, tokenizer.fingerprint).fit(tokenizer, "sft")


def test_keys_that_do_not_fit(tokenizer, tmp_path):
    path = tmp_path / "deep" / "key.json"
    key = make_key(path, tokenizer, "gumbel", 4, 0.25, 2.0)
    assert load_key(path) == key and len(key.bytes) == 32
    assert os.stat(path).st_mode & 0o777 == 0o600
    with pytest.raises(UserError, match="exists"):
        make_key(path, tokenizer, "gumbel", 4, 0.25, 2.0)
    first = json.loads(path.read_text())  # as the first version wrote it
    del first["again"]
    (tmp_path / "old.json").write_text(json.dumps({**first, "jielong_watermark": 1}))
    (tmp_path / "old.json").chmod(0o600)
    assert load_key(tmp_path / "old.json") == replace(key, again=False)
    path.chmod(0o644)
    with pytest.raises(UserError, match="chmod 600"):
        load_key(path)
    with pytest.raises(UserError, match="another vocabulary"):
        replace(key, vocabulary="0" * 16).fit(tokenizer, "sft")
    for settings in (
        ("nothing", 4, 0.25, 2.0),
        ("gumbel", 0, 0.25, 2.0),
        ("greenlist", 4, 1.0, 2.0),
        ("greenlist", 4, 0.5, 0.0),
    ):
        with pytest.raises(UserError):
            make_key(tmp_path / "no.json", tokenizer, *settings)
    assert not (tmp_path / "no.json").exists()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"jielong_watermark": 2}',
        "\x00\xff",
        "damaged",
        "wrong scheme",
        "wrong length",
        "wrong version",
        "no number",
        "negative",
        "[" * 100_000,
    ],
)
def test_files_that_are_no_keys(content, tokenizer, tmp_path):
    path = tmp_path / "key.json"
    make_key(path, tokenizer, "greenlist", 4, 0.25, 2.0)
    good = json.loads(path.read_text())
    made = {
        "damaged": json.dumps(good)[:-5],
        "wrong scheme": json.dumps({**good, "scheme": "nothing"}),
        "wrong version": json.dumps({**good, "jielong_watermark": 1}),
        "no number": json.dumps({**good, "bias": math.nan}),
        "negative": json.dumps({**good, "bias": -2.0}),
        "wrong length": json.dumps({**good, "secret": "00ff"}),
    }
    path.write_bytes(made.get(content, content).encode("latin-1"))
    with pytest.raises(UserError, match="key"):
        load_key(path)
    with pytest.raises(UserError, match="does not exist"):
        load_key(tmp_path / "none")
