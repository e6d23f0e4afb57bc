"""The found prompt against the plain one, on examples that the search never saw: five small tasks, one model.

    python benchmarks/prompt_search.py --data DATA --run runs/smollm2 [--seeds 1 2 3] [--task antonym …] [--work FOLDER]

DATA holds the folders `relations` (lre_data.tar.gz of the LRE relations, MIT) and `xquad` (CC BY-SA 4.0). The tasks, their plain
instructions and the settings of the search were fixed before anything was measured (continent and language then halved for
want of time, before either had a result):

    antonym     a word → its opposite, freely               relations, 100
    kind        a thing → animal, flower, …  (labels)       relations, 76
    continent   a landmark → its continent   (labels)       relations, 120 at random
    language    a question → its language    (labels)       XQuAD in five languages, 120 at random
    reading     a paragraph and a question → words of it    XQuAD in English, 160 at random, F1

Labels are chosen by probability, calibrated for the plain and the found prompt alike; the plain prompt without calibration
stands beside them. A seed draws another split, other candidates and other demonstrations. Prints one JSON line per task and
seed, and at the end the mean difference of each task with its interval over seeds (Student's). With --work an interrupted
measurement continues. --small halves what takes part, for a look on a busy machine.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import tarfile
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jielong.config import PromptSearchConfig
from jielong.evaluate.statistics import student
from jielong.generate.engine import Engine
from jielong.prompt import search
from jielong.prompt.form import Prompt
from jielong.prompt.journal import Journal
from jielong.prompt.matrix import difference, mean_interval
from jielong.prompt.task import read_task
from jielong.run import Run, write_atomic

INSTRUCTIONS = {
    "antonym": "What is the opposite of this word? Answer with one word.",
    "kind": "What kind of thing is this?",
    "continent": "On which continent is this landmark?",
    "language": "In which language is this question written?",
    "reading": "Answer the question with a few words from the text.",
}
LANGUAGES = {"en": "English", "es": "Spanish", "de": "German", "vi": "Vietnamese", "ar": "Arabic"}


def relation(data: Path, name: str) -> list[tuple[str, str]]:
    with tarfile.open(data / "relations" / "lre_data.tar.gz") as tar:
        member = next(m for m in tar.getmembers() if m.name.endswith(f"/{name}.json"))
        file = tar.extractfile(member)
        assert file
        return [(s["subject"], s["object"]) for s in json.load(file)["samples"]]


def questions(data: Path, lang: str) -> list[tuple[str, str, list[str]]]:
    """(paragraph, question, answers)"""
    with gzip.open(data / "xquad" / f"xquad.{lang}.json.gz") as file:
        paragraphs = [p for article in json.load(file)["data"] for p in article["paragraphs"]]
    return [(p["context"], q["question"], [a["text"] for a in q["answers"]]) for p in paragraphs for q in p["qas"]]


def rows(data: Path, task: str) -> list[dict[str, Any]]:
    rng = random.Random(task)
    if task == "antonym":
        return [{"input": a, "output": b} for a, b in relation(data, "adj_antonym")]
    if task in ("kind", "continent"):
        pairs = relation(data, {"kind": "object_superclass", "continent": "landmark_on_continent"}[task])
        labels = sorted({b for _, b in pairs})
        pairs = rng.sample(pairs, min(120, len(pairs)))
        return [{"input": a, "output": b, "labels": labels} for a, b in pairs]
    if task == "language":
        found = [(q, name) for lang, name in LANGUAGES.items() for _, q, _ in questions(data, lang)]
        return [{"input": q, "output": n, "labels": sorted(LANGUAGES.values())} for q, n in rng.sample(found, 120)]
    picked = rng.sample(questions(data, "en"), 160)
    return [{"input": f"{text}\n\nQuestion: {q}", "output": answers} for text, q, answers in picked]


def measure(task: str, data: Path, run: Run, folder: Path, seed: int, small: bool) -> dict[str, Any]:
    file = folder / f"{task}.jsonl"
    file.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows(data, task)), encoding="utf-8")
    metric = "f1" if task == "reading" else "exact"
    # a demonstration of reading is a whole paragraph
    most = 60 if small else 0
    config = PromptSearchConfig(
        file, most=most or 400, force=True, instruction=INSTRUCTIONS[task], metric=metric, seed=seed, threads=1, shots=2 if task == "reading" else 6,
        candidates=(12 if task == "reading" else 24) // (2 if small else 1), first=6 if task == "reading" else 8,
    )  # fmt: skip
    began, cpu = time.perf_counter(), time.process_time()
    artifact = search.run(config, run)
    result = {"task": task, "seed": seed, **artifact.card["metrics"]}
    result |= {"wall_seconds": round(time.perf_counter() - began), "cpu_seconds": round(time.process_time() - cpu)}
    found = read_task(file)
    if found.labels:  # what calibration alone does
        held_out = search.split(found, config).held_out
        engine = Engine.load(run.need(run.serving()).path, 1, precision="auto", prefix_bytes=512 << 20)
        plain = Prompt(task, config.instruction, labels=found.labels, calibrated=True)
        scorer = search.Scorer(engine, config, Journal(folder / f"{task}.journal", seed))
        raw = scorer.scores(replace(plain, calibrated=False), held_out)[None]
        calibrated = scorer.scores(plain, held_out)[None]
        result["plain_uncalibrated"] = [round(x, 4) for x in mean_interval(raw)]
        result["calibration_alone"] = [round(x, 4) for x in difference(calibrated, raw)]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--task", nargs="*", default=list(INSTRUCTIONS), choices=list(INSTRUCTIONS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--work", type=Path)
    args = parser.parse_args()
    source = Run(args.run).need(Run(args.run).serving())
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.work or Path(scratch)
        run = Run(folder / "run")
        run.path.mkdir(parents=True, exist_ok=True)
        if not (run.path / "base").exists():
            (run.path / "base").symlink_to(source.path.resolve())
        results = []
        for task in args.task:
            for seed in args.seeds:
                done = folder / f"{task}-{seed}{'-small' if args.small else ''}.json"
                if not done.exists():
                    found = measure(task, args.data, run, folder, seed, args.small)
                    write_atomic(done, json.dumps(found, ensure_ascii=False))
                results.append(json.loads(done.read_text(encoding="utf-8")))
                print(json.dumps(results[-1], ensure_ascii=False), flush=True)
    for task in args.task:
        own = [r["difference"] for r in results if r["task"] == task]
        change, low, high = (100 * v for v in student(np.array([d[0] for d in own])))
        above = sum(d[1] > 0 for d in own)
        print(f"{task:10} mean difference {change:+.1f} points ({low:+.1f} to {high:+.1f}) over {len(own)} seeds; paired interval above 0 in {above} of {len(own)}")  # fmt: skip


if __name__ == "__main__":
    main()
