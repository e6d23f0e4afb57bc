"""A run that forgot is, bit for bit, the run that never had the record."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import BASE, SECRET, conversations, document, forget, press, snapshot, tune, weights

from jielong import finetune, pretrain
from jielong.changes.ledger import Ledger
from jielong.cli import main
from jielong.config import ForgetConfig
from jielong.corpus.documents import read_documents
from jielong.errors import UserError
from jielong.forget import commit
from jielong.forget.find import find
from jielong.forget.request import read_request
from jielong.run import COMMIT, FORGETTING, STALE, Run, sha256_file


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def untrained(raised: Path, tmp_path: Path) -> Run:
    """The corpus and the tokenizer alone, for a training from the start."""
    run = Run(tmp_path / "twin")
    for name in ("corpus", "tokenizer"):
        shutil.copytree(raised / name, run.path / name)
    return run


@pytest.fixture(scope="module")
def twin(raised, folder, tmp_path_factory) -> Run:
    """Trained from the start without what names the secret: neither its document nor its conversation."""
    run = untrained(raised, tmp_path_factory.mktemp("twin"))
    pretrain.run(BASE, run, drop=frozenset({document(Run(raised))}))
    ids = json.loads((raised / "sft" / "records.json").read_text())
    finetune.run(tune(folder), run, drop=frozenset({ids[17]}))
    return run


def late_record(run: Run) -> tuple[str, int]:
    """A record that training sees late, and the step."""
    found = find(run, read_request(ForgetConfig(name=(SECRET,))), "").trained["base"]
    firsts = {i: found.first_step({n}) for n, i in enumerate(found.shard.ids)}
    late = {i: s for i, s in firsts.items() if s is not None}
    record = max(late, key=lambda i: (late[i], i))
    return record, late[record]


def test_forgotten_equals_never_seen(small, twin, capsys):
    """By name: the document leaves base, the conversation leaves sft, and both are the twin's, bit for bit."""
    old = {name: weights(small.need(name)) for name in ("base", "sft")}
    assert forget(small, "--name", SECRET.upper(), "--who", "Z. Q.") == 0
    assert "never reached" not in capsys.readouterr().out
    for name in ("base", "sft"):
        new = weights(small.need(name))
        assert equal(new, weights(twin.need(name))) and not equal(new, old[name])
    entry = Ledger(small).entries()[-1]
    assert entry["word"] == "forgotten" and entry["method"] == "replay" and entry["request"]["who"] == "Z. Q."
    assert entry["records"] | {"fingerprints": 0, "characters": 0} == {
        "documents": 1, "held_out": 0, "conversations": 1, "feedback": 0, "characters": 0, "fingerprints": 0,
    }  # fmt: skip
    assert {n: t["fate"] for n, t in entry["artifacts"].items()} == {
        "corpus": "rewritten", "tokenizer": "kept", "base": "replayed", "sft": "rebuilt",
    }  # fmt: skip
    base = entry["artifacts"]["base"]
    assert base["losses_equal"] == base["losses_compared"] == base["first_seen"] - base["from_step"]
    for name in ("corpus", "tokenizer", "base", "sft"):  # every card names the parents that are there
        artifact = small.need(name)
        assert all(small.need(p).hash == h for p, h in artifact.card["parents"].items())


def test_late_record_costs_little_and_gives_equal_bits(small, raised, tmp_path):
    record, first = late_record(small)
    kept = {p.parent.name for p in (small.work("base") / "checkpoints").glob("*/state.json")}
    assert forget(small, "--record", record) == 0
    told = Ledger(small).entries()[-1]["artifacts"]["base"]
    start = max(int(n.split("-")[1]) for n in kept if int(n.split("-")[1]) <= first)
    assert (
        told["from_step"] == start > 0 and told["share_replayed"] == round((BASE.steps - start) / BASE.steps, 4) < 0.4
    )
    twin = pretrain.run(BASE, untrained(raised, tmp_path), drop=frozenset({record}))
    assert equal(weights(small.need("base")), weights(twin))


def test_two_requests_in_either_order(small, raised, tmp_path):
    other = Run(tmp_path / "runs" / "other")
    shutil.copytree(raised, other.path)
    (record, _), secret = late_record(small), document(small)
    for run, order in ((small, (record, secret)), (other, (secret, record))):
        for each in order:
            assert forget(run, "--record", each) == 0
        assert len(Ledger(run).entries()) == 2 and not Ledger(run).problems()
    twin = pretrain.run(BASE, untrained(raised, tmp_path), drop=frozenset({record, secret}))
    assert equal(weights(small.need("base")), weights(twin))
    for name in ("base", "sft"):
        assert equal(weights(small.need(name)), weights(other.need(name)))


