"""Training from feedback, started from the page. A process of its own trains; what its journal tells is streamed, and
when the run serves another model the server changes to it between two requests."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from starlette.exceptions import HTTPException

from jielong.align.improve import JOURNAL
from jielong.run import Run
from jielong.serve.background import Background, Event, stream
from jielong.serve.schemas import Form

# a server that was started in the background ignores SIGINT, and so would its training, which could not be stopped then
COMMAND = """import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from jielong.cli import main
sys.exit(main(sys.argv[1:]))"""


class ImproveRequest(Form):
    people_only: bool = False


class Nothing(Form):
    """A request without settings."""


class Trainer(Background):
    """`jielong improve` as a child process."""

    def __init__(self, run: Run, store: str = "", settings: Path | None = None):
        super().__init__(run, JOURNAL)
        self.store, self.settings = store, settings

    def start(self, people_only: bool) -> None:
        """Raises HTTPException 409 when a training runs."""
        if self.state(self.events()) == "running":
            raise HTTPException(409, "A training is running already.")
        command = [sys.executable, "-c", COMMAND, "improve", str(self.run.path)]
        command += ["--people-only"] if people_only else []
        command += ["--store", self.store] if self.store else []
        command += ["--settings", str(self.settings)] if self.settings else []
        with open(self.run.path / "improve.log", "wb") as log:
            self.launch(command, b"", log)

    def last_words(self, code: int) -> Event:
        if code in (130, -signal.SIGINT) or self.stopping:
            return {"message": "Stopped. The same command continues."}
        log = (self.run.path / "improve.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return {
            "message": log[-1].removeprefix("jielong: ")
            if code == 2 and log
            else f"The training ended (exit code {code})."
        }


def add_improve(app: FastAPI, trainer: Trainer, switch: Callable[[], Awaitable[str]]) -> None:
    """The routes; `switch()` lets the model answer that the run serves now and returns its name."""

    @app.get("/v1/improve")
    async def look() -> Event:
        events = await asyncio.to_thread(trainer.events)
        return {"state": trainer.state(events), "events": events}

    @app.post("/v1/improve", status_code=202)
    async def start(body: ImproveRequest) -> dict[str, str]:
        trainer.start(body.people_only)
        return {"state": "running"}

    @app.post("/v1/improve/stop")
    async def stop(_: Nothing) -> dict[str, str]:
        trainer.stop()
        return {"state": trainer.state(trainer.events())}

    @app.post("/v1/rollback")
    async def rollback(_: Nothing) -> dict[str, str]:
        await asyncio.to_thread(trainer.run.rollback)
        return {"model": await switch()}

    @app.get("/v1/improve/events", responses={200: {"content": {"text/event-stream": {}}}})
    async def follow() -> StreamingResponse:
        return stream(trainer, switch)
