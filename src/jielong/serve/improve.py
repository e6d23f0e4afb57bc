"""Training from feedback, started from the page. A process of its own trains; what its journal tells is streamed, and
when the run serves another model the server changes to it between two requests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from starlette.exceptions import HTTPException

from jielong.align.improve import JOURNAL
from jielong.run import Run
from jielong.serve.schemas import Form

LOOK = 0.3  # seconds between two looks at the journal
QUIET = 300.0  # seconds after which a journal without an end belongs to a process that is gone
AGAIN = 5.0  # seconds after which a training that goes on is interrupted once more
ENDS = ("result", "error")
# a server that was started in the background ignores SIGINT, and so would its training, which could not be stopped then
COMMAND = """import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from jielong.cli import main
sys.exit(main(sys.argv[1:]))"""
Event = dict[str, Any]


class ImproveRequest(Form):
    people_only: bool = False


class Nothing(Form):
    """A request without settings."""


class Trainer:
    """`jielong improve` as a child process, and its journal."""

    def __init__(self, run: Run, store: str = "", settings: Path | None = None):
        self.run, self.store, self.settings = run, store, settings
        self.journal = run.path / JOURNAL
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def alive(self) -> bool:
        return self._child is not None and self._child.poll() is None

    def start(self, people_only: bool) -> None:
        """Raises HTTPException 409 when a training runs."""
        if self.state(self.events()) == "running":
            raise HTTPException(409, "A training is running already.")
        command = [sys.executable, "-c", COMMAND, "improve", str(self.run.path)]
        command += ["--people-only"] if people_only else []
        command += ["--store", self.store] if self.store else []
        command += ["--settings", str(self.settings)] if self.settings else []
        self.journal.write_text("", encoding="utf-8")
        with open(self.run.path / "improve.log", "wb") as log:
            # it shares the processors with the server: its threads must not spin while they wait for each other
            env = {**os.environ, "OMP_WAIT_POLICY": "passive"}
            self._child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0, env=env
            )

    def stop(self) -> None:
        """End the training as Ctrl-C does; what it has learnt is kept."""
        if self.alive and self._child is not None:
            threading.Thread(target=self._interrupt, args=(self._child,), daemon=True).start()

    def _interrupt(self, child: subprocess.Popen[bytes]) -> None:
        # an interrupt that Python delivers inside a destructor or a library's bare `except` is lost: so it is repeated
        while child.poll() is None and not self._told_its_end():
            child.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(AGAIN)

    def close(self) -> None:
        """The server ends, and its training with it."""
        if self.alive and self._child is not None:
            self.stop()
            try:
                self._child.wait(20)
            except subprocess.TimeoutExpired:
                self._child.kill()

    def _told(self) -> list[Event]:
        try:
            lines = self.journal.read_text(encoding="utf-8").splitlines()
        except OSError:
            lines = []
        found = []
        for line in lines:
            try:
                found.append(json.loads(line))
            except ValueError:
                break  # half a line: the rest comes with the next look
        return found

    def _told_its_end(self) -> bool:
        told = self._told()
        return bool(told) and told[-1]["event"] in ENDS

    def events(self) -> list[Event]:
        """What the journal says so far, and how the process ended where it could not say so itself."""
        ended = self._child is not None and not self.alive  # before the journal is read: it says nothing after its end
        found = self._told()
        if ended and not (found and found[-1]["event"] in ENDS):
            found.append({"event": "error", "message": self._last_words()})
        return found

    def _last_words(self) -> str:
        code = self._child.returncode if self._child else 0
        if code in (130, -signal.SIGINT):
            return "Stopped. The same command continues."
        log = (self.run.path / "improve.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return log[-1].removeprefix("jielong: ") if code == 2 and log else f"The training ended (exit code {code})."

    def state(self, events: list[Event]) -> str:
        """idle, running, done or failed; a training that was started in a terminal counts too."""
        if self.alive:
            return "running"
        if not events:
            return "idle"
        last = events[-1]["event"]
        if last in ENDS:
            return "done" if last == "result" else "failed"
        return "running" if time.time() - self.journal.stat().st_mtime < QUIET else "failed"


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
        async def told() -> AsyncIterator[str]:
            sent = 0
            while True:
                events = await asyncio.to_thread(trainer.events)
                if sent > len(events):
                    sent = 0  # another training has begun
                for event in events[sent:]:
                    yield f"data: {json.dumps(event, ensure_ascii=False)}\n\n"
                sent = len(events)
                if trainer.state(events) != "running":
                    break
                await asyncio.sleep(LOOK)
            if events and events[-1]["event"] == "result":
                await switch()  # whoever reads the end finds the new model
            yield "data: [DONE]\n\n"

        return StreamingResponse(told(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})
