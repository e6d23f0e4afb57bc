"""The same over HTTP."""

from __future__ import annotations

import shutil

from fastapi.testclient import TestClient

from jielong.edit import stage
from jielong.generate.engine import Engine
from jielong.run import Run
from jielong.serve.app import make_app
from jielong.serve.models import Served


def test_edit_and_undo(raised, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(raised, folder)
    run = Run(folder)

    def renewed(now: str) -> Served | None:
        name = run.serving()
        return None if name == now else Served(Engine.load(run.need(name).path), run.path)

    used: list[int] = []
    monkeypatch.setattr(stage, "use_threads", used.append)
    app = make_app([Served(Engine.load(folder / "sft"), folder)], renewed=renewed, edits=run, threads=2)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        asked = {"prompt": "The capital of France is", "subject": "Spain", "to": "Tokyo"}
        wrong = client.post("/v1/edit", json=asked)
        assert wrong.status_code == 400
        told = wrong.json()["error"]
        assert "does not stand in the prompt" in told["message"] and told["code"] == "no_subject"
        assert told["values"] == {"subject": "Spain", "prompt": "The capital of France is"}
        unknown = client.post("/v1/edit", json=asked | {"prompt": "The capital of Zorblax is", "subject": "Zorblax"})
        assert (unknown.json()["error"]["code"], unknown.json()["error"]["values"]) == (
            "unknown_subject",
            {"subject": "Zorblax"},
        )
        for empty in ({"prompt": "", "subject": "", "to": ""}, asked | {"prompt": ""}):
            assert client.post("/v1/edit", json=empty).json()["error"]["code"] == "empty"
        long = client.post("/v1/edit", json=asked | {"subject": "France", "to": "Tokyo " * 300}).json()["error"]
        assert long["code"] == "too_long" and long["values"]["most"] == 256 < long["values"]["tokens"]
        raw = b'{"prompt": "The capital of France is", "subject": "France", "to": "\\ud800"}'
        assert client.post("/v1/edit", content=raw, headers={"content-type": "application/json"}).status_code in (
            400,
            422,
        )
        assert (
            client.get("/v1/changes").json() == {"changes": [], "in_use": []} and client.get("/v1/run").json()["edit"]
        )
        # the random model knows nothing, and says neither the new nor the old fact: refused, in words and in figures
        right = asked | {"subject": "France", "method": "in-context"}
        refused = client.post("/v1/edit", json=right)
        told = refused.json()["error"]
        assert (
            refused.status_code == 400
            and told["code"] == "refused"
            and told["message"].startswith("Refused, and nothing")
        )
        first = told["values"]["broken"][0]
        assert (
            first["name"] == "efficacy"
            and first["now"] < first["bound"] == 0.95
            and first["least"]
            and first["percent"]
        )
        assert told["values"]["next"] == [{"method": "ridge"}, {"method": "memit"}]
        assert client.get("/v1/changes").json()["changes"] == []
        with run.lock():
            assert client.post("/v1/edit", json=right).json()["error"]["code"] == "busy"
        monkeypatch.setattr(stage, "limits", lambda config: [])
        done = client.post("/v1/edit", json=right | {"method": "ridge"}).json()
        assert done["model"] == "edited-1" and "bits_per_byte" in done["after"]
        assert done["fact"]["prompt"] == right["prompt"] and done["fact"]["target"] == "Tokyo"
        assert client.get("/health").json()["model"] == "edited-1"
        found = client.get("/v1/changes").json()
        assert found["changes"][0]["ids"] == found["in_use"] == [done["id"]]
        assert client.post("/v1/edit", json=right).json()["error"]["code"] == "already"
        assert client.post("/v1/undo", json={"id": "zz"}).json()["error"]["code"] == "no_edit"
        assert client.post("/v1/undo", json={"id": done["id"]}).json() == {"model": "sft"}
        assert client.get("/v1/changes").json()["in_use"] == [] and set(used) == {2}  # those of the server
