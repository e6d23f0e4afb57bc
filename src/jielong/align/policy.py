"""The stage around whatever trains a policy: PPO, and the methods that it has to beat. It keeps states of the actor along the
way, lets one be chosen, and writes it as a chat model."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from jielong.align.scoring import ALONE, merged_copy
from jielong.config import DirectConfig, RolloutConfig
from jielong.model.gpt import GPT, load_model, save_model, write_shape
from jielong.model.lora import add_lora, save_adapter, trained
from jielong.run import Artifact, Run
from jielong.tokens.tokenizer import Tokenizer, copy_tokenizer
from jielong.train.distributed import Team
from jielong.train.loop import Enough, History, LoopConfig, dtype_of, repeat, use_threads
from jielong.train.making import begin, content
from jielong.train.optim import Optimizer
from jielong.train.shard import Whole, share


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
    """The kept states of a training, in a folder of its own. All processes keep them, the first one writes."""

    def __init__(self, folder: Path, whole: Whole, every: int, last: int):
        self.folder, self.whole, self.every, self.last = folder, whole, every, last
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, iteration: int, metrics: dict[str, Any]) -> None:
        """Keep the weights, if it is their turn."""
        if iteration % self.every and iteration != self.last:
            return
        from safetensors.torch import save_file

        actor = self.whole()
        if actor is None:
            return
        beside = self.folder / ".partial"
        save_file({k: v.contiguous() for k, v in trained(actor).items()}, beside)
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


Keep = Callable[[int, dict[str, Any]], None]
"""(steps done, metrics) → the weights are kept, if it is their turn."""
Choose = Callable[[list[State], GPT], tuple[State, dict[str, Any]]]
"""Kept states → one of them, and why."""
Tell = Callable[[dict[str, Any]], None]


class Trainer(Protocol):
    """What `train.loop.repeat` calls for each step, and what measures and keeps the state after the last one."""

    def __call__(self, optimizer: Optimizer, step: int, dtype: torch.dtype, history: History) -> float: ...

    def last(self, dtype: torch.dtype) -> None: ...


Make = Callable[[GPT, GPT, Tokenizer, Keep, Whole], tuple[nn.Module, Trainer]]
"""(actor, reference, tokenizer, keep, what gathers the actor) → what is trained, and its trainer."""


def train_policy(
    config: DirectConfig | RolloutConfig,
    run: Run,
    kind: str,
    name: str,
    parents: Sequence[Artifact],
    steps: int,
    per_step: int,
    make: Make,
    also: Any = None,
    choose: Choose | None = None,
    tell: Tell | None = None,
    metrics: dict[str, Any] | None = None,
    team: Team = ALONE,
) -> Artifact:
    """The first of `parents` → the chat model `name`, an artifact of `kind`.

    `per_step` is how many answers a step learns from; `also` is what the result depends on beside config and parents;
    `metrics` go into the card. All processes of the team train; the first one chooses, tells and writes.
    """
    from jielong.train.bar import training_bar

    start = parents[0]
    config = dataclasses.replace(config, threads=use_threads(config.threads))
    tokenizer = Tokenizer.load(start.file("tokenizer.json"))
    actor = load_model(start.path)
    reference = merged_copy(actor)
    if config.lora_rank:
        add_lora(actor, config.lora_rank, config.lora_alpha or 2.0 * config.lora_rank, config.seed)
    work, dtype = run.work(name), dtype_of(config.precision)
    making = {"config": content(config), "parents": {p.name: p.hash for p in parents}, "also": also}
    with team.in_turn():
        if team.first:
            begin(work, making, config.threads if team.alone else None)
    whole = share(actor, team, dtype)
    share(reference, team, dtype)
    states = States(work / "states", whole, config.keep_every, steps)

    def keep(step: int, found: dict[str, Any]) -> None:
        states(step, found)
        if tell and team.first:
            tell({"iteration": step, "of": steps, **found})

    model, trainer = make(actor, reference, tokenizer, keep, whole)
    loop = LoopConfig(
        steps, config.optim, config.precision, config.threads, config.checkpoint_seconds, per_step, name, history=False
    )
    made = run.build(name, kind=kind, config=config, parents=list(parents), seed=config.seed)
    with made if team.first else nullcontext() as build:
        with training_bar(name, steps) if team.first else nullcontext() as progress:
            history = repeat(model, trainer, loop, work / "checkpoints", progress, team)
        if not history.ended:
            try:
                trainer.last(dtype)
            except Enough as reason:
                history.ended = str(reason)
        final = whole()
        if build is not None and final is not None:
            kept = states.all()
            picked, why = choose(kept, final) if choose else (kept[-1], {"rule": "the last state"})
            picked.load(final)
            save_policy(final, start, build.path)
            build.threads = config.threads
            build.metrics = {
                "parameters": final.parameter_count(),
                "processes": team.place[1],
                "iterations": len(history.seen),
                "ended": history.ended,
                **(metrics or {}),
                "seen": history.seen,
                "kept": [{"iteration": s.iteration, **s.metrics} for s in kept],
                "picked": {"iteration": picked.iteration, **why},
            }
    with team.in_turn():
        if team.first:
            shutil.rmtree(work, ignore_errors=True)
    return Artifact(run.path / name)
