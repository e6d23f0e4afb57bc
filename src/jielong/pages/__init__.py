"""HTML pages that need no network: one head and one look (base.html), charts by plotly's bundled JavaScript."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def render(
    package: str,
    template: str,
    charts: Sequence[Mapping[str, Any]] = (),
    filters: Mapping[str, Callable[..., Any]] | None = None,
    **values: Any,
) -> str:
    """A package's template, which may extend base.html, filled in. `charts` are in plotly's JSON form; they are drawn into the
    element `charts`, and without any the page holds no JavaScript."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, select_autoescape

    loaders = [PackageLoader(package, "."), PackageLoader("jielong.pages", ".")]
    environment = Environment(loader=ChoiceLoader(loaders), autoescape=select_autoescape())
    environment.filters |= filters or {}
    script = ""
    if charts:
        from plotly.offline import get_plotlyjs

        script = get_plotlyjs().replace("</script", "<\\/script")
    drawn = json.dumps(list(charts)).replace("</", "<\\/")
    return environment.get_template(template).render(charts=drawn, plotly=script, **values)
