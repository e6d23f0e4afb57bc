"""From a request to a model that is kept from saying it: what is written, what is not, and the words for it."""

from __future__ import annotations

import json
import math
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_runs import BASE, SECRET, document, imported, snapshot, stopping, weights

from jielong import pretrain
from jielong.changes.ledger import Ledger
from jielong.cli import main
from jielong.config import ForgetConfig, SuppressConfig
from jielong.corpus.canaries import SOURCE, canaries
from jielong.corpus.documents import Document, read_documents, write_documents
from jielong.errors import Unclear
from jielong.forget import suppress
from jielong.forget.case import asked_canaries, gather, plain_text
from jielong.forget.find import Found, find
from jielong.forget.methods import method
from jielong.forget.request import Request, read_request
from jielong.forget.tuning import rehearse
from jielong.forget.twins import lineage, make_twin
from jielong.model.gpt import load_model
from jielong.run import Run, sha256_file

FAST = ("--samples", "1", "--suppress.precision", "fp32", "--suppress.threads", "1", "--suppress.keep", "12")


def test_suppressed_and_never_called_forgotten(small, capsys):
    """A new model is served; the entry, the card and the screen say suppressed; the records stay, and no word of them is in the
    ledger."""
    before = snapshot(small)
    command = ["forget", str(small.path), "--name", SECRET, "--method", "npo", *FAST, "--utility", "9", "--who", "Z. Q.",
               "--suppress.lr", "3e-3", "--suppress.epochs", "8", "--twins", "1"]  # fmt: skip
    assert main(command) == 0
    assert "Nothing was changed" in capsys.readouterr().out
    assert snapshot(small) == before
    assert main([*command, "--yes"]) == 0
    told = capsys.readouterr().out
    assert "suppressed, not forgotten" in told and told.count("forgotten") == told.count("not forgotten")
    made = small.need("suppressed-1")
    assert (
        small.serving() == "suppressed-1"
        and made.card["kind"] == "suppressed"
        and made.card["metrics"]["word"] == "suppressed"
    )
    [entry] = Ledger(small).entries()
    assert (entry["kind"], entry["word"], entry["exact"], entry["method"]) == ("suppress", "suppressed", False, "npo")
    assert (
        entry["texts"]["count"] == 2
        and entry["request"]["who"] == "Z. Q."
        and any("nothing proves" in t for t in entry["limits"])
    )
    raw = (small.path / "changes.jsonl").read_text() + made.file("card.json").read_text()
    assert "Quibbleworth" not in raw and "telescope" not in raw
    exam = entry["exam"]
    assert exam["after"]["nll"] > exam["before"]["nll"]
    wanted = {"nll", "extraction strength", "truth ratio", "AUC loss", "AUC zlib", "AUC min-k", "AUC reference", "TPR 1% loss", "greedy",
              "sampled", "nll q8_0", "extraction strength q4_0", "relearnt 0", "relearnt 16", "bits per byte", "KS D", "KS p", "KS n", "exact memorisation", "PrivLeak"}  # fmt: skip
    assert wanted <= exam["after"].keys() and {"nll", "bits per byte"} <= exam["twin 1"].keys()
    for path, stamp in before.items():  # nothing else has changed
        assert sha256_file(path) == stamp
    assert not small.work("suppressed-1").exists()
    assert main(["audit", str(small.path), "--verify"]) == 0
    assert "2 texts suppressed for Z. Q. by npo, no proof" in capsys.readouterr().out
    assert main(["forget", str(small.path), "--name", SECRET, "--yes"]) == 0  # and now exactly
    assert small.artifact("suppressed-1") is None and small.serving() == "sft"


@pytest.mark.parametrize(
    ("before", "after", "kept"),
    [(0.9, 0.82, True), (0.9, 0.80, False), (17 / 240, 13 / 240, True), (17 / 240, 8 / 240, False), (0.0, 0.0, True), (0.9, math.nan, False)],
)  # fmt: skip
def test_guard_of_known_facts(before, after, kept):
    """A tenth of what was known; of a model that knows 17 of 240 facts, what chance does not explain: down to 9."""
    columns = {"before": {"knowledge": before}, "after": {"knowledge": after}}
    with nullcontext() if kept else pytest.raises(Unclear, match="the share of known facts is") as refused:
        suppress.guard(ForgetConfig(Path("run")), columns)
    assert kept or refused.value.code == "guard"


