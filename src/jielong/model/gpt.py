"""The one GPT: a decoder-only transformer of the Qwen3 family (RMSNorm, RoPE, QK-norm, SwiGLU, grouped queries).

Weights are float32; the forward pass runs in the dtype that the caller names (bfloat16 where the processor has it).
Attention is a plain product of matrices: on the CPU and for rows of a few hundred tokens its backward pass is
faster than the fused kernel (docs/log.md).
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jielong.config import ModelConfig
from jielong.errors import UserError
from jielong.model.cache import KVCache
from jielong.model.kernels import rms_norm, rotate, squared_relu, swiglu


class Linear(nn.Module):
    """y = x Wᵀ without bias; W is kept in float32 and cast to the dtype of x."""

    def __init__(self, d_in: int, d_out: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_out, d_in))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class RMSNorm(nn.Module):
    """x / rms(x) · g (Zhang & Sennrich 2019)."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class Attention(nn.Module):
    """Causal self-attention with grouped queries (Ainslie et al. 2023) and normalised queries and keys."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        self.q = Linear(config.width, config.heads * config.head_dim)
        self.k = Linear(config.width, config.kv_heads * config.head_dim)
        self.v = Linear(config.width, config.kv_heads * config.head_dim)
        self.o = Linear(config.heads * config.head_dim, config.width)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor, cache: KVCache | None, layer: int
    ) -> Tensor:
        B, T, _ = x.shape
        H, G, d = self.heads, self.kv_heads, self.head_dim
        # one product for q, k and v: the casts make the copies anyway
        weight = torch.cat([self.q.weight, self.k.weight, self.v.weight]).to(x.dtype)  # ((H+2G)d, D)
        qkv = F.linear(x, weight).view(B, T, H + 2 * G, d)
        q, k, v = qkv.split([H, G, G], dim=2)
        q = rotate(self.q_norm(q), *rope).transpose(1, 2)  # (B, H, T, d)
        k = rotate(self.k_norm(k), *rope).transpose(1, 2)  # (B, G, T, d)
        v = v.transpose(1, 2)
        if cache is not None:
            k, v = cache.append(layer, k, v)  # (B, G, S, d)
        if G != H:
            k, v = k.repeat_interleave(H // G, dim=1), v.repeat_interleave(H // G, dim=1)
        scores = (q * d**-0.5) @ k.transpose(-1, -2) + mask  # (B, H, T, S)
        y = scores.softmax(-1) @ v  # (B, H, T, d)
        return self.o(y.transpose(1, 2).reshape(B, T, H * d))


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020) or squared ReLU (So et al. 2021)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.kind = config.mlp
        if self.kind == "swiglu":
            self.gate = Linear(config.width, config.mlp_width)
        self.up = Linear(config.width, config.mlp_width)
        self.down = Linear(config.mlp_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "relu2":
            return self.down(squared_relu(self.up(x)))
        both = F.linear(x, torch.cat([self.gate.weight, self.up.weight]).to(x.dtype))  # (B, T, 2M)
        return self.down(swiglu(both))


class Block(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attention_norm = RMSNorm(config.width, config.norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.width, config.norm_eps)
        self.mlp = FeedForward(config)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor, cache: KVCache | None, layer: int
    ) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rope, mask, cache, layer)
        return x + self.mlp(self.mlp_norm(x))


class GPT(nn.Module):
    """tokens (B, T) → hidden states (B, T, D) → logits (B, T, V)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        check_shape(config)
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.head = None if config.tied else Linear(config.width, config.vocab_size)

    @property
    def head_weight(self) -> Tensor:
        """(V, D)"""
        return self.embedding.weight if self.head is None else self.head.weight

    def forward(
        self,
        tokens: Tensor,
        mask: Tensor,
        dtype: torch.dtype = torch.float32,
        cache: KVCache | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Hidden states (B, T, D) after the last norm.

        tokens (B, T) int64; mask (B, 1, T, S) additive, 0 where a query may look and -inf elsewhere; positions
        (B, T), by default 0…T-1. With a cache, S counts the cached positions too.
        """
        x = self.embedding(tokens).to(dtype)  # (B, T, D)
        if positions is None:
            positions = torch.arange(tokens.shape[1]).unsqueeze(0)
        rope = rope_tables(positions, self.config.head_dim, self.config.rope_theta, dtype)
        mask = mask.to(dtype)
        for layer, block in enumerate(self.blocks):
            x = block(x, rope, mask, cache, layer)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """(…, D) → (…, V), in the dtype of `hidden`."""
        return F.linear(hidden, self.head_weight.to(hidden.dtype))

    def init_weights(self, seed: int) -> None:
        """Random weights, a pure function of the seed and the parameter's name.

        Embeddings N(0, 0.02) when tied (they are the head too), else N(0, 1); matrices N(0, 1/3/fan_in); the two
        matrices that write into the residual stream start at zero, so that every block starts as the identity.
        """
        for name, p in self.named_parameters():
            if p.ndim == 1:
                nn.init.ones_(p)
            elif name.endswith(("attention.o.weight", "mlp.down.weight")):
                nn.init.zeros_(p)
            else:
                generator = torch.Generator().manual_seed(_key(seed, name))
                if name.startswith("embedding"):
                    std = 0.02 if self.config.tied else 1.0
                elif name.startswith("head"):
                    std = 0.002
                else:
                    std = math.sqrt(1 / 3 / p.shape[1])
                with torch.no_grad():
                    p.normal_(0.0, std, generator=generator)

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
    if c.mlp not in ("swiglu", "relu2"):
        raise UserError(f"mlp must be swiglu or relu2, not {c.mlp!r}.")
    if min(c.vocab_size, c.context, c.layers, c.width, c.heads, c.head_dim, c.mlp_width) < 1:
        raise UserError("Every size of the model must be at least 1.")


def rope_tables(positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin (B or 1, T, 1, d/2) of RoPE (Su et al. 2021), angles in float32."""
    frequency = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)  # (d/2,)
    angle = positions.float().unsqueeze(-1) * frequency  # (B, T, d/2)
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
    allowed = same & torch.ones(T, T, dtype=torch.bool).tril()
    return torch.zeros(same.shape).masked_fill_(~allowed, float("-inf")).unsqueeze(1)


def _key(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") >> 1


def save_model(model: GPT, folder: Path) -> None:
    """model.safetensors and model.json."""
    from safetensors.torch import save_file

    from jielong.run import plain, write_atomic

    state = {k: v.detach().contiguous() for k, v in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    write_atomic(folder / "model.json", json.dumps(plain(model.config), indent=1))


def load_model(folder: Path) -> GPT:
    """The model of an artifact. Raises UserError when its files do not fit together."""
    from safetensors.torch import load_file

    try:
        config = ModelConfig(**json.loads((folder / "model.json").read_text(encoding="utf-8")))
        model = GPT(config)
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"The model in {folder} cannot be loaded: {str(error).splitlines()[0]}") from error
    return model
