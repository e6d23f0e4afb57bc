"""Each hand-written gradient against the plain formula."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from jielong.model.kernels import cross_entropy, rms_norm, rotate, squared_relu, swiglu


def gradients(function, *inputs):
    leaves = [x.clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    out.backward(torch.linspace(-1, 1, out.numel()).view(out.shape))
    return [out.detach(), *(x.grad for x in leaves)]


def assert_same(mine, plain, *inputs, atol=1e-5):
    for a, b in zip(gradients(mine, *inputs), gradients(plain, *inputs), strict=True):
        torch.testing.assert_close(a, b, atol=atol, rtol=1e-4)


def test_rms_norm():
    x, w = torch.randn(7, 5, 16), torch.randn(16)
    assert_same(lambda x, w: rms_norm(x, w, 1e-6), lambda x, w: F.rms_norm(x, (16,), w, 1e-6), x, w)


def test_rotate():
    angle = torch.randn(1, 5, 1, 4)
    cos, sin = angle.cos(), angle.sin()

    def plain(x):
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    assert_same(lambda x: rotate(x, cos, sin), plain, torch.randn(2, 5, 3, 8))


def test_swiglu():
    def plain(both):
        gate, up = both.chunk(2, -1)
        return F.silu(gate) * up

    assert_same(swiglu, plain, torch.randn(6, 20))


def test_squared_relu():
    assert_same(squared_relu, lambda x: F.relu(x).square(), torch.randn(6, 20))


@pytest.mark.parametrize("rows", [3, 64])
def test_cross_entropy(rows):
    targets, scale = torch.randint(0, 11, (10,)), torch.rand(10)
    scale[3] = 0

    def plain(h, w):
        return (F.cross_entropy(h @ w.T, targets, reduction="none") * scale).sum()

    def mine(h, w):
        return cross_entropy(h, w, targets, scale, rows)

    h, w = torch.randn(10, 8), torch.randn(11, 8)
    hs = [h.clone().requires_grad_(), w.clone().requires_grad_()]
    ps = [h.clone().requires_grad_(), w.clone().requires_grad_()]
    (mine(*hs) * 2).backward()
    (plain(*ps) * 2).backward()
    torch.testing.assert_close(mine(*hs), plain(*ps))
    for a, b in zip(hs, ps, strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-4)
