"""The loop: feedback → reward model → PPO → proof on held-out prompts → promotion, or the reason why not.

PPO follows a reward model that learnt from most prompts. Whether the new model is better is judged by a second reward
model, which learnt from the thumbs on the other prompts only: what PPO found out about the first one's mistakes
does not help it there.

Several processes (torchrun) train together. What is read, judged and decided is the first one's, and the others are told.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from jielong.align import direct, groups, ppo, reward
from jielong.align.choose import Chooser, knowledge, verdict
from jielong.align.contest import Contest
from jielong.align.mix import pretraining_mix
from jielong.align.scoring import Scored
from jielong.config import ImproveConfig, PPOConfig, RewardConfig, filled
from jielong.errors import UserError
from jielong.feedback.exchange import labels
from jielong.feedback.labels import Messages, Pair, Thumb, is_held_out
from jielong.feedback.stage import existing_store
from jielong.model.gpt import GPT, load_model, read_shape
from jielong.run import Artifact, Run, plain
from jielong.tokens.tokenizer import Tokenizer
from jielong.train.distributed import Team, make_team
from jielong.train.group import world
from jielong.train.loop import dtype_of, use_threads
from jielong.train.making import content
from jielong.train.shard import check_division

JOURNAL = "improve.jsonl"


class Journal:
    """What the loop tells while it works, one JSON object a line: for the page, and for whoever comes later. Of several
    processes only the first one is heard."""

    def __init__(self, path: Path, heard: bool):
        self.path, self.heard = path, heard
        if heard:
            path.write_text("", encoding="utf-8")

    def say(self, text: str) -> None:
        """The same for people."""
        from rich.console import Console

        if self.heard:
            Console(highlight=False).print(text, markup=False)

    def tell(self, event: str, **what: Any) -> None:
        if not self.heard:
            return
        with open(self.path, "a", encoding="utf-8") as f:
            f.write(json.dumps({"event": event, "time": round(time.time(), 1), **what}, ensure_ascii=False) + "\n")


class NotTaught(UserError):
    """The feedback teaches nothing: too little, all alike, or too noisy to be followed."""


def run(config: ImproveConfig, run: Run) -> Artifact:
    """Feedback → promotion-N, whose card says whether ppo-N was promoted and why. Raises NotTaught, with nothing changed."""
    journal = Journal(run.path / JOURNAL, world()[0] == 0)
    try:
        return _improve(with_settings(config), run, journal)
    except UserError as error:
        journal.tell("error", message=str(error))
        raise
    except KeyboardInterrupt:
        journal.tell("error", message="Stopped. What was learnt is kept; the same command continues.")
        raise
    except BaseException as error:
        journal.tell("error", message=f"It failed: {error}")
        raise


def with_settings(config: ImproveConfig) -> ImproveConfig:
    """The settings with those of their file. Raises UserError when it cannot be read or names something unknown."""
    if config.settings is None:
        return config
    try:
        values = json.loads(config.settings.read_text(encoding="utf-8"))
        unknown = _unknown(config, values)
        if unknown:
            raise ValueError(f"there is no setting {unknown}")
        return filled(config, values)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{config.settings} holds no settings for jielong improve: {error}.") from error


def _unknown(template: Any, values: dict[str, Any], path: str = "") -> str:
    for key, value in values.items():
        inner = getattr(template, key, None)
        if key not in {f.name for f in dataclasses.fields(template)}:
            return path + key
        if isinstance(value, dict) and (found := _unknown(inner, value, f"{path}{key}.")):
            return found
    return ""


def _improve(config: ImproveConfig, run: Run, journal: Journal) -> Artifact:
    start = run.need(config.model or run.serving())
    team = _team(config, start)
    tokenizer = Tokenizer.load(start.file("tokenizer.json"))
    said = team.told(lambda: plain(labels(existing_store(config.store, run), tokenizer, config.people_only)))
    thumbs, pairs = [Thumb(**_frozen(row)) for row in said[0]], [Pair(**_frozen(row)) for row in said[1]]
    try:
        reward.check(thumbs, pairs)
    except UserError as error:
        raise NotTaught(str(error)) from None
    count = len(thumbs) + len(pairs)
    number = team.told(lambda: 1 + sum(a.card["kind"] == "promotion" for a in run.artifacts()))
    stamp = hashlib.sha256(repr((start.hash, thumbs, pairs)).encode()).hexdigest()
    last = run.artifact(f"promotion-{number - 1}")
    if last is not None and last.card["metrics"].get("feedback") == stamp and not config.force:
        raise UserError(
            f"{last.name} came of this feedback and this model already; press more thumbs, or use --force to try again."
        )
    told = {"thumbs": len(thumbs), "up": sum(t.up for t in thumbs), "pairs": len(pairs)}
    journal.tell("start", labels=told, model=start.name)
    journal.say(f"{told['thumbs']} thumbs ({told['up']} up) and {told['pairs']} comparisons; {start.name} is served.")
    ppo_config, advice = for_count(config, count)
    if advice:
        journal.tell("advice", text=advice)
        journal.say(advice)

    # the judge, who knows the held-out prompts, and the reward model, which knows the others
    settings = dataclasses.replace(config.reward, seed=config.seed)
    held = sorted({t.messages for t in [*thumbs, *pairs] if is_held_out(t.messages, settings.held_out, settings.seed)})
    journal.tell("stage", stage="judge")
    second, who = _judge(settings, run, thumbs, pairs, held, start, number, stamp, team)
    journal.tell("stage", stage="reward")
    model = _reward(settings, run, thumbs, pairs, start, f"reward-{number}", stamp, second, team)
    found = model.card["metrics"]["held_out"]
    journal.tell("reward", held_out=found)
    journal.say(f"{model.name}: {_quality(found)} on prompts that it did not see.")
    if model.card["metrics"]["complaint"]:
        raise NotTaught(f"the reward model cannot be trusted: {model.card['metrics']['complaint']}")
    judge = second or model
    journal.say(f"The judge: {who}.")

    journal.tell("stage", stage="ppo", method=config.method)
    dtype = dtype_of(ppo_config.precision)
    contest = Contest(
        held,
        tokenizer,
        config.samples,
        ppo_config.temperature,
        ppo_config.max_tokens,
        ppo_config.precision,
        config.seed,
    )
    old_model = load_model(start.path)
    chooser: Chooser | None = None
    if team.first:
        know = functools.partial(knowledge, run, tokenizer=tokenizer, seed=config.seed)
        chooser = Chooser(config, contest, Scored.load(judge.path).eval(), old_model, know, dtype)
    name = f"{config.method}-{number}"
    made_from = {start.name: start.hash} | (
        {model.name: model.hash} if config.method in ("ppo", "rloo", "grpo") else {}
    )

    def there() -> bool:
        candidate = run.artifact(name)
        return candidate is not None and candidate.card["parents"] == made_from

    if not team.told(there):
        _learn(
            config, ppo_config, run, name, start, model, thumbs, pairs, chooser,
            lambda told: journal.tell("iteration", **told), team,
        )  # fmt: skip
    candidate = Artifact(run.path / name)

    def finish() -> None:
        assert chooser is not None
        journal.tell("stage", stage="evaluation")
        new_model = load_model(candidate.path)
        old, new = contest.answers(old_model), contest.answers(new_model)
        won = contest.win_rate(chooser.judge, new, old, dtype)
        picked = candidate.card["metrics"]["picked"]
        before = contest.describe(old) | chooser.known
        after = contest.describe(new) | (picked.get("knowledge") or chooser.know(new_model))
        examples = contest.examples(old, new)
        journal.tell("samples", pairs=examples)
        promoted, why = verdict(config, won, before, after, who, picked)
        with run.build(
            f"promotion-{number}", kind="promotion", config=config, parents=[start, model, candidate], seed=config.seed
        ) as build:
            build.threads = use_threads(config.ppo.threads)
            build.metrics = {
                "promoted": promoted, "why": why, "win_rate": won, "judge": who, "before": before, "after": after,
                "labels": told, "held_out_prompts": len(held), "feedback": stamp, "examples": examples,
            }  # fmt: skip
        if promoted:
            run.promote(candidate.name)
        journal.tell(
            "result", promoted=promoted, model=candidate.name if promoted else start.name, why=why, win_rate=won
        )
        journal.say(f"{'Promoted' if promoted else 'Not promoted'}: {why}")

    team.told(finish)
    return Artifact(run.path / f"promotion-{number}")


def _team(config: ImproveConfig, start: Artifact) -> Team:
    """The processes of this job. Raises UserError, before anything is made, for what they cannot share."""
    shape = read_shape(start.path)
    with torch.device("meta"):
        parameters = GPT(shape).parameter_count()
    # actor and critic are trained, reference and judge are there
    team = make_team(config.parallel, "cpu", 2 * parameters)
    if config.parallel.micro_rows:
        raise UserError(
            "--parallel.micro-rows is for pretrain and finetune; improve bounds its passes by their tokens."
        )
    lora = any(c.lora_rank for c in (config.reward, config.ppo, config.group, config.direct))
    check_division(shape, team, lora)
    return team


def _frozen(value: Any) -> Any:
    """JSON's lists as the tuples that they were."""
    if isinstance(value, dict):
        return {name: _frozen(inner) for name, inner in value.items()}
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _learn(
    config: ImproveConfig, ppo_config: PPOConfig, run: Run, name: str, start: Artifact, model: Artifact,
    thumbs: Sequence[Thumb], pairs: Sequence[Pair], choose: Chooser | None, tell: Callable[[dict[str, Any]], None],
    team: Team,
) -> Artifact:  # fmt: skip
    """The candidate, by the method that was asked for."""
    if config.method in ("dpo", "kto"):
        direct_config = dataclasses.replace(
            config.direct, method=config.method, model=start.name, seed=config.seed, held_out=config.reward.held_out
        )
        return direct.run(direct_config, run, thumbs, pairs, start, name, choose, tell, team)
    own = {"model": start.name, "reward": model.name, "seed": config.seed}
    ppo_config = dataclasses.replace(ppo_config, **own)
    group_config = dataclasses.replace(config.group, method="grpo" if config.method == "grpo" else "rloo", **own)
    settings = ppo_config if config.method == "ppo" else group_config
    tokenizer, work = Tokenizer.load(start.file("tokenizer.json")), run.work(f"{name}-mix")
    mix = pretraining_mix(settings, run, tokenizer, read_shape(start.path).context, work, team)
    try:
        if config.method == "ppo":
            return ppo.run(ppo_config, run, name, choose, tell, mix, team)
        return groups.run(group_config, run, name, choose, tell, mix, team)
    finally:
        if team.first:
            shutil.rmtree(work, ignore_errors=True)


