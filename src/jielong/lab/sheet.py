"""How an experiment ends: its artifact with all figures, a page, and a verdict by the rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jielong.evaluate.statistics import Interval
from jielong.lab.branch import folder, say
from jielong.lab.claims import RULE, WORDS, Claim, Condition, told
from jielong.pages import render
from jielong.run import Artifact, Run

COLOURS = ("#b4232a", "#1f6feb", "#2da44e", "#bf8700", "#8250df", "#57606a", "#0a7ea4")


@dataclass(frozen=True)
class Table:
    """Cells as they are to be read; the first column names the rows."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Sheet:
    """What a page says beside claim and verdict."""

    about: str
    """What was done, in a few sentences."""
    findings: Sequence[str]
    tables: Sequence[Table]
    charts: Sequence[Mapping[str, Any]] = ()


def finish(
    name: str,
    config: Any,
    run: Run,
    claim: Claim,
    conditions: Sequence[Condition],
    sheet: Sheet,
    metrics: Mapping[str, Any],
    parents: Sequence[Artifact],
) -> Artifact:
    """The artifact `lab-NAME`: its card holds every figure, page.html tells them."""
    found = told(claim, conditions)
    with run.build(
        f"lab-{folder(name, config.quick)}", kind="lab", config=config, parents=list(parents), seed=config.seed
    ) as build:
        build.threads = config.threads
        build.metrics = {
            **found,
            "quick": config.quick,
            "about": sheet.about,
            "findings": list(sheet.findings),
            **metrics,
        }
        text = render(
            "jielong.lab", "experiment.html", sheet.charts, name=run.path.name, sheet=sheet, rule=RULE["en"],
            word=WORDS[found["verdict"]]["en"], quick=config.quick, seeds=config.seeds, **found,
        )  # fmt: skip
        (build.path / "page.html").write_text(text, encoding="utf-8")
    say(f"{claim.text['en']} — {WORDS[found['verdict']]['en']}.")
    for c in conditions:
        say(f"  {'yes' if c.met else 'no':3} {c.en}: {c.figure}")
    for finding in sheet.findings:
        say(finding)
    return build.artifact


def bars(
    title: str, axis: str, labels: Sequence[str], series: Mapping[str, Sequence[Interval]], percent: bool = True
) -> dict[str, Any]:
    """Groups of bars with their intervals, in plotly's JSON form: a group per label, a bar per series."""
    scale = 100 if percent else 1
    data = [
        {
            "type": "bar", "name": name, "x": list(labels), "y": [scale * v[0] for v in values], "marker": {"color": colour},
            "error_y": {
                "type": "data", "symmetric": False, "array": [scale * (v[2] - v[0]) for v in values],
                "arrayminus": [scale * (v[0] - v[1]) for v in values],
            },
        }
        for colour, (name, values) in zip(COLOURS, series.items(), strict=False)
    ]  # fmt: skip
    layout = {
        "title": {"text": title}, "barmode": "group", "yaxis": {"title": {"text": axis}, "rangemode": "tozero"},
        "margin": {"l": 60, "r": 20, "t": 48, "b": 60}, "height": 440, "legend": {"orientation": "h", "y": -0.2},
        "paper_bgcolor": "rgba(0,0,0,0)",
    }  # fmt: skip
    return {"data": data, "layout": layout}
