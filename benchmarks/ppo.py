"""A PPO step of jielong against one of TRL 1.12's PPOTrainer, side by side on one machine: seconds and peak memory.

    python -m venv /some/where/trl && /some/where/trl/bin/pip install 'torch~=2.13.0' 'trl==1.12.0'
    python benchmarks/ppo.py --trl /some/where/trl/bin/python [--rounds 3] [--steps 3]

Both get the same random weights in the shape of spark, exported as a Hugging Face folder, the same prompts of one length,
answers that never end before their last token, as many passes and minibatches, and the same number of threads. Every side
runs in a process of its own, in turns. A step is rollout (drawing the answers), scoring (log-probabilities of actor and
reference, values, rewards, advantages) and learning; the first one of a process is not counted.

TRL's settings are the fastest of those that were tried on two cores: no gradient checkpointing, one micro-batch. "bf16" is
autocast while it learns, with a reference and a reward model in bfloat16; its own option bf16=True does nothing beside
transformers 5 (the trainer's Accelerator no longer hears of it), so that accelerate's environment variable is set.
"bf16 weights" keeps actor and critic in bfloat16, too, which learns less exactly. jielong's bf16 is autocast over
float32 weights.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

SIDES = (("jielong", "fp32"), ("trl", "fp32"), ("jielong", "bf16"), ("trl", "bf16"), ("trl", "bf16 weights"))
PARTS = ("rollout", "scoring", "learning")


def peak() -> float:
    """The most memory that this process had at once, in GB. (getrusage would count its parent's before exec.)"""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1e6


def prepare(folder: Path, spec: dict) -> None:
    """The models for both sides, and the prompts."""
    import torch
    from safetensors.torch import save_file

    from jielong.align.scoring import Scored
    from jielong.model.gpt import GPT, save_model
    from jielong.model.hf import config_to_hf, state_to_hf
    from jielong.recipes import spark

    plan = spark()
    config = plan.pretrain.model
    config.vocab_size = spec["vocabulary"] = plan.tokenizer.vocab_size
    model = GPT(config)
    model.init_weights(0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():  # no zeros
            p.add_(torch.randn(p.shape, generator=generator) * 0.02)
    judge = Scored(model)
    torch.nn.init.normal_(judge.score.weight, std=0.05, generator=generator)
    for name in ("model", "reward", "model-hf", "reward-hf"):
        (folder / name).mkdir()
    save_model(model, folder / "model")
    judge.save(folder / "reward")
    raw = config_to_hf(config) | {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    state = state_to_hf(config, model.state_dict(), torch.float32)
    (folder / "model-hf" / "config.json").write_text(json.dumps(raw))
    save_file(state, folder / "model-hf" / "model.safetensors", metadata={"format": "pt"})
    raw |= {"architectures": ["Qwen3ForSequenceClassification"], "num_labels": 1}
    (folder / "reward-hf" / "config.json").write_text(json.dumps(raw))
    state["score.weight"] = judge.score.weight.detach()
    save_file(state, folder / "reward-hf" / "model.safetensors", metadata={"format": "pt"})
    shape = (spec["episodes"], spec["prompt"])
    tokens = torch.randint(2, config.vocab_size, shape, generator=generator)  # 0 pads, 1 would end
    (folder / "prompts.json").write_text(json.dumps(tokens.tolist()))


def jielong(spec: dict, folder: Path) -> list[dict[str, float]]:
    from jielong.align import ppo as module
    from jielong.align.ppo import PPO, ActorCritic
    from jielong.align.scoring import Scored, merged_copy, score
    from jielong.config import PPOConfig, adam
    from jielong.model.gpt import load_model
    from jielong.train.loop import History, dtype_of, keep_memory, use_threads
    from jielong.train.optim import Optimizer

    class Endless:
        ends = frozenset()

        def token_bytes(self, token: int) -> bytes:
            return b"x"

    keep_memory()
    use_threads(spec["threads"])
    config = PPOConfig(
        episodes=spec["episodes"], epochs=spec["epochs"], minibatches=spec["minibatches"], max_tokens=spec["answer"],
        iterations=spec["steps"] + 1, precision=spec["precision"], missing_end=None, optim=adam(1e-5),
    )  # fmt: skip
    dtype = dtype_of(spec["precision"])
    actor = load_model(folder / "model")
    judge = Scored.load(folder / "reward").requires_grad_(False).eval()
    model = ActorCritic(actor, Scored.load(folder / "reward"))
    prompts = json.loads((folder / "prompts.json").read_text())
    ppo = PPO(model, merged_copy(actor), lambda d: score(judge, d.sequences, dtype), Endless(), prompts, config)  # pyright: ignore
    marks: list[float] = []

    def timed(function):
        def call(*args, **kwargs):
            out = function(*args, **kwargs)
            marks.append(time.perf_counter())
            return out

        return call

    module.rollout, ppo.experience, ppo.learn = map(timed, (module.rollout, ppo.experience, ppo.learn))
    optimizer, history = Optimizer(model, config.optim, dtype), History()
    found = []
    for step in range(config.iterations):
        marks[:] = [time.perf_counter()]
        ppo(optimizer, step, dtype, history)
        found.append(between(marks))
    assert history.seen[-1]["length"] == spec["answer"]
    return found[1:]


def trl(spec: dict, folder: Path) -> list[dict[str, float]]:
    import torch

    torch.set_num_threads(spec["threads"])
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        PreTrainedTokenizerFast,
        TrainerCallback,
    )
    from trl.experimental.ppo import PPOConfig, PPOTrainer
    from trl.experimental.ppo import ppo_trainer as module

    words = {f"w{n}": n for n in range(spec["vocabulary"])}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words)), pad_token="w0", eos_token="w1"
    )
    frozen = torch.float32 if spec["precision"] == "fp32" else torch.bfloat16
    learnt = torch.bfloat16 if spec["precision"] == "bf16 weights" else torch.float32
    attention = spec["attention"]
    if spec["precision"] == "bf16":
        os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"

    def policy(dtype):
        return AutoModelForCausalLM.from_pretrained(folder / "model-hf", dtype=dtype, attn_implementation=attention)

    def scored(dtype):
        return AutoModelForSequenceClassification.from_pretrained(
            folder / "reward-hf", dtype=dtype, attn_implementation=attention, num_labels=1
        )

    episodes = spec["episodes"]
    args = PPOConfig(
        output_dir=str(folder / "trl"), use_cpu=True, bf16=spec["precision"] == "bf16", gradient_checkpointing=False,
        report_to=[], save_strategy="no", disable_tqdm=True, per_device_train_batch_size=episodes // spec["minibatches"],
        gradient_accumulation_steps=spec["minibatches"], num_mini_batches=spec["minibatches"], num_sample_generations=0,
        total_episodes=episodes * (spec["steps"] + 1), num_ppo_epochs=spec["epochs"], response_length=spec["answer"],
        local_rollout_forward_batch_size=episodes, learning_rate=1e-5, logging_steps=1_000_000,
    )  # fmt: skip
    marks, found, lengths = [], [], []

    class Clock(TrainerCallback):
        def on_train_begin(self, *_, **__):
            marks[:] = [time.perf_counter()]

        def on_step_end(self, *_, **__):
            marks.append(time.perf_counter())
            found.append(between(marks))
            marks[:] = [time.perf_counter()]

    def timed(function):
        def call(*args, **kwargs):
            out = function(*args, **kwargs)
            marks.append(time.perf_counter())
            return out

        return call

    generation = module.batch_generation

    def batch_generation(*args):
        out = generation(*args)
        lengths.append(out[0].shape[1] - spec["prompt"])
        return out

    module.batch_generation, module.masked_whiten = timed(batch_generation), timed(module.masked_whiten)
    prompts = Dataset.from_list([{"input_ids": p} for p in json.loads((folder / "prompts.json").read_text())])
    trainer = PPOTrainer(
        args, tokenizer, policy(learnt), policy(frozen), scored(frozen), prompts, scored(learnt), callbacks=[Clock()]
    )
    trainer.train()
    assert set(lengths) == {spec["answer"]}
    return found[1:]


