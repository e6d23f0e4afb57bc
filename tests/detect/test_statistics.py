"""One forward pass, the statistics of it, normalisation, and how evidence is combined."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from jielong.detect import scores
from jielong.detect.evidence import Evidence, Span, combine, holm
from jielong.detect.normalise import normalise
from jielong.detect.reference import measure
from jielong.detect.scores import SCORES
from jielong.detect.tilt import Human, Tilt, fit
from jielong.detect.tokenstats import TokenStats, aligned, beginning, read
from jielong.errors import UserError
from jielong.generate.engine import Engine
from jielong.generate.sampling import Sampling
from jielong.model import runtime
from jielong.model.gpt import GPT, causal_mask
from jielong.run import plain

TEXT = "The capital of France is Paris. 法國的首都是巴黎。 People in Japan speak Japanese, 日本的人說日文。"


@pytest.fixture
def engine(model, tokenizer):
    return Engine(model, tokenizer, name="sft")


def sharp(model, seed=5):
    """The same shape with larger weights, so that its distributions are far from even."""
    other = GPT(model.config)
    other.init_weights(seed)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)) * 0.15)
    return other.eval()


def slow(model, ids, begin, observer=None, top=0):
    """Every number by its definition, one token at a time, in double precision."""
    with torch.no_grad():
        x = torch.tensor([[begin, *ids[:-1]]])
        q = model.logits(model(x, causal_mask(len(ids))))[0].double().log_softmax(-1)
        p = observer.logits(observer(x, causal_mask(len(ids))))[0].double().softmax(-1) if observer else None
    rows = []
    for t, token in enumerate(ids):
        values = q[t].tolist()
        mean = sum(math.exp(v) * v for v in values)
        rows.append(
            (
                values[token],
                1 + sum(v > values[token] for v in values),
                -mean,
                sum(math.exp(v) * v * v for v in values) - mean * mean,
                -sum(a * v for a, v in zip(p[t].tolist(), values, strict=True)) if p is not None else 0.0,
            )
        )
    return [list(c) for c in zip(*rows, strict=True)]


@pytest.mark.parametrize("library", ["native", "torch"])
def test_one_pass_gives_every_number_by_its_definition(model, tokenizer, library, monkeypatch):
    if library == "torch":
        monkeypatch.setattr(runtime, "library", lambda: None)
    model, other = sharp(model), sharp(model, 6)
    engine, observer = Engine(model, tokenizer), Engine(other, tokenizer)
    documents = [tokenizer.encode(TEXT)[:40], tokenizer.encode("日本的人")[:5], []]
    found = read(engine, documents, observer, top=3)
    assert [len(s) for s in found] == [40, len(documents[1]), 0]
    for ids, stats in zip(documents[:2], found, strict=False):
        logprob, rank, entropy, variance, cross = slow(model, ids, beginning(tokenizer), other)
        assert stats.logprob.tolist() == pytest.approx(logprob, abs=2e-4)
        assert stats.rank.tolist() == rank
        assert stats.entropy.tolist() == pytest.approx(entropy, abs=2e-4)
        assert stats.variance.tolist() == pytest.approx(variance, abs=2e-3)
        assert stats.cross is not None and stats.cross.tolist() == pytest.approx(cross, abs=2e-4)
        assert all(len(best) == 3 and best[0][1] >= best[1][1] >= best[2][1] for best in stats.top)
        for best, r, v in zip(stats.top, rank, logprob, strict=True):
            if r <= 3:
                assert best[r - 1][1] == pytest.approx(v, abs=2e-4)


def test_long_texts_are_read_in_windows_and_beginnings_do_not_know_their_ends(engine, model, tokenizer):
    ids = (tokenizer.encode(TEXT) * 10)[:150]  # the context is 64
    whole, short = read(engine, [ids])[0], read(engine, [ids[:60]])[0]
    assert len(whole) == 150 and whole.ids == ids
    assert whole.head(60).logprob.tolist() == pytest.approx(short.logprob.tolist(), abs=1e-5)
    # the second window begins 8 tokens before the first one's end
    second = slow(model, ids[56:120], beginning(tokenizer))
    assert whole.logprob[64:120].tolist() == pytest.approx(second[0][8:], abs=2e-4)


def test_scores_by_hand():
    """Three tokens: log-probabilities −1, −2, −3, ranks 1, 2, 4, entropies 1.5, variances 0.5, 0.5, 1."""
    d = torch.float64
    stats = TokenStats(
        [1, 2, 3],
        torch.tensor([-1.0, -2.0, -3.0], dtype=d),
        torch.tensor([1, 2, 4]),
        torch.full((3,), 1.5, dtype=d),
        torch.tensor([0.5, 0.5, 1.0], dtype=d),
        torch.full((3,), 4.0, dtype=d),
        torch.tensor([-1.5, -1.5, -1.5], dtype=d),
        tilt=torch.tensor([0.5, -0.25, 0.5], dtype=d),
    )
    wanted = {
        "likelihood": -2.0,
        "log-rank": -math.log(8) / 3,
        "lrr": 6 / math.log(8),
        "fast-detect": (-6 + 4.5) / math.sqrt(2),
        "binoculars": -0.5,
        "likelihood-ratio": -0.5,
        "tilt": 0.25,
    }
    assert {name: s.of(stats) for name, s in SCORES.items()} == pytest.approx(wanted)
    assert SCORES["likelihood"].of(stats.head(1)) == -1.0
    with pytest.raises(UserError, match="no statistic"):
        scores.find("magic")


def test_fast_detect_has_mean_0_and_variance_1_on_the_scorers_own_text(model, tokenizer):
    """256 texts of 24 tokens at temperature 1, as ids: the one null that a model gives for nothing."""
    engine = Engine(sharp(model), tokenizer, rows=64)
    sampling = Sampling(temperature=1.0, max_tokens=24, ignore_end=True)
    requests = []
    for seed in range(256):
        sampling.seed = seed
        requests.append(engine.submit([beginning(tokenizer)], Sampling(**vars(sampling))))
    while engine.step():
        pass
    d = np.array([SCORES["fast-detect"].of(s) for s in read(engine, [r.answer for r in requests])])
    assert abs(d.mean()) < 3.3 / math.sqrt(len(d))
    assert abs(d.var() - 1) < 3.3 * math.sqrt(2 / len(d))
    # another temperature is another text
    cold = [
        engine.submit([beginning(tokenizer)], Sampling(temperature=0.5, max_tokens=24, ignore_end=True, seed=n))
        for n in range(30)
    ]
    while engine.step():
        pass
    assert np.mean([SCORES["fast-detect"].of(s) for s in read(engine, [r.answer for r in cold])]) > 1


def test_a_tilt_by_its_definition(model, tokenizer):
    """Three rounds of counts and expected counts, and log q − log h, all by whole distributions in double precision."""
    model = sharp(model)
    engine, ids = Engine(model, tokenizer), tokenizer.encode(TEXT)[:40]
    documents = [ids, ids[5:30] * 4]  # of the second one context is read
    human = fit(engine, documents)
    V, q, kinds = engine.vocab_size, {}, {}
    for n, own in enumerate(documents):
        own = own[:64]
        with torch.no_grad():
            logits = model.logits(model(torch.tensor([[beginning(tokenizer), *own[:-1]]]), causal_mask(len(own))))
        q[n] = logits[0].double().softmax(-1)
        kinds[n] = torch.tensor([[1 if v in own[max(0, t - 20) : t] else 2 if v in own[:t] else 0 for v in range(V)] for t in range(len(own))])  # fmt: skip
    b, c = torch.zeros(V).double(), torch.zeros(3).double()

    def tilted(n):
        h = q[n] * (b + c[kinds[n]]).exp()
        return h / h.sum(1, keepdim=True)

    for _ in range(3):
        used, expected, by_kind = (
            torch.full((V,), 0.5).double(),
            torch.full((V,), 0.5).double(),
            torch.full((2, 3), 0.5).double(),
        )
        for n, own in enumerate(d[:64] for d in documents):
            h = tilted(n)
            expected += h.sum(0)
            for t, token in enumerate(own):
                used[token] += 1
                by_kind[0, kinds[n][t, token]] += 1
                for k in range(3):
                    by_kind[1, k] += h[t][kinds[n][t] == k].sum()
        b = b + (used / expected).log()
        step = (by_kind[0] / by_kind[1]).log()
        c = c + step - step[0]
    assert human.b.tolist() == pytest.approx(b.tolist(), abs=1e-3)
    assert [human.near, human.far] == pytest.approx(c[1:].tolist(), abs=1e-3)
    again = Human.of(human.array())
    assert torch.equal(again.b, human.b) and (again.near, again.far) == pytest.approx((human.near, human.far))
    h = tilted(0).log().gather(1, torch.tensor(ids)[:, None])[:, 0]
    found = read(engine, [ids], probes=[Tilt(human, ids)])[0]
    assert found.probed[:, 0].tolist() == pytest.approx((found.logprob - h).tolist(), abs=2e-4)


def test_a_tilt_parts_the_model_from_those_who_use_other_words(model, tokenizer):
    """Writers who like ten tokens more than the model does, and the model itself: 40 tokens each, from texts not fitted on."""
    engine = Engine(sharp(model), tokenizer, rows=64)
    likes = dict.fromkeys(range(60, 70), 2.0)

    def written(count, seed, **settings):
        asked = [
            Sampling(temperature=1.0, max_tokens=40, ignore_end=True, seed=seed + n, **settings) for n in range(count)
        ]
        requests = [engine.submit([beginning(tokenizer)], s) for s in asked]
        while engine.step():
            pass
        return [r.answer for r in requests]

    human = fit(engine, written(40, 0, logit_bias=likes))
    assert human.b[60:70].mean() > 1 > human.b.abs().mean()
    scores = []
    for texts in (written(20, 100, logit_bias=likes), written(20, 200)):
        found = read(engine, texts, probes=[Tilt(human, ids) for ids in texts])
        scores.append([float(s.probed.mean()) for s in found])
    assert np.mean(scores[0]) < 0 < np.mean(scores[1])
    assert np.quantile(scores[0], 0.9) < np.quantile(scores[1], 0.1)


def test_an_outsiders_tokens_are_laid_over_the_scorers(engine):
    """Characters 0–4, 4–6, 6–9 against 0–2, 2–5, 5–6, 6–9: a token counts where its last character stands."""
    d = torch.float64
    mine = TokenStats([1, 2, 3], torch.zeros(3, dtype=d), torch.ones(3), torch.zeros(3), torch.zeros(3))
    theirs = TokenStats(
        [1, 2, 3, 4], torch.tensor([-1.0, -2.0, -4.0, -8.0], dtype=d), torch.ones(4), torch.zeros(4), torch.zeros(4)
    )
    both = aligned(mine, [(0, 4), (4, 6), (6, 9)], theirs, [(0, 2), (2, 5), (5, 6), (6, 9)])
    assert both.outside is not None and both.outside.tolist() == [-1.0, -6.0, -8.0]


def test_an_observer_with_another_vocabulary_is_refused(engine, model):
    from jielong.tokens.tokenizer import train

    other = train(["something else altogether " + str(n) for n in range(40)], 264)
    with pytest.raises(UserError, match="vocabulary"):
        read(engine, [[1, 2, 3]], Engine(model, other, name="other"))


def test_an_observer_that_reads_less_at_a_time_changes_nothing_in_the_scorers_statistics(engine, model):
    """Human texts are measured with and others without it: both must be read in the same windows."""
    short = Engine(GPT(replace(model.config, context=32)), engine.tokenizer, name="short")
    with pytest.raises(UserError, match="reads 32 tokens at a time, sft 64"):
        read(engine, [[1, 2, 3]], short)
    text = TEXT * 2
    with_it, without = (measure(engine, observer, [text])[0] for observer in (short, None))
    assert any(method == "likelihood-ratio" for *_, method in with_it)
    assert without and {k: v for k, v in with_it.items() if k[2] != "likelihood-ratio"} == without


# normalisation


@pytest.mark.parametrize(
    ("text", "plain", "count"),
    [
        ("plain text, 中文，「標點」。ABC", "plain text, 中文，「標點」。ABC", 0),
        ("Тhe сарital", "The capital", 4),  # Cyrillic look-alikes among Latin letters
        ("all of оса is latin", "all of oca is latin", 3),  # a word of nothing but look-alikes, in a Latin text
        ("Москва, столица России", "Москва, столица России", 0),
        ("за оса", "за оса", 0),
        ("zero\u200bwidth\u2060 and soft\u00adhyphen", "zerowidth and softhyphen", 3),
        ("с\u200bapital", "capital", 2),
        ("Ｆｕｌｌ　１２", "Full　12", 6),
        ("𝐛𝐨𝐥𝐝", "bold", 4),
        ("a\u2003b", "a b", 1),
        ("\ufeffbegin", "begin", 0),
        ("می\u200cخواهم 👩\u200d💻", "می\u200cخواهم 👩\u200d💻", 0),  # joiners where they belong
        ("one\r\ntwo\rthree", "one\ntwo\nthree", 0),
        ("", "", 0),
    ],
)  # fmt: skip
def test_disguises_are_taken_off_and_told(text, plain, count):
    normal = normalise(text)
    assert normal.text == plain and len(normal.changes) == count
    found = normal.evidence()
    assert (found is None) == (count == 0)
    if found:
        assert found.p is None and found.kind == "disguise" and all(s.note for s in found.spans)


def test_places_lead_back_to_the_original():
    text = "a\u200bbс\r\nd"
    normal = normalise(text)
    assert normal.text == "abc\nd" and normal.origin == [0, 2, 3, 5, 6, 7]
    assert [normal.place(0, 2), normal.place(1, 3), normal.place(4, 5)] == [(0, 3), (2, 4), (6, 7)]


def test_origin_of_every_character():
    rng = random.Random(1)
    alphabet = "aеbс\u200b\u2003Ａ１中，\r\n\u202e"
    for _ in range(200):
        text = "".join(rng.choice(alphabet) for _ in range(rng.randrange(12)))
        normal = normalise(text)
        assert len(normal.origin) == len(normal.text) + 1 and normal.origin[-1] == len(text)
        assert normal.origin == sorted(normal.origin)
        kept = set(range(len(text))) - {int(s.start) for s in normal.changes}
        for at, char in enumerate(normal.text):
            if normal.origin[at] in kept and text[normal.origin[at]] != "\r":
                assert text[normal.origin[at]] == char
        assert not set(normal.text) & set("\u200b\u2003Ａ１\r\u202e")


# combination


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5]) == [0.5] and holm([]) == [] and holm([0.9, 0.8]) == [1.0, 1.0]


def test_holm_keeps_the_level_whatever_depends_on_what():
    rng = np.random.default_rng(1)
    one = rng.random(4000)
    p = np.stack([one, one, rng.random(4000)], 1)
    false = np.mean([min(holm(row)) <= 0.05 for row in p.tolist()])
    assert false <= 0.05 + 3.3 * math.sqrt(0.05 * 0.95 / 4000)


def evidence(method, p):
    return Evidence(method, "statistic", 1.0, p, "human:x" if p is not None else "")


def test_verdicts_are_never_human():
    assert combine([evidence("a", None)]).verdict == "abstain"
    assert combine([]).verdict == "abstain"
    assert combine([evidence("a", 0.9), evidence("b", None)]).verdict == "no evidence"
    assert combine([evidence("a", 0.004), evidence("b", 0.9)], 0.01).verdict == "generated"
    assert combine([evidence("a", 0.006), evidence("b", 0.9)], 0.01).verdict == "no evidence"
    report = combine([evidence("a", 0.004), evidence("b", None)], 0.01).json()
    spans = (Span(0, 2, 0.5), Span(2, 3, 1.5, "why"))
    full = combine([Evidence("a", "watermark", 1.0, 0.2, "exact", 3, spans, ("x",)), evidence("b", 0.3)])
    assert full.json() == plain(full)
    assert report["adjusted"] == {"a": 0.004} and report["evidence"][1]["p"] is None
    for alpha in (0.0, -1.0, 0.6, math.nan):
        with pytest.raises(UserError, match="alpha"):
            combine([], alpha)
