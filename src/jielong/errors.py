"""The one exception that a user is meant to read."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can mend. The message is one sentence that says what to do; the CLI exits with 2."""
