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
    monkeypatch.setattr(stage, "limits", lambda config: [])  # the random model breaks them all
    folder = tmp_path / "run"
    shutil.copytree(raised, folder)
    run = Run(folder)

    def renewed(now: str) -> Served | None:
        name = run.serving()
        return None if name == now else Served(Engine.load(run.need(name).path), run.path)

    app = make_app([Served(Engine.load(folder / "sft"), folder)], renewed=renewed, edits=run)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        asked = {"prompt": "The capital of France is", "subject": "Spain", "to": "Tokyo"}
        wrong = client.post("/v1/edit", json=asked)
        assert wrong.status_code == 400 and "does not stand in the prompt" in wrong.json()["error"]["message"]
        assert client.get("/v1/changes").json() == {"changes": []} and client.get("/v1/run").json()["edit"]
        done = client.post("/v1/edit", json=asked | {"subject": "France"}).json()
        assert done["model"] == "edited-1" and "bits_per_byte" in done["after"]
        assert client.get("/health").json()["model"] == "edited-1"
        (entry,) = client.get("/v1/changes").json()["changes"]
        assert entry["ids"] == [done["id"]]
        assert client.post("/v1/undo", json={"id": "zz"}).status_code == 400
        assert client.post("/v1/undo", json={"id": done["id"]}).json() == {"model": "sft"}
