"""PPO (Schulman et al. 2017) on answers, as in Ziegler et al. 2019 and Ouyang et al. 2022.

Each iteration draws answers from the actor, scores them, and makes a few passes over them. The actor's objective is the
score at the end token minus kl · log π/π_ref at every token. The log-probabilities before the update are taken by the
training forward pass itself, not from the engine, so that the ratio is exactly 1 at first; how far the engine is from it
is a metric (`rollout_gap`).

With several processes each answers its share of an iteration's prompts. Sums, not means, are added up across them,
so that the update is that of one process with all the answers.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from jielong.align.rollout import Rollout, key, rollout
from jielong.align.scoring import (
    PART,
    Answered,
    Scored,
    answer_logprobs,
    answer_tokens,
    answer_values,
    chosen,
    hidden_before,
    log_softmax,
    merged_copy,
    parts,
    score,
)
from jielong.align.work import fresh_work
from jielong.config import PPOConfig
from jielong.errors import UserError
from jielong.model.gpt import GPT, load_model, save_model, write_shape
from jielong.model.lora import add_lora, save_adapter, trained
from jielong.run import Artifact, Run
from jielong.tokens.chat import encode_chat, fit
from jielong.tokens.tokenizer import Tokenizer, copy_tokenizer
from jielong.train.group import gather, sum_gradients, total, world
from jielong.train.loop import Enough, History, LoopConfig, dtype_of, finite, repeat, use_threads
from jielong.train.optim import Optimizer

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
        keep: Callable[[int, dict[str, float]], None] | None = None,
        tell: Callable[[dict[str, Any]], None] | None = None,
    ):
        """mix(actor, optimizer step, dtype) is the pretraining loss of PPO-ptx; keep(iterations done, metrics) is called with
        each iteration's metrics while the weights are those that its answers were drawn from, tell(metrics) after it."""
        if not prompts:
            raise UserError("PPO needs prompts; collect some conversations first.")
        if not 1 <= config.minibatches <= config.episodes:
            raise UserError(f"minibatches must lie between 1 and the number of episodes ({config.episodes}).")
        if config.temperature <= 0:
            raise UserError("temperature must be above 0: PPO learns from different answers.")
        self.model, self.reference, self.score = model, reference, score
        self.tokenizer, self.prompts, self.config = tokenizer, prompts, config
        self.mix, self.keep, self.tell = mix, keep, tell

    # what an iteration learns from

    def prompts_of(self, step: int) -> tuple[list[Sequence[int]], list[int]]:
        """This process's prompts and their seeds: every prompt once before any comes again, in an order of its own each
        time. Which answers are drawn does not depend on the number of processes."""
        rank, size = world()
        c = self.config
        prompts, seeds = [], []
        for n in range(step * c.episodes + rank, (step + 1) * c.episodes, size):
            epoch, place = divmod(n, len(self.prompts))
            generator = torch.Generator().manual_seed(key(c.seed, "order", epoch))
            order = torch.randperm(len(self.prompts), generator=generator)
            prompts.append(self.prompts[int(order[place])])
            seeds.append(key(c.seed, "draw", n))
        return prompts, seeds

    def experience(self, drawn: Rollout, kl: float, dtype: torch.dtype) -> tuple[Experience, dict[str, float]]:
        """Rewards, values and advantages of the answers, and what to tell about them."""
        c, lengths = self.config, drawn.lengths
        actor, sequences = self.model.actor, drawn.sequences
        logprobs = answer_logprobs(actor, sequences, dtype, c.temperature)
        reference = answer_logprobs(self.reference, sequences, dtype, c.temperature)
        values = answer_values(self.model.critic, sequences, dtype)
        scores = judged(self.score, drawn, c.missing_end)
        rewards = token_rewards(scores, logprobs, reference, lengths, kl)
        if c.whiten_rewards:
            rewards = whiten(rewards, keep_mean=True)
        advantages = gae(rewards, values, lengths, c.gamma, c.lam)
        returns = advantages + values
        metrics = self.describe(drawn, scores, logprobs, reference, values, returns)
        return Experience(sequences, lengths, logprobs, values, whiten(advantages), returns), metrics

    def describe(
        self, drawn: Rollout, scores: Tensor, logprobs: Tensor, reference: Tensor, values: Tensor, returns: Tensor
    ) -> dict[str, float]:
        """Metrics of the answers, over those of every process. No padding enters any of them."""
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
        prompts, seeds = self.prompts_of(step)
        precision = "bf16" if dtype == torch.bfloat16 else "fp32"
        drawn = rollout(self.model.actor, self.tokenizer, prompts, seeds, c.temperature, c.max_tokens, precision)
        experience, metrics = self.experience(drawn, kl, dtype)
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
            rank, size = world()
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
        count = float(total(torch.tensor([float(part.lengths.sum())]))[0])
        sums = torch.zeros(8, dtype=torch.float64)
        for group in parts([len(s) for s in part.sequences], PART):
            loss, told = self.loss(part.rows(group), dtype, count, train_actor)
            loss.backward()
            sums += told
        if self.mix is not None and c.ptx and train_actor:
            loss = c.ptx * self.mix(self.model.actor, number, dtype) / world()[1]
            loss.backward()
        sums = total(sums)
        sum_gradients(self.model.parameters())
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
        table = log_softmax(actor, hidden_before(actor, part.sequences, dtype), c.temperature)  # (N, V)
        new = chosen(table, answer_tokens(part.sequences))
        policy, clipped = policy_loss(new, part.logprobs, part.advantages, c.clip)
        values = critic.read(hidden_before(critic.body, part.sequences, dtype))
        value = value_loss(values, part.values, part.returns, c.value_clip)
        loss = ((policy if train_actor else 0 * policy) + c.value_weight * value) / count
        with torch.no_grad():
            log_ratio = new - part.logprobs
            entropy = -(table.exp() * table).sum()
            told = [log_ratio.new_tensor(len(new)), policy, value, clipped, 0.5 * log_ratio.square().sum()]
            told += [log_ratio.exp().sum(), entropy, log_ratio.new_zeros(())]
            sums = torch.stack([t.detach().double() for t in told])
        return loss, sums


