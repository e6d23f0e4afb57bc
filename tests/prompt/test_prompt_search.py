"""The search: its parts against what they promise, and the whole, also after a kill."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import numpy as np
import pytest
from prompt_runs import make_run
from test_prompt_library import fails

from jielong.cli import main
from jielong.config import PromptSearchConfig
from jielong.errors import UserError
from jielong.prompt import search
from jielong.prompt.form import Prompt, read
from jielong.prompt.journal import Journal
from jielong.prompt.search import bootstrapped, candidates, instructions, race, rungs, split
from jielong.prompt.task import Item, Task, exact, read_task

ITEMS = tuple(Item(f"q{n}", (f"a{n % 3}",)) for n in range(60))


def config(**changes) -> PromptSearchConfig:
    from pathlib import Path

    return PromptSearchConfig(Path("t.jsonl"), **changes)


def test_the_split_is_a_partition_that_depends_on_the_seed_alone():
    task = Task("t", (*ITEMS, Item("q0", ("again",))))
    parts = split(task, config())
    assert [len(p) for p in (parts.pool, parts.trial, parts.held_out)] == [15, 15, 30]
    together = [i.input for p in (parts.pool, parts.trial, parts.held_out) for i in p]
    assert sorted(together) == sorted(i.input for i in ITEMS)
    assert split(task, config()) == parts != split(task, config(seed=2))
    assert split(task, config(held_out=0.5, candidates=3, shots=1)) == parts
    assert len(split(task, config(most=16)).held_out) == 8
    with pytest.raises(UserError, match="has 15 different examples, too few"):
        split(Task("t", ITEMS[:15]), config())


def test_candidates():
    task = Task("t", ITEMS[:20])
    pool, own = ITEMS[:20], [Item("q0", ("own",)), Item("q4", ("own words",))]
    plain = Prompt("t", "Plain.")
    wordings = instructions(task, config(instruction="Plain.", more=("Mine.",)))
    assert wordings[0] == "Plain." and "Mine." in wordings and not any("{" in w for w in wordings)
    assert any("yes, no" in w for w in instructions(Task("t", ITEMS, ("yes", "no")), config()))
    found = candidates(plain, wordings, pool, own, config(candidates=12, shots=4))
    assert found == candidates(plain, wordings, pool, own, config(candidates=12, shots=4))
    assert found != candidates(plain, wordings, pool, own, config(candidates=12, shots=4, seed=2))
    assert len(found) == len(set(found)) == 12 and found[0] == plain and found[1].system == found[2].system == "Plain."
    right = {i.input: {i.outputs[0]} for i in pool}
    right["q0"].add("own")
    right["q4"].add("own words")
    for prompt in found:
        assert len(prompt.shots) <= 4 and len({q for q, _ in prompt.shots}) == len(prompt.shots)
        assert all(answer in right[q] for q, answer in prompt.shots)
    assert {("q0", "own"), ("q4", "own words")} <= set(found[2].shots) and len(found[2].shots) == 4
    # without demonstrations there are no more prompts than wordings
    assert len(candidates(plain, wordings, pool, own, config(candidates=50, shots=0))) == len(wordings)


def test_what_the_model_gets_right_becomes_an_example_in_its_own_words():
    pool = [Item("a", ("Paris",)), Item("b", ("Rome",)), Item("c", ("Bern", "Berne"))]
    own = bootstrapped(pool, ["The Paris!", "Milan", "berne"], lambda answer, item: exact(answer, item.outputs))
    assert own == [Item("a", ("The Paris!",)), Item("c", ("berne",))]


class Known:
    """Scores by a rule; counts what is asked."""

    def __init__(self, quality):
        self.quality, self.asked = quality, []

    def scores(self, prompt, items, advance):
        self.asked.append((prompt.system, len(items)))
        return np.array([float((int(i.input[1:]) * 7919 % 100) / 100 < self.quality[prompt.system]) for i in items])


def test_halving_finds_the_best_and_keeps_the_plain_one():
    assert rungs(24, 60, 8) == [(24, 8), (12, 16), (6, 32), (3, 60)]
    assert rungs(2, 60, 8) == [(2, 60)] and rungs(9, 5, 8) == [(9, 5)] and rungs(16, 1000, 8)[-1] == (2, 1000)
    found = [Prompt("t", str(n)) for n in range(12)]
    quality = {str(n): 0.30 + 0.02 * n for n in range(12)} | {"7": 0.9, "0": 0.1}
    scorer = Known(quality)
    winner, told = race(found, ITEMS, 20, scorer, lambda count: None)
    assert winner.system == "7"
    assert [(len(t["scores"]), t["examples"]) for t in told] == rungs(12, 60, 20)
    assert all("0" in t["scores"] for t in told)  # the plain one is there to the end, however bad
    cost = sum(n for _, n in scorer.asked)
    assert cost == sum(n * seen for n, seen in rungs(12, 60, 20)) < 12 * 60
    assert race(found, ITEMS, 20, Known(dict.fromkeys(quality, 0.5)), lambda count: None)[0].system == "0"  # a tie


def test_the_command(tiny, task_file, capsys):
    before = sorted(p.name for p in tiny.path.iterdir())
    argv = [
        "prompt",
        "search",
        str(task_file),
        "--run",
        str(tiny.path),
        "--candidates",
        "6",
        "--shots",
        "2",
        "--first",
        "4",
    ]
    assert main(argv) == 0
    told = capsys.readouterr().out
    assert "of 16 held-out examples" in told and "difference" in told and "jielong prompt run mood" in told
    artifact = tiny.need("prompt-mood")
    metrics = artifact.card["metrics"]
    log = json.loads(artifact.file("search.json").read_text())
    assert metrics["difference"][0] == pytest.approx(metrics["found"][0] - metrics["plain"][0], abs=1e-3)
    assert artifact.card["parents"] == {"sft": tiny.need("sft").hash}
    assert len(log["candidates"]) == 6 and log["rungs"][-1]["examples"] == 8
    prompt = read(artifact.file("mood.md"))
    assert (
        prompt.labels == ("good", "bad")
        and prompt.calibrated
        and prompt.system == log["candidates"][metrics["candidate"]]["system"]
    )
    # no example of the held-out half, nor of the trial part, is shown
    parts = split(read_task(task_file), PromptSearchConfig(task_file))
    assert {q for q, _ in prompt.shots} <= {i.input for i in parts.pool}
    assert "exists; use --force" in fails(argv, capsys)
    assert main(["prompt", "run", "mood", "--ask", "sun 99", "--run", str(tiny.path)]) == 0
    assert capsys.readouterr().out.startswith(("good  (good", "bad  (bad"))
    assert main(["prompt", "list", "--run", str(tiny.path)]) == 0
    assert "Found by search for mood and sft." in capsys.readouterr().out
    assert {p.name for p in tiny.path.iterdir()} - set(before) == {"prompt-mood", ".prompt-mood.work", ".lock"}


def test_bad_input_leaves_nothing_behind(tiny, task_file, tmp_path, capsys):
    before = sorted(p.name for p in tiny.path.iterdir())
    run = ["--run", str(tiny.path)]
    search_ = ["prompt", "search", str(task_file)]
    assert "is no name for a prompt" in fails([*search_, *run, "--name", "a/b"], capsys)
    assert "--held-out must lie" in fails([*search_, *run, "--held-out", "1"], capsys)
    assert "--most and --max-tokens must be at least 1" in fails([*search_, *run, "--most", "-3"], capsys)
    assert "variable {{x}}" in fails([*search_, *run, "--instruction", "Say {{x}}."], capsys)
    assert "variable {{input}}" in fails([*search_, *run, "--more", "Say {{input}}."], capsys)
    long = ["--instruction", "word " * 600]
    assert "this model reads at most" in fails([*search_, *run, *long], capsys)
    assert "has no base yet" in fails([*search_, *run, "--model", "base"], capsys)
    assert "has no sft yet" in fails([*search_, "--run", str(tmp_path / "none")], capsys)
    assert not (tmp_path / "none").exists()
    with open(task_file, "a") as f:
        f.write('{"input": "x"\n')
    assert "line 33 is no valid JSON" in fails([*search_, *run], capsys)
    assert {p.name for p in tiny.path.iterdir()} - set(before) <= {".lock"}


STOPS = """
import os, signal, sys
from jielong.cli import main
from jielong.prompt import search
real, left = search.Journal.add, int(sys.argv[1])
def add(journal, replies):
    global left
    real(journal, replies)
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
search.Journal.add = add
sys.exit(main(sys.argv[2:]))
"""


def test_after_a_kill_the_same_command_ends_with_the_same_prompt(tmp_path, tokenizer, task_file, monkeypatch):
    options = [str(task_file), "--candidates", "6", "--shots", "2", "--first", "4", "--no-calibrate"]
    whole, killed = make_run(tmp_path / "whole", tokenizer), make_run(tmp_path / "killed", tokenizer)
    counted: list[int] = []
    real = Journal.add
    monkeypatch.setattr(
        search.Journal, "add", lambda journal, replies: counted.append(len(replies)) or real(journal, replies)
    )
    assert main(["prompt", "search", *options, "--run", str(whole.path)]) == 0
    answers, calls = sum(counted), len(counted)
    argv = ["prompt", "search", *options, "--run", str(killed.path)]
    half = calls // 2
    done = subprocess.run([sys.executable, "-c", STOPS, str(half), *argv], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert killed.artifact("prompt-mood") is None
    with open(killed.work("prompt-mood") / "answers.jsonl", "a") as f:
        f.write('["cut o')  # as a kill in the middle of a line leaves it
    counted.clear()
    assert main(argv) == 0
    assert 0 < sum(counted) < answers and len(counted) == calls - half  # nothing is paid for twice
    for name in ("mood.md", "search.json"):
        assert killed.need("prompt-mood").file(name).read_bytes() == whole.need("prompt-mood").file(name).read_bytes()


def test_a_journal_of_another_making_is_begun_anew(tmp_path):
    from jielong.prompt.answer import Reply

    path = tmp_path / "j" / "a.jsonl"
    Journal(path, {"a": 1}).add({"k": Reply("好\n", (0.5, 0.5)), "l": Reply("b")})
    assert Journal(path, {"a": 1}).found == {"k": Reply("好\n", (0.5, 0.5)), "l": Reply("b")}
    whole = path.read_bytes()
    other = Journal(path, {"a": 2})
    assert other.found == {} and path.read_bytes() == whole  # until there is something to write
    other.add({"m": Reply("c")})
    assert Journal(path, {"a": 2}).found == {"m": Reply("c")} and Journal(path, {"a": 1}).found == {}
    other.close()
    assert not path.exists() and not Journal(path, {"a": 2}).found
