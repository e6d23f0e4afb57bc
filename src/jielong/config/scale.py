"""Settings of plans for large trainings, and of the ladder of small ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from jielong.config.stages import OptimConfig


@dataclass
class PlanConfig:
    """A training on paper: parameters, FLOPs, memory per GPU, communication, time, cost and energy, without a GPU."""

    recipe: str = "gpt3-175b"
    """Which model: a known name (`--recipe list` shows them all), or a folder with a model.json."""
    gpus: int = 8
    """GPUs in all."""
    gpu: str = "h100"
    """Which GPU; `--gpu list` shows them all."""
    tokens: float = 0.0
    """Tokens to read; 0 = as published, or 20 per parameter (Hoffmann et al. 2022) where nothing was."""
    batch_tokens: float = 0.0
    """Tokens per optimizer step; 0 = as published, or half a million."""
    length: int = 0
    """Tokens per row; 0 = the model's context."""
    tensor: int = 0
    """GPUs that share each matrix (tensor parallel, within a node); 0 = what is fastest."""
    checkpointing: Literal["auto", "on", "off"] = "auto"
    """Keep only the inputs of blocks and compute the rest again in the backward pass (Chen et al. 2016)."""
    rows: int = 0
    """Rows per GPU and pass; 0 = what is fastest."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw keeps two numbers per weight, muon one for the matrices of the blocks."""
    efficiency: float = 0.45
    """Share of the GPU's matrix peak that computing alone reaches, without waiting for other GPUs."""
    price: float = 0.0
    """Dollars per GPU and hour; 0 = the table's, where it has one."""
    trace: bool = False
    """Also trace the real training step with tensors that hold no data, and set its memory beside the plan's."""
    json: bool = False
    """Print the plan as JSON."""


@dataclass
class ScaleFitConfig:
    """A ladder of small trainings on the run's corpus → a scaling law, and the size and the tokens that suit a budget."""

    widths: tuple[int, ...] = (32, 64, 96, 128, 160, 192)
    """Widths of the models that the law is fitted to; each has a layer per 40 of its width, and two at least."""
    tokens: tuple[float, ...] = (1e5, 2e5, 4e5)
    """How many tokens each of them reads, in trainings of its own."""
    most: float = 0.0
    """Leave out trainings of more FLOPs (six per parameter and token) than this, for less time; 0 = none."""
    held_back: int = 320
    """Width of a larger model that is predicted before it is trained; 0 = none."""
    held_back_tokens: float = 0.0
    """How many tokens it reads; 0 = the middle one of `tokens`."""
    rows: int = 16
    """Packed rows per step."""
    length: int = 128
    """Tokens per packed row."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(adam_lr=0.008, scalar_lr=0.008))
    """Optimizer and schedule; warm-up and cool-down are shares of each training's own steps."""
    rate_power: float = 1.0
    """AdamW's learning rates are multiplied by (128 / width) to this power; Muon's need no such change."""
    minutes: float = 6.6
    """Budget in minutes of training on this machine, at the speed that the ladder was trained with; the default is what
    spark's pretraining takes."""
    flops: float = 0.0
    """Budget in FLOPs; 0 = only that in minutes."""
    rounds: int = 400
    """Rounds of the bootstrap behind the intervals."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Numbers to compute with; auto = bf16 where the processor has it."""
    threads: int = 0
    """CPU threads; 0 = all cores."""
    checkpoint_seconds: float = 30.0
    """Longest time between two checkpoints."""
    seed: int = 1
    """Seed of the initial weights and of the order of the data."""
