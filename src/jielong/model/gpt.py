"""The one GPT: a decoder-only transformer of the Qwen3 family (RMSNorm, RoPE, QK-norm, SwiGLU, grouped queries).

The same class is GPT-2 (LayerNorm, learned positions, GELU, biases), Llama (no QK-norm, Llama 3's rope scaling) and
Qwen2 (biases on q, k and v), by its ModelConfig.

Weights are float32; the forward pass runs in the dtype that the caller names (bfloat16 where the processor has it).
Attention is a plain product of matrices: on the CPU and for rows of a few hundred tokens its backward pass is
faster than the fused kernel (docs/log.md).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from jielong.config import ModelConfig
from jielong.errors import UserError
from jielong.model.delta import DELTA, applied, delta_base, load_delta
from jielong.model.kernels import rms_norm, rotate, squared_relu, swiglu
from jielong.model.lora import ADAPTER, LoRA, base_of, merged
from jielong.run import plain, write_atomic

Rope = tuple[Tensor, Tensor]  # cosines and sines


class Linear(nn.Linear):
    """y = x Wᵀ (+ b); the weights are kept in float32 and cast to the dtype of x."""

    lora: LoRA | None
    apart = False
    """Call this layer by itself, also where others read the same x: hooks move its tensors (train.shard)."""

    def __init__(self, d_in: int, d_out: int, bias: bool = False):
        super().__init__(d_in, d_out, bias)
        self.register_module("lora", None)  # model.lora.add_lora

    def reset_parameters(self) -> None:
        """Matrices stay empty until `GPT.init_weights` or a file fills them: nothing is drawn from a global generator."""
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self)


def linear(x: Tensor, *layers: Linear) -> Tensor:
    """One product for several layers that read the same x, their outputs side by side: the casts make copies anyway."""
    if len(layers) > 1 and layers[0].apart:
        return torch.cat([layer(x) for layer in layers], -1)
    weight: Tensor = layers[0].weight if len(layers) == 1 else torch.cat(tuple(a.weight for a in layers))
    biases = tuple(a.bias for a in layers if a.bias is not None)
    y = F.linear(x, weight.to(x.dtype), torch.cat(biases).to(x.dtype) if biases else None)
    changes = tuple(a.lora(x) for a in layers if a.lora is not None)
    return y + torch.cat(changes, -1) if changes else y


class RMSNorm(nn.Module):
    """x / rms(x) · g (Zhang & Sennrich 2019)."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class LayerNorm(nn.Module):
    """(x − mean) / std · g + b (Ba et al. 2016), as in GPT-2."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


def norm_layer(config: ModelConfig) -> nn.Module:
    return (RMSNorm if config.norm == "rms" else LayerNorm)(config.width, config.norm_eps)


class Attention(nn.Module):
    """Causal self-attention with grouped queries (Ainslie et al. 2023) and normalised queries and keys."""

    fused = False
    """One kernel that keeps no table of scores (Dao et al. 2022): what a GPU needs, and slower backwards on a CPU."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        self.q = Linear(config.width, config.heads * config.head_dim, config.qkv_bias)
        self.k = Linear(config.width, config.kv_heads * config.head_dim, config.qkv_bias)
        self.v = Linear(config.width, config.kv_heads * config.head_dim, config.qkv_bias)
        self.o = Linear(config.heads * config.head_dim, config.width, config.bias)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(self, x: Tensor, rope: Rope | None, mask: Tensor) -> Tensor:
        B, T, _ = x.shape
        H, G, d = self.heads, self.kv_heads, self.head_dim
        qkv = linear(x, self.q, self.k, self.v).view(B, T, H + 2 * G, d)
        q, k, v = qkv.split([H, G, G], dim=2)
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H, T, d), (B, G, T, d) twice
        if G != H:
            k, v = k.repeat_interleave(H // G, dim=1), v.repeat_interleave(H // G, dim=1)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, mask)  # (B, H, T, d)
        else:
            scores = (q * d**-0.5) @ k.transpose(-1, -2) + mask  # (B, H, T, S)
            y = scores.softmax(-1) @ v  # (B, H, T, d)
        return self.o(y.transpose(1, 2).reshape(B, T, H * d))


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020), squared ReLU (So et al. 2021) or GELU in its tanh form (Hendrycks & Gimpel 2016)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.kind = config.mlp
        if self.kind == "swiglu":
            self.gate = Linear(config.width, config.mlp_width, config.bias)
        self.up = Linear(config.width, config.mlp_width, config.bias)
        self.down = Linear(config.mlp_width, config.width, config.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "relu2":
            return self.down(squared_relu(self.up(x)))
        if self.kind == "gelu":
            return self.down(F.gelu(self.up(x), approximate="tanh"))
        return self.down(swiglu(linear(x, self.gate, self.up)))  # (B, T, 2M) → (B, T, M)


class Block(nn.Module):
    recompute = False
    """Keep only the input, and compute the rest again for the backward pass (activation checkpointing, Chen et al. 2016)."""
    compiled: Callable[[Tensor, Rope | None, Tensor], Tensor] | None = None
    """`outside`, compiled for training. No module of its own, so that no parameter changes its name; FSDP's hooks, which gather
    the weights, run outside of it."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attention_norm = norm_layer(config)
        self.attention = Attention(config)
        self.mlp_norm = norm_layer(config)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor, rope: Rope | None, mask: Tensor) -> Tensor:
        if self.compiled is not None and torch.is_grad_enabled():
            return self.compiled(x, rope, mask)
        return self.outside(x, rope, mask)

    def outside(self, x: Tensor, rope: Rope | None, mask: Tensor) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            y = checkpoint(self.inside, x, rope, mask, use_reentrant=False, preserve_rng_state=False)
            assert isinstance(y, Tensor)
            return y
        return self.inside(x, rope, mask)

    def inside(self, x: Tensor, rope: Rope | None, mask: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rope, mask)
        return x + self.mlp(self.mlp_norm(x))


def reading(block: nn.Module) -> dict[str, Linear]:
    """The layers that read a normalised input of the block, which they share; by name."""
    names = ("attention.q", "attention.k", "attention.v", "mlp.gate", "mlp.up")
    return {name: layer for name, layer in block.named_modules() if name in names and isinstance(layer, Linear)}


def for_gpu(block: Block) -> None:
    """What a GPU does better: attention in one kernel, and each layer by itself instead of joined copies of their weights,
    which would be kept for the backward pass."""
    block.attention.fused = True
    for layer in reading(block).values():
        layer.apart = True


class GPT(nn.Module):
    """tokens (B, T) → hidden states (B, T, D) → logits (B, T, V)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        check_shape(config)
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.places = nn.Embedding(config.context, config.width) if config.positions == "learned" else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = norm_layer(config)
        self.head = None if config.tied else Linear(config.width, config.vocab_size)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.embedding.weight.device

    @property
    def head_weight(self) -> Tensor:
        """(V, D)"""
        return self.embedding.weight if self.head is None else self.head.weight

    def forward(
        self,
        tokens: Tensor,
        mask: Tensor,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Hidden states (B, T, D) after the last norm.

        tokens (B, T) int64; mask (B or 1, 1, T, T) additive, 0 where a query may look and -inf elsewhere.
        """
        x, rope = self.enter(tokens, dtype)
        mask = mask.to(dtype)
        for block in self.blocks:
            x = block(x, rope, mask)
        return self.norm(x)

    def enter(self, tokens: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Rope | None]:
        """What the first block reads: (B, T, D), and the rotary positions where the model has them."""
        x = self.embedding(tokens)  # (B, T, D)
        positions = torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(0)
        if self.places is not None:
            return (x + self.places(positions)).to(dtype), None
        return x.to(dtype), rope_tables(positions, self.config, dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """(…, D) → (…, V), in the dtype of `hidden`."""
        return F.linear(hidden, self.head_weight.to(hidden.dtype))

    def init_weights(self, seed: int) -> None:
        """Random weights, a pure function of the seed and the parameter's name."""
        with torch.no_grad():
            for name, p in self.named_parameters():
                p.copy_(self.first_weights(seed, name, p.shape))

    def first_weights(self, seed: int, name: str, shape: torch.Size) -> Tensor:
        """One parameter's random weights.

        Embeddings N(0, 0.02) when tied (they are the head too), else N(0, 1); matrices N(0, 1/3/fan_in); the two
        matrices that write into the residual stream start at zero, so that every block starts as the identity.
        """
        if len(shape) == 1:
            return torch.full(shape, 0.0 if name.endswith("bias") else 1.0)
        if name.endswith(("attention.o.weight", "mlp.down.weight")):
            return torch.zeros(shape)
        if name.startswith(("embedding", "places")):
            std = 0.02 if self.config.tied else 1.0
        elif name.startswith("head"):
            std = 0.002
        else:
            std = math.sqrt(1 / 3 / shape[1])
        return torch.empty(shape).normal_(0.0, std, generator=torch.Generator().manual_seed(_key(seed, name)))

    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def flops_per_token(self, length: int) -> float:
        """Multiply-adds × 2 of one training step per token: 6 per matrix weight plus attention's 12·L·H·d·T."""
        blocks = sum(p.numel() for p in self.blocks.parameters() if p.ndim == 2)
        c = self.config
        return 6 * (blocks + self.head_weight.numel()) + 12 * c.layers * c.heads * c.head_dim * length


def check_shape(c: ModelConfig) -> None:
    """Raises UserError for shapes that make no model."""
    if c.heads % c.kv_heads:
        raise UserError(f"heads ({c.heads}) must be a multiple of kv-heads ({c.kv_heads}).")
    if c.head_dim % 2:
        raise UserError(f"head-dim ({c.head_dim}) must be even: rotary positions turn pairs of numbers.")
    for name, known in (
        ("mlp", ("swiglu", "relu2", "gelu")),
        ("norm", ("rms", "layer")),
        ("positions", ("rope", "learned")),
    ):
        if getattr(c, name) not in known:
            raise UserError(f"{name} must be {' or '.join(known)}, not {getattr(c, name)!r}.")
    if min(c.vocab_size, c.context, c.layers, c.width, c.heads, c.head_dim, c.mlp_width) < 1:
        raise UserError("Every size of the model must be at least 1.")


def rope_frequencies(c: ModelConfig) -> Tensor:
    """(d/2,) radians per token of RoPE (Su et al. 2021), slow ones stretched as in Llama 3.1 (Dubey et al. 2024)."""
    frequency = c.rope_theta ** (-torch.arange(0, c.head_dim, 2, dtype=torch.float32) / c.head_dim)
    if c.rope_factor == 1:
        return frequency
    turns = c.rope_original * frequency / (2 * math.pi)  # within the original context
    keep = ((turns - c.rope_low) / (c.rope_high - c.rope_low)).clamp(0, 1)
    return frequency * (keep + (1 - keep) / c.rope_factor)


def rope_tables(positions: Tensor, config: ModelConfig, dtype: torch.dtype) -> Rope:
    """cos and sin (B or 1, T, 1, d/2) of the rotary positions (B or 1, T), angles in float32."""
    angle = positions.float().unsqueeze(-1) * rope_frequencies(config).to(positions.device)  # (B, T, d/2)
    return angle.cos().to(dtype).unsqueeze(2), angle.sin().to(dtype).unsqueeze(2)


def causal_mask(T: int) -> Tensor:
    """(1, 1, T, T) additive."""
    return torch.full((T, T), float("-inf")).triu(1).view(1, 1, T, T)


def document_mask(segments: Tensor) -> Tensor:
    """(B, 1, T, T) additive: causal, and only within one document. segments (B, T) numbers the documents of a row.

    Every position sees itself, also padding, so that no row of the softmax is empty.
    """
    T = segments.shape[1]
    same = segments.unsqueeze(2) == segments.unsqueeze(1)  # (B, T, T)
    allowed = same & torch.ones(T, T, dtype=torch.bool, device=same.device).tril()
    return torch.zeros(same.shape, device=same.device).masked_fill_(~allowed, float("-inf")).unsqueeze(1)


def _key(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") >> 1


def save_model(model: GPT, folder: Path) -> None:
    """model.safetensors and model.json."""
    save_state(model.config, model.state_dict(), folder)


def save_state(config: ModelConfig, state: dict[str, Tensor], folder: Path) -> None:
    """The same from a state dict in any dtype."""
    from safetensors.torch import save_file

    state = {k: v.detach().contiguous() for k, v in state.items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    write_shape(config, folder)


def write_shape(config: ModelConfig, folder: Path) -> None:
    """model.json"""
    write_atomic(folder / "model.json", json.dumps(plain(config), indent=1))


def load_model(folder: Path) -> GPT:
    """The model of an artifact. Raises UserError when its files do not fit together."""
    try:
        model = GPT(read_shape(folder))
        model.load_state_dict(load_state(folder))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"The model in {folder} cannot be loaded: {str(error).splitlines()[0]}") from error
    return model


def read_shape(folder: Path) -> ModelConfig:
    """The shape of an artifact's model."""
    return ModelConfig(**json.loads((folder / "model.json").read_text(encoding="utf-8")))


def load_state(folder: Path) -> dict[str, Tensor]:
    """The weights of an artifact, in the dtypes in which they are stored; an adapter or an edit is added to its base."""
    from safetensors.torch import load_file

    if (folder / ADAPTER).is_file():
        return merged(folder, load_state(base_of(folder)))
    if (folder / DELTA).is_file():
        return applied(load_state(delta_base(folder)), {folder.name: load_delta(folder)})
    return load_file(folder / "model.safetensors")
