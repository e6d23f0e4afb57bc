"""POST /reward: our own form, the requests that OpenRLHF and verl make, mistakes, and generation beside it."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from pathlib import Path

import pytest
import torch
import uvicorn
from fastapi.testclient import TestClient

from jielong.align.scoring import Answered, Scored, score
from jielong.errors import UserError
from jielong.generate.engine import Engine
from jielong.generate.sampling import Sampling
from jielong.model.gpt import GPT, save_model
from jielong.run import Run
from jielong.serve import reward as module
from jielong.serve.app import Served, make_app
from jielong.serve.keys import Keys, make_key
from jielong.serve.reward import RewardModel, answered, opener, text_ids
from jielong.tokens.chat import encode_chat
from jielong.tokens.tokenizer import Tokenizer

HI = [{"role": "user", "content": "Hi"}]
CHATS = [
    (HI, "Hello!"),
    ([{"role": "user", "content": "  two spaces\n\nand lines"}], "\n a\n"),
    ([{"role": "system", "content": "短"}, {"role": "user", "content": "日本？"}], "日文，" * 5),
    ([*HI, {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "?"}], ""),
]
MARKED = "a<|im_end|>\n<|im_start|>user\nb"


@pytest.fixture
def judge(model, tokenizer) -> RewardModel:
    body = GPT(model.config)
    body.load_state_dict(model.state_dict())
    scored = Scored(body)
    with torch.no_grad():
        scored.score.weight.normal_()
        scored.score.bias.fill_(0.4)
    return RewardModel(scored, tokenizer)


@pytest.fixture
def app(model, tokenizer, judge):
    return make_app([Served(Engine(model, tokenizer, name="sft"))], reward=lambda: judge)


@pytest.fixture
def client(app):
    with TestClient(app) as client:
        yield client


def ask(client, body) -> list[float]:
    response = client.post("/reward", json=body)
    assert response.status_code == 200, response.text
    return response.json()["rewards"]


def written(messages, answer: str = "", end: bool = True) -> str:
    """ChatML as the exported policy's tokenizer decodes it."""
    text = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages) + "<|im_start|>assistant\n"
    return text + answer + "<|im_end|>" * end


def expected(judge, sequences) -> list[float]:
    return score(judge.model, sequences, torch.float32).tolist()


def test_own_form_one_by_one_and_together(client, judge, tokenizer):
    own = []
    for messages, answer in CHATS:
        prompt = encode_chat(tokenizer, messages, True)[0]
        own.append(Answered(tuple(prompt), (*tokenizer.encode(answer), tokenizer.im_end)))
    rewards = expected(judge, own)
    assert len({round(r, 3) for r in rewards}) == len(rewards)
    rows = [{"messages": messages, "answer": answer} for messages, answer in CHATS]
    assert [ask(client, row)[0] for row in rows] == pytest.approx(rewards, abs=1e-5)
    assert ask(client, {"answers": rows}) == pytest.approx(rewards, abs=1e-5)
    assert ask(client, rows) == pytest.approx(rewards, abs=1e-5)
    cut = Answered(own[0].prompt, own[0].answer[:-1])
    assert ask(client, {**rows[0], "ended": False}) == pytest.approx(expected(judge, [cut]), abs=1e-5)
    # a text that looks like markup is text
    marked = Answered(tuple(encode_chat(tokenizer, HI, True)[0]), (*tokenizer.encode(MARKED), tokenizer.im_end))
    assert ask(client, {"messages": HI, "answer": MARKED}) == pytest.approx(expected(judge, [marked]), abs=1e-5)


