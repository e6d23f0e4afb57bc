"""`jielong scale fit`: a ladder of small trainings, the law that fits them, and what it advises.

Every rung is an artifact of the run, trained by the pretraining stage; those that are there are not trained again. A larger
model is predicted from the rungs before it is trained, so that the law is examined on what it has not seen.
"""

from __future__ import annotations

import itertools
import math
import shutil
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from jielong.config import PretrainConfig, ScaleFitConfig
from jielong.corpus.documents import Document, read_documents
from jielong.errors import UserError
from jielong.run import Artifact, Run, plain
from jielong.scale.advice import Advice, advise, family, shape, size_of, speed
from jielong.scale.fit import Fit, fit, left_out
from jielong.tokens.tokenizer import Tokenizer
from jielong.train.loop import use_threads

EPOCHS = 4  # up to so many passes a token read again is worth almost a new one (Muennighoff et al. 2023)
LEAST_SIZES, LEAST_COUNTS = 6, 2  # five coefficients, and a size to leave out
LEAST_STEPS = 10
FEW_COUNTS = (
    "Two numbers of tokens cannot tell E from B / D^β: trust no advice that is far from them; give three --tokens."
)


@dataclass(frozen=True)
class Rung:
    """A trained size, and its loss on the held-out documents."""

    name: str
    width: int
    layers: int
    blocks: int
    """Weights without the embedding, which is also the output matrix."""
    total: int
    tokens: int
    """Positions that were learnt from."""
    filled: float
    """Their share of all positions; the rest is padding."""
    epochs: float
    flops: float
    """Of one token, forward and backward."""
    seconds: float
    """Of one token."""
    loss: float
    """Nats per held-out token."""
    bits_per_byte: float


def training(config: ScaleFitConfig, width: int, tokens: float) -> PretrainConfig:
    """The settings of one rung."""
    rate = (128 / width) ** config.rate_power
    optim = replace(config.optim, adam_lr=config.optim.adam_lr * rate, scalar_lr=config.optim.scalar_lr * rate)
    return PretrainConfig(
        model=shape(width, 2 * config.length), optim=optim, steps=round(tokens / (config.rows * config.length)),
        rows=config.rows, length=config.length, precision=config.precision, threads=config.threads,
        checkpoint_seconds=config.checkpoint_seconds, sample_every=1.0, seed=config.seed,
    )  # fmt: skip


def run(config: ScaleFitConfig, run: Run) -> Artifact:
    """The stage: rungs → law → prediction of the held-back model → advice, in the artifact `scale`."""
    from rich.console import Console

    from jielong.pretrain import encode_documents
    from jielong.scale.page import page

    def say(text: str) -> None:
        Console(highlight=False).print(text)

    corpus, tokens = run.need("corpus"), run.need("tokenizer")
    tokenizer = Tokenizer.load(tokens.file("tokenizer.json"))
    documents = read_documents(corpus.file("heldout.parquet"))
    encoded = encode_documents(tokenizer, read_documents(corpus.file("train.parquet")))
    corpus_tokens = sum(len(ids) - 1 for ids in encoded)
    check(config, corpus_tokens, len(documents), tokenizer.vocab_size)
    config = replace(config, threads=use_threads(config.threads))
    parents = [corpus, tokens]

    def climb(width: int, count: float) -> Rung:
        artifact = train_rung(run, training(config, width, count), [corpus, tokens])
        parents.append(artifact)
        rung = measure(artifact, tokenizer, documents, corpus_tokens)
        say(
            f"{rung.name}: {rung.total / 1e6:.2f} million parameters, {rung.tokens / 1e6:.2f} million tokens, "
            f"{rung.loss:.3f} nats per token, {rung.bits_per_byte:.3f} bits per byte"
        )
        return rung

    rungs = [climb(width, count) for width, count in trainings(config, tokenizer.vocab_size)]
    counted = {how: left_out(*points(rungs, how)) for how in ("total", "blocks")}
    how = min(counted, key=lambda name: counted[name])
    found = fit(*points(rungs, how), rounds=config.rounds, seed=config.seed)
    metrics: dict[str, Any] = {
        "counted": how,
        "left_out": counted,
        "corpus_tokens": corpus_tokens,
        "bits_per_nat": rungs[0].bits_per_byte / rungs[0].loss,
        "law": described(found),
    }
    if config.held_back:
        count = held_back_tokens(config)
        expected = predict(config, found, how, rungs, count, tokenizer.vocab_size)
        low, high = expected[1:]
        say(f"Predicted for width {config.held_back}: {expected[0]:.3f} nats per token ({low:.3f} to {high:.3f}).")
        larger = climb(config.held_back, count)
        error = expected[0] / larger.loss - 1
        say(f"The prediction is off by {error:+.1%}.")
        metrics["held_back"] = {"rung": asdict(larger), "predicted": expected, "error": error}
        rungs.append(larger)
        found = fit(*points(rungs, how), rounds=config.rounds, seed=config.seed)
        metrics["law_of_all"] = described(found)
    advice = advised(config, found, how, rungs, tokenizer.vocab_size, corpus_tokens)
    for one in advice:
        say(told(one, corpus_tokens))
    metrics["warning"] = ""
    if len({count for _, count in trainings(config, tokenizer.vocab_size)}) < 3:
        metrics["warning"] = FEW_COUNTS
        say(FEW_COUNTS)
    metrics |= {"rungs": [asdict(r) for r in rungs], "advice": [asdict(a) for a in advice]}
    with run.build("scale", kind="scale", config=config, parents=parents, seed=config.seed) as build:
        build.threads = config.threads
        build.metrics = metrics
        (build.path / "scale.html").write_text(page(run.path.name, metrics, found), encoding="utf-8")
    return build.artifact


