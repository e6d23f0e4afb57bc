"""The exam of leakage on a run's planted canaries: what its model gives away of them, beside others that were never planted."""

from __future__ import annotations

from typing import Any

import numpy as np

from jielong.corpus.canaries import REPETITIONS, canaries
from jielong.errors import UserError
from jielong.evaluate.leakage import exposures, extraction, membership
from jielong.generate.engine import Engine
from jielong.model.gpt import load_model
from jielong.run import Run


def leaks(run: Run, model: str = "base", samples: int = 100, codes: int = 1000) -> dict[str, Any]:
    """Exposure and extraction by number of repetitions (0: never planted), and membership inference of the planted documents.

    The canaries are those of the corpus's settings, whether they are still in it or were forgotten. `samples` continuations of each
    are drawn; exposure is the rank among `codes` candidates. Raises UserError when none were planted.
    """
    settings = run.need("corpus").card["config"]
    count, seed = settings.get("canaries", 0), settings["seed"]
    if not count:
        raise UserError(f"No canaries were planted in {run.path}; make its corpus with --canaries 4, for example.")
    artifact = run.need(model)
    engine = Engine.load(artifact.path, rows=64)
    planted, others = canaries(count, seed), canaries(count, seed, planted=False)
    weights, known = load_model(artifact.path), [*planted, *others]
    shown = exposures(weights, engine.tokenizer, known, codes)
    told = extraction(engine, known, samples)
    rows = {}
    for times in (*REPETITIONS, 0):
        at = [n for n, c in enumerate(known) if c.times == times]
        rows[str(times)] = {
            "canaries": len(at),
            "exposure": float(np.mean([shown[n] for n in at])),
            "extracted_greedily": sum(told[n][0] for n in at),
            "extracted_in_samples": sum(told[n][1] > 0 for n in at),
            "share_of_samples": float(np.mean([told[n][1] for n in at])),
        }
    members = [c.documents(seed)[0] for c in planted]
    return {
        "secrets": rows,
        "membership": membership(weights, engine.tokenizer, members, [c.documents(seed)[0] for c in others]),
    }


def table(found: dict[str, Any]) -> list[str]:
    """The exam as lines for people."""
    lines = ["repetitions  canaries  exposure (to 9.97)  extracted greedily  in 100 samples  share of samples"]
    for times, row in found["secrets"].items():
        lines.append(
            f"{times if times != '0' else 'not planted':>11}  {row['canaries']:8}  {row['exposure']:18.2f}  "
            f"{row['extracted_greedily']:18}  {row['extracted_in_samples']:14}  {row['share_of_samples']:16.1%}"
        )
    for name, row in found["membership"].items():
        lines.append(
            f"membership by {name}: AUC {row['auc']:.2f} ({row['low']:.2f}–{row['high']:.2f}), "
            f"true positives at 10 % false ones {row['tpr_10%']:.0%}, at 1 % {row['tpr_1%']:.0%}"
        )
    return lines
