"""Large corpora: duplicates over tasks, recipes and weights, engines, and the whole way to a corpus."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from crawl import WORDS, html, prose, record

from jielong.cli import main
from jielong.config import CorpusBuildConfig
from jielong.corpus import build
from jielong.corpus.build import collect, near, repeats
from jielong.corpus.build.funnel import measure
from jielong.corpus.build.mix import picked, shares
from jielong.corpus.build.recipe import Recipe, Source, load_recipe, same_corpus
from jielong.corpus.dedup import BANDS, near_duplicates, signatures
from jielong.corpus.documents import read_documents
from jielong.errors import UserError
from jielong.run import Run


def test_marks_against_a_dictionary():
    rng = random.Random(3)
    for copies in (1, 2, 4):
        tables = [
            np.array(sorted((rng.randrange(12), doc) for doc in range(rng.randrange(9))), dtype=repeats.PAIR)
            for _ in range(5)
        ]
        seen: dict[int, list[tuple[int, int]]] = {}
        for task, table in enumerate(tables):
            for key, doc in table.tolist():
                seen.setdefault(key, []).append((task, doc))
        expected = {
            (key, *place) for key, places in seen.items() if len(places) > copies for place in sorted(places)[1:]
        }
        found = {
            (key, task, doc) for task, table in enumerate(repeats.marks(tables, copies)) for key, doc in table.tolist()
        }
        assert found == expected
    assert repeats.marks([], 1) == [] and [len(m) for m in repeats.marks([np.zeros(0, repeats.PAIR)], 1)] == [0]


def variants(rng: random.Random) -> list[str]:
    """Documents and copies of them with some words changed, from nearly the same to rather different."""
    texts = []
    for _ in range(60):
        base = prose(rng).split(" ")
        texts.append(" ".join(base))
        for share in (0.0, 0.02, 0.05, 0.1, 0.3):
            if rng.random() < 0.5:
                texts.append(" ".join(rng.choice(WORDS) if rng.random() < share else w for w in base))
    rng.shuffle(texts)
    return texts


def test_near_duplicates_over_tasks_are_those_of_one_list(tmp_path):
    from datatrove.data import Document

    texts = variants(random.Random(4))
    expected = near_duplicates(texts)
    assert len(expected) > 30
    cuts = [0, 40, 41, 41, len(texts)]  # one task has a single document, one has none
    folder = str(tmp_path)
    for rank, (a, b) in enumerate(itertools.pairwise(cuts)):
        step = near.Signatures(folder)
        list(step.run((Document(t, str(n)) for n, t in enumerate(texts[a:b])), rank, 4))
    for band in range(BANDS):
        list(near.bands(folder).run(None, band, BANDS) or ())
    list(near.Compare(folder).run())
    found = [
        cuts[rank] + doc
        for rank in range(4)
        for doc in repeats.read_marks(near.get_datafolder(folder), "near", rank)["doc"].tolist()
    ]
    assert found == expected


def test_near_repeats_needs_the_whole_signature():
    a, b, c = signatures([prose(random.Random(5)), prose(random.Random(6)), prose(random.Random(5)) + " x"])
    places = {(0, 0): a, (0, 1): b, (1, 0): c}
    assert near.near_repeats([[(0, 0), (0, 1), (1, 0)]], places) == [(1, 0)]


def test_shares():
    sources = [Source("a", "", weight=3, epochs=2), Source("b", "", weight=1, epochs=4), Source("c", "", weight=1)]
    have = {"a": 300.0, "b": 50.0, "c": 1000.0}
    assert shares(sources, have, None) == {"a": 600, "b": 200, "c": 200}  # in proportion, none beyond its epochs
    assert shares(sources, have, 500) == {"a": 300, "b": 100, "c": 100}
    assert shares(sources, have, 1500) == {"a": 600, "b": 200, "c": 700}  # the capped ones give what they may
    assert shares(sources, have, 10**6) == {"a": 600, "b": 200, "c": 1000}
    plain = [Source("a", ""), Source("b", "")]
    assert shares(plain, have, None) == {"a": 300, "b": 50} and shares(plain, have, 70) == {"a": 60, "b": 10}


def test_picked():
    ids, sizes = np.arange(20, dtype=np.uint64), np.full(20, 10.0)

    def copies(tokens: float, seed: int = 1) -> list[int]:
        return picked(ids, sizes, tokens, seed).tolist()

    assert sorted(copies(100)) == [0] * 10 + [1] * 10 and copies(100) != copies(100, 2)
    assert sum(copies(450)) == 45 and set(copies(450)) == {2, 3} and copies(400) == [2] * 20 and copies(0) == [0] * 20
    rng = np.random.default_rng(1)
    sizes = rng.uniform(1, 9, 20)
    for tokens in (3.0, 40.0, 77.0, 150.0, 301.0):  # the plain rule, one document after the other
        left, expected = tokens, [0] * 20
        whole = int(tokens // sizes.sum())
        left -= whole * float(np.cumsum(sizes)[-1])
        for n in sorted(range(20), key=lambda n: hashlib.sha256(f"mix/1/{n:016x}".encode()).digest()):
            expected[n] = whole + (left >= sizes[n] / 2)
            left -= sizes[n] if left >= sizes[n] / 2 else 0
        assert copies(tokens) == expected


@pytest.mark.parametrize(
    ("text", "why"),
    [("", "no source"), ("[[source]]\nname='a'", "needs an entry 'path'"), ("x = 1", "no entry 'x'"), ("[[source]]\nname='a'\npath='b'\nweight='c'", "of type float"),
     ("[[source]]\nname='a'\npath='b'\nkind='x'", "kind 'x'"), ("[", "not valid"), ("rules = 'x'\n[[source]]\nname='a'\npath='b'", "rules must be"),
     ("[[source]]\nname='a'\npath='b'\nweight=1\n[[source]]\nname='b'\npath='b'", "every source a weight"), ("languages = 'en'", "must be a list")],
)  # fmt: skip
def test_wrong_recipes(text, why, tmp_path):
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(UserError, match=why):
        load_recipe(tmp_path / "r.toml")


def test_yaml_and_toml_say_the_same(tmp_path):
    (tmp_path / "r.toml").write_text("tokens = 5\n[duplicates]\nnear = false\n[[source]]\nname = 'a'\npath = 'b'\n")
    (tmp_path / "r.yaml").write_text("tokens: 5\nduplicates: {near: false}\nsource:\n- {name: a, path: b}\n")
    assert load_recipe(tmp_path / "r.toml") == load_recipe(tmp_path / "r.yaml")
    assert load_recipe(tmp_path / "r.toml").source[0].path == str(tmp_path.resolve() / "b")


RECIPE = """
heldout = 0.1
tasks = 4
decontaminate = ["exam.txt"]
[lists]
words = "words.txt"
addresses = "addresses.txt"
[duplicates]
line_copies = 3
[[source]]
name = "crawl"
path = "crawl"
[[source]]
name = "own"
path = "own/*.jsonl"
[[source]]
name = "code"
path = "code"
kind = "code"
"""


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    """A recipe and its files, with one of each fault."""
    folder = tmp_path_factory.mktemp("raw")
    rng = random.Random(8)
    en, zh = [prose(rng) for _ in range(40)], [prose(rng, "zh") for _ in range(30)]
    for name in ("crawl", "own", "code"):
        (folder / name).mkdir()
    for k in range(3):
        rows = [
            record(html(t), url=f"http://site{k}.example/{n}")
            for n, t in enumerate(en[k * 10 : k * 10 + 10] + zh[k * 5 : k * 5 + 5])
        ]
        rows += [record(html(prose(rng)), url="http://spam.example/"), record(b"<div>" * 3000 + html(prose(rng)))]
        data = b"".join(gzip.compress(r) for r in rows)
        (folder / "crawl" / f"{k}.warc.gz").write_bytes(data[:-40] if k == 2 else data)
    exam = prose(rng)
    line = "This very same sentence stands at the end of every page of this site."
    own = [
        *en[30:],
        *zh[15:],
        en[0],
        zh[1],
        en[31].replace("town", "city", 1),
        exam + " " + prose(rng),
        prose(rng).replace("the", "shitword"),
        "  " + en[32],
    ]
    own += [prose(rng) + "\n" + line for _ in range(6)] + [prose(rng) + " Write to anna@example.com."]
    (folder / "own" / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in own) + "broken\n")
    (folder / "exam.txt").write_text(exam)
    (folder / "words.txt").write_text("shitword\n")
    (folder / "addresses.txt").write_text("spam.example\n")
    (folder / "code" / "LICENSE").write_text(
        "Permission is hereby granted, free of charge, to any person obtaining a copy"
    )
    (folder / "code" / "a.py").write_text("def area(width, height):\n    return width * height\n\n" * 4)
    (folder / "code" / "b.py").write_text(
        "# SPDX-License-Identifier: GPL-3.0-only\n" + "def other(x):\n    return x\n" * 9
    )
    (folder / "recipe.toml").write_text(RECIPE)
    return folder


def files(run: Path) -> dict[str, str]:
    return {n: f["sha256"] for n, f in Run(run).need("corpus").card["files"].items()}


@pytest.fixture(scope="module")
def built(raw) -> Path:
    assert main(["corpus", "build", str(raw / "recipe.toml"), "--workers", "1", "--run", str(raw / "one")]) == 0
    return raw / "one"


def test_the_whole_way(raw, built):
    corpus = Run(built).need("corpus")
    documents = read_documents(corpus.file("train.parquet")) + read_documents(corpus.file("heldout.parquet"))
    steps = {s["step"]: s for s in corpus.card["metrics"]["funnel"]}
    assert steps["read"]["dropped"] == {"line N is no JSON": 1, "the file ends within a gzip member": 1}
    assert steps["addresses"]["dropped"] == {"on the list": 3}
    assert steps["licences"]["dropped"] == {"GPL-3.0": 1}
    assert steps["extract"]["dropped"] == {"tags nested too deep": 2}  # the third was cut off with the file's end
    assert steps["words"]["dropped"] == {"many listed words": 1}
    assert steps["decontaminate"]["dropped"] == {"a piece of an examination": 1}
    assert steps["exact duplicates"]["dropped"] == {"same text": 1}
    assert steps["near duplicates"]["dropped"] == {"nearly the same text": 3}
    assert steps["repeated lines"]["docs_in"] == steps["repeated lines"]["docs_out"]
    assert sum("This very same sentence" in d.text for d in documents) == 1
    assert sum("[email]" in d.text for d in documents) == 1 and not any("anna@" in d.text for d in documents)
    assert {d.lang for d in documents} == {"en", "zh", "code"} and {d.source for d in documents} == {
        "crawl",
        "own",
        "code",
    }
    order = list(steps.values())
    for before, after in itertools.pairwise(order):
        assert before["docs_out"] == after["docs_in"] and before["bytes_out"] == after["bytes_in"]
    report = json.loads(corpus.file("funnel.json").read_text())
    assert report["sources"]["crawl"]["addresses"]["docs_in"] == report["sources"]["crawl"]["addresses"]["docs_out"] + 3
    page = corpus.file("funnel.html").read_text()
    assert "45.0 TB" in page and "on the list: 3" in page and not re.search(r"<[^>]*(src|href)=|@import|url\(", page)
    assert not Run(built).work("corpus").exists()
    quarantine = [json.loads(line) for line in corpus.file("quarantine.jsonl").read_text().splitlines()]
    assert Counter(q["source"] for q in quarantine) == {"crawl": 1, "own": 1}


def test_tokenizer_reads_it(built):
    assert main(["tokenizer", "--vocab-size", "400", "--run", str(built)]) == 0
    assert main(["corpus", "build", str(built.parent / "recipe.toml"), "--run", str(built)]) == 2  # it exists


def test_tasks_and_parts_change_nothing(raw, built):
    (raw / "parts.toml").write_text(RECIPE.replace("tasks = 4", "tasks = 9\npart = 1500"))
    assert (
        main(["corpus", "build", str(raw / "parts.toml"), "--workers", "1", "--run", str(raw / "parts"), "--keep"]) == 0
    )
    plan = json.loads((raw / "parts" / ".corpus.work" / "plan.json").read_text())
    cut = [f for task in plan["inputs"]["tasks"] for f in task if f["begin"]]
    assert len(plan["inputs"]["tasks"]) == 9 and {f["source"] for f in cut} == {"crawl", "own"}
    found, expected = files(raw / "parts"), files(built)
    places = "quarantine.jsonl"  # counts from the part's beginning
    assert found.pop(places) != expected.pop(places) and found == expected


def test_a_killed_worker_changes_nothing(raw, built):
    """One worker is killed; the command itself replaces it and ends with the same bytes."""
    command = [
        sys.executable,
        "-m",
        "jielong.cli",
        "corpus",
        "build",
        str(raw / "recipe.toml"),
        "--workers",
        "2",
        "--run",
        str(raw / "two"),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    killed = False
    while process.poll() is None:
        if not killed and list((raw / "two" / ".corpus.work").glob("logs/*/completions/*")):
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            workers = [int(c) for c in children if "spawn_main" in Path(f"/proc/{c}/cmdline").read_text()]
            if workers:
                os.kill(workers[0], signal.SIGKILL)
                killed = True
        time.sleep(0.01)
    assert killed and process.returncode == 0 and files(raw / "two") == files(built)


def test_a_killed_run_continues(raw, built):
    """The whole run is killed between two stages; the same command continues and ends with the same bytes."""
    config = CorpusBuildConfig(raw / "recipe.toml", workers=1, run=raw / "three")
    calls = Counter()

    class Killed(BaseException):
        pass

    def stop_at_third(line: str) -> None:
        calls[line[:2]] += 1
        if line.startswith("5/") and calls["5/"] == 1:
            raise Killed

    from jielong.corpus.build import stage

    with pytest.raises(Killed):
        stage.run(config, Run(raw / "three"), stop_at_third)
    work = raw / "three" / ".corpus.work"
    done = work / "logs" / "read" / "completions"
    (done / "00002").unlink()  # as if it had been killed in the middle of this task
    (work / "kept" / "00002.jsonl.zst").write_bytes(b"half a file")
    untouched = (done / "00001").stat().st_mtime_ns
    config.keep = True
    stage.run(config, Run(raw / "three"), lambda line: None)
    assert files(raw / "three") == files(built)
    assert (done / "00001").stat().st_mtime_ns == untouched and (done / "00002").exists()


def test_another_recipe_does_not_continue_the_first(raw):
    work = raw / "four" / ".corpus.work"
    work.mkdir(parents=True)
    (work / "plan.json").write_text(json.dumps({"recipe": "another", "inputs": {}}))
    with pytest.raises(UserError, match="another recipe"):
        build.run(CorpusBuildConfig(raw / "recipe.toml", run=raw / "four"), Run(raw / "four"))


def test_only_the_cluster_may_differ():
    one, other, third = Recipe(), Recipe(), Recipe(seed=2)
    other.cluster.memory = 64
    assert same_corpus(one) == same_corpus(other) != same_corpus(third)


def test_nothing_left_says_why(tmp_path):
    (tmp_path / "a.txt").write_text("Zu kurz und deutsch.")
    (tmp_path / "r.toml").write_text("[[source]]\nname = 'a'\npath = 'a.txt'\n")
    assert main(["corpus", "build", str(tmp_path / "r.toml"), "--workers", "1", "--run", str(tmp_path / "run")]) == 2


def test_weights_and_epochs(raw, tmp_path):
    recipe = RECIPE.replace('name = "own"', 'name = "own"\nweight = 2\nepochs = 3').replace(
        'name = "crawl"', 'name = "crawl"\nweight = 1'
    )
    (raw / "weights.toml").write_text(recipe.replace('name = "code"', 'name = "code"\nweight = 0.001'))
    assert main(["corpus", "build", str(raw / "weights.toml"), "--workers", "1", "--run", str(tmp_path / "run")]) == 0
    corpus = Run(tmp_path / "run").need("corpus")
    documents, held = (read_documents(corpus.file(f"{name}.parquet")) for name in ("train", "heldout"))
    assert "own" in {d.source for d in held} and not any("#" in d.id for d in held)
    assert not {d.id for d in held} & {d.id.partition("#")[0] for d in documents}
    assert len({d.id for d in documents}) == len(documents) and any("#3" in d.id for d in documents)
    tokens = Counter()
    for d in documents:
        tokens[d.source] += measure(d.text)[3]
    assert 1.6 < tokens["own"] / tokens["crawl"] < 2.4


MEMORY = """
import sys
from jielong.config import CorpusBuildConfig
from jielong.corpus import documents
from jielong.corpus.build import collect
from jielong.corpus.build.recipe import Recipe, Source
from jielong.run import peak_memory, reset_peak_memory
folder, run, held = sys.argv[1], sys.argv[2], int(sys.argv[3])
collect.HELD = documents.GROUP = held
step = collect.Collect(folder, CorpusBuildConfig(folder, run=run), Recipe([Source("own", "")], heldout=0.1), 3, [], [])
from pyarrow import parquet  # what is loaded only in use
reset_peak_memory()
before = peak_memory()
list(step.run())
print(peak_memory() - before)
"""


def test_the_last_step_needs_no_memory_for_the_corpus(tmp_path):
    """36 MB of text by way of parts and row groups of 1 MB; held at once they need 180 MB, so 70 to 115."""
    from datatrove.data import Document

    from jielong.corpus.build.read import Store

    rng = random.Random(9)
    expected = []
    for rank in range(3):
        with Store(str(tmp_path / "clean")) as store:
            for _ in range(300):
                made = Document(rng.randbytes(20_000).hex(), f"{rng.getrandbits(64):016x}")
                made.metadata = {"source": "own", "lang": "en"}
                store.write(made, rank=rank)
                expected.append((made.id, hash(made.text)))
    command = [sys.executable, "-c", MEMORY, str(tmp_path), str(tmp_path / "run"), str(10**6)]
    environment = os.environ | {"ARROW_DEFAULT_MEMORY_POOL": "system"}  # its own keeps what was freed
    used = int(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)
    corpus = Run(tmp_path / "run").need("corpus")
    train, held = (read_documents(corpus.file(f"{name}.parquet")) for name in ("train", "heldout"))
    assert [d.id for d in train] == sorted(d.id for d in train) and 40 < len(held) < 160
    assert sorted((d.id, hash(d.text)) for d in train + held) == sorted(expected)
    assert used < 140e6, used


def test_documents_by_id_over_several_levels_of_parts(tmp_path, monkeypatch):
    from datatrove.data import Document

    monkeypatch.setattr(collect, "BITS", 1)
    monkeypatch.setattr(collect, "WAYS", 2)
    monkeypatch.setattr(collect, "HELD", 40)
    ids = [f"{random.Random(n).getrandbits(64):016x}" for n in range(60)] + ["0" * 16, "0" * 15 + "1", "f" * 16] * 2
    documents = [Document(f"text {n} 中文", i, metadata={"lang": "en"}) for n, i in enumerate(ids)]
    for held in (40, 10**6):
        monkeypatch.setattr(collect, "HELD", held)
        found = [(d.id, d.text) for d in collect.by_id(lambda: iter(documents), 700, str(tmp_path / "parts"))]
        assert found == sorted(((d.id, d.text) for d in documents), key=lambda row: row[0])
        assert not list(tmp_path.rglob("*.zst"))
