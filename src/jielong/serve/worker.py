"""The thread that runs the engines, and the bridge from it to the server's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import traceback
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, TypeVar

from jielong.generate.engine import Engine
from jielong.generate.request import Request, Step
from jielong.generate.sampling import Sampling

T = TypeVar("T")


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
        ticket = Ticket(self, engine, asyncio.get_running_loop())
        for index, (prompt, sampling) in enumerate(work):
            ticket.requests.append(engine.submit(prompt, sampling, ticket.sink(index), score))
        self.open += len(work)
        with self._wake:
            self._wake.notify()
        return ticket


class Ticket:
    """Requests in the engine's hands: an asynchronous stream of (index, step). Use it as a context, so that leaving it,
    for whatever reason, cancels what is not finished."""

    def __init__(self, worker: Worker, engine: Engine, loop: asyncio.AbstractEventLoop):
        self.requests: list[Request] = []
        self._worker, self._engine, self._loop = worker, engine, loop
        self._queue: asyncio.Queue[tuple[int, Step]] = asyncio.Queue()

    def sink(self, index: int) -> Callable[[Step], None]:
        queue, loop = self._queue, self._loop

        def tell(step: Step) -> None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(queue.put_nowait, (index, step))

        return tell

    async def steps(self) -> AsyncIterator[tuple[int, Step]]:
        """Every step of every request, until all have finished."""
        left = len(self.requests)
        while left:
            index, step = await self._queue.get()
            left -= step.finish is not None
            yield index, step

    def __enter__(self) -> Ticket:
        return self

    def __exit__(self, *_: Any) -> None:
        self._worker.open -= len(self.requests)
        for request in self.requests:
            if request.finish is None:
                self._engine.cancel(request)
