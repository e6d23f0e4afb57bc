from __future__ import annotations

import copy
import itertools
import threading

import pytest
import torch

from jielong.errors import UserError
from jielong.generate.engine import Engine
from jielong.generate.lookup import guess
from jielong.generate.request import TextStream, Utf8Stream
from jielong.generate.sampling import Sampling, distribution, draw, shape_logits
from jielong.model.gpt import causal_mask
from jielong.model.lora import add_lora
from jielong.model.native import library
from jielong.model.runtime import TorchRuntime

TEXTS = (
    "The capital",
    "法國的首都是",
    "People in Japan speak",
    "T",
    "The capital of France is Paris. The capital of France",
)


@pytest.fixture(params=["native", "torch"], autouse=True)
def runtime(request, monkeypatch):
    """Everything below holds for both runtimes."""
    if request.param == "torch":
        monkeypatch.setattr("jielong.model.runtime.library", lambda: None)
    elif library() is None:
        pytest.skip("no compiler")
    return request.param


@pytest.fixture
def engine(model, tokenizer):
    return Engine(model, tokenizer)


@pytest.fixture
def prompts(tokenizer):
    return [tokenizer.encode(t) for t in TEXTS]


def logits_of(model, ids):
    """(T, V) by one plain forward pass"""
    with torch.no_grad():
        return model.logits(model(torch.tensor([ids]), causal_mask(len(ids))))[0]


def check_logprobs(model, request):
    """Every step's raw log-probability against one plain pass over prompt and answer."""
    ids = request.prompt + request.answer
    expected = logits_of(model, ids).log_softmax(-1)
    for n, step in enumerate(request.steps):
        at = len(request.prompt) + n - 1
        assert abs(step.logprob - float(expected[at, step.token_id])) < 1e-4


def test_cached_batched_and_padded_logprobs_equal_one_plain_pass(model, engine, prompts):
    requests = engine.generate(prompts, Sampling(temperature=1.0, seed=3, max_tokens=12, ignore_end=True))
    for request in requests:
        assert len(request.answer) == 12
        check_logprobs(model, request)


def test_an_adapter_that_is_not_merged_speaks_too(model, tokenizer, prompts):
    learner = copy.deepcopy(model)
    add_lora(learner, 2, 4.0, seed=1)
    for name, p in learner.named_parameters():
        if name.endswith("lora.b"):
            torch.nn.init.normal_(p, std=0.5)
    sampling = Sampling(temperature=1.0, seed=3, max_tokens=8, ignore_end=True)
    requests = Engine(learner, tokenizer).generate(prompts, sampling)
    for request in requests:
        check_logprobs(learner, request)
    assert [r.answer for r in requests] != [r.answer for r in Engine(model, tokenizer).generate(prompts, sampling)]


def test_greedy_is_the_likeliest_token_of_a_plain_pass(model, engine, prompts):
    for prompt, request in zip(prompts, engine.generate(prompts, Sampling(temperature=0, max_tokens=8)), strict=True):
        ids = list(prompt)
        for token in request.answer:
            assert token == int(logits_of(model, ids)[-1].argmax())
            ids.append(token)
        assert [s.token_id for s in engine.stream(prompt, Sampling(temperature=0, max_tokens=8))] == request.answer


def test_prefix_cache_computes_once_and_changes_nothing(model, tokenizer):
    model.config.context = 400
    engine = Engine(model, tokenizer)
    shared = tokenizer.encode("The capital of France is Paris. " * 20)[:200]
    sampling = Sampling(temperature=1.0, seed=1, max_tokens=6, ignore_end=True)
    first = engine.generate([[*shared, 70]], sampling)[0]
    second, third = engine.generate([[*shared, 71, 72], first.prompt + first.answer], sampling)
    assert first.cached == 0 and second.cached == 192 and third.cached == 192
    for request in (first, second, third):
        check_logprobs(model, request)
    small = Engine(model, tokenizer, prefix_bytes=1)
    again = small.generate([[*shared, 70]] * 2, sampling)
    assert [r.answer for r in again] == [first.answer] * 2 and again[1].cached == 0 and small.prefixes.size == 0