def test_a_conversation_leaves_fine_tuning_alone(small, folder, tmp_path):
    base = weights(small.need("base"))
    ids = json.loads(small.need("sft").file("records.json").read_text())
    twin = Run(tmp_path / "twin")
    shutil.copytree(small.path, twin.path)
    shutil.rmtree(twin.path / "sft")
    shutil.rmtree(twin.work("sft"))
    finetune.run(tune(folder), twin, drop=frozenset({ids[3]}))
    (folder / "talks.jsonl").rename(folder / "away.jsonl")  # their source is not needed
    try:
        assert forget(small, "--record", ids[3]) == 0
    finally:
        (folder / "away.jsonl").rename(folder / "talks.jsonl")
    assert equal(weights(small.need("sft")), weights(twin.need("sft")))
    assert equal(weights(small.need("base")), base)
    assert Ledger(small).entries()[-1]["artifacts"]["base"]["fate"] == "kept"


def test_held_out_record_costs_nothing_but_deletion(small):
    record = read_documents(small.need("corpus").file("heldout.parquet"))[0]
    for name, text in (("thumbs", record.text), ("evaluation", "nothing of it")):
        with small.build(name, kind=name, config={}, parents=[small.need("sft")]) as build:
            (build.path / "rows.jsonl").write_text(json.dumps({"completion": text}))
    before = {n: sha256_file(small.need(n).file("model.safetensors")) for n in ("base", "sft")}
    assert forget(small, "--record", record.id) == 0
    assert {n: sha256_file(small.need(n).file("model.safetensors")) for n in before} == before
    left = read_documents(small.need("corpus").file("heldout.parquet"))
    assert record.id not in {d.id for d in left} and left
    entry = Ledger(small).entries()[-1]
    told = entry["artifacts"]
    assert told["base"]["fate"] == told["sft"]["fate"] == "kept"
    assert list(entry["stale"]) == ["thumbs"] and small.artifact("thumbs") is None  # it showed the record
    for name in ("tokenizer", "base", "sft", "evaluation"):
        artifact = small.need(name)
        assert all(small.need(p).hash == h for p, h in artifact.card["parents"].items())


def test_record_that_training_never_came_to(raised, tmp_path, capsys):
    """The plan ended before the record's turn: the weights stay, its name and its tokens go."""
    run = untrained(raised, tmp_path)
    import dataclasses

    base = pretrain.run(dataclasses.replace(BASE, steps=4), run)
    shard = json.loads((run.work("base") / "shard.json").read_text())
    with np.load(base.file("data_index.npz")) as plan:
        unseen = sorted(set(range(len(shard["ids"]))) - set(plan["record"].tolist()))
    record, before = shard["ids"][unseen[0]], sha256_file(base.file("model.safetensors"))
    with run.build("keys-base-0", kind="keys", config={}, parents=[base, run.need("corpus")]):
        pass  # counted over the whole corpus, whatever training came to
    assert forget(run, "--record", record) == 0
    assert "never reached" in capsys.readouterr().out
    base = run.need("base")
    assert sha256_file(base.file("model.safetensors")) == before
    assert record not in base.file("records.json").read_text() + (run.work("base") / "shard.json").read_text()
    entry = Ledger(run).entries()[-1]
    assert entry["artifacts"]["base"]["fate"] == "rewritten" and list(entry["stale"]) == ["keys-base-0"]


def test_kill_in_the_middle_of_the_replay(small, twin):
    """kill -9 while it trains: the run is the old one, and the same command goes on from its own checkpoint."""
    before = snapshot(small)
    code = (
        "import os, signal, sys\n"
        "from jielong.train.checkpoint import Checkpoints\n"
        "save = Checkpoints.save\n"
        "def dying(self, step, *rest):\n"
        "    save(self, step, *rest)\n"
        "    self.settle(wait=True)\n"
        "    if '.sft.work' in str(self.folder) and step >= 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "Checkpoints.save = dying\n"
        "from jielong.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", code, "forget", str(small.path), "--name", SECRET, "--yes"]
    assert subprocess.run(command, env=dict(os.environ)).returncode == -signal.SIGKILL
    assert {p: h for p, h in snapshot(small).items() if f"/{FORGETTING}/" not in p} == before
    assert small.need("base") and (small.path / FORGETTING / "base").is_dir()
    assert list((small.path / FORGETTING / ".sft.work" / "checkpoints").glob("*/state.json"))
    began = time.time_ns()
    assert forget(small, "--name", SECRET) == 0
    assert (small.path / "base" / "model.safetensors").stat().st_mtime_ns < began  # it was made before the kill
    for name in ("base", "sft"):
        assert equal(weights(small.need(name)), weights(twin.need(name)))


