"""The ladder as one HTML page that needs no network."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from jielong.pages import render
from jielong.scale.fit import Fit


def page(name: str, metrics: dict[str, Any], found: Fit) -> str:
    """The stage's metrics and the law of all its rungs as HTML; charts by plotly's bundled JavaScript."""
    charts = [by_size(metrics, found), by_tokens(metrics, found), *map(by_budget, metrics["advice"])]
    return render("jielong.scale", "page.html", charts, {"ln": math.log}, name=name, **metrics)


def by_size(metrics: dict[str, Any], found: Fit) -> dict[str, Any]:
    """Losses over parameters: a curve of the law per number of tokens, the trainings on it."""
    how, rungs = metrics["counted"], metrics["rungs"]
    data = []
    sizes = np.geomspace(min(r[how] for r in rungs) / 1.5, max(r[how] for r in rungs) * 2, 60)
    for colour, count in enumerate(sorted({r["tokens"] for r in rungs})):
        own = [r for r in rungs if r["tokens"] == count]
        label = f"{count / 1e6:.2f} million tokens"
        data.append(line(sizes, [found.law.loss(n, count) for n in sizes], label, colour))
        data.append(dots([r[how] for r in own], [r["loss"] for r in own], label, colour))
    held = metrics.get("held_back")
    if held:
        value, low, high = held["predicted"]
        mark = dots([held["rung"][how]], [value], "predicted before training", 9)
        mark["error_y"] = {"type": "data", "symmetric": False, "array": [high - value], "arrayminus": [value - low]}
        mark["marker"] |= {"symbol": "x", "size": 10}
        data.append(mark)
    weights = "parameters" if how == "total" else "parameters without the embedding"
    return chart("More parameters", weights, "nats per held-out token", data)


def by_tokens(metrics: dict[str, Any], found: Fit) -> dict[str, Any]:
    """Losses over tokens: a curve of the law per size."""
    how, rungs = metrics["counted"], metrics["rungs"]
    data = []
    counts = np.geomspace(min(r["tokens"] for r in rungs) / 1.5, max(r["tokens"] for r in rungs) * 2, 60)
    for colour, size in enumerate(sorted({r[how] for r in rungs})):
        own = [r for r in rungs if r[how] == size]
        label = f"{own[0]['layers']} × {own[0]['width']}"
        data.append(line(counts, [found.law.loss(size, d) for d in counts], label, colour))
        data.append(dots([r["tokens"] for r in own], [r["loss"] for r in own], label, colour))
    return chart("More tokens", "tokens", "nats per held-out token", data)


def by_budget(advice: dict[str, Any]) -> dict[str, Any]:
    """What every size would reach with the whole budget."""
    best = advice["loss"][0]
    shown = [point for point in advice["curve"] if point[2] < 1.5 * best]
    data = [line([p[0] for p in shown], [p[2] for p in shown], "expected loss", 0)]
    data.append(dots([advice["size"]["total"]], [best], "advised", 1))
    budget = f"{advice['budget'] / 60:g} minutes" if advice["unit"] == "seconds" else f"{advice['budget']:.2g} FLOPs"
    more = " with this corpus" if advice["most"] else ""
    return chart(f"What {budget} buy{more}", "parameters", "nats per held-out token", data)


COLOURS = ("#b4232a", "#1f6feb", "#2da44e", "#bf8700", "#8250df", "#57606a", "#0a7ea4", "#cf5c00", "#d63384", "#1f2328")


def line(x: Any, y: Any, name: str, colour: int) -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "lines", "name": name, "x": [float(v) for v in x], "y": [float(v) for v in y],
        "line": {"color": COLOURS[colour % len(COLOURS)], "width": 1.5}, "legendgroup": name,
    }  # fmt: skip


def dots(x: Any, y: Any, name: str, colour: int) -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "markers", "name": name, "x": [float(v) for v in x], "y": [float(v) for v in y],
        "marker": {"color": COLOURS[colour % len(COLOURS)], "size": 7}, "legendgroup": name,
        "showlegend": name in ("advised", "predicted before training"),
    }  # fmt: skip


def chart(title: str, x: str, y: str, data: list[dict[str, Any]]) -> dict[str, Any]:
    """In plotly's JSON form, both axes logarithmic."""
    layout = {
        "title": {"text": title}, "xaxis": {"title": {"text": x}, "type": "log"},
        "yaxis": {"title": {"text": y}, "type": "log"}, "margin": {"l": 60, "r": 20, "t": 48, "b": 48}, "height": 420,
        "paper_bgcolor": "rgba(0,0,0,0)",
    }  # fmt: skip
    return {"data": data, "layout": layout}