def test_long_prompts_are_read_in_parts(model, tokenizer):
    model.config.context = 2000
    engine = Engine(model, tokenizer)
    ids = [(7 * n) % 250 for n in range(1300)]
    short = engine.submit([5, 6, 7], Sampling(temperature=0, max_tokens=10, ignore_end=True))
    engine.step()
    long = [engine.submit(ids[k:], Sampling(temperature=0, max_tokens=3, ignore_end=True)) for k in (0, 1, 900)]
    engine.step()
    assert len(short.answer) == 2 and not long[0].answer  # nobody waits for the long prompt
    while any(r.finish is None for r in [short, *long]):
        engine.step()
    for request in [short, *long]:
        check_logprobs(model, request)


def test_an_answer_does_not_depend_on_its_neighbours(engine, prompts):
    sampling = [Sampling(temperature=1.0, seed=n, max_tokens=4 + 5 * n, ignore_end=True) for n in range(5)]
    alone = [engine.generate([p], s)[0].answer for p, s in zip(prompts, sampling, strict=True)]
    requests = []
    for n, (p, s) in enumerate(zip(prompts, sampling, strict=True)):  # they join and leave at different steps
        requests.append(engine.submit(p, s))
        for _ in range(n):
            engine.step()
    while any(r.finish is None for r in requests):
        engine.step()
    assert [r.answer for r in requests] == alone
    narrow = Engine.__new__(Engine)
    narrow.__dict__.update(engine.__dict__, rows=2, slots=[])
    assert [
        r.answer for r in (narrow.submit(p, s) for p, s in zip(prompts, sampling, strict=True)) if _drain(narrow)
    ] == alone


def _drain(engine):
    while engine.step():
        pass
    return True


def test_guessing_changes_no_token(model, tokenizer, prompts):
    plain, guessing = Engine(model, tokenizer), Engine(model, tokenizer, lookup=4)
    for sampling in (
        Sampling(temperature=0, max_tokens=30),
        Sampling(temperature=1.2, top_p=0.9, seed=4, max_tokens=30),
    ):
        a, b = plain.generate(prompts, sampling), guessing.generate(prompts, sampling)
        assert [r.answer for r in a] == [r.answer for r in b]
        for request in b:
            check_logprobs(model, request)
    assert guessing.stats["guessed_right"] > 0 and guessing.stats["steps"] < plain.stats["steps"]


def test_guesses_are_what_followed():
    assert guess([1, 2, 3, 4, 5, 1, 2, 3], [], 2) == [4, 5]
    assert guess([9, 2, 3, 7, 1], [2, 3], 3) == [7, 1, 2]
    assert guess([1, 2, 3], [], 4) == []


def test_precisions_agree_with_the_plain_pass(model, tokenizer, prompts):
    for precision, tolerance in (("bf16", 0.1), ("int8", 0.15)):
        engine = Engine(model, tokenizer, precision=precision)
        for request in engine.generate(prompts, Sampling(temperature=1.0, seed=1, max_tokens=6, ignore_end=True)):
            expected = logits_of(model, request.prompt + request.answer).log_softmax(-1)
            for n, step in enumerate(request.steps):
                wanted = float(expected[len(request.prompt) + n - 1, step.token_id])
                assert abs(step.logprob - wanted) < tolerance, precision
    with pytest.raises(UserError, match="precision"):
        Engine(model, tokenizer, precision="fp8")


def test_both_logprobs(model, engine, tokenizer):
    prompt = tokenizer.encode("The capital of")
    step = next(iter(engine.stream(prompt, Sampling(temperature=1.5, top_k=3, seed=1, top_logprobs=5))))
    logits = logits_of(model, prompt)[-1]
    raw, sampled = logits.log_softmax(-1), distribution(logits, Sampling(temperature=1.5, top_k=3)).log()
    assert abs(step.logprob - float(raw[step.token_id])) < 1e-4
    assert abs(step.sampling_logprob - float(sampled[step.token_id])) < 1e-4
    assert [t[0] for t in step.top] == raw.topk(5).indices.tolist()


def test_scores_of_the_prompt(model, engine, prompts):
    requests = [engine.submit(p, Sampling(max_tokens=0, top_logprobs=2), score=True) for p in prompts]
    _drain(engine)
    for request in requests:
        expected = logits_of(model, request.prompt).log_softmax(-1)
        assert request.finish == "length" and len(request.scores) == len(request.prompt) - 1
        for n, step in enumerate(request.scores):
            assert step.token_id == request.prompt[n + 1]
            assert abs(step.logprob - float(expected[n, step.token_id])) < 1e-4
            assert step.top[0][0] == int(expected[n].argmax())


