"""The methods by name, one file each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from jielong.edit.bench import Bench, Stored
from jielong.edit.facts import Fact
from jielong.errors import UserError
from jielong.generate.memory import Memory, Note
from jielong.model.delta import Delta, joined


class Editor(Protocol):
    """Reads the model and says what would have to be added to it; writes nothing."""

    exact: bool
    """Is the change a function of the set of edits, so that undoing one in any order is as if it had never been made?"""

    def propose(self, bench: Bench, facts: Sequence[Fact]) -> list[Stored]:
        """For each fact what is to be kept of its change."""
        ...

    def delta(self, bench: Bench, stored: Mapping[str, Stored]) -> Delta:
        """The change that all changes of this method make together, by their ids."""
        ...

    def notes(self, fact: Fact) -> list[Note]:
        """What is to be told where the fact's subject is asked about; nothing for methods that change weights."""
        ...


def _ridge() -> Editor:
    from jielong.edit.methods.ridge import Ridge

    return Ridge()


def _rome() -> Editor:
    from jielong.edit.methods.rome import RRome

    return RRome()


def _memit() -> Editor:
    from jielong.edit.methods.memit import Memit

    return Memit()


def _alphaedit() -> Editor:
    from jielong.edit.methods.alphaedit import AlphaEdit

    return AlphaEdit()


def _ft_m() -> Editor:
    from jielong.edit.methods.ftm import FineTune

    return FineTune()


def _in_context() -> Editor:
    from jielong.edit.methods.incontext import InContext

    return InContext()


def _neurons() -> Editor:
    from jielong.edit.methods.neurons import Neurons

    return Neurons()


EDITORS: dict[str, Callable[[], Editor]] = {
    "neurons": _neurons, "ridge": _ridge, "r-rome": _rome, "memit": _memit, "alphaedit": _alphaedit, "ft-m": _ft_m,
    "in-context": _in_context,
}  # fmt: skip


def editor(name: str) -> Editor:
    """Raises UserError for an unknown name."""
    if name not in EDITORS:
        raise UserError(f"There is no editing method {name!r}; known are {', '.join(EDITORS)}.")
    return EDITORS[name]()


def usual(bench: Bench, last: str = "") -> str:
    """The method where nobody names one: `neurons` where the model can grow, and `ridge` where it cannot or where the `last` change
    that stands was made so: a closed form spares only the edits that it knows."""
    from jielong.edit.methods.neurons import cannot

    return "ridge" if last == "ridge" or cannot(bench) else "neurons"


def together(bench: Bench, changes: Mapping[str, tuple[str, Stored]]) -> Delta:
    """What all changes, by id → (method, stored), add to the base."""
    deltas = []
    for method in sorted({method for method, _ in changes.values()}):
        own = {key: stored for key, (name, stored) in sorted(changes.items()) if name == method}
        deltas.append(editor(method).delta(bench, own))
    return joined(deltas)


def told(changes: Mapping[str, tuple[str, Fact]]) -> Memory:
    """What a model is told by all changes, by id → (method, fact); in the order of the ids."""
    return Memory(tuple(note for _, (method, fact) in sorted(changes.items()) for note in editor(method).notes(fact)))
