"""Feedback over HTTP, up to what a reward model reads."""

from __future__ import annotations

import json

import pytest
from fastapi.testclient import TestClient

from jielong.feedback.exchange import labels
from jielong.feedback.store import Store
from jielong.generate.engine import Engine
from jielong.serve.app import Served, make_app
from jielong.serve.keys import Keys, make_key

HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "f.db", cap=6)


@pytest.fixture
def client(model, tokenizer, store):
    app = make_app([Served(Engine(model, tokenizer, name="sft"))], feedback=lambda: store)
    with TestClient(app) as client:
        yield client


def ask(client, **body):
    body = {"messages": HI, "max_tokens": 6, "seed": 1, "temperature": 0.9, "ignore_eos": True, **body}
    return client.post("/v1/chat/completions", json=body)


def press(client, **body):
    return client.post("/feedback", json=body)


def test_a_thumb_is_stored_with_what_ppo_needs(client, store, tokenizer):
    answer = ask(client, logprobs=True, user="ann").json()
    assert press(client, kind="thumb", answer=answer["id"], value="up", user="ann", text="nice").json() == {"id": 1}
    kept = store.answers_of([answer["id"]])[answer["id"]]
    tokens = answer["choices"][0]["logprobs"]["content"]
    assert kept.answer_ids == [t["id"] for t in tokens] and kept.messages == HI and kept.user == "ann"
    assert kept.logprobs == pytest.approx([t["sampling_logprob"] for t in tokens], abs=1e-6)
    assert kept.sampling["temperature"] == 0.9 and kept.sampling["seed"] == 1 and kept.model == "sft"
    (thumb,), _ = labels(store, tokenizer)
    assert thumb.up and list(thumb.answer) == kept.answer_ids and list(thumb.prompt) == kept.prompt_ids
    row = json.loads(client.get("/feedback/export").text)
    assert row["completion"][0]["content"] == answer["choices"][0]["message"]["content"] and row["label"] is True
    assert client.get("/feedback/stats").json()["users"]["ann"]["up"] == 1
    # nothing is written of what nobody judges
    ask(client)
    assert len(store.answers_of([answer["id"]])) == 1 and store.known(answer["id"])


def test_streamed_further_and_continued_answers(client, store, tokenizer):
    streamed = ask(client, stream=True, n=2)
    name = json.loads(streamed.text.split("\n\n")[0][6:])["id"]
    assert (
        press(client, kind="compare", answer=name, other=f"{name}:1", value="other", shown="other").status_code == 201
    )
    assert press(client, kind="teach", answer=name, text="Hello there!").status_code == 201
    begun = [5, 6]
    continued = ask(client, continue_from=begun).json()["id"]
    assert press(client, kind="thumb", answer=continued, value="down").status_code == 201
    kept = store.answers_of([continued])[continued]
    assert kept.answer_ids[:2] == begun and len(kept.answer_ids) == 8 == len(kept.logprobs)
    assert [e.kind for e in store.current()] == ["compare", "teach", "thumb"]
    assert press(client, kind="undo", undoes=3).status_code == 201
    assert [e.kind for e in store.current()] == ["compare", "teach"]
    # a comparison, and the demonstration as better than the answer that it was written for
    _, (compared, taught) = labels(store, tokenizer)
    assert tokenizer.decode(i for i in taught.chosen if i not in tokenizer.ends) == "Hello there!"
    assert taught.rejected == compared.rejected and taught.chosen[-1] in tokenizer.ends


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"kind": "thumb", "answer": "chatcmpl-0", "value": "up"}, 404, "not known here any more"),
        ({"kind": "thumb", "answer": "KNOWN", "value": "answer"}, 400, "value of a thumb"),
        ({"kind": "thumb", "answer": "KNOWN", "value": 1}, 400, "value"),
        ({"kind": "wave", "answer": "KNOWN"}, 400, "kind"),
        ({"kind": "thumb", "value": "up"}, 400, "names the answer"),
        ({"kind": "compare", "answer": "KNOWN", "other": "KNOWN", "value": "tie"}, 400, "two different"),
        ({"kind": "undo", "undoes": 99}, 400, "no feedback 99"),
        ({"kind": "thumb", "answer": "KNOWN", "value": "up", "text": "x" * 30_000}, 400, "text"),
        ({"kind": "thumb", "answer": "KNOWN", "value": "up", "text": "x" * 5_000_000}, 413, "larger than"),
        ({"kind": "thumb", "answer": "KNOWN", "value": "up", "reasons": ["x"] * 30}, 400, "reasons"),
    ],
)
def test_bad_feedback(client, store, body, status, says):
    known = ask(client).json()["id"]
    response = press(client, **{k: known if v == "KNOWN" else v for k, v in body.items()})
    assert response.status_code == status and says in response.json()["error"]["message"]
    assert store.all_events() == []


def test_double_votes_and_the_cap(client, store):
    name = ask(client).json()["id"]
    for value in ("up", "up", "down"):
        assert press(client, kind="thumb", answer=name, value=value).status_code == 201
    assert [e.value for e in store.current()] == ["down"]
    for _ in range(3):
        press(client, kind="thumb", answer=name, value="up")
    refused = press(client, kind="thumb", answer=name, value="down")
    assert refused.status_code == 429 and "today" in refused.json()["error"]["message"]
    assert [e.value for e in store.current()] == ["up"]


def test_postgres_goes_away_in_mid_service(model, tokenizer, postgres):
    url, stop, start = postgres
    store = Store(url)
    app = make_app([Served(Engine(model, tokenizer, name="sft"))], feedback=lambda: store)
    with TestClient(app) as client:
        name = ask(client).json()["id"]
        assert press(client, kind="thumb", answer=name, value="up", user="zed").status_code == 201
        stop()
        try:
            lost = press(client, kind="thumb", answer=name, value="down", user="zed")
            assert lost.status_code == 503 and "nothing was stored" in lost.json()["error"]["message"]
            assert ask(client).status_code == 200  # answers go on
        finally:
            start()
        assert [e.value for e in store.current() if e.user == "zed"] == ["up"]
        assert press(client, kind="thumb", answer=name, value="down", user="zed").status_code == 201
    store.erase("zed")
    store.engine.dispose()


def test_the_key_names_the_user(model, tokenizer, tmp_path):
    file = tmp_path / "keys.json"
    key = make_key(file, "lab")
    store = Store(tmp_path / "f.db")
    app = make_app([Served(Engine(model, tokenizer, name="sft"))], keys=Keys(file), feedback=lambda: store)
    with TestClient(app, headers={"Authorization": f"Bearer {key}"}) as client:
        name = ask(client).json()["id"]
        assert press(client, kind="thumb", answer=name, value="up", user="ann").status_code == 201
    assert [e.user for e in store.current()] == ["key:lab/ann"]


def test_switched_off(model, tokenizer):
    with TestClient(make_app([Served(Engine(model, tokenizer, name="sft"))])) as client:
        assert press(client, kind="undo", undoes=1).status_code in (404, 405)
