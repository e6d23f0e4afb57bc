"""The approximate methods by name, one file each. What they leave is suppressed, not forgotten: no proof says that it is gone."""

from __future__ import annotations

from collections.abc import Callable

from jielong.errors import UserError
from jielong.forget.methods.method import Method


def _graddiff() -> Method:
    from jielong.forget.methods.graddiff import GradientDifference

    return GradientDifference()


def _npo() -> Method:
    from jielong.forget.methods.npo import NPO

    return NPO()


def _simnpo() -> Method:
    from jielong.forget.methods.simnpo import SimNPO

    return SimNPO()


def _altpo() -> Method:
    from jielong.forget.methods.altpo import AltPO

    return AltPO()


def _rmu() -> Method:
    from jielong.forget.methods.rmu import RMU

    return RMU()


def _task_vector() -> Method:
    from jielong.forget.methods.taskvector import TaskVector

    return TaskVector()


METHODS: dict[str, Callable[[], Method]] = {
    "graddiff": _graddiff, "npo": _npo, "simnpo": _simnpo, "altpo": _altpo, "rmu": _rmu, "task-vector": _task_vector,
}  # fmt: skip


def method(name: str) -> Method:
    """Raises UserError for an unknown name."""
    if name not in METHODS:
        raise UserError(f"There is no method {name!r} of forgetting; known are replay, {', '.join(METHODS)}.")
    return METHODS[name]()
