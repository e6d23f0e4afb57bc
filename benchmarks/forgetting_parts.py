"""Two longer parts of `benchmarks/forgetting.py`: spark's bars over seeds, and TOFU on an imported model.

Everything lies in --out: a run that is stopped goes on with the same command, and columns that were examined are not examined again.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from jielong import finetune, pretrain
from jielong.config import CorpusConfig, FinetuneConfig, ForgetConfig, SuppressConfig, TokenizerConfig
from jielong.config.feedback import adam
from jielong.corpus import canaries
from jielong.corpus import stage as corpus
from jielong.evaluate.leakage import log_truth_ratio, truth
from jielong.evaluate.statistics import kolmogorov_smirnov
from jielong.forget import exam
from jielong.forget.case import Case, answers, gather
from jielong.forget.columns import Column, examine_model, read, together
from jielong.forget.find import find
from jielong.forget.items import Text, question
from jielong.forget.methods import method
from jielong.forget.request import Request
from jielong.forget.stage import run as forget
from jielong.forget.suppress import resolved, steps_of, suppress
from jielong.forget.tuning import rehearse
from jielong.forget.twins import make_twin
from jielong.generate.engine import Engine
from jielong.generate.sampling import Sampling
from jielong.model.gpt import GPT, load_model
from jielong.recipes import Recipe, recipe
from jielong.run import Artifact, Run, write_atomic
from jielong.tokens import tokenizer as tokenizers
from jielong.tokens.tokenizer import Tokenizer
from jielong.train.distributed import pick_device

FIVE = ("truth ratio", "extraction strength", "AUC loss", "exposure", "bits per byte")


def cached(path: Path, make: Callable[[], Any]) -> Any:
    """What `make` gives, kept as JSON."""
    if not path.is_file():
        found = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".partial").write_text(json.dumps(found))
        path.with_suffix(".partial").rename(path)
    return json.loads(path.read_text())


def column(path: Path, make: Callable[[], Column]) -> Column:
    return Column(**cached(path, lambda: dataclasses.asdict(make())))


# spark's bars


def spark(options: argparse.Namespace) -> None:
    """For each seed: a late record forgotten exactly (bits, cost); the canaries told 16 times suppressed by every method beside three
    twins; and all canaries forgotten exactly (extraction)."""
    rows = [spark_seed(options, options.out / f"seed-{seed}", seed) for seed in options.seeds]
    print("\nreplay of a record seen late: equal bits, share of the steps, share of the training's time")
    for row in rows:
        r = row["replay"]
        print(f"  seed {row['seed']}: {r['equal']}, {r['steps']:.1%}, {r['seconds']:.1%}")
    print("canaries extracted after exact forgetting (greedy, in samples):", [tuple(row["exact"]) for row in rows])
    for name in options.methods:
        own = [row["methods"][name] for row in rows]
        inside = [sum(abs(m["z"][k]) <= 2 for k in FIVE if k in m["z"]) for m in own]
        print(f"{name}: figures within 2 sd of three twins (of {len(FIVE)}): {inside}; share of the training time: "
              f"{mean(m['time'] for m in own):.1%}")  # fmt: skip
        for figure in FIVE:
            cells = [[m["columns"][c].get(figure, math.nan) for m in own] for c in ("before", "after")]
            twins = [m["columns"][t].get(figure, math.nan) for m in own for t in ("twin 1", "twin 2", "twin 3")]
            print(f"    {figure:20} before {spread(cells[0])} · after {spread(cells[1])} · twins {spread(twins)}")


def spark_seed(options: argparse.Namespace, folder: Path, seed: int) -> dict[str, Any]:
    plan = small(folder) if options.recipe == "small" else recipe(options.recipe)
    run = Run(folder / "run")
    if run.artifact("corpus") is None:
        corpus.run(dataclasses.replace(plan.corpus, canaries=options.canaries, seed=seed), run)
    if run.artifact("tokenizer") is None:
        tokenizers.run(plan.tokenizer, run)
    steps = options.steps or plan.pretrain.steps
    settings = dataclasses.replace(
        plan.pretrain, seed=seed, steps=steps, threads=options.threads, sample_every=1.0, device=options.device
    )
    if run.artifact("base") is None:
        pretrain.run(settings, run)
    trained = run.need("base").card["metrics"]["train_seconds"]
    found = {"seed": seed, "replay": cached(folder / "replay.json", lambda: late(run, folder, settings, trained))}
    found["methods"] = suppressed(options, run, folder, trained, seed)
    found["exact"] = cached(folder / "exact.json", lambda: exact(run, folder, seed, options))
    return found


def small(folder: Path) -> Recipe:
    """Sentences about invented people and a model of 2 layers × 64, which learns all of them by heart in seconds."""
    from small_runs import BASE, people

    (folder / "text").mkdir(parents=True, exist_ok=True)
    for n, text in enumerate(people()):
        (folder / "text" / f"{n}.txt").write_text(text)
    shape = dataclasses.replace(BASE.model, width=64, layers=2, mlp_width=192, context=128)
    return Recipe(
        corpus=CorpusConfig(text=(folder / "text",), default=False, heldout=0.1, workers=1),
        tokenizer=TokenizerConfig(vocab_size=512),
        pretrain=dataclasses.replace(BASE, model=shape, steps=150, rows=8, length=96),
    )


def copy_of(run: Run, path: Path) -> Run:
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(run.path, path, ignore=shutil.ignore_patterns(".lock"))
    return Run(path)


def late(run: Run, folder: Path, settings: Any, trained: float) -> dict[str, Any]:
    """Forget the record that is seen last, in a copy, and train without it from the start."""
    stage = find(run, Request(ids=("none",)), "").trained["base"]
    firsts = {i: stage.first_step({n}) for n, i in enumerate(stage.shard.ids)}
    record = max((i for i, s in firsts.items() if s is not None), key=lambda i: (firsts[i], i))
    copy = copy_of(run, folder / "late" / "run")
    entry = forget(ForgetConfig(copy.path, record=(record,), yes=True), copy)
    assert entry is not None
    told = entry["artifacts"]["base"]
    twin = Run(folder / "late" / "twin")
    for part in ("corpus", "tokenizer"):
        shutil.copytree(run.path / part, twin.path / part, dirs_exist_ok=True)
    scratch = load_file(pretrain.run(settings, twin, drop=frozenset({record}), history=False).file("model.safetensors"))
    ours = load_file(copy.need("base").file("model.safetensors"))
    shutil.rmtree(folder / "late")
    equal = all(torch.equal(ours[k], scratch[k]) for k in ours)
    return {"equal": equal, "steps": told["share_replayed"], "seconds": told["seconds"] / max(trained, 1e-9)}


def suppressed(options: argparse.Namespace, run: Run, folder: Path, trained: float, seed: int) -> dict[str, Any]:
    """Every method on the canaries told 16 times; three twins trained once for all of them."""
    names = tuple(c.name for c in canaries.canaries(options.canaries, seed) if c.times == max(canaries.REPETITIONS))
    found: dict[str, Any] = {}
    case: Case | None = None
    twins: list[Column] = []
    device = pick_device(options.device)
    for name in options.methods:
        config = ForgetConfig(run.path, name=names, method=name, model="base", samples=options.samples)
        base = SuppressConfig(tune=options.tune, threads=options.threads, seed=seed, device=options.device)
        settings = resolved(base, method(name))
        case = gather(config, settings, run)
        start = load_model(case.start.path).to(device)
        before = column(
            folder / "before.json", lambda s=start, c=case: examine_model(s, c.tokenizer, c.material, c.chat)
        )
        for number in range(3):
            twins = twins[:number]
            twins.append(
                column(folder / f"twin-{number}.json", lambda c=case, n=number: twin_column(run, folder, c, n, device))
            )

        def attempt(name: str = name, config: ForgetConfig = config, settings: SuppressConfig = settings, case: Case = case,
                    start: GPT = start, before: Column = before, twins: list[Column] = twins) -> dict[str, Any]:  # fmt: skip
            best: dict[str, Any] = {}
            if settings.tune:
                best = rehearse(config, settings, run, case, folder / f"tuning-{name}")
                settings = dataclasses.replace(settings, lr=best["lr"], epochs=best["epochs"])
            work = folder / f"work-{name}"
            model, history = suppress(method(name), start, case, settings, work)
            shutil.rmtree(work, ignore_errors=True)
            after = examine_model(model, case.tokenizer, case.material, case.chat)
            table = together(before, after, twins, len(case.forget))
            z = {}
            for figure in FIVE:
                values = [table[f"twin {n}"].get(figure, math.nan) for n in (1, 2, 3)]
                if figure in table["after"] and not any(map(math.isnan, values)):
                    far, sd = table["after"][figure] - mean(values), stdev(values)
                    z[figure] = 0.0 if far == 0 else far / sd if sd else math.copysign(99.0, far)
            return {
                "columns": table,
                "z": z,
                "time": history.seconds / max(trained, 1e-9),
                "lr": settings.lr,
                "epochs": settings.epochs,
                "tuned": best,
            }

        found[name] = cached(folder / f"method-{name}.json", attempt)
        print(
            f"seed {seed}, {name}: lr {found[name]['lr']:g}, {found[name]['epochs']:.1f} epochs, z {found[name]['z']}"
        )
    return found


def twin_column(run: Run, folder: Path, case: Case, number: int, device: torch.device) -> Column:
    place = folder / f"twin-{number}"
    twin = make_twin(run, place, case.names, case.found, number)
    assert twin is not None
    found = examine_model(load_model(twin.path).to(device), case.tokenizer, case.material, case.chat)
    shutil.rmtree(place)
    return found


def exact(run: Run, folder: Path, seed: int, options: argparse.Namespace) -> list[int]:
    """All canaries forgotten exactly, in a copy: how many come out afterwards, greedily and in samples."""
    copy = copy_of(run, folder / "exact")
    names = tuple(c.name for c in canaries.canaries(options.canaries, seed))
    forget(ForgetConfig(copy.path, name=names, yes=True, most=0.9), copy)
    told = exam.leaks(copy, samples=options.samples, codes=1000)["secrets"].values()
    shutil.rmtree(copy.path)
    return [sum(row["extracted_greedily"] for row in told), sum(row["extracted_in_samples"] for row in told)]


def spread(values: list[float]) -> str:
    real = [v for v in values if not math.isnan(v)]
    return f"{mean(real):.3f} ± {stdev(real) if len(real) > 1 else 0:.3f}" if real else "–"


# TOFU

PUBLISHED = """published, Llama-3.2-1B, untuned (open-unlearning, docs/repro.md): forget quality p, utility, truth ratio
  fine-tuned 2e-21 .60 .48 · retrained 1.0 .59 .63 · GradDiff 1e-239 .49 4e-27 · NPO .02 .46 .70 · SimNPO 2e-203 .54 1e-5 · RMU 3e-15 .59 .76"""


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in gzip.open(path, "rt", encoding="utf-8")]


def tofu(options: argparse.Namespace) -> None:
    """Fine-tune on all authors, and the twin on the retained ones; every method; the table. --first N: N forgotten and 4 N retained
    questions only."""
    out, data = options.out, options.data
    rows = {n: lines_of(data / f"{n}.jsonl.gz") for n in ("forget10_perturbed", "retain90", "retain_perturbed", "real_authors_perturbed", "world_facts_perturbed")}  # fmt: skip
    if options.first:
        rows["forget10_perturbed"] = rows["forget10_perturbed"][: options.first]
        rows["retain90"] = rows["retain90"][: 4 * options.first]
        known = {r["question"] for r in rows["retain90"]}
        inside = [r for r in rows["retain_perturbed"] if r["question"] in known]
        rows |= {"retain_perturbed": inside or rows["retain_perturbed"][: options.first]}
        rows |= {n: rows[n][: options.first] for n in ("real_authors_perturbed", "world_facts_perturbed")}
    out.mkdir(parents=True, exist_ok=True)
    files = {"forget": rows["forget10_perturbed"], "retain": rows["retain90"]}
    for name, part in files.items():
        text = "".join(json.dumps(r) + "\n" for r in part)
        if not (
            out / f"{name}.jsonl"
        ).is_file():  # another process, which makes other rows of the table, may be reading it
            write_atomic(out / f"{name}.jsonl", text)
    device = pick_device(options.device)
    whole = taught(options, out / "whole", [*rows["retain90"], *rows["forget10_perturbed"]])
    twin = taught(options, out / "retained", rows["retain90"])
    tokenizer = Tokenizer.load(whole.file("tokenizer.json"))
    sheet: dict[str, dict[str, float]] = {}
    sheet["base, never fine-tuned"] = cached(
        out / "base.json", lambda: marks(load_model(Run(out / "whole").need("base").path).to(device), tokenizer, rows)
    )
    sheet["fine-tuned on all"] = cached(
        out / "all.json", lambda: marks(load_model(whole.path).to(device), tokenizer, rows)
    )
    sheet["twin, without forget10"] = cached(
        out / "twin.json", lambda: marks(load_model(twin.path).to(device), tokenizer, rows)
    )
    for name in options.methods:
        for lr in options.method_lr:
            label = f"{name} {lr:g}" if lr else name
            sheet[label] = cached(
                out / f"{label.replace(' ', '-')}.json",
                lambda name=name, lr=lr: tofu_method(options, out, name, lr, tokenizer, rows),
            )
    reference = np.array(sheet["twin, without forget10"]["ratios"])
    print(
        f"\nTOFU forget10, {len(rows['forget10_perturbed'])} forgotten and {len(rows['retain90'])} retained questions, {options.run.name}"
    )
    print(
        f"{'':26} {'KS p':>9} {'D':>6} {'n':>4} {'utility':>8} {'truth f':>8} {'prob f':>7} {'ROUGE f':>8} {'seconds':>8}"
    )
    for name, own in sheet.items():
        far, p = kolmogorov_smirnov(np.array(own["ratios"]), reference)
        print(f"{name:26} {p:9.2g} {far:6.3f} {len(own['ratios']):4} {own['utility']:8.3f} {own['truth']:8.3f} {own['probability']:7.3f} "
              f"{own['rouge']:8.3f} {own.get('seconds', 0):8.0f}")  # fmt: skip
    print(PUBLISHED)


def taught(options: argparse.Namespace, folder: Path, rows: list[dict[str, Any]]) -> Artifact:
    """The model fine-tuned on questions and answers, in a run of its own whose base is linked."""
    run = Run(folder)
    if run.artifact("base") is None:
        run.create()
        shutil.copytree(options.run / "base", folder / "base", copy_function=_link)
    file = folder / "talks.jsonl"
    talks = [[{"role": "user", "content": r["question"]}, {"role": "assistant", "content": r["answer"]}] for r in rows]
    file.write_text("".join(json.dumps({"messages": t}) + "\n" for t in talks))
    if run.artifact("sft") is None:
        finetune.run(
            FinetuneConfig(conversations=file, optim=adam(options.lr), epochs=options.epochs, rows=options.rows, length=256,
                           steps=options.steps, lora_rank=options.rank, threads=options.threads, device=options.device,
                           checkpoint_seconds=120.0), run, history=False
        )  # fmt: skip
    return run.need("sft")


def _link(source: str, target: str) -> None:
    import os

    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def tofu_method(
    options: argparse.Namespace, out: Path, name: str, lr: float, tokenizer: Tokenizer, rows: dict[str, Any]
) -> dict[str, Any]:
    run = Run(out / "whole")
    config = ForgetConfig(
        run.path, method=name, model="sft", examples=out / "forget.jsonl", retain=out / "retain.jsonl"
    )
    settings = resolved(
        SuppressConfig(lora_rank=options.rank, rows=options.rows, threads=options.threads, lr=lr or None,
                       epochs=options.method_epochs or None, device=options.device), method(name)
    )  # fmt: skip
    case = gather(config, settings, run)
    print(f"{name}: {steps_of(settings, len(answers(case.forget)))} steps")
    started = time.perf_counter()
    model, _ = suppress(
        method(name),
        load_model(case.start.path).to(pick_device(options.device)),
        case,
        settings,
        out / f"work-{name}-{lr:g}",
    )
    took = time.perf_counter() - started
    shutil.rmtree(out / f"work-{name}-{lr:g}", ignore_errors=True)
    return marks(model, tokenizer, rows) | {"seconds": took}


def marks(model: GPT, tokenizer: Tokenizer, rows: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """TOFU's figures: on the forgotten questions and, as their harmonic mean, on the other three parts."""
    parts = {
        n: part_marks(model, tokenizer, rows[n], forgotten=n.startswith("forget")) for n in rows if n != "retain90"
    }
    own = parts["forget10_perturbed"]
    rest = [
        v for n, p in parts.items() if not n.startswith("forget") for v in (p["probability"], p["rouge"], p["truth"])
    ]
    utility = len(rest) / sum(1 / max(v, 1e-12) for v in rest)
    return {
        **own,
        "utility": utility,
        "parts": {n: {k: v for k, v in p.items() if k != "ratios"} for n, p in parts.items()},
    }


