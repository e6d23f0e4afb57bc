from __future__ import annotations

import pytest
import torch

from jielong.config import ModelConfig
from jielong.errors import UserError
from jielong.model.gpt import GPT, causal_mask, document_mask, for_gpu, load_model, save_model


def test_no_position_sees_the_future(model):
    tokens = torch.randint(0, 256, (1, 12))
    other = tokens.clone()
    other[0, 8:] = 7
    a, b = model(tokens, causal_mask(12)), model(other, causal_mask(12))
    torch.testing.assert_close(a[:, :8], b[:, :8])
    assert (a[:, 8:] - b[:, 8:]).abs().max() > 1e-3


def test_documents_of_one_row_do_not_see_each_other(model):
    tokens = torch.randint(0, 256, (1, 12))
    segments = torch.tensor([[1] * 5 + [2] * 7])
    packed = model(tokens, document_mask(segments))
    alone = model(tokens[:, 5:], causal_mask(7))  # rotary positions are relative
    torch.testing.assert_close(packed[:, 5:], alone, atol=1e-5, rtol=1e-4)


def test_weights_are_a_function_of_the_seed():
    config = ModelConfig(vocab_size=64, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, mlp_width=32, tied=False)
    a, b, c = GPT(config), GPT(config), GPT(config)
    a.init_weights(1)
    torch.randn(5)
    b.init_weights(1)
    c.init_weights(2)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.embedding.weight, c.embedding.weight)


def test_saved_model_is_the_same(model, tmp_path):
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    assert all(torch.equal(x, y) for x, y in zip(model.parameters(), again.parameters(), strict=True))
    (tmp_path / "model.json").write_text('{"width": 3}')
    with pytest.raises(UserError):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "wrong", [{"heads": 3, "kv_heads": 2}, {"head_dim": 7}, {"mlp": "tanh"}, {"norm": "batch"}, {"layers": 0}]
)
def test_impossible_shapes_are_refused(wrong):
    with pytest.raises(UserError):
        GPT(ModelConfig(**wrong))


def test_flops_count_matches_the_matrices():
    config = ModelConfig(vocab_size=100, width=16, layers=2, heads=2, kv_heads=2, head_dim=8, mlp_width=32)
    blocks = 2 * (4 * 16 * 16 + 3 * 16 * 32)
    assert GPT(config).flops_per_token(10) == 6 * (blocks + 100 * 16) + 12 * 2 * 16 * 10


@pytest.mark.parametrize("shape", [{}, {"mlp": "gelu", "norm": "layer", "positions": "learned", "qkv_bias": True, "bias": True, "qk_norm": False}])  # fmt: skip
def test_what_suits_a_gpu_is_the_same_function(shape):
    """Attention in one kernel and layers by themselves: hidden states and gradients as of the plain form."""
    config = ModelConfig(vocab_size=64, context=32, layers=2, width=32, heads=4, kv_heads=2, head_dim=8, mlp_width=48, **shape)  # fmt: skip
    tokens = torch.randint(0, 64, (3, 20), generator=torch.Generator().manual_seed(1))
    mask = document_mask((torch.arange(20) // 7).expand(3, 20))
    found = []
    for gpu in (False, True):
        model = GPT(config)
        model.init_weights(1)
        with torch.no_grad():
            for n, p in enumerate(model.parameters()):
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(n)) * 0.1)
        if gpu:
            for block in model.blocks:
                for_gpu(block)
            assert model.blocks[0].attention.fused and model.blocks[0].mlp.up.apart
        hidden = model(tokens, mask)
        hidden.square().mean().backward()
        found.append([hidden, *(p.grad for p in model.parameters() if p.grad is not None)])
    for plain, fused in zip(*found, strict=True):
        torch.testing.assert_close(fused, plain, atol=1e-5, rtol=1e-4)
