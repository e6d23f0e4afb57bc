"""Straight from the labels to a better model, without a reward model: DPO and KTO.

Both know an answer by its log-ratio log π(y|x) − log π_ref(y|x), summed over its tokens; β times it is the reward that the
model implies. The start model's part of it is computed once. DPO (Rafailov et al. 2023) wants the better answer of a
pair above the other one. KTO (Ethayarajh et al. 2024) wants liked answers above, and disliked ones below, a point of
reference z0: how far the model has gone on answers that do not belong to their prompts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jielong.align.baselines import compared
from jielong.align.losses import per_answer
from jielong.align.policy import Choose, Keep, Tell, Trainer, train_policy
from jielong.align.ppo import repetition
from jielong.align.reward import batch_of
from jielong.align.rollout import key, rollout
from jielong.align.scoring import (
    ALONE,
    Answered,
    answer_logprobs,
    answer_tokens,
    chosen,
    hidden_before,
    log_softmax,
    parts,
)
from jielong.config import DirectConfig, RewardConfig
from jielong.errors import UserError
from jielong.evaluate.statistics import auc
from jielong.feedback.labels import Pair, Thumb, is_held_out, paired
from jielong.model.gpt import GPT
from jielong.run import Artifact, Run
from jielong.tokens.tokenizer import Tokenizer
from jielong.train.distributed import Team
from jielong.train.loop import Enough, History, dtype_of, finite
from jielong.train.optim import Optimizer
from jielong.train.shard import Whole


def dpo_loss(better: Tensor, worse: Tensor, beta: float) -> Tensor:
    """Log-ratios (P,) of each pair's two answers → −log σ(β · (better − worse)), (P,) (Rafailov et al. 2023, eq. 7)."""
    return F.softplus(-beta * (better - worse))


def kto_loss(ratios: Tensor, up: Tensor, z0: float, beta: float, weight_up: float, weight_down: float) -> Tensor:
    """Log-ratios (B,) and whether each answer is liked (B,) bool → λ_D (1 − σ(β (ratio − z0))) for a liked one,
    λ_U (1 − σ(β (z0 − ratio))) for another: (B,) (Ethayarajh et al. 2024, eq. 8). No gradient flows through z0."""
    gain = torch.where(up, ratios - z0, z0 - ratios)
    return torch.where(up, weight_up, weight_down) * torch.sigmoid(-beta * gain)  # 1 − σ(x) = σ(−x)


def kto_weights(up: int, down: int, balance: float) -> tuple[float, float]:
    """(λ_D, λ_U) with up · λ_D = balance · down · λ_U, the larger one 1: what is rare is not blown up, what is common counts
    less. The paper recommends a balance between 1 and 4/3."""
    ratio = balance * down / up  # λ_D / λ_U
    return min(1.0, ratio), min(1.0, 1 / ratio)


def mismatched(sequences: Sequence[Answered], context: int) -> list[Answered]:
    """Each prompt with the next one's answer, the last with the first's, cut where the context ends."""
    following = [*sequences[1:], *sequences[:1]]
    return [
        Answered(s.prompt, other.answer[: context - len(s.prompt)])
        for s, other in zip(sequences, following, strict=True)
    ]


@dataclass
class Examples:
    """The labels: items of `each` answers, for DPO a pair with the better one first, for KTO a single one."""

    sequences: list[Answered]
    up: list[bool]
    each: int

    @classmethod
    def of(cls, method: str, thumbs: Sequence[Thumb], pairs: Sequence[Pair]) -> Examples:
        """What `method` can learn from them; an answer without a token says nothing."""
        if method == "dpo":
            pairs = [*pairs, *paired(thumbs)]
        found = [
            (p.prompt, a, up)
            for p in pairs
            if p.chosen and p.rejected
            for a, up in ((p.chosen, True), (p.rejected, False))
        ]
        if method == "kto":
            found = [(t.prompt, t.answer, t.up) for t in thumbs if t.answer] + found
        return cls([Answered(p, a) for p, a, _ in found], [up for _, _, up in found], 2 if method == "dpo" else 1)

    def __len__(self) -> int:
        return len(self.sequences) // self.each

    def rows(self, items: Sequence[int]) -> list[int]:
        """Indices of the items' answers."""
        return [item * self.each + n for item in items for n in range(self.each)]

    def ranked(self, ratios: Tensor) -> float:
        """How well the log-ratios order the answers: share of pairs, or AUC; NaN where nothing is to be ordered."""
        if self.each == 1:
            return auc(ratios.double().numpy(), torch.tensor(self.up).numpy())
        better, worse = ratios.view(-1, 2).T
        return float(((better > worse).double() + 0.5 * (better == worse).double()).mean())


