"""How commands that change a run tell what they do."""

from __future__ import annotations


def say(text: str) -> None:
    """A line for people, whole: in a pipe it is not broken at a width."""
    from rich.console import Console

    Console(highlight=False, soft_wrap=True).print(text, markup=False)