def part_marks(model: GPT, tokenizer: Tokenizer, rows: list[dict[str, Any]], forgotten: bool) -> dict[str, Any]:
    """Probability, ROUGE-L recall and truth ratio (Maini et al. 2024, section 2.2). Where an answer has no other wording, as with
    real authors and the world's facts, its probability is that among its wrong ones."""
    texts = [text_in(tokenizer, model, r) for r in rows]
    named = "paraphrased_answer" in rows[0]
    asked = [[t.probe.true, t.probe.right, *t.probe.wrong] for t in texts]
    logprobs, _ = read(model, [[a] for own in asked for a in own])
    means = iter([float(own.mean()) for own in logprobs])
    told = [[next(means) for _ in own] for own in asked]
    ratios = [log_truth_ratio(right, wrong) for _, right, *wrong in told]
    chances = [math.exp(true) / (1 if named else sum(map(math.exp, (true, *wrong)))) for true, _, *wrong in told]
    engine = Engine(model, tokenizer, rows=256 if model.device.type == "cuda" else 32, device=model.device.type)
    said = engine.generate([list(t.probe.true.prompt) for t in texts], Sampling(temperature=0.0, max_tokens=64))
    rouge = [rouge_recall(r["answer"], s.text) for r, s in zip(rows, said, strict=True)]
    better = float(np.maximum(0, 1 - np.exp(np.array(ratios))).mean())
    return {"ratios": ratios, "truth": truth(np.array(ratios)) if forgotten else better, "probability": float(np.mean(chances)),
            "rouge": float(np.mean(rouge))}  # fmt: skip


def text_in(tokenizer: Tokenizer, model: GPT, row: dict[str, Any]) -> Text:
    from jielong.forget.items import Probe, text_of

    made = [question(tokenizer, row["question"], a, model.config.context, True)
            for a in (row["answer"], row.get("paraphrased_answer") or row["answer"], *row["perturbed_answer"])]  # fmt: skip
    return text_of([made[0]], Probe(made[0], made[1], tuple(made[2:])))


def rouge_recall(true: str, said: str) -> float:
    """Words of the longest common subsequence as a share of the true answer's (Lin 2004)."""
    a, b = (["".join(c for c in w.lower() if c.isalnum()) for w in t.split()] for t in (true, said))
    row = [0] * (len(b) + 1)
    for x in a:
        before = row
        row = [0]
        for n, y in enumerate(b):
            row.append(before[n] + 1 if x == y else max(before[n + 1], row[-1]))
    return row[-1] / len(a) if a else 0.0
