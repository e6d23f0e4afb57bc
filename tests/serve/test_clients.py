"""The real clients against a real server: the openai package, lm-eval, curl; signals and disconnections."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import openai
import pytest

from jielong.generate.engine import Engine
from jielong.generate.sampling import Sampling

QUESTION = [{"role": "user", "content": "What is the capital of Japan?"}]


def start(life, *options):
    command = [sys.executable, "-m", "jielong.cli", "serve", "--run", str(life), "--no-open", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    found = re.search(r"http://\S+", process.stdout.readline())
    assert found
    for _ in range(100):
        try:
            urllib.request.urlopen(found.group() + "/health", timeout=1)
            break
        except OSError:
            time.sleep(0.1)
    return process, found.group()


@pytest.fixture(scope="module")
def url(life):
    process, url = start(life, "--model", f"tuned={life}", "--model", f"base={life}:base", "--precision", "fp32")
    yield url
    process.terminate()
    assert process.wait(30) in (0, -signal.SIGTERM)


@pytest.fixture
def client(url):
    return openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0)


def test_openai_chat(client, life):
    whole = client.chat.completions.create(model="tuned", messages=QUESTION, temperature=0, max_tokens=20, logprobs=True, top_logprobs=3)  # fmt: skip
    engine = Engine.load(life / "sft")
    expected = engine.answer(QUESTION, Sampling(temperature=0, max_tokens=20))
    assert whole.choices[0].message.content == expected and whole.model == "tuned"
    entries = whole.choices[0].logprobs.content
    assert all(len(e.top_logprobs) == 3 and e.logprob <= 0 and isinstance(e.bytes, list) for e in entries)
    parts = list(client.chat.completions.create(model="tuned", messages=QUESTION, temperature=0, max_completion_tokens=20, stream=True, stream_options={"include_usage": True}))  # fmt: skip
    assert "".join(p.choices[0].delta.content or "" for p in parts if p.choices) == expected
    assert parts[-1].usage == whole.usage.model_copy(update={"prompt_tokens_details": parts[-1].usage.prompt_tokens_details})  # fmt: skip
    assert parts[-2].choices[0].finish_reason == whole.choices[0].finish_reason


def test_openai_completions_embeddings_and_models(client):
    two = client.completions.create(model="base", prompt=["The capital", "日本"], max_tokens=3, n=2, logprobs=2, echo=True)  # fmt: skip
    assert [c.index for c in two.choices] == [0, 1, 2, 3] and two.choices[2].text.startswith("日本")
    assert two.choices[0].logprobs.token_logprobs[0] is None and two.choices[0].logprobs.text_offset[0] == 0
    vector = client.embeddings.create(model="base", input="台灣").data[0].embedding  # base64 on the wire
    plain = client.embeddings.create(model="base", input="台灣", encoding_format="float").data[0].embedding
    assert vector == pytest.approx(plain) and sum(v * v for v in vector) == pytest.approx(1, rel=1e-4)
    assert {m.id for m in client.models.list()} == {"tuned", "base"} and client.models.retrieve("base").id == "base"
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": [{"a": 1}, {"b": 2}]}}}
    found = client.chat.completions.create(model="tuned", messages=QUESTION, response_format=form, temperature=1)
    assert json.loads(found.choices[0].message.content) in ({"a": 1}, {"b": 2})


def test_openai_errors(client, url):
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.chat.completions.create(model="gpt-9", messages=QUESTION)
    with pytest.raises(openai.BadRequestError, match="temperature") as caught:
        client.chat.completions.create(model="tuned", messages=QUESTION, temperature=99)
    assert caught.value.param == "temperature" and caught.value.request_id
    with pytest.raises(openai.BadRequestError, match="at most"):
        client.completions.create(model="tuned", prompt=[5] * 9000)


def test_many_at_once_do_not_mix(client):
    """Each answer must hold its own marker: the prompt's tokens, forced by a bias."""
    from collections import Counter

    vocabulary = client.post("/../tokenize", body={"prompt": "abcdefghijklmnopqrst"}, cast_to=dict)["tokens"]
    letters = [client.post("/../detokenize", body={"tokens": [t]}, cast_to=dict)["prompt"] for t in vocabulary]

    def ask(n):
        letter = vocabulary[n % len(vocabulary)]
        found = client.completions.create(
            model="tuned", prompt=f"say {n}", max_tokens=4 + n % 7, temperature=0, logit_bias={str(letter): 100}
        )
        return found.choices[0].text == letters[n % len(vocabulary)] * (4 + n % 7)

    with ThreadPoolExecutor(24) as pool:
        assert Counter(pool.map(ask, range(120))) == {True: 120}


def test_a_client_that_goes_away_frees_its_place(client, url):
    stream = client.completions.create(model="tuned", prompt=["x"] * 4, n=16, max_tokens=150, stream=True, extra_body={"ignore_eos": True})  # fmt: skip
    next(iter(stream))
    stream.close()

    def slow():
        body = json.dumps(
            {"model": "tuned", "prompt": ["y"] * 4, "n": 16, "max_tokens": 150, "ignore_eos": True}
        ).encode()
        request = urllib.request.Request(url + "/v1/completions", body, {"Content-Type": "application/json"})
        urllib.request.urlopen(request, timeout=0.05)

    with pytest.raises(OSError):
        slow()
    for _ in range(50):
        text = urllib.request.urlopen(url + "/metrics").read().decode()
        if 'jielong_running{model="tuned"} 0.0' in text and 'jielong_waiting{model="tuned"} 0.0' in text:
            return
        time.sleep(0.1)
    raise AssertionError(text)


