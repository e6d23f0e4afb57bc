"""Details that no formula shows: who shares weights with whom, what is drawn, counted, normalised and kept.

Each test here kills a mutation of tests/mutate.py that the other tests let live.
"""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from conftest_align import Letters, letters_model, make_ppo

from jielong.align import policy
from jielong.align import ppo as ppo_module
from jielong.align import reward as reward_module
from jielong.align.policy import State
from jielong.align.ppo import PPO
from jielong.align.rollout import rollout
from jielong.align.scoring import Answered, Scored, answer_logprobs, merged_copy, score
from jielong.config import PPOConfig, RewardConfig, adam
from jielong.feedback.labels import Thumb
from jielong.model.gpt import GPT, causal_mask, load_model, save_model
from jielong.model.lora import add_lora
from jielong.run import Run
from jielong.train.distributed import Team
from jielong.train.loop import History
from jielong.train.optim import Optimizer

FP32 = torch.float32
SETTINGS = PPOConfig(
    iterations=2, episodes=4, epochs=2, minibatches=2, max_tokens=4, keep_every=1, precision="fp32", threads=1, optim=adam(1e-2)
)  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)  # more only wait for each other over such small models


def by_sum(drawn) -> torch.Tensor:
    return torch.tensor([float(sum(s.answer)) for s in drawn.sequences])


def letters_ppo(**changes) -> PPO:
    return make_ppo(letters_model(6, 1), Letters(), by_sum, [[1], [2, 3], [4]], **changes)