def check(config: DirectConfig, thumbs: int, examples: Examples) -> None:
    """Raises UserError where nothing can be learnt from the `examples`, which came from so many `thumbs` and from pairs."""
    if config.method not in ("dpo", "kto"):
        raise UserError(f"method must be dpo or kto, not {config.method!r}.")
    if config.beta <= 0 or config.temperature <= 0:
        raise UserError("beta and temperature must be above 0.")
    if min(config.rows, config.probes, config.keep_every) < 1:
        raise UserError("rows, probes and keep-every must be at least 1.")
    if config.method == "dpo":
        if not len(examples):
            raise UserError(
                f"DPO needs a better and a worse answer to one prompt, and these {thumbs} thumbs hold no such pair; KTO learns "
                "from single thumbs (--method kto)."
            )
        return
    if not 1 <= config.balance <= 4 / 3 + 1e-9:
        raise UserError(f"balance must lie between 1 and 4/3, not at {config.balance:g}.")
    if config.rows < 2:
        raise UserError("rows must be at least 2: KTO compares with answers to other prompts.")
    if len(set(examples.up)) < 2:
        if not examples.up:
            raise UserError("There are no thumbs and no comparisons to learn from.")
        way = "up" if examples.up[0] else "down"
        raise UserError(f"All {len(examples)} thumbs point {way}, which says nothing about what is better; press both.")


