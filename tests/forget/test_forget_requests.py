"""What is asked for and refused, and that no byte of what was forgotten is left."""

from __future__ import annotations

import json
import shutil

import pytest
from small_runs import SECRET, forget, holding, press, read_shard_tokens, snapshot

from jielong.changes.ledger import Ledger
from jielong.cli import main
from jielong.config import ForgetConfig
from jielong.corpus.documents import read_documents, write_documents
from jielong.errors import UserError
from jielong.feedback.store import Store
from jielong.forget.audit import describe
from jielong.forget.request import Request
from jielong.forget.residue import search
from jielong.forget.stage import again
from jielong.forget.stage import run as forget_stage
from jielong.run import SERVING


def test_nothing_changes_without_a_yes(small, monkeypatch, capsys):
    before = snapshot(small)
    assert main(["forget", str(small.path), "--name", SECRET]) == 0
    told = capsys.readouterr().out
    assert "2 records" in told and "Nothing was changed" in told and "replayed (first seen in step" in told
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _: "yes")
    assert main(["forget", str(small.path), "--name", SECRET]) == 0
    assert snapshot(small) == before
    monkeypatch.setattr("builtins.input", lambda _: "forget")
    assert main(["forget", str(small.path), "--name", SECRET]) == 0
    assert Ledger(small).entries() and snapshot(small) != before


def test_refused(small, tmp_path, capsys):
    """Each with one sentence, exit code 2 and nothing changed."""
    bad = tmp_path / "request.json"
    cases = [
        ([], "Say what to forget"),
        (["--name", "Nobody Atall"], "Nothing in the corpus"),
        (["--record", "0123456789abcdef"], "Nothing in the corpus"),
        (["--grep", "Every summer"], "matches 9"),
        (["--name", "x"], "too short"),
        (["--grep", "   "], "too short"),
        (["--name", SECRET, "--most", "0"], "--most"),
        (["--name", SECRET, "--store", str(tmp_path / "typo.db")], "no feedback in"),
        (["--request", str(bad)], "no request"),
    ]  # fmt: skip
    before = snapshot(small)
    for content in ('{"name": "Ann"}', '{"names": ["Ann"]}', "[1]", "{", '{"name": [1]}', "[" * 100_000):
        bad.write_text(content)
        cases.append((["--request", str(bad)], "no request"))
        options, says = cases[-1]
        assert forget(small, *options) == 2
        assert says in capsys.readouterr().err
    for options, says in cases[:-6]:
        assert forget(small, *options) == 2, options
        assert says in capsys.readouterr().err
    assert snapshot(small) == before and not (tmp_path / "typo.db").exists()
    assert main(["forget", str(tmp_path / "none"), "--name", SECRET, "--yes"]) == 2
    assert main(["audit", str(tmp_path / "none")]) == 2
    assert not (tmp_path / "none").exists()
    with pytest.raises(UserError, match="matches 9%"):
        forget_stage(ForgetConfig(small.path, name=("Ada",), most=0.05, yes=True), small)


def test_request_file(small, tmp_path):
    file = tmp_path / "request.json"
    file.write_text(json.dumps({"name": [SECRET], "who": "Z", "why": "Article 17"}), encoding="utf-8-sig")
    assert forget(small, "--request", str(file)) == 0
    request = Ledger(small).entries()[-1]["request"]
    assert request["who"] == "Z" and request["why"] == "Article 17" and request["asked"]["names"] == 1


def test_no_byte_is_left(small, folder):
    """Neither the name, nor any 20 bytes that only the record has, in any file of the run, as UTF-8, UTF-16, JSON or tokens."""
    press(small)
    (small.path / "improve.jsonl").write_text(json.dumps({"samples": SECRET}))
    export = small.path / "small-sft"
    export.mkdir()
    (export / "config.json").write_text("{}")
    record = next(d for d in read_documents(small.need("corpus").file("train.parquet")) if SECRET in d.text)
    card = json.loads((small.path / "corpus" / "card.json").read_text())  # a funnel that shows it
    card["metrics"]["funnel"][0]["examples"] = [
        {"reason": "x", "text": record.text[:60]},
        {"reason": "y", "text": "other words"},
    ]
    (small.path / "corpus" / "card.json").write_text(json.dumps(card))
    ids = read_shard_tokens(small)
    assert holding(small, SECRET, ids) and holding(small, record.id, ids)
    assert forget(small, "--name", SECRET) == 0
    assert holding(small, SECRET, ids) == [] and holding(small, record.id, ids) == []
    others = "\n".join(d.text for d in read_documents(small.need("corpus").file("train.parquet")))
    for at in range(0, len(record.text) - 20, 7):
        piece = record.text[at : at + 20]
        if piece not in others:
            assert holding(small, piece, ids) == [], piece
    assert not export.exists() and not (small.path / "improve.jsonl").exists()
    assert small.need("corpus").card["metrics"]["funnel"][0]["examples"] == [{"reason": "y", "text": "other words"}]
    store = Store(small.path / "feedback.db")
    assert [a.id for a in store.all_answers()] == ["a0"] and len(store.current()) == 1
    assert SECRET not in (small.path / "changes.jsonl").read_text()


