"""Exact forgetting: the run without the records is made beside it, by replaying only what came after they were first seen.

A training is replayable: the plan says in which step and row each record stands; a record that leaves becomes padding there, and
nothing else moves; a step is a pure function of weights, optimizer state and step number. So the last checkpoint before the
record was first seen is what a training without it would have reached, too, and going on from there gives, on the CPU with the
same number of threads, the bits of that training.

All of it happens in the folder `RUN/.forget`, a run of its own whose stages are the ordinary ones; the run itself stays as it
was until `forget.commit` puts the new parts in its place. A stopped replay goes on from its own checkpoints.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

from jielong.config import FinetuneConfig, PretrainConfig, filled
from jielong.corpus.documents import Document
from jielong.forget.find import NAME, Found, Trained
from jielong.forget.request import Request
from jielong.forget.residue import search
from jielong.forget.telling import Tell, nobody
from jielong.forget.tree import TOGETHER, Step
from jielong.run import CARD, FORGETTING, Artifact, Run, sha256_file, write_atomic
from jielong.tokens.shards import write_without
from jielong.tokens.tokenizer import Tokenizer

PLAN = "plan.json"  # what this folder is being made for


def open_shadow(run: Run, stamp: str) -> Run:
    """The run's folder beside it. One that was begun for another request, or for the run in another state, is emptied."""
    shadow = Run(run.path / FORGETTING)
    try:
        same = json.loads((shadow.path / PLAN).read_text(encoding="utf-8"))["stamp"] == stamp
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    if not same:
        shutil.rmtree(shadow.path, ignore_errors=True)
        shadow.create()
        write_atomic(shadow.path / PLAN, json.dumps({"stamp": stamp}))
    return shadow


def make(
    run: Run, shadow: Run, request: Request, found: Found, steps: list[Step], tell: Tell = nobody
) -> dict[str, Any]:
    """Fill the shadow with every artifact that is not as it was; what was done, by artifact, for the ledger."""
    done: dict[str, Any] = {}
    for step in steps:
        name, old = step.artifact.name, step.artifact
        if step.fate == "stale":
            continue
        if step.fate != "kept":
            tell("stage", stage=name, fate=step.fate)
        if shadow.artifact(name) is None:
            if step.fate == "kept":
                link(old.path, shadow.path / name)
            elif name == "corpus":
                rewrite_corpus(old, shadow, request, found)
            elif name == TOGETHER:
                from jielong.forget.owners import add_up

                add_up(shadow)
            else:
                train_stage(run, shadow, step, found.trained.get(name))
        if step.fate == "kept":
            _name_parents(shadow, name)
        done[name] = _tell(old, shadow.need(name), step, run, found.trained.get(name))
    return done


