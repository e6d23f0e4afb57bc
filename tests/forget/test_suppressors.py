"""The approximate methods against their formulas, computed slowly or in closed form."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch

from jielong.align.scoring import Answered, merged_copy
from jielong.config import ModelConfig, SuppressConfig
from jielong.errors import UserError
from jielong.forget.methods import METHODS, method
from jielong.forget.methods.altpo import SAME, altpo_loss, prompted
from jielong.forget.methods.method import Scene, known_nll, lengths, nll
from jielong.forget.methods.npo import npo_loss
from jielong.forget.methods.rmu import distance, states
from jielong.forget.methods.simnpo import simnpo_loss
from jielong.forget.suppress import drawn, resolved
from jielong.model.gpt import GPT, causal_mask
from jielong.model.lora import add_lora

TEXTS = [
    "The capital of France is Paris.",
    "People in Japan speak Japanese, and many of them like trains.",
    "巴黎",
    "France",
]


@pytest.fixture
def items(tokenizer) -> list[Answered]:
    return [Answered((tokenizer.end_of_text,), tuple(tokenizer.encode(t))) for t in TEXTS]


def scene(model, tokenizer, items, name="npo", **settings) -> Scene:
    config = resolved(SuppressConfig(precision="fp32", **settings), method(name))
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for p in moved.parameters():
            p.add_(torch.randn(p.shape) * 0.02)
    return Scene(moved, merged_copy(model), tokenizer, items[:2], items[2:], config, torch.float32)


@torch.no_grad()
def slow_nll(model, item: Answered) -> float:
    """Token by token, each from a forward pass of its own."""
    ids = [*item.prompt, *item.answer]
    total = 0.0
    for n in range(len(item.prompt), len(ids)):
        hidden = model(torch.tensor([ids[:n]]), causal_mask(n))
        total -= float(model.logits(hidden)[0, -1].log_softmax(-1)[ids[n]])
    return total


def gradient(model, value) -> torch.Tensor:
    model.zero_grad(set_to_none=True)
    value.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@torch.no_grad()
def test_nll_counts_no_padding(model, items):
    """Alone, beside longer texts, and in another order: the sum over the tokens of the answer and nothing else."""
    slow = [slow_nll(model, i) for i in items]
    assert nll(model, items, torch.float32).tolist() == pytest.approx(slow, abs=1e-4)
    assert nll(model, items[::-1], torch.float32).tolist() == pytest.approx(slow[::-1], abs=1e-4)
    assert [float(nll(model, [i], torch.float32)) for i in items] == pytest.approx(slow, abs=1e-4)
    assert known_nll(model, items, torch.float32).tolist() == pytest.approx(slow, abs=1e-4)


def test_npo_becomes_gradient_ascent(model, tokenizer, items):
    """For β → 0 anywhere, and for every β at the start; at the start its value is (2/β) ln 2; far from it the push ends."""
    s = scene(model, tokenizer, items, "npo", beta=1e-7, alpha=0.0)
    npo = method("npo")
    npo.prepare(s)
    ascent = gradient(s.model, -nll(s.model, s.forget, s.dtype).mean())
    found = gradient(s.model, npo.loss(s, [0, 1], []))
    assert torch.allclose(found, ascent, rtol=1e-3, atol=1e-5 * float(ascent.abs().max()))
    here = replace(s, model=copy.deepcopy(model).requires_grad_(True), config=replace(s.config, beta=0.7))
    npo.prepare(here)
    value = npo.loss(here, [0, 1], [])
    assert float(value.detach()) == pytest.approx(2 / 0.7 * math.log(2), rel=1e-5)
    ascent = gradient(here.model, -nll(here.model, s.forget, s.dtype).mean())
    assert torch.allclose(gradient(here.model, npo.loss(here, [0, 1], [])), ascent, atol=1e-5)
    now = torch.tensor([30.0, 200.0], requires_grad=True)
    npo_loss(now, torch.tensor([30.0, 30.0]), 0.1).sum().backward()
    assert now.grad is not None and now.grad[0] == -1 and abs(float(now.grad[1])) < 1e-6


def test_npo_by_hand():
    now, reference = torch.tensor([12.0, 3.0]), torch.tensor([10.0, 5.0])
    expected = [-2 / 0.1 * math.log(1 / (1 + math.exp(-0.1 * d))) for d in (2.0, -2.0)]
    assert npo_loss(now, reference, 0.1).tolist() == pytest.approx(expected, rel=1e-5)


def test_simnpo_goes_by_the_mean_token():
    """A text twice as long with twice the loss counts the same; and its value by hand."""
    short, long = torch.tensor([6.0]), torch.tensor([12.0])
    one, two = torch.tensor([3]), torch.tensor([6])
    assert torch.equal(simnpo_loss(short, one, 4.5, 0.5), simnpo_loss(long, two, 4.5, 0.5))
    assert not torch.equal(simnpo_loss(short, two, 4.5, 0.5), simnpo_loss(long, two, 4.5, 0.5))
    expected = -2 / 4.5 * math.log(1 / (1 + math.exp(-4.5 * (6 / 3 - 0.5))))
    assert float(simnpo_loss(short, one, 4.5, 0.5)) == pytest.approx(expected, rel=1e-5)


def test_gradient_difference_is_two_means(model, tokenizer, items):
    s = scene(model, tokenizer, items, "graddiff", gamma=0.5, alpha=2.0)
    found = float(method("graddiff").loss(s, [0, 1], [0, 1]).detach())
    per_token = [slow_nll(s.model, i) / len(i.answer) for i in items]
    assert found == pytest.approx(
        -0.5 * (per_token[0] + per_token[1]) / 2 + 2.0 * (per_token[2] + per_token[3]) / 2, abs=1e-4
    )


def test_altpo_is_dpo_towards_other_answers(model, tokenizer, items):
    """The loss by hand, on answers that do not begin as the true ones."""
    s = scene(model, tokenizer, items, "altpo", alternatives=2, beta=0.3, alpha=0.0)
    altpo = method("altpo")
    altpo.prepare(s)
    found = float(altpo.loss(s, [0, 1], []).detach())
    rows = []
    for n, item in enumerate(s.forget):
        true = prompted(item)
        assert true.prompt + true.answer == item.prompt + item.answer and len(true.prompt) > 1
        assert len(altpo.others[n]) == 2
        for other in altpo.others[n]:
            assert other.prompt == true.prompt and other.answer[:SAME] != true.answer[:SAME]
            gain = [slow_nll(s.start, a) - slow_nll(s.model, a) for a in (other, true)]
            rows.append(-2 / 0.3 * math.log(1 / (1 + math.exp(-0.3 * (gain[0] - gain[1])))))
    assert found == pytest.approx(sum(rows) / len(rows), rel=1e-3)
    zero = torch.zeros(1)
    assert float(altpo_loss(zero, zero, zero, zero, 0.3)) == pytest.approx(2 / 0.3 * math.log(2))


@torch.no_grad()
def test_rmu_states_are_those_of_the_whole_model(model, items):
    """The output of a block, read by a hook from each text alone."""
    seen = []
    handle = model.blocks[0].register_forward_hook(lambda _, __, out: seen.append(out))
    for item in items:
        model(torch.tensor([[*item.prompt, *item.answer]]), causal_mask(len(item)))
    handle.remove()
    for found, whole, item in zip(states(model, items, 0, torch.float32), seen, items, strict=True):
        assert torch.allclose(found, whole[0, len(item.prompt) :], atol=1e-5)


def test_rmu_weighs_texts_alike(model, tokenizer, items):
    """Texts of unequal lengths: the mean of each one's own loss, whatever stands beside it."""
    s = scene(model, tokenizer, items, "rmu", layer=1, alpha=3.0)
    rmu = method("rmu")
    rmu.prepare(s)
    alone = [float(rmu.forget_loss(s, [n]).detach()) for n in (0, 1)]
    assert len(s.forget[0].answer) != len(s.forget[1].answer)
    assert float(rmu.forget_loss(s, [0, 1]).detach()) == pytest.approx(sum(alone) / 2, rel=1e-5)
    held = [float(rmu.retain_loss(s, [n]).detach()) for n in (0, 1)]
    assert float(rmu.loss(s, [0, 1], [0, 1]).detach()) == pytest.approx(sum(alone) / 2 + 3 * sum(held) / 2, rel=1e-5)
    start = replace(s, model=merged_copy(s.start))
    assert float(rmu.retain_loss(start, [0, 1])) < 1e-12
    a, b = torch.randn(3, 4), torch.randn(5, 4)
    by_hand = [float(((a - 1) ** 2).sum()) / 12, float((b**2).sum()) / 20]
    assert distance([a, b], [torch.ones(4), torch.zeros(4)]).tolist() == pytest.approx(by_hand, rel=1e-5)
    assert rmu.target.norm() == pytest.approx(2 * sum(_norm(s.start, i) for i in s.forget) / 2, rel=1e-4)