class Direct:
    """The update of one step; `train.loop.repeat` calls it."""

    def __init__(
        self,
        actor: GPT,
        reference: GPT,
        tokenizer: Tokenizer,
        examples: Examples,
        config: DirectConfig,
        steps: int,
        dtype: torch.dtype,
        held: Examples | None = None,
        keep: Keep | None = None,
        team: Team = ALONE,
        whole: Whole | None = None,
    ):
        """`held` are labels that no step sees; keep(steps done, metrics) is called before every `keep_every`-th step; `whole`
        gathers the actor, where the team has divided it. Raises UserError for labels that the model cannot read."""
        self.actor, self.reference, self.tokenizer, self.config, self.steps = actor, reference, tokenizer, config, steps
        self.examples, self.held, self.keep, self.team, self.whole = examples, held, keep, team, whole
        sequences = [*examples.sequences, *(held.sequences if held else [])]
        longest = max(map(len, sequences))
        if longest > actor.config.context:
            raise UserError(f"A label has {longest} tokens, but the model reads at most {actor.config.context}.")
        if max(max(s.prompt + s.answer) for s in sequences) >= actor.config.vocab_size:
            raise UserError(
                "The labels hold tokens that the model does not know; they were made with another tokenizer."
            )
        self.known = self.logprobs(reference, examples.sequences, dtype)
        self.known_held = self.logprobs(reference, held.sequences, dtype) if held else torch.zeros(0)
        up = sum(examples.up)
        self.weights = kto_weights(up, len(examples.up) - up, config.balance) if config.method == "kto" else (1.0, 1.0)
        self.order = RewardConfig(rows=config.rows, seed=config.seed)  # labels come in the reward model's order

    def logprobs(self, body: GPT, sequences: Sequence[Answered], dtype: torch.dtype) -> Tensor:
        """(S,) log-probabilities of the answers, of which each process computes some."""
        rank, size = self.team.readers
        own = sequences[rank::size]
        tokens = answer_logprobs(body, own, dtype, self.config.temperature, team=self.team)
        return self.team.in_order(per_answer(tokens, _lengths(own)), len(sequences))

    def ratios(self, sequences: Sequence[Answered], known: Tensor, dtype: torch.dtype) -> Tensor:
        """(S,) log π/π_ref, with gradient; `known` is log π_ref."""
        table = log_softmax(self.actor, hidden_before(self.actor, sequences, dtype), self.config.temperature)
        return per_answer(chosen(table, answer_tokens(sequences)), _lengths(sequences)) - known

    def reference_point(self, sequences: Sequence[Answered], dtype: torch.dtype) -> float:
        """KTO's z0: mean log-ratio of mismatched prompts and answers of the whole batch, at least 0 (its estimate of the KL)."""
        others = mismatched(sequences, self.actor.config.context)
        rank, size = self.team.readers
        policy, reference = (
            answer_logprobs(model, others[rank::size], dtype, self.config.temperature, team=self.team)
            for model in (self.actor, self.reference)
        )
        return max(0.0, self.team.total(float((policy - reference).sum())) / len(others))

    def loss(self, ratios: Tensor, rows: Sequence[int], z0: float) -> Tensor:
        """Σ over items of the answers `rows`."""
        if self.config.method == "dpo":
            better, worse = ratios.view(len(ratios) // 2, 2).T
            return dpo_loss(better, worse, self.config.beta).sum()
        up = torch.tensor([self.examples.up[i] for i in rows], dtype=torch.bool)
        return kto_loss(ratios, up, z0, self.config.beta, *self.weights).sum()

    def gradients(self, items: Sequence[int], dtype: torch.dtype) -> dict[str, float]:
        """Add the gradients of the batch's mean loss, of which each process computes its share; what to tell about it."""
        examples, beta, (rank, size) = self.examples, self.config.beta, self.team.readers
        rows = examples.rows(items)
        z0 = self.reference_point([examples.sequences[i] for i in rows], dtype) if examples.each == 1 else 0.0
        mine = items[rank::size]
        lengths = [sum(len(examples.sequences[i]) for i in examples.rows([item])) for item in mine]
        value, order, pieces = 0.0, [], [torch.zeros(0)]
        for group in self.team.even(parts(lengths)):  # memory does not grow with the batch
            own = examples.rows([mine[n] for n in group])
            ratios = self.ratios([examples.sequences[i] for i in own], self.known[own], dtype)
            loss = self.loss(ratios, own, z0) / len(items)
            loss.backward()
            value += float(loss.detach())
            order += own
            pieces.append(ratios.detach())
        self.team.sum_gradients(self.actor)
        found = self.team.gather(torch.cat(pieces))
        up = self.team.gather(torch.tensor([int(examples.up[i]) for i in order], dtype=torch.int64)).bool()
        told = {"loss": self.team.total(value), "ranked": Examples([], up.tolist(), examples.each).ranked(found)}
        told |= {"reward_up": beta * float(found[up].mean()), "reward_down": beta * float(found[~up].mean())}
        if examples.each == 1:
            told["z0"] = z0
        # a batch of one kind has no mean of the other
        return {name: x for name, x in told.items() if name == "loss" or not math.isnan(x)}

    @torch.no_grad()
    def measure(self, step: int, dtype: torch.dtype) -> dict[str, float]:
        """Draw answers, tell how far the model has gone, and keep it. Raises Enough when it has gone too far."""
        c = self.config
        prompts = sorted({s.prompt for s in self.examples.sequences})
        order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(key(c.seed, "probe"))).tolist()
        rank, size = self.team.readers
        mine = range(rank, c.probes, size)
        asked = [prompts[order[n % len(order)]] for n in mine]
        seeds = [key(c.seed, "probe", n) for n in mine]
        precision = "bf16" if dtype == torch.bfloat16 else "fp32"
        actor = (self.whole(everyone=True) if self.whole else None) or self.actor
        drawn = rollout(actor, self.tokenizer, asked, seeds, c.temperature, c.max_tokens, precision)
        logprobs, reference, exact = compared(
            self.actor, self.reference, drawn.sequences, dtype, c.temperature, self.team
        )
        gather = self.team.gather
        told = {
            "kl": float(gather(per_answer(logprobs - reference, drawn.lengths)).mean()),
            "kl_exact": float(gather(per_answer(exact, drawn.lengths)).mean()),
            "length": float(gather(drawn.lengths.double()).mean()),
            "ended": float(gather(drawn.ended.double()).mean()),
            "repetition": self.team.total(sum(repetition(s.answer) for s in drawn.sequences)) / c.probes,
        }
        if self.held:
            ranked = self.held.ranked(self.logprobs(self.actor, self.held.sequences, dtype) - self.known_held)
            told |= {} if math.isnan(ranked) else {"held_out": ranked}
        if told["kl"] > c.kl_limit:
            raise Enough(f"the KL reached {told['kl']:.0f} nats per answer, the limit is {c.kl_limit:g}")
        if self.keep is not None:
            self.keep(step, told)
        return told

    def __call__(self, optimizer: Optimizer, step: int, dtype: torch.dtype, history: History) -> float:
        """One step. Its metrics are appended to `history.seen`, with the KL where the state is kept."""
        told = self.measure(step, dtype) if step % self.config.keep_every == 0 else {}
        told |= self.gradients(batch_of(self.order, len(self.examples), step), dtype)
        finite(told["loss"], step)
        optimizer.step((step + 0.5) / self.steps)
        history.seen.append({"step": step + 1, **told})
        return told["loss"]

    def last(self, dtype: torch.dtype) -> None:
        """Measure and keep the state after the last step."""
        self.measure(self.steps, dtype)


