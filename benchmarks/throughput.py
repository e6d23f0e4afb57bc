"""Training throughput of the spark model against the same Qwen3 shape in transformers with plain AdamW, both bf16.

python benchmarks/throughput.py [--runs 3] [--steps 6]
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
import torch.nn.functional as F

from jielong.model.gpt import GPT, document_mask
from jielong.model.kernels import cross_entropy
from jielong.recipes import spark
from jielong.train.loop import keep_memory, use_threads
from jielong.train.optim import Optimizer


def peak() -> float:
    """FLOP/s of a bf16 matrix product of 4,096³."""
    a, b = torch.randn(4096, 4096).bfloat16(), torch.randn(4096, 4096).bfloat16()
    times = []
    for _ in range(5):
        started = time.perf_counter()
        F.linear(a, b)
        times.append(time.perf_counter() - started)
    return 2 * 4096**3 / statistics.median(times)


def main() -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    args = parser.parse_args()
    use_threads(0)
    plan = spark()
    c, V, B, T = plan.pretrain.model, plan.tokenizer.vocab_size, plan.pretrain.rows, plan.pretrain.length
    c.vocab_size = V
    tokens = torch.randint(0, V, (B, T))
    segments = (torch.arange(T) // 48).expand(B, T).contiguous()
    weight = torch.full((B * T,), 1 / (B * T))

    theirs = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=V, hidden_size=c.width, intermediate_size=c.mlp_width, num_hidden_layers=c.layers, head_dim=c.head_dim,
            num_attention_heads=c.heads, num_key_value_heads=c.kv_heads, tie_word_embeddings=True, max_position_embeddings=c.context,
        )
    )  # fmt: skip
    adam = torch.optim.AdamW(theirs.parameters(), lr=1e-3)

    def their_step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = theirs(input_ids=tokens, labels=tokens).loss
        loss.backward()
        adam.step()
        adam.zero_grad()

    mine = GPT(c)
    mine.init_weights(0)
    optimizer = Optimizer(mine, plan.pretrain.optim, torch.bfloat16)

    def my_step() -> None:
        hidden = mine(tokens, document_mask(segments), torch.bfloat16)
        cross_entropy(hidden.view(-1, c.width), mine.head_weight, tokens.view(-1), weight).backward()
        optimizer.step(0.5)

    def speed(step) -> float:
        times = []
        for _ in range(args.steps):
            started = time.perf_counter()
            step()
            times.append(time.perf_counter() - started)
        return B * T / statistics.median(times[1:])

    ratios, shares = [], []
    for _ in range(args.runs):
        b = speed(their_step)
        keep_memory()  # ours alone asks for it; from the second round on theirs has it too
        a = speed(my_step)
        top = peak()
        ratios.append(a / b)
        shares.append(mine.flops_per_token(T) * a / top)
        print(
            f"jielong {a:,.0f} tok/s, transformers {b:,.0f} tok/s, ratio {a / b:.2f}; {shares[-1]:.0%} of {top / 1e9:.0f} GFLOP/s",
            flush=True,
        )
    print(f"medians: ratio {statistics.median(ratios):.2f}, share of peak {statistics.median(shares):.0%}")


if __name__ == "__main__":
    main()
