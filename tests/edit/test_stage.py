"""The command on a tiny run: edited, listed, undone, served, exported, refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest_edit import make_bench

from jielong.changes.ledger import LEDGER
from jielong.cli import main
from jielong.config import EditConfig
from jielong.edit import methods, stage
from jielong.edit.bench import Site, Stored
from jielong.edit.facts import Fact
from jielong.edit.methods.additive import Additive, keep
from jielong.edit.state import Change
from jielong.edit.values import matrix
from jielong.generate.engine import Engine
from jielong.model.delta import Delta
from jielong.model.gpt import load_model
from jielong.run import Run

CAPITAL = ["The capital of France is", "--subject", "France", "--to", "Tokyo"]
# the tiny model knows nothing, so that only the limits on text and on the edit itself are looked at here
LOOSE = ["--layer", "1", "--questions", "4", "--guard-neighbours", "0", "--guard-rest", "0", "--guard-took", "0", "--guard-bits", "9",
         "--guard-entropy", "1", "--guard-norm", "99", "--threads", "2"]  # fmt: skip


@pytest.fixture
def run(raised, tmp_path) -> Path:
    """A copy that a test may change."""
    folder = tmp_path / "run"
    shutil.copytree(raised, folder)
    return folder


def files(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != ".lock"
    }


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_model(folder).state_dict()


def edit(run: Path, *args: str) -> int:
    return main(["edit", str(run), *args, *LOOSE])


def test_edit_list_undo(run, capsys):
    """One edit, another, the first undone, the second undone: each state is what the set of edits says, to the bit."""
    before = files(run / "sft")
    assert edit(run, *CAPITAL) == 0
    out = capsys.readouterr().out
    assert "France is" in out and "edited-1 is served now" in out
    home = Run(run)
    assert home.serving() == "edited-1" and files(run / "sft") == before
    card = home.need("edited-1").card
    assert card["kind"] == "edited" and card["parents"].keys() == {"sft"} and card["metrics"]["edits"]
    changed = [n for n, t in weights(run / "edited-1").items() if not torch.equal(t, weights(run / "sft")[n])]
    assert matrix(1) in changed and all(".mlp." in n for n in changed)

    assert edit(run, "日本的首都是", "--subject", "日本", "--to", "巴黎") == 0
    assert main(["changes", str(run)]) == 0
    told = capsys.readouterr().out
    assert "in use" in told and "2 entries, an unbroken chain" in told
    first, second = (c.id for c in stage.read_changes(run / "edited-2")[0])
    assert main(["undo", str(run), first[:5]]) == 0 and home.serving() == "edited-3"
    fresh = run.parent / "fresh"  # never made the first edit
    for name in ("corpus", "sft", "keys-sft-1", "inputs-sft-1"):
        shutil.copytree(run / name, fresh / name)
    assert edit(fresh, "日本的首都是", "--subject", "日本", "--to", "巴黎") == 0
    one, two = weights(run / "edited-3"), weights(fresh / "edited-1")
    assert all(torch.equal(one[n], two[n]) for n in one)
    assert main(["undo", str(run), "last"]) == 0
    assert home.serving() == "sft" and files(run / "sft") == before
    assert main(["undo", str(run), second]) == 2 and "no edit in use" in capsys.readouterr().err
    assert main(["changes", str(run), "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert [e["kind"] for e in entries] == ["edit", "edit", "undo", "undo"] and entries[2]["exact"]


def test_the_same_edit_twice_and_a_better_one(run, capsys):
    assert edit(run, *CAPITAL) == 0
    kept = files(run)
    assert edit(run, *CAPITAL) == 2 and "already" in capsys.readouterr().err and files(run) == kept
    assert edit(run, *CAPITAL[:-1], "Berlin") == 0  # the last one wins
    changes, _ = stage.read_changes(run / "edited-2")
    assert [c.fact.target for c in stage.standing(changes)] == ["Berlin"] and changes[1].replaces == (changes[0].id,)
    alone = run.parent / "alone"
    shutil.copytree(run, alone, ignore=shutil.ignore_patterns("edited-*", "changes.*", "serving.json"))
    assert edit(alone, *CAPITAL[:-1], "Berlin", "--old", changes[1].fact.old) == 0
    one, two = weights(run / "edited-2"), weights(alone / "edited-1")
    assert all(torch.equal(one[n], two[n]) for n in one)  # nothing is stacked
    assert main(["undo", str(run), "last"]) == 0  # and the one before is back
    assert torch.equal(weights(run / "edited-3")[matrix(1)], weights(run / "edited-1")[matrix(1)])


def test_it_is_served_and_leaves_whole(run, tmp_path):
    import transformers

    assert edit(run, *CAPITAL) == 0
    engine = Engine.load(run / "edited-1")
    assert engine.chat and engine.answer([{"role": "user", "content": "Hello!"}]) is not None
    assert main(["export", str(run), "--to", "hf", "--out", str(tmp_path / "hf")]) == 0
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    ids = torch.tensor([engine.tokenizer.encode("The capital of France is Tokyo")])
    model = load_model(run / "edited-1")
    from jielong.model.gpt import causal_mask

    with torch.no_grad():
        ours = model.logits(model(ids, causal_mask(ids.shape[1])))
        assert torch.allclose(theirs(ids).logits, ours, atol=1e-4)
    (run / "sft" / "card.json").write_text((run / "sft" / "card.json").read_text().replace('"seed": 1', '"seed": 2'))
    assert main(["chat", "--run", str(run)]) == 2  # it belongs to another base


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["The capital of France is", "--subject", "Spain", "--to", "x"], "does not stand in the prompt"),
        (["The capital of Zorblax is", "--subject", "Zorblax", "--to", "x"], "never mentions 'Zorblax'"),
        (["The capital of France is", "--subject", "France"], "target is empty"),
        ([], "nothing to edit"),
        (["x", "--edits", "y"], "either a prompt"),
        (["--edits", "missing.jsonl"], "cannot be read"),
        ([*CAPITAL, "--model", "nothing"], "no nothing yet"),
        ([*CAPITAL, "--model", "corpus"], "no model that talks"),
        ([*CAPITAL, "--model", "reward-1"], "no model that talks"),
        ([*CAPITAL, "--ridge", "-1"], "--ridge must be"),
        ([*CAPITAL, "--ridge", "nan"], "--ridge must be"),
        ([*CAPITAL, "--questions", "-1"], "must be at least 0"),
        ([*CAPITAL[:-1], "Tokyo " * 300], "this model reads at most 256"),
    ],
)
def test_mistakes_change_nothing(run, capsys, args, words):
    home = Run(run)
    if "reward-1" in args:  # its weights are a model's, but it gives marks
        with home.build("reward-1", kind="reward", config={}, parents=[home.need("sft")]) as build:
            for name in ("model.safetensors", "model.json", "tokenizer.json"):
                shutil.copy(run / "sft" / name, build.path)
            (build.path / "score.safetensors").touch()
    before = files(run)
    assert main(["edit", str(run), *LOOSE, *args]) == 2
    assert words in capsys.readouterr().err and files(run) == before


def test_a_run_that_is_not_there(tmp_path, capsys):
    """Nor is its folder made."""
    for command in (
        ["edit", *CAPITAL],
        ["edit", "trace", *CAPITAL[:3]],
        ["undo", "last"],
        ["changes"],
        ["owner"],
        ["rollback"],
    ):
        words = 1 + (command[:2] == ["edit", "trace"])
        where = [str(tmp_path / "none")]
        assert main([*command[:words], *where, *command[words:]]) == 2, command
        assert "There is no run" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_layer_that_is_not_there(run, capsys):
    assert (
        main(["edit", str(run), *CAPITAL, "--layer", "7"]) == 2 and "has the layers 0 to 1" in capsys.readouterr().err
    )
    assert main(["edit", str(run), *CAPITAL, "--layer", "1", "--place", "subject"]) == 2
    assert "reaches no answer" in capsys.readouterr().err


def test_a_tampered_ledger_stops_everything(run, capsys):
    assert edit(run, *CAPITAL) == 0
    ledger = run / LEDGER
    ledger.write_text(ledger.read_text().replace("Tokyo", "Osaka"))
    before = files(run)
    for command in (["edit", str(run), *CAPITAL], ["undo", str(run), "last"], ["changes", str(run)]):
        assert main(command) == 2
        assert "line 1 does not fit" in capsys.readouterr().err and files(run) == before


def test_statistics_that_were_interrupted_go_on(run, monkeypatch):
    """Killed after the third batch, the second pass ends where one pass does, and does not begin anew."""
    from jielong.edit import statistics
    from jielong.tokens.tokenizer import Tokenizer

    home = Run(run)
    base = home.need("sft")
    model, tokenizer = load_model(base.path), Tokenizer.load(base.file("tokenizer.json"))
    monkeypatch.setattr(statistics, "SAVE", -1.0)
    monkeypatch.setattr(statistics, "ROWS", 4)
    whole = statistics.key_statistics(home, base, model, tokenizer, [0], False)[0]
    shutil.rmtree(run / "keys-sft-0")
    real, calls = statistics.add_keys, []

    def killed(*args):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(statistics, "add_keys", killed)
    with pytest.raises(KeyboardInterrupt):
        statistics.key_statistics(home, base, model, tokenizer, [0], False)
    assert not (run / "keys-sft-0").exists()
    again = statistics.key_statistics(home, base, model, tokenizer, [0], False)[0]
    assert torch.equal(again, whole)
    assert len(calls) == 4 + home.need("keys-sft-0").card["metrics"]["batches"] - 3
    # of the feed-forward's inputs the mean is kept, too; their norm is one, that of RMSNorm
    moments = statistics.key_statistics(home, base, model, tokenizer, [0], False, of="mlp")[0]
    D = model.config.width
    assert moments.shape == (D + 1, D + 1) and float(moments[-1, -1]) == pytest.approx(1)
    assert torch.equal(moments, moments.T) and bool((moments[:-1, -1].square() <= moments.diag()[:-1]).all())


class Sabotage(Additive):
    """An editor that writes noise."""

    def propose(self, bench, facts) -> list[Stored]:
        weight = bench.model.blocks[1].mlp.down.weight
        noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * weight.std() * 3
        return [keep(Delta({matrix(1): (noise,)})) for _ in facts]


def test_the_guard_refuses_a_sabotaged_editor(run, capsys, monkeypatch):
    monkeypatch.setitem(methods.EDITORS, "neurons", Sabotage)
    before = files(run)
    assert main(["edit", str(run), *CAPITAL, "--layer", "1", "--questions", "4", "--guard-took", "0"]) == 2
    told = capsys.readouterr().err
    assert "Refused, and nothing was changed" in told and "writes in ordinary text is" in told
    assert "Next: " in told and "; try another method" in told
    after = {
        n: h for n, h in files(run).items() if not n.startswith(("keys-", "inputs-"))
    }  # statistics of the model, kept for next time
    assert after == before


def test_the_usual_method(model, tokenizer):
    bench = make_bench(model, tokenizer)
    assert methods.usual(bench) == methods.usual(bench, "memit") == "neurons"
    assert methods.usual(bench, "ridge") == "ridge"
    bench.site = Site(0, "subject")
    assert methods.usual(bench) == methods.usual(bench, "neurons") == "ridge"


def test_the_limits_are_the_settings():
    limits = {x.name: x for x in stage.limits(EditConfig(guard_rest=0.5, guard_bits=0.2))}
    assert limits["knowledge_kept"].least == 0.5 and limits["bits_per_byte"].most == 1.2
    assert all(x.advice for x in limits.values())


TOLD = ["--method", "in-context", "--no-translate"]  # no weights: quick


class Stopped(BaseException):
    pass


def test_stopped_behind_the_entry(run, monkeypatch, capsys):
    """The ledger says that it was made: it is, as soon as another command of the kind has the lock."""

    def stop(*_):
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(Run, "promote", stop)
        with pytest.raises(Stopped):
            edit(run, *CAPITAL, *TOLD)
    home = Run(run)
    assert home.serving() == "sft" and len(stage.Ledger(home).entries()) == 1
    assert edit(run, *CAPITAL, *TOLD) == 2 and "already" in capsys.readouterr().err
    assert home.serving() == "edited-1"


def test_what_nobody_corrected_anew_stays(run, tmp_path):
    """An edit of two statements; one of them is corrected again, and the other one is as it was."""
    both = {"prompt": CAPITAL[0], "subject": "France", "target": "Tokyo", "old": "Paris"}
    both["also"] = [{"prompt": "法國的首都是", "subject": "法國", "target": "東京", "old": "巴黎"}]
    file = tmp_path / "edits.jsonl"
    file.write_text(json.dumps(both, ensure_ascii=False), encoding="utf-8")
    assert edit(run, "--edits", str(file), *TOLD) == 0
    again = ["法國的首都是", "--subject", "法國", "--to", "日本", *TOLD]
    assert edit(run, *again) == 0
    notes = json.loads((run / "edited-2" / "memory.json").read_text(encoding="utf-8"))
    assert [n["text"] for n in notes] == ["法國的首都是日本。", "The capital of France is Tokyo."]
    assert edit(run, *again) == 2  # it is an edit already
    assert main(["undo", str(run), "last"]) == 0
    assert (run / "edited-3" / "memory.json").read_bytes() == (run / "edited-1" / "memory.json").read_bytes()


def test_what_two_lines_of_a_file_replace():
    """Each corrects one half of an earlier edit: neither takes the other half along; a third statement goes with one of them."""
    en, zh, other = (
        Fact(p, s, "x")
        for p, s in (("The capital of France is", "France"), ("法國的首都是", "法國"), ("In Paris", "Paris"))
    )
    earlier = [Change("a", "ridge", dataclasses.replace(en, also=(zh, other)), {})]
    new = [dataclasses.replace(f, target="y") for f in (en, zh)]
    assert stage._with_the_rest(new, earlier) == [dataclasses.replace(new[0], also=(other,)), new[1]]
    assert stage._with_the_rest([new[1]], earlier) == [dataclasses.replace(new[1], also=(en, other))]
    assert stage._with_the_rest(new, []) == new


def test_undo_says_whether_it_is_exact(run, monkeypatch):
    """Of an edit that a later one was found on top of, it is not, whatever its own method."""
    monkeypatch.setitem(methods.EDITORS, "ft-m", Sabotage)
    assert edit(run, *CAPITAL, *TOLD) == 0
    assert edit(run, "日本的首都是", "--subject", "日本", "--to", "巴黎", "--method", "ft-m", "--no-translate") == 0
    first, second = (c.id for c in stage.read_changes(run / "edited-2")[0])
    other = run.parent / "other"
    shutil.copytree(run, other)
    assert main(["undo", str(run), first]) == 0 and not stage.Ledger(Run(run)).entries()[-1]["exact"]
    assert main(["undo", str(other), second]) == 0 and stage.Ledger(Run(other)).entries()[-1]["exact"]


def test_a_value_is_found_as_if_it_were_the_first(model, tokenizer):
    """Where nobody named an old object, the editor reads what the base says, and not what earlier edits made of it."""
    from conftest_edit import make_bench

    bench = make_bench(model, tokenizer)
    wanted = Fact("The capital of France is", "France", "Lyon", also=(Fact("法國的首都是", "法國", "里昂", "巴黎"),))
    now = dataclasses.replace(wanted, old="Tokyo")
    read = stage._as_the_base_says(now, wanted, bench)
    assert read.old == stage._with_old(wanted, bench.engine).old != "Tokyo" and read.also == wanted.also
    named = dataclasses.replace(wanted, old="Paris")
    assert stage._as_the_base_says(named, named, bench) == named


def test_statistics_are_of_the_whole_corpus(tmp_path, tokenizer):
    """Of a corpus that is sorted by its sources, its beginning is no sample."""
    from jielong.corpus.documents import Document, write_documents
    from jielong.edit.statistics import read_text

    home = Run(tmp_path / "run")
    documents = [Document(f"{n}", "法國" if n < 100 else "France", "", "") for n in range(200)]
    with home.build("corpus", kind="corpus", config={}) as build:
        write_documents(build.path / "train.parquet", documents)
    first = [tokenizer.decode(ids) for _, ids in zip(range(40), read_text(home, False, tokenizer))]
    assert 8 < first.count("France") < 32
    assert first == [tokenizer.decode(ids) for _, ids in zip(range(40), read_text(home, False, tokenizer))]


def test_statistics_belong_to_a_corpus(run):
    """Another corpus, for example one that forgot a record, is counted anew."""
    from jielong.corpus.documents import read_documents, write_documents
    from jielong.edit.statistics import key_statistics
    from jielong.tokens.tokenizer import Tokenizer

    home = Run(run)
    base = home.need("sft")
    model, tokenizer = load_model(base.path), Tokenizer.load(base.file("tokenizer.json"))
    first = key_statistics(home, base, model, tokenizer, [0], False, 5)[0]
    documents = read_documents(run / "corpus" / "train.parquet")[1:]
    with home.build("corpus", kind="corpus", config={}) as build:
        write_documents(build.path / "train.parquet", [dataclasses.replace(d, text=d.text[::-1]) for d in documents])
    assert not torch.equal(key_statistics(home, base, model, tokenizer, [0], False, 5)[0], first)