def _lengths(sequences: Sequence[Answered]) -> Tensor:
    return torch.tensor([len(s.answer) for s in sequences], dtype=torch.int64)


def run(
    config: DirectConfig,
    run: Run,
    thumbs: Sequence[Thumb],
    pairs: Sequence[Pair],
    start: Artifact,
    name: str = "",
    choose: Choose | None = None,
    tell: Tell | None = None,
    team: Team = ALONE,
) -> Artifact:
    """The DPO or KTO stage: labels → `name`, by default the method's. `choose` picks one of the kept states and says why (the
    last one without it); `tell` is called with what is measured at each. Raises UserError when nothing can be learnt."""
    held = {t.messages for t in [*thumbs, *pairs] if is_held_out(t.messages, config.held_out, config.seed)}
    ours = [t for t in thumbs if t.messages not in held], [p for p in pairs if p.messages not in held]
    theirs = [t for t in thumbs if t.messages in held], [p for p in pairs if p.messages in held]
    examples, kept = Examples.of(config.method, *ours), Examples.of(config.method, *theirs)
    check(config, len(ours[0]), examples)
    steps = max(1, math.ceil(config.epochs * len(examples) / config.rows))

    def make(actor: GPT, reference: GPT, tokenizer: Tokenizer, keep: Keep, whole: Whole) -> tuple[nn.Module, Trainer]:
        dtype = dtype_of(config.precision)
        return actor, Direct(actor, reference, tokenizer, examples, config, steps, dtype, kept, keep, team, whole)

    metrics: dict[str, Any] = {
        "labels": {"thumbs": len(thumbs), "up": sum(t.up for t in thumbs), "pairs": len(pairs)},
        "trained_on": {"items": len(examples), "answers": len(examples.sequences), "up": sum(examples.up)},
        "held_out": len(kept),
    }
    also = repr((list(thumbs), list(pairs)))
    return train_policy(
        config,
        run,
        config.method,
        name or config.method,
        [start],
        steps,
        config.rows,
        make,
        also,
        choose,
        tell,
        metrics,
        team,
    )