SETTINGS = [
    Sampling(temperature=0.8),
    Sampling(temperature=1.0, top_k=3),
    Sampling(temperature=1.3, top_p=0.7),
    Sampling(temperature=1.0, min_p=0.2),
    Sampling(temperature=1.0, presence_penalty=0.5, frequency_penalty=0.3, logit_bias={4: 1.0}),
]


@pytest.mark.parametrize("sampling", SETTINGS)
def test_sampling_has_the_exact_distribution(sampling):
    logits = torch.tensor([2.0, 1.5, 1.0, 0.0, -1.0])
    generator = torch.Generator().manual_seed(0)
    shaped = shape_logits(logits, sampling, [], [0, 0, 1])
    n = 20_000
    counts = torch.bincount(torch.tensor([draw(shaped, sampling, generator)[0] for _ in range(n)]), minlength=5)
    expected = distribution(shaped, sampling) * n
    assert bool((counts[expected == 0] == 0).all())
    keep = expected > 0
    assert float(((counts - expected)[keep] ** 2 / expected[keep]).sum()) < 18.47  # χ², 4 degrees of freedom, p = 0.001


def test_generated_texts_have_the_exact_distribution(model, tokenizer):
    """χ² of whole two-token answers on a vocabulary cut to 4, drawn with and without guessing."""
    prompt = tokenizer.encode("The capital of France is Paris. The capital of")
    allowed = torch.tensor([70, 80, 90, 100])

    def only(answer, logits):
        return torch.full_like(logits, -torch.inf).index_copy(0, allowed, logits[allowed] * 0.2)

    pairs = list(itertools.product(allowed.tolist(), repeat=2))
    first = (logits_of(model, prompt)[-1][allowed] * 0.2).softmax(-1)
    chances = [
        float(p * (logits_of(model, [*prompt, a])[-1][allowed] * 0.2).softmax(-1)[j])
        for a, p in zip(allowed.tolist(), first, strict=True)
        for j in range(4)
    ]
    for lookup in (0, 3):
        engine = Engine(model, tokenizer, rows=128, lookup=lookup)
        sampling = [Sampling(temperature=1.0, seed=n, max_tokens=2, processors=(only,)) for n in range(2000)]
        requests = [engine.submit(prompt, s) for s in sampling]
        _drain(engine)
        counts = [sum(tuple(r.answer) == pair for r in requests) for pair in pairs]
        assert sum(counts) == 2000
        chi = sum((c - 2000 * p) ** 2 / (2000 * p) for c, p in zip(counts, chances, strict=True))
        assert chi < 37.7  # 15 degrees of freedom, p = 0.001


def test_cuts_and_penalties():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert (distribution(logits, Sampling(temperature=1, top_k=2)) > 0).tolist() == [True, True, False, False]
    assert (distribution(logits, Sampling(temperature=1, top_p=0.75)) > 0).tolist() == [True, True, False, False]
    assert (distribution(logits, Sampling(temperature=1, min_p=0.25)) > 0).tolist() == [True, True, True, False]
    values = torch.tensor([2.0, -2.0, 1.0, 0.0])
    assert shape_logits(values, Sampling(repetition_penalty=2.0), [0], [1]).tolist() == [1.0, -4.0, 1.0, 0.0]
    penalised = shape_logits(values, Sampling(presence_penalty=1.0, frequency_penalty=0.5), [3], [2, 2, 0])
    assert penalised.tolist() == [0.5, -2.0, -1.0, 0.0]
    assert shape_logits(values, Sampling(logit_bias={1: 100.0}), [], []).argmax() == 1


@pytest.mark.parametrize("cold", [1e-3, 1e-40, 2.3e-308, 5e-324])
def test_settings_at_their_limits_stay_numbers(cold):
    logits = torch.tensor([1.0, 3.0, 2.0, -1.0])
    assert distribution(logits, Sampling(temperature=cold)).tolist() == [0, 1, 0, 0]
    assert distribution(logits, Sampling(temperature=5, top_p=cold, min_p=cold)).tolist() == [0, 1, 0, 0]
    shaped = shape_logits(logits, Sampling(repetition_penalty=cold), [1, 2], [])
    assert bool(shaped.isfinite().all()) and shaped.argmax() in (1, 2)
    token, logprob = draw(shaped, Sampling(temperature=cold), torch.Generator().manual_seed(1))
    assert token in (1, 2) and logprob <= 0


