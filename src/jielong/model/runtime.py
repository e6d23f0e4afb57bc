"""The GPT for use: the same function as model.gpt, its weights joined and cast once, with a cache of the past.

Precisions: fp32; bf16; int8, whose matrices are stored as one byte per weight and one scale per output row
(w ≈ scale · q, q = round(w / scale), scale = max|w| / 127). `make_runtime` takes the compiled code of model.native where
it can, else the operators of PyTorch, below. Proof: tests/generate/test_engine.py compares every path with the plain
forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from jielong.config import ModelConfig
from jielong.errors import UserError
from jielong.model.cache import KVCache
from jielong.model.gpt import rope_frequencies
from jielong.model.native import NativeRuntime, fits, library, quantise

PRECISIONS = ("fp32", "bf16", "int8")


def make_runtime(
    config: ModelConfig, state: dict[str, Tensor], precision: str = "fp32", device: str = "cpu"
) -> Runtime:
    """The fastest runtime that this machine has for the model; device: cpu or cuda. Raises UserError for an unknown
    precision, or where there is no such device."""
    if precision not in PRECISIONS:
        raise UserError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}.")
    if device not in ("cpu", "cuda"):
        raise UserError(f"device must be cpu or cuda, not {device!r}.")
    if device == "cuda":
        if not torch.cuda.is_available():
            raise UserError("PyTorch finds no NVIDIA GPU here; leave --device out, or install PyTorch with CUDA.")
        return TorchRuntime(config, state, precision, "cuda:0")
    code = library() if fits(config) else None
    return TorchRuntime(config, state, precision) if code is None else NativeRuntime(config, state, precision, code)


class Matrix:
    """y = x Wᵀ (+ b) for W (N, K), in the form that the processor reads fastest."""

    def __init__(self, weight: Tensor, bias: Tensor | None, precision: str):
        self.bias = None if bias is None else bias.to(torch.float32 if precision == "fp32" else torch.bfloat16)
        self.packed = False
        self.scale: Tensor | None = None
        if precision == "fp32":
            self.weight = weight.float().contiguous()
        elif precision == "bf16":
            self.weight, self.packed = _pack(weight.to(torch.bfloat16).contiguous())
        else:
            self.weight, scale = quantise(weight.float())
            self.scale = scale.to(torch.bfloat16)

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        if self.scale is None:
            return F.linear(x, self.weight, self.bias)
        n, k = self.weight.shape
        if k % 32 or n % 4 or x.device.type != "cpu":  # the operator reads whole vectors, past the end of other shapes
            y = F.linear(x, self.weight.to(x.dtype)) * self.scale  # (…, N)
        else:
            y = torch.ops.aten._weight_int8pack_mm(x.reshape(-1, k), self.weight, self.scale)
            y = y.view(*x.shape[:-1], n)
        return y if self.bias is None else y + self.bias


def _pack(weight: Tensor) -> tuple[Tensor, bool]:
    """oneDNN's own order of a bfloat16 matrix, twice as fast for few rows, where this build and processor have it."""
    if weight.device.type != "cpu":
        return weight, False
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, 1)
        torch.ops.mkldnn._linear_pointwise(weight[:1], packed, None, "none", [], "")
        return packed, True
    except (RuntimeError, AttributeError, NotImplementedError):
        return weight, False


