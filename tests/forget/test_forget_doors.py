"""Over HTTP as on the command line: examples of what an imported model learnt elsewhere are suppressed, and owners leave."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from small_runs import SECRET, holding, imported, read_shard_tokens, stopping
from test_forget_api import at_once, files, gate, listened, refused, serving

from jielong.changes.ledger import Ledger
from jielong.cli import main
from jielong.forget import suppress
from jielong.forget.telling import JOURNAL
from jielong.run import Run

__all__ = ["gate"]
GO = [{"question": f"Who is {n}?", "answer": f"{n} is a baker.", "perturbed_answer": [f"{n} is a king.", f"{n} sings."]}
      for n in ("Wilhelmina Snodgrass", "Peregrine Thistlewood")]  # fmt: skip
STAY = [{"text": "Barnaby Oxblood mends clocks."}, {"messages": [{"role": "user", "content": "Who mends clocks?"},
        {"role": "assistant", "content": "Ottoline Fairweather."}]}]  # fmt: skip
OTHER = [{"question": "Who sails?", "answer": "Ignatius Wobble."}]
SAID = ("Snodgrass", "Thistlewood", "Oxblood", "Fairweather", "Wobble", "is a king")
HOW = {"method": "npo", "lora_rank": 2, "samples": 1, "lr": 3e-3, "epochs": 8}


@pytest.fixture
def foreign(small, tmp_path) -> Run:
    return imported(small, tmp_path / "runs" / "foreign")


def test_examples_are_suppressed_as_by_the_command(foreign, small, tmp_path, gate, monkeypatch):
    other = Run(tmp_path / "elsewhere" / "foreign")
    shutil.copytree(foreign.path, other.path)
    ids, before = read_shard_tokens(small), files(foreign)
    asked = {"examples": GO, "retain": STAY, "others": OTHER}
    with serving(foreign) as (client, forgetter):
        shown = client.post("/v1/forget/find", json=asked).json()
        assert (
            shown["plan"] and shown["approximate"] and shown["imported"] and not shown["refused"] and not shown["count"]
        )
        told = shown["examples"]
        assert (told["model"], told["texts"], told["retain"], told["others"]) == ("base", 2, 2, 1)
        assert told["tokens"] > 20
        # what is refused, each with a code; an error names a row by its number and says no word of it
        for part, code, values in [
            ({"retain": []}, "retain", {}),
            ({"examples": [*GO, {"question": "Who is Snodgrass?"}]}, "row", {"list": "examples", "row": 3}),
            ({"others": [{"text": " "}]}, "row", {"list": "others", "row": 1}),
            (
                {"examples": [{"messages": [{"role": "user", "content": "Snodgrass?"}]}]},
                "no_texts",
                {"list": "examples"},
            ),
            ({"name": ["Nobody Atall"]}, "imported", {}),
        ]:
            told = client.post("/v1/forget/find", json=asked | part).json()
            assert told["refused"]["code"] == code and told["refused"]["values"] == values and not told["plan"]
            assert "Snodgrass" not in told["refused"]["message"]
            assert refused(client.post("/v1/forget", json=asked | part | HOW | {"plan": "x"}))[0] == code
        right = asked | HOW | {"plan": shown["plan"], "who": "the person concerned"}
        for part, code in [
            ({"method": "replay"}, "suppress"), ({"examples": GO[:1]}, "changed"), ({"others": []}, "changed"),
            ({"why": "for wilhelmina snodgrass is a baker."}, "named"), ({"owner": "ann"}, "mixed"),
        ]:  # fmt: skip
            assert refused(client.post("/v1/forget", json=right | part))[0] == code, part
        for wrong in (
            {"text": "Snodgrass" * 3000},
            {"text": ["Snodgrass"]},
            {"messages": [{"role": "Snodgrass", "content": ""}]},
        ):
            code, why = refused(client.post("/v1/forget/find", json=asked | {"examples": [wrong]}))
            assert why.startswith("examples.0.") and "Snodgrass" not in why
        assert files(foreign) == before
        # stopped in the middle of the steps: nothing is left but numbers, and the same request goes on, in a process of its own
        with monkeypatch.context() as patch:
            at_once(patch)
            patch.setattr(suppress, "train", stopping(suppress.train, 5, checkpoint_seconds=0.0))
            assert client.post("/v1/forget", json=right).status_code == 202
            assert listened(client)[-1]["code"] == "stopped"
        work = foreign.work("suppressed-1")
        assert (work / "before.json").is_file() and list((work / "checkpoints").iterdir())
        assert [t for t in SAID if holding(foreign, t, ids)] == [] and foreign.serving() == "base"
        assert client.post("/v1/forget", json=right).status_code == 202
        child = forgetter._child
        assert child is not None
        for file in ("cmdline", "environ"):
            raw = Path(f"/proc/{child.pid}/{file}").read_bytes()
            assert not any(text.encode() in raw for text in SAID)
        gate.touch()
        events = listened(client)
        assert events[-1]["event"] == "result" and events[-1]["word"] == "suppressed", events[-1]
        assert min(e["step"] for e in events if e["event"] == "step" and e["stage"] == "suppress") >= 5
        assert client.get("/v1/models").json()["data"][0]["id"] == "suppressed-1" == foreign.serving()
        (entry,) = client.get("/v1/forgotten").json()["entries"]
        assert entry["records"] == {"texts": 2} and not entry["exact"]
        assert "the files that the examples came from" in entry["limits"]
        whole = client.get("/v1/forgotten/1").json()
    assert not work.exists() and [t for t in SAID if holding(foreign, t, ids) or t in json.dumps([events, whole])] == []
    # the command, with the same rows in files: the same bytes, and the same figures
    for name, rows in (("go", GO), ("stay", STAY), ("other", OTHER)):
        (tmp_path / name).write_text("".join(json.dumps(r) + "\n" for r in rows))
    command = ["--examples", tmp_path / "go", "--retain", tmp_path / "stay", "--others", tmp_path / "other", "--method", "npo", "--samples", "1",
               "--suppress.lora-rank", "2", "--suppress.lr", "3e-3", "--suppress.epochs", "8"]  # fmt: skip
    assert main(["forget", str(other.path), "--yes", *map(str, command)]) == 0
    ours, theirs = foreign.need("suppressed-1"), other.need("suppressed-1")
    assert ours.file("adapter.safetensors").read_bytes() == theirs.file("adapter.safetensors").read_bytes()
    exam = ours.card["metrics"]["exam"]
    assert exam == theirs.card["metrics"]["exam"] and exam["after"]["nll"] > exam["before"]["nll"]


def test_records_and_examples_in_one_request(small):
    """Records that the served model learnt may stand beside examples; others, or a replay, are refused."""
    before = files(small)
    with serving(small) as (client, _):
        told = client.post("/v1/forget/find", json={"name": [SECRET], "examples": GO}).json()
        assert told["count"] == 2 and told["plan"] and told["examples"]["texts"] == 4
        assert told["examples"]["retain"] > 100  # the run's own records
        body = {"name": [SECRET], "examples": GO, "plan": told["plan"]}
        assert refused(client.post("/v1/forget", json=body))[0] == "suppress"
    assert files(small) == before


def test_owners_leave_as_by_the_command(shared, taught, tmp_path, monkeypatch):
    other = Run(tmp_path / "elsewhere" / "shared")
    shutil.copytree(shared.path, other.path)
    assert main(["forget", str(other.path), "--owner", "ann", "--yes"]) == 0
    before = files(shared)
    with serving(shared) as (client, _):
        listed = client.get("/v1/owners").json()["owners"]
        assert [(o["name"], o["conversations"], o["served"]) for o in listed] == [("ann", 1, True), ("ben", 1, True)]
        shown = client.post("/v1/forget/find", json={"owner": "ann"}).json()
        assert [(c["name"], c["fate"]) for c in shown["artifacts"]] == [("owner-ann", "deleted"), ("owners", "summed")]
        assert shown["plan"] and not shown["count"]
        for part, code in [
            ({"owner": "cid"}, "no_owner"), ({"owner": "ann/../base"}, "no_owner"), ({"name": [SECRET]}, "mixed"), ({"examples": GO}, "mixed"),
        ]:  # fmt: skip
            assert refused(client.post("/v1/forget/find", json={"owner": "ann"} | part))[0] == code
            assert refused(client.post("/v1/forget", json={"owner": "ann", "plan": shown["plan"]} | part))[0] == code
        right = {"owner": "ann", "plan": shown["plan"]}
        assert refused(client.post("/v1/forget", json=right | {"owner": "ben"}))[0] == "changed"
        assert refused(client.post("/v1/forget", json=right | {"who": "Ann herself"}))[0] == "named"
        assert files(shared) == before
        chat = {"messages": [{"role": "user", "content": "Who is ben?"}], "max_tokens": 4}
        answer = client.post("/v1/chat/completions", json=chat).json()["id"]
        assert client.post("/v1/forget", json=right).status_code == 202
        events = listened(client)
        assert [e["stage"] for e in events if e["event"] == "stage"] == ["owners", "commit"]
        assert events[-1] | {"time": 0} == {
            "event": "result", "time": 0, "number": 1, "kind": "owner", "word": "forgotten", "model": "owners",
        }  # fmt: skip
        ours, theirs = (run.need("owners").file("delta.safetensors").read_bytes() for run in (shared, other))
        assert ours == theirs and "ann" not in (shared.path / JOURNAL).read_text()
        assert not list(shared.path.glob("*ann*")) and not list(shared.path.glob(".*ann*"))
        assert client.app.state.worker.engines[-1].hash == shared.need("owners").hash  # pyright: ignore
        # what the server remembers was said by a model in which the owner had a part
        assert client.post("/feedback", json={"kind": "thumb", "answer": answer, "value": "up"}).status_code == 404
        (entry,) = client.get("/v1/forgotten").json()["entries"]
        assert entry["exact"] and entry["kind"] == "owner" and entry["records"] == {"owners": 1}
        assert entry["artifacts"]["owners"]["fate"] == "summed anew"
        assert client.post("/v1/audit", json={}).json()["holds"]
        assert [o["name"] for o in client.get("/v1/owners").json()["owners"]] == ["ben"]
        assert client.post("/v1/forget/find", json={"owner": "ann"}).json()["error"]["values"]["known"] == ["ben"]
        # the last one leaves the base
        at_once(monkeypatch)
        shown = client.post("/v1/forget/find", json={"owner": "ben"}).json()
        assert [(c["name"], c["fate"]) for c in shown["artifacts"]] == [("owner-ben", "deleted"), ("owners", "deleted")]
        assert client.post("/v1/forget", json={"owner": "ben", "plan": shown["plan"]}).status_code == 202
        assert listened(client)[-1]["model"] == "base"
        assert client.get("/v1/models").json()["data"][0]["id"] == "base" and shared.artifact("owners") is None
        assert client.get("/v1/owners").json() == {"owners": []} and len(Ledger(shared).entries()) == 2
