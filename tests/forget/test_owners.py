"""Owners' adapters: each leaves no trace in the sum when it is left out."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from small_runs import SECRET, snapshot, teach

from jielong.changes.ledger import Ledger
from jielong.cli import main
from jielong.errors import UserError
from jielong.forget import commit
from jielong.model.gpt import load_state
from jielong.run import FORGETTING, Run


def test_the_sum_is_the_base_and_every_adapter(shared):
    """W + Σ scale · B A, and the base as it was."""
    from safetensors.torch import load_file

    assert shared.serving() == "owners"
    base, whole = load_state(shared.path / "base"), load_state(shared.path / "owners")
    moved = 0
    for name, weight in base.items():
        expected = weight.double()
        for owner in ("owner-ann", "owner-ben"):
            parts = load_file(shared.need(owner).file("adapter.safetensors"))
            scale = json.loads(shared.need(owner).file("adapter.json").read_text())["scale"]
            stem = name.removesuffix(".weight")
            if f"{stem}.lora.a" in parts:
                expected = expected + scale * (parts[f"{stem}.lora.b"].double() @ parts[f"{stem}.lora.a"].double())
        assert torch.allclose(whole[name].double(), expected, atol=1e-6)
        moved += not torch.equal(whole[name], weight)
    assert moved


def test_an_owner_who_left_was_never_there(shared, taught, tmp_path, capsys):
    """Bit-equal to a run in which only the other one ever taught; nothing of the conversations is left; the last one leaves the base."""
    alone = Run(tmp_path / "runs" / "alone")
    for name in ("corpus", "tokenizer", "base"):
        shutil.copytree(taught[0].path / name, alone.path / name)
    assert teach(alone, tmp_path, "ben", "He keeps bees in Elgin.") == 0
    assert main(["forget", str(shared.path), "--owner", "ann"]) == 0
    assert shared.artifact("owner-ann") is not None  # only shown
    assert main(["forget", str(shared.path), "--owner", "ann", "--who", "Ann", "--yes"]) == 0
    ours, theirs = load_state(shared.path / "owners"), load_state(alone.path / "owners")
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)
    assert not list(shared.path.glob("*ann*")) and not list(shared.path.glob(".*ann*"))
    [entry] = Ledger(shared).entries()
    assert entry["word"] == "forgotten" and entry["exact"] and "ann" not in json.dumps(entry["artifacts"])
    assert shared.need("owners").card["metrics"]["owners"] == 1 and shared.serving() == "owners"
    assert main(["audit", str(shared.path), "--verify"]) == 0
    assert "an owner forgotten by leaving the adapter out" in capsys.readouterr().out
    assert main(["forget", str(shared.path), "--owner", "ben", "--yes"]) == 0
    assert shared.artifact("owners") is None and shared.serving() == "base"


class Stopped(BaseException):
    pass


def test_stopped_while_an_owner_leaves(shared, monkeypatch):
    """Whatever step it stops before, nothing is given out until the same command ends it: one entry, and no byte of the owner."""

    def stop(*_, **__):
        raise Stopped

    command = ["forget", str(shared.path), "--owner", "ann", "--yes"]
    assert shared.work("owner-ann").is_dir()
    for name in ("_swap", "_remove", "Ledger"):
        with monkeypatch.context() as patch:
            patch.setattr(commit, name, stop)
            with pytest.raises(Stopped):
                main(command)
        with pytest.raises(UserError, match="finish it"):
            shared.need("base")
    assert main(command) == 0
    assert not list(shared.path.glob("*ann*")) and not list(shared.path.glob(".*ann*"))
    assert not (shared.path / FORGETTING).exists()
    [entry] = Ledger(shared).entries()
    assert entry["kind"] == "owner" and shared.need("owners").hash == entry["artifacts"]["owners"]["after"]
    assert main(command) == 2  # there is no such owner any more


def test_a_record_leaves_an_owners_adapter(shared):
    """Exact forgetting by name reaches what an owner taught, and the sum with it."""
    before = load_state(shared.path / "owners")
    assert main(["forget", str(shared.path), "--name", SECRET, "--most", "1", "--yes"]) == 0
    told = Ledger(shared).entries()[-1]["artifacts"]
    assert {n: t["fate"] for n, t in told.items() if n.startswith("own")} == {
        "owner-ann": "rebuilt", "owner-ben": "rebuilt", "owners": "rebuilt",
    }  # fmt: skip
    after = load_state(shared.path / "owners")
    assert shared.serving() == "owners" and not all(torch.equal(before[n], p) for n, p in after.items())
    left = json.loads(shared.need("owner-ann").file("records.json").read_text())
    assert all(i.startswith("forgotten-") for i in left)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["owner", "--name", "a b"], "is no name for an owner"),
        (["owner", "--name", "cid"], "needs conversations"),
        (["owner", "--name", "ann", "--finetune.conversations", "x"], "exists"),
        (["forget", "--owner", "cid", "--yes"], "there are: ann, ben"),
        (["forget", "--owner", "ann", "--name", "X", "--yes"], "in a command of their own"),
        (["forget", "--owner", "ann", "--examples", "x", "--yes"], "in a command of their own"),
    ],
)
def test_wrong_owners(taught, options, why, capsys):
    assert main([options[0], str(taught[0].path), *options[1:]]) == 2
    assert why in capsys.readouterr().err
    assert Run(taught[0].path).artifact("owner-ann") is not None


@pytest.mark.parametrize("damaged", ["owner-ben/adapter.safetensors", "base/model.safetensors"])
def test_nobody_leaves_a_damaged_run(shared, damaged, capsys):
    """The error names the file where it can be mended, and nothing is made before."""
    file = shared.path / damaged
    raw = file.read_bytes()
    file.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    before = snapshot(shared)
    assert main(["forget", str(shared.path), "--owner", "ann", "--yes"]) == 2
    assert f"{file} is damaged" in capsys.readouterr().err and snapshot(shared) == before
    assert not (shared.path / FORGETTING).exists()
