from __future__ import annotations

import json
import re

import pytest
from fastapi.testclient import TestClient

from jielong.generate.engine import Engine
from jielong.serve.app import Served, make_app
from jielong.serve.keys import Keys, make_key

HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def client(model, tokenizer):
    with TestClient(make_app([Served(Engine(model, tokenizer, name="sft"))])) as client:
        yield client


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
        ({"top_logprobs": 99}, 400), ({"model": "nothing"}, 404), ({"continue_from": [10**6]}, 400), ({"max_tokens": -1}, 400),
        ({"logit_bias": {"x": 1}}, 400), ({"logit_bias": {"999999": 1}}, 400), ({"logit_bias": {"9" * 5000: 1}}, 400), ({"n": 99}, 400), ({"messages": "Hi"}, 400),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, 400),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "strin"}}}}, 400),
        ({"messages": [{"role": "user", "content": "x" * 3000}]}, 400),
    ],
)  # fmt: skip
def test_mistakes_have_openai_form(client, body, status):
    response = chat(client, **body)
    assert response.status_code == status and response.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "settings",
    [{"temperature": 2.3e-308}, {"repetition_penalty": 5e-324}, {"top_p": 5e-324, "min_p": 5e-324}, {"temperature": 1e-40, "min_p": 1}],
)  # fmt: skip
def test_settings_at_their_limits_are_answered(client, settings, stream):
    response = chat(client, logprobs=True, top_logprobs=20, stream=stream, **settings)
    assert response.status_code == 200
    assert not re.search(r"NaN|Infinity", response.text)


def test_closed_to_other_sites(client):
    assert client.get("/health", headers={"Host": "evil.example"}).status_code == 403
    assert client.post("/v1/chat/completions", content="{}", headers={"Content-Type": "text/plain"}).status_code == 415
    assert client.post("/v1/completions", json={"prompt": "x" * 4_100_000}).status_code == 413
    chunks = client.post(
        "/v1/completions", content=(b"x" * 10**6 for _ in range(6)), headers={"Content-Type": "application/json"}
    )
    assert chunks.status_code == 413
    response = client.get("/", headers={"Origin": "http://evil.example"})
    assert "access-control-allow-origin" not in response.headers
    assert "default-src 'self'" in response.headers["content-security-policy"]
    assert client.get("/page/..%2fapp.py").status_code == 404
    assert client.get("/nothing").json()["error"]["message"]


def test_models_health_and_report(client):
    assert client.get("/v1/models").json()["data"][0]["id"] == "sft"
    assert client.get("/health").json()["status"] == "ok"
    assert client.get("/report").status_code == 404


def test_choices_seeds_and_usage(client, tokenizer):
    found = chat(client, n=3, temperature=1.0).json()
    assert [c["index"] for c in found["choices"]] == [0, 1, 2]
    single = chat(client, temperature=1.0, seed=2).json()["choices"][0]["message"]
    assert found["choices"][1]["message"] == single  # the second of three has the next seed
    alone = chat(client, temperature=1.0).json()["usage"]["prompt_tokens"]
    assert found["usage"]["prompt_tokens"] == alone
    prompts = ["The", tokenizer.encode("capital"), tokenizer.encode("of")]
    for prompt in (prompts[:1] * 2, prompts[1:]):
        body = {"prompt": prompt, "n": 2, "max_tokens": 3, "temperature": 0}
        texts = [c["text"] for c in client.post("/v1/completions", json=body).json()["choices"]]
        assert len(texts) == 4 and texts[0] == texts[1] and texts[2] == texts[3]


def test_streamed_choices_stand_apart(client):
    whole = [c["message"]["content"] for c in chat(client, n=3, temperature=1.0).json()["choices"]]
    texts = ["", "", ""]
    for part in events(chat(client, n=3, temperature=1.0, stream=True)):
        choice = part["choices"][0]
        texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == whole


def test_echo_scores_the_prompt(client, model, tokenizer):
    import torch

    from jielong.model.gpt import causal_mask

    ids = tokenizer.encode("The capital of France")
    body = {"prompt": ids, "max_tokens": 0, "echo": True, "logprobs": 1}
    choice = client.post("/v1/completions", json=body).json()["choices"][0]
    found = choice["logprobs"]
    with torch.no_grad():
        expected = model.logits(model(torch.tensor([ids]), causal_mask(len(ids))))[0].log_softmax(-1)
    assert choice["text"] == "The capital of France" and found["token_logprobs"][0] is None
    for n, value in enumerate(found["token_logprobs"][1:], start=1):
        assert abs(value - float(expected[n - 1, ids[n]])) < 1e-3
        assert max(found["top_logprobs"][n].values()) >= value
    starts = [choice["text"][a:b] for a, b in zip(found["text_offset"], [*found["text_offset"][1:], None])]
    assert starts == found["tokens"]
    # with an answer: the last entries are the answer's
    more = client.post("/v1/completions", json={**body, "max_tokens": 1, "temperature": 0}).json()["choices"][0]
    assert (
        more["logprobs"]["token_logprobs"][: len(ids)] == found["token_logprobs"]
        and len(more["logprobs"]["tokens"]) == len(ids) + 1
    )