class Layer:
    """One block's weights."""

    def __init__(self, state: dict[str, Tensor], n: int, c: ModelConfig, precision: str):
        dtype = torch.float32 if precision == "fp32" else torch.bfloat16

        def get(name: str) -> Tensor | None:
            return state.get(f"blocks.{n}.{name}")

        def join(*names: str) -> Matrix:
            weights, biases = [state[f"blocks.{n}.{m}.weight"] for m in names], [get(f"{m}.bias") for m in names]
            bias = torch.cat([b for b in biases if b is not None]) if biases[0] is not None else None
            return Matrix(torch.cat(weights), bias, precision)

        def norm(name: str) -> tuple[Tensor, Tensor | None]:
            bias = get(f"{name}.bias")
            return state[f"blocks.{n}.{name}.weight"].to(dtype), None if bias is None else bias.to(dtype)

        self.attention_norm, self.mlp_norm = norm("attention_norm"), norm("mlp_norm")
        self.qkv = join("attention.q", "attention.k", "attention.v")
        self.o = join("attention.o")
        self.up = join("mlp.gate", "mlp.up") if c.mlp == "swiglu" else join("mlp.up")
        self.down = join("mlp.down")
        self.qk_gain: Tensor | None = None
        if c.qk_norm:  # (H + G, d)
            q, k = state[f"blocks.{n}.attention.q_norm.weight"], state[f"blocks.{n}.attention.k_norm.weight"]
            self.qk_gain = torch.cat([q.expand(c.heads, -1), k.expand(c.kv_heads, -1)]).to(dtype).contiguous()


