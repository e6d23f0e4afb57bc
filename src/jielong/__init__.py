"""jielong (接龍, "word chain"): a whole ChatGPT that one person can raise, own, correct and make forget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from jielong.errors import UserError
    from jielong.generate.engine import Engine
    from jielong.run import Artifact, Run

__all__ = ["UserError", "improve", "load", "open_run", "raise_"]


def raise_(**settings: Any) -> Run:
    """Raise a model: `jielong.raise_(minutes=10, run="runs/mine")` is `jielong raise --minutes 10 --run runs/mine`.

    The settings are the fields of `jielong.config.RaiseConfig`. Raises UserError for everything one can mend.
    """
    from pathlib import Path

    from jielong.config import RaiseConfig
    from jielong.life import raise_ as run_life

    if "run" in settings:
        settings["run"] = Path(settings["run"])
    if "text" in settings:
        text = settings["text"]
        settings["text"] = tuple(Path(p) for p in ([text] if isinstance(text, (str, Path)) else text))
    try:
        config = RaiseConfig(**settings)
    except TypeError as error:
        from jielong.errors import UserError

        raise UserError(f"raise_ does not know a setting: {error}") from error
    return run_life(config)


def open_run(path: str | Path) -> Run:
    """The run in a folder; its `artifact(name).card` says how each part was made."""
    from jielong.run import Run

    return Run(path)


def load(path: str | Path, model: str = "") -> Engine:
    """A run's model, by default the one that it serves, ready to answer:
    `jielong.load("runs/spark").answer([{"role": "user", "content": "Hi"}])`."""
    from jielong.generate.engine import Engine

    run = open_run(path)
    return Engine.load(run.need(model or run.serving()).path)


def improve(run: str | Path, **settings: Any) -> Artifact:
    """Learn from the run's feedback: `jielong.improve("runs/mine", people_only=True)` is `jielong improve runs/mine --people-only`.

    The settings are the fields of `jielong.config.ImproveConfig`; the card of what is returned says whether a new model was
    promoted and why. Raises UserError when the feedback teaches nothing.
    """
    from pathlib import Path

    from jielong.align.improve import run as run_improve
    from jielong.config import ImproveConfig

    try:
        config = ImproveConfig(run=Path(run), **settings)
    except TypeError as error:
        from jielong.errors import UserError

        raise UserError(f"improve does not know a setting: {error}") from error
    with open_run(run).lock():
        return run_improve(config, open_run(run))


def __getattr__(name: str) -> Any:
    if name == "UserError":
        from jielong.errors import UserError

        return UserError
    raise AttributeError(f"module 'jielong' has no attribute {name!r}")
