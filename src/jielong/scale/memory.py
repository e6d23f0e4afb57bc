"""Bytes per GPU of a training step under FSDP2 and tensor parallel.

Weights, their gradients and the optimizer's state are float32 and shared out among all GPUs (Rajbhandari et al. 2020,
stage 3). A block's weights are gathered in bfloat16 when it is their turn, the next block's while it computes. What a block
keeps for the backward pass is no formula: the block itself is run on tensors without data, and the storages that it
saves are counted. So a plan follows the code.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from jielong.config import ModelConfig
from jielong.model.gpt import GPT, Block, for_gpu, rope_tables

HALF, FULL = 2, 4  # bytes of a bfloat16, of a float32


@dataclass(frozen=True)
class Sizes:
    """Parameters of a model."""

    total: int
    block: int
    matrices: int
    """Of one block's matrices, which tensor parallel shares and Muon updates."""
    rest: int
    """Embeddings, head and last norm."""


def sizes(config: ModelConfig) -> Sizes:
    """Counted on the model itself, built without data."""
    with torch.device("meta"):
        model = GPT(replace(config, layers=1))
    block = sum(p.numel() for p in model.blocks.parameters())
    rest = model.parameter_count() - block
    matrices = sum(p.numel() for p in model.blocks.parameters() if p.ndim == 2)
    return Sizes(config.layers * block + rest, block, matrices, rest)


def saved_by_block(config: ModelConfig, rows: int, length: int, tensor: int = 1) -> int:
    """Bytes that one block keeps for its backward pass, of `rows` × `length` tokens, its input among them, its weights not.
    With `tensor` GPUs per matrix each has its share of the heads and of the feed-forward network."""
    one, two = (_saved(astuple(config), n, length, tensor) for n in (1, 2))
    return one + (rows - 1) * (two - one)  # joined copies of weights do not grow with the rows


@cache
def _saved(shape: tuple[Any, ...], rows: int, length: int, tensor: int) -> int:
    from torch._subclasses.fake_tensor import FakeTensorMode

    whole = ModelConfig(*shape)
    own = replace(
        whole,
        heads=whole.heads // tensor,
        kv_heads=whole.kv_heads // tensor,
        mlp_width=whole.mlp_width // tensor,
    )
    found: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        found[t.untyped_storage()._cdata] = t.untyped_storage().nbytes()
        return t

    with FakeTensorMode():
        block = Block(own)
        for_gpu(block)
        for p in block.parameters():
            p.data = p.data.bfloat16()  # as gathered
        x = torch.empty(rows, length, own.width, dtype=torch.bfloat16, requires_grad=True)
        mask = torch.empty(rows, 1, length, length, dtype=torch.bfloat16)
        rope = None
        if own.positions == "rope":
            rope = rope_tables(torch.arange(length).unsqueeze(0), own, torch.bfloat16)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            out = block(x, rope, mask)  # held, as the storages would be used again otherwise
        for t in (*block.parameters(), mask, *(rope or ())):
            found.pop(t.untyped_storage()._cdata, None)
        del out
    return sum(found.values())


@dataclass(frozen=True)
class Memory:
    """Bytes per GPU at the peak of a step, in its last backward pass: in that of the head, or of the last block."""

    weights: float
    gradients: float
    """They wait for the last pass, where there are several; with one they take the place of activations as these go."""
    optimizer: float
    gathered: float
    """bfloat16 weights that are gathered, and a block's gradients on their way to where they are kept."""
    activations: float
    """What the blocks keep, and with checkpointing what one block computes again."""
    head: float
    """Hidden states, the logits' gradient and the head's own gradient."""
    passes: int

    @property
    def total(self) -> float:
        passing = self.gradients + self.activations if self.passes > 1 else max(self.gradients, self.activations)
        return self.weights + self.optimizer + self.gathered + passing + self.head


def memory(
    config: ModelConfig,
    gpus: int,
    tensor: int,
    rows: int,
    length: int,
    checkpointing: bool,
    optimizer: str,
    passes: int,
) -> Memory:
    """Of the layout: `gpus` in all, `tensor` of them per matrix, `rows` × `length` tokens per GPU and pass."""
    s = sizes(config)
    layers, tokens, V, D = config.layers, rows * length, config.vocab_size, config.width
    own = s.block - s.matrices + s.matrices / tensor  # a block's weights on one GPU, once they are gathered
    state = 2.0 * s.total - (s.matrices * layers if optimizer == "muon" else 0)
    shards = gpus // tensor
    kept = s.rest / shards + layers * own / shards
    saved = saved_by_block(config, rows, length, tensor)
    masks = rows * length * length * HALF
    inputs = layers * tokens * D * HALF + masks

    def moment(gathered: float, activations: float, head: float) -> Memory:
        optimizer_state = FULL * kept * state / s.total
        return Memory(FULL * kept, FULL * kept, optimizer_state, gathered, activations, head, passes)

    everything = inputs if checkpointing else layers * saved + masks
    in_head = moment(HALF * s.rest, everything, tokens * (V + D) * HALF + V * D * (HALF + FULL))
    # two blocks are gathered, and the gradients of one are there in bfloat16 and, to be added up, in float32
    blocks = 2 * HALF * own + (HALF + FULL) * own
    in_block = moment(
        HALF * s.rest + blocks, inputs + saved if checkpointing else everything, tokens * D * HALF + V * D * HALF
    )
    return max(in_head, in_block, key=lambda m: m.total)
