"""Training from the page: the child process, its journal over SSE, and the change of models without a lost request."""

from __future__ import annotations

import json
import shutil
import threading
import time

import httpx
import pytest
from people import TRAINING, press, served

from jielong.config import ServeConfig
from jielong.run import Run
from jielong.serve import background, improve


@pytest.fixture(scope="module")
def run(life, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "run"
    for name in ("corpus", "tokenizer", "base", "sft"):
        shutil.copytree(life / name, folder / name)
    press(Run(folder), 240)
    (folder / "settings.json").write_text(json.dumps(TRAINING))
    return Run(folder)


def test_train_switch_and_roll_back_under_load(run):
    """Requests run all the time; none is lost while the server changes to the new model and back."""
    with (
        served(run, "--improve", str(run.path / "settings.json")) as url,
        httpx.Client(base_url=url, timeout=120) as client,
    ):
        assert client.get("/v1/improve").json() == {"state": "idle", "events": []}
        lost, answered, stop = [], [], threading.Event()

        def ask() -> None:
            while not stop.is_set():
                body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 16}
                try:
                    answered.append(httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).raise_for_status())
                except httpx.HTTPError as error:
                    lost.append(error)
                stop.wait(0.3)

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            assert client.post("/v1/improve", json={}).status_code == 202
            assert client.post("/v1/improve", json={}).status_code == 409
            until = time.time() + 60
            while time.time() < until and not any(
                e["event"] == "stage" for e in client.get("/v1/improve").json()["events"]
            ):
                time.sleep(0.1)
            client.post("/v1/improve/stop", json={})
            while time.time() < until and client.get("/v1/improve").json()["state"] == "running":
                time.sleep(0.1)
            stopped = client.get("/v1/improve").json()
            assert stopped["state"] == "failed" and "the same command continues" in stopped["events"][-1]["message"]
            assert client.post("/v1/improve", json={}).status_code == 202
            told = []
            with client.stream("GET", "/v1/improve/events") as stream:
                for line in stream.iter_lines():
                    if line.startswith("data: {"):
                        told.append(json.loads(line[6:]))
            assert line == "" and told[-1]["event"] == "result", told[-1]
            assert told[-1]["promoted"], told[-1]
            assert sum(e["event"] == "iteration" for e in told) == TRAINING["ppo"]["iterations"]
            now = client.get("/v1/run").json()
            assert now["card"]["name"] == "ppo-1" and now["models"] == ["ppo-1", "sft"] and now["improve"]
            assert client.get("/v1/improve").json()["state"] == "done"
            answer = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "Hi"}]}).json()
            assert answer["model"] == "ppo-1"
            assert client.post("/v1/rollback", json={}).json() == {"model": "sft"}
            assert client.get("/v1/models").json()["data"][0]["id"] == "sft"
            run.promote("ppo-1")  # as `jielong improve` in a terminal does
            until = time.time() + 30
            while time.time() < until and client.get("/health").json()["model"] != "ppo-1":
                time.sleep(0.2)
            assert client.get("/health").json()["model"] == "ppo-1"
            run.rollback()
        finally:
            stop.set()
            thread.join()
        assert not lost and len(answered) > 10
        refused = client.post("/v1/rollback", json={})
        assert refused.status_code == 400 and "no other model before it" in refused.json()["error"]["message"]


def test_stop_is_repeated_until_it_is_heard(tmp_path, monkeypatch):
    """An interrupt that is swallowed (inside a destructor, say) must not let a training go on that the user stopped."""
    deaf = """import sys, time, pathlib, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
pathlib.Path("ready").touch()
for _ in range(2):
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        pass
sys.exit(130)"""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(improve, "COMMAND", deaf)
    monkeypatch.setattr(background, "AGAIN", 0.2)
    trainer = improve.Trainer(Run(tmp_path))
    trainer.start(people_only=False)
    until = time.time() + 30
    while time.time() < until and not (tmp_path / "ready").exists():
        time.sleep(0.05)
    trainer.stop()
    while time.time() < until and trainer.alive:
        time.sleep(0.05)
    events = trainer.events()
    assert trainer.state(events) == "failed" and events[-1]["message"] == "Stopped. The same command continues."


def test_what_goes_wrong_is_told(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run.path / "sft", folder / "sft")
    with served(Run(folder)) as url, httpx.Client(base_url=url, timeout=60) as client:
        client.post("/v1/improve", json={})
        text = client.get("/v1/improve/events").text
        assert "has no feedback yet" in text and text.endswith("data: [DONE]\n\n")
        assert client.get("/v1/improve").json()["state"] == "failed"
        assert client.post("/v1/improve", json={"people_only": "yes"}).status_code == 400
        assert client.post("/v1/improve/stop", json={}).json() == {"state": "failed"}
    with served(Run(folder), "--feedback", "off") as url:
        assert httpx.get(f"{url}/v1/improve").status_code == 404 and not httpx.get(f"{url}/v1/run").json()["improve"]
    assert ServeConfig().improve is None
