"""Settings of large corpora; the corpus itself is described by a recipe file (`corpus/build/recipe.py`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jielong.config.stages import DEFAULT_RUN


@dataclass
class CorpusBuildConfig:
    """Raw text by a recipe file → clean documents, on this machine, on Ray or on Slurm."""

    recipe: Path
    """A .toml or .yaml file; docs/guide.md describes it."""
    engine: Literal["local", "ray", "slurm"] = "local"
    """What runs the tasks: processes of this machine, Ray (RAY_ADDRESS names a cluster) or Slurm's sbatch."""
    workers: int = 0
    """Tasks at one time; 0 = one per core."""
    keep: bool = False
    """Keep the working folder, which is about as large as the clean documents."""
    run: Path = DEFAULT_RUN
    """The run's folder."""


@dataclass
class ClassifierConfig:
    """A quality classifier from good and bad examples."""

    action: Literal["train", "evaluate"]
    """train one, or evaluate it on other documents."""
    classifier: Path
    """Its folder."""
    good: tuple[Path, ...] = ()
    """Files or folders of documents that are wanted."""
    bad: tuple[Path, ...] = ()
    """Files or folders of documents that are not."""
    most: int = 20_000
    """Documents of each kind that are read at most; more are sampled."""
    epochs: int = 4
    """Passes over the documents."""
    rate: float = 0.3
    """Learning rate of AdaGrad."""
    decay: float = 1e-6
    """Weight of the squared weights in the loss."""
    seed: int = 1
    """Seed of the order of the documents."""
