"""What a small model leaks of canaries before and after an exact forgetting, and a twin that never saw them; the cost of late records.

    python benchmarks/forgetting.py --seeds 3

Every seed raises a model on invented sentences with 12 canaries (in each of two languages two people told once, two 4 and two 16 times), forgets all
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
from jielong.forget.stage import run as forget
from jielong.run import Run
from jielong.tokens import tokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "forget"))
from conftest import BASE, people


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
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = [one(Path(folder) / str(seed), seed, options.steps) for seed in range(1, options.seeds + 1)]
    print(f"\n{options.seeds} seeds, mean ± standard deviation      before · after · twin")
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