def repetition(tokens: Sequence[int], size: int = 4) -> float:
    """Share of an answer's runs of `size` tokens that it has said before."""
    runs = [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


@dataclass
class State:
    """A kept state of the actor: its weights in `file`, what was measured with it, after so many iterations."""

    iteration: int
    file: Path
    metrics: dict[str, Any]

    def load(self, actor: GPT) -> None:
        from safetensors.torch import load_file

        actor.load_state_dict(load_file(self.file), strict=False)


class States:
    """The kept states of a training, in a folder of its own."""

    def __init__(self, folder: Path, actor: GPT, every: int, last: int):
        self.folder, self.actor, self.every, self.last = folder, actor, every, last
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, iteration: int, metrics: dict[str, Any]) -> None:
        """Keep the weights, if it is their turn."""
        if iteration % self.every and iteration != self.last:
            return
        from safetensors.torch import save_file

        beside = self.folder / ".partial"
        save_file({k: v.contiguous() for k, v in trained(self.actor).items()}, beside)
        beside.rename(self.folder / f"{iteration:06d}.safetensors")
        (self.folder / f"{iteration:06d}.json").write_text(json.dumps(metrics))

    def all(self) -> list[State]:
        """Ascending; the one of iteration 0 is the start itself."""
        found = []
        for file in sorted(self.folder.glob("*.safetensors")):
            described = file.with_suffix(".json")
            metrics = json.loads(described.read_text()) if described.exists() else {}
            found.append(State(int(file.stem), file, metrics))
        return found