class TorchRuntime:
    """tokens and a cache → hidden states → logits."""

    name = "torch"

    def __init__(self, config: ModelConfig, state: dict[str, Tensor], precision: str = "fp32", device: str = "cpu"):
        c = self.config = config
        self.precision = precision
        self.device = torch.device(device)
        self.dtype = torch.float32 if precision == "fp32" else torch.bfloat16
        with torch.no_grad():
            state = {k: v.detach().to(self.device) for k, v in state.items()}
            self.embedding = state["embedding.weight"].to(self.dtype)  # (V, D)
            self.places = state["places.weight"].to(self.dtype) if c.positions == "learned" else None
            self.layers = [Layer(state, n, c, precision) for n in range(c.layers)]
            bias = state.get("norm.bias")
            self.norm = (state["norm.weight"].to(self.dtype), None if bias is None else bias.to(self.dtype))
            self.head = Matrix(state["embedding.weight" if c.tied else "head.weight"], None, precision)
            self._cos, self._sin = torch.empty(0), torch.empty(0)

    def cache(self) -> KVCache:
        return KVCache(self.config, self.dtype, device=self.device)

    @torch.inference_mode()
    def forward(self, parts: Sequence[Sequence[int]], starts: Sequence[int], cache: KVCache, row: int = 0) -> Tensor:
        """Hidden states (N, D) after the last norm of N tokens: those of the first part, then those of the second, …

        Part b continues the sequence that stands in cache row `row + b` and fills its first `starts[b]` positions; its
        keys and values are written behind them. The caller keeps the lengths: what was written for padding is
        overwritten or hidden later.
        """
        B, T = len(parts), max(map(len, parts))
        tokens = torch.tensor([[*p, *[0] * (T - len(p))] for p in parts], device=self.device)  # (B, T)
        end = max(starts) + T
        cache.reserve(row + B, end)
        start = torch.tensor(starts, device=self.device)  # (B,)
        positions = start.unsqueeze(1) + torch.arange(T, device=self.device)  # (B, T)
        even = min(starts) == max(starts)
        places = None  # in the cache, where not everyone's are the same
        if not even:  # one write for all rows: on a GPU each would cost a launch of its own, in every layer
            places = (torch.arange(row, row + B, device=self.device).unsqueeze(1), slice(None), positions)
        x = F.embedding(tokens, self.embedding)  # (B, T, D)
        rope = None
        if self.places is not None:
            x = x + F.embedding(positions.clamp_max(self.config.context - 1), self.places)
        else:
            rope = self._rope(positions[:1] if even else positions, end)
        mask = None
        if T > 1 or not even:  # (B or 1, 1, 1, T, S): a query sees the positions up to its own
            hidden = torch.arange(end, device=self.device) > (positions[:1] if even else positions).unsqueeze(-1)
            mask = torch.zeros(hidden.shape, dtype=self.dtype, device=self.device).masked_fill_(hidden, float("-inf"))[
                :, None, None
            ]
        for n, layer in enumerate(self.layers):
            x = x + self._attention(
                layer, n, self._normed(x, layer.attention_norm), rope, mask, cache, row, starts, places
            )
            x = x + self._mlp(layer, self._normed(x, layer.mlp_norm))
        x = self._normed(x, self.norm)
        return (
            x.flatten(0, 1)
            if all(len(p) == T for p in parts)
            else torch.cat([x[b, : len(p)] for b, p in enumerate(parts)])
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """(N, D) → (N, V) float32 on the processor"""
        with torch.inference_mode():
            return self.head(hidden).float().cpu()

    def likeliest(self, logits: Tensor) -> tuple[list[int], list[float]]:
        """Of logits (N, V): the likeliest tokens and log Σ exp of each row."""
        return logits.argmax(-1).tolist(), logits.logsumexp(-1).tolist()

    def _normed(self, x: Tensor, gain: tuple[Tensor, Tensor | None]) -> Tensor:
        weight, bias = gain
        if self.config.norm == "layer":
            return F.layer_norm(x, weight.shape, weight, bias, self.config.norm_eps)
        return F.rms_norm(x, weight.shape, weight, self.config.norm_eps)

    def _rope(self, positions: Tensor, end: int) -> tuple[Tensor, Tensor]:
        """cos and sin (B, T, 1, 1, d/2) of positions below `end`"""
        if end > len(self._cos):
            angle = torch.arange(max(512, 2 * end)).float().unsqueeze(1) * rope_frequencies(self.config)
            self._cos, self._sin = (t.to(self.device, self.dtype) for t in (angle.cos(), angle.sin()))
        return self._cos[positions][:, :, None, None], self._sin[positions][:, :, None, None]

    def _attention(
        self, layer: Layer, n: int, x: Tensor, rope: tuple[Tensor, Tensor] | None, mask: Tensor | None, cache: KVCache,
        row: int, starts: Sequence[int], places: tuple[Tensor, slice, Tensor] | None,
    ) -> Tensor:  # fmt: skip
        c = self.config
        B, T, _ = x.shape
        H, G, d = c.heads, c.kv_heads, c.head_dim
        qkv = layer.qkv(x).view(B, T, H + 2 * G, d)
        qk, v = qkv[:, :, : H + G], qkv[:, :, H + G :]
        if layer.qk_gain is not None:
            qk = F.rms_norm(qk, (d,), None, c.norm_eps) * layer.qk_gain
        if rope is not None:
            cos, sin = rope
            halves = qk.unflatten(-1, (2, d // 2))  # (B, T, H+G, 2, d/2)
            turned = torch.stack((-halves[..., 1, :], halves[..., 0, :]), -2)
            qk = (halves * cos + turned * sin).flatten(-2)
        q, k = qk[:, :, :H], qk[:, :, H:]
        keys, values = cache.keys[n], cache.values[n]
        if places is None:
            part = slice(starts[0], starts[0] + T)
            keys[row : row + B, :, part] = k.transpose(1, 2)
            values[row : row + B, :, part] = v.transpose(1, 2)
        else:
            keys[places], values[places] = k, v  # (B, T, G, d)
        end = max(starts) + T
        k, v = keys[row : row + B, :, :end], values[row : row + B, :, :end]  # (B, G, S, d)
        q = (q * d**-0.5).view(B, T, G, H // G, d).permute(0, 2, 3, 1, 4)  # (B, G, H/G, T, d)
        scores = q.reshape(B, G, -1, d) @ k.transpose(-1, -2)  # (B, G, H/G·T, S)
        scores = scores.view(B, G, H // G, T, end)
        if mask is not None:
            scores = scores + mask
        y = scores.softmax(-1).view(B, G, -1, end) @ v  # (B, G, H/G·T, d)
        y = y.view(B, G, H // G, T, d).permute(0, 3, 1, 2, 4).reshape(B, T, H * d)
        return layer.o(y)

    def _mlp(self, layer: Layer, x: Tensor) -> Tensor:
        up = layer.up(x)
        if self.config.mlp == "gelu":
            return layer.down(F.gelu(up, approximate="tanh"))
        if self.config.mlp == "relu2":
            return layer.down(F.relu(up).square())
        gate, up = up.chunk(2, -1)
        return layer.down(F.silu(gate).mul_(up))


Runtime = TorchRuntime | NativeRuntime