def test_half_a_character_is_never_shown():
    stream = Utf8Stream()
    assert [stream.push(bytes([b])) for b in "a法b".encode()] == ["a", "", "", "法", "b"]
    assert stream.push("法".encode()[:2]) == "" and stream.push(b"", final=True) == "\ufffd"


def test_stop_strings_cross_tokens_and_are_not_told():
    stream = TextStream(("STOP", "終了"))
    told = [stream.push(part.encode(), False) for part in ("abc S", "TO", "Px")]
    assert "".join(t for t, _ in told) == "abc " and told[-1][1]
    stream = TextStream(("STOP",))
    assert "".join([stream.push(b"a ST", False)[0], stream.push(b"ART", True)[0]]) == "a START"


def test_stop_seed_and_cancel(engine, tokenizer):
    prompt = tokenizer.encode("The capital")
    sampling = Sampling(temperature=1.0, seed=5, max_tokens=20)
    full = "".join(s.text for s in engine.stream(prompt, sampling))
    assert full == "".join(s.text for s in engine.stream(prompt, sampling))
    stop = full[4:6]
    steps = list(engine.stream(prompt, Sampling(temperature=1.0, seed=5, max_tokens=20, stop=(stop,))))
    assert "".join(s.text for s in steps) == full[: full.index(stop)] and steps[-1].finish == "stop"
    cancel = threading.Event()
    cancel.set()
    assert [s.finish for s in engine.stream(prompt, sampling, cancel)] == ["cancelled"]


def test_cancelling_frees_the_place_at_once(model, tokenizer):
    engine = Engine(model, tokenizer, rows=1)
    first = engine.submit([5, 6], Sampling(max_tokens=50, ignore_end=True))
    second = engine.submit([5, 7], Sampling(max_tokens=2, ignore_end=True))
    engine.step()
    assert len(first.answer) == 1 and not second.answer
    engine.cancel(first)
    engine.step()
    assert first.finish == "cancelled" and len(second.answer) == 1
    waiting = engine.submit([5, 8], Sampling(max_tokens=5))
    engine.cancel(waiting)
    _drain(engine)
    assert waiting.finish == "cancelled" and second.finish == "length" and not engine.busy


def test_a_failing_processor_ends_only_its_own_request(engine):
    def fail(answer, logits):
        raise ValueError("broken")

    good = engine.submit([5, 6], Sampling(temperature=0, max_tokens=3, ignore_end=True))
    bad = engine.submit([5, 6], Sampling(temperature=0, max_tokens=3, processors=(fail,)))
    _drain(engine)
    assert bad.finish == "error" and "broken" in str(bad.error) and len(good.answer) == 3


def test_bad_prompts(engine):
    for prompt in ([], [1] * 64, [10_000], [-1]):
        with pytest.raises(UserError):
            engine.submit(prompt, Sampling())


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_every_tensor_is_on_the_device_of_the_runtime(model, precision):
    """For machines without a GPU: PyTorch's fake tensors compute only shapes and devices, and refuse to mix devices.
    "lazy" stands for a GPU: a PyTorch without CUDA has no fake form of writing into a slice of a CUDA tensor."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    shapes = {k: v.shape for k, v in model.state_dict().items()}
    with FakeTensorMode():
        state = {k: torch.empty(shape, device="lazy:0") for k, shape in shapes.items()}
        gpu = TorchRuntime(model.config, state, precision, "lazy:0")
        cache = gpu.cache()
        for parts, starts in (([[1, 2, 3], [4]], [0, 0]), ([[5], [6]], [3, 1]), ([[7], [8]], [4, 4])):
            hidden = gpu.forward(parts, starts, cache)
            assert hidden.device.type == "lazy" and hidden.shape == (sum(map(len, parts)), model.config.width)
        cache.write(1, 0, cache.read(0, 0))
        assert {t.device.type for t in cache.keys + cache.values} == {"lazy"}
        assert gpu.logits(hidden).device.type == "cpu"


def test_a_gpu_that_is_not_there(model, tokenizer, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no NVIDIA GPU"):
        Engine(model, tokenizer, device="cuda")
    with pytest.raises(UserError, match="cpu or cuda"):
        Engine(model, tokenizer, device="tpu")
