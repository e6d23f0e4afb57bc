"""What a run has forgotten does not come back by another making of its corpus or by a new pretraining."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
from small_runs import BASE, SECRET, people

from jielong import pretrain
from jielong.changes.forgotten import forgotten
from jielong.changes.ledger import Ledger
from jielong.cli import main
from jielong.corpus.documents import read_documents
from jielong.run import FORGETTING, Run
from jielong.tokens.chat import spell
from jielong.tokens.shards import read_shard
from jielong.tokens.tokenizer import Tokenizer


def test_pretraining_leaves_forgotten_lessons_out(raised, tmp_path):
    """A lesson that was forgotten is in no later plan of the same run; the others keep their names."""
    run = Run(tmp_path / "runs" / "again")
    for name in ("corpus", "tokenizer"):
        shutil.copytree(raised / name, run.path / name)
    settings = dataclasses.replace(BASE, steps=2, lessons=6)
    tokenizer = Tokenizer.load(run.need("tokenizer").file("tokenizer.json"))
    pretrain.run(settings, run)
    shard = read_shard(run.work("base"))
    number = shard.ids.index("lesson-3")
    told = spell(tokenizer, shard.tokens[shard.starts[number] : shard.starts[number + 1]].tolist())
    assert main(["forget", str(run.path), "--record", "lesson-3", "--yes"]) == 0
    assert forgotten(run)(told) and forgotten(Run(run.path / FORGETTING))(told)
    shutil.rmtree(run.path / "base")
    shutil.rmtree(run.work("base"))
    pretrain.run(settings, run)
    again = read_shard(run.work("base"))
    assert [i for i in again.ids if i.startswith("lesson-")] == [f"lesson-{n}" for n in (0, 1, 2, 4, 5)]
    texts = [spell(tokenizer, again.tokens[a:b].tolist()) for a, b in zip(again.starts, again.starts[1:])]
    assert told not in texts and len(again) == len(shard) - 1


def test_pretraining_leaves_forgotten_documents_out(small):
    """Also where somebody put an older corpus back."""
    kept = small.path.parent / "corpus"
    shutil.copytree(small.path / "corpus", kept)
    assert main(["forget", str(small.path), "--name", SECRET, "--yes"]) == 0
    shutil.rmtree(small.path / "corpus")
    shutil.copytree(kept, small.path / "corpus")
    for name in ("base", "sft"):
        shutil.rmtree(small.path / name)
        shutil.rmtree(small.work(name))
    pretrain.run(dataclasses.replace(BASE, steps=1), small)
    gone = [d.id for d in read_documents(small.need("corpus").file("train.parquet")) if SECRET in d.text]
    assert gone and not set(gone) & set(read_shard(small.work("base")).ids)


def test_corpus_build_leaves_forgotten_documents_out(tmp_path, capsys):
    """By their ids and, in another wrapping, by their text; no example in the report shows them."""
    pytest.importorskip("datatrove")
    folder = tmp_path / "raw"
    folder.mkdir()
    texts = [t.replace(". ", ".\n", 1) for t in people()[-30:]]
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    recipe = folder / "recipe.toml"
    recipe.write_text('rules = "none"\nheldout = 0.0\n[[source]]\nname = "own"\npath = "a.jsonl"\n')
    run = Run(tmp_path / "runs" / "large")
    assert main(["corpus", "build", str(recipe), "--workers", "1", "--run", str(run.path)]) == 0
    count = len(read_documents(run.need("corpus").file("train.parquet")))
    assert main(["forget", str(run.path), "--name", SECRET, "--yes"]) == 0
    assert Ledger(run).entries()[0]["records"]["documents"] == 1
    shutil.rmtree(run.path / "corpus")
    (folder / "a.jsonl").write_text(
        "".join(json.dumps({"text": f"  {t}\n" if SECRET in t else t}) + "\n" for t in [*texts, texts[-1]])
    )
    assert main(["corpus", "build", str(recipe), "--workers", "1", "--run", str(run.path)]) == 0
    corpus = run.need("corpus")
    documents = read_documents(corpus.file("train.parquet"))
    assert len(documents) == count - 1 and not any(SECRET in d.text for d in documents)
    assert corpus.card["passed_over"] >= 1
    assert not any("Quibbleworth" in p.read_text() for p in corpus.path.glob("*.json*"))
    assert "Quibbleworth" not in corpus.file("funnel.html").read_text()
    capsys.readouterr()