def between(marks: list[float]) -> dict[str, float]:
    """Four moments → seconds of the three parts and of the step."""
    parts = dict(zip(PARTS, (b - a for a, b in pairwise(marks)), strict=True))
    return {**parts, "step": marks[-1] - marks[0]}


def measure(python: str, spec: dict) -> dict[str, float]:
    """The medians of one process."""
    env = {**os.environ, "TRL_EXPERIMENTAL_SILENCE": "1", "OMP_NUM_THREADS": str(spec["threads"])}
    done = subprocess.run([python, __file__, "--child", json.dumps(spec)], capture_output=True, text=True, env=env)
    if done.returncode:
        sys.exit(f"{spec} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", help="the python of an environment with trl 1.12")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="measured steps of a process, after one that is not")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=24, help="tokens")
    parser.add_argument("--answer", type=int, default=32, help="tokens")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--minibatches", type=int, default=1)
    parser.add_argument("--attention", choices=("sdpa", "eager"), default="sdpa", help="of TRL's models")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        spec = json.loads(args.child)
        steps = {"jielong": jielong, "trl": trl}[spec["side"]](spec, Path(spec["folder"]))
        medians = {name: statistics.median(s[name] for s in steps) for name in steps[0]}
        print(json.dumps({**medians, "peak_gb": peak()}))
        return
    if not args.trl:
        parser.error("--trl is missing")
    names = ("steps", "threads", "episodes", "prompt", "answer", "epochs", "minibatches", "attention")
    spec = {name: getattr(args, name) for name in names}
    found: dict[tuple[str, str], list[dict[str, float]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), spec)
        for n in range(args.rounds):
            for side, precision in SIDES:
                print(f"round {n + 1}: {side} {precision}", file=sys.stderr)
                python = args.trl if side == "trl" else sys.executable
                one = measure(python, {**spec, "side": side, "precision": precision, "folder": folder})
                found[side, precision].append(one)
    print(
        f"{args.episodes} episodes, {args.prompt} + {args.answer} tokens, {args.epochs} passes; medians of {args.rounds}"
    )
    print(f"{'':21}{'s/step':>8}" + "".join(f"{name:>10}" for name in PARTS) + f"{'peak GB':>10}{'TRL : jielong':>15}")
    for (side, precision), runs in found.items():
        ours = found["jielong", precision.split()[0]]
        ratio = statistics.median(r["step"] / o["step"] for r, o in zip(runs, ours, strict=True))
        medians = [statistics.median(r[name] for r in runs) for name in ("step", *PARTS, "peak_gb")]
        times = f"{medians[0]:8.2f}" + "".join(f"{m:10.2f}" for m in medians[1:])
        print(f"{side:8}{precision:13}{times}" + (f"{ratio:15.2f}" if side == "trl" else ""))


if __name__ == "__main__":
    main()