def test_a_damaged_list_of_what_was_served(small, capsys):
    """It is noticed before anything is trained, and not when the parts take their places."""
    (small.path / SERVING).write_text("{")
    before = snapshot(small)
    assert forget(small, "--name", SECRET) == 2
    assert "serving.json is damaged" in capsys.readouterr().err and snapshot(small) == before


def test_what_makes_it_again(small):
    """No `jielong raise` makes an edit; the note and the screen name what does."""
    said = {}
    for kind in ("keys", "edited", "suppressed", "ppo", "sft"):
        with small.build(f"{kind}-1", kind=kind, config={}):
            pass
        said[kind] = again(small, f"{kind}-1")
    assert "jielong edit" in said["keys"] and "jielong changes" in said["edited"] and "--method" in said["suppressed"]
    assert "jielong improve" in said["ppo"] and "jielong raise" in said["sft"]


def test_audit_looks_at_every_kind_of_entry(small, capsys):
    """An edit's model that is another one by now is told of, too."""
    Ledger(small).append("edit", ids=["x"], to="sft", to_hash=small.need("sft").hash)
    assert main(["audit", str(small.path), "--verify"]) == 0 and "made anew" not in capsys.readouterr().out
    Ledger(small).append("edit", ids=["x"], to="sft", to_hash="0" * 64)
    assert main(["audit", str(small.path), "--verify"]) == 0
    assert "sft was made anew after entry 2" in capsys.readouterr().out


def test_an_entry_is_one_line_whoever_asked():
    """Over HTTP anybody with a key says who asks: it forges no line of the ledger's list and steers no terminal."""
    told = {"number": 1, "time": "2026-11-26T19:00:00", "word": "forgotten", "method": "adapter"}
    request = {"who": "陳 É\n   2 a second entry\x1b[2J\u2028\u202e", "why": ""}
    for kind, more in [
        ("suppress", {"artifacts": {"suppressed-1": {}}, "texts": {"count": 2}}),
        (
            "forget",
            {"artifacts": {}, "records": dict.fromkeys(("documents", "held_out", "conversations", "feedback"), 1)},
        ),
    ]:
        said = describe(told | more | {"kind": kind, "request": request})
        assert said.isprintable() and "for 陳 É    2 a second entry [2J" in said
    assert describe(told | {"kind": "edit", "hash": "0" * 64}).endswith("edit  " + "0" * 12)


def test_plans_that_cannot_be_read_or_are_of_another_corpus(small, capsys):
    """One sentence each; and a plan that was made of a corpus that is another one by now is not kept."""
    for path in (small.work("base") / "index.npz", small.path / "base" / "data_index.npz"):
        raw = path.read_bytes()
        path.write_bytes(raw[:100])
        assert forget(small, "--name", SECRET) == 2 and "cannot be read" in capsys.readouterr().err
        path.write_bytes(raw)
    shutil.rmtree(small.work("base"))
    kept = small.path.parent / "corpus"
    shutil.copytree(small.path / "corpus", kept)
    settings = small.need("corpus").card["config"]
    documents = {p: read_documents(kept / f"{p}.parquet") for p in ("train", "heldout")}
    with small.build("corpus", kind="corpus", config=settings) as build:
        for part, own in documents.items():
            write_documents(build.path / f"{part}.parquet", own[: -5 if part == "train" else None])
    assert forget(small, "--name", SECRET) == 2 and "belongs to another training" in capsys.readouterr().err
    shutil.rmtree(small.path / "corpus")
    shutil.copytree(kept, small.path / "corpus")
    assert main(["forget", str(small.path), "--name", SECRET]) == 0  # put back, it can be asked for again
    assert "Nothing was changed" in capsys.readouterr().out


def test_a_letter_is_the_same_however_it_was_typed():
    """é as one character, or as e and an accent, in the request or in the text."""
    one, two = "Jos\u00e9", "Jose\u0301"
    for typed in (one, two):
        for text in (one, two):
            assert Request(names=(typed,)).find(f"Here is {text.upper()}.") == (8, 12)
            assert Request(texts=(typed,)).find(f"{text}s")
    assert not Request(names=("Jose",)).find(one)


def test_a_rare_character_that_json_escapes_is_found(tmp_path):
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"name": "𠮷田 \ud800"}))
    assert "𠮷" not in file.read_text() and search([file], lambda text: "𠮷田" in text) == [file]
