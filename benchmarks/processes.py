"""What sharing a training costs: one process with one thread, one with several, and several with one, in turns.

    python benchmarks/processes.py [--processes 2] [--rounds 3] [--steps 8]

Steps of the spark model on random tokens. Prints, for each way, the median time of a step, and the processor's seconds of
a step over all processes, which other work on the machine changes less.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import torch

from jielong.config import ParallelConfig
from jielong.model.gpt import GPT, document_mask
from jielong.model.kernels import cross_entropy
from jielong.recipes import spark
from jielong.train.distributed import job, make_team
from jielong.train.group import total
from jielong.train.loop import dtype_of, keep_memory, use_threads
from jielong.train.optim import Optimizer
from jielong.train.shard import share

WAYS = ("thread", "alone", "ddp", "fsdp")


def measure(way: str, threads: int, steps: int) -> None:
    """One of the processes; the first prints the times of the steps and the processor's seconds of all."""
    plan = spark()
    c = plan.pretrain
    c.model.vocab_size = plan.tokenizer.vocab_size
    use_threads(threads)
    keep_memory()
    config = ParallelConfig("fsdp" if way == "fsdp" else "auto")
    team, dtype = make_team(config, "cpu", 0), dtype_of(c.precision)
    model = GPT(c.model)
    model.init_weights(0)
    share(model, team, dtype)
    optimizer = Optimizer(model, c.optim, dtype, team.layout)
    rows = len(team.rows(c.rows)[0])
    tokens = torch.randint(0, c.model.vocab_size, (rows, c.length))
    mask = document_mask(torch.ones_like(tokens))
    weight = torch.full((tokens.numel(),), 1 / (c.rows * c.length))
    times, used = [], 0.0
    for step in range(steps + 2):
        started, before = time.perf_counter(), time.process_time()
        hidden = model(tokens, mask, dtype)
        cross_entropy(hidden.view(-1, c.model.width), model.head_weight, tokens.view(-1), weight).backward()
        team.sum_gradients(model)
        optimizer.step(0.5)
        if step >= 2:
            times.append(time.perf_counter() - started)
            used += (time.process_time() - before) / steps
    used = float(total(torch.tensor(used)))
    if team.first:
        print(json.dumps({"times": times, "used": used}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        with job():
            measure(args.way, args.processes if args.way == "alone" else 1, args.steps)
        return
    found: dict[str, list[dict]] = {way: [] for way in WAYS}
    for _ in range(args.rounds):
        for way in WAYS:
            number = args.processes if way in ("ddp", "fsdp") else 1
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={number}"]
            command = [sys.executable] if number == 1 else command
            command += [__file__, "--way", way, "--steps", str(args.steps), "--processes", str(args.processes)]
            environment = {**os.environ, "OMP_NUM_THREADS": str(args.processes if way == "alone" else 1)}
            out = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
            found[way].append(json.loads(out.strip().splitlines()[-1]))
    for way, rounds in found.items():
        step = statistics.median(t for r in rounds for t in r["times"])
        print(f"{way:8} {step:.3f} s per step, {statistics.median(r['used'] for r in rounds):.3f} processor seconds")


if __name__ == "__main__":
    main()
