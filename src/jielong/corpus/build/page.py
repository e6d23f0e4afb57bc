"""The funnel as one HTML page that needs no network."""

from __future__ import annotations

from typing import Any


def size(count: float) -> str:
    """Bytes in decimal units."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1000
    raise AssertionError


def amount(count: float) -> str:
    """A number of tokens in short."""
    for factor, word in ((1e12, " trillion"), (1e9, " billion"), (1e6, " million")):
        if count >= factor:
            return f"{count / factor:,.1f}{word}"
    return f"{count:,.0f}"


def funnel_page(report: dict[str, Any]) -> str:
    """`funnel_report` as HTML."""
    from jinja2 import Environment, PackageLoader, select_autoescape

    environment = Environment(loader=PackageLoader("jielong.corpus.build", "."), autoescape=select_autoescape())
    environment.filters |= {"size": size, "amount": amount}
    most = max((s["bytes_in"] for s in report["steps"]), default=0) or 1
    return environment.get_template("page.html").render(most=most, **report)
