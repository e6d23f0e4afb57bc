"""Progress of a long stage on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Listener = Callable[[str, int, int], None]
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Whatever trains meanwhile also tells `listener(title, step, steps)`, at most a hundred times each."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def training_bar(title: str, steps: int) -> Iterator[Callable[[int, float, float], None]]:
    """A bar with step, loss, tokens per second and time left; yields `progress(step, loss, tokens per second)`."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  {task.fields[speed]:,.0f} tok/s"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    smooth = {"loss": 0.0, "speed": 0.0, "n": 0.0, "told": 0.0, "heard": -1.0}
    listener = _listener.get()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=steps, loss=0.0, speed=0.0)

        def progress(step: int, loss: float, speed: float) -> None:
            smooth["n"] = min(smooth["n"] + 1, 20)
            for key, value in (("loss", loss), ("speed", speed)):
                smooth[key] += (value - smooth[key]) / smooth["n"]
            bar.update(task, completed=step, loss=smooth["loss"], speed=smooth["speed"])
            if listener and step * 100 // steps > smooth["heard"]:
                smooth["heard"] = step * 100 // steps
                listener(title, step, steps)
            if not console.is_terminal and step * 10 // steps > smooth["told"]:
                smooth["told"] = step * 10 // steps
                console.print(f"{title}: step {step}/{steps}, loss {smooth['loss']:.3f}, {smooth['speed']:,.0f} tok/s")

        yield progress
