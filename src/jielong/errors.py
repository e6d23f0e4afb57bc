"""The one exception that a user is meant to read."""

from __future__ import annotations

from typing import Any


class UserError(Exception):
    """Something the user can mend. The message is one sentence that says what to do; the CLI exits with 2."""


class Unclear(UserError):
    """What cannot be done as it was asked for; `code` and `values` tell programs why."""

    def __init__(self, code: str, text: str, **values: Any):
        super().__init__(text)
        self.code, self.values = code, values
