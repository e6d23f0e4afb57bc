"""The whole life: every stage in order; what is done is skipped, what was made with other settings is not overwritten."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jielong.config import EvaluateConfig, RaiseConfig, ReportConfig, filled
from jielong.errors import UserError
from jielong.recipes import Recipe, fit_minutes, own_text, recipe
from jielong.run import SERVING, Artifact, Run, plain, write_atomic

PLAN = "plan.json"


def say(text: str) -> None:
    from rich.console import Console

    Console(highlight=False).print(text)


def make_plan(config: RaiseConfig, run: Run) -> Recipe:
    """The settings of every stage: those of the run's plan where it has one, else chosen now and written down.

    So the machine is measured once, and the same command continues the same run. Raises UserError when the run was
    planned otherwise and `force` is off.
    """
    asked = {"recipe": config.recipe, "minutes": config.minutes, "text": [str(p.resolve()) for p in config.text]}
    asked |= {"beside": config.beside, "seed": config.seed, "control": config.control, "vocab_size": config.vocab_size}
    path = run.path / PLAN
    before = _read_plan(path)
    changed = {k: f"{k} {before['asked'].get(k)} → {v}" for k, v in asked.items() if before["asked"].get(k) != v}
    if before["asked"] and changed.keys() <= {"control"}:  # the control stands beside what is there
        plan = filled(recipe(config.recipe), before["plan"])
    else:
        # the vocabulary may be chosen anew while nothing was made with it
        free = changed.keys() == {"vocab_size"} and run.artifact("tokenizer") is None
        if before["asked"] and not config.force and not free:
            raise UserError(
                f"{run.path} was raised with other settings ({', '.join(changed.values())}); "
                "use --force to make it anew or another --run folder."
            )
        plan = _new_plan(config)
        _discard(run, before["plan"], plan)
    write_atomic(path, json.dumps({"asked": asked, "plan": plain(plan)}, ensure_ascii=False, indent=1))
    return plan


def _read_plan(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {"asked": {}, "plan": {}}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {"asked": found["asked"], "plan": found["plan"]}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged; delete it to plan anew.") from error


def _new_plan(config: RaiseConfig) -> Recipe:
    plan = recipe(config.recipe)
    corpus = dataclasses.replace(
        plan.corpus, text=tuple(config.text), default=config.beside or not config.text, seed=config.seed
    )
    if not corpus.default:
        plan = own_text(plan)
    plan = dataclasses.replace(
        plan,
        corpus=corpus,
        pretrain=dataclasses.replace(plan.pretrain, seed=config.seed),
        finetune=dataclasses.replace(plan.finetune, seed=config.seed),
        thumbs=dataclasses.replace(plan.thumbs, seed=config.seed),
        improve=dataclasses.replace(plan.improve, seed=config.seed),
    )
    if config.vocab_size is not None:
        plan = dataclasses.replace(plan, tokenizer=dataclasses.replace(plan.tokenizer, vocab_size=config.vocab_size))
    if config.minutes is not None:
        say("Measuring this machine …")
        plan = fit_minutes(plan, config.minutes, config.control)
        say(plan.why)
    return plan


def _discard(run: Run, before: dict[str, Any], plan: Recipe) -> None:
    """Remove what was made with settings that the new plan does not have; what descends from it is then stale."""
    made = {
        "corpus": ["corpus"], "tokenizer": ["tokenizer"], "pretrain": ["base"], "finetune": ["sft", "control"],
        "thumbs": ["thumbs"], "improve": [],
    }  # fmt: skip
    changed = [stage for stage in made if stage in before and before[stage] != plain(getattr(plan, stage))]
    for name in [name for stage in changed for name in made[stage]]:
        shutil.rmtree(run.path / name, ignore_errors=True)
    if changed:
        _discard_improvements(run)


def _discard_improvements(run: Run) -> None:
    """Remove what came of the feedback; sft is served then. The feedback itself stays."""
    for artifact in run.artifacts():
        if artifact.card["kind"] in (
            "reward",
            "ppo",
            "rloo",
            "grpo",
            "dpo",
            "kto",
            "promotion",
            "edited",
            "suppressed",
        ):
            shutil.rmtree(artifact.path, ignore_errors=True)
    (run.path / SERVING).unlink(missing_ok=True)


def raise_(config: RaiseConfig) -> Run:
    """Raw text → ChatGPT. Returns the run. Raises UserError for everything that the user can mend."""
    run = Run(config.run)
    with run.lock():
        plan = make_plan(config, run)
        started = time.perf_counter()
        _stages(config, plan, run)
        say(f"[bold]Raised in {(time.perf_counter() - started) / 60:.1f} minutes:[/] {run.path}")
    return run


def _stages(config: RaiseConfig, plan: Recipe, run: Run) -> None:
    from jielong.corpus import stage as corpus
    from jielong.tokens import tokenizer

    _stage(run, "corpus", [], config.force, lambda: corpus.run(plan.corpus, run))
    _stage(run, "tokenizer", ["corpus"], config.force, lambda: tokenizer.run(plan.tokenizer, run))

    def base() -> Artifact:
        from jielong import pretrain

        return pretrain.run(plan.pretrain, run)

    def sft(from_scratch: bool) -> Artifact:
        from jielong import finetune

        return finetune.run(dataclasses.replace(plan.finetune, from_scratch=from_scratch), run)

    _stage(run, "base", ["corpus", "tokenizer"], config.force, base)
    _stage(run, "sft", ["base"], config.force, lambda: sft(False))
    world = plan.corpus.default
    if world and config.control:
        _stage(run, "control", ["base"], config.force, lambda: sft(True))
    if world:
        from jielong.align import simulate
        from jielong.evaluate import stage as evaluate

        if plan.thumbs.count:
            _stage(run, "thumbs", ["sft"], config.force, lambda: simulate.run(plan.thumbs, run))
            _improve(config, plan, run)
        exam = EvaluateConfig(control=config.control, seed=config.seed)
        parents = ["sft", *(["control"] if config.control else [])]
        if run.serving() != "sft":
            parents.append(run.serving())
        _stage(run, "evaluation", parents, config.force, lambda: evaluate.run(exam, run))
        found = run.need("evaluation")
        for row in evaluate.table(found.card["metrics"]):
            say(f"  {row[0]:8} {row[1]:7} en {row[2]}  zh-TW {row[3]}")
    from jielong.report import stage as report

    report.run(ReportConfig(), run)


def _improve(config: RaiseConfig, plan: Recipe, run: Run) -> None:
    """The first round of thumbs → reward → PPO. Feedback that teaches nothing leaves sft as it is, and says so."""
    from jielong.align import improve

    settings = dataclasses.replace(plan.improve, run=run.path, model="sft")
    found = run.artifact("promotion-1")
    if found is not None and config.force and found.card["parents"].get("sft") != run.need("sft").hash:
        _discard_improvements(run)
    try:
        _stage(run, "promotion-1", ["sft"], config.force, lambda: improve.run(settings, run))
    except improve.NotTaught as reason:
        say(f"No improvement: {reason}")


def _stage(run: Run, name: str, parents: list[str], force: bool, make: Callable[[], Artifact]) -> None:
    """Make artifact `name` unless it is there and its parents are still the ones it was made from."""
    found = run.artifact(name)
    if found is not None:
        found.verify()
        now = {p: run.need(p).hash for p in parents}
        before = found.card.get("parents") or {}
        stale = [p for p, stamp in now.items() if before.get(p, stamp) != stamp]
        added = now.keys() - before.keys()
        if not stale and not added:
            say(f"[dim]{name}: done[/]")
            return
        if stale and not force:
            raise UserError(
                f"{found.path} is stale: {', '.join(stale)} was made anew since. Use --force to make it again."
            )
    say(f"[bold]{name}[/] …")
    started = time.perf_counter()
    artifact = make()
    say(f"{name}: {time.perf_counter() - started:.1f} s, peak {artifact.card['peak_memory_bytes'] / 1e9:.2f} GB")
