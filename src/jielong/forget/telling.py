"""What a forgetting tells while it works, for the page and whoever comes later: counts, names of artifacts, steps. Never a word of
what is forgotten, since this is kept."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

JOURNAL = "forget.jsonl"
Tell = Callable[..., None]
"""tell(event, **what)"""


def nobody(event: str, **what: Any) -> None:
    """Tells nobody."""


class Journal:
    """One JSON object a line."""

    def __init__(self, path: Path):
        self.path = path
        path.write_text("", encoding="utf-8")

    def tell(self, event: str, **what: Any) -> None:
        with open(self.path, "a", encoding="utf-8") as f:
            f.write(json.dumps({"event": event, "time": round(time.time(), 1), **what}, ensure_ascii=False) + "\n")
