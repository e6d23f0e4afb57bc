"""A run small enough to be raised in seconds, and copies of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from small_runs import raise_small

from jielong.run import Run


@pytest.fixture(scope="session")
def raised(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    return raise_small(folder / "runs" / "small", folder).path


@pytest.fixture
def small(raised, tmp_path) -> Run:
    """A copy of the run that a test may change."""
    shutil.copytree(raised, tmp_path / "runs" / "small")
    return Run(tmp_path / "runs" / "small")


@pytest.fixture(scope="session")
def folder(raised) -> Path:
    return raised.parents[1]
