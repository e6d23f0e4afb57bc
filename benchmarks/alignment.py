"""Thumbs → reward model → PPO on a run, over several seeds, judged by the noise-free simulated teacher on held-out prompts.

    python benchmarks/alignment.py --run runs/spark --seeds 5

    … --part methods|far|labels|teaching     methods at equal KL; over-optimisation; thumbs against comparisons; thumbs against
                                             demonstrations

Each seed draws its own prompts, answers, users, wrong presses and everything that is random in training, and runs
`jielong thumbs` and `jielong improve` in a copy of the run. Prints one JSON line per seed and a summary with 95 % intervals.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jielong.align import improve, simulate
from jielong.align.contest import win_rate
from jielong.align.ppo import repetition
from jielong.align.rollout import Rollout
from jielong.align.scoring import Scored, score
from jielong.config import ImproveConfig, ThumbsConfig
from jielong.errors import UserError
from jielong.evaluate.statistics import auc, bootstrap
from jielong.lab import teaching as taught
from jielong.model.gpt import load_model
from jielong.run import Run
from jielong.teacher import judge

KEPT = ("corpus", "tokenizer", "sft", "base")
T95 = {1: math.nan, 2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36}


class Exam(taught.Exam):
    def describe(self, drawn: Rollout) -> dict[str, float]:
        asked = [a for a in self.asked for _ in range(self.samples)]
        wrong = [judge.language(t) != a.lang for a, t in zip(asked, drawn.texts, strict=True)]
        right = [judge.is_right(self.world, a, t) for a, t in zip(asked, drawn.texts, strict=True)]
        return {
            "gold": float(self.gold(drawn).mean()),
            "right": float(np.mean(right)),
            "wrong_language": float(np.mean(wrong)),
            "repetition": float(np.mean([repetition(s.answer) for s in drawn.sequences])),
            "said_twice": float(np.mean([judge.repeats(t) for t in drawn.texts])),
            "length": float(drawn.lengths.double().mean()),
        }


def copy_of(run: Run, folder: Path) -> Run:
    """The run's supervised stages, as hard links."""
    for name in KEPT:
        shutil.copytree(run.path / name, folder / name, copy_function=os.link)
    return Run(folder)


def reward_auc(run: Run, exam: Exam, drawn: Rollout) -> tuple[float, float, float]:
    """AUC of reward-1 against "the noise-free teacher would press 👍"."""
    model = Scored.load(run.need("reward-1").path).eval()
    said = score(model, drawn.sequences, torch.bfloat16).double().numpy()
    up = (exam.gold(drawn) >= judge.GOOD).ravel()
    groups = np.arange(len(said)).reshape(-1, exam.samples).tolist()
    return bootstrap(groups, lambda i: auc(said[i], up[i]))


def one_seed(source: Run, seed: int, thumbs: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=source.path.parent) as folder:
        run = copy_of(source, Path(folder) / "run")
        started = time.perf_counter()
        simulate.run(ThumbsConfig(count=thumbs, seed=run.need("sft").card["seed"], draw=seed), run)
        config = ImproveConfig(run=run.path, seed=seed)
        promotion = improve.run(config, run).card["metrics"]
        seconds = time.perf_counter() - started
        exam = Exam(run, 1000 + seed)
        old = exam.answers(load_model(run.need("sft").path))
        new = exam.answers(load_model(run.need("ppo-1").path))
        card = run.need("ppo-1").card["metrics"]
        return {
            "seed": seed,
            "seconds": round(seconds, 1),
            "win_rate": win_rate(exam.gold(new), exam.gold(old)),
            "auc": reward_auc(run, exam, old),
            "promoted": promotion["promoted"],
            "judged": promotion["win_rate"],
            "before": exam.describe(old) | promotion["before"],
            "after": exam.describe(new) | promotion["after"],
            "picked": card["picked"]["iteration"],
            "kl": card["seen"][-1]["kl"],
            "stages": {a.name: a.card["seconds"] for a in run.artifacts() if a.name not in KEPT},
        }


def interval(values: list[float]) -> str:
    """Mean and 95 % t-interval over seeds."""
    mean = float(np.mean(values))
    if len(values) == 1:
        return f"{mean:.3f} (one seed)"
    half = (
        T95.get(len(values), 2.3) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
        if len(values) > 1
        else math.nan
    )
    return f"{mean:.3f} ({mean - half:.3f} to {mean + half:.3f})"


