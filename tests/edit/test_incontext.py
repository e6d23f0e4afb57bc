"""Corrections that are told: recalled where the subject is asked about, recorded, undone, and not in an export."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from jielong.cli import main
from jielong.edit.facts import Fact
from jielong.edit.methods import editor, told
from jielong.generate.engine import Engine
from jielong.generate.memory import MEMORY, Memory, Note
from jielong.model.gpt import load_model
from jielong.run import Run

LOOSE = ["--layer", "1", "--questions", "4", "--guard-neighbours", "0", "--guard-rest", "0", "--guard-took", "0", "--guard-bits", "9",
         "--guard-entropy", "1", "--guard-norm", "99", "--threads", "2", "--no-translate"]  # fmt: skip


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_what_is_recalled():
    memory = Memory(
        (Note("Niger", "Niger is big."), Note("法國", "法國的首都是里昂。"), Note("Niger", "Niger is dry."))
    )
    assert memory.recalled("Where is Nigeria?") == []
    assert memory.recalled("Where is Niger?") == ["Niger is big.", "Niger is dry."]
    assert memory.told([user("法國的首都？")]) == [user("法國的首都是里昂。\n法國的首都？")]
    past = [user("Where is Niger?"), {"role": "assistant", "content": "Here."}]
    assert memory.told([*past, user("And Spain?")]) == [*past, user("And Spain?")]
    assert memory.told(past) == past and memory.told([]) == []


def test_notes_of_a_fact():
    fact = Fact("The capital of France is", "France", "Lyon", also=(Fact("法國的首都是", "法國", "里昂"),))
    assert told({"b": ("ridge", fact), "a": ("in-context", fact)}).notes == (
        Note("France", "The capital of France is Lyon."), Note("法國", "法國的首都是里昂。"),
    )  # fmt: skip
    assert editor("in-context").exact


def test_told_recorded_undone(raised, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(raised, run)
    capital = ["The capital of France is", "--subject", "France", "--to", "Tokyo"]
    assert main(["edit", str(run), *capital, "--method", "in-context", *LOOSE]) == 0
    home = Run(run)
    assert home.serving() == "edited-1" and json.loads((run / "edited-1" / MEMORY).read_text()) == [
        {"subject": "France", "text": "The capital of France is Tokyo."}
    ]
    one, base = load_model(run / "edited-1").state_dict(), load_model(run / "sft").state_dict()
    assert all(torch.equal(one[n], base[n]) for n in base)
    engine = Engine.load(run / "edited-1")
    assert "France is Tokyo.\nWhich" in engine.tokenizer.decode(engine.chat_ids([user("Which city governs France?")]))
    assert "Tokyo" not in engine.tokenizer.decode(engine.chat_ids([user("Which city governs Spain?")]))
    # one that changes weights beside it; each is undone alone
    assert main(["edit", str(run), "日本的首都是", "--subject", "日本", "--to", "巴黎", *LOOSE]) == 0
    assert (run / "edited-2" / MEMORY).is_file() and "in-context" in _changes(run, capsys)
    capsys.readouterr()
    assert main(["export", str(run), "--to", "hf", "--out", str(tmp_path / "hf")]) == 0
    assert "The capital of France is Tokyo." in capsys.readouterr().err  # and is not in it
    first = home.need("edited-1").card["metrics"]["edits"][0]
    assert main(["undo", str(run), first]) == 0
    assert not (run / "edited-3" / MEMORY).exists()
    two, three = load_model(run / "edited-2").state_dict(), load_model(run / "edited-3").state_dict()
    assert all(torch.equal(two[n], three[n]) for n in two)
    assert json.loads((run / "changes.jsonl").read_text().splitlines()[-1])["exact"]


def _changes(run, capsys) -> str:
    assert main(["changes", str(run)]) == 0
    return capsys.readouterr().out


def test_a_model_that_does_not_chat(model, tokenizer):
    from conftest_edit import FACTS, make_bench

    from jielong.errors import UserError

    with pytest.raises(UserError, match="models that chat"):
        editor("in-context").propose(make_bench(model, tokenizer), FACTS)
