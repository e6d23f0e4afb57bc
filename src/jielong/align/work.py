"""The folder in which a stage keeps what survives an interruption."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from jielong.run import Run


def fresh_work(run: Run, name: str, making: Any) -> Path:
    """The stage's work folder, emptied when it belongs to another making."""
    work = run.work(name)
    stamp = hashlib.sha256(json.dumps(making, default=str, sort_keys=True).encode()).hexdigest()
    file = work / "making.txt"
    if work.exists() and (not file.exists() or file.read_text() != stamp):
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    file.write_text(stamp)
    return work