def summary(rows: list[dict[str, Any]]) -> None:
    print(f"\n{len(rows)} seeds")
    print(f"win rate of PPO over SFT, noise-free teacher: {interval([r['win_rate'][0] for r in rows])}; ", end="")
    print("each seed: " + ", ".join(f"{w[0]:.3f} ({w[1]:.3f}–{w[2]:.3f})" for w in (r["win_rate"] for r in rows)))
    print(f"reward AUC against the noise-free teacher: {interval([r['auc'][0] for r in rows])}")
    for name in ("gold", "right", "said_twice", "wrong_language", "length", "knowledge_en", "knowledge_zh", "bits_per_byte_en", "bits_per_byte_zh"):  # fmt: skip
        before, after = [r["before"].get(name, math.nan) for r in rows], [r["after"].get(name, math.nan) for r in rows]
        change = interval([a - b for a, b in zip(after, before, strict=True)])
        print(f"{name}: {np.mean(before):.3f} → {np.mean(after):.3f}; change {change}")
    collapsed = [
        r["seed"]
        for r in rows
        if r["win_rate"][0] < 0.5
        or r["after"]["said_twice"] > max(0.01, 2 * r["before"]["said_twice"])
        or r["after"]["wrong_language"] > r["before"]["wrong_language"] + 0.02
    ]
    print(f"collapsed: {len(collapsed)} of {len(rows)}; promoted: {sum(r['promoted'] for r in rows)}")
    print(f"seconds for thumbs and improvement: {[r['seconds'] for r in rows]}")


def other(args: argparse.Namespace) -> None:
    import alignment_parts as parts

    work = {
        "methods": parts.methods,
        "far": parts.overoptimised,
        "labels": parts.label_kinds,
        "teaching": parts.teaching,
    }
    found = []
    for seed in range(args.first, args.first + args.seeds):
        with tempfile.TemporaryDirectory(dir=args.run.parent) as folder:
            found.append(work[args.part](Run(args.run), Path(folder) / "run", seed))
            print(json.dumps({"seed": seed, args.part: found[-1]}), flush=True)
    print()
    if args.part == "methods":
        print("win rate over SFT at equal KL (nats per answer), noise-free teacher, mean and 95 % interval over seeds")
        for name in found[0]:
            cells = [interval([parts.at_kl(f[name], kl) for f in found]) for kl in (0.5, 1.0, 1.5, 2.0)]
            last = interval([f[name][-1]["win"] for f in found]), interval([f[name][-1]["kl"] for f in found])
            print(f"{name:10}", *cells, "at the end", *last)
    elif args.part == "far":
        for n, point in enumerate(found[0][:-1]):
            told = {k: interval([f[n][k] for f in found]) for k in ("kl", "proxy", "gold", "win", "judge")}
            print(point["iteration"], told)
        peaks, chosen = [max(p["win"] for p in f[:-1]) for f in found], [f[-1]["win"] for f in found]
        print("teacher's win rate at its peak", interval(peaks), "and where promotion stopped", interval(chosen))
        print("points lost", interval([100 * (a - b) for a, b in zip(peaks, chosen, strict=True)]))
    elif args.part == "labels":
        print({k: interval([f[k] for f in found]) for k in found[0]})
    else:
        for n, row in enumerate(found[0]):
            print(row["seconds"], {k: interval([f[n][k] for f in found]) for k in ("thumbs_win", "demonstrations_win")})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/spark"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=1, help="the first of the seeds")
    parser.add_argument("--thumbs", type=int, default=600)
    parser.add_argument("--part", choices=["loop", "methods", "far", "labels", "teaching"], default="loop")
    args = parser.parse_args()
    if args.part != "loop":
        other(args)
        return
    rows = []
    for seed in range(args.first, args.first + args.seeds):
        try:
            rows.append(one_seed(Run(args.run), seed, args.thumbs))
        except UserError as refused:
            print(json.dumps({"seed": seed, "refused": str(refused)}), flush=True)
            continue
        print(json.dumps(rows[-1]), flush=True)
    summary(rows)


if __name__ == "__main__":
    main()
