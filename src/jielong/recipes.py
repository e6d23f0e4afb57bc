"""Named settings for a whole life, and the choice of sizes for a budget of minutes."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from jielong.config import (
    CorpusConfig,
    FinetuneConfig,
    ImproveConfig,
    ModelConfig,
    OptimConfig,
    PPOConfig,
    PretrainConfig,
    ThumbsConfig,
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
    thumbs: ThumbsConfig = field(default_factory=ThumbsConfig)
    improve: ImproveConfig = field(default_factory=ImproveConfig)
    why: str = ""
    """What was picked and why, for people."""


def shape(width: int, layers: int) -> ModelConfig:
    """Qwen3's shape at laptop size: heads of 128, feed-forward three times as wide."""
    heads = max(1, width // 128)
    return ModelConfig(
        width=width, layers=layers, heads=heads, kv_heads=heads, head_dim=128, mlp_width=3 * width, context=LENGTH
    )


def spark() -> Recipe:
    """A bilingual ChatGPT in under ten minutes on two cores."""
    return Recipe(
        corpus=CorpusConfig(variants=24, prose_chars=600_000),
        tokenizer=TokenizerConfig(vocab_size=3072),
        pretrain=PretrainConfig(
            model=shape(384, 3), steps=SPARK_STEPS, rows=24, length=LENGTH, lessons=4000, habits=1.0
        ),
        finetune=FinetuneConfig(lessons=1600, habits=1.0, steps=24, rows=16, length=LENGTH, optim=FINETUNE),
    )


def tiny() -> Recipe:
    """A whole life in seconds, for tests: it learns to speak, not to know."""
    model = ModelConfig(width=64, layers=2, heads=2, kv_heads=2, head_dim=32, mlp_width=192, context=256)
    return Recipe(
        corpus=CorpusConfig(variants=3, prose_chars=60_000),
        tokenizer=TokenizerConfig(vocab_size=1024),
        pretrain=PretrainConfig(model=model, steps=30, rows=16, length=128),
        finetune=FinetuneConfig(lessons=500, epochs=1.0, rows=16, length=128, optim=OptimConfig()),
        thumbs=ThumbsConfig(count=80, max_tokens=24),
        improve=ImproveConfig(ppo=PPOConfig(iterations=2, episodes=16, max_tokens=24)),
    )


SPARK_STEPS = 260
LENGTH = 256  # tokens of a row, and the longest conversation that the model is used for
FINETUNE = OptimConfig(muon_lr=0.001, adam_lr=0.0003, scalar_lr=0.0003, cooldown=0.9)
RECIPES: dict[str, Callable[[], Recipe]] = {"spark": spark, "tiny": tiny}


def own_text(plan: Recipe) -> Recipe:
    """The recipe for a corpus that knows nothing of the teacher's world: fine-tuning alone teaches to answer."""
    if not plan.pretrain.lessons:
        return plan
    tune = replace(plan.finetune, lessons=4000, steps=0, epochs=1.0, optim=FinetuneConfig().optim)
    return replace(plan, pretrain=replace(plan.pretrain, lessons=0), finetune=tune)


def recipe(name: str) -> Recipe:
    """Raises UserError for an unknown name."""
    if name not in RECIPES:
        raise UserError(f"There is no recipe {name!r}; known are {', '.join(RECIPES)}.")
    return RECIPES[name]()


def measure_step(plan: Recipe) -> float:
    """Seconds of one pretraining step on this machine, by running some on random tokens.

    In a child process on Linux, so that neither its memory nor its threads stay with the stages that follow.
    """
    if sys.platform == "linux" and "torch" not in sys.modules:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
            return pool.submit(_time_steps, plan, MEASURE_SECONDS).result()
    return _time_steps(plan, MEASURE_SECONDS)


def _time_steps(plan: Recipe, seconds: float) -> float:
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
    return sum(times[1:]) / (len(times) - 1)  # the mean: a budget pays for the slow steps too


@dataclass(frozen=True)
class Size:
    """A model and the data that suit it; picked when the budget lets it read at least `tokens`."""

    width: int
    layers: int
    rows: int
    variants: int
    prose: int
    lessons: int
    tokens: float


SIZES = (
    Size(768, 8, 48, 96, 2_000_000, 20_000, 150e6),
    Size(512, 6, 32, 72, 2_000_000, 15_000, 40e6),
    Size(512, 4, 24, 60, 2_000_000, 12_000, 14e6),
    Size(384, 4, 24, 48, 1_200_000, 10_000, 5e6),
    Size(384, 3, 24, 24, 600_000, 4_000, 1e6),
    Size(256, 3, 12, 16, 400_000, 4_000, 0),
)

# What a raise costs beside training, in seconds on two cores of a Zen 4 server (docs/log.md): measuring, starting and the
# report; rendering, cleaning and tokenising per variant of the facts; the exam, also per million parameters.
START, PER_VARIANT, EXAM, EXAM_PER_MILLION = 20.0, 0.95, 7.0, 1.2
OWN_BYTES_PER_SECOND = 300_000
MEASURE_SECONDS = 6.0
LESSON = 78  # tokens of a conversation, on average
UPKEEP = 1.06  # batches and checkpoints: a training step in a run against one measured alone
# thumbs, reward models, PPO and their examination: seconds; and, in tokens of a pretraining step, what the labels and the
# comparison cost, and each answer of PPO
IMPROVE, LABELS, PER_ANSWER = 15.0, 226_000, 375
SHORT = 8.0  # minutes below which all time goes to reading: a model that answers badly teaches thumbs nothing
OBSERVATIONS = 10  # of the held-out documents while pretraining, each LOOK tokens forward, and a few samples
LOOK, SAMPLES = 22_000, 0.3  # tokens; seconds


def fit_minutes(plan: Recipe, minutes: float, control: bool) -> Recipe:
    """Sizes and steps for a budget: the largest model that the budget can feed, then as many steps as fit.

    Raises UserError when the budget is too short for anything.
    """
    if minutes < 2:
        raise UserError("--minutes must be at least 2: reading, cleaning and examining take a minute.")
    default = plan.corpus.default
    if minutes < SHORT:
        plan = replace(plan, thumbs=replace(plan.thumbs, count=0))
    speed = flops_per_step(plan) / measure_step(plan)  # FLOP/s

    def sized(size: Size) -> Recipe:
        return replace(
            plan,
            corpus=replace(plan.corpus, variants=size.variants, prose_chars=size.prose),
            pretrain=replace(
                plan.pretrain,
                model=shape(size.width, size.layers),
                rows=size.rows,
                lessons=size.lessons if default else 0,
            ),
        )

    for size in SIZES:
        candidate = sized(size)
        steps, _ = _steps_in(candidate, minutes, control, flops_per_step(candidate) / speed)
        if steps * size.rows * plan.pretrain.length >= size.tokens:
            break
    else:
        raise AssertionError("the smallest size asks for no tokens")
    step = measure_step(candidate)
    steps, tune = _steps_in(candidate, minutes, control, step)
    if steps < 20:
        raise UserError(f"{minutes:g} minutes are too short on this machine: one step takes {step:.1f} s. Give more.")
    c = candidate.pretrain
    reason = (
        f"the largest model that can read {size.tokens / 1e6:g} million tokens in that time"
        if size.tokens
        else "the smallest"
    )
    why = (
        f"{minutes:g} minutes: {c.model.layers} layers × {c.model.width} wide, {reason}; a step of {c.rows} × {c.length} tokens takes {step:.2f} s "
        f"here, so {steps} steps of pretraining ({steps * c.rows * c.length / 1e6:.1f} million tokens) and {tune} of "
        "fine-tuning."
    )
    return replace(candidate, pretrain=replace(c, steps=steps), finetune=replace(plan.finetune, steps=tune), why=why)


def _steps_in(plan: Recipe, minutes: float, control: bool, step: float) -> tuple[int, int]:
    """(pretraining steps, fine-tuning steps) that fit when one pretraining step takes `step` seconds."""
    c, tune = plan.pretrain, plan.finetune
    model = replace(c.model, vocab_size=plan.tokenizer.vocab_size)
    per_token = UPKEEP * step / (c.rows * c.length)
    seconds = minutes * 60 - START
    if plan.corpus.default:
        exam = EXAM + EXAM_PER_MILLION * count_parameters(model) / 1e6
        seconds -= PER_VARIANT * plan.corpus.variants + exam * (
            1 + bool(plan.thumbs.count) + control
        )  # sft, ppo, control
        if plan.thumbs.count:
            practice = plan.improve.ppo
            seconds -= IMPROVE + (LABELS + PER_ANSWER * practice.iterations * practice.episodes) * per_token
        if control:  # it reads every lesson one and a half times, of LESSON tokens
            seconds -= 1.5 * LESSON * (c.lessons + tune.lessons) * per_token
    seconds -= sum(_size(p) for p in plan.corpus.text) / OWN_BYTES_PER_SECOND
    seconds -= OBSERVATIONS * (LOOK / 3 * per_token + SAMPLES)  # forward alone is a third of a step
    tune_steps = tune.steps or max(10, int(tune.lessons * LESSON / (tune.rows * tune.length)))
    seconds -= tune_steps * tune.rows * tune.length * per_token
    return max(0, int(seconds / (UPKEEP * step))), tune_steps


def _size(path: Path) -> int:
    """Bytes of a file or of all files in a folder; 0 where there is none, which the corpus stage reports."""
    if path.is_dir():
        return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    return path.stat().st_size if path.is_file() else 0


def count_parameters(c: ModelConfig) -> int:
    """Weights of the matrices, embeddings included; gains are left out."""
    block = c.width * c.head_dim * 2 * (c.heads + c.kv_heads) + 3 * c.width * c.mlp_width
    return c.layers * block + c.vocab_size * c.width * (1 if c.tied else 2)


def flops_per_step(plan: Recipe) -> float:
    """Six per weight and token, and those of attention."""
    c = plan.pretrain
    model = replace(c.model, vocab_size=plan.tokenizer.vocab_size)
    attention = 12 * model.layers * model.heads * model.head_dim * c.length
    return (6 * count_parameters(model) + attention) * c.rows * c.length