def save_policy(actor: GPT, start: Artifact, folder: Path) -> None:
    """The model, or its low-rank change beside the start it belongs to, and the tokenizer."""
    if any(".lora." in name for name, _ in actor.named_parameters()):
        save_adapter(actor, folder, start)
        write_shape(actor.config, folder)
    else:
        save_model(actor, folder)
    copy_tokenizer(start.file("tokenizer.json"), folder)


def read_prompts(artifact: Artifact, tokenizer: Tokenizer, context: int, room: int) -> list[list[int]]:
    """The prompts that a reward model was trained with, as token ids that leave room for an answer."""
    messages = json.loads(artifact.file("prompts.json").read_text(encoding="utf-8"))
    prompts = []
    for one in messages:
        kept = fit(tokenizer, [{"role": r, "content": c} for r, c in one], max(1, context * 3 // 4))
        ids = encode_chat(tokenizer, kept, True)[0]
        if len(ids) + min(room, 8) < context:
            prompts.append(ids)
    return prompts


def run(
    config: PPOConfig,
    run: Run,
    name: str = "ppo",
    choose: Callable[[list[State], GPT], tuple[State, dict[str, Any]]] | None = None,
    tell: Callable[[dict[str, Any]], None] | None = None,
    mix: Callable[[GPT, int, torch.dtype], Tensor] | None = None,
) -> Artifact:
    """The PPO stage. `choose` picks one of the kept states and says why (the last one without it); `tell` is called with
    every iteration's metrics. Raises UserError when the reward model is not to be trusted."""
    from jielong.train.bar import training_bar

    reward_artifact = run.need(config.reward)
    if reward_artifact.card["metrics"].get("complaint"):
        raise UserError(f"PPO must not follow {reward_artifact.path}: {reward_artifact.card['metrics']['complaint']}")
    start = run.need(config.model or next(iter(reward_artifact.card["parents"])))
    config = dataclasses.replace(config, threads=use_threads(config.threads))
    dtype = dtype_of(config.precision)
    tokenizer = Tokenizer.load(start.file("tokenizer.json"))
    actor = load_model(start.path)
    reference = merged_copy(actor)
    if config.lora_rank:
        add_lora(actor, config.lora_rank, config.lora_alpha or 2.0 * config.lora_rank, config.seed)
    judge = Scored.load(reward_artifact.path).requires_grad_(False).eval()
    model = ActorCritic(actor, Scored.load(reward_artifact.path))
    prompts = read_prompts(reward_artifact, tokenizer, actor.config.context, config.max_tokens)
    work = fresh_work(run, name, [dataclasses.asdict(config), start.hash, reward_artifact.hash])
    states = States(work / "states", actor, config.keep_every, config.iterations)

    ppo = PPO(
        model,
        reference,
        lambda drawn: score(judge, drawn.sequences, dtype),
        tokenizer,
        prompts,
        config,
        mix,
        states,
        tell,
    )
    loop = LoopConfig(
        config.iterations, config.optim, config.precision, config.threads, config.checkpoint_seconds,
        config.episodes, name, history=False,
    )  # fmt: skip
    with run.build(name, kind="ppo", config=config, parents=[start, reward_artifact], seed=config.seed) as build:
        with training_bar(name, config.iterations) as progress:
            history = repeat(model, ppo, loop, work / "checkpoints", progress)
        if not history.ended:
            states(config.iterations, {})
        kept = states.all()
        picked, why = choose(kept, actor) if choose else (kept[-1], {"rule": "the last state"})
        picked.load(actor)
        save_policy(actor, start, build.path)
        build.threads = config.threads
        build.metrics = {
            "parameters": actor.parameter_count(),
            "iterations": len(history.seen),
            "ended": history.ended,
            "seen": history.seen,
            "picked": {"iteration": picked.iteration, **why},
        }
    shutil.rmtree(work, ignore_errors=True)
    return build.artifact
