"""RLOO (Ahmadian et al. 2024) and GRPO (Shao et al. 2024): PPO without a critic.

Several answers are drawn to each prompt, and an answer's advantage is its reward against those of the others, the same
for all of its tokens. Everything else is PPO's: prompts, draws, scores, clipping, guards, the adaptive KL weight.

RLOO takes an answer for one action. Its reward is score − kl · Σ log π/π_ref over the answer, its baseline the mean reward of
the other answers. At a ratio of 1 the gradient is REINFORCE's; in later passes the answer's ratio is clipped.
GRPO divides by the standard deviation, too, clips each token's ratio, and adds kl · k3 to the loss.

Both losses are divided by the tokens of the minibatch, as PPO's is. GRPO as it was published takes each answer's own mean
first, which makes a bad token in a long answer cheap (Liu et al. 2025).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from jielong.align.baselines import compared
from jielong.align.losses import ends, kl_estimates, per_answer, policy_loss
from jielong.align.policy import Choose, Keep, Tell, Trainer, train_policy
from jielong.align.ppo import PPO, ActorCritic, Experience, Score, judged, read_prompts, trusted
from jielong.align.rollout import Rollout, key
from jielong.align.scoring import ALONE, Scored, answer_tokens, chosen, hidden_before, log_softmax, score
from jielong.config import GroupConfig, PPOConfig, RolloutConfig
from jielong.errors import UserError
from jielong.model.gpt import GPT
from jielong.run import Artifact, Run
from jielong.tokens.tokenizer import Tokenizer
from jielong.train.distributed import Team
from jielong.train.loop import Enough, dtype_of
from jielong.train.shard import Whole, share

# added to the standard deviation: answers whose rewards differ by rounding alone must not become good and bad ones
EPS = 1e-4


def leave_one_out(rewards: Tensor) -> Tensor:
    """(G, k) → each reward minus the mean of the k − 1 others in its row (Ahmadian et al. 2024, eq. 8)."""
    others = (rewards.sum(1, keepdim=True) - rewards) / (rewards.shape[1] - 1)
    return rewards - others


def group_normalised(rewards: Tensor) -> Tensor:
    """(G, k) → (r − mean) / (std + 10⁻⁴) within each row, with the unbiased variance (Shao et al. 2024, section 4.1.2)."""
    return (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + EPS)


def ppo_settings(config: GroupConfig) -> PPOConfig:
    """The settings that PPO's code reads; those of the critic stay at their defaults and do nothing."""
    return PPOConfig(**{f.name: getattr(config, f.name) for f in dataclasses.fields(RolloutConfig)})


class Alone(ActorCritic):
    """An actor without a critic."""

    def __init__(self, actor: GPT):
        nn.Module.__init__(self)
        self.actor = actor


