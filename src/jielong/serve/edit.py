"""Correcting a fact over HTTP. One change at a time; the server serves the edited model from then on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal

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
    method: Literal["auto", "neurons", "ridge", "r-rome", "memit", "alphaedit", "ft-m", "in-context"] = "auto"
    ridge: Annotated[float, Field(ge=0, le=1e9)] = 0.0
    translate: bool = True
    new_subject: bool = False


class UndoRequest(Form):
    id: Annotated[str, Field(min_length=1, max_length=64)]


def add_edit(app: FastAPI, run: Run, switch: Callable[[], Awaitable[str]], threads: int = 0) -> None:
    """The routes; what the guard refuses is answered 400 with the reason, and nothing has changed. `switch()` lets the model
    answer that the run serves now. Edits use as many threads as the server does."""

    @app.get("/v1/changes")
    async def look() -> dict[str, Any]:
        def work() -> dict[str, Any]:
            card = run.need(run.serving()).card
            in_use = card["metrics"]["edits"] if card["kind"] == "edited" else []
            return {"changes": Ledger(run).entries(), "in_use": in_use}

        return await asyncio.to_thread(work)

    @app.post("/v1/edit")
    async def edit(body: EditRequest) -> dict[str, Any]:
        config = EditConfig(run=run.path, threads=threads, **body.model_dump())

        def work() -> dict[str, Any]:
            from jielong.edit.stage import run as edit

            with run.lock():
                metrics = edit(config, run).card["metrics"]
            return {
                "id": metrics["edits"][-1],
                "fact": metrics["facts"][-1],
                "before": metrics["before"],
                "after": metrics["after"],
            }

        found = await asyncio.to_thread(work)
        return found | {"model": await switch()}

    @app.post("/v1/undo")
    async def undo(body: UndoRequest) -> dict[str, str]:
        def work() -> None:
            from jielong.edit.stage import undo

            with run.lock():
                undo(UndoConfig(run=run.path, id=body.id, threads=threads), run)

        await asyncio.to_thread(work)
        return {"model": await switch()}
