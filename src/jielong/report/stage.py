"""The report of a run: one self-contained HTML file, charts by plotly's bundled JavaScript."""

from __future__ import annotations

import json
from typing import Any

from jielong.config import ReportConfig
from jielong.run import Artifact, Run, plain

TITLES = {
    "corpus": "Corpus",
    "tokenizer": "Tokenizer",
    "base": "Pretraining",
    "sft": "Fine-tuning",
    "control": "Control (no pretraining)",
    "thumbs": "Thumbs of the simulated teacher",
    "reward": "Reward model",
    "judge": "Judge of held-out prompts",
    "ppo": "PPO",
    "rloo": "RLOO",
    "grpo": "GRPO",
    "dpo": "DPO",
    "kto": "KTO",
    "promotion": "Comparison with the served model",
    "evaluation": "Examination",
}


def title(name: str) -> str:
    """What people call an artifact: ppo-2 is the second round's PPO. Empty for one that the report leaves out."""
    stem, _, number = name.partition("-")
    words = TITLES.get(stem, "")
    return f"{words}, round {number}" if words and number else words


def place(name: str) -> tuple[int, int, int]:
    """Where it stands in the report: the rounds of improvement one after the other."""
    stem, _, number = name.partition("-")
    at = list(TITLES).index(stem)
    return (1, int(number), at) if number.isdigit() else (2 if stem == "evaluation" else 0, 0, at)


def figure(title: str, x_title: str, y_title: str, curves: dict[str, list[tuple[float, float]]]) -> dict[str, Any]:
    """A line chart in plotly's JSON form."""
    data = [
        {"type": "scatter", "mode": "lines", "name": name, "x": [p[0] for p in points], "y": [p[1] for p in points]}
        for name, points in curves.items()
    ]
    layout = {
        "title": {"text": title}, "xaxis": {"title": {"text": x_title}}, "yaxis": {"title": {"text": y_title}},
        "margin": {"l": 60, "r": 20, "t": 48, "b": 48}, "height": 340, "paper_bgcolor": "rgba(0,0,0,0)",
    }  # fmt: skip
    return {"data": data, "layout": layout}


def figures(artifacts: dict[str, Artifact]) -> list[dict[str, Any]]:
    """Loss curves, and bits per byte along pretraining."""
    found = []
    losses = {title(n): artifacts[n].card["metrics"]["loss"] for n in ("base", "sft", "control") if n in artifacts}
    for name, points in losses.items():
        found.append(figure(f"{name}: loss", "step", "nats per token", {name: points}))
    if "base" in artifacts:
        seen = artifacts["base"].card["metrics"]["seen"]
        languages = sorted({lang for s in seen for lang in s["bits_per_byte"]})
        curves = {
            lang: [(s["step"], s["bits_per_byte"][lang]) for s in seen if lang in s["bits_per_byte"]]
            for lang in languages
        }
        found.append(figure("Held-out text", "step", "bits per byte", curves))
    for name, artifact in artifacts.items():
        seen = artifact.card["metrics"].get("seen") or []
        if artifact.card["kind"] == "ppo" and seen:
            for key, unit in PPO_CURVES.items():
                curve = {key: [(s["step"], s[key]) for s in seen if key in s]}
                found.append(figure(f"{title(name)}: {key}", "iteration", unit, curve))
            picked = artifact.card["metrics"]["picked"].get("curve") or []
            if picked:
                curve = {"held-out prompts": [(p["iteration"], p["win_rate"][0]) for p in picked]}
                found.append(figure(f"{title(name)}: win rate", "iteration", "share of wins, judged", curve))
    return found


PPO_CURVES = {
    "score": "reward",
    "kl": "nats per answer",
    "length": "tokens",
    "repetition": "share of runs said before",
    "entropy": "nats per token",
}


def run(config: ReportConfig, run: Run) -> Artifact:
    """Every finished artifact of the run → report/report.html."""
    from jinja2 import Environment, PackageLoader, select_autoescape
    from plotly.offline import get_plotlyjs

    from jielong.evaluate.stage import table

    parents = [a for a in run.artifacts() if title(a.name)]
    if not parents:
        run.need("corpus")
    artifacts = {a.name: a for a in sorted(parents, key=lambda a: place(a.name))}
    template = Environment(loader=PackageLoader("jielong", "report"), autoescape=select_autoescape()).get_template(
        "report.html"
    )
    charts = json.dumps(figures(artifacts)).replace("</", "<\\/")
    with run.build("report", kind="report", config=config, parents=parents) as build:
        evaluation = artifacts.get("evaluation")
        page = template.render(
            name=run.path.name,
            titles={n: title(n) for n in artifacts},
            promotions=[a.card["metrics"] for a in artifacts.values() if a.card["kind"] == "promotion"],
            artifacts=artifacts,
            hashes={n: a.hash[:12] for n, a in artifacts.items()},
            exam=table(evaluation.card["metrics"]) if evaluation else [],
            examples=evaluation.card["metrics"]["sft"]["unseen"]["examples"]
            if evaluation and "sft" in evaluation.card["metrics"]
            else [],
            configs={
                n: json.dumps(plain(a.card["config"]), ensure_ascii=False, indent=1) for n, a in artifacts.items()
            },
            charts=charts,
            plotly=get_plotlyjs().replace("</script", "<\\/script"),
        )
        (build.path / "report.html").write_text(page, encoding="utf-8")
    if config.open:
        import webbrowser

        webbrowser.open((build.artifact.path / "report.html").resolve().as_uri())
    return build.artifact
