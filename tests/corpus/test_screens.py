"""What looks at one document alone: each algorithm against a slow reference."""

from __future__ import annotations

import random
import re
from collections import Counter

import numpy as np
import pytest

from jielong.config import ClassifierConfig
from jielong.corpus import classifier
from jielong.corpus.decontaminate import CHARACTERS, WORDS, ExamIndex
from jielong.corpus.dedup import permutations, shingles, signature
from jielong.corpus.dirt import fake_card, fake_id
from jielong.corpus.encoding import repair
from jielong.corpus.extract import tag_depth
from jielong.corpus.language import identify
from jielong.corpus.licences import code_reason, declared_licence, licence_of
from jielong.corpus.ngrams import repeats, unit_hashes, windows
from jielong.corpus.privacy import scrub
from jielong.corpus.webrules import seen_characters, top_share, web_reason
from jielong.corpus.wordlists import AddressList, WordList
from jielong.errors import UserError

EN = (
    "The river begins in the hills of the north and runs for two hundred miles to the sea. People have lived beside it "
    "since the last ice age, and their villages became towns with markets, schools and mills. In spring the water rises "
    "and covers the meadows, which makes the soil rich. Farmers grow wheat and barley there, and keep sheep on the "
    "slopes where nothing else would grow.\nA railway that was built in the nineteenth century follows the valley."
)
ZH = (
    "這條河從北方的山裡流出來，經過兩百公里的平原，最後流到海裡。從很久以前開始，人們就住在河的兩岸，後來村子變成了有市場、"
    "學校和工廠的城鎮。春天的時候河水上漲，淹過草地，使土壤變得肥沃。農夫在那裡種小麥和大麥，並且在什麼都長不出來的山坡上養羊。\n"
    "十九世紀蓋的鐵路沿著山谷走，每天有幾班車。旅客可以在車上看到古老的橋，也可以在小站下車散步，或者在餐廳裡吃當地的魚。"
)


def sample(rng: random.Random, n: int) -> list[str]:
    return [rng.choice("abcde") for _ in range(n)]


def test_windows_are_equal_where_the_runs_are():
    rng = random.Random(1)
    for n in (1, 2, 5):
        found = sample(rng, 200)
        grams = windows(unit_hashes(found), n)
        runs = [tuple(found[k : k + n]) for k in range(len(found) - n + 1)]
        assert len(grams) == len(runs) and len(set(grams.tolist())) == len(set(runs))
        seen: set[tuple[str, ...]] = set()
        expected = [run in seen or bool(seen.add(run)) for run in runs]
        assert repeats(grams).tolist() == expected
    assert len(windows(unit_hashes(["a"]), 2)) == 0


def test_repetition_against_the_definition():
    rng = random.Random(2)
    for trial in range(30):
        found = [w * rng.randint(1, 3) for w in sample(rng, rng.randint(2, 60))]
        hashes, lengths = unit_hashes(found), np.array([len(w) for w in found])
        for n in (2, 3):
            runs = [tuple(found[k : k + n]) for k in range(len(found) - n + 1)]
            covered: set[int] = set()
            for k, gram in enumerate(runs):
                if gram in runs[:k]:
                    covered |= set(range(k, k + n))
            assert seen_characters(hashes, lengths, n) == sum(len(found[k]) for k in covered), trial
            count = Counter(runs)
            most = max(count.values(), default=0)
            best = {most * sum(map(len, gram)) for gram, c in count.items() if c == most} if most > 1 else {0}
            assert top_share(hashes, lengths, n) in best


@pytest.mark.parametrize(("text", "lang"), [(EN, "en"), (ZH, "zh")])
def test_web_rules_keep_prose_and_name_the_fault(text, lang):
    assert web_reason(text, lang) is None
    stop = ". " if lang == "en" else "。"
    lines = re.split(r"[.。]\s*", text)
    assert web_reason(text[:60], lang) == "too few words"
    assert web_reason("\n".join(f"- {line}{stop}" for line in lines if line), lang) == "only bullets"
    assert web_reason("\n".join(f"{line}..." for line in lines if line), lang) == "lines cut off"
    assert web_reason(re.sub(r"[.,，。：、]", " ", text).replace("\n", " "), lang) == "no sentences"
    assert web_reason(text + " lorem ipsum", lang) == "lorem ipsum"
    assert web_reason((lines[0] + stop) * 9 + lines[1] + stop, lang) in (
        "repeated phrases",
        "one phrase again and again",
    )
    assert web_reason(text + ("\n" + lines[0] + stop) * 4, lang) == "repeated lines"
    assert web_reason(text, "fr") is None


