"""Settings from a rehearsal: records that nobody asks about are suppressed, and a twin that never saw them says which learning rate,
and how many epochs, come nearest. So the real request is not the one that the settings were chosen on."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jielong.changes.words import say
from jielong.config import ForgetConfig, SuppressConfig
from jielong.corpus.canaries import SOURCE
from jielong.corpus.documents import read_documents
from jielong.errors import UserError
from jielong.evaluate.bpb import bits_per_byte
from jielong.evaluate.statistics import kolmogorov_smirnov
from jielong.forget.case import Case, answers, kept_records, probed, records
from jielong.forget.columns import Column, Material, examine_model
from jielong.forget.find import Found
from jielong.forget.items import with_wrong
from jielong.forget.methods import method as method_of
from jielong.forget.suppress import cached, steps_of, suppress
from jielong.forget.twins import make_twin
from jielong.model.gpt import GPT, load_model, read_shape
from jielong.run import Run, write_atomic
from jielong.tokens.shards import order
from jielong.train.distributed import pick_device

STEP = 3.0  # ratio of neighbouring learning rates
BITS = 10.0  # what a share of bits per byte weighs beside a share of the way to the twin's −log p


def tuned_on_decoys(config: ForgetConfig, settings: SuppressConfig, run: Run, case: Case, file: Path) -> dict[str, Any]:
    """The best settings and what was tried, kept in `file`. Raises UserError where the run has no other records, or no twin can
    be trained."""
    if not file.is_file():
        write_atomic(file, json.dumps(rehearse(config, settings, run, case, file.with_suffix(""))))
    return json.loads(file.read_text(encoding="utf-8"))


def rehearse(config: ForgetConfig, settings: SuppressConfig, run: Run, case: Case, work: Path) -> dict[str, Any]:
    """Every learning rate on the decoys, looked at five times along the way. The nearest is the one with the least of the way to the
    twin's −log p left, where going past it counts like falling short; D, which is 1 for all that are far off, is told as well."""
    found = decoys(case, run, settings)
    context = read_shape(case.start.path).context
    texts = probed(records(found, context), case.tokenizer, [])
    retain = kept_records(run, case.names, merged(found, case.found), settings, context)
    rehearsal = dataclasses.replace(case, found=found, forget=with_wrong(texts, retain, settings.seed), retain=retain)
    work.mkdir(parents=True, exist_ok=True)
    material, device = Material(rehearsal.forget, [], quick=True), pick_device(settings.device)
    wanted = cached(work.parent / "decoys.json", lambda: twin_of_decoys(run, case, found, material, work, device))
    start = load_model(case.start.path).to(device)
    bits = max(mean_bits(start, case), wanted.figures["bits per byte"])  # what the twin lost, too, is no damage
    first, goal = examine_model(start, case.tokenizer, material, case.chat).figures["nll"], wanted.figures["nll"]
    tried: list[dict[str, float]] = []
    lrs = [(settings.lr or 1e-4) * STEP ** (n - settings.tune // 2) for n in range(settings.tune)]
    for lr in lrs:
        method = method_of(config.method)
        attempt = dataclasses.replace(settings, lr=lr)

        def look(model: GPT, step: int, lr: float = lr) -> dict[str, Any]:
            column = examine_model(model, case.tokenizer, material, case.chat)
            far, _ = kolmogorov_smirnov(texts_nll(column.logprobs), texts_nll(wanted.logprobs))
            gap = abs(column.figures["nll"] - goal) / max(abs(first - goal), 1e-9)
            rise = max(0.0, mean_bits(model, case) / bits - 1) if bits else 0.0
            return {"lr": lr, "step": step, "D": far, "gap": gap, "rise": rise, "distance": gap + BITS * rise}

        steps = steps_of(attempt, len(answers(rehearsal.forget)))
        every = max(1, steps // 5)
        at = frozenset([*range(every, steps, every), steps])
        model, history = suppress(method, start, rehearsal, attempt, work / f"lr-{lr:g}", look, at)
        # a task vector's way back comes after the last step, and what was seen before it counts for nothing
        tried += [look(model, steps)] if config.method == "task-vector" else history.seen
        shutil.rmtree(work / f"lr-{lr:g}", ignore_errors=True)
    best = min(tried, key=lambda t: t["distance"])
    epochs = (settings.epochs or 1.0) * best["step"] / steps_of(settings, len(answers(rehearsal.forget)))
    say(
        f"  tuned on {len(texts)} decoys: lr {best['lr']:g}, {epochs:.1f} epochs, {best['gap']:.0%} of the way to the twin left"
    )
    shutil.rmtree(work, ignore_errors=True)
    return {"decoys": len(texts), "tried": tried, "lr": best["lr"], "epochs": epochs}


def twin_of_decoys(run: Run, case: Case, found: Found, material: Material, work: Path, device: torch.device) -> Column:
    """What a training without the decoys makes of them. The same for every method."""
    twin = make_twin(run, work / "twin", case.names, found, 0)
    if twin is None:
        raise UserError("--suppress.tune needs a model that was trained here; leave it out.")
    model = load_model(twin.path).to(device)
    column = examine_model(model, case.tokenizer, material, case.chat)
    column.figures["bits per byte"] = mean_bits(model, case)
    return column


def texts_nll(logprobs: list[list[float]]) -> np.ndarray:
    """(E,) −log p per token."""
    return np.array([-float(np.mean(lp)) for lp in logprobs])


def mean_bits(model: GPT, case: Case) -> float:
    """Bits per byte of the texts that settings are chosen by; 0 without any."""
    found = bits_per_byte(model, case.tokenizer, case.rehearsal)
    return sum(found.values()) / len(found) if found else 0.0


def decoys(case: Case, run: Run, settings: SuppressConfig) -> Found:
    """As many records as are asked for that nobody asks about, of the same stages: canaries where canaries are meant."""
    found = Found()
    corpus = run.artifact("corpus")
    planted: set[str] = set()
    if case.material.canaries and corpus is not None:
        named = [c.name for c in case.material.canaries]
        documents = read_documents(corpus.file("train.parquet"))
        planted = {d.id for d in documents if d.source == SOURCE and not any(n in d.text for n in named)}
    for name, stage in case.found.trained.items():
        reached, want = set(stage.index.record.tolist()), len(stage.records)
        free = [
            n for n in order(stage.shard.ids, settings.seed, 1).tolist()
            if n in reached and n not in stage.records and n not in stage.shard.forgotten
        ]  # fmt: skip
        own = [n for n in free if stage.shard.ids[n] in planted] or free
        picked = dict.fromkeys(own[:want], "")
        decoy = dataclasses.replace(stage, records=picked, first=stage.first_step(set(picked)))
        found.trained[name] = decoy
    if not any(stage.records for stage in found.trained.values()):
        raise UserError("--suppress.tune needs other records of the run to rehearse on; leave it out.")
    return found


def merged(a: Found, b: Found) -> Found:
    """Both requests, so that neither's records are taken as what must stay."""
    whole = Found()
    for name, stage in a.trained.items():
        other = b.trained.get(name)
        records = stage.records | (other.records if other else {})
        whole.trained[name] = dataclasses.replace(stage, records=records)
    return whole