def test_openrlhf(client, judge):
    """One post per answer: the decoded prompt and answer, the prompt, the label; the first reward is read."""
    plain = ask(client, [{"messages": messages, "answer": answer} for messages, answer in CHATS])
    for (messages, answer), reward in zip(CHATS, plain, strict=True):
        query, prompt = written(messages, answer), written(messages, end=False)
        body = client.post("/reward", json={"query": [query], "prompts": [prompt], "labels": [""]}).json()
        assert torch.tensor([body["rewards"]]).flatten().tolist() == pytest.approx([reward], abs=1e-5)
        assert body["scores"] == body["rewards"] and body["extra_logs"] == {}
    together = ask(client, {"query": [written(*chat) for chat in CHATS], "prompts": [], "labels": None})
    assert together == pytest.approx(plain, abs=1e-5)
    # what a template writes after the end of the answer does not count; an answer without an end was cut off
    assert ask(client, {"query": [written(*CHATS[0]) + "\n"]}) == pytest.approx(plain[:1], abs=1e-5)
    cut = ask(client, {"messages": HI, "answer": "Hello!", "ended": False})
    assert ask(client, {"query": [written(HI, "Hello!", end=False)]}) == pytest.approx(cut, abs=1e-5)


def test_ids_that_the_engine_drew_come_back(model, tokenizer):
    """Prompt and answer of the policy, decoded with their special tokens as OpenRLHF does, are the same ids again wherever
    the answer is spelt as the tokenizer spells it."""
    prompt = Engine(model, tokenizer).chat_ids(HI)
    answer = [*tokenizer.encode("People in Japan speak 日本"), tokenizer.im_end]
    text = tokenizer.rust.decode([*prompt, *answer], skip_special_tokens=False)
    assert text_ids(tokenizer, text) == [*prompt, *answer]


def imported(tokenizer) -> Tokenizer:
    """With a template of its own, of which a line break after each turn is a part."""
    turn = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    template = turn + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ends = [tokenizer.im_end]
    return Tokenizer(tokenizer.rust, {"eos_token": "<|im_end|>", "chat_template": template, "ends": ends})


def test_imported_templates(tokenizer):
    foreign = imported(tokenizer)
    for messages, answer in CHATS:
        own = answered(foreign, messages, answer, True)
        assert own.answer[-1] == foreign.im_end
        for after in ("", "\n"):
            assert tuple(text_ids(foreign, written(messages, answer) + after)) == own.prompt + own.answer
        if answer:  # without an end: nothing follows the end of the question but the answer
            cut, also = (
                text_ids(foreign, written(messages, answer, end=False)),
                answered(foreign, messages, answer, False),
            )
            assert tuple(cut) == (own.prompt + own.answer)[:-1] == also.prompt + also.answer
    marked = answered(foreign, HI, MARKED, True)
    assert marked.answer.count(foreign.im_end) == 1 and marked.answer[-1] == foreign.im_end


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "give one of"),
        ([], "answers"),
        ("Hi", "valid dictionary"),
        ({"query": []}, "query"),
        ({"query": "Hi"}, "query"),
        ({"query": [1]}, "query.0"),
        ({"query": ["Hi"]}, "chat template"),
        ({"query": ["x"] * 257}, "256"),
        ({"query": ["x"], "messages": HI, "answer": "x"}, "give one of"),
        ({"messages": HI}, "belong together"),
        ({"answer": "x"}, "belong together"),
        ({"messages": [], "answer": "x"}, "messages"),
        ({"messages": HI, "answer": None}, "belong together"),
        ({"messages": HI, "answer": 5}, "answer"),
        ({"messages": [{"role": "robot", "content": "x"}], "answer": "x"}, "role"),
        ([{"messages": HI, "answer": "x", "ended": "no"}], "answers.0.ended"),
        ([{"messages": HI}], "answers.0.answer"),
        ({"messages": HI, "answer": "x" * 3000}, "reads at most 64"),
        ({"query": [written(HI, "x"), written(HI, "y" * 300)]}, "Text 1 has"),
    ],
)
def test_mistakes(client, body, says):
    response = client.post("/reward", json=body)
    problem = response.json()["error"]
    assert response.status_code == 400 and says in problem["message"] and problem["type"] == "invalid_request_error"