def some_experience(ppo: PPO, count: int = 6):
    drawn = rollout(ppo.model.actor, Letters(), [[1], [2, 3], [4]] * (count // 3), list(range(count)), 0.7, 4)  # pyright: ignore
    return ppo.experience(drawn, 0.05, FP32)[0]


@pytest.fixture
def grown(tmp_path, tokenizer, model) -> Run:
    """A run with the model as sft, and a reward model that is told from it by noise."""
    run = Run(tmp_path / "run")
    with run.build("sft", kind="sft", config={}) as build:
        save_model(model, build.path)
        tokenizer.save(build.path)
    judge = Scored(model)
    with torch.no_grad():
        for p in judge.parameters():
            p.add_(torch.randn(p.shape) * 0.1)
    with run.build("reward", kind="reward", config={}, parents=[run.need("sft")]) as build:
        judge.save(build.path)
        tokenizer.save(build.path)
        questions = ["The capital of France?", "日本？", "People in Japan?"]
        (build.path / "prompts.json").write_text(json.dumps([[["user", q]] for q in questions]), encoding="utf-8")
        build.metrics = {"complaint": ""}
    return run


# who is who


def places(model: torch.nn.Module) -> set[int]:
    return {p.data_ptr() for p in model.parameters()}


def test_actor_critic_reference_and_judge_are_four_models(grown, monkeypatch):
    """The reference and the judge stay what they were while the actor learns, and the critic starts from the reward model."""
    seen: list[PPO] = []
    at_first: dict[str, torch.Tensor] = {}

    def spy(model, ppo, *rest):
        seen.append(ppo)
        at_first.update({n: p.detach().clone() for n, p in model.critic.named_parameters()})
        return repeat(model, ppo, *rest)

    repeat = policy.repeat
    monkeypatch.setattr(policy, "repeat", spy)
    told: list[dict] = []
    made = ppo_module.run(dataclasses.replace(SETTINGS, missing_end=None), grown, tell=told.append)
    ppo = seen[0]
    models = [ppo.model.actor, ppo.model.critic, ppo.reference]
    for n, one in enumerate(models):
        for other in models[n + 1 :]:
            assert not places(one) & places(other)
    start, judge = load_model(grown.need("sft").path), Scored.load(grown.need("reward").path)
    for name, p in start.named_parameters():
        assert torch.equal(ppo.reference.get_parameter(name), p), name
    for name, p in judge.named_parameters():
        assert torch.equal(at_first[name], p), name
    assert not any(p.requires_grad for p in ppo.reference.parameters())
    assert told[0]["kl"] == 0 and told[1]["kl"] != 0
    drawn = rollout(start, ppo.tokenizer, *ppo.prompts_of(0), 0.7, 4)
    scores = score(judge, drawn.sequences, FP32)
    assert told[0]["score"] == pytest.approx(float(scores.mean()), abs=1e-5)
    assert torch.equal(ppo.score(drawn), scores)  # even after the critic has learnt
    assert made.card["parents"].keys() == {"sft", "reward"}


def test_the_kept_state_is_the_one_that_was_measured(grown):
    """State 0 holds the weights that iteration 0 drew its answers from; the chosen one becomes the artifact."""
    start = load_model(grown.need("sft").path)
    found: list[int] = []

    def first(states: list[State], actor: GPT):
        found.extend(s.iteration for s in states)
        return states[0], {"rule": "the first"}

    made = ppo_module.run(SETTINGS, grown, choose=first)
    assert found == [0, 1, 2]
    kept = load_model(made.path)
    assert all(torch.equal(p, kept.get_parameter(n)) for n, p in start.named_parameters())
    last = load_model(ppo_module.run(SETTINGS, grown, name="ppo-2").path)
    assert any(not torch.equal(p, last.get_parameter(n)) for n, p in start.named_parameters())


def test_a_merged_copy_is_the_sum_with_the_lora_and_stays():
    """What a LoRA actor rolls out, and the reference where training starts from one."""
    model, answers = letters_model(6, 1), [Answered((1,), (2, 3))]
    plain = answer_logprobs(model, answers, FP32)
    add_lora(model, 2, 4.0, 1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("lora.b"):
                p.add_(0.3)
    copy, changed = merged_copy(model), answer_logprobs(model, answers, FP32)
    assert not torch.allclose(changed, plain, atol=1e-3) and not places(copy) & places(model)
    assert torch.allclose(answer_logprobs(copy, answers, FP32), changed, atol=1e-5)


# what is drawn


def test_the_end_token_belongs_to_its_answer():
    drawn = rollout(letters_model(4, 0), Letters(), [[1]] * 64, list(range(64)), 1.0, 5)  # pyright: ignore
    assert 5 < int(drawn.ended.sum()) < 64
    for sequence, ended in zip(drawn.sequences, drawn.ended.tolist(), strict=True):
        assert (sequence.answer[-1] == 0) == ended and 0 not in sequence.answer[:-1]
        assert ended or len(sequence.answer) == 5
    assert len(drawn.sampled) == int(drawn.lengths.sum())


def test_every_draw_has_a_seed_of_its_own_wherever_it_is_drawn(monkeypatch):
    """Seeds follow the number of the answer, not its place in a batch, an iteration or a process."""
    ppo = letters_ppo(episodes=7)
    steps = [ppo.prompts_of(step) for step in range(3)]
    seeds = [s for _, own in steps for s in own]
    assert len(set(seeds)) == 21
    for at in range(0, 21, 3):  # every prompt once before any comes again
        three = [p for own, _ in steps for p in own][at : at + 3]
        assert sorted(three) == sorted(ppo.prompts)
    for step, (prompts, own) in enumerate(steps):
        shares = []
        for rank in range(2):
            monkeypatch.setattr(Team, "readers", (rank, 2))
            shares.append(ppo.prompts_of(step))
        assert own[0::2] == shares[0][1] and own[1::2] == shares[1][1]
        assert prompts[0::2] == shares[0][0] and prompts[1::2] == shares[1][0]
        monkeypatch.setattr(Team, "readers", (0, 1))
    other = make_ppo(letters_model(6, 1), Letters(), by_sum, [[1], [2, 3], [4]], episodes=7, seed=2)
    assert not set(seeds) & set(other.prompts_of(0)[1])


# what is learnt


class Recorder:
    """An optimizer that keeps the gradients."""

    def __init__(self, ppo: PPO):
        self.ppo, self.seen, self.progress = ppo, [], []

    def step(self, progress: float) -> None:
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.ppo.model.parameters()]
        self.seen.append(torch.cat([g.flatten().clone() for g in grads]))
        self.progress.append(progress)
        self.skip()

    def skip(self) -> None:
        self.ppo.model.zero_grad()


def test_an_update_is_the_same_in_parts(monkeypatch):
    """A minibatch that does not fit at once is added up to the same mean over its tokens."""
    ppo = letters_ppo()
    experience = some_experience(ppo)
    recorder = Recorder(ppo)
    whole = ppo.update(experience, recorder, 0, FP32)  # pyright: ignore
    monkeypatch.setattr(ppo_module, "PART", 8)
    assert len(ppo_module.parts([len(s) for s in experience.sequences], 8)) > 2
    split = ppo.update(experience, recorder, 0, FP32)  # pyright: ignore
    assert torch.allclose(*recorder.seen, atol=1e-6) and recorder.seen[0].abs().max() > 1e-3
    assert torch.allclose(whole, split, atol=1e-5)


def test_minibatches_share_out_every_answer(monkeypatch):
    """Every answer once per pass, in another order each time; the schedule runs over all updates of all iterations."""
    ppo = letters_ppo(episodes=6, epochs=2, minibatches=3, iterations=4)
    experience = some_experience(ppo)
    numbered = dataclasses.replace(
        experience, sequences=[Answered((n,), s.answer) for n, s in enumerate(experience.sequences)]
    )
    passes: list[list[int]] = []

    def update(part, optimizer, number, dtype, train_actor=True):
        passes.append([s.prompt[0] for s in part.sequences])
        return torch.ones(8, dtype=torch.float64)

    monkeypatch.setattr(ppo, "update", update)
    for step in (0, 1):
        ppo.learn(numbered, None, step, FP32)  # pyright: ignore
    orders = [tuple(n for part in passes[at : at + 3] for n in part) for at in range(0, 12, 3)]
    assert [len(p) for p in passes] == [2] * 12 and all(sorted(o) == list(range(6)) for o in orders)
    assert len(set(orders)) == 4


def test_the_learning_rate_falls_over_all_updates():
    ppo = letters_ppo(episodes=6, epochs=2, minibatches=3, iterations=2)
    recorder = Recorder(ppo)
    for step in (0, 1):
        ppo.learn(some_experience(ppo), recorder, step, FP32)  # pyright: ignore
    assert recorder.progress == pytest.approx([(n + 0.5) / 12 for n in range(12)])


def test_experience_has_no_gradient_and_reads_values_before_their_tokens():
    ppo = letters_ppo()
    torch.nn.init.normal_(ppo.model.critic.score.weight)
    experience = some_experience(ppo)
    for tensor in (experience.logprobs, experience.values, experience.advantages, experience.returns):
        assert not tensor.requires_grad
    one = experience.sequences[0]
    hidden = ppo.model.critic.body(torch.tensor([one.prompt + one.answer]), causal_mask(len(one)), FP32)[0]
    values = ppo.model.critic.read(hidden)[len(one.prompt) - 1 : -1]  # V before a token cannot know it
    assert torch.allclose(values, experience.values[: len(one.answer)], atol=1e-5)


def test_a_minibatch_whose_ratio_exploded_is_left_out():
    ppo = letters_ppo(most_ratio=10.0)
    experience = some_experience(ppo)
    far = dataclasses.replace(experience, logprobs=experience.logprobs - 4)  # ρ = e⁴
    recorder = Recorder(ppo)
    sums = ppo.update(far, recorder, 0, FP32)  # pyright: ignore
    assert sums[7] == sums[0] > 0 and not recorder.seen
    assert ppo.update(experience, recorder, 0, FP32)[7] == 0 and len(recorder.seen) == 1  # pyright: ignore


def test_passes_end_early():
    ppo = letters_ppo(episodes=6, epochs=4, max_tokens=4, early_stop=1e-6, optim=adam(1e-2))
    history = History()
    ppo(Optimizer(ppo.model, ppo.config.optim, FP32), 0, FP32, history)
    assert history.seen[0]["passes"] == 2  # the first pass has not moved yet


# what a score means


def thumbs(count: int) -> list[Thumb]:
    return [Thumb((("user", f"question {n}"),), (1, 2, 3), (10 + n % 50, 5 + 2 * (n % 2), 4), n % 2 == 0, "ann") for n in range(count)]  # fmt: skip


def test_a_score_is_read_at_the_last_token_of_the_answer():
    judge = Scored(letters_model(6, 1))
    torch.nn.init.normal_(judge.score.weight)
    answers = [Answered((1, 2), (3,)), Answered((4,), (2, 5, 0)), Answered((2,), (1, 1))]
    alone = [
        judge.read(judge.body(torch.tensor([a.prompt + a.answer]), causal_mask(len(a)), FP32))[0, -1] for a in answers
    ]
    assert torch.allclose(score(judge, answers, FP32), torch.stack(alone), atol=1e-5)


def test_the_reward_stage_normalises_on_answers_of_its_start(grown):
    """Over the answers of the model that it starts from rewards have mean 0 and standard deviation 1."""
    config = RewardConfig(
        rows=16, epochs=3.0, references=12, max_tokens=5, precision="fp32", threads=1, optim=adam(5e-3)
    )
    start = grown.need("sft")
    made = reward_module.run(config, grown, thumbs(32), [], start, name="reward-2")
    messages = json.loads(made.file("prompts.json").read_text(encoding="utf-8"))
    answers = reward_module.reference_answers(start, messages, config)
    r = score(Scored.load(made.path), answers, FP32)
    assert float(r.mean()) == pytest.approx(0, abs=1e-4) and float(r.std(correction=0)) == pytest.approx(1, abs=1e-3)
    assert made.card["metrics"]["raw_reference"]["std"] > 1e-4
