"""The library of prompts over HTTP, for the page and for other programs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from jielong.prompt.stage import described
from jielong.prompt.store import library


def add_prompts(app: FastAPI, folder: Callable[[str | None], Path | None]) -> None:
    """`folder(model)`: the run of a served model, whose own prompts come first."""

    @app.get("/v1/prompts")
    async def prompts(model: str | None = None) -> dict[str, Any]:
        found, problems = await run_in_threadpool(library, folder(model))
        return {"object": "list", "data": [described(p) for p in found], "problems": problems}