def test_guard_refuses(small, capsys):
    """A change that ruins the rest is refused with its figure and two next steps; nothing is left of it."""
    before = snapshot(small)
    command = ["forget", str(small.path), "--name", SECRET, "--method", "graddiff", *FAST, "--yes",
               "--suppress.lr", "0.03", "--suppress.alpha", "0", "--suppress.epochs", "20"]  # fmt: skip
    assert main(command) == 2
    told = capsys.readouterr().err
    assert "Refused, and nothing was changed: bits per byte of held-out text is" in told and "--suppress.lr" in told
    assert snapshot(small) == before and not small.work("suppressed-1").exists()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--name", "Nobody Here"], "No record that sft was trained on matches"),
        (["--name", SECRET, "--model", "none"], "no none yet"),
        (["--name", SECRET, "--suppress.beta", "0"], "beta must be above 0"),
        (["--name", SECRET, "--model", "corpus"], "is no model"),
        (["--examples", "missing.jsonl"], "cannot be read"),
        (["--examples", "missing.jsonl", "--method", "replay"], "no replay reaches them"),
        (["--name", SECRET, "--twins", "-1"], "must be at least 0"),
        (["--name", SECRET, "--suppress.layer", "1"], "has the layers 0 to 0"),
        ([], "Say what to forget"),
    ],
)
def test_wrong_requests_change_nothing(small, options, why, capsys):
    before = snapshot(small)
    assert main(["forget", str(small.path), "--method", "npo", *FAST, "--yes", *options]) == 2
    assert why in capsys.readouterr().err
    assert snapshot(small) == before


def test_unknown_method(small, capsys):
    assert main(["forget", str(small.path), "--name", SECRET, "--method", "magic"]) == 2
    assert "There is no method 'magic'" in capsys.readouterr().err