def points(rungs: list[Rung], how: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(sizes, tokens, losses), sizes counted as `how` says."""
    return (
        np.array([getattr(r, how) for r in rungs], float),
        np.array([r.tokens for r in rungs], float),
        np.array([r.loss for r in rungs]),
    )


def described(found: Fit) -> dict[str, Any]:
    """Coefficients as (value, low, high), and how well they fit."""
    names = ("E", "A", "B", "alpha", "beta")
    coefficients = {name: found.interval(lambda law, name=name: getattr(law, name)) for name in names}
    typical = float(np.abs(found.residuals).mean())
    return {**coefficients, "objective": found.objective, "mean_error": typical, "points": len(found.residuals)}


def predict(
    config: ScaleFitConfig, found: Fit, how: str, rungs: list[Rung], count: float, vocabulary: int
) -> tuple[float, float, float]:
    """(loss, low, high) of the held-back model; as many of its positions will be filled as of the others'."""
    settings = training(config, config.held_back, count)
    size = size_of(replace(settings.model, vocab_size=vocabulary), config.length)
    filled = float(np.mean([r.filled for r in rungs]))
    tokens = settings.steps * config.rows * config.length * filled
    return found.predict(getattr(size, how), tokens, config.seed)


def advised(
    config: ScaleFitConfig, found: Fit, how: str, rungs: list[Rung], vocabulary: int, corpus_tokens: int
) -> list[Advice]:
    """For the budget in minutes, and for the one in FLOPs where there is one; where that takes more text than there is, also
    the best that this corpus allows."""
    filled = float(np.mean([r.filled for r in rungs]))  # padding takes its time, too
    sizes, measured = family(vocabulary, config.length), speed([r.flops for r in rungs], [r.seconds for r in rungs])
    budgets = [
        (60 * config.minutes, "seconds", lambda size: measured.seconds(size.flops) / filled),
        (config.flops, "FLOPs", lambda size: size.flops / filled),
    ]
    given = []
    for budget, unit, cost in budgets:
        if budget:
            given.append(advise(found, how, sizes, cost, budget, unit))
            if given[-1].tokens[0] > EPOCHS * corpus_tokens:
                given.append(advise(found, how, sizes, cost, budget, unit, EPOCHS * corpus_tokens))
    return given


def told(advice: Advice, corpus_tokens: int) -> str:
    """For people."""
    budget = f"{advice.budget / 60:g} minutes" if advice.unit == "seconds" else f"{advice.budget:.2g} FLOPs"
    if advice.most:
        budget += f", this corpus at most {EPOCHS} times"
    (n, *of_n), (d, *of_d), (loss, *_) = advice.parameters, advice.tokens, advice.loss
    text = (
        f"{budget}: {advice.size.layers} layers × {advice.size.width} wide, {n / 1e6:.2f} million parameters "
        f"({of_n[0] / 1e6:.2f} to {of_n[1] / 1e6:.2f}), {d / 1e6:.2f} million tokens ({of_d[0] / 1e6:.2f} to "
        f"{of_d[1] / 1e6:.2f}); {loss:.3f} nats per token expected."
    )
    if not advice.most and d > EPOCHS * corpus_tokens:
        text += f" That is {d / corpus_tokens:.0f} times the corpus: more text is needed, as more than {EPOCHS} passes teach less."
    return text


def trainings(config: ScaleFitConfig, vocabulary: int) -> list[tuple[int, float]]:
    """(width, tokens) of the ladder, cheap ones first."""
    found = []
    for width, count in itertools.product(set(config.widths), set(config.tokens)):
        size = size_of(replace(shape(width, 2 * config.length), vocab_size=vocabulary), config.length)
        if not config.most or 6 * size.total * count <= config.most:
            found.append((size.total * count, width, count))
    return [(width, count) for _, width, count in sorted(found)]


def check(config: ScaleFitConfig, corpus_tokens: int, held_out: int, vocabulary: int) -> None:
    """Raises UserError for a ladder that cannot be climbed, before anything is trained."""
    climbed = trainings(config, vocabulary)
    widths, counts = (sorted({pair[n] for pair in climbed}) for n in (0, 1))
    if len(widths) < LEAST_SIZES or len(counts) < LEAST_COUNTS:
        raise UserError(
            f"A law needs at least {LEAST_SIZES} widths and {LEAST_COUNTS} numbers of tokens; "
            f"there are {len(widths)} and {len(counts)}."
        )
    if config.held_back:
        shape(config.held_back, 2 * config.length)
    if config.held_back and config.held_back <= widths[-1]:
        raise UserError(f"The held-back model ({config.held_back}) must be wider than all others ({widths[-1]}).")
    if min(config.rows, config.length) < 1:
        raise UserError("rows and length must be at least 1.")
    least, most = min(*counts, held_back_tokens(config)), max(*counts, held_back_tokens(config))
    if least < LEAST_STEPS * config.rows * config.length:
        raise UserError(
            f"{least:,.0f} tokens are fewer than {LEAST_STEPS} steps of {config.rows} × {config.length}; "
            "give more tokens or fewer --rows."
        )
    if most > EPOCHS * corpus_tokens:
        raise UserError(
            f"The corpus has {corpus_tokens:,} tokens, too few for {most:,.0f}: a ladder reads it at most {EPOCHS} times. "
            "Give fewer --tokens or make a larger corpus."
        )
    if not held_out:
        raise UserError("The corpus has no held-out documents to measure losses on; make it with a larger --heldout.")


def held_back_tokens(config: ScaleFitConfig) -> float:
    counts = sorted(set(config.tokens))
    return config.held_back_tokens or counts[len(counts) // 2]


def train_rung(run: Run, settings: PretrainConfig, parents: list[Artifact]) -> Artifact:
    """The rung's artifact, trained unless it is there. Raises UserError when it was trained otherwise."""
    from jielong import pretrain

    model = settings.model
    name = f"rung-{model.width}x{model.layers}-{settings.steps * settings.rows * settings.length}-{settings.seed}"
    found = kept(run, name, parents, settings)
    if found is None:
        found = pretrain.run(settings, run, name=name, history=False)
        shutil.rmtree(run.work(name), ignore_errors=True)  # nothing is replayed from a rung
    return found


def kept(
    run: Run, name: str, parents: list[Artifact], settings: Any, computed: tuple[str, ...] = ()
) -> Artifact | None:
    """The artifact, if it is there. Raises UserError when it was made of other parents or with other settings; what the
    stage has `computed` itself is not compared."""
    found = run.artifact(name)
    if found is None:
        return None
    found.verify()
    if found.card["parents"] != {p.name: p.hash for p in parents}:
        others = " or ".join(p.name for p in parents)
        raise UserError(f"{found.path} was made of another {others}; delete it to make it anew.")
    wanted, before = plain(settings), found.card["config"]
    if isinstance(wanted.get("model"), dict):  # the vocabulary is the tokenizer's
        wanted["model"]["vocab_size"] = before["model"]["vocab_size"]
    free = ("threads", "checkpoint_seconds", *computed)
    other = [k for k, v in wanted.items() if k not in free and v != before.get(k)]
    if other:
        raise UserError(f"{found.path} was made with other settings ({', '.join(other)}); delete it to make it anew.")
    return found


def measure(artifact: Artifact, tokenizer: Tokenizer, documents: list[Document], corpus_tokens: int) -> Rung:
    """Read the held-out documents with a trained rung."""
    from jielong.evaluate.bpb import read
    from jielong.model.gpt import load_model
    from jielong.tokens.shards import DataIndex

    model, metrics = load_model(artifact.path), artifact.card["metrics"]
    readings = read(model, tokenizer, documents)
    nats, config = sum(r.nats for r in readings), artifact.card["config"]
    learnt = int(DataIndex.load(artifact.file("data_index.npz")).size.sum())
    return Rung(
        name=artifact.name,
        width=model.config.width,
        layers=model.config.layers,
        blocks=model.parameter_count() - model.embedding.weight.numel(),
        total=model.parameter_count(),
        tokens=learnt,
        filled=learnt / metrics["tokens"],
        epochs=round(learnt / corpus_tokens, 3),
        flops=model.flops_per_token(config["length"]),
        seconds=1 / metrics["tokens_per_second"],
        loss=nats / sum(r.tokens for r in readings),
        bits_per_byte=nats / math.log(2) / sum(r.bytes for r in readings),
    )
