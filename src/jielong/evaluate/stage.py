"""The evaluation stage: exam on unseen and taught entities, beside the control, and bits per byte."""

from __future__ import annotations

from typing import Any

from jielong.config import EvaluateConfig
from jielong.corpus.documents import read_documents
from jielong.evaluate.bpb import bits_per_byte
from jielong.evaluate.qa import examine
from jielong.generate.engine import Engine
from jielong.model.gpt import load_model
from jielong.run import Artifact, Run


def run(config: EvaluateConfig, run: Run) -> Artifact:
    """sft, what is served, and control, where it exists → evaluation."""
    parents = [run.need(name) for name in dict.fromkeys((config.model, run.serving()))]
    if config.control and run.artifact("control"):
        parents.append(run.need("control"))
    held_out = read_documents(run.need("corpus").file("heldout.parquet"))
    with run.build("evaluation", kind="evaluation", config=config, parents=parents, seed=config.seed) as build:
        results: dict[str, Any] = {}
        for artifact in parents:
            engine = Engine.load(artifact.path, config.threads, rows=128)
            results[artifact.name] = {
                "unseen": examine(engine, config.seed, "unseen", config.questions),
                "taught": examine(engine, config.seed, "taught", config.taught),
                "bits_per_byte": bits_per_byte(load_model(artifact.path), engine.tokenizer, held_out[:400]),
            }
        build.metrics = results
    return build.artifact


def table(metrics: dict[str, Any]) -> list[tuple[str, ...]]:
    """Rows (model, half, English, zh-TW) for people."""
    rows = []
    for name, result in metrics.items():
        for half in ("unseen", "taught"):
            cells = []
            for lang in ("en", "zh"):
                cell = result[half][lang]
                low, high = cell["interval"]
                cells.append(f"{cell['accuracy']:.1%} ({low:.0%}–{high:.0%}, n={cell['questions']})")
            rows.append((name, half, *cells))
    return rows
