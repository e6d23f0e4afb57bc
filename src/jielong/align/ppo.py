"""PPO (Schulman et al. 2017) on answers, as in Ziegler et al. 2019 and Ouyang et al. 2022.

Each iteration draws answers from the actor, scores them, and makes a few passes over them. The actor's objective is the
score at the end token minus kl · log π/π_ref at every token. The log-probabilities before the update are taken by the
training forward pass itself, not from the engine, so that the ratio is exactly 1 at first; how far the engine is from it
is a metric (`rollout_gap`).

With several processes each answers its share of an iteration's prompts. Sums, not means, are added up across them,
so that the update is that of one process with all the answers. To draw, each gathers the whole actor.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jielong.align.losses import (
    adapted,
    gae,
    kl_estimates,
    per_answer,
    policy_loss,
    token_rewards,
    value_loss,
    whiten,
)
from jielong.align.policy import Choose, Keep, Tell, Trainer, train_policy
from jielong.align.rollout import Rollout, key, rollout
from jielong.align.scoring import (
    ALONE,
    PART,
    Answered,
    Scored,
    answer_logprobs,
    answer_tokens,
    answer_values,
    chosen,
    hidden_before,
    log_softmax,
    parts,
    score,
)
from jielong.config import PPOConfig, RolloutConfig
from jielong.errors import UserError
from jielong.model.gpt import GPT
from jielong.run import Artifact, Run
from jielong.tokens.chat import chat_ids, fit
from jielong.tokens.tokenizer import Tokenizer
from jielong.train.distributed import Team
from jielong.train.loop import Enough, History, dtype_of, finite
from jielong.train.optim import Optimizer
from jielong.train.shard import Whole, share

Score = Callable[[Rollout], Tensor]
"""Answers → their scores (E,)."""


def judged(score: Score, drawn: Rollout, missing_end: float | None) -> Tensor:
    """(E,) scores, `missing_end` (unless None) for an answer that did not end by itself. Raises UserError for a score that
    is no number."""
    scores = score(drawn).float()
    if not torch.isfinite(scores).all():
        bad = int((~torch.isfinite(scores)).nonzero()[0])
        raise UserError(
            f"The reward of {drawn.texts[bad][:80]!r} is {float(scores[bad])}; train the reward model anew."
        )
    return scores if missing_end is None else torch.where(drawn.ended, scores, torch.tensor(missing_end))


class ActorCritic(nn.Module):
    """What PPO trains. The critic is a model of its own, so that values do not disturb the policy."""

    def __init__(self, actor: GPT, critic: Scored):
        super().__init__()
        self.actor, self.critic = actor, critic


@dataclass
class Experience:
    """Answers of an iteration with everything that their update needs; flat tensors are (N,), answer after answer."""

    sequences: list[Answered]
    lengths: Tensor
    logprobs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor

    def rows(self, index: Sequence[int]) -> Experience:
        """The same for some of the answers."""
        lengths = self.lengths.tolist()

        def pick(flat: Tensor) -> Tensor:
            pieces = flat.split(lengths)
            return torch.cat([pieces[i] for i in index]) if len(index) else flat[:0]

        flat = [pick(t) for t in (self.logprobs, self.values, self.advantages, self.returns)]
        return Experience([self.sequences[i] for i in index], self.lengths[list(index)], *flat)


class PPO:
    """The update of one iteration; `train.loop.repeat` calls it."""

    def __init__(
        self,
        model: ActorCritic,
        reference: GPT,
        score: Score,
        tokenizer: Tokenizer,
        prompts: Sequence[Sequence[int]],
        config: PPOConfig,
        mix: Callable[[GPT, int, torch.dtype], Tensor] | None = None,
        keep: Keep | None = None,
        tell: Tell | None = None,
        team: Team = ALONE,
        whole: Whole | None = None,
    ):
        """mix(actor, optimizer step, dtype) is this process's share of the pretraining loss of PPO-ptx; keep(iterations done,
        metrics) is called with each iteration's metrics while the weights are those that its answers were drawn from,
        tell(metrics) after it. `score` scores this process's answers; `whole` gathers the actor, where the team has
        divided it."""
        if not prompts:
            raise UserError("PPO needs prompts; collect some conversations first.")
        if not 1 <= config.minibatches <= config.episodes:
            raise UserError(f"minibatches must lie between 1 and the number of episodes ({config.episodes}).")
        if config.temperature <= 0:
            raise UserError("temperature must be above 0: PPO learns from different answers.")
        self.model, self.reference, self.score = model, reference, score
        self.tokenizer, self.prompts, self.config = tokenizer, prompts, config
        self.mix, self.keep, self.tell, self.team, self.whole = mix, keep, tell, team, whole

    # what an iteration learns from

    def prompts_of(self, step: int) -> tuple[list[Sequence[int]], list[int]]:
        """This process's prompts and their seeds: every prompt once before any comes again, in an order of its own each
        time. Which answers are drawn does not depend on the number of processes."""
        rank, size = self.team.readers
        c = self.config
        prompts, seeds = [], []
        for n in range(step * c.episodes + rank, (step + 1) * c.episodes, size):
            epoch, place = divmod(n, len(self.prompts))
            generator = torch.Generator().manual_seed(key(c.seed, "order", epoch))
            order = torch.randperm(len(self.prompts), generator=generator)
            prompts.append(self.prompts[int(order[place])])
            seeds.append(key(c.seed, "draw", n))
        return prompts, seeds

    def draw(self, step: int, dtype: torch.dtype) -> Rollout:
        """This process's answers."""
        prompts, seeds = self.prompts_of(step)
        c, precision = self.config, "bf16" if dtype == torch.bfloat16 else "fp32"
        actor = self.whole(everyone=True) if self.whole else None
        return rollout(
            actor or self.model.actor, self.tokenizer, prompts, seeds, c.temperature, c.max_tokens, precision
        )

    def experience(self, drawn: Rollout, kl: float, dtype: torch.dtype) -> tuple[Experience, dict[str, float]]:
        """Rewards, values and advantages of the answers, and what to tell about them."""
        c, lengths = self.config, drawn.lengths
        actor, sequences = self.model.actor, drawn.sequences
        logprobs = answer_logprobs(actor, sequences, dtype, c.temperature, team=self.team)
        reference = answer_logprobs(self.reference, sequences, dtype, c.temperature, team=self.team)
        values = answer_values(self.model.critic, sequences, dtype, team=self.team)
        scores = judged(self.score, drawn, c.missing_end)
        rewards = token_rewards(scores, logprobs, reference, lengths, kl)
        if c.whiten_rewards:
            rewards = whiten(rewards, keep_mean=True, team=self.team)
        advantages = gae(rewards, values, lengths, c.gamma, c.lam)
        returns = advantages + values
        metrics = self.describe(drawn, scores, logprobs, reference, values, returns)
        return Experience(sequences, lengths, logprobs, values, whiten(advantages, team=self.team), returns), metrics

    def describe(
        self, drawn: Rollout, scores: Tensor, logprobs: Tensor, reference: Tensor, values: Tensor, returns: Tensor
    ) -> dict[str, float]:
        """Metrics of the answers, over those of every process. No padding enters any of them."""
        gather = self.team.gather
        scores, ended = gather(scores), gather(drawn.ended.float())
        kl = gather(per_answer(kl_estimates(logprobs, reference)["k1"], drawn.lengths))
        k3 = gather(per_answer(kl_estimates(logprobs, reference)["k3"], drawn.lengths))
        lengths, repeats = gather(drawn.lengths), gather(torch.tensor([repetition(s.answer) for s in drawn.sequences]))
        gap, returns, values = gather((drawn.sampled - logprobs).abs()), gather(returns), gather(values)
        return {
            "score": float(scores.mean()),
            "score_std": float(scores.std(correction=0)),
            "kl": float(kl.mean()),
            "kl3": float(k3.mean()),
            "length": float(lengths.double().mean()),
            "ended": float(ended.mean()),
            "repetition": float(repeats.mean()),
            "rollout_gap": float(gap.mean()),
            "explained": float(1 - (returns - values).var() / returns.var().clamp_min(1e-12)),
        }

    # the update

    def __call__(self, optimizer: Optimizer, step: int, dtype: torch.dtype, history: History) -> float:
        """One iteration. Its metrics are appended to `history.seen`; minus its mean score is returned, as a loss."""
        c = self.config
        kl = history.seen[-1]["next_kl_weight"] if history.seen else c.kl
        experience, metrics = self.experience(self.draw(step, dtype), kl, dtype)
        if metrics["kl"] > c.kl_limit:
            raise Enough(f"the KL reached {metrics['kl']:.0f} nats per answer, the limit is {c.kl_limit:g}")
        if self.keep is not None:
            self.keep(step, metrics)
        metrics |= self.learn(experience, optimizer, step, dtype)
        next_kl = adapted(kl, metrics["kl"], c.kl_target, c.episodes, c.kl_horizon) if c.kl_target else kl
        history.seen.append({"step": step + 1, **metrics, "kl_weight": kl, "next_kl_weight": next_kl})
        if self.tell is not None:
            self.tell({"iteration": step + 1, "of": c.iterations, **metrics})
        return finite(-metrics["score"], step)

    def learn(self, experience: Experience, optimizer: Optimizer, step: int, dtype: torch.dtype) -> dict[str, float]:
        """The passes over an iteration's answers; metrics of each pass as lists, of the last one as numbers."""
        c = self.config
        passes: list[dict[str, float]] = []
        for epoch in range(c.epochs):
            sums = torch.zeros(8, dtype=torch.float64)
            generator = torch.Generator().manual_seed(key(c.seed, "pass", step, epoch))
            order = torch.randperm(c.episodes, generator=generator).tolist()
            rank, size = self.team.readers
            for n in range(c.minibatches):
                part = experience.rows([i // size for i in order[n :: c.minibatches] if i % size == rank])
                number = (step * c.epochs + epoch) * c.minibatches + n
                sums += self.update(part, optimizer, number, dtype, train_actor=step >= c.value_warmup)
            count = float(sums[0])
            names = ("policy_loss", "value_loss", "clipped", "approx_kl", "ratio", "entropy", "skipped")
            passes.append(dict(zip(names, (sums[1:] / count).tolist(), strict=True)))
            if c.early_stop and passes[-1]["approx_kl"] > c.early_stop:
                break
        return {**passes[-1], "passes": len(passes), "first_pass": passes[0]}  # pyright: ignore[reportReturnType]

    def update(
        self, part: Experience, optimizer: Optimizer, number: int, dtype: torch.dtype, train_actor: bool = True
    ) -> Tensor:
        """One optimizer step. Sums over tokens: count, policy loss, value loss, clipped, approximate KL, ratio, entropy,
        and tokens of left-out minibatches."""
        c = self.config
        count = self.team.total(float(part.lengths.sum()))
        sums = torch.zeros(8, dtype=torch.float64)
        for group in self.team.even(parts([len(s) for s in part.sequences], PART)):
            loss, told = self.loss(part.rows(group), dtype, count, train_actor)
            loss.backward()
            sums += told
        if self.mix is not None and c.ptx and train_actor:
            loss = c.ptx * self.mix(self.model.actor, number, dtype)
            loss.backward()
        sums = self.team.sum(sums)
        self.team.sum_gradients(self.model)
        if float(sums[5]) / count > c.most_ratio or not math.isfinite(float(sums[1:].sum())):
            optimizer.skip()
            sums[7] = count
            return sums.nan_to_num(0.0, 0.0, 0.0)
        optimizer.step((number + 0.5) / (c.iterations * c.epochs * c.minibatches))
        return sums

    def loss(
        self, part: Experience, dtype: torch.dtype, count: float, train_actor: bool = True
    ) -> tuple[Tensor, Tensor]:
        """The loss of some answers as their share of a minibatch of `count` tokens, and sums for the metrics."""
        c, actor, critic = self.config, self.model.actor, self.model.critic
        with torch.set_grad_enabled(train_actor):
            table = log_softmax(actor, hidden_before(actor, part.sequences, dtype), c.temperature)  # (N, V)
        new = chosen(table, answer_tokens(part.sequences))
        policy, clipped = policy_loss(new, part.logprobs, part.advantages, c.clip)
        values = critic.read(hidden_before(critic.body, part.sequences, dtype))
        value = value_loss(values, part.values, part.returns, c.value_clip)
        loss = (policy + c.value_weight * value) / count
        with torch.no_grad():
            log_ratio = new - part.logprobs
            entropy = -(table.exp() * table).sum()
            told = [log_ratio.new_tensor(len(new)), policy, value, clipped, 0.5 * log_ratio.square().sum()]
            told += [log_ratio.exp().sum(), entropy, log_ratio.new_zeros(())]
            sums = torch.stack([t.detach().double() for t in told])
        return loss, sums

    def last(self, dtype: torch.dtype) -> None:
        """Keep the state after the last iteration."""
        if self.keep is not None:
            self.keep(self.config.iterations, {})


def repetition(tokens: Sequence[int], size: int = 4) -> float:
    """Share of an answer's runs of `size` tokens that it has said before."""
    runs = [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def trusted(run: Run, config: RolloutConfig, method: str) -> Artifact:
    """The reward model. Raises UserError when it is not to be trusted."""
    reward = run.need(config.reward)
    if complaint := reward.card["metrics"].get("complaint"):
        raise UserError(f"{method} must not follow {reward.path}: {complaint}")
    return reward


def read_prompts(artifact: Artifact, tokenizer: Tokenizer, context: int, room: int) -> list[list[int]]:
    """The prompts that a reward model was trained with, as token ids that leave room for an answer."""
    messages = json.loads(artifact.file("prompts.json").read_text(encoding="utf-8"))
    prompts = []
    for one in messages:
        kept = fit(tokenizer, [{"role": r, "content": c} for r, c in one], max(1, context * 3 // 4))
        ids = chat_ids(tokenizer, kept, True)
        if len(ids) + min(room, 8) < context:
            prompts.append(ids)
    return prompts


def run(
    config: PPOConfig,
    run: Run,
    name: str = "ppo",
    choose: Choose | None = None,
    tell: Tell | None = None,
    mix: Callable[[GPT, int, torch.dtype], Tensor] | None = None,
    team: Team = ALONE,
) -> Artifact:
    """The PPO stage. `choose` picks one of the kept states and says why (the last one without it); `tell` is called with
    every iteration's metrics, both on the first process only. Raises UserError when the reward model is not to be trusted."""
    reward = trusted(run, config, "PPO")
    start = run.need(config.model or next(iter(reward.card["parents"])))
    dtype = dtype_of(config.precision)
    judge = Scored.load(reward.path).requires_grad_(False).eval()

    share(judge.body, team, dtype)

    def make(actor: GPT, reference: GPT, tokenizer: Tokenizer, keep: Keep, whole: Whole) -> tuple[nn.Module, Trainer]:
        model = ActorCritic(actor, Scored.load(reward.path))
        share(model.critic.body, team, dtype)
        prompts = read_prompts(reward, tokenizer, actor.config.context, config.max_tokens)

        def scores(drawn: Rollout) -> Tensor:
            return score(judge, drawn.sequences, dtype, team=team)

        return model, PPO(model, reference, scores, tokenizer, prompts, config, mix, keep, tell, team, whole)

    return train_policy(
        config, run, "ppo", name, [start, reward], config.iterations, config.episodes, make, choose=choose, team=team
    )
