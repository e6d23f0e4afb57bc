from __future__ import annotations

from dataclasses import replace

import pytest

from jielong import recipes
from jielong.errors import UserError
from jielong.model.gpt import GPT
from jielong.recipes import count_parameters, fit_minutes, flops_per_step, own_text, recipe


def on_a_machine_of(flops: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "measure_step", lambda plan: flops_per_step(plan) / flops)


def test_counts_are_the_models():
    plan = recipe("spark")
    config = replace(plan.pretrain.model, vocab_size=plan.tokenizer.vocab_size)
    model = GPT(config)
    assert count_parameters(config) == sum(p.numel() for p in model.parameters() if p.ndim == 2)
    c = plan.pretrain
    assert flops_per_step(plan) == model.flops_per_token(c.length) * c.rows * c.length


def test_longer_budgets_and_faster_machines_get_more(monkeypatch):
    on_a_machine_of(200e9, monkeypatch)
    sizes, tokens = [], []
    for minutes in (3, 10, 40, 400):
        plan = fit_minutes(recipe("spark"), minutes, control=False)
        c = plan.pretrain
        sizes.append(count_parameters(c.model))
        tokens.append(c.steps * c.rows * c.length)
        training = c.steps * flops_per_step(plan) / 200e9
        assert 0.4 * minutes < training / 60 < minutes and bool(plan.thumbs.count) == (minutes >= 8)
        assert f"{c.steps} steps" in plan.why and f"{c.model.layers} layers" in plan.why
    assert sizes == sorted(sizes) and sizes[0] < sizes[1] < sizes[2] < sizes[3] and tokens == sorted(tokens)
    with_control, without = (fit_minutes(recipe("spark"), 60, control).pretrain for control in (True, False))
    assert with_control.model == without.model and with_control.steps < without.steps
    on_a_machine_of(20_000e9, monkeypatch)
    assert count_parameters(fit_minutes(recipe("spark"), 10, False).pretrain.model) > sizes[1]


def test_too_short_a_budget_is_refused(monkeypatch):
    with pytest.raises(UserError, match="at least 2"):
        fit_minutes(recipe("spark"), 1, False)
    on_a_machine_of(2e9, monkeypatch)
    with pytest.raises(UserError, match="too short on this machine"):
        fit_minutes(recipe("spark"), 3, False)
    with pytest.raises(UserError, match="no recipe"):
        recipe("none")


def test_own_text_is_not_mixed_with_the_teachers_world():
    plan = own_text(recipe("spark"))
    assert plan.pretrain.lessons == 0 and plan.finetune.steps == 0 and plan.finetune.lessons >= 4000
    assert own_text(recipe("tiny")) == recipe("tiny")
