"""The thread that runs the engines, and the bridge from it to the server's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, TypeVar

from jielong.generate.engine import Engine
from jielong.generate.request import Request, Step
from jielong.generate.sampling import Sampling

T = TypeVar("T")
PAUSE = 0.025  # seconds between two looks at the tokens of a streamed answer, too short to be seen


class Busy(Exception):
    """The queue is full."""


class Closing(Exception):
    """The server takes no new requests any more."""


class Worker:
    """One thread steps every engine that has something to do. At most `limit` requests wait or run at once."""

    def __init__(self, engines: Iterable[Engine], limit: int):
        self.engines = list(engines)
        self.limit = limit
        self.open = 0
        """Requests that wait or run."""
        self.closing = False
        self.told: list[Ticket] = []
        """Tickets whose readers wait for what the current step has told them."""
        self._wake = threading.Condition()
        self._jobs: deque[Callable[[], None]] = deque()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        sys.setswitchinterval(0.0005)  # the event loop must not wait 5 ms for the interpreter while a step prepares
        self._thread.start()

    def stop(self) -> None:
        """End the thread after its current step."""
        with self._wake:
            self._stopped = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._stopped or self._jobs or any(e.busy for e in self.engines)):
                    self._wake.wait()
                if self._stopped:
                    return
                jobs, self._jobs = self._jobs, deque()
            for job in jobs:
                job()
            for engine in self.engines:
                try:
                    engine.step()
                except Exception as problem:  # a mistake of ours: these requests fail, the server goes on
                    traceback.print_exc()
                    engine.fail(problem)
                self._wake_readers()

    def _wake_readers(self) -> None:
        """Once for everyone whom the step had news for, when it is over and the interpreter free."""
        told, self.told = self.told, []
        for loop in {ticket.loop for ticket in told}:
            mine = [ticket for ticket in told if ticket.loop is loop]
            self._tell(loop, lambda mine=mine: [ticket.wake() for ticket in mine])

    async def call(self, job: Callable[[], T]) -> T:
        """Run `job` between two steps and return its value."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def run() -> None:
            try:
                value = job()
            except Exception as problem:
                self._tell(loop, lambda problem=problem: future.cancelled() or future.set_exception(problem))
            else:
                self._tell(loop, lambda: future.cancelled() or future.set_result(value))

        self._check(1)
        self.open += 1
        try:
            with self._wake:
                self._jobs.append(run)
                self._wake.notify()
            return await future
        finally:
            self.open -= 1

    def _check(self, count: int) -> None:
        if self.closing:
            raise Closing
        if self.open + count > self.limit:
            raise Busy

    @staticmethod
    def _tell(loop: asyncio.AbstractEventLoop, action: Callable[[], Any]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has closed
            loop.call_soon_threadsafe(action)

    def submit(self, engine: Engine, work: list[tuple[list[int], Sampling]], score: bool = False) -> Ticket:
        """Hand in requests that belong together. Raises Busy, Closing, and UserError for bad prompts."""
        self._check(len(work))
        for prompt, sampling in work:
            engine.check(prompt, answer=sampling.max_tokens > 0)
        ticket = Ticket(self, engine, asyncio.get_running_loop(), len(work))
        for index, (prompt, sampling) in enumerate(work):
            ticket.requests.append(engine.submit(prompt, sampling, ticket.sink(index), score))
        self.open += len(work)
        with self._wake:
            self._wake.notify()
        return ticket


class Ticket:
    """Requests in the engine's hands. Use it as a context, so that leaving it, for whatever reason, cancels what is not
    finished.

    Waking the event loop costs as much as a small model needs for a token, so it is not done for each: `batches` looks
    every PAUSE at what has come, unless nothing has, and `done` is woken once."""

    def __init__(self, worker: Worker, engine: Engine, loop: asyncio.AbstractEventLoop, count: int):
        self.requests: list[Request] = []
        self.then: Callable[[], None] | None = None
        """Called when the ticket is left."""
        self.began = time.perf_counter()
        self.first: float | None = None
        """Seconds to the first token of any request."""
        self._worker, self._engine, self.loop = worker, engine, loop
        self._left = count  # unfinished; the engine's thread counts
        self._steps: deque[tuple[int, Step]] = deque()
        self._hungry = False  # the reader has nothing and waits
        self._wake = asyncio.Event()

    def sink(self, index: int) -> Callable[[Step], None]:
        def tell(step: Step) -> None:
            if self.first is None:
                self.first = time.perf_counter() - self.began
            self._steps.append((index, step))
            self._left -= step.finish is not None
            if self._hungry or not self._left:
                self._hungry = False
                with contextlib.suppress(RuntimeError):
                    self.loop.call_soon_threadsafe(self._wake.set)

        return tell

    def wake(self) -> None:
        """In the event loop: there is something to read."""
        self._wake.set()

    async def done(self) -> None:
        """When every request has finished."""
        while self._left:
            self._wake.clear()
            if self._left:
                await self._wake.wait()

    async def batches(self) -> AsyncIterator[list[tuple[int, Step]]]:
        """Every step of every request as (index, step), several at once where they come fast."""
        left = len(self.requests)
        while left:
            self._wake.clear()
            self._hungry = True
            if not self._steps:
                await self._wake.wait()
            self._hungry = False
            batch = [self._steps.popleft() for _ in range(len(self._steps))]
            left -= sum(step.finish is not None for _, step in batch)
            if batch:
                yield batch
            if left and self._left:
                # everyone's next look is at the same time, so that the loop wakes once for all
                self._wake.clear()
                timer = self.loop.call_later(PAUSE - self.loop.time() % PAUSE, self._wake.set)
                if self._left:
                    await self._wake.wait()
                timer.cancel()

    def __enter__(self) -> Ticket:
        return self

    def __exit__(self, *_: Any) -> None:
        self._worker.open -= len(self.requests)
        for request in self.requests:
            if request.finish is None:
                self._engine.cancel(request)
        if self.then is not None:
            self.then()
