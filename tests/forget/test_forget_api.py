"""Forgetting over HTTP: looking, asking, following, the ledger; and no word of it in what is kept."""

from __future__ import annotations

import fcntl
import io
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
)
from small_runs import SECRET, holding, imported, press, read_shard_tokens, snapshot
from test_suppress import FAST

from jielong.changes.ledger import Ledger
from jielong.cli import parse
from jielong.config import ForgetConfig, ServeConfig, SuppressConfig
from jielong.feedback.stage import store_of
from jielong.forget import background, commit, preview
from jielong.forget import stage as forgetting
from jielong.forget.items import Examples, Rows
from jielong.forget.request import read_request
from jielong.forget.telling import JOURNAL, Journal
from jielong.run import COMMIT, FORGETTING, Run
from jielong.serve import forget, forgetter
from jielong.serve.app import make_app
from jielong.serve.forgetter import Forgetter
from jielong.serve.stage import load_models, renewer

CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance, negative_data_rejection]
QUICK = settings(
    max_examples=5, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
WHO = {"who": "the person concerned", "why": "Article 17"}


@contextmanager
def serving(run: Run):
    """A client of a server of the run, and what forgets for it."""
    config = ServeConfig(run=run.path, precision="fp32", rows=1)
    served, forgetter = load_models(config, run), Forgetter(run)
    app = make_app(
        served,
        feedback=lambda: store_of("", run),
        renewed=renewer(config, run, served),
        edits=run,
        forgetter=forgetter,
    )
    with TestClient(app, base_url="http://127.0.0.1") as client:
        yield client, forgetter


@pytest.fixture
def gate(tmp_path, monkeypatch) -> Path:
    """The child waits for this file before it begins."""
    file = tmp_path / "go"
    wait = f"import time, pathlib\nwhile not pathlib.Path({str(file)!r}).exists(): time.sleep(0.02)\n"
    monkeypatch.setattr(forgetter, "COMMAND", wait + forgetter.COMMAND)
    return file


def at_once(monkeypatch) -> None:
    """What forgets works here, and not in a process of its own."""

    def launch(self, command, said, log):
        config, examples = background.received(io.StringIO(said.decode()))
        code = background.work(config, self.run, Journal(self.journal), examples)
        self._child = subprocess.Popen(["sh", "-c", f"exit {code}"])
        return self._child

    monkeypatch.setattr(background.signal, "signal", lambda *_: None)
    monkeypatch.setattr(Forgetter, "launch", launch)


def refused(response, status: int = 400) -> tuple[str, str]:
    assert response.status_code == status, response.text
    told = response.json()["error"]
    return told["code"], told["message"]


def listened(client) -> list[dict]:
    """Every event up to the end."""
    text = client.get("/v1/forget/events").text
    assert text.endswith("data: [DONE]\n\n")
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]


def files(run: Run) -> dict[str, str]:
    """Of all files their hashes, but for those that SQLite has beside a database, which come and go with readers."""
    return {path: what for path, what in snapshot(run).items() if not path.endswith(("-shm", "-wal"))}