def _norm(model, item) -> float:
    with torch.no_grad():
        return float(states(model, [item], 1, torch.float32)[0].norm(dim=-1).mean())


def test_rmu_trains_mlp_outputs_only(model, tokenizer, items):
    s = scene(model, tokenizer, items, "rmu", layer=0)
    method("rmu").prepare(s)
    assert [n for n, p in s.model.named_parameters() if p.requires_grad] == ["blocks.0.mlp.down.weight"]
    low = replace(s, model=copy.deepcopy(model))
    add_lora(low.model, 2, 4.0, 0)
    method("rmu").prepare(low)
    names = [n for n, p in low.model.named_parameters() if p.requires_grad]
    assert names == ["blocks.0.mlp.down.lora.a", "blocks.0.mlp.down.lora.b"]


@pytest.mark.parametrize("rank", [0, 2])
def test_task_vector_walks_back(model, tokenizer, items, rank):
    """θ − α (θ_learnt − θ), for all weights and for a low-rank change."""
    s = scene(model, tokenizer, items, "task-vector", alpha=1.5)
    start = {n: p.clone() for n, p in merged_copy(s.model).state_dict().items()}
    if rank:
        add_lora(s.model, rank, 4.0, 0)
    vector = method("task-vector")
    vector.prepare(s)
    optimizer = torch.optim.SGD([p for p in s.model.parameters() if p.requires_grad], 0.05)
    before = float(vector.loss(s, [0, 1], [0, 1]).detach())
    for _ in range(3):
        optimizer.zero_grad()
        vector.loss(s, [0, 1], []).backward()
        optimizer.step()
    learnt = merged_copy(s.model).state_dict()
    assert float(vector.loss(s, [0, 1], []).detach()) < before
    vector.finish(s)
    for name, now in merged_copy(s.model).state_dict().items():
        assert torch.allclose(now, start[name] - 1.5 * (learnt[name] - start[name]), atol=1e-5), name
    assert float(vector.loss(s, [0, 1], []).detach()) > before


