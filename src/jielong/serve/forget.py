"""Forgetting over HTTP: look, ask, follow, and read the ledger. A process of its own forgets; the words of the request go to it over its
standard input, and to no file, argument or log. When it is done the server serves the model that never had them."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import nullcontext, suppress
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Path
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import Field
from starlette.exceptions import HTTPException

from jielong.changes.ledger import Entry, Ledger
from jielong.config import ForgetConfig, SuppressConfig
from jielong.errors import Unclear, UserError
from jielong.forget import commit, preview
from jielong.forget.audit import compare, describe
from jielong.forget.background import STOPPED, asked, unspoken
from jielong.forget.find import Found, find, writes
from jielong.forget.request import Request, read_request
from jielong.forget.stage import METHOD, check, deleted
from jielong.forget.telling import JOURNAL
from jielong.forget.tree import Step, fates
from jielong.forget.twins import lineage
from jielong.run import Run
from jielong.serve.background import Background, Event, stream
from jielong.serve.edit import alone
from jielong.serve.improve import Nothing
from jielong.serve.schemas import Form
from jielong.serve.worker import Busy

COMMAND = "import sys; from jielong.forget.background import main; sys.exit(main())"
KINDS = ("forget", "suppress", "owner")  # of the ledger's entries
LOOKING = 8  # searches that may wait; one more is answered 429
Texts = Annotated[list[Annotated[str, Field(max_length=2000)]], Field(max_length=100)]
Line = Annotated[str, Field(max_length=500)]
Begun = tuple[subprocess.Popen[bytes], Request | None]
"""The child, and what it was asked to forget, which stays in memory until its end; None where it is not known or only suppressed."""


class FindRequest(Form):
    """Ids of records, names (as words, whatever their case) and texts (exactly)."""

    record: Texts = Field(default_factory=list)
    name: Texts = Field(default_factory=list)
    grep: Texts = Field(default_factory=list)
    rows: Annotated[int, Field(ge=0, le=1000)] = 100
    """Records to show, at most; all are counted."""


class ForgetRequest(FindRequest):
    plan: Annotated[str, Field(min_length=1, max_length=64)]
    """What the look before answered: what was shown is done, and nothing else."""
    method: Literal["replay", "graddiff", "npo", "simnpo", "altpo", "rmu", "task-vector"] = METHOD
    tune: Annotated[int, Field(ge=0, le=10)] = 0
    twins: Annotated[int, Field(ge=0, le=3)] = 0
    lora_rank: Annotated[int, Field(ge=0, le=1024)] = 0
    who: Line = ""
    why: Line = ""


class Forgetter(Background):
    """Forgetting as a child process. `store`: where feedback is kept, if not in the run's folder."""

    def __init__(self, run: Run, store: str = ""):
        super().__init__(run, JOURNAL)
        self.store = store
        self._secret = secrets.token_bytes(32)

    def look(self, body: FindRequest) -> dict[str, Any]:
        """What the request means, what would be done, and under which plan; or why not. Raises Unclear for a senseless request."""
        config = self._config(body)
        request, found, steps = self._seek(config)
        rows = preview.rows(request, found)
        counts = {
            kind: sum(r.kind == kind for r in rows) for kind in ("document", "held_out", "conversation", "feedback")
        }
        told = {
            "plan": None, "refused": None, "count": len(rows), "counts": counts, "unread": found.unread,
            "records": [asdict(r) for r in rows[: body.rows]], "imported": self._imported(),
            "artifacts": [asdict(c) for c in preview.costs(self.run, found, steps)] if rows else [],
            "deleted": deleted(self.run, request, steps) if rows else [],
            "approximate": self._learnt(found),
        }  # fmt: skip
        try:
            self._check(found, request, config)
        except Unclear as problem:
            return told | {"refused": {"code": problem.code, "message": str(problem), "values": problem.values}}
        return told | {"plan": self._plan(request, found, steps)}

    def start(self, body: ForgetRequest) -> Begun:
        """Raises HTTPException 409 while one runs, and Unclear for what is not done."""
        if self.state(self.events()) == "running":
            raise HTTPException(409, "A forgetting is running already.")
        config = self._config(body)
        request, found, steps = self._seek(config)
        self._check(found, request, config)
        if not hmac.compare_digest(body.plan.encode(), self._plan(request, found, steps).encode()):
            raise Unclear("changed", "What was shown is not what would be done now; look again.")
        for text in (body.who, body.why):
            if request.find(text) or unspoken(text, config) != text:
                raise Unclear(
                    "named", "Who asks and why are kept in the ledger: say it there without what is to be forgotten."
                )
        if body.method != METHOD and not self._learnt(found):
            raise Unclear("not_learnt", "The model that is served was not trained on these records; use method replay.")
        if problems := Ledger(self.run).problems():
            raise UserError(f"{problems[0]} Nothing is added to a ledger that does not verify.")
        with alone(self.run):
            pass
        return self._launch(config), request if body.method == METHOD else None

    def finish(self) -> Begun:
        """End a forgetting that was stopped while its parts were put in place. Raises HTTPException 409, and Unclear where there
        is none."""
        if self.state(self.events()) == "running":
            raise HTTPException(409, "A forgetting is running already.")
        if not self.unfinished():
            raise Unclear("finished", "No forgetting was stopped on its way.")
        return self._launch(ForgetConfig(run=self.run.path, store=self.store)), None

    def unfinished(self) -> bool:
        """Is the run between two states, and nobody at work?"""
        return commit.pending(self.run) is not None and not self.alive and not self.goes_on()

    def last_words(self, code: int) -> Event:
        if code in (130, -signal.SIGINT) or (self.stopping and commit.pending(self.run) is None):
            return {"code": "stopped", "message": STOPPED}
        return {
            "code": "ended",
            "message": f"The forgetting ended without a word (exit code {code}); the same request goes on.",
        }

    def goes_on(self) -> bool:
        try:
            with self.run.lock(forgetting=True):
                return False
        except UserError:
            return True

    def _launch(self, config: ForgetConfig) -> subprocess.Popen[bytes]:
        # nothing that it prints is kept, since it shows records
        return self.launch([sys.executable, "-c", COMMAND], asked(config).encode(), subprocess.DEVNULL)

    def _config(self, body: FindRequest) -> ForgetConfig:
        texts: dict[str, Any] = {name: tuple(getattr(body, name)) for name in ("record", "name", "grep")}
        if not isinstance(body, ForgetRequest):
            return ForgetConfig(run=self.run.path, store=self.store, **texts)
        return ForgetConfig(
            run=self.run.path, store=self.store, **texts, method=body.method, twins=body.twins, who=body.who, why=body.why,
            suppress=SuppressConfig(tune=body.tune, lora_rank=body.lora_rank),
        )  # fmt: skip

    def _seek(self, config: ForgetConfig) -> tuple[Request, Found, list[Step]]:
        request = read_request(config)
        self.run.check_whole()
        with alone(self.run) if writes(self.run) else nullcontext():
            found = find(self.run, request, self.store)
        return request, found, fates(self.run, found)

    def _check(self, found: Found, request: Request, config: ForgetConfig) -> None:
        if not found and self._imported():
            raise Unclear(
                "imported",
                f"Nothing that was taught here matches, and what an imported model learnt elsewhere can be neither searched nor "
                f"replayed; `jielong forget {self.run.path} --method npo --examples FILE` can make it unlikely.",
            )
        check(found, request, config, self.run)

    def _imported(self) -> bool:
        base = self.run.artifact("base")
        return base is not None and base.card["kind"] == "imported"

    def _learnt(self, found: Found) -> bool:
        """Was the model that is served trained on any of the records? Then an approximate method has something to do."""
        served = self.run.artifact(self.run.serving())
        names = lineage(self.run, served) if served else []
        return any(stage.records for name, stage in found.trained.items() if name in names)

    def _plan(self, request: Request, found: Found, steps: list[Step]) -> str:
        """Stands for the request, the records and what would be done. Nobody can tell from it what was asked for."""
        records = sorted([d.id for part in found.documents.values() for d in part] + list(found.feedback))
        learnt = [sorted(stage.records) for stage in found.trained.values()]
        what = (request.canonical(), records, learnt, [(s.artifact.name, s.artifact.hash, s.fate) for s in steps])
        return hmac.new(self._secret, repr(what).encode("utf-8", "replace"), hashlib.sha256).hexdigest()


def add_forget(
    app: FastAPI, forgetter: Forgetter, switch: Callable[[], Awaitable[str]], forgot: Callable[[Request], None]
) -> None:
    """The routes; `switch()` lets the model answer that the run serves now, `forgot(request)` is called after an exact
    forgetting: what the server itself remembers goes, too."""
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

    async def after(child: subprocess.Popen[bytes], request: Request | None) -> None:
        """The page may be closed: the server changes to the new model all the same."""
        if await asyncio.to_thread(child.wait) == 0:
            if request is not None:
                forgot(request)
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
    records = entry.get("records") or {"texts": entry.get("texts", {}).get("count", 0)}
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