def link(source: Path, target: Path) -> None:
    """The same files in another folder, without copying bytes where the file system allows it. A link is never written to."""
    beside = target.with_name(f".{target.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(source, beside, copy_function=_link)
    shutil.rmtree(target, ignore_errors=True)
    beside.rename(target)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _name_parents(shadow: Run, name: str) -> None:
    """The card of a kept artifact names its parents as they are now; an adapter its base."""
    found = shadow.artifact(name)
    assert found is not None
    card = json.loads(json.dumps(found.card))
    for parent in card.get("parents") or {}:
        if (now := shadow.artifact(parent)) is not None:
            card["parents"][parent] = now.hash
    for file in ("adapter.json", "delta.json"):
        if found.file(file).is_file():
            told = json.loads(found.file(file).read_text(encoding="utf-8"))
            base = shadow.artifact(str(told.get("base")))
            if base is not None and told.get("hash") != base.hash:
                write_atomic(found.file(file), json.dumps(told | {"hash": base.hash}))
                card["files"][file] = _stamp(found.file(file))
    if card != found.card:
        write_atomic(found.file(CARD), json.dumps(card, ensure_ascii=False, indent=1))


def _stamp(path: Path) -> dict[str, Any]:
    return {"sha256": sha256_file(path), "bytes": path.stat().st_size}


# the corpus


def rewrite_corpus(old: Artifact, shadow: Run, request: Request, found: Found) -> None:
    """The corpus without the records: its other rows as they are, and no example on its card or report that shows one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    gone = {d.id for part in found.documents.values() for d in part}
    texts = [d.text for part in found.documents.values() for d in part]

    def shows(text: str) -> bool:
        return (
            request.find(text) is not None
            or any(text in t for t in texts if text.strip())
            or any(t in text for t in texts)
        )

    with shadow.build("corpus", kind=old.card["kind"], config=old.card["config"], seed=old.card["seed"]) as build:
        for name in old.card["files"]:
            source, target = old.file(name), build.path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if name in ("train.parquet", "heldout.parquet"):
                table = pq.read_table(source)
                keep = [record not in gone for record in table["id"].to_pylist()]
                pq.write_table(table.filter(pa.array(keep, pa.bool_())), target, compression="zstd")
            elif not search([source], shows):  # of a large corpus: its funnel and what could not be read
                _link(str(source), str(target))
        build.metrics = json.loads(json.dumps(old.card["metrics"]))
        _forget_in(build.metrics, found.documents.get("train", []), shows)
        build.extra = {"created": old.card["created"], "forgotten": old.card.get("forgotten", 0) + len(gone)}


def _forget_in(metrics: dict[str, Any], gone: list[Document], shows: Any) -> None:
    """Examples of the funnel that show a record, and the counts of what is left."""
    for step in metrics.get("funnel", []):
        if "examples" in step:
            step["examples"] = [e for e in step["examples"] if not shows(str(e.get("text", "")))]
    if "documents" in metrics:
        metrics["documents"] -= len(gone)
    for name, field in (("characters", "lang"), ("sources", "source")):
        for d in gone:
            if getattr(d, field) in metrics.get(name, {}):
                metrics[name][getattr(d, field)] -= len(d.text)


# training


def train_stage(run: Run, shadow: Run, step: Step, stage: Trained | None) -> None:
    """The stage again, from the checkpoints that had not seen the records, or, where it never saw them, only relabelled."""
    old, name = step.artifact, step.artifact.name
    if stage is None:  # fine-tuned before its work folder was cleared away
        stage_again(old, shadow, keep=False)
        return
    work = shadow.work(name)
    if not (work / "ready").is_file():
        shutil.rmtree(work, ignore_errors=True)
        tokenizer = Tokenizer.load(old.file("tokenizer.json"))
        names = {n: NAME + secrets.token_hex(4) for n in stage.records}
        write_without(stage.shard, work, names, tokenizer.pad)
        shutil.copyfile(run.work(name) / "index.npz", work / "index.npz")
        for number in usable_checkpoints(run.work(name), step, stage):
            link(run.work(name) / "checkpoints" / _folder(number), work / "checkpoints" / _folder(number))
        (work / "ready").touch()
    if step.fate == "rewritten":
        _relabel(old, shadow, work)
    else:
        stage_again(old, shadow)


def usable_checkpoints(work: Path, step: Step, stage: Trained) -> list[int]:
    """Steps of the checkpoints that have seen none of the records: all those up to the step that first sees one. A checkpoint
    on another parent is of no use."""
    if step.fate == "rebuilt":
        return []
    kept = [p.parent for p in (work / "checkpoints").glob("step-*/state.json") if _is_readable(p.parent)]
    numbers = sorted(int(p.name.split("-")[1]) for p in kept)
    return [k for k in numbers if stage.first is None or k <= stage.first]


def _is_readable(checkpoint: Path) -> bool:
    """Is the optimizer's state in the form of this version? Older ones stacked the matrices and had one count of updates."""
    from safetensors import SafetensorError, safe_open

    file = checkpoint / "optimizer.safetensors"
    if not file.is_file():
        return True  # in parts, by several processes
    try:
        with safe_open(str(file), "pt") as stored:
            return len(stored.get_slice("updates").get_shape()) == 1
    except (OSError, SafetensorError):
        return False


def _folder(number: int) -> str:
    return f"step-{number:08d}"


def stage_again(old: Artifact, shadow: Run, seed: int = 0, keep: bool = True) -> None:
    """Call the stage that made `old`, with the settings of its card, in the shadow; with another seed where it is not 0, and then
    without checkpoints for later replays."""
    from jielong import finetune, pretrain

    settings = old.card["config"] | {"threads": old.card["threads"], "device": str(old.card["device"]).split()[0]}
    settings["seed"] += seed
    if old.card["kind"] == "base":
        pretrain.run(filled(PretrainConfig(), settings), shadow, name=old.name, keep=keep, history=not seed)
    else:
        finetune.run(filled(FinetuneConfig(), settings), shadow, keep=keep, name=old.name)


def train_again(run: Run, shadow: Run, old: Artifact, stage: Trained, start: int) -> None:
    """`old` once more, in the shadow, from the run's own shard, plan and checkpoint after `start` steps (0: random weights)."""
    work = shadow.work(old.name)
    write_without(stage.shard, work, {}, 0)
    shutil.copyfile(run.work(old.name) / "index.npz", work / "index.npz")
    if start:
        link(run.work(old.name) / "checkpoints" / _folder(start), work / "checkpoints" / _folder(start))
    stage_again(old, shadow)


def _relabel(old: Artifact, shadow: Run, work: Path) -> None:
    """The same weights, whose list of records no longer names those that the training never came to."""
    link(old.path, shadow.path / old.name)
    new = shadow.artifact(old.name)
    assert new is not None
    ids = json.loads((work / "shard.json").read_text(encoding="utf-8"))["ids"]
    write_atomic(new.file("records.json"), json.dumps(ids))
    card = new.card
    card["files"]["records.json"] = _stamp(new.file("records.json"))
    write_atomic(new.file(CARD), json.dumps(card, ensure_ascii=False, indent=1))
    _name_parents(shadow, old.name)


# telling


def _tell(old: Artifact, new: Artifact, step: Step, run: Run, stage: Trained | None) -> dict[str, Any]:
    """What happened to an artifact, in figures, for the ledger."""
    told: dict[str, Any] = {"fate": step.fate, "before": old.hash, "after": new.hash}
    if step.fate in ("replayed", "rebuilt") and stage is not None:
        start = max([0, *usable_checkpoints(run.work(old.name), step, stage)])
        before, after = (dict(map(tuple, a.card["metrics"]["loss"])) for a in (old, new))
        until = stage.first if stage.first is not None and step.fate == "replayed" else start
        compared = [s for s in range(start, until) if s in before and s in after]
        told |= {
            "first_seen": stage.first, "from_step": start, "steps": stage.steps,
            "share_replayed": round((stage.steps - start) / stage.steps, 4), "threads": new.card["threads"],
            "seconds": new.card["seconds"], "seconds_before": old.card["seconds"],
            "weights": new.card["files"].get("model.safetensors", new.card["files"].get("adapter.safetensors"))["sha256"],
            "losses_compared": len(compared), "losses_equal": sum(before[s] == after[s] for s in compared),
        }  # fmt: skip
    return told
