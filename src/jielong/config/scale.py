"""Settings of plans for large trainings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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
