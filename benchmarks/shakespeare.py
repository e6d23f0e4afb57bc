"""nanoGPT's documented CPU recipe for tinyshakespeare against jielong: same text, same split, characters as tokens.

    python benchmarks/shakespeare.py --nanogpt PATH --text input.txt [--runs 3]

Runs nanoGPT's own, unchanged train.py from a checkout with the arguments of its README (4 layers, 4 heads, 128 wide,
block 64, batch 12, 2,000 iterations, no compile), reads its checkpoint's loss on the whole validation part, and then
trains jielong until it reaches that loss, and for the same wall time. Both losses are taken over every character of the
validation part, in blocks of the model's own length without overlap. Time is that of the training steps alone in both:
start, evaluation and checkpoints do not count.
"""

from __future__ import annotations

import argparse
import gzip
import pickle
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from jielong.config import ModelConfig, OptimConfig
from jielong.model.gpt import GPT, causal_mask
from jielong.model.kernels import cross_entropy
from jielong.train.loop import dtype_of, keep_memory, use_threads
from jielong.train.optim import Optimizer

RECIPE = [
    "--device=cpu",
    "--compile=False",
    "--eval_iters=1",
    "--log_interval=1",
    "--block_size=64",
    "--batch_size=12",
    "--n_layer=4",
    "--n_head=4",
    "--n_embd=128",
    "--max_iters=2000",
    "--lr_decay_iters=2000",
    "--dropout=0.0",
    "--eval_interval=2000",
]


def prepare(text: str, checkout: Path) -> tuple[np.ndarray, np.ndarray]:
    """The character data in nanoGPT's own form, 90 % / 10 %."""
    chars = sorted(set(text))
    stoi = {c: i for i, c in enumerate(chars)}
    ids = np.array([stoi[c] for c in text], dtype=np.uint16)
    cut = int(len(ids) * 0.9)
    folder = checkout / "data" / "shakespeare_char"
    ids[:cut].tofile(folder / "train.bin")
    ids[cut:].tofile(folder / "val.bin")
    meta = {"vocab_size": len(chars), "itos": dict(enumerate(chars)), "stoi": stoi}
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))  # nanoGPT reads this form; jielong never does
    return ids[:cut].astype(np.int64), ids[cut:].astype(np.int64)


