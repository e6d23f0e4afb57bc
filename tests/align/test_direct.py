"""DPO and KTO: losses against hand-written ones, gradients, and what cannot be learnt."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from conftest_align import FP32, gradients_of, log_ratio, nudged, sigmoid, some_labels

from jielong.align.direct import Direct, Examples, check, dpo_loss, kto_loss, kto_weights, mismatched
from jielong.align.scoring import (
    Answered,
    merged_copy,
)
from jielong.config import DirectConfig, adam
from jielong.errors import UserError
from jielong.train.loop import Enough, History
from jielong.train.optim import Optimizer


def make_direct(model, tokenizer, method: str, reference=None, **changes) -> Direct:
    config = DirectConfig(
        **{"method": method, "precision": "fp32", "threads": 2, "rows": 8, "max_tokens": 8, "probes": 8, **changes}
    )
    examples = Examples.of(method, *some_labels())
    return Direct(model, reference or merged_copy(model), tokenizer, examples, config, 10, FP32)


def test_dpo_loss_by_hand():
    better, worse = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.5, 3.0, 0.5])
    expected = [-math.log(sigmoid(0.3 * d)) for d in (0.5, -5.0, 0.0)]
    assert dpo_loss(better, worse, 0.3).tolist() == pytest.approx(expected)
    assert torch.isfinite(dpo_loss(torch.tensor([-1e4]), torch.tensor([1e4]), 1.0)).all()


def test_kto_loss_by_hand():
    ratios, up = torch.tensor([1.0, -2.0, 3.0, 0.2]), torch.tensor([True, True, False, False])
    expected = [0.7 * (1 - sigmoid(0.3 * (r - 0.4))) for r in (1.0, -2.0)]
    expected += [1.2 * (1 - sigmoid(0.3 * (0.4 - r))) for r in (3.0, 0.2)]
    assert kto_loss(ratios, up, 0.4, 0.3, 0.7, 1.2).tolist() == pytest.approx(expected)
    far = torch.tensor([1e4, -1e4], requires_grad=True)
    lost = kto_loss(far, torch.tensor([False, True]), 0.0, 1.0, 1.0, 1.0)
    lost.sum().backward()
    assert lost.tolist() == [1.0, 1.0] and torch.isfinite(far.grad).all()


def test_kto_weights():
    for up, down, balance in ((10, 10, 1.0), (2000, 10_000, 1.0), (1, 10_000, 4 / 3), (900, 3, 1.2)):
        of_up, of_down = kto_weights(up, down, balance)
        assert up * of_up / (down * of_down) == pytest.approx(balance) and max(of_up, of_down) == 1.0


def test_what_is_learnt_from():
    thumbs, pairs = some_labels()
    for_dpo, for_kto = Examples.of("dpo", thumbs, pairs), Examples.of("kto", thumbs, pairs)
    assert len(for_dpo) == 6 + len(pairs) and for_dpo.up == [True, False] * len(for_dpo)
    assert for_dpo.sequences[:2] == [
        Answered(pairs[0].prompt, pairs[0].chosen),
        Answered(pairs[0].prompt, pairs[0].rejected),
    ]
    assert len(for_kto) == 12 + 2 * len(pairs) and for_kto.up == [t.up for t in thumbs] + [True, False] * len(pairs)
    assert for_dpo.rows([2, 0]) == [4, 5, 0, 1] and for_kto.rows([2, 0]) == [2, 0]
    assert for_dpo.ranked(torch.tensor([2.0, 1.0] * 4 + [0.0, 0.0] * 2 + [0.0, 1.0] * 4)) == pytest.approx(0.5)
    silent = [dataclasses.replace(thumbs[0], answer=())]
    assert not len(Examples.of("kto", silent, [])) and not len(Examples.of("dpo", [*silent, thumbs[1]], []))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_dpo_gradient(model, tokenizer, temperature):
    """−β σ(−margin) (∇ log π(better) − ∇ log π(worse)), the mean over the pairs (Rafailov et al. 2023, section 4)."""
    reference, beta = nudged(model), 0.5
    dpo = make_direct(model, tokenizer, "dpo", reference, beta=beta, temperature=temperature)
    items = [0, 3, 5, 7]
    told = dpo.gradients(items, FP32)
    found = gradients_of(model)
    model.zero_grad()
    losses = []
    for item in items:
        better, worse = dpo.examples.sequences[2 * item : 2 * item + 2]
        gap = log_ratio(model, reference, better, temperature) - log_ratio(model, reference, worse, temperature)
        margin = beta * float(gap.detach())
        losses.append(-math.log(sigmoid(margin)))
        (-beta * sigmoid(-margin) * gap / len(items)).backward()
    assert told["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    for name, p in model.named_parameters():
        assert torch.allclose(p.grad, found[name], atol=1e-6), name


def test_kto_loss_and_reference_point(model, tokenizer):
    """z0 is the mean log-ratio of shifted answers, or 0; it is a constant of the gradient."""
    reference, T = nudged(model), 0.7
    kto = make_direct(model, tokenizer, "kto", reference, beta=0.5, balance=1.2)
    items = [0, 3, 5, 7, 12, 13]
    told = kto.gradients(items, FP32)
    found = gradients_of(model)
    model.zero_grad()
    own = [kto.examples.sequences[i] for i in items]
    shifted = [Answered(s.prompt, own[(n + 1) % len(own)].answer) for n, s in enumerate(own)]
    assert mismatched(own, 64) == shifted
    mean = np.mean([float(log_ratio(model, reference, s, T).detach()) for s in shifted])
    assert told["z0"] == pytest.approx(max(0.0, mean), abs=1e-4)
    swapped = make_direct(reference, tokenizer, "kto", model)  # the other way round the sign is the other one
    z0s = [told["z0"], swapped.reference_point(own, FP32)]
    assert min(z0s) == 0 and max(z0s) == pytest.approx(abs(mean), abs=1e-4) and max(z0s) > 0.01
    of_up, of_down = kto_weights(sum(kto.examples.up), kto.examples.up.count(False), 1.2)
    loss = torch.zeros(())
    for i, s in zip(items, own, strict=True):
        r, up = log_ratio(model, reference, s, T), kto.examples.up[i]
        gain = 0.5 * (r - told["z0"]) if up else 0.5 * (told["z0"] - r)
        loss = loss + (of_up if up else of_down) * (1 - torch.sigmoid(gain)) / len(items)
    loss.backward()
    assert told["loss"] == pytest.approx(float(loss.detach()), rel=1e-4)
    for name, p in model.named_parameters():
        assert torch.allclose(p.grad, found[name], atol=1e-6), name


def test_mismatched_answers_end_with_the_context():
    long = [Answered((1,) * 60, (2,) * 4), Answered((3,), (4,) * 50)]
    assert [len(s) for s in mismatched(long, 64)] == [64, 5]


def test_a_batch_of_one_kind_is_no_trouble(model, tokenizer):
    kto = make_direct(model, tokenizer, "kto")
    told = kto.gradients([1, 3, 5], FP32)  # thumbs down only
    assert math.isfinite(told["loss"]) and "reward_up" not in told and "ranked" not in told
    assert all(torch.isfinite(g).all() for g in gradients_of(model).values())


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_labels_are_learnt(model, tokenizer, method):
    """Liked answers rise against the others, and the KL to the start is measured on the way."""
    trainer = make_direct(model, tokenizer, method, optim=adam(1e-3), rows=16, keep_every=5)
    kept = {}
    trainer.keep = lambda step, told: kept.update({step: told})
    optimizer, history = Optimizer(model, trainer.config.optim, FP32), History()
    for step in range(10):
        trainer(optimizer, step, FP32, history)
    trainer.last(FP32)
    first, last = history.seen[0], history.seen[-1]
    assert first["reward_up"] == pytest.approx(0, abs=1e-5)
    assert last["ranked"] > 0.9 and last["reward_up"] > last["reward_down"] + 0.1 and last["loss"] < first["loss"]
    assert sorted(kept) == [0, 5, 10] and kept[0]["kl"] == pytest.approx(0, abs=1e-4)
    assert kept[10]["kl_exact"] > 0.01 and first["kl"] == kept[0]["kl"] and "kl" not in last
    trainer.config.kl_limit = 0.005
    with pytest.raises(Enough, match="KL reached"):
        trainer.last(FP32)


def test_what_cannot_be_learnt(model, tokenizer):
    thumbs, pairs = some_labels()
    alone = [t for t in thumbs if t.up]

    def refused(match, thumbs, pairs, **changes):
        config = DirectConfig(**changes)
        with pytest.raises(UserError, match=match):
            check(config, len(thumbs), Examples.of(config.method, thumbs, pairs))

    refused("these 6 thumbs hold no such pair", alone, [])
    refused("All 6 thumbs point up", alone, [], method="kto")
    refused("no thumbs and no comparisons", [], [], method="kto")
    refused("between 1 and 4/3", thumbs, pairs, method="kto", balance=2.0)
    refused("at least 2", thumbs, pairs, method="kto", rows=1)
    refused("dpo or kto", thumbs, pairs, method="ipo")
    refused("above 0", thumbs, pairs, beta=0.0)
    refused("at least 1", thumbs, pairs, probes=0)
    check(DirectConfig(method="kto", balance=4 / 3), 12, Examples.of("kto", thumbs, pairs))
    config = DirectConfig()
    for answer, match in (((20,) * 80, "reads at most 64"), ((9999,), "another tokenizer")):
        bad = Examples.of("dpo", [], [dataclasses.replace(pairs[0], chosen=answer)])
        with pytest.raises(UserError, match=match):
            Direct(model, model, tokenizer, bad, config, 1, FP32)