class Groups(PPO):
    """The update of one iteration; `train.loop.repeat` calls it."""

    def __init__(
        self,
        actor: GPT,
        reference: GPT,
        score: Score,
        tokenizer: Tokenizer,
        prompts: Sequence[Sequence[int]],
        config: GroupConfig,
        mix: Callable[[GPT, int, torch.dtype], Tensor] | None = None,
        keep: Keep | None = None,
        team: Team = ALONE,
        whole: Whole | None = None,
    ):
        """The arguments are those of PPO. Raises UserError for settings that leave an answer nothing to be compared with."""
        if config.method not in ("rloo", "grpo"):
            raise UserError(f"method must be rloo or grpo, not {config.method!r}.")
        if config.answers < 2:
            raise UserError("answers must be at least 2: an answer is compared with the others to its prompt.")
        if config.episodes % config.answers:
            raise UserError(f"episodes ({config.episodes}) must be a multiple of answers ({config.answers}).")
        super().__init__(
            Alone(actor), reference, score, tokenizer, prompts, ppo_settings(config), mix, keep, team=team, whole=whole
        )
        self.method, self.answers = config.method, config.answers
        self.kl = config.kl

    def prompts_of(self, step: int) -> tuple[list[Sequence[int]], list[int]]:
        """As in PPO, but each prompt comes `answers` times. The answers to one prompt may lie with several processes."""
        rank, size = self.team.readers
        c = self.config
        prompts, seeds = [], []
        for n in range(step * c.episodes + rank, (step + 1) * c.episodes, size):
            epoch, place = divmod(n // self.answers, len(self.prompts))
            generator = torch.Generator().manual_seed(key(c.seed, "order", epoch))
            order = torch.randperm(len(self.prompts), generator=generator)
            prompts.append(self.prompts[int(order[place])])
            seeds.append(key(c.seed, "draw", n))
        return prompts, seeds

    def advantages(self, rewards: Tensor) -> Tensor:
        """Rewards of this process's answers → their advantages against their groups; both (E,)."""
        rank, size = self.team.readers
        everyones = self.team.in_order(rewards, self.config.episodes)
        rule = leave_one_out if self.method == "rloo" else group_normalised
        return rule(everyones.view(-1, self.answers)).flatten()[rank::size]

    def experience(self, drawn: Rollout, kl: float, dtype: torch.dtype) -> tuple[Experience, dict[str, float]]:
        """Advantages of the answers, and what to tell about them."""
        c, lengths = self.config, drawn.lengths
        logprobs, reference, exact = compared(
            self.model.actor, self.reference, drawn.sequences, dtype, c.temperature, self.team
        )
        scores = judged(self.score, drawn, c.missing_end)
        self.kl = kl  # the loss of GRPO needs it
        rewards = scores - kl * per_answer(logprobs - reference, lengths) if self.method == "rloo" else scores
        advantages = self.advantages(rewards).repeat_interleave(lengths)  # (N,)
        nothing = torch.zeros_like(advantages)
        metrics = self.describe(drawn, scores, logprobs, reference, nothing, nothing)
        del metrics["explained"]  # there is no critic
        metrics["kl_exact"] = float(self.team.gather(per_answer(exact, lengths)).mean())
        # the place of the critic's values holds the start model's log-probabilities
        return Experience(drawn.sequences, lengths, logprobs, reference, advantages, nothing), metrics

    def loss(
        self, part: Experience, dtype: torch.dtype, count: float, train_actor: bool = True
    ) -> tuple[Tensor, Tensor]:
        """The loss of some answers as their share of a minibatch of `count` tokens, and PPO's sums for the metrics."""
        actor, lengths, reference = self.model.actor, part.lengths, part.values
        table = log_softmax(actor, hidden_before(actor, part.sequences, dtype), self.config.temperature)  # (N, V)
        new = chosen(table, answer_tokens(part.sequences))
        old, advantages = part.logprobs, part.advantages
        tokens_per_action = 1.0
        if self.method == "rloo":
            new, old, advantages = per_answer(new, lengths), per_answer(old, lengths), advantages[ends(lengths)]
            tokens_per_action = len(reference) / max(1, len(lengths))
        loss, clipped = policy_loss(new, old, advantages, self.config.clip)
        if self.method == "grpo":
            loss = loss + self.kl * kl_estimates(new, reference)["k3"].sum()
        with torch.no_grad():
            log_ratio = new - old
            zero, square = log_ratio.new_zeros(()), 0.5 * log_ratio.square().sum()
            clipped, ratio = clipped * tokens_per_action, log_ratio.exp().sum() * tokens_per_action
            told = [zero + len(reference), loss, zero, clipped, square, ratio, -(table.exp() * table).sum(), zero]
            sums = torch.stack([t.detach().double() for t in told])
        return loss / count, sums

    def last(self, dtype: torch.dtype) -> None:
        """Measure and keep the state after the last iteration, by the answers from which the next one would learn."""
        c = self.config
        _, metrics = self.experience(self.draw(c.iterations, dtype), self.kl, dtype)
        if metrics["kl"] > c.kl_limit:
            raise Enough(f"the KL reached {metrics['kl']:.0f} nats per answer, the limit is {c.kl_limit:g}")
        if self.keep is not None:
            self.keep(c.iterations, metrics)


def run(
    config: GroupConfig,
    run: Run,
    name: str = "",
    choose: Choose | None = None,
    tell: Tell | None = None,
    mix: Callable[[GPT, int, torch.dtype], Tensor] | None = None,
    team: Team = ALONE,
) -> Artifact:
    """The RLOO or GRPO stage → `name`, by default the method's. The rest as in ppo.run. Raises UserError when the reward
    model is not to be trusted."""
    reward = trusted(run, config, config.method.upper())
    start = run.need(config.model or next(iter(reward.card["parents"])))
    dtype = dtype_of(config.precision)
    judge = Scored.load(reward.path).requires_grad_(False).eval()
    share(judge.body, team, dtype)

    def make(actor: GPT, reference: GPT, tokenizer: Tokenizer, keep: Keep, whole: Whole) -> tuple[nn.Module, Trainer]:
        prompts = read_prompts(reward, tokenizer, actor.config.context, config.max_tokens)

        def scores(drawn: Rollout) -> Tensor:
            return score(judge, drawn.sequences, dtype, team=team)

        groups = Groups(actor, reference, scores, tokenizer, prompts, config, mix, keep, team, whole)
        return groups.model, groups

    return train_policy(
        config, run, config.method, name or config.method, [start, reward], config.iterations, config.episodes, make,
        choose=choose, tell=tell, team=team,
    )  # fmt: skip
