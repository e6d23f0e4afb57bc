"""GGUF files against llama.cpp (where llama-cpp-python is installed; CI has it), and their round trips."""

from __future__ import annotations

import pytest
import torch

from jielong.cli import main
from jielong.config import ModelConfig
from jielong.errors import UserError
from jielong.generate.engine import Engine
from jielong.generate.sampling import Sampling
from jielong.model.gguf import GGUF, read_gguf, write_gguf
from jielong.model.gpt import GPT, causal_mask, load_state, save_state
from jielong.run import Run
from jielong.tokens.foreign import PATTERNS, from_gguf, pre_tokenizer, split_of, to_gguf

SHAPE = {"width": 64, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 16, "mlp_width": 96, "context": 256}
KINDS = {
    "qwen3": {},
    "llama": {"qk_norm": False, "tied": False},
    "llama3": {"qk_norm": False, "rope_factor": 8.0, "rope_low": 1.0, "rope_high": 4.0, "rope_original": 8192},
    "qwen2": {"qk_norm": False, "qkv_bias": True},
    "gpt2": {
        "qk_norm": False, "qkv_bias": True, "bias": True, "mlp": "gelu", "norm": "layer", "positions": "learned",
        "kv_heads": 4,
    },
}  # fmt: skip
MIXED = "The capital of France is Paris.\n\n  Two  spaces\t 法國的首都是巴黎。 naïve 🙂👨‍👩‍👧 1234567 don't"


def llama_cpp(path):
    pytest.importorskip("llama_cpp", reason="install llama-cpp-python to compare with llama.cpp")
    from llama_cpp import Llama

    return Llama(str(path), n_ctx=256, logits_all=True, verbose=False, n_threads=2)


def random_model(kind, tokenizer):
    torch.manual_seed(1)
    model = GPT(ModelConfig(vocab_size=tokenizer.vocab_size, **{**SHAPE, **KINDS[kind]}))
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn(p.shape) * 0.2 + (1.0 if name.endswith("norm.weight") else 0.0))
    return model.eval()


def save_run(model, tokenizer, path):
    with Run(path).build("base", kind="base", config={}) as build:
        save_state(model.config, model.state_dict(), build.path)
        tokenizer.save(build.path)


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_is_the_identity(kind, tmp_path, tokenizer):
    model = random_model(kind, tokenizer)
    save_run(model, tokenizer, tmp_path / "run")
    assert main(["export", str(tmp_path / "run"), "--to", "gguf", "--out", str(tmp_path / "m.gguf")]) == 0
    assert main(["import", str(tmp_path / "m.gguf"), "--run", str(tmp_path / "back")]) == 0
    back = load_state(tmp_path / "back" / "base")
    state = model.state_dict()
    assert state.keys() == back.keys() and all(torch.equal(state[k], back[k]) for k in state)
    config, _ = read_gguf(GGUF(tmp_path / "m.gguf"))
    assert config.rope_factor == model.config.rope_factor and config.tied == model.config.tied
    again = from_gguf(GGUF(tmp_path / "m.gguf").meta)
    assert not again.imported and again.encode(MIXED) == tokenizer.encode(MIXED)


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_runs_it_with_equal_logits_and_text(kind, tmp_path, tokenizer):
    model = random_model(kind, tokenizer)
    save_run(model, tokenizer, tmp_path / "run")
    assert main(["export", str(tmp_path / "run"), "--to", "gguf", "--out", str(tmp_path / "m.gguf")]) == 0
    theirs = llama_cpp(tmp_path / "m.gguf")
    ids = tokenizer.encode(MIXED)
    assert theirs.tokenize(MIXED.encode(), add_bos=False, special=False) == ids
    theirs.eval(ids)
    expected = torch.tensor(theirs.scores[: len(ids)])
    with torch.no_grad():
        ours = model.logits(model(torch.tensor([ids]), causal_mask(len(ids))))[0]
    # llama.cpp keeps its past in half precision
    torch.testing.assert_close(ours, expected, atol=0.02 * float(ours.abs().max()), rtol=0)
    prompt, count = ids[:8], 60
    greedy = []
    for token in theirs.generate(prompt, temp=0.0, top_k=1, reset=True):
        greedy.append(token)
        if len(greedy) == count:
            break
    answer = Engine(model, tokenizer).generate([prompt], Sampling(temperature=0, max_tokens=count, ignore_end=True))
    same = next((n for n, (a, b) in enumerate(zip(greedy, answer[0].answer, strict=True)) if a != b), count)
    if same < count:  # only a near tie may part them
        with torch.no_grad():
            tokens = torch.tensor([prompt + greedy[:same]])
            top = model.logits(model(tokens, causal_mask(tokens.shape[1])))[0, -1].topk(2).values
        assert float(top[0] - top[1]) < 0.02 * float(top.abs().max())