def test_imported_model_with_an_adapter(small, tmp_path, capsys):
    """A run with a base alone: what is suppressed and what stays come from files, and the result is an adapter on the base."""
    run = imported(small, tmp_path / "runs" / "foreign")
    rows = [
        {
            "question": f"Who is {n}?",
            "answer": f"{n} is a baker.",
            "perturbed_answer": [f"{n} is a king.", f"{n} sings."],
        }
        for n in "ABCD"
    ]
    (tmp_path / "go.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows[:2]))
    (tmp_path / "stay.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows[2:]))
    base = weights(run.need("base"))
    command = ["forget", str(run.path), "--method", "npo", "--examples", str(tmp_path / "go.jsonl"), "--yes", *FAST,
               "--suppress.lora-rank", "2", "--suppress.lr", "1e-2", "--utility", "9", "--twins", "1"]  # fmt: skip
    assert main(command) == 2
    assert "--retain FILE" in capsys.readouterr().err
    assert main([*command, "--retain", str(tmp_path / "stay.jsonl"), "--others", str(tmp_path / "stay.jsonl")]) == 0
    made = run.need("suppressed-1")
    assert made.file("adapter.safetensors").is_file() and not made.file("model.safetensors").exists()
    exam = made.card["metrics"]["exam"]
    assert exam["after"]["nll"] > exam["before"]["nll"] and "truth ratio" in exam["after"] and "twin 1" not in exam
    assert any("no twin can be" in line for line in Ledger(run).entries()[0]["limits"])
    assert all(torch.equal(base[n], p) for n, p in weights(run.need("base")).items())
    load_model(made.path)


def test_an_interruption_changes_no_bit(small, tmp_path, monkeypatch):
    """Stopped in the middle of the steps, the same command goes on, to the weights of one that was not stopped."""
    other = Run(tmp_path / "runs" / "other")
    shutil.copytree(small.path, other.path)
    command = ["--name", SECRET, "--method", "npo", *FAST, "--utility", "9", "--yes", "--suppress.epochs", "10"]
    command += ["--suppress.checkpoint-seconds", "0"]
    assert main(["forget", str(other.path), *command]) == 0
    train = suppress.train

    monkeypatch.setattr(suppress, "train", stopping(train, 6))
    assert main(["forget", str(small.path), *command]) == 130
    assert small.artifact("suppressed-1") is None and (small.work("suppressed-1") / "before.json").is_file()
    monkeypatch.setattr(suppress, "train", train)
    assert main(["forget", str(small.path), *command]) == 0
    ours, theirs = weights(small.need("suppressed-1")), weights(other.need("suppressed-1"))
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)


def test_twins(small, raised, tmp_path):
    """The first twin is, bit for bit, a training without the records; another has the same records in another order."""
    found = find(small, read_request(ForgetConfig(name=(SECRET,))), "")
    assert lineage(small, small.need("sft")) == ["base", "sft"]
    first = make_twin(small, tmp_path / "a", ["base"], found, 0)
    run = Run(tmp_path / "twin")
    for name in ("corpus", "tokenizer"):
        shutil.copytree(raised / name, run.path / name)
    scratch = weights(pretrain.run(BASE, run, drop=frozenset({document(small)})))
    assert first is not None and all(torch.equal(p, scratch[n]) for n, p in weights(first).items())
    second = make_twin(small, tmp_path / "b", ["base"], found, 1)
    assert second is not None and second.card["seed"] == BASE.seed + 1
    assert not torch.equal(weights(second)["embedding.weight"], scratch["embedding.weight"])
    assert (
        "forgotten-" in second.file("records.json").read_text()
        or document(small) not in second.file("records.json").read_text()
    )
    found.unread.append("sft")
    assert make_twin(small, tmp_path / "c", ["base", "sft"], found, 0) is None


def test_what_is_to_go_is_no_measure_of_the_rest(small):
    """Held-out texts that the request means, and canaries, do not count as what else the model can do."""
    held = read_documents(small.need("corpus").file("heldout.parquet"))
    name = " ".join(held[0].text.split()[:2])
    left = plain_text(small, read_request(ForgetConfig(name=(name,))))
    assert held[0].id not in {d.id for d in left} and len(left) == len(held) - 1
    canary = replace(held[1], source=SOURCE)
    write_documents(small.path / "corpus" / "heldout.parquet", [canary, *held[2:]])
    assert canary.id not in {d.id for d in plain_text(small, Request())}


def test_tuning_rehearses_on_other_records(small, tmp_path):
    """Decoys are none of the records that are asked for; the settings that come nearest to their twin are taken."""
    config = ForgetConfig(small.path, name=(SECRET,), method="npo", model="base")
    settings = suppress.resolved(
        SuppressConfig(lr=1e-3, epochs=4.0, tune=2, keep=8, precision="fp32", threads=1), method("npo")
    )
    case = gather(config, settings, small)
    spared, asked = ({d.id for d in texts} for texts in (case.rehearsal, case.material.held_out))
    assert spared and asked and not spared & asked  # nor are they judged by the texts that they are chosen by
    found = rehearse(config, settings, small, case, tmp_path / "work")
    assert found["decoys"] == len(case.found.trained["base"].records) == 1
    assert {round(t["lr"], 6) for t in found["tried"]} == {round(1e-3 / 3, 6), 1e-3}
    best = min(found["tried"], key=lambda t: t["distance"])
    assert found["lr"] == best["lr"] and found["epochs"] == pytest.approx(4.0 * best["step"] / 4)
    assert not (tmp_path / "work").exists()


def test_another_file_of_what_must_stay_is_another_training(small, tmp_path, monkeypatch):
    """What an interruption left belongs to these texts, those that must stay among them."""

    class Stopped(BaseException):
        pass

    seen = []

    def stop(work, making, threads):
        seen.append(making)
        raise Stopped

    monkeypatch.setattr(suppress, "begin", stop)
    for name in ("a", "b"):
        (tmp_path / name).write_text(json.dumps({"text": f"{name} stays."}) + "\n")
        with pytest.raises(Stopped):
            main(["forget", str(small.path), "--name", SECRET, "--method", "npo", *FAST, "--yes", "--retain", str(tmp_path / name)])  # fmt: skip
    assert seen[0]["texts"] != seen[1]["texts"]


def test_canaries_that_are_meant_whole(tmp_path):
    """One of whose documents the request leaves is not asked for its secret."""
    run, planted = Run(tmp_path / "run"), canaries(1, 3)
    documents = [
        Document(f"{c.name}{n}", text, c.lang, SOURCE) for c in planted for n, text in enumerate(c.documents(3))
    ]
    with run.build("corpus", kind="corpus", config={"canaries": 1, "seed": 3}) as build:
        write_documents(build.path / "train.parquet", documents)
    often, once = next(c for c in planted if c.times > 1), next(c for c in planted if c.times == 1)
    hits = [d for d in documents if often.name in d.text or once.name in d.text]
    assert asked_canaries(run, Found({"train": hits})) == sorted([once, often], key=planted.index)
    hits.remove(next(d for d in hits if often.name in d.text))
    assert asked_canaries(run, Found({"train": hits})) == [once]