def test_look_forget_and_prove(small, gate, capfd):
    press(small)
    ids = read_shard_tokens(small)
    asked = {"name": [SECRET.lower()]}
    with serving(small) as (client, forgetter):
        assert client.get("/v1/run").json()["forget"]
        assert client.get("/v1/forget").json() == {"state": "idle", "events": [], "unfinished": False}
        assert client.get("/v1/forgotten").json() == {"entries": []}
        # looking changes nothing, and what makes no sense is refused with a reason that a program can say
        before = files(small)
        found = client.post("/v1/forget/find", json=asked)
        assert found.headers["cache-control"] == "no-store"
        found = found.json()
        assert found["counts"] == {"document": 1, "held_out": 0, "conversation": 1, "feedback": 1}
        rows = {row["kind"]: row for row in found["records"]}
        assert rows["document"]["said"] == SECRET and rows["document"]["after"].startswith(" hides a golden")
        assert rows["document"]["step"] is not None and rows["conversation"]["stage"] == "sft"
        fates = {cost["name"]: cost for cost in found["artifacts"]}
        assert fates["base"]["fate"] == "replayed" and 0 <= fates["base"]["start"] < fates["base"]["steps"] == 24
        assert fates["sft"]["fate"] == "rebuilt" and found["approximate"] and not found["refused"] and found["plan"]
        assert client.post("/v1/forget/find", json=asked | {"rows": 1}).json()["count"] == 3
        for body, code in [({}, "empty"), ({"name": ["x"]}, "short"), ({"grep": ["  "]}, "short")]:
            assert refused(client.post("/v1/forget/find", json=body))[0] == code
            assert refused(client.post("/v1/forget", json=body | {"plan": "x"}))[0] == code
        for body, code in [({"name": ["Nobody Atall"]}, "nothing"), ({"grep": ["Every summer"]}, "too_much")]:
            told = client.post("/v1/forget/find", json=body).json()
            assert told["refused"]["code"] == code and told["plan"] is None
            assert refused(client.post("/v1/forget", json=body | {"plan": "x"}))[0] == code
        right = asked | WHO | {"plan": found["plan"]}
        assert refused(client.post("/v1/forget", json=asked | {"plan": "0" * 64}))[0] == "changed"
        assert refused(client.post("/v1/forget", json={"name": ["Ada Cole"], "plan": found["plan"]}))[0] == "changed"
        assert refused(client.post("/v1/forget", json=right | {"who": f"for {SECRET}"}))[0] == "named"
        assert refused(client.post("/v1/forget/finish", json={}))[0] == "finished"
        with small.lock():
            assert refused(client.post("/v1/forget", json=right))[0] == "busy"
        assert files(small) == before
        # an answer that the server remembers, in case somebody judges it
        chat = {"messages": [{"role": "user", "content": f"Who is {SECRET}?"}], "max_tokens": 4}
        told = client.post("/v1/chat/completions", json=chat).json()["id"]
        model = client.get("/v1/models").json()["data"][0]["id"]
        assert (
            client.get("/feedback/stats").json()["counting"]["thumb"] == 2
        )  # the server has the store open from now on
        # stopped, before it has done anything
        assert client.post("/v1/forget", json=right).status_code == 202
        assert client.post("/v1/forget/stop", json={}).status_code == 200
        assert listened(client)[-1]["code"] == "stopped" and client.get("/v1/forget").json()["state"] == "failed"
        # two at once: one of them is done
        with ThreadPoolExecutor(2) as both:
            answers = list(both.map(lambda _: client.post("/v1/forget", json=right), range(2)))
        assert sorted(a.status_code for a in answers) == [202, 409]
        assert client.get("/v1/forget").json()["state"] == "running"
        child = forgetter._child
        assert child is not None
        for file in ("cmdline", "environ"):
            assert SECRET.lower().encode() not in Path(f"/proc/{child.pid}/{file}").read_bytes().lower()
        gate.touch()
        events = listened(client)
        assert events[0]["event"] == "start" and events[-1] | {"time": 0} == {
            "event": "result", "time": 0, "number": 1, "kind": "forget", "word": "forgotten", "model": "sft",
        }  # fmt: skip
        stages = [e["stage"] for e in events if e["event"] == "stage"]
        assert stages == ["corpus", "base", "sft", "search", "commit"]
        steps = [(e["stage"], e["step"], e["of"]) for e in events if e["event"] == "step"]
        assert steps[-1] == ("sft", 8, 8) and ("base", 24, 24) in steps
        assert client.get("/v1/forget").json()["state"] == "done"
        # nothing is left, in no file and in no print; what the server remembered is gone, and it serves the new model
        assert holding(small, SECRET, ids) == [] and holding(small, SECRET.lower(), ids) == []
        assert (small.path / JOURNAL).is_file() and not (small.path / FORGETTING).exists()
        assert client.get("/v1/models").json()["data"][0]["id"] == model == "sft"
        assert client.app.state.worker.engines[-1].hash == small.need("sft").hash  # pyright: ignore
        thumb = {"kind": "thumb", "answer": told, "value": "up"}
        assert client.post("/feedback", json=thumb).status_code == 404
        # the ledger, a certificate, and the audit, which notices a changed line
        (entry,) = client.get("/v1/forgotten").json()["entries"]
        assert entry["records"] == {"documents": 1, "held_out": 0, "conversations": 1, "feedback": 1, "characters": entry["records"]["characters"]}  # fmt: skip
        assert entry["exact"] and entry["who"] == WHO["who"] and entry["artifacts"]["base"]["fate"] == "replayed"
        whole = client.get("/v1/forgotten/1").json()
        assert whole["entry"] == Ledger(small).entries()[0] and "3 records forgotten" in whole["said"]
        assert whole["last"] == whole["entry"]["hash"] and whole["problems"] == []
        assert client.get("/v1/forgotten/2").status_code == 404
        assert client.post("/v1/audit", json={}).json() == {"holds": True, "entries": 1, "problems": [], "notes": []}
        assert SECRET not in json.dumps([entry, whole, events])
        assert refused(client.post("/v1/forget", json=right))[0] == "nothing"
        file = small.path / "changes.jsonl"
        file.write_text(file.read_text().replace("Article 17", "Article 18"))
        assert not client.post("/v1/audit", json={}).json()["holds"]
        assert client.get("/v1/forgotten").status_code == 400
    printed = capfd.readouterr()
    assert SECRET.lower() not in (printed.out + printed.err).lower()