def test_curl(url):
    curl = shutil.which("curl")
    if not curl:
        assert not os.environ.get("CI"), "CI must have curl"
        pytest.skip("no curl")

    def call(*args):
        command = [curl, "-sS", "-w", "\n%{http_code}", *args]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.rsplit("\n", 1)

    body, status = call(url + "/v1/chat/completions", "-H", "Content-Type: application/json", "-d", json.dumps({"messages": QUESTION}))  # fmt: skip
    assert status == "200" and json.loads(body)["object"] == "chat.completion"
    for data in ("{", '{"messages": [{"role": "user", "content": "\\ud800"}]}', "[]", '{"messages": NaN}'):
        body, status = call(url + "/v1/chat/completions", "-H", "Content-Type: application/json", "-d", data)
        assert status == "400" and json.loads(body)["error"]["message"], data
    broken = subprocess.run([curl, "-sS", "-w", "%{http_code}", "-o", os.devnull, url + "/v1/chat/completions", "-H", "Content-Type: application/json", "--data-binary", "@-"], input=b'{"messages": "\xff\xfe"}', capture_output=True, check=True)  # fmt: skip
    assert broken.stdout == b"400"


def test_sigterm_drains(life):
    process, url = start(life)
    client = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0)
    stream = client.completions.create(model="sft", prompt="x", max_tokens=100, stream=True, extra_body={"ignore_eos": True})  # fmt: skip
    parts = [next(iter(stream))]
    threading.Timer(0.02, process.send_signal, [signal.SIGTERM]).start()
    parts += list(stream)
    assert parts[-1].choices[0].finish_reason == "length"
    assert process.wait(30) in (0, -signal.SIGTERM)


def test_others_need_a_key(life, tmp_path, capsys):
    from jielong.cli import main

    keys = str(tmp_path / "keys.json")
    assert main(["serve", "--run", str(life), "--host", "0.0.0.0", "--keys", keys, "--no-open"]) == 2
    assert "jielong key" in capsys.readouterr().err
    assert main(["key", "--keys", keys]) == 0
    key = capsys.readouterr().out.strip()
    process, url = start(life, "--host", "0.0.0.0", "--keys", keys)
    try:
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=url + "/v1", api_key="wrong", max_retries=0).models.list()
        assert openai.OpenAI(base_url=url + "/v1", api_key=key).models.list().data[0].id == "sft"
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.parametrize("kind", ["local-completions", "local-chat-completions"])
def test_lm_eval(kind, url, life, tmp_path):
    """A log-likelihood task and a generation task of our own, without the network."""
    if not find_spec("lm_eval"):
        pytest.skip("pip install 'lm-eval[api]' to test with it")
    rows = [{"q": f"The capital of {c} is", "a": [" " + x, " Lima"], "t": 0} for c, x in (("Japan", "Tokyo"), ("France", "Paris"))]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = f"dataset_path: json\ndataset_kwargs:\n  data_files: {{test: {tmp_path}/rows.jsonl}}\ntest_split: test\n"
    choice = "task: mine\noutput_type: multiple_choice\ndoc_to_text: q\ndoc_to_choice: a\ndoc_to_target: t\ntarget_delimiter: ''\n"
    free = "task: mine\noutput_type: generate_until\ndoc_to_text: q\ndoc_to_target: '{{a[0]}}'\ngeneration_kwargs: {max_gen_toks: 5, until: [\"\\n\"], temperature: 0.0}\nmetric_list: [{metric: exact_match}]\n"  # fmt: skip
    (tmp_path / "mine.yaml").write_text((choice if kind == "local-completions" else free) + data)
    path = "completions" if kind == "local-completions" else "chat/completions"
    out = tmp_path / "hf"
    from jielong.cli import main

    assert main(["export", str(life), "--to", "hf", "--out", str(out)]) == 0
    model_args = f"model=tuned,base_url={url}/v1/{path},num_concurrent=2,max_retries=1,tokenizer={out},max_length=256"
    command = [sys.executable, "-m", "lm_eval", "--model", kind, "--model_args", model_args, "--tasks", "mine", "--include_path", str(tmp_path), "--output_path", str(tmp_path / "out"), "--log_samples", *(["--apply_chat_template"] if "chat" in path else [])]  # fmt: skip
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, capture_output=True, text=True, env=offline)
    assert done.returncode == 0, done.stderr[-3000:]
    samples = [json.loads(line) for file in (tmp_path / "out").rglob("samples_*.jsonl") for line in file.read_text().splitlines()]  # fmt: skip
    assert len(samples) == 2
    if kind == "local-completions":  # its log-likelihoods are ours
        engine = Engine.load(life / "sft")
        for sample in samples:
            for n, (found, _) in enumerate(sample["filtered_resps"]):
                start_ids = engine.tokenizer.encode(sample["doc"]["q"])
                ids = engine.tokenizer.encode(sample["doc"]["q"] + sample["doc"]["a"][n])
                request = engine.submit(ids, Sampling(max_tokens=0), score=True)
                while engine.step():
                    pass
                assert sum(s.logprob for s in request.scores[len(start_ids) - 1 :]) == pytest.approx(float(found), abs=1e-3)  # fmt: skip
