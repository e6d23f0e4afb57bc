"""The folder in which a training keeps what survives an interruption, and which making it belongs to."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from jielong.run import write_atomic


def begin(work: Path, making: dict[str, Any], threads: int | None, keep: bool = False) -> None:
    """Make the work folder, or empty the one of another making. One process with another number of threads is another
    making, as its weights are not bit-equal; several processes (None) promise no more than rounding, and continue any.
    `keep` says that the folder was prepared for this making, whatever its stamp."""
    stamp = work / "making.json"
    try:
        before = json.loads(stamp.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = {}
    same = before.get("making") == making
    if not keep and (not same or (threads is not None and before["threads"] not in (threads, None))):
        if (work / "checkpoints").exists():
            other = ", ".join(_differences(before.get("making", {}), making)) or "threads"
            print(f"{work} held the checkpoints of another training (other {other}); this one starts anew.")
        shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    write_atomic(stamp, json.dumps({"making": making, "threads": threads}))


def content(config: Any) -> Any:
    """The settings that decide the weights, but for rounding, as plain JSON data."""
    found = dataclasses.asdict(config)
    for name in ("checkpoint_seconds", "threads", "device", "parallel"):
        found.pop(name, None)
    return json.loads(json.dumps(found, default=str))


def _differences(before: dict[str, Any], making: dict[str, Any]) -> list[str]:
    """Names of the settings, parents and other parts of a making that differ."""
    found = []
    for name, value in making.items():
        old = before.get(name)
        if isinstance(value, dict) and isinstance(old, dict):
            found += [key for key in value if value[key] != old.get(key)]
        elif value != old:
            found.append(name)
    return found