def test_stopped_before_and_in_between(small, monkeypatch):
    """Before the parts are put in place nothing has changed; in between the server says so, and finishes it."""
    ids, before = read_shard_tokens(small), snapshot(small)
    monkeypatch.setattr(background.signal, "signal", lambda *_: None)
    config, file = ForgetConfig(run=small.path, name=(SECRET,), yes=True), small.path / JOURNAL

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(forgetting, "_conclude", stop)
        assert background.work(config, small, Journal(file)) == 130
    last = json.loads(file.read_text().splitlines()[-1])
    assert last["code"] == "stopped" and SECRET not in file.read_text()
    after = {k: v for k, v in snapshot(small).items() if FORGETTING not in k and JOURNAL not in k}
    assert after == before
    with monkeypatch.context() as patched:
        patched.setattr(commit, "finish", stop)
        assert background.work(config, small, Journal(file)) == 130
    assert (small.path / FORGETTING / COMMIT).is_file()
    (small.path / FORGETTING / COMMIT).rename(small.path / "aside")

    at_once(monkeypatch)
    with serving(small) as (client, _):  # it was loaded before
        (small.path / "aside").rename(small.path / FORGETTING / COMMIT)
        told = client.get("/v1/forget").json()
        assert told["unfinished"] and told["state"] == "failed"
        assert refused(client.post("/v1/forget/find", json={"name": [SECRET]}))[0] == "unfinished"
        edit = {"prompt": "Ada is", "subject": "Ada", "to": "old"}
        assert refused(client.post("/v1/edit", json=edit))[0] == "unfinished"
        assert client.post("/v1/forget/finish", json={}).status_code == 202
        assert listened(client)[-1]["event"] == "result"
        assert not client.get("/v1/forget").json()["unfinished"]
        assert holding(small, SECRET, ids) == [] and client.post("/v1/audit", json={}).json()["holds"]
        # work that somebody else began and that goes on
        Journal(small.path / JOURNAL).tell("start", method="replay")
        other = Forgetter(small)
        assert other.state(other.events()) == "failed"
        with small.lock(), ThreadPoolExecutor(1) as elsewhere:
            assert elsewhere.submit(lambda: other.state(other.events())).result() == "running"


def test_no_stop_while_parts_are_put_in_place(small, monkeypatch):
    def forget(config, run, tell, examples):
        tell("stage", stage="commit")
        os.kill(os.getpid(), signal.SIGINT)
        return {"number": 7, "kind": "forget", "word": "forgotten"}

    monkeypatch.setattr(background, "forget", forget)
    held = signal.getsignal(signal.SIGINT)
    try:
        assert background.work(ForgetConfig(run=small.path), small, Journal(small.path / JOURNAL)) == 0
    finally:
        signal.signal(signal.SIGINT, held)


@pytest.mark.parametrize("problem", [ValueError(SECRET), UnicodeDecodeError("utf-8", SECRET.encode(), 0, 1, "bad")])
def test_a_mistake_of_ours_says_nothing_of_the_text(small, monkeypatch, problem):
    def forget(*_):
        raise problem

    monkeypatch.setattr(background, "forget", forget)
    file = small.path / JOURNAL
    assert background.work(ForgetConfig(run=small.path, name=(SECRET,)), small, Journal(file)) == 1
    last = json.loads(file.read_text().splitlines()[-1])
    assert type(problem).__name__ in last["message"] and "nothing was changed" in last["message"]
    assert SECRET not in file.read_text()


