"""Correcting a fact over HTTP. One change at a time; the server serves the edited model from then on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import FastAPI
from pydantic import Field

from jielong.changes.ledger import Ledger
from jielong.config import EditConfig, UndoConfig
from jielong.run import Run
from jielong.serve.schemas import Form

Line = Annotated[str, Field(max_length=2000)]


class EditRequest(Form):
    prompt: Line
    subject: Line
    to: Line
    old: Line = ""


class UndoRequest(Form):
    id: Annotated[str, Field(min_length=1, max_length=64)]


def add_edit(app: FastAPI, run: Run, switch: Callable[[], Awaitable[str]]) -> None:
    """The routes; what the guard refuses is answered 400 with the reason, and nothing has changed. `switch()` lets the model
    answer that the run serves now."""

    @app.get("/v1/changes")
    async def look() -> dict[str, Any]:
        return {"changes": await asyncio.to_thread(Ledger(run).entries)}

    @app.post("/v1/edit")
    async def edit(body: EditRequest) -> dict[str, Any]:
        config = EditConfig(run=run.path, prompt=body.prompt, subject=body.subject, to=body.to, old=body.old)

        def work() -> dict[str, Any]:
            from jielong.edit.stage import run as edit

            with run.lock():
                metrics = edit(config, run).card["metrics"]
            return {"id": metrics["edits"][-1], "before": metrics["before"], "after": metrics["after"]}

        found = await asyncio.to_thread(work)
        return found | {"model": await switch()}

    @app.post("/v1/undo")
    async def undo(body: UndoRequest) -> dict[str, str]:
        def work() -> None:
            from jielong.edit.stage import undo

            with run.lock():
                undo(UndoConfig(run=run.path, id=body.id), run)

        await asyncio.to_thread(work)
        return {"model": await switch()}
