"""Named settings for a whole life, and the choice of sizes for a budget of minutes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from jielong.config import (
    CorpusConfig,
    FinetuneConfig,
    ModelConfig,
    OptimConfig,
    PretrainConfig,
    TokenizerConfig,
)
from jielong.errors import UserError


@dataclass
class Recipe:
    """The settings of every stage."""

    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    why: str = ""
    """What was picked and why, for people."""


def shape(width: int, layers: int) -> ModelConfig:
    """Qwen3's shape at laptop size: heads of 128, feed-forward three times as wide."""
    heads = max(1, width // 128)
    return ModelConfig(width=width, layers=layers, heads=heads, kv_heads=heads, head_dim=128, mlp_width=3 * width)


def spark() -> Recipe:
    """A bilingual ChatGPT in under ten minutes on two cores."""
    return Recipe(
        corpus=CorpusConfig(variants=24, prose_chars=600_000),
        tokenizer=TokenizerConfig(vocab_size=3072),
        pretrain=PretrainConfig(model=shape(384, 3), steps=SPARK_STEPS, rows=48, length=128, lessons=4000),
        finetune=FinetuneConfig(lessons=4000, epochs=1.0, rows=32, length=128, optim=FINETUNE),
    )


def tiny() -> Recipe:
    """A whole life in seconds, for tests: it learns to speak, not to know."""
    model = ModelConfig(width=64, layers=2, heads=2, kv_heads=2, head_dim=32, mlp_width=192, context=256)
    return Recipe(
        corpus=CorpusConfig(variants=3, prose_chars=60_000),
        tokenizer=TokenizerConfig(vocab_size=1024),
        pretrain=PretrainConfig(model=model, steps=30, rows=16, length=128),
        finetune=FinetuneConfig(lessons=500, epochs=1.0, rows=16, length=128, optim=OptimConfig()),
    )


SPARK_STEPS = 300
FINETUNE = OptimConfig(muon_lr=0.002, adam_lr=0.0005, scalar_lr=0.0005, cooldown=0.9)
RECIPES: dict[str, Callable[[], Recipe]] = {"spark": spark, "tiny": tiny}


def recipe(name: str) -> Recipe:
    """Raises UserError for an unknown name."""
    if name not in RECIPES:
        raise UserError(f"There is no recipe {name!r}; known are {', '.join(RECIPES)}.")
    return RECIPES[name]()


def measure_step(plan: Recipe, seconds: float = 4.0) -> float:
    """Seconds of one pretraining step on this machine, by running some on random tokens."""
    import statistics

    import torch

    from jielong.model.gpt import GPT, document_mask
    from jielong.model.kernels import cross_entropy
    from jielong.train.loop import dtype_of, keep_memory, use_threads
    from jielong.train.optim import Optimizer

    c = plan.pretrain
    use_threads(c.threads)
    keep_memory()
    dtype = dtype_of(c.precision)
    model = GPT(replace(c.model, vocab_size=plan.tokenizer.vocab_size))
    model.init_weights(0)
    optimizer = Optimizer(model, c.optim, dtype)
    tokens = torch.randint(0, plan.tokenizer.vocab_size, (c.rows, c.length), generator=torch.Generator().manual_seed(0))
    segments = (torch.arange(c.length) // 48).expand(c.rows, c.length).contiguous()
    weight = torch.full((c.rows * c.length,), 1 / (c.rows * c.length))
    times = []
    until = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < until:
        started = time.perf_counter()
        hidden = model(tokens, document_mask(segments), dtype)
        cross_entropy(hidden.view(-1, c.model.width), model.head_weight, tokens.view(-1), weight).backward()
        optimizer.step(0.5)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


# Measured on the spark recipe: what a raise costs beside the pretraining steps, in seconds on two cores, and the share of
# the budget that fine-tuning takes. The corpus and the exam depend on text, not on the model.
FIXED_SECONDS = 75.0
PRETRAIN_SHARE = 0.80


def fit_minutes(plan: Recipe, minutes: float, control: bool) -> Recipe:
    """Sizes and steps for a budget: measures a step, grows the model where the budget is long.

    Raises UserError when the budget is too short for anything.
    """
    if minutes < 2:
        raise UserError("--minutes must be at least 2: reading, cleaning and examining take more than a minute.")
    if minutes >= 25:
        plan = replace(
            plan,
            pretrain=replace(plan.pretrain, model=shape(512, 4)),
            corpus=replace(plan.corpus, variants=60, prose_chars=2_000_000),
        )
    elif minutes < 6:
        plan = replace(plan, pretrain=replace(plan.pretrain, model=shape(256, 3)))
    step = measure_step(plan)
    room = minutes * 60 - FIXED_SECONDS * (1.0 if minutes < 25 else 1.8)
    share = PRETRAIN_SHARE - (0.08 if control else 0.0)
    steps = max(10, int(room * share / step))
    tune_steps = max(5, int(room * (1 - share) * (0.5 if control else 0.9) / (step * 1.35)))
    c = plan.pretrain
    why = (
        f"{minutes:g} minutes: one step of {c.rows * c.length:,} tokens takes {step:.2f} s here, so "
        f"{c.model.layers} layers × {c.model.width} wide, {steps} pretraining and {tune_steps} fine-tuning steps."
    )
    return replace(
        plan,
        pretrain=replace(c, steps=steps),
        finetune=replace(plan.finetune, steps=tune_steps, lessons=max(1000, tune_steps * 60)),
        why=why,
    )