@pytest.mark.parametrize("again", [["--name", SECRET], []])
def test_stop_at_every_step_of_the_commit(small, twin, again, monkeypatch):
    """Whatever step the commit stops before, nothing is given out until the same command, or one without a request, ends it."""
    press(small)
    (small.path / "improve.jsonl").write_text("{}")
    (small.path / "reward-1").mkdir()
    card = json.loads((small.path / "sft" / "card.json").read_text())
    files = {"kind": "reward", "parents": {"sft": small.need("sft").hash}, "files": {}}
    (small.path / "reward-1" / "card.json").write_text(json.dumps(card | files))
    for stops, name in enumerate(("_swap", "take_away", "_remove", "withdraw", "store_of", "Ledger")):
        monkeypatch.setattr(Run if name == "withdraw" else commit, name, _stop)
        with pytest.raises(Stopped):
            forget(small, "--name", SECRET) if not stops else forget(small, *again)
        monkeypatch.undo()
        assert (small.path / FORGETTING / COMMIT).is_file()
        with pytest.raises(UserError, match="finish it"):
            small.need("base")
        for command in (["raise", "--run"], ["rollback"]):  # nor is anything made, or promoted
            assert main([*command, str(small.path)]) == 2
        (small.path / ".base.forgotten").mkdir(
            exist_ok=True
        )  # as a swap leaves it that is stopped behind its last rename
        if name == "_swap":  # and once more, in the middle of it
            monkeypatch.setattr(commit, "_swap", _stop_at(commit._swap, 3))
            with pytest.raises(Stopped):
                forget(small, *again)
            monkeypatch.undo()
    assert forget(small, *again) == 0
    assert not (small.path / FORGETTING).exists() and not list(small.path.glob(".*.forgotten"))
    assert [e["kind"] for e in Ledger(small).entries()] == ["forget"] and not Ledger(small).problems()
    for name in ("base", "sft"):
        assert equal(weights(small.need(name)), weights(twin.need(name)))
    with pytest.raises(UserError, match="taken away"):
        small.need("reward-1")


def test_stopped_between_a_note_and_the_work_folder(small):
    """What was trained from is gone as well, though the note stands already."""
    work = small.work("ppo-1")
    (work / "checkpoints").mkdir(parents=True)
    (small.path / "ppo-1").mkdir()
    (small.path / "ppo-1" / STALE).write_text(json.dumps({"why": "it came before"}))
    commit.take_away(small, "ppo-1", "it came before")
    assert not work.exists()


class Stopped(BaseException):
    pass


def _stop(*_, **__):
    raise Stopped


def _stop_at(call, number):
    left = [number]

    def stopping(*arguments):
        left[0] -= 1
        if not left[0]:
            raise Stopped
        return call(*arguments)

    return stopping


def test_work_folder_cleared_away(small, twin):
    """Without the base's work folder its plan is made again from the corpus, and the training from the start."""
    shutil.rmtree(small.work("base"))
    assert forget(small, "--name", SECRET) == 0
    assert Ledger(small).entries()[-1]["artifacts"]["base"]["from_step"] == 0
    assert equal(weights(small.need("base")), weights(twin.need("base")))


def test_audit_repeats_the_training(small, capsys):
    assert forget(small, "--name", SECRET) == 0
    assert main(["audit", str(small.path), "--verify", "--replay", "1", "--from-start"]) == 0
    told = capsys.readouterr().out
    assert "base: trained again from step 0 of 24: the same bits" in told and "sft: trained again" in told
    assert main(["audit", str(small.path), "--replay", "2"]) == 2
    assert not [p for p in small.path.iterdir() if p.name.startswith(".audit")]


def test_audit_notices(small, raised, capsys):
    assert forget(small, "--name", SECRET) == 0
    ledger = Ledger(small)
    line = ledger.path.read_text()
    ledger.path.write_text(line.replace('"word": "forgotten"', '"word": "forgiven!"'))
    assert main(["audit", str(small.path), "--verify"]) == 2
    assert "line 1 does not fit its own hash" in capsys.readouterr().err
    assert forget(small, "--record", document(small, "Ada Brook")) == 2  # nothing is added to it, and nothing done
    assert "line 1" in capsys.readouterr().err
    ledger.path.write_text(line)
    good = small.path / "base" / "model.safetensors"
    raw = bytearray(good.read_bytes())
    raw[-1] ^= 1
    good.write_bytes(bytes(raw))
    assert main(["audit", str(small.path), "--verify"]) == 2
    assert "damaged" in capsys.readouterr().err
    shutil.rmtree(small.path / "base")
    shutil.copytree(raised / "base", small.path / "base")  # somebody puts the old one back
    assert main(["audit", str(small.path), "--verify"]) == 2
    assert "put it back" in capsys.readouterr().err