def test_another_process_was_faster(small):
    """It has the run's lock before the one that forgets: the journal says so in a way that the page can tell."""
    before = files(small)
    with (small.path / ".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        journal = Journal(small.path / JOURNAL)
        assert background.work(ForgetConfig(run=small.path, name=(SECRET,)), small, journal) == 2
    last = json.loads((small.path / JOURNAL).read_text().splitlines()[-1])
    assert (last["event"], last["code"]) == ("error", "busy") and SECRET not in (small.path / JOURNAL).read_text()
    (small.path / JOURNAL).unlink()
    assert files(small) == before


def test_what_is_sent_is_what_is_received(tmp_path):
    config = ForgetConfig(
        run=tmp_path, record=("a", "b"), name=("é 法國",), grep=("1\n2",), method="npo", twins=2, who="W", why="Y", store="x.db",
        owner="o", samples=3, suppress=SuppressConfig(tune=2, lora_rank=4, lr=1e-3), yes=True,
    )  # fmt: skip
    stays = Rows("retain", ((1, {"question": "Is 法國 far?", "answer": "No"}), (2, {"text": "\u2028"})), "row")
    examples = Examples(None, stays)
    assert background.received(io.StringIO(background.asked(config, examples))) == (config, examples)
    nothing = ForgetConfig()
    assert background.unspoken("No: who says so?", nothing, examples).startswith("It was refused")
    assert background.unspoken("Nothing was changed.", nothing, examples) == "Nothing was changed."
    assert background.unspoken("There is no owner 'O'.", ForgetConfig(owner="o")).startswith("It was refused")
    assert background.unspoken("no such 法國 É here", ForgetConfig(name=("é here",))).startswith("It was refused")
    assert background.unspoken("no such thing", config) == "no such thing"


def test_suppressing_tells_how_far_it_is(small):
    config, _ = parse("forget", [str(small.path), "--name", SECRET, "--method", "graddiff", "--yes", *FAST, "--utility", "9"])  # fmt: skip
    held = signal.getsignal(signal.SIGINT)
    try:
        assert background.work(config, small, Journal(small.path / JOURNAL)) == 0
    finally:
        signal.signal(signal.SIGINT, held)
    events = [json.loads(line) for line in (small.path / JOURNAL).read_text().splitlines()]
    assert [e["stage"] for e in events if e["event"] == "stage"] == ["exam", "suppress", "exam", "commit"]
    assert events[-1]["word"] == "suppressed" and events[-1]["model"] == "suppressed-1"
    assert {e["stage"] for e in events if e["event"] == "step"} == {"suppress"}
    (entry,) = [forget.summary(e) for e in Ledger(small).entries()]
    assert not entry["exact"] and entry["records"] == {"texts": 2} and entry["method"] == "graddiff"


def test_an_imported_model(small, tmp_path):
    """What it learnt elsewhere cannot be forgotten, and the answer says so; what was said about it here can."""
    run = imported(small, tmp_path / "runs" / "foreign")
    with serving(run) as (client, _):
        told = client.post("/v1/forget/find", json={"name": [SECRET]}).json()
        assert told["imported"] and told["refused"]["code"] == "imported" and told["artifacts"] == []
        code, why = refused(client.post("/v1/forget", json={"name": [SECRET], "plan": "x"}))
        assert code == "imported" and "`examples`" in why
        press(run)
        told = client.post("/v1/forget/find", json={"name": [SECRET]}).json()
        assert told["counts"]["feedback"] == 1 and told["plan"] and not told["approximate"]
        body = {"name": [SECRET], "plan": told["plan"], "method": "npo"}
        assert refused(client.post("/v1/forget", json=body))[0] == "not_learnt"


def test_requests_made_from_the_schema(small):
    """Whatever a client sends, the answer is no mistake of the server's, and nothing is forgotten."""
    forgetter = Forgetter(small)
    app = make_app(load_models(ServeConfig(run=small.path, precision="fp32", rows=1), small), forgetter=forgetter)
    schema = schemathesis.openapi.from_asgi("/openapi.json", app).include(path_regex="^/v1/(forg|audit|owners)")
    before, asked = files(small), set()
    for result in schema.get_all_operations():
        operation = result.ok()
        asked.add(f"{operation.method.upper()} {operation.path}")
        modes = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE] if operation.body else [GenerationMode.POSITIVE]
        for mode in modes:

            @QUICK
            @given(case=operation.as_strategy(generation_mode=mode))
            def try_it(case):
                case.call_and_validate(checks=CHECKS)

            try_it()
    assert len(asked) == 10 and "POST /v1/forget" in asked
    assert files(small) == before and not Ledger(small).entries() and not (small.path / FORGETTING).exists()
    assert forgetter._child is None


def test_an_interrupt_while_python_starts(small):
    """It may end the child with any exit code; who asked for it is told that it was stopped, and others that it ended."""
    forgetter = Forgetter(small)
    child = forgetter.launch([sys.executable, "-c", "import time; time.sleep(300)"], b"", subprocess.DEVNULL)
    forgetter.stop()
    child.wait(120)
    assert forgetter.last_words(1)["code"] == "stopped"
    forgetter.launch([sys.executable, "-c", "pass"], b"", subprocess.DEVNULL).wait(
        120
    )  # another one, which nobody stopped
    assert forgetter.last_words(1)["code"] == "ended"


def test_an_excerpt_is_cut_where_it_was_found():
    """Also behind letters with accents of their own, which the search counts as one."""
    request = read_request(ForgetConfig(name=(SECRET,)))
    text = "e\u0301" * 30 + f" met {SECRET} there"
    assert preview.excerpt(text, request)[1:] == (SECRET, " there")