@pytest.mark.parametrize("text", [EN, ZH, "Café déjà vu – naïve “quotes” €5, Ångström, 東京 ½ Ωμέγα, смысл 🙂"])
def test_repair_undoes_every_misreading(text):
    for wrong in ("latin-1", "cp1252"):
        broken = "".join(
            bytes([b]).decode(wrong) if wrong == "latin-1" or b not in (0x81, 0x8D, 0x8F, 0x90, 0x9D) else chr(b)
            for b in text.encode()
        )
        assert repair(broken) == text
        again = "".join(bytes([b]).decode("latin-1") for b in broken.encode())
        assert repair(again) == text
    assert repair(text) == text


def test_language_and_script():
    assert identify(EN) == "en" and identify(ZH) == "zh-Hant"
    assert identify("这个国家的经济发展很快，人们的生活也变得更好了。") == "zh-Hans"
    assert identify("佢哋喺度做咩呀，我哋唔知㗎，你話俾我聽啦。") == "yue"
    assert identify("今日は天気がとても良いです。") == "ja" and identify("오늘은 날씨가 아주 좋습니다.") == "ko"
    assert identify("La capitale de ce pays est une grande ville où vivent beaucoup de gens.") == "fr"


def test_tag_depth():
    page = "<html><body><div><p>a<br><img src='x'></div><div><span>b</span></div></body></html>"
    assert tag_depth(page) == 4
    assert tag_depth("<div><script>" + "<a>" * 9 + "</script></div><DIV><b>" + "<style><i>") == 2
    assert tag_depth("<div>" * 5000) == 5000 and tag_depth("</div>" * 9 + "<b>") == 1 and tag_depth("<" * 10**6) == 0


def test_signature_in_blocks_is_the_minimum_over_all_shingles():
    a, b = permutations()
    text = "".join(chr(random.Random(3).randrange(97, 123) + k % 5) + str(k) for k in range(3000))
    slow = ((shingles(text)[:, None] * a + b) >> np.uint64(32)).min(axis=0)
    assert (signature(text, a, b) == slow).all()


def slow_contains(text: str, examples: list[str]) -> bool:
    """By the definition, on plain strings of words (English only)."""
    words = lambda t: re.findall(r"[a-z]+", t.lower())  # noqa: E731
    inside = " " + " ".join(words(text)) + " "
    for example in map(words, examples):
        size = min(WORDS, len(example))
        if size >= 8 and any(f" {' '.join(example[k : k + size])} " in inside for k in range(len(example) - size + 1)):
            return True
    return False


def test_decontamination_against_the_definition(tmp_path):
    rng = random.Random(4)
    vocabulary = ["ab", "cd", "ef", "gh", "ij", "kl"]
    make = lambda n: " ".join(rng.choice(vocabulary) for _ in range(n))  # noqa: E731
    exams = [make(n) for n in (6, 8, 9, 13, 30, 30)]
    ExamIndex.of(exams).save(tmp_path / "x.npz")
    index = ExamIndex.load(tmp_path / "x.npz")
    hits = 0
    for _ in range(400):
        example = rng.choice(exams)
        at = rng.randrange(10)
        text = make(30) + " " + " ".join(example.split()[at : at + rng.choice((8, 12, 13, 20))]) + " " + make(30)
        assert index.contains(text) == slow_contains(text, exams), text
        hits += index.contains(text)
    assert 40 < hits < 360
    zh = ExamIndex.of([ZH])
    assert zh.contains("他說：" + ZH[10 : 14 + CHARACTERS] + "，然後走了。") and not zh.contains(
        ZH[10 : 6 + CHARACTERS] + "。"
    )


def test_lists():
    addresses = AddressList(["spam.example", "good.example/bad/", "https://www.Third.example"])
    for url in ("http://spam.example/x", "https://www.a.spam.example", "good.example/bad/1", "http://third.example"):
        assert addresses.blocks(url), url
    for url in (
        "http://notspam.example",
        "http://good.example/better",
        "",
        "http://[",
        "http://x.example/spam.example",
    ):
        assert not addresses.blocks(url), url
    words = WordList(["ass", "blow job", "傻逼", "賭場", "性"])
    assert words.count("An ass, a Blow Job; 賭場 and 赌场, 傻逼!") == 5
    assert words.count("assess the class; 性別與個性") == 0


def test_licences():
    mit = "Permission is hereby granted, free  of charge, to any person obtaining a copy of this software"
    assert licence_of(mit) == "MIT" and licence_of("GNU GENERAL PUBLIC LICENSE\n   Version 3") == "GPL-3.0"
    assert licence_of("Redistribution and use in source and binary forms … Neither the name of X") == "BSD-3-Clause"
    assert licence_of("All rights reserved.") == ""
    assert declared_licence("# SPDX-License-Identifier: GPL-2.0-only\n") == "GPL-2.0"
    assert declared_licence("# SPDX-License-Identifier: MIT OR GPL-2.0\n") == ""
    code = "def add(a, b):\n    return a + b\n\n\n" * 5
    assert code_reason(code) is None
    assert code_reason("# Generated by protoc. DO NOT EDIT.\n" + code) == "generated"
    assert code_reason("x = '" + "a" * 1200 + "'") == "a line of more than 1,000 characters"