def test_json_answers(client):
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    for seed in range(3):
        choice = chat(client, response_format=form, temperature=1.0, seed=seed, max_tokens=40).json()["choices"][0]
        if choice["finish_reason"] == "stop":
            assert isinstance(json.loads(choice["message"]["content"])["a"], int)
        else:
            assert choice["message"]["content"].startswith('{"a":')
    anything = chat(client, response_format={"type": "json_object"}, temperature=1.0, max_tokens=5).json()
    assert anything["choices"][0]["message"]["content"].startswith("{")


def test_embeddings_and_tokens(client, tokenizer):
    import base64
    import math
    import struct

    found = client.post("/v1/embeddings", json={"input": ["The capital", "法國"]}).json()
    vector = found["data"][1]["embedding"]
    assert len(vector) == 32 and math.isclose(sum(v * v for v in vector), 1, rel_tol=1e-4)
    raw = client.post("/v1/embeddings", json={"input": "法國", "encoding_format": "base64"}).json()["data"][0][
        "embedding"
    ]
    assert struct.unpack("<32f", base64.b64decode(raw)) == pytest.approx(vector)
    tokens = client.post("/tokenize", json={"prompt": "The capital 法國"}).json()
    assert tokens["tokens"] == tokenizer.encode("The capital 法國") and tokens["count"] == len(tokens["tokens"])
    assert client.post("/detokenize", json={"tokens": tokens["tokens"]}).json()["prompt"] == "The capital 法國"
    assert client.post("/tokenize", json={"messages": HI}).json()["tokens"][0] == tokenizer.im_start
    for path, body in (("/tokenize", {}), ("/detokenize", {"tokens": [10**6]}), ("/v1/embeddings", {"input": []})):
        assert client.post(path, json=body).status_code in (200, 400)


def test_request_ids_and_metrics(client):
    response = client.get("/health", headers={"X-Request-Id": "mine-1"})
    assert response.headers["x-request-id"] == "mine-1"
    assert client.get("/health", headers={"X-Request-Id": "bad id!"}).headers["x-request-id"].startswith("req_")
    chat(client)
    client.get("/nothing/at/all")
    text = client.get("/metrics").text
    assert 'jielong_requests_total{path="/v1/chat/completions",status="200"} 1.0' in text
    assert 'path="other",status="404"' in text and "nothing" not in text
    assert 'jielong_generated_tokens_total{model="sft"}' in text


def test_two_models(model, tokenizer):
    import copy

    import torch

    other = copy.deepcopy(model)
    with torch.no_grad():
        other.blocks[0].mlp.up.weight.add_(1.0)
    served = [Served(Engine(model, tokenizer, name="a")), Served(Engine(other, tokenizer, name="b"))]
    with TestClient(make_app(served)) as client:
        assert [m["id"] for m in client.get("/v1/models").json()["data"]] == ["a", "b"]
        assert client.get("/v1/models/b").json()["id"] == "b" and client.get("/v1/models/c").status_code == 404
        answers = [chat(client, model=name, temperature=0).json() for name in ("a", "b", None)]
        assert [a["model"] for a in answers] == ["a", "b", "a"]
        assert answers[0]["choices"] == answers[2]["choices"] != answers[1]["choices"]


def test_keys(model, tokenizer, tmp_path):
    file = tmp_path / "keys.json"
    key = make_key(file, "me")
    assert key not in file.read_text()
    with pytest.raises(Exception, match="already"):
        make_key(file, "me")
    with TestClient(make_app([Served(Engine(model, tokenizer))], Keys(file)), base_url="http://box.example") as client:
        assert client.get("/health").status_code == 200 and client.get("/").status_code == 200
        refused = chat(client)
        assert refused.status_code == 401 and refused.json()["error"]["type"] == "authentication_error"
        for wrong in ("Bearer x", key, f"Basic {key}"):
            assert client.get("/v1/models", headers={"Authorization": wrong}).status_code == 401
        assert client.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200


def test_a_full_queue_is_429(model, tokenizer):
    app = make_app([Served(Engine(model, tokenizer, rows=1))], waiting=1)
    with TestClient(app) as client:
        assert chat(client, n=2).status_code == 200
        full = chat(client, n=3)
        assert full.status_code == 429 and full.headers["retry-after"] == "1"
        app.state.worker.closing = True
        assert chat(client).status_code == 503


def test_cors_is_closed_unless_opened(client, model, tokenizer):
    ask = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in client.options("/v1/models", headers=ask).headers
    with TestClient(make_app([Served(Engine(model, tokenizer))], origins=("https://a.example",))) as opened:
        allowed = opened.options("/v1/models", headers=ask)
        assert allowed.headers["access-control-allow-origin"] == "https://a.example"
