"""What an edited artifact holds: the edits that stand, what they add to the base, and what they tell it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from jielong.config import ModelConfig
from jielong.edit import facts as reading
from jielong.edit.bench import Bench, Stored
from jielong.edit.facts import Fact
from jielong.edit.methods import together, told
from jielong.generate.engine import chats, talks
from jielong.model.delta import Delta, delta_base, save_delta, widened
from jielong.model.gpt import GPT, read_shape, write_shape
from jielong.run import Artifact, Run, write_atomic
from jielong.tokens.tokenizer import Tokenizer, copy_tokenizer

EDITED = "edited"


@dataclasses.dataclass(frozen=True)
class Change:
    """An edit that an artifact holds."""

    id: str
    method: str
    fact: Fact
    stored: Stored
    replaces: tuple[str, ...] = ()
    """Edits of the same fact that it stands for; they come back when it is undone."""


def standing(changes: Sequence[Change]) -> list[Change]:
    """Those that no later one replaces."""
    gone = {i for n, c in enumerate(changes) for i in c.replaces if any(b.id == i for b in changes[:n])}
    return [c for c in changes if c.id not in gone]


def talking(run: Run, name: str = "") -> Artifact:
    """The artifact `name`, by default the one that is served. Raises UserError when it is no model that says something."""
    found = run.need(name or run.serving())
    talks(found)
    return found


@dataclasses.dataclass
class State:
    """A model to be edited: its base, and the edits that it has on top."""

    artifact: Artifact
    base: Artifact
    changes: list[Change]
    ridge: float | None = None
    """λ of its closed form."""

    @classmethod
    def of(cls, artifact: Artifact) -> State:
        if artifact.card["kind"] != EDITED:
            return cls(artifact, artifact, [])
        held, ridge = read_changes(artifact.path)
        return cls(artifact, Artifact(delta_base(artifact.path)), held, ridge)


def whole(bench: Bench, changes: Sequence[Change]) -> Delta:
    """What the standing changes add to the base."""
    return together(bench, {c.id: (c.method, c.stored) for c in standing(changes)})


def write(
    run: Run, state: State, changes: Sequence[Change], delta: Delta, ridge: float, config: Any, metrics: dict[str, Any]
) -> Artifact:
    """The artifact edited-N over the untouched base."""
    from safetensors.torch import save_file

    last = run.newest(EDITED)
    number = 1 if last is None else int(last.name.rpartition("-")[2]) + 1
    parents = [state.base] + ([state.artifact] if state.artifact.name != state.base.name else [])
    with run.build(f"{EDITED}-{number}", kind=EDITED, config=config, parents=parents) as build:
        save_delta(delta, build.path, state.base)
        memory = told({c.id: (c.method, c.fact) for c in standing(changes)})
        if memory.notes:
            memory.save(build.path)
        tensors = {f"{c.id}/{name}": t.contiguous() for c in changes for name, t in c.stored.items()}
        save_file(tensors, build.path / "changes.safetensors")
        rows = [
            {"id": c.id, "method": c.method, "replaces": c.replaces, "fact": dataclasses.asdict(c.fact)}
            for c in changes
        ]
        known = {"ridge": ridge, "changes": rows}
        write_atomic(build.path / "changes.json", json.dumps(known, ensure_ascii=False, indent=1))
        shape = read_shape(state.base.path)
        shape = dataclasses.replace(shape, mlp_width=widened(shape.mlp_width, delta))
        write_shape(shape, build.path)
        copy_tokenizer(state.base.file("tokenizer.json"), build.path)
        chat = {"chat": chats(state.base.card, Tokenizer.load(state.base.file("tokenizer.json")))}
        build.metrics = {
            "parameters": parameter_count(shape),
            **chat,
            "edits": [c.id for c in standing(changes)],
            **metrics,
        }
    return build.artifact


def parameter_count(shape: ModelConfig) -> int:
    """Of a model of this shape."""
    with torch.device("meta"):  # nothing is held
        return GPT(shape).parameter_count()


def read_changes(folder: Path) -> tuple[list[Change], float]:
    """The edits that an artifact holds, and λ."""
    from safetensors.torch import load_file

    tensors = load_file(folder / "changes.safetensors")
    known = json.loads((folder / "changes.json").read_text(encoding="utf-8"))
    found = []
    for row in known["changes"]:
        mark = f"{row['id']}/"
        stored = {k.removeprefix(mark): t for k, t in tensors.items() if k.startswith(mark)}
        found.append(Change(row["id"], row["method"], reading.from_json(row["fact"]), stored, tuple(row["replaces"])))
    return found, float(known["ridge"])
