from __future__ import annotations

import threading

import pytest
import torch

from jielong.errors import UserError
from jielong.generate.engine import Engine, Utf8Stream
from jielong.generate.sampling import Sampling, distribution, draw
from jielong.model.gpt import causal_mask


@pytest.fixture
def engine(model, tokenizer):
    return Engine(model, tokenizer)


def plain_greedy(engine, prompt, count):
    out = []
    for _ in range(count):
        tokens = torch.tensor([prompt + out])
        logits = engine.model.logits(engine.model(tokens, causal_mask(tokens.shape[1]))[:, -1])[0]
        out.append(int(logits.argmax()))
    return out


def test_streamed_and_batched_greedy_equal_plain_forward(engine):
    prompts = [engine.tokenizer.encode(t) for t in ("The capital", "法國的首都是", "People in Japan speak")]
    batched = engine.generate(prompts, max_tokens=8)
    for prompt, answer in zip(prompts, batched, strict=True):
        streamed = [s.token_id for s in engine.stream(prompt, Sampling(temperature=0, max_tokens=8))]
        plain = plain_greedy(engine, prompt, 8)
        assert streamed == plain[: len(streamed)] and answer == plain[: len(answer)]


def test_logprobs_are_the_models_own(engine):
    prompt = engine.tokenizer.encode("The capital of")
    step = next(iter(engine.stream(prompt, Sampling(temperature=1.5, seed=1, top_logprobs=5))))
    logits = engine.model.logits(engine.model(torch.tensor([prompt]), causal_mask(len(prompt)))[:, -1])[0]
    expected = logits.detach().log_softmax(-1)
    assert abs(step.logprob - float(expected[step.token_id])) < 1e-4
    assert [t[0] for t in step.top] == expected.topk(5).indices.tolist()


def test_sampling_has_the_exact_distribution():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    sampling = Sampling(temperature=0.8)
    generator = torch.Generator().manual_seed(0)
    n = 20_000
    counts = torch.bincount(torch.tensor([draw(logits, sampling, generator) for _ in range(n)]), minlength=4)
    expected = torch.softmax(logits / 0.8, -1) * n
    assert float(((counts - expected) ** 2 / expected).sum()) < 16.27  # chi-square, 3 degrees of freedom, p = 0.001


def test_cuts():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert (distribution(logits, Sampling(temperature=1, top_k=2)) > 0).tolist() == [True, True, False, False]
    assert (distribution(logits, Sampling(temperature=1, top_p=0.75)) > 0).tolist() == [True, True, False, False]
    assert (distribution(logits, Sampling(temperature=1, min_p=0.25)) > 0).tolist() == [True, True, True, False]


def test_half_a_character_is_never_shown():
    stream = Utf8Stream()
    shown = [stream.push(bytes([b])) for b in "a法b".encode()]
    assert shown == ["a", "", "", "法", "b"]


def test_stop_strings_cancel_and_seed(engine):
    prompt = engine.tokenizer.encode("The capital")
    sampling = Sampling(temperature=1.0, seed=5, max_tokens=20)
    full = "".join(s.text for s in engine.stream(prompt, sampling))
    assert full == "".join(s.text for s in engine.stream(prompt, sampling))
    stop = full[4:6]
    steps = list(engine.stream(prompt, Sampling(temperature=1.0, seed=5, max_tokens=20, stop=(stop,))))
    assert "".join(s.text for s in steps) == full[: full.index(stop)] and steps[-1].finish == "stop"
    cancel = threading.Event()
    cancel.set()
    assert len(list(engine.stream(prompt, sampling, cancel))) == 1


def test_bad_prompts(engine):
    for prompt in ([], [1] * 64, [10_000]):
        with pytest.raises(UserError):
            next(iter(engine.stream(prompt, Sampling())))