def test_without_a_model_and_with_a_wrong_one(tmp_path, model, tokenizer, judge):
    run = Run(tmp_path)
    engine = Engine(model, tokenizer)
    with run.build("sft", kind="sft", config={}) as build:
        save_model(model, build.path)
        tokenizer.save(build.path)
    with pytest.raises(UserError, match="no reward model but sft"):
        opener("sft", run, "fp32")
    with pytest.raises(UserError, match="no other yet"):
        opener("other", run, "fp32")
    body = {"messages": HI, "answer": "Hello!"}
    with TestClient(make_app([Served(engine)], reward=opener("", run, "fp32"))) as client:
        missing = client.post("/reward", json=body)
        assert missing.status_code == 404 and "no reward model" in missing.json()["error"]["message"]
        with run.build("reward", kind="reward", config={}) as build:
            judge.model.save(build.path)
            tokenizer.save(build.path)
        found = client.post("/reward", json=body).json()  # it is there now
        own = answered(tokenizer, HI, "Hello!", True)
        assert found["rewards"] == pytest.approx(expected(judge, [own]), abs=1e-5) and found["model"] == "reward"
    for number in (9, 10):  # `jielong improve` numbers them; the newest is taken, not the alphabetically last
        with run.build(f"reward-{number}", kind="reward", config={}) as build:
            judge.model.save(build.path)
            tokenizer.save(build.path)
    assert [opener(name, run, "fp32")().name for name in ("", "reward-9")] == ["reward-10", "reward-9"]
    for load in (None, opener("off", run, "fp32")):
        with TestClient(make_app([Served(Engine(model, tokenizer))], reward=load)) as client:
            assert client.post("/reward", json=body).status_code == 404


def test_generation_goes_on_between_the_chunks(client, judge, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 32)
    whole = Engine(judge.model.body, judge.tokenizer).answer(HI, Sampling(temperature=0, max_tokens=30))
    body = {"messages": HI, "temperature": 0, "max_tokens": 30}
    told: list[str] = []

    def chat() -> None:
        told.append(client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"])

    sizes: list[int] = []
    real = judge.score
    monkeypatch.setattr(judge, "score", lambda own: sizes.append(sum(map(len, own))) or real(own))
    thread = threading.Thread(target=chat)
    thread.start()
    rewards = ask(client, [{"messages": HI, "answer": f"answer {n}"} for n in range(40)])
    thread.join()
    assert told == [whole] and len(rewards) == 40 and len(sizes) > 10 and max(sizes) <= 32


@pytest.fixture
def served(app):
    """The URL of a real server."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{sock.getsockname()[1]}/reward"
    server.should_exit = True
    thread.join()


def documented() -> dict:
    """The Python file in docs/rlhf-servers.md."""
    text = (Path(__file__).parents[2] / "docs" / "rlhf-servers.md").read_text(encoding="utf-8")
    found: dict = {}
    exec(re.search(r"```python\n(.*?)```", text, re.S)[1], found)
    return found


def test_the_documented_file(served, judge, tokenizer, monkeypatch):
    """As verl calls it (a row's prompt stands in extra_info, the answer has no special tokens), and as OpenRLHF does."""
    monkeypatch.setenv("JIELONG_REWARD", served)
    file = documented()
    plain = expected(judge, [answered(tokenizer, messages, answer, True) for messages, answer in CHATS])
    for (messages, answer), reward in zip(CHATS, plain, strict=True):
        info = {"messages": messages, "num_turns": 2, "rollout_reward_scores": {}}
        given = {"data_source": "own", "solution_str": answer, "ground_truth": "", "extra_info": info}
        assert file["compute_score"](**given) == pytest.approx(reward, abs=1e-5)
        row = file["reward_func"]([written(messages, answer)], [written(messages, end=False)], [""])
        assert row["rewards"] == pytest.approx([reward], abs=1e-5) and row.get("extra_logs") == {}


def test_a_key_is_asked_for(model, tokenizer, judge, tmp_path):
    key = make_key(tmp_path / "keys.json", "trainer")
    app = make_app([Served(Engine(model, tokenizer))], Keys(tmp_path / "keys.json"), reward=lambda: judge)
    with TestClient(app) as client:
        body = {"query": [written(HI, "Hello!")]}
        assert client.post("/reward", json=body).status_code == 401
        answer = client.post("/reward", json=body, headers={"Authorization": f"Bearer {key}"})
        assert answer.status_code == 200 and json.loads(answer.text)["rewards"]
