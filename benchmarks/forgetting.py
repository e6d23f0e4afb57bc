"""Forgetting, measured. Parts:

    python benchmarks/forgetting.py --seeds 1 2 3                       # canaries before and after an exact forgetting, and the twin
    python benchmarks/forgetting.py --part spark --seeds 1 2 3 4 5      # spark's bars: cost, approximate methods beside three twins
    python benchmarks/forgetting.py --part tofu --run runs/smollm2 --data DATA/tofu   # TOFU forget10 on an imported model

Canaries: every seed raises a model on invented sentences with 12 canaries (in each of two languages two people told once, two 4 and two 16 times), forgets all
canaries, and trains the twin from the start without them. The last column must equal the one before it: the bits do.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, stdev

import torch
from safetensors.torch import load_file

from jielong import pretrain
from jielong.config import CorpusConfig, ForgetConfig, TokenizerConfig
from jielong.corpus import canaries
from jielong.corpus import stage as corpus
from jielong.corpus.documents import read_documents
from jielong.forget import exam
from jielong.forget.methods import METHODS
from jielong.forget.stage import run as forget
from jielong.run import Run
from jielong.tokens import tokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "forget"))
from small_runs import BASE, people


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.need("base").file("model.safetensors"))


def one(folder: Path, seed: int, steps: int) -> dict[str, dict]:
    """The exam before, after, and of the twin."""
    (folder / "text").mkdir(parents=True)
    for n, text in enumerate(people()):
        (folder / "text" / f"{n}.txt").write_text(text)
    run, twin = Run(folder / "run"), Run(folder / "twin")
    corpus.run(CorpusConfig(text=(folder / "text",), default=False, heldout=0.0, canaries=2, workers=1, seed=seed), run)
    tokenizer.run(TokenizerConfig(vocab_size=512), run)
    for name in ("corpus", "tokenizer"):
        shutil.copytree(run.path / name, twin.path / name)
    shape = dataclasses.replace(BASE.model, width=64, layers=2, mlp_width=192, context=128)
    settings = dataclasses.replace(BASE, model=shape, steps=steps, rows=8, length=96, seed=seed)
    started = time.perf_counter()
    pretrain.run(settings, run)
    trained = time.perf_counter() - started
    before = exam.leaks(run, samples=20, codes=256)
    records = read_documents(run.need("corpus").file("train.parquet"))
    told = {d.id for d in records if d.source == canaries.SOURCE}
    names = tuple(c.name for c in canaries.canaries(2, seed))
    started = time.perf_counter()
    entry = forget(ForgetConfig(run.path, name=names, yes=True, most=0.9), run)
    assert entry is not None and entry["records"]["documents"] == len(told)
    took = time.perf_counter() - started
    after = exam.leaks(run, samples=20, codes=256)
    pretrain.run(settings, twin, drop=frozenset(told))
    ours, theirs = weights(run), weights(twin)
    equal = all(torch.equal(ours[k], theirs[k]) for k in ours)
    print(f"seed {seed}: trained in {trained:.0f} s, forgotten in {took:.0f} s, equal bits: {equal}")
    return {"before": before, "after": after, "twin": exam.leaks(twin, samples=20, codes=256)}


def spread(values: list[float]) -> str:
    return f"{mean(values):.2f} ± {stdev(values) if len(values) > 1 else 0:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", choices=("canaries", "spark", "tofu"), default="canaries")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument(
        "--steps", type=int, default=0, help="training steps; 0 = canaries 150, spark the recipe's, tofu by --epochs"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/forgetting"), help="spark, tofu: where everything is kept"
    )
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    spark = parser.add_argument_group("spark")
    spark.add_argument("--recipe", choices=("spark", "tiny", "small"), default="spark")
    spark.add_argument("--canaries", type=int, default=4, help="of each language and number of repetitions")
    spark.add_argument("--tune", type=int, default=3, help="learning rates tried on decoys")
    spark.add_argument("--samples", type=int, default=20)
    tofu = parser.add_argument_group("tofu")
    tofu.add_argument("--run", type=Path, default=Path("runs/smollm2"))
    tofu.add_argument("--data", type=Path, help="folder with forget10_perturbed.jsonl.gz and the others")
    tofu.add_argument(
        "--first", type=int, default=0, help="so many forgotten questions and four times as many retained; 0 = all"
    )
    tofu.add_argument("--epochs", type=float, default=5.0)
    tofu.add_argument("--lr", type=float, default=1e-3, help="of fine-tuning")
    tofu.add_argument("--rank", type=int, default=16, help="of the adapters; 0 = all weights")
    tofu.add_argument(
        "--rows", type=int, default=8, help="in a step: packed rows of fine-tuning, questions of the methods"
    )
    tofu.add_argument(
        "--method-lr", type=float, nargs="+", default=[0.0], help="one row of the table for each; 0 = the method's own"
    )
    tofu.add_argument("--method-epochs", type=float, default=0.0)
    options = parser.parse_args()
    if options.part == "canaries":
        leakage(options.seeds, options.steps or 150)
    elif options.part == "tofu" and options.data is None:
        parser.error("--part tofu needs --data")
    else:
        from forgetting_parts import spark as spark_part
        from forgetting_parts import tofu as tofu_part

        (spark_part if options.part == "spark" else tofu_part)(options)


def leakage(seeds: list[int], steps: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = [one(Path(folder) / str(seed), seed, steps) for seed in seeds]
    print(f"\n{len(seeds)} seeds, mean ± standard deviation      before · after · twin")
    for times in ("1", "4", "16", "0"):
        what = f"told {times} times" if times != "0" else "never told"
        for field in ("exposure", "extracted_greedily", "share_of_samples"):
            row = [spread([f[when]["secrets"][times][field] for f in found]) for when in ("before", "after", "twin")]
            print(f"{what:14} {field:20} {' · '.join(row)}")
    for score in ("loss", "zlib", "min-k"):
        for field in ("auc", "tpr_10%"):
            row = [spread([f[when]["membership"][score][field] for f in found]) for when in ("before", "after", "twin")]
            print(f"membership by {score:6} {field:8} {' · '.join(row)}")


if __name__ == "__main__":
    main()
