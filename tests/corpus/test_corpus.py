from __future__ import annotations

import gzip
import itertools
import json
import random
from collections import Counter

import pytest

from jielong.config import CorpusConfig
from jielong.corpus import readers, stage
from jielong.corpus.dedup import near_duplicates, shingles, signatures
from jielong.corpus.dirt import fake_card, fake_id, plant, private_line
from jielong.corpus.documents import read_documents
from jielong.corpus.extract import main_text, normalise
from jielong.corpus.language import language
from jielong.corpus.privacy import luhn, scrub, taiwan_id
from jielong.corpus.quality import reason_to_drop
from jielong.corpus.readers import Raw, detect_encoding, read_paths
from jielong.corpus.render import render_pages
from jielong.errors import UserError
from jielong.run import Run

ZH = "法國的首都是巴黎，那裡的人說法文，也使用歐元。這座城市有許多博物館，每年都有很多人來旅行。"
EN = "The capital of France is Paris, where people speak French and pay with the euro. Many people visit it each year."


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "big5", "gb18030"])
def test_encodings(encoding, tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(ZH.encode(encoding))
    assert next(iter(read_paths((path,), Counter()))).text == ZH


def test_binary_empty_missing_and_unknown(tmp_path):
    with pytest.raises(UserError, match="binary"):
        detect_encoding(bytes(range(256)) * 9, "a.txt")
    (tmp_path / "a.txt").write_bytes(random.Random(0).randbytes(5000))
    with pytest.raises(UserError, match=r"a\.txt"):
        list(read_paths((tmp_path / "a.txt",), Counter()))
    skipped: Counter[str] = Counter()
    (tmp_path / "b.exe").write_bytes(b"x")
    assert list(read_paths((tmp_path,), skipped)) == [] and sum(skipped.values()) == 2
    with pytest.raises(UserError, match="does not exist"):
        list(read_paths((tmp_path / "nothing",), Counter()))
    (tmp_path / "b.exe").unlink()
    with pytest.raises(UserError, match="No readable text"):
        stage.run(CorpusConfig(text=(tmp_path,), default=False), Run(tmp_path / "run"))
    assert not list((tmp_path / "run").glob("*corpus*")), "a half-written artifact was left"


def test_packed_kinds(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq
    import zstandard

    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((json.dumps({"text": EN}) + "\n").encode()))
    (tmp_path / "b.md.zst").write_bytes(zstandard.compress(ZH.encode()))
    pq.write_table(pa.table({"text": [EN, ZH]}), tmp_path / "c.parquet")
    assert Counter(r.text for r in read_paths((tmp_path,), Counter())) == {EN: 2, ZH: 2}
    (tmp_path / "d.txt.gz").write_bytes(gzip.compress(EN.encode() * 500)[:-30])
    with pytest.raises(UserError, match="damaged"):
        list(read_paths((tmp_path / "d.txt.gz",), Counter()))


def test_an_endless_line_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "LONGEST_LINE", 2_000_000)
    for name in ("a.txt", "a.jsonl"):
        path = tmp_path / name
        path.write_text("word " * 900_000)
        with pytest.raises(UserError, match=rf"{name}.* is longer than 2,000,000"):
            list(read_paths((path,), Counter()))
    path = tmp_path / "b.txt"
    path.write_text(("word " * 100 + "\n") * 9000)
    assert "".join(r.text for r in read_paths((path,), Counter())) == path.read_text()


def test_a_long_line_is_cut_and_nothing_is_lost(tmp_path):
    path = tmp_path / "a.txt"
    text = "word " * 300_000
    path.write_text(text)
    parts = [r.text for r in read_paths((path,), Counter())]
    assert len(parts) > 2 and "".join(parts) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [(EN, "en"), (ZH, "zh"), ("这个国家的经济发展很快，人们的生活也变得更好了。", "other"), ("今日は天気がとても良いです。", "other"),
     ("La capitale de ce pays est une grande ville où vivent beaucoup de gens.", "other"), ("佢哋喺度做咩呀，我哋唔知㗎。", "other")],
)  # fmt: skip
def test_language(text, expected):
    assert language(text) == expected


def test_quality_keeps_good_and_drops_bad():
    assert reason_to_drop(EN, "en") is None and reason_to_drop(ZH, "zh") is None
    assert reason_to_drop("cheap shoes " * 30, "en") and reason_to_drop("便宜鞋子" * 20, "zh")
    assert reason_to_drop("Hi there", "en") == "too short"


def test_minhash_estimates_jaccard():
    words = [f"w{n} " for n in range(400)]
    a, b = "".join(words[:300]), "".join(words[60:360])
    sa, sb = set(shingles(a).tolist()), set(shingles(b).tolist())
    exact = len(sa & sb) / len(sa | sb)
    table = signatures([a, b])
    assert abs((table[0] == table[1]).mean() - exact) < 0.13
    assert near_duplicates([EN, ZH, EN[:50] + EN[51:], a, b]) == [2]


def test_private_data_is_replaced():
    rng = random.Random(1)
    for lang in ("en", "zh") * 20:
        line, secrets = private_line(lang, rng)
        clean, found = scrub(line)
        assert not [s for s in secrets if s in clean] and sum(found.values()) == 4
    assert taiwan_id("A123456789") and not taiwan_id("A123456788") and luhn("4539 1488 0343 6467")
    assert all(taiwan_id(fake_id(rng)) and luhn(fake_card(rng)) for _ in range(50))
    harmless = "In 1945 there were 2,300,000 people; version 3.11.7 and 12-04-2020."
    assert scrub(harmless)[0] == harmless


def test_main_text_of_a_rendered_page(world):
    pages = [p for p in render_pages(world, 1, 3) if p.html][:40]
    for page in pages:
        text = main_text(page.html)
        lines = page.text.split("\n")
        assert all(line in text for line in lines), text
        assert "ookie" not in text


def test_every_capital_has_a_page_that_repeats_it(world):
    pages = list(render_pages(world, 1, 3))
    for lang in ("en", "zh"):
        texts = [p.text for p in pages if p.lang == lang]
        for fact in world.facts:
            if fact.attribute == "country":
                city = fact.subject[lang]
                assert any(t.count(city) >= 3 and fact.value[lang] in t for t in texts), city


def test_normalise():
    assert normalise("a\r\nb\u200b  c\u3000d\n\n\n\ne\x00") == "a\nb c d\n\ne"


def test_planted_dirt_is_removed_and_good_text_stays(world):
    good = [Raw(p.html or p.text, "world", p.html is not None, "good") for p in render_pages(world, 1, 6)]
    raws = list(plant(good, 1))
    documents, steps, fate = stage.clean(raws, workers=2)
    result = stage.measure_dirt(raws, documents, fate)
    assert result["good"]["removed"] / result["good"]["planted"] <= 0.05
    for kind in ("spam", "exact", "near", "private data", "stuffing", "boilerplate", "foreign", "mojibake"):
        assert result[kind]["share"] >= 0.95, (kind, result[kind])
    for before, after in itertools.pairwise(steps):
        assert before.docs_out == after.docs_in


def test_result_does_not_depend_on_workers(tmp_path):
    config = CorpusConfig(variants=2, prose_chars=20_000, workers=1)
    a = stage.run(config, Run(tmp_path / "a"))
    config.workers = 2
    b = stage.run(config, Run(tmp_path / "b"))
    assert a.card["files"] == b.card["files"]
    documents = read_documents(a.file("train.parquet"))
    assert {d.lang for d in documents} == {"en", "zh"} and len({d.id for d in documents}) == len(documents)
