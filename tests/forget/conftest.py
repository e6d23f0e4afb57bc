"""A run small enough to be raised in seconds, and copies of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from small_runs import SECRET, raise_small, teach

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


@pytest.fixture(scope="session")
def taught(raised, tmp_path_factory) -> tuple[Run, Path]:
    """A run whose base two owners taught something; and its folder."""
    folder = tmp_path_factory.mktemp("owners")
    run = Run(folder / "runs" / "shared")
    for name in ("corpus", "tokenizer", "base"):
        shutil.copytree(raised / name, run.path / name)
    assert teach(run, folder, "ann", f"A friend of {SECRET}.") == 0
    assert teach(run, folder, "ben", "He keeps bees in Elgin.") == 0
    return run, folder


@pytest.fixture
def shared(taught, tmp_path) -> Run:
    """A copy of it that a test may change."""
    run = Run(tmp_path / "runs" / "shared")
    shutil.copytree(taught[0].path, run.path)
    return run