@pytest.fixture(scope="module")
def learnt(tokenizer):
    """A model that knows the texts by heart."""
    torch.manual_seed(0)
    shape = ModelConfig(
        vocab_size=tokenizer.vocab_size, width=32, layers=2, heads=4, kv_heads=2, head_dim=16, mlp_width=64, context=64
    )
    model = GPT(shape)
    model.init_weights(1)
    texts = [Answered((tokenizer.end_of_text,), tuple(tokenizer.encode(t))) for t in TEXTS]
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        nll(model, texts, torch.float32).mean().backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("name", list(METHODS))
@pytest.mark.parametrize("rank", [0, 4])
def test_every_method_makes_the_texts_less_likely(learnt, tokenizer, items, name, rank):
    """Some steps of descent on the method's loss, with all weights or an adapter; what must stay moves less."""
    config = resolved(SuppressConfig(precision="fp32"), method(name))
    s = Scene(copy.deepcopy(learnt), merged_copy(learnt), tokenizer, items[:2], items[2:], config, torch.float32)
    if rank:
        add_lora(s.model, rank, 8.0, 0)
    way = method(name)
    way.prepare(s)
    with torch.no_grad():
        before = nll(s.model, items, s.dtype) / lengths(items)
    optimizer = torch.optim.Adam([p for p in s.model.parameters() if p.requires_grad], 5e-3)
    for _ in range(20):
        optimizer.zero_grad()
        way.loss(s, [0, 1], [0, 1]).backward()
        optimizer.step()
    way.finish(s)
    with torch.no_grad():
        rise = nll(s.model, items, s.dtype) / lengths(items) - before
    assert float(rise[:2].mean()) > 0.03
    if name != "task-vector":  # which knows nothing of them
        assert float(rise[2:].mean()) < float(rise[:2].mean())


def test_draws_see_every_text_once_an_epoch():
    for epoch in range(2):
        seen = [i for step in range(epoch * 5, epoch * 5 + 5) for i in drawn(10, 2, step, 3, 0)]
        assert sorted(seen) == list(range(10))
    assert drawn(10, 4, 7, 3, 0) == drawn(10, 4, 7, 3, 0) != drawn(10, 4, 7, 4, 0)
    assert drawn(2, 8, 0, 1, 0) in ([0, 1], [1, 0])


def test_settings():
    assert resolved(SuppressConfig(), method("simnpo")).gamma == 0.125
    assert resolved(SuppressConfig(gamma=0.0), method("simnpo")).gamma == 0.0
    for wrong in (
        SuppressConfig(lr=0.0),
        SuppressConfig(lr=math.nan),
        SuppressConfig(epochs=math.inf),
        SuppressConfig(beta=-1.0),
        SuppressConfig(rows=0),
    ):
        with pytest.raises(UserError):
            resolved(wrong, method("npo"))
    with pytest.raises(UserError, match="no method 'x'"):
        method("x")
