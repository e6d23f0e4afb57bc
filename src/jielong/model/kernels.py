"""Small operations with hand-written gradients.

On the CPU a training step is held up by passes over memory between the matrix products. Each function here does in
few passes, and keeps few tensors for the backward pass, what the composed operations do in many. Each is tested
against the plain formula by its gradient. A compiler gets the plain formulas, which it fuses by itself.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        d = x.shape[-1]
        # ‖x‖ is reduced in float32 also for bfloat16 input
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = torch.rsqrt(norm * norm / d + eps).to(x.dtype)  # (…, 1)
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight.to(x.dtype))

    @staticmethod
    def backward(ctx, dy: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, scale = ctx.saved_tensors
        d = x.shape[-1]
        normed = x * scale
        product = dy * normed
        dweight = product.reshape(-1, d).sum(0, dtype=torch.float32)
        w = weight.to(x.dtype)
        # dx = s·(w·dy − x̂·mean(w·dy·x̂))
        mean = torch.matmul(product, w.unsqueeze(-1)).div_(d)  # (…, 1)
        dx = (dy * w).sub_(normed.mul_(mean)).mul_(scale)
        return dx, dweight.to(weight.dtype), None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) · weight over the last dimension."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return _RMSNorm.apply(x, weight, eps)  # pyright: ignore[reportReturnType]
    return F.rms_norm(x, (x.shape[-1],), weight.to(x.dtype), eps)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin)

    @staticmethod
    def backward(ctx, dy: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        cos, sin = ctx.saved_tensors
        return _turn(dy, cos, -sin), None, None  # the inverse of a rotation is its transpose


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    out = x.new_empty(x.shape)
    left, right = out.chunk(2, dim=-1)
    torch.mul(a, cos, out=left)
    left.addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=right)
    right.addcmul_(a, sin)
    return out


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE in the half-split layout of Llama and Qwen: x (B, T, H, d), cos and sin (B or 1, T, 1, d/2)."""
    if torch.compiler.is_compiling():
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
    return _Rotate.apply(x, cos, sin)  # pyright: ignore[reportReturnType]


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, both: Tensor) -> Tensor:
        ctx.save_for_backward(both)
        gate, up = both.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx, dy: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        (both,) = ctx.saved_tensors
        gate, up = both.chunk(2, dim=-1)
        sigmoid = torch.sigmoid(gate)
        silu = gate * sigmoid
        d_both = torch.empty_like(both)
        d_gate, d_up = d_both.chunk(2, dim=-1)
        torch.mul(dy, silu, out=d_up)
        # silu' = σ + silu·(1 − σ) = σ + silu − silu·σ
        slope = silu.addcmul(silu, sigmoid, value=-1).add_(sigmoid)
        torch.mul(dy, up, out=d_gate)
        d_gate.mul_(slope)
        return d_both


def swiglu(both: Tensor) -> Tensor:
    """silu(gate)·up for `both` = [gate, up] (…, 2M) → (…, M)."""
    if torch.compiler.is_compiling():
        gate, up = both.chunk(2, dim=-1)
        return F.silu(gate) * up
    return _SwiGLU.apply(both)  # pyright: ignore[reportReturnType]


class _SquaredReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        positive = x.clamp_min(0)
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    def backward(ctx, dy: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        (positive,) = ctx.saved_tensors
        return (positive * dy).mul_(2)


def squared_relu(x: Tensor) -> Tensor:
    """max(x, 0)² (So et al. 2021)."""
    if torch.compiler.is_compiling():
        return x.clamp_min(0).square()
    return _SquaredReLU.apply(x)  # pyright: ignore[reportReturnType]


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor, scale: Tensor, rows: int) -> Tensor:
        w = weight.to(hidden.dtype)
        N, V = hidden.shape[0], w.shape[0]
        grad = hidden.new_empty(N, V)
        loss = scale.new_empty(N)
        for i in range(0, N, rows):  # a block of logits stays in the cache between the passes over it
            part = slice(i, min(i + rows, N))
            p = torch.softmax(F.linear(hidden[part], w), dim=-1, dtype=torch.float32)  # (rows, V)
            picked = p.gather(1, targets[part].unsqueeze(1))
            loss[part] = picked.squeeze(1).clamp_min(1e-30).log_().neg_()
            p.scatter_(1, targets[part].unsqueeze(1), picked - 1)
            torch.mul(p, scale[part].unsqueeze(1), out=p)
            grad[part] = p
        ctx.save_for_backward(hidden, w, grad)
        return torch.dot(loss, scale)

    @staticmethod
    def backward(ctx, dloss: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden, w, grad = ctx.saved_tensors
        dhidden = (grad @ w).mul_(dloss)
        dweight = (grad.t() @ hidden).float().mul_(dloss)
        return dhidden, dweight, None, None, None


def cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, scale: Tensor, rows: int = 256) -> Tensor:
    """Σᵢ scaleᵢ · −log softmax(hiddenᵢ Wᵀ)[targetsᵢ], a float32 scalar.

    hidden (N, D), weight (V, D), targets (N,) int64, scale (N,) float32: 0 leaves a position out. The gradient of
    the logits is made in the forward pass, block by block, so that no float32 (N, V) tensor ever exists.
    """
    return _CrossEntropy.apply(hidden, weight, targets, scale, rows)  # pyright: ignore[reportReturnType]
