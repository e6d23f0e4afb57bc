"""The reward model: its likelihood, its offsets, its exam, and when it refuses."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from jielong.align.reward import (
    UNIT,
    Judge,
    Labels,
    Offsets,
    batch_of,
    check,
    complaint,
    examine,
    label_loss,
    normalise,
    steps_for,
    train_reward,
)
from jielong.align.scoring import Answered, Scored, score
from jielong.config import RewardConfig, adam
from jielong.errors import UserError
from jielong.evaluate.statistics import auc, auc_within, bootstrap, calibration_error, correlation, platt
from jielong.feedback.labels import Pair, Thumb, is_held_out, paired, prompt_key


def thumb(n: int, up: bool, user: str = "ann", question: str = "") -> Thumb:
    return Thumb((("user", question or f"question {n}"),), (1, 2, 3), (10 + n % 50, 5 + 2 * up, 4), up, user)


def test_few_labels_are_passed_over_more_often():
    config = RewardConfig()
    assert steps_for(config, 464) == 29  # two passes of 32
    assert steps_for(config, 200) == 28  # 4.5 passes, so that there are 28 steps
    assert steps_for(config, 40) == 10 and steps_for(config, 1) == 1  # eight passes at most
    assert steps_for(RewardConfig(epochs=12.0), 40) == 15  # what was asked for counts


def test_likelihood_by_hand(model):
    """−log σ(±(r + b + b_user + b_prompt)), −log σ(r₁ − r₂), and the priors once per epoch."""
    thumbs = [thumb(0, True, "ann", "q"), thumb(1, False, "ann", "q"), thumb(2, True, "bob", "other")]
    labels = Labels(thumbs, [])
    assert len(labels) == 4  # the two thumbs of one user on one prompt make a comparison
    judge = Judge(Scored(model), Offsets(2, 2))
    with torch.no_grad():
        judge.offsets.shift.fill_(0.3 / UNIT)
        judge.offsets.user.copy_(torch.tensor([0.5, -0.2]) / UNIT)
        judge.offsets.prompt.copy_(torch.tensor([0.1, -0.4]) / UNIT)
    config = RewardConfig(user_spread=2.0, prompt_spread=0.5, pair_weight=0.7)
    rewards = {0: torch.tensor([1.0]), 1: torch.tensor([-0.5]), 2: torch.tensor([0.2]), 3: torch.tensor([1.0, -0.5])}
    q, other = (
        labels.prompts.index(prompt_key(thumbs[0].messages)),
        labels.prompts.index(prompt_key(thumbs[2].messages)),
    )
    prompt = [0.1, -0.4]

    def surprise(logit: float) -> float:
        return math.log1p(math.exp(-logit))

    expected = surprise(1.0 + 0.3 + 0.5 + prompt[q]) + surprise(-(-0.5 + 0.3 + 0.5 + prompt[q]))
    expected += surprise(0.2 + 0.3 - 0.2 + prompt[other]) + 0.7 * surprise(1.5)
    expected += (0.5**2 + 0.2**2) / 2**2 / 2 + (0.1**2 + 0.4**2) / 0.5**2 / 2
    found = label_loss(judge, labels, [0, 1, 2, 3], config, rewards)
    assert float(found) == pytest.approx(expected, rel=1e-5)
    parts = label_loss(judge, labels, [0, 3], config, rewards) + label_loss(judge, labels, [1, 2], config, rewards)
    assert float(parts) == pytest.approx(expected, rel=1e-5)


def test_every_label_once_per_epoch():
    config = RewardConfig(rows=8, seed=3)
    seen = [i for step in range(5) for i in batch_of(config, 20, step)]
    assert sorted(seen[:20]) == list(range(20)) == sorted(seen[20:]) and seen[:20] != seen[20:]


def world_of_thumbs(count: int, noise: float, seed: int = 0) -> list[Thumb]:
    """Good answers hold the token 7; half of the users are strict, and some prompts are hard."""
    rng = np.random.default_rng(seed)
    made = []
    for n in range(count):
        good = bool(rng.random() < 0.5)
        user = int(rng.integers(6))
        chance = 1 / (1 + math.exp(-(4.0 * good - 2 + (1.0 if user < 3 else -1.0))))
        up = bool(rng.random() < chance) != bool(rng.random() < noise)
        middle = [int(x) for x in rng.integers(20, 60, 4)]
        middle[int(rng.integers(4))] = 7 if good else 8
        made.append(
            Thumb(
                (("user", f"question {n // 2}"),),
                tuple(int(x) for x in rng.integers(20, 60, 5)),
                (*middle, 4),
                up,
                f"u{user}",
            )
        )
    return made


def test_learns_from_noisy_thumbs_of_strict_and_lenient_users(model, tmp_path):
    thumbs = world_of_thumbs(400, 0.1)
    labels = Labels(thumbs, [])
    judge = Judge(Scored(model), Offsets(len(labels.users), len(labels.prompts)))
    config = RewardConfig(precision="fp32", threads=2, optim=adam(2e-3), epochs=3)
    train_reward(judge, labels, config, 60, tmp_path)
    fresh = world_of_thumbs(200, 0.0, seed=1)
    good = np.array([7 in t.answer for t in fresh])
    r = score(judge.reward, [Answered(t.prompt, t.answer) for t in fresh], torch.float32).numpy()
    assert auc(r, good) > 0.95
    leniency = dict(zip(labels.users, judge.offsets.user.tolist(), strict=True))
    assert min(leniency[f"u{n}"] for n in range(3)) > max(leniency[f"u{n}"] for n in range(3, 6))
    found = examine([(judge.reward, fresh, paired(fresh))], torch.float32)
    value, low, high = found["auc"]
    assert low < value < high and low > 0.5 and complaint(found) == ""
    assert found["pair_accuracy"][0] > 0.7 and 0 <= found["calibration_error"] < 0.2
    before = score(judge.reward, [Answered(t.prompt, t.answer) for t in fresh], torch.float32)
    normalise(judge.reward, [Answered(t.prompt, t.answer) for t in fresh], torch.float32)
    after = score(judge.reward, [Answered(t.prompt, t.answer) for t in fresh], torch.float32)
    assert float(after.mean()) == pytest.approx(0, abs=1e-4) and float(after.std(correction=0)) == pytest.approx(
        1, abs=1e-3
    )
    assert torch.equal(before.argsort(), after.argsort())


def test_what_cannot_be_learnt(model):
    with pytest.raises(UserError, match="at least 20"):
        check([thumb(n, n % 2 == 0) for n in range(5)], [])
    with pytest.raises(UserError, match="All 30 thumbs point up"):
        check([thumb(n, True) for n in range(30)], [])
    check([thumb(n, True) for n in range(30)], [Pair((("user", "q"),), (1,), (2,), (3,), "ann")])
    chance = examine([(Scored(model), world_of_thumbs(60, 0.5), [])], torch.float32)
    assert "includes chance" in complaint(chance)
    assert "no held-out prompts" in complaint(examine([(Scored(model), [], [])], torch.float32))
    with pytest.raises(UserError, match="same reward"):
        normalise(Scored(model), [Answered((1,), (2,)), Answered((1,), (3, 4))], torch.float32)


def test_held_out_prompts_are_the_same_for_every_spelling():
    a, b = (("user", "What is the capital of Japan?"),), (("user", "what is the capital of  japan"),)
    assert prompt_key(a) == prompt_key(b) != prompt_key((("user", "日本的首都？"),))
    share = sum(is_held_out((("user", f"q{n}"),), 0.2, 1) for n in range(2000)) / 2000
    assert 0.17 < share < 0.23
    assert dataclasses.is_dataclass(Pair)


# statistics


def test_auc_is_the_share_of_ordered_pairs():
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 6, 60).astype(float), rng.integers(0, 2, 60).astype(float)
    pairs = [(p > n) + 0.5 * (p == n) for p in scores[labels > 0] for n in scores[labels == 0]]
    assert auc(scores, labels) == pytest.approx(np.mean(pairs))
    assert math.isnan(auc(scores, np.ones(60)))


def test_auc_within_users():
    rng = np.random.default_rng(1)
    scores, users = rng.normal(size=80), rng.integers(0, 4, 80)
    labels = (rng.random(80) < 0.5).astype(float)
    pairs = [
        (scores[p] > scores[n])
        for p in range(80)
        for n in range(80)
        if labels[p] and not labels[n] and users[p] == users[n]
    ]
    assert auc_within(scores, labels, users) == pytest.approx(np.mean(pairs))
    strict = np.where(users < 2, 0.0, 1.0)  # the lenient press up, whatever is said: nothing can be compared
    assert math.isnan(auc_within(scores, strict, users))


def test_platt_calibrates():
    rng = np.random.default_rng(0)
    x = rng.normal(size=20_000)
    y = (rng.random(20_000) < 1 / (1 + np.exp(-(1.7 * x - 0.6)))).astype(float)
    a, b = platt(x, y)
    assert a == pytest.approx(1.7, abs=0.08) and b == pytest.approx(-0.6, abs=0.06)
    assert calibration_error(1 / (1 + np.exp(-(a * x + b))), y) < 0.02
    assert calibration_error(np.full(20_000, 0.9), y) > 0.3
    assert correlation(x, 2 * x) == pytest.approx(1) and correlation(x, np.ones(20_000)) == 0


def test_bootstrap_covers():
    """The 95 % interval of a mean of clusters holds the true mean about 95 times in 100."""
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(200):
        centres = rng.normal(size=40)
        values = (centres[:, None] + 0.3 * rng.normal(size=(40, 3))).ravel()
        groups = [[3 * n, 3 * n + 1, 3 * n + 2] for n in range(40)]
        _, low, high = bootstrap(groups, lambda i, values=values: float(values[i].mean()), rounds=300, seed=trial)
        held += low <= 0 <= high
    assert 178 <= held <= 199