@pytest.mark.parametrize(("dtype", "share"), [("fp16", 1e-3), ("bf16", 1e-2), ("q8_0", 1e-2), ("q4_0", 0.15)])
def test_smaller_numbers(dtype, share, tmp_path, tokenizer):
    model = random_model("qwen3", tokenizer)
    path = tmp_path / "m.gguf"
    write_gguf(path, model.config, model.state_dict(), dtype, to_gguf(tokenizer, tokenizer.vocab_size), "x")
    _, state = read_gguf(GGUF(path))
    for name, expected in model.state_dict().items():
        worst = float((state[name] - expected).abs().max() / expected.abs().max())
        assert worst <= (0 if expected.ndim == 1 else share), name


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q8_0", "Q4_K", "Q6_K"])
def test_quantised_blocks_are_read(kind, tmp_path):
    """A matrix of blocks whose values are known from llama.cpp's definition of the type."""
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.constants import GGML_QUANT_SIZES

    qtype = GGMLQuantizationType[kind]
    _, size = GGML_QUANT_SIZES[qtype]
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (4, size), dtype=np.uint8)
    halves = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q8_0": [0], "Q4_K": [0, 2], "Q6_K": [size - 2]}[kind]
    for at in halves:  # the scales: 0.5, and an offset of 0.5
        blocks[:, at : at + 2] = np.frombuffer(np.float16(0.5).tobytes(), np.uint8)
    path = tmp_path / "q.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_tensor("t", blocks, raw_dtype=qtype)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    found = GGUF(path).tensors()["t"]
    raw = blocks.astype(np.int64)
    if kind == "Q4_0":
        expected = 0.5 * (np.concatenate([raw[:, 2:] & 15, raw[:, 2:] >> 4], 1) - 8)
    elif kind == "Q4_1":
        expected = 0.5 * np.concatenate([raw[:, 4:] & 15, raw[:, 4:] >> 4], 1) + 0.5
    elif kind == "Q8_0":
        expected = 0.5 * blocks[:, 2:].view(np.int8).astype(np.int64)
    elif kind == "Q5_0":
        high = raw[:, 2] | raw[:, 3] << 8 | raw[:, 4] << 16 | raw[:, 5] << 24
        bits = (high[:, None] >> np.arange(32)) & 1
        expected = 0.5 * ((np.concatenate([raw[:, 6:] & 15, raw[:, 6:] >> 4], 1) | bits << 4) - 16)
    elif kind == "Q4_K":
        expected = np.stack([q4_k(b) for b in raw])
    else:
        expected = np.stack([q6_k(b) for b in raw])
    assert np.allclose(found.numpy(), expected)


def q4_k(block):
    """256 weights of 4 bits: eight groups of 32 with 6-bit scales and offsets (ggml's get_scale_min_k4)."""
    import numpy as np

    s, q = block[4:16], block[16:]
    out = np.zeros(256)
    for j in range(8):
        scale = s[j] & 63 if j < 4 else (s[j + 4] & 15) | (s[j - 4] >> 6) << 4
        offset = s[j + 4] & 63 if j < 4 else (s[j + 4] >> 4) | (s[j] >> 6) << 4
        part = q[32 * (j // 2) : 32 * (j // 2) + 32]
        out[32 * j : 32 * j + 32] = 0.5 * scale * (part >> 4 if j % 2 else part & 15) - 0.5 * offset
    return out


def q6_k(block):
    """256 weights of 6 bits: sixteen groups of 16 with 8-bit scales."""
    import numpy as np

    low, high, scales = block[:128], block[128:192], block[192:208].astype(np.uint8).view(np.int8)
    out = np.zeros(256)
    for i in range(256):
        half, r = divmod(i, 128)
        quarter, n = divmod(r, 32)
        byte = low[64 * half + n + 32 * (quarter % 2)]
        nibble = byte >> 4 if quarter >= 2 else byte & 15
        bits = (high[32 * half + n] >> (2 * quarter)) & 3
        out[i] = 0.5 * int(scales[i // 16]) * (int(nibble | bits << 4) - 32)
    return out


def test_every_split_is_found_again(tokenizer):
    from tokenizers import Tokenizer as RustTokenizer

    for name in ("gpt-2", "smollm", *PATTERNS):
        rust = RustTokenizer(tokenizer.rust.model)
        rust.pre_tokenizer = pre_tokenizer(name)
        assert split_of(rust) == name
    with pytest.raises(UserError, match="mystery"):
        pre_tokenizer("mystery")
