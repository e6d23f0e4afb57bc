"""The models that a server holds, one of which answers who names none; it may change while requests run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from starlette.exceptions import HTTPException

from jielong.generate.engine import Engine
from jielong.run import Run
from jielong.serve.worker import Worker

MOST = 4  # models that came by switching and are still held, so that one can look back and compare


@dataclass
class Served:
    """A model under its name."""

    engine: Engine
    run: Path | None = None
    """The run's folder, for the report."""


class Models:
    """Names → models; the default one comes first. Only the event loop changes it."""

    def __init__(self, served: list[Served]):
        self._held = {s.engine.name: s for s in served}
        self.default = served[0]
        self._came: list[str] = []

    def __iter__(self) -> Iterator[str]:
        first = self.default.engine.name
        return iter([first, *(name for name in self._held if name != first)])

    def find(self, name: str | None) -> Served:
        """The named model, the default one for none. Raises HTTPException 404."""
        if not name or name == "jielong":
            return self.default
        if name not in self._held:
            raise HTTPException(404, f"The model {name[:200]!r} does not exist; this server has {', '.join(self)}.")
        return self._held[name]

    def has(self, name: str, content: str) -> bool:
        """Is a model of this name and with this hash held?"""
        return name in self._held and self._held[name].engine.hash == content

    def drop_gone(self) -> None:
        """Let go of models whose artifact was taken away or replaced (jielong forget), but for the one that answers who names none."""
        for name, served in list(self._held.items()):
            if served.run and served is not self.default and self._gone(served, served.run):
                del self._held[name]
                self._came = [n for n in self._came if n != name]

    def _gone(self, served: Served, run: Path) -> bool:
        """Is its artifact away, or another one in its place?"""
        found = Run(run).artifact(served.engine.card["name"])
        return found is None or found.hash != served.engine.hash

    def switch(self, name: str) -> None:
        """From now on the held model `name` answers who names none; requests that run stay with their own."""
        self.default = self._held[name]

    def add(self, served: Served, worker: Worker) -> None:
        """Hold one more, and let it answer who names none; the oldest of those that came so may go."""
        name = served.engine.name
        self._held[name] = served
        worker.engines = [*worker.engines, served.engine]
        self._came = [*(n for n in self._came if n != name), name]
        self.switch(name)
        while len(self._came) > MOST:
            del self._held[self._came.pop(0)]
        kept = {id(s.engine) for s in self._held.values()}
        worker.engines = [e for e in worker.engines if id(e) in kept or e.busy]