def test_addresses_are_private_and_roads_are_not():
    rng = random.Random(5)
    for secret in (
        "台北市信義區市府路45號12樓",
        "新竹縣竹北市光明六路10號",
        "1600 Pine Avenue, Apt 5",
        "22 North Oak St.",
    ):
        assert scrub(f"x {secret} y", addresses=True)[0] == "x [address] y", secret
        assert scrub(f"x {secret} y")[1]["address"] == 0
    harmless = "中山路很長，路上有 3 家店。第45號法案。In 1945 Main Street was long; Route 66. 依本法第三條第二項規定，編號12號。"
    assert scrub(harmless, addresses=True)[0] == harmless
    text = f"{fake_id(rng)} {fake_card(rng)}"
    assert scrub(text, addresses=True)[0] == "[id] [card]"


def test_auc_against_all_pairs():
    rng = np.random.default_rng(6)
    good = rng.integers(0, 2, 60)
    scores = np.round(rng.normal(size=60) + good, 1)  # with ties
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[good == 1] for b in scores[good == 0]]
    assert abs(classifier.auc(scores, good) - np.mean(pairs)) < 1e-12


def dense_gradient(rows, good, w, bias, weight, decay):
    """Gradient of the loss in w and bias by the definition."""
    dw, db = np.zeros_like(w, dtype=np.float64), 0.0
    for row, y, c in zip(rows, good, weight):
        x = np.zeros(len(w))
        x[row] = 1 / np.sqrt(len(row))
        error = (1 / (1 + np.exp(-(w @ x + bias))) - y) * c / len(rows)
        dw += error * x
        db += error
    touched = np.unique(np.concatenate(rows))
    dw[touched] += decay * w[touched]
    return dw, db


def test_training_step_against_dense_logistic_regression():
    texts, good = [EN, ZH, "cheap shoes, buy cheap shoes now", "免費點擊，立即購買便宜鞋子"], np.array([1, 1, 0, 0])
    config = ClassifierConfig("train", "x", epochs=3, rate=0.3, decay=0.01)  # type: ignore[arg-type]
    model = classifier.train(texts, good, config)
    rows = [classifier.features(t) for t in texts]
    w, g2, bias, b2 = np.zeros(classifier.BUCKETS), np.full(classifier.BUCKETS, 1e-8), 0.0, 1e-8
    for _ in range(3):
        dw, db = dense_gradient(rows, good, w, bias, np.ones(4), 0.01)
        g2 += dw**2
        w -= 0.3 * dw / np.sqrt(g2)
        b2 += db**2
        bias -= 0.3 * db / np.sqrt(b2)
    assert np.abs(model.weights - w).max() < 1e-3 and abs(model.bias - bias) < 1e-3
    assert np.abs(w).max() > 0.3


def test_classifier_commands(tmp_path):
    (tmp_path / "good.txt").write_text("x")
    rng = random.Random(7)
    sentences = re.split(r"(?<=[.。])", EN + ZH)
    rows = ["".join(rng.sample(sentences, 4)) for _ in range(120)]
    junk = [
        " ".join(rng.sample(["cheap", "shoes", "buy", "click", "free", "now", "便宜", "點擊", "免費"], 6)) + str(n)
        for n in range(120)
    ]
    for name, texts in (("good", rows), ("bad", junk)):
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(f'{{"text": "{t.strip()}"}}\n' for t in (s.replace("\n", " ") for s in texts))
        )
    paths = {"good": (tmp_path / "good.jsonl",), "bad": (tmp_path / "bad.jsonl",)}
    said: list[str] = []
    found = classifier.run(ClassifierConfig("train", tmp_path / "c", **paths), said.append)
    assert found["auc"] > 0.99 and any("AUC" in line for line in said)
    again = classifier.run(ClassifierConfig("evaluate", tmp_path / "c", **paths), said.append)
    assert again["good"] == len({classifier.normalise(r.replace(chr(10), " ")) for r in rows}) and again["auc"] > 0.99
    model = classifier.Classifier.load(tmp_path / "c")
    assert model.score(EN) > 0.5 > model.score("buy cheap shoes now, click") and model.score("") == 0
    with pytest.raises(UserError, match="no classifier"):
        classifier.Classifier.load(tmp_path / "nothing")
    with pytest.raises(UserError, match="at least two"):
        classifier.run(ClassifierConfig("train", tmp_path / "c", good=(tmp_path / "good.txt",)), said.append)
