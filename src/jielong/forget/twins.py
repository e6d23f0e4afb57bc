"""Twins: models trained without some records, as measures for what a suppression should reach.

The first twin is the exact replay: what the run's training would have made. The others have the same records, order and starting
weights drawn anew, so that three of them tell how much two models differ that both never saw the records.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from jielong.forget import replay
from jielong.forget.find import STAGES, Found
from jielong.forget.tree import fates
from jielong.run import Artifact, Run
from jielong.tokens.shards import make_index, write_without
from jielong.tokens.tokenizer import Tokenizer


def lineage(run: Run, artifact: Artifact) -> list[str]:
    """The stages with shards of their own that an artifact descends from, itself among them, parents first."""
    found: list[str] = []

    def walk(name: str) -> None:
        own = run.artifact(name)
        if own is None or name in found:
            return
        for parent in own.card.get("parents") or {}:
            walk(parent)
        if name in STAGES:
            found.append(name)

    walk(artifact.name)
    return found


def make_twin(run: Run, folder: Path, names: list[str], found: Found, number: int) -> Artifact | None:
    """Twin `number` (0: the exact one) of the last of `names`, trained in `folder`; None where nothing of it can be trained here.
    A stopped making goes on."""
    stages = [n for n in names if n in found.trained]
    if not stages or set(names) & set(found.unread):
        return None
    twin = Run(folder)
    twin.create()
    steps = {s.artifact.name: s for s in fates(run, found)}
    for name in ("corpus", "tokenizer", *names):
        artifact = run.artifact(name)
        if artifact is None or twin.artifact(name) is not None:
            continue
        step, stage = steps[name], found.trained.get(name)
        if stage is None or (number == 0 and step.fate not in ("replayed", "rebuilt")):
            replay.link(artifact.path, twin.path / name)
        elif number == 0:
            replay.train_stage(run, twin, step, stage)
        else:
            _anew(twin, artifact, stage, number)
    return twin.need(names[-1])


def _anew(twin: Run, old: Artifact, stage: replay.Trained, number: int) -> None:
    """The stage on its records but those to be forgotten, in another order and from other starting weights."""
    work = twin.work(old.name)
    config, tokenizer = old.card["config"], Tokenizer.load(old.file("tokenizer.json"))
    if not (work / "ready").is_file():
        shutil.rmtree(work, ignore_errors=True)
        names = {n: f"{replay.NAME}{n}" for n in stage.records}
        write_without(stage.shard, work, names, tokenizer.pad)
        index = make_index(
            stage.shard.lengths, stage.shard.ids, config["length"], config["steps"] * config["rows"],
            config["seed"] + number,
        )  # fmt: skip
        index.save(work / "index.npz")
        (work / "ready").touch()
    replay.stage_again(old, twin, number)
    shutil.rmtree(work, ignore_errors=True)