def test_forgotten_feedback_takes_what_it_taught_along(small):
    press(small)
    card = json.loads((small.path / "sft" / "card.json").read_text())
    parents = {"sft": small.need("sft").hash}
    for name, kind in (("reward-1", "reward"), ("ppo-1", "ppo"), ("evaluation", "evaluation")):
        (small.path / name).mkdir()
        (small.path / name / "card.json").write_text(json.dumps(card | {"kind": kind, "parents": parents, "files": {}}))
    small.promote("ppo-1")
    assert forget(small, "--grep", "He has a golden", "--most", "1") == 0
    assert small.serving() == "sft"
    small.need("evaluation")  # made from sft alone, which stays as it is: this text is in no conversation
    for name in ("reward-1", "ppo-1"):
        assert small.artifact(name) is None
        with pytest.raises(UserError, match=f"{name} was taken away .*jielong improve"):
            small.need(name)
    assert main(["chat", "--run", str(small.path), "--model", "ppo-1"]) == 2


def test_the_same_files_do_not_bring_it_back(small, folder, capsys):
    """Corpus and fine-tuning made anew from the files that still hold it."""
    from jielong.config import CorpusConfig
    from jielong.corpus import stage as corpus

    assert forget(small, "--name", SECRET) == 0
    before = weights(small.need("sft"))
    corpus.run(CorpusConfig(text=(folder / "texts",), default=False, heldout=0.05, workers=1), small)
    assert "1 documents were forgotten by this run" in capsys.readouterr().out
    texts = [d.text for d in read_documents(small.need("corpus").file("train.parquet"))]
    assert len(texts) > 90 and not any(SECRET in t for t in texts)
    shutil.rmtree(small.work("sft"))
    sft = finetune.run(tune(folder), small)
    ids = json.loads(sft.file("records.json").read_text())
    assert len(ids) == len(conversations()) - 1 and not equal(weights(sft), before)
    Ledger(small).key.rename(folder / "key")
    with pytest.raises(UserError, match="signing key"):
        finetune.run(tune(folder), small)


def test_a_running_server_changes_to_the_model_that_forgot(small):
    from jielong.config import ServeConfig
    from jielong.serve.models import Models
    from jielong.serve.stage import load_models, renewer
    from jielong.serve.worker import Worker

    shutil.copytree(small.path / "sft", small.path / "ppo-1")
    card = json.loads((small.path / "ppo-1" / "card.json").read_text())
    parents = {"sft": small.need("sft").hash}
    (small.path / "ppo-1" / "card.json").write_text(
        json.dumps(card | {"kind": "ppo", "name": "ppo-1", "parents": parents})
    )
    assert small.served_before() is None
    small.promote("ppo-1")
    config = ServeConfig(run=small.path, precision="fp32", rows=1)
    served = load_models(config, small)
    renewed, models = renewer(config, small, served), Models(served)
    assert (
        list(models) == ["ppo-1", "sft"] and renewed("ppo-1") is None
    )  # what was served before stands beside, to compare
    assert forget(small, "--name", SECRET) == 0
    new = renewed("ppo-1")
    assert new is not None and new.engine.name == "sft" and new.engine.hash == small.need("sft").hash
    models.add(new, Worker([s.engine for s in served], 1))
    models.drop_gone()
    assert list(models) == ["sft"] and renewed("sft") is None
    assert forget(small, "--record", document(small, "Ada Cole")) == 0
    again = renewed("sft")
    assert again is not None and again.engine.hash == small.need("sft").hash != new.engine.hash


def test_checkpoints_of_an_older_version_are_passed_over(small, raised, tmp_path):
    """Their optimizer state has another form: the replay begins at the newest one that can be read, or at the start."""
    from safetensors.torch import load_file, save_file

    record, first = late_record(small)
    kept = sorted((small.work("base") / "checkpoints").glob("step-*"))
    usable = [p for p in kept if int(p.name.split("-")[1]) <= first]
    for path in usable[1:]:
        state = load_file(path / "optimizer.safetensors")
        save_file(state | {"updates": state["updates"][0].clone()}, path / "optimizer.safetensors")
    assert len(usable) > 2 and forget(small, "--record", record) == 0
    assert Ledger(small).entries()[-1]["artifacts"]["base"]["from_step"] == int(usable[0].name.split("-")[1])
    twin = pretrain.run(BASE, untrained(raised, tmp_path), drop=frozenset({record}))
    assert equal(weights(small.need("base")), weights(twin))
