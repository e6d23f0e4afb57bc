"""Long work that the page starts: a process of its own, and its journal, whose events are streamed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, BinaryIO

from fastapi.responses import StreamingResponse

from jielong.run import Run

LOOK = 0.3  # seconds between two looks at the journal
QUIET = 300.0  # seconds after which a journal without an end belongs to a process that is gone
AGAIN = 5.0  # seconds after which work that goes on is interrupted once more
ENDS = ("result", "error")
Event = dict[str, Any]


class Background:
    """A child process that works on a run, and its journal there: JSON lines, the last one a result or an error."""

    def __init__(self, run: Run, journal: str):
        self.run, self.journal = run, run.path / journal
        self._child: subprocess.Popen[bytes] | None = None
        self.stopping = False
        """Was the work that runs, or ran last, asked to end? An interrupt while Python still starts may end it with any exit code."""

    @property
    def alive(self) -> bool:
        return self._child is not None and self._child.poll() is None

    def launch(self, command: list[str], said: bytes, log: BinaryIO | int) -> subprocess.Popen[bytes]:
        """Start the child, with `said` as its input and `log` for what it prints."""
        self.journal.write_text("", encoding="utf-8")
        self.stopping = False
        # it shares the processors with the server: its threads must not spin while they wait for each other
        env = {**os.environ, "OMP_WAIT_POLICY": "passive"}
        child = self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, process_group=0, env=env
        )
        assert child.stdin is not None
        with contextlib.suppress(BrokenPipeError), child.stdin as stream:  # it ended at once, and says why
            stream.write(said)
        return child

    def stop(self) -> None:
        """End the work as Ctrl-C does."""
        if self.alive and self._child is not None:
            self.stopping = True
            threading.Thread(target=self._interrupt, args=(self._child,), daemon=True).start()

    def _interrupt(self, child: subprocess.Popen[bytes]) -> None:
        # an interrupt that Python delivers inside a destructor or a library's bare `except` is lost: so it is repeated
        while child.poll() is None and not self._told_its_end():
            child.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(AGAIN)

    def close(self) -> None:
        """The server ends, and the work with it."""
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
        if ended and self._child is not None and not (found and found[-1]["event"] in ENDS):
            found.append({"event": "error", **self.last_words(self._child.returncode)})
        return found

    def last_words(self, code: int) -> Event:
        """Why a process ended that could not say so: `message`, and where programs should know it, `code`."""
        return {"message": f"It ended without a word (exit code {code})."}

    def state(self, events: list[Event]) -> str:
        """idle, running, done or failed; work that was started elsewhere counts too."""
        if self.alive:
            return "running"
        if not events:
            return "idle"
        last = events[-1]["event"]
        if last in ENDS:
            return "done" if last == "result" else "failed"
        return "running" if self.goes_on() else "failed"

    def goes_on(self) -> bool:
        """Does somebody else's process still write the journal?"""
        return time.time() - self.journal.stat().st_mtime < QUIET


def stream(work: Background, switch: Callable[[], Awaitable[str]]) -> StreamingResponse:
    """The events of the journal as they come. After a result the server serves what the run serves then."""

    async def told() -> AsyncIterator[str]:
        sent = 0
        while True:
            events = await asyncio.to_thread(work.events)
            if sent > len(events):
                sent = 0  # another one has begun
            for event in events[sent:]:
                yield f"data: {json.dumps(event, ensure_ascii=False)}\n\n"
            sent = len(events)
            if work.state(events) != "running":
                break
            await asyncio.sleep(LOOK)
        if events and events[-1]["event"] == "result":
            await switch()  # whoever reads the end finds the new model
        yield "data: [DONE]\n\n"

    return StreamingResponse(told(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})
