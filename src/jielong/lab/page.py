"""An experiment's page: what was found, the figures, the controls. It needs no network."""

from __future__ import annotations

from typing import Any

from jielong.config import SizeLadderConfig
from jielong.lab.claims import WORDS
from jielong.lab.published import CURVES
from jielong.pages import render

GREY, RED, BLUE = "#a0a4ab", "#b4232a", "#1f6feb"
TITLES = {"closed": "Closed-book questions", "reading": "Questions about a passage"}


def page(name: str, metrics: dict[str, Any], config: SizeLadderConfig) -> str:
    """The size ladder's metrics as HTML; charts by plotly's bundled JavaScript."""
    charts = [figure(kind, metrics) for kind in TITLES]
    word = WORDS[metrics["verdict"]]["en"]
    return render(
        "jielong.lab", "page.html", charts, name=name, config=config, titles=TITLES, curves=CURVES, word=word, **metrics
    )


def figure(kind: str, metrics: dict[str, Any]) -> dict[str, Any]:
    """Accuracy over parameters: ours with intervals and every seed, the control dotted, published ones in grey."""
    sizes = [s["parameters"] for s in metrics["sizes"]]
    data = [
        {
            "type": "scatter", "mode": "lines+markers", "name": f"{c.title} ({c.source})", "x": c.parameters(),
            "y": list(c.points.values()), "line": {"color": GREY, "width": 1}, "marker": {"color": GREY, "size": 5},
        }
        for c in CURVES if c.kind == kind
    ]  # fmt: skip
    ours = metrics["trends"][kind]["accuracy"]
    data.append(
        {
            "type": "scatter", "mode": "lines+markers", "name": "ours, 95 %", "x": sizes, "y": [a[0] for a in ours],
            "error_y": {
                "type": "data", "symmetric": False, "array": [a[2] - a[0] for a in ours],
                "arrayminus": [a[0] - a[1] for a in ours],
            },
            "line": {"color": RED}, "marker": {"color": RED, "size": 8},
        }
    )  # fmt: skip
    seeds = [(x, y) for x, own in zip(sizes, metrics["seeds"][kind], strict=True) for y in own]
    data.append(
        {
            "type": "scatter", "mode": "markers", "name": "each seed", "x": [p[0] for p in seeds],
            "y": [p[1] for p in seeds], "marker": {"color": RED, "size": 4, "opacity": 0.5},
        }
    )  # fmt: skip
    if kind == "closed":
        title, control = "control: the commonest value", [metrics["majority"]] * len(sizes)
    else:
        title, control = "control: passage withheld", [a[0] for a in metrics["trends"]["withheld"]["accuracy"]]
    data.append(
        {"type": "scatter", "mode": "lines", "name": title, "x": sizes, "y": control, "line": {"color": BLUE, "dash": "dot"}}
    )  # fmt: skip
    layout = {
        "title": {"text": TITLES[kind]}, "xaxis": {"title": {"text": "parameters"}, "type": "log"},
        "yaxis": {"title": {"text": "share of right answers"}, "range": [-0.02, 1.02]},
        "margin": {"l": 60, "r": 20, "t": 48, "b": 48}, "height": 520, "legend": {"orientation": "h", "y": -0.15},
        "paper_bgcolor": "rgba(0,0,0,0)",
    }  # fmt: skip
    return {"data": data, "layout": layout}