def blocks(val: np.ndarray, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    n = (len(val) - 1) // length
    x = torch.from_numpy(val[: n * length].reshape(n, length))
    y = torch.from_numpy(val[1 : n * length + 1].reshape(n, length))
    return x, y


def run_nanogpt(checkout: Path, val: np.ndarray) -> tuple[float, float]:
    """(seconds of the training steps, loss on the whole validation part)."""
    out = checkout / "out-bench"
    command = [
        sys.executable,
        "train.py",
        "config/train_shakespeare_char.py",
        f"--out_dir={out.name}",
        "--always_save_checkpoint=True",
        *RECIPE,
    ]
    log = subprocess.run(command, cwd=checkout, check=True, capture_output=True, text=True).stdout
    times = [float(t) / 1000 for t in re.findall(r"^iter \d+: .*time ([\d.]+)ms", log, re.M)]
    steps = times[1:-1]  # the first and the last one hold an evaluation
    seconds = sum(steps) * 2000 / len(steps)
    code = (
        "import sys, torch, numpy as np; sys.path.insert(0, '.'); from model import GPT, GPTConfig\n"
        f"c = torch.load('{out.name}/ckpt.pt', map_location='cpu', weights_only=False); m = GPT(GPTConfig(**c['model_args'])); m.load_state_dict(c['model']); m.eval()\n"
        "v = np.fromfile('data/shakespeare_char/val.bin', dtype=np.uint16).astype(np.int64); n = (len(v) - 1) // 64\n"
        "x = torch.from_numpy(v[:n * 64].reshape(n, 64)); y = torch.from_numpy(v[1:n * 64 + 1].reshape(n, 64)); t = 0.0\n"
        "with torch.no_grad():\n"
        "    for i in range(0, n, 64): t += float(m(x[i:i + 64], y[i:i + 64])[1]) * len(x[i:i + 64])\n"
        "print(t / n)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=checkout, check=True, capture_output=True, text=True)
    return seconds, float(done.stdout.split()[-1])


@torch.no_grad()
def loss_on(model: GPT, val: np.ndarray, length: int, dtype: torch.dtype) -> float:
    x, y = blocks(val, length)
    total = 0.0
    for i in range(0, len(x), 128):
        hidden = model(x[i : i + 128], causal_mask(length), dtype)
        flat = y[i : i + 128].reshape(-1)
        total += float(
            cross_entropy(hidden.reshape(-1, hidden.shape[-1]), model.head_weight, flat, torch.ones(len(flat)))
        )
    return total / x.numel()


def run_jielong(
    train: np.ndarray, val: np.ndarray, seconds: float, args: argparse.Namespace, seed: int
) -> tuple[float, int]:
    """Train for about `seconds` (steps are chosen from a short measurement); (loss, steps)."""
    dtype = dtype_of("auto")
    config = ModelConfig(
        vocab_size=int(max(train.max(), val.max())) + 1, context=args.length, layers=args.layers, width=args.width,
        heads=args.heads, kv_heads=args.heads, head_dim=args.width // args.heads, mlp="relu2", mlp_width=4 * args.width, tied=False,
    )  # fmt: skip
    model = GPT(config)
    model.init_weights(seed)
    optim = OptimConfig(muon_lr=args.lr, adam_lr=args.adam_lr, weight_decay=args.decay, warmup=0.0, cooldown=0.7)
    optimizer = Optimizer(model, optim, dtype)
    rng = np.random.default_rng(seed)
    mask = causal_mask(args.length)
    weight = torch.full((args.rows * args.length,), 1 / (args.rows * args.length))
    ahead = np.arange(args.length)
    spent, steps = 0.0, 0
    while spent < seconds:
        started = time.perf_counter()
        at = rng.integers(0, len(train) - args.length - 1, args.rows)[:, None] + ahead
        x, y = torch.from_numpy(train[at]), torch.from_numpy(train[at + 1])
        hidden = model(x, mask, dtype)
        cross_entropy(hidden.view(-1, args.width), model.head_weight, y.view(-1), weight).backward()
        optimizer.step(min(1.0, spent / seconds))
        spent += time.perf_counter() - started
        steps += 1
    return loss_on(model, val, args.length, dtype), steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT; without it only jielong runs")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=93.0, help="jielong's wall time when nanoGPT does not run")
    for name, value in (("layers", 4), ("width", 128), ("heads", 2), ("length", 128), ("rows", 16)):
        parser.add_argument(f"--{name}", type=int, default=value)
    for name, value in (("lr", 0.02), ("adam-lr", 0.008), ("decay", 0.1)):
        parser.add_argument(f"--{name}", type=float, default=value)
    args = parser.parse_args()
    raw = args.text.read_bytes()
    text = (gzip.decompress(raw) if args.text.suffix == ".gz" else raw).decode()
    use_threads(0)
    keep_memory()
    checkout = args.nanogpt
    if checkout is None:
        chars = sorted(set(text))
        ids = np.array([chars.index(c) for c in text])
        train, val = ids[: int(len(ids) * 0.9)], ids[int(len(ids) * 0.9) :]
    else:
        train, val = prepare(text, checkout)
    rows = []
    for seed in range(args.runs):
        theirs, their_loss = run_nanogpt(checkout, val) if checkout else (args.seconds, float("nan"))
        fifth, steps_fifth = run_jielong(train, val, theirs / 5, args, seed)
        equal, steps = run_jielong(train, val, theirs, args, seed)
        rows.append((theirs, their_loss, fifth, equal))
        print(
            f"nanoGPT {theirs:.1f} s → {their_loss:.4f};  jielong {theirs / 5:.1f} s → {fifth:.4f} ({steps_fifth} steps), {theirs:.1f} s → {equal:.4f} ({steps} steps)",
            flush=True,
        )
    medians = [statistics.median(r[i] for r in rows) for i in range(4)]
    print("medians: nanoGPT {:.1f} s → {:.4f}; jielong in a fifth {:.4f}, in equal time {:.4f}".format(*medians))


if __name__ == "__main__":
    main()
