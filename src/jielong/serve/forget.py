"""Forgetting over HTTP: look, ask, follow, and read the ledger. A process of its own forgets (forgetter.py). When it is done the server
serves the model that never had it."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Annotated, Any

from fastapi import FastAPI, Path
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from jielong.changes.ledger import Entry, Ledger
from jielong.errors import UserError
from jielong.forget.audit import compare, describe
from jielong.run import Run
from jielong.serve.background import Event, stream
from jielong.serve.forgetter import Begun, FindRequest, ForgetRequest, Forgetter, Means
from jielong.serve.improve import Nothing
from jielong.serve.worker import Busy

KINDS = ("forget", "suppress", "owner")  # of the ledger's entries
LOOKING = 8  # searches that may wait; one more is answered 429


def add_forget(
    app: FastAPI, forgetter: Forgetter, switch: Callable[[], Awaitable[str]], forgot: Callable[[Means], None]
) -> None:
    """The routes; `switch()` lets the model answer that the run serves now, `forgot(means)` is called after an exact
    forgetting: what the server itself remembers goes, too, where `means` says so of its text."""
    one = asyncio.Lock()
    waiting: set[object] = set()
    tasks: set[asyncio.Task[None]] = set()

    async def alone_here(work: Callable[[], Any]) -> Any:
        """One at a time, as each reads the whole run."""
        if len(waiting) >= LOOKING:
            raise Busy
        waiting.add(me := object())
        try:
            async with one:
                return await asyncio.to_thread(work)
        finally:
            waiting.discard(me)

    async def after(child: subprocess.Popen[bytes], means: Means | None) -> None:
        """The page may be closed: the server changes to the new model all the same."""
        if await asyncio.to_thread(child.wait) == 0:
            if means is not None:
                forgot(means)
            with suppress(UserError):  # whoever looks for a new model each second will say it
                await switch()

    async def begin(work: Callable[[], Begun]) -> dict[str, str]:
        tasks.add(task := asyncio.create_task(after(*await alone_here(work))))
        task.add_done_callback(tasks.discard)
        return {"state": "running"}

    @app.get("/v1/forget")
    async def progress() -> Event:
        def work() -> Event:
            events = forgetter.events()
            return {"state": forgetter.state(events), "events": events, "unfinished": forgetter.unfinished()}

        return await asyncio.to_thread(work)

    @app.get("/v1/owners")
    async def owners() -> dict[str, Any]:
        return {"owners": await asyncio.to_thread(forgetter.owners)}

    @app.post("/v1/forget/find")
    async def look(body: FindRequest) -> Response:
        found = await alone_here(lambda: forgetter.look(body))
        return JSONResponse(found, headers={"Cache-Control": "no-store"})

    @app.post("/v1/forget", status_code=202)
    async def start(body: ForgetRequest) -> dict[str, str]:
        return await begin(lambda: forgetter.start(body))

    @app.post("/v1/forget/stop")
    async def stop(_: Nothing) -> dict[str, str]:
        forgetter.stop()
        return {"state": forgetter.state(forgetter.events())}

    @app.post("/v1/forget/finish", status_code=202)
    async def finish(_: Nothing) -> dict[str, str]:
        return await begin(forgetter.finish)

    @app.get("/v1/forget/events", responses={200: {"content": {"text/event-stream": {}}}})
    async def follow() -> StreamingResponse:
        return stream(forgetter, switch)

    @app.get("/v1/forgotten")
    async def ledger() -> dict[str, Any]:
        entries = await asyncio.to_thread(Ledger(forgetter.run).entries)
        return {"entries": [summary(e) for e in entries if e["kind"] in KINDS]}

    @app.get("/v1/forgotten/{number}")
    async def certificate(number: Annotated[int, Path(ge=1)]) -> dict[str, Any]:
        entries = await asyncio.to_thread(Ledger(forgetter.run).entries)
        entry = next((e for e in entries if e["number"] == number and e["kind"] in KINDS), None)
        if entry is None:
            raise HTTPException(404, f"The ledger has no forgetting with the number {number}.")
        problems = await asyncio.to_thread(Ledger(forgetter.run).problems)
        return {"entry": entry, "said": describe(entry), "last": entries[-1]["hash"], "problems": problems}

    @app.post("/v1/audit")
    async def audit(_: Nothing) -> dict[str, Any]:
        return await alone_here(lambda: verified(forgetter.run))


def summary(entry: Entry) -> dict[str, Any]:
    """An entry without its hashes of texts: what people read."""
    request = entry["request"]
    records = entry.get("records") or {"texts": entry["texts"]["count"]} if entry["kind"] != "owner" else {"owners": 1}
    told = {name: entry.get(name) for name in ("number", "kind", "time", "method", "word", "tokenizer", "hash")}
    return told | {
        "exact": entry.get("exact", entry["kind"] == "forget"), "who": request.get("who", ""), "why": request.get("why", ""),
        "records": {k: v for k, v in records.items() if isinstance(v, int)}, "limits": entry.get("limits", []),
        "artifacts": {
            name: {k: told[k] for k in ("fate", "from_step", "first_seen", "steps", "seconds", "losses_compared", "losses_equal") if k in told}
            for name, told in entry["artifacts"].items()
        },
        "stale": sorted(entry.get("stale", [])), "removed": entry.get("removed", []), "still_found": entry.get("still_found", []),
    }  # fmt: skip


def verified(run: Run) -> dict[str, Any]:
    """What `jielong audit --verify` finds: does the chain hold, and is the run what its last entries say?"""
    ledger = Ledger(run)
    problems, notes = ledger.problems(), []
    entries = [] if problems else ledger.entries()
    if not problems:
        try:
            notes = compare(run, entries)
        except UserError as problem:
            problems = [str(problem)]
    return {"holds": not problems, "entries": len(entries), "problems": problems, "notes": notes}
