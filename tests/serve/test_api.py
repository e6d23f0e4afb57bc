from __future__ import annotations

import json

import pytest
from fastapi.testclient import TestClient

from jielong.generate.engine import Engine
from jielong.serve.app import make_app

HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def client(model, tokenizer):
    return TestClient(make_app(Engine(model, tokenizer, name="sft")))


def chat(client, **body):
    return client.post("/v1/chat/completions", json={"messages": HI, "max_tokens": 6, "seed": 1, **body})


def events(response):
    parts = [line[6:] for line in response.text.split("\n\n") if line]
    assert parts[-1] == "[DONE]"
    return [json.loads(p) for p in parts[:-1]]


def test_whole_and_streamed_answers_agree(client):
    whole = chat(client).json()
    assert whole["object"] == "chat.completion" and whole["usage"]["completion_tokens"] <= 6
    parts = events(chat(client, stream=True, stream_options={"include_usage": True}))
    text = "".join(c["choices"][0]["delta"].get("content", "") for c in parts if c["choices"])
    assert text == whole["choices"][0]["message"]["content"]
    assert parts[0]["choices"][0]["delta"]["role"] == "assistant" and parts[-1]["usage"] == whole["usage"]
    assert parts[-2]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]


def test_logprobs_and_continuing_from_a_candidate(client, tokenizer):
    answer = chat(client, logprobs=True, top_logprobs=4).json()["choices"][0]
    entries = answer["logprobs"]["content"]
    assert all(len(e["top_logprobs"]) == 4 and bytes(e["bytes"]) == tokenizer.token_bytes(e["id"]) for e in entries)
    first = [e["id"] for e in entries[:3]]
    again = chat(client, logprobs=True, temperature=0, continue_from=first).json()["choices"][0]
    shorter = chat(client, logprobs=True, temperature=0, continue_from=first[:2]).json()["choices"][0]
    assert again["logprobs"] != shorter["logprobs"]  # the beginning was read
    follow = [*first, again["logprobs"]["content"][0]["id"]]
    after = chat(client, logprobs=True, temperature=0, continue_from=follow).json()["choices"][0]["logprobs"]["content"]
    assert after[0]["id"] == again["logprobs"]["content"][1]["id"]


def test_completions_by_text_and_ids(client, tokenizer):
    a = client.post("/v1/completions", json={"prompt": "The", "max_tokens": 4, "temperature": 0, "logprobs": 2}).json()
    ids = tokenizer.encode("The")
    b = client.post("/v1/completions", json={"prompt": ids, "max_tokens": 4, "temperature": 0, "logprobs": 2}).json()
    assert a["choices"] == b["choices"] and len(a["choices"][0]["logprobs"]["tokens"]) <= 4


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"messages": []}, 400), ({"messages": [{"role": "robot", "content": "x"}]}, 400), ({"temperature": -1}, 400),
        ({"top_logprobs": 99}, 400), ({"model": "nothing"}, 404), ({"continue_from": [10**6]}, 400), ({"max_tokens": 0}, 400),
    ],
)  # fmt: skip
def test_mistakes_have_openai_form(client, body, status):
    response = chat(client, **body)
    assert response.status_code == status and response.json()["error"]["message"]


def test_closed_to_other_sites(client):
    assert client.get("/health", headers={"Host": "evil.example"}).status_code == 403
    assert client.post("/v1/chat/completions", content="{}", headers={"Content-Type": "text/plain"}).status_code == 415
    assert client.post("/v1/completions", json={"prompt": "x" * 1_100_000}).status_code == 413
    response = client.get("/", headers={"Origin": "http://evil.example"})
    assert "access-control-allow-origin" not in response.headers
    assert "default-src 'self'" in response.headers["content-security-policy"]
    assert client.get("/page/..%2fapp.py").status_code == 404
    assert client.get("/nothing").json()["error"]["message"]


def test_models_health_and_report(client):
    assert client.get("/v1/models").json()["data"][0]["id"] == "sft"
    assert client.get("/health").json()["status"] == "ok"
    assert client.get("/report").status_code == 404