def for_count(config: ImproveConfig, count: int) -> tuple[PPOConfig, str]:
    """PPO's settings for so many labels, and what to tell people about it."""
    if count >= config.few:
        return config.ppo, ""
    small = dataclasses.replace(
        config.ppo, iterations=max(2, config.ppo.iterations // 3), kl=2 * config.ppo.kl, kl_limit=min(config.ppo.kl_limit, 15.0)
    )  # fmt: skip
    return small, (
        f"{count} labels are few: only a small step is possible ({small.iterations} iterations, KL weight {small.kl:g}). "
        f"From about {config.few} labels on the training is a full one; below 20 there is nothing to learn from."
    )


def _reward(
    settings: RewardConfig, run: Run, thumbs: Sequence[Thumb], pairs: Sequence[Pair], start: Artifact, name: str, stamp: str,
    second: Artifact | None, team: Team,
) -> Artifact:  # fmt: skip
    """The reward model `name`, made unless it is there already, from the same labels."""

    def there() -> bool:
        found = run.artifact(name)
        if found is None or found.card["metrics"].get("feedback") != stamp or not _alike(found, settings, team):
            return False
        found.verify()
        return True

    if team.told(there):
        return Artifact(run.path / name)
    return reward.run(settings, run, thumbs, pairs, start, name, stamp, second, team)


def _alike(found: Artifact, settings: RewardConfig, team: Team) -> bool:
    """Was it made with these settings? For one process alone the number of threads counts: it promises equal bits."""
    kept = filled(RewardConfig(), found.card["config"])
    return content(kept) == content(settings) and (not team.alone or kept.threads == use_threads(settings.threads))


def _judge(
    settings: RewardConfig, run: Run, thumbs: Sequence[Thumb], pairs: Sequence[Pair], held: Sequence[Messages],
    start: Artifact, number: int, stamp: str, team: Team,
) -> tuple[Artifact | None, str]:  # fmt: skip
    """A reward model of the held-out labels alone, if they suffice, and a word about who judges."""
    known = set(held)
    own = [t for t in thumbs if t.messages in known], [p for p in pairs if p.messages in known]
    settings = dataclasses.replace(settings, seed=settings.seed + 1, held_out=0.0, epochs=2 * settings.epochs)
    try:
        judge = _reward(settings, run, *own, start, f"judge-{number}", stamp, None, team)
    except UserError as error:
        return None, f"the reward model itself, since the held-out labels make none of their own ({error})"
    return judge, f"a second reward model, which learnt from {sum(map(len, own))} labels on the held-out prompts alone"


def _quality(found: dict[str, Any]) -> str:
    parts = []
    for name, what in (("auc", "AUC"), ("pair_accuracy", "pair accuracy")):
        if name in found:
            value, low, high = found[name]
            parts.append(f"{what} {value:.2f} ({low:.2f}–{high:.2f})")
    return ", ".join(parts) or "nothing measured"
