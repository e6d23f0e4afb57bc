"""Training throughput of the spark model against the same Qwen3 shape in transformers with plain AdamW, both bf16.

    python benchmarks/throughput.py [--runs 3] [--steps 8]

Each side runs in a process of its own, in turns, since jielong changes how the process keeps memory. "autocast" is the
peer with float32 weights, as jielong has them; "bf16" the peer with weights, gradients and optimizer state in bfloat16,
which trains less exactly.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from jielong.model.gpt import GPT, document_mask
from jielong.model.kernels import cross_entropy
from jielong.recipes import spark
from jielong.train.loop import keep_memory, use_threads
from jielong.train.optim import Optimizer

SIDES = ("jielong", "autocast", "bf16")


def peak() -> float:
    """FLOP/s of a bf16 matrix product of 4,096³."""
    a, b = torch.randn(4096, 4096).bfloat16(), torch.randn(4096, 4096).bfloat16()
    times = []
    for _ in range(5):
        started = time.perf_counter()
        F.linear(a, b)
        times.append(time.perf_counter() - started)
    return 2 * 4096**3 / statistics.median(times)


def peer_step(bf16: bool) -> Callable[[], None]:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    plan = spark()
    c, V, B, T = plan.pretrain.model, plan.tokenizer.vocab_size, plan.pretrain.rows, plan.pretrain.length
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=V, hidden_size=c.width, intermediate_size=c.mlp_width, num_hidden_layers=c.layers, head_dim=c.head_dim,
            num_attention_heads=c.heads, num_key_value_heads=c.kv_heads, tie_word_embeddings=True, max_position_embeddings=c.context,
        )
    )  # fmt: skip
    if bf16:
        model = model.to(torch.bfloat16)
    adam = torch.optim.AdamW(model.parameters(), lr=1e-3)
    tokens = torch.randint(0, V, (B, T))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=not bf16):
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        adam.step()
        adam.zero_grad()

    return step


def my_step() -> Callable[[], None]:
    """jielong's step with what the peer's leaves out: Muon and the masks of packed documents."""
    keep_memory()
    plan = spark()
    c, V, B, T = plan.pretrain.model, plan.tokenizer.vocab_size, plan.pretrain.rows, plan.pretrain.length
    c.vocab_size = V
    model = GPT(c)
    model.init_weights(0)
    optimizer = Optimizer(model, plan.pretrain.optim, torch.bfloat16)
    tokens = torch.randint(0, V, (B, T))
    segments = (torch.arange(T) // 48).expand(B, T).contiguous()
    weight = torch.full((B * T,), 1 / (B * T))

    def step() -> None:
        hidden = model(tokens, document_mask(segments), torch.bfloat16)
        cross_entropy(hidden.view(-1, c.width), model.head_weight, tokens.view(-1), weight).backward()
        optimizer.step(0.5)

    return step


def measure(side: str, steps: int) -> None:
    """Print tokens/s and the peak of matrix products measured right after."""
    use_threads(0)
    step = my_step() if side == "jielong" else peer_step(side == "bf16")
    times = []
    for _ in range(steps):
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    c = spark().pretrain
    print(c.rows * c.length / statistics.median(times[2:]), peak())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--side", choices=SIDES, help="measure one side in this process")
    args = parser.parse_args()
    if args.side:
        return measure(args.side, args.steps)
    c = spark()
    c.pretrain.model.vocab_size = c.tokenizer.vocab_size
    per_token = GPT(c.pretrain.model).flops_per_token(c.pretrain.length)
    ratios: dict[str, list[float]] = {"autocast": [], "bf16": []}
    shares = []
    for _ in range(args.runs):
        speed = {}
        for side in SIDES:
            command = [sys.executable, __file__, "--side", side, "--steps", str(args.steps)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            speed[side], top = map(float, done.stdout.split()[-2:])
            if side == "jielong":
                shares.append(per_token * speed[side] / top)
        for side, found in ratios.items():
            found.append(speed["jielong"] / speed[side])
        print(
            ", ".join(f"{s} {v:,.0f} tok/s" for s, v in speed.items()) + f"; {shares[-1]:.0%} of the peak", flush=True
        )
    medians = ", ".join(f"{s} {statistics.median(r):.2f}×" for s, r in ratios.items())
    print(f"medians: jielong against {medians}; share of the peak {statistics.median(shares):.0%}")


if __name__ == "__main__":
    main()
