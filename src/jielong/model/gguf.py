"""GGUF files, llama.cpp's form, in and out: architectures gpt2, llama, qwen2 and qwen3.

Reading, writing and (de)quantising of blocks is the `gguf` package's; here are the names, the order of Llama's rotary
pairs, and the shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jielong.config import ModelConfig
from jielong.errors import UserError
from jielong.model.gpt import rope_frequencies
from jielong.model.hf import FAMILIES, family_of

READABLE = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K", "Q5_0", "Q5_1", "Q5_K")
WRITABLE = {"fp32": "F32", "fp16": "F16", "bf16": "BF16", "q8_0": "Q8_0", "q4_0": "Q4_0"}
LLAMA3 = {"rope_low": 1.0, "rope_high": 4.0, "rope_original": 8192}  # of every published Llama 3.x


class GGUF:
    """An open file: `meta(key)` and `tensors`."""

    def __init__(self, path: Path):
        from gguf import GGUFReader

        try:
            self.reader = GGUFReader(path)
        except Exception as error:
            raise UserError(f"{path} is no readable GGUF file ({error}).") from error
        self.path = path
        self.arch = self.meta("general.architecture")
        if self.arch not in FAMILIES:
            raise UserError(f"{path} has the architecture {self.arch!r}; jielong imports {', '.join(FAMILIES)}.")

    def meta(self, key: str, default: Any = None) -> Any:
        """A metadata value; `{arch}` stands for the architecture."""
        found = self.reader.fields.get(key.replace("{arch}", str(getattr(self, "arch", ""))))
        return default if found is None else found.contents()

    def need(self, key: str) -> Any:
        value = self.meta(key)
        if value is None:
            raise UserError(f"{self.path} lacks {key.replace('{arch}', str(self.arch))}.")
        return value

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor, dequantised to float32."""
        from gguf.quants import dequantize

        found = {}
        for t in self.reader.tensors:
            if t.tensor_type.name not in READABLE:
                raise UserError(
                    f"{self.path}: {t.name} has the type {t.tensor_type.name}; readable are {', '.join(READABLE)}."
                )
            values = np.asarray(dequantize(t.data, t.tensor_type), dtype=np.float32)
            found[t.name] = torch.from_numpy(values.reshape([int(n) for n in reversed(t.shape)]).copy())
        return found


def config_of(file: GGUF, tensors: dict[str, Tensor]) -> ModelConfig:
    """The shape of the model in a GGUF file."""
    width, heads = file.need("{arch}.embedding_length"), file.need("{arch}.attention.head_count")
    common: dict[str, Any] = {
        "vocab_size": tensors["token_embd.weight"].shape[0],
        "context": file.need("{arch}.context_length"),
        "layers": file.need("{arch}.block_count"),
        "width": width,
        "heads": heads,
        "mlp_width": file.need("{arch}.feed_forward_length"),
        "tied": "output.weight" not in tensors or torch.equal(tensors["output.weight"], tensors["token_embd.weight"]),
    }
    if file.arch == "gpt2":
        return ModelConfig(
            **common, kv_heads=heads, head_dim=width // heads, mlp="gelu", norm="layer", positions="learned",
            qkv_bias=True, bias=True, qk_norm=False, norm_eps=file.need("{arch}.attention.layer_norm_epsilon"),
        )  # fmt: skip
    kind = file.meta("{arch}.rope.scaling.type", "none")
    if kind not in ("none", ""):
        raise UserError(f"{file.path} has rope scaling {kind!r}; only Llama 3's is supported.")
    config = ModelConfig(
        **common,
        kv_heads=file.meta("{arch}.attention.head_count_kv", heads),
        head_dim=file.meta("{arch}.attention.key_length", width // heads),
        qkv_bias="blk.0.attn_q.bias" in tensors,
        bias="blk.0.attn_output.bias" in tensors,
        qk_norm="blk.0.attn_q_norm.weight" in tensors,
        norm_eps=file.need("{arch}.attention.layer_norm_rms_epsilon"),
        rope_theta=file.meta("{arch}.rope.freq_base", 10_000.0),
    )
    return _with_scaling(config, tensors.pop("rope_freqs.weight", None))


def _with_scaling(c: ModelConfig, factors: Tensor | None) -> ModelConfig:
    """Llama 3's rope scaling stands in GGUF as one divisor per frequency, from which the factor is read back."""
    from dataclasses import replace

    if factors is None or bool((factors == 1).all()):
        return c
    scaled = replace(c, rope_factor=float(factors.max()), **LLAMA3)
    if not torch.allclose(rope_frequencies(c) / rope_frequencies(scaled), factors, rtol=1e-4):
        raise UserError("The file's rope_freqs are not those of Llama 3's rope scaling.")
    return scaled


def _names(c: ModelConfig) -> Iterator[tuple[str, str]]:
    """(our name, theirs) of every tensor but GPT-2's joined q, k, v."""
    yield "embedding.weight", "token_embd.weight"
    if not c.tied:
        yield "head.weight", "output.weight"
    gpt2 = c.norm == "layer"
    kinds = ("weight", "bias") if gpt2 else ("weight",)
    if gpt2:
        yield "places.weight", "position_embd.weight"
    for kind in kinds:
        yield f"norm.{kind}", f"output_norm.{kind}"
    for n in range(c.layers):
        for kind in kinds:
            yield f"blocks.{n}.attention_norm.{kind}", f"blk.{n}.attn_norm.{kind}"
            yield f"blocks.{n}.mlp_norm.{kind}", f"blk.{n}.ffn_norm.{kind}"
        for kind in ("weight", "bias") if c.bias else ("weight",):
            yield f"blocks.{n}.attention.o.{kind}", f"blk.{n}.attn_output.{kind}"
            for part in ("up", "down") if gpt2 else ("gate", "up", "down"):
                yield f"blocks.{n}.mlp.{part}.{kind}", f"blk.{n}.ffn_{part}.{kind}"
        if gpt2:
            continue
        for part in "qkv":
            for kind in ("weight", "bias") if c.qkv_bias else ("weight",):
                yield f"blocks.{n}.attention.{part}.{kind}", f"blk.{n}.attn_{part}.{kind}"
        if c.qk_norm:
            for part in "qk":
                yield f"blocks.{n}.attention.{part}_norm.weight", f"blk.{n}.attn_{part}_norm.weight"


def _is_rotary(name: str) -> bool:
    return ".attention.q." in name or ".attention.k." in name


def _halves_to_pairs(t: Tensor, heads: int) -> Tensor:
    """Rows of each head from [first half, second half] to neighbouring pairs, as llama.cpp turns Llama's."""
    return t.view(heads, 2, -1, *t.shape[1:]).transpose(1, 2).reshape(t.shape)


def _pairs_to_halves(t: Tensor, heads: int) -> Tensor:
    return t.view(heads, -1, 2, *t.shape[1:]).transpose(1, 2).reshape(t.shape)


def read_gguf(file: GGUF) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Shape and state dict, float32. Raises UserError for unknown architectures, types and tensors."""
    theirs = file.tensors()
    if "token_embd.weight" not in theirs:
        raise UserError(f"{file.path} has no token_embd.weight: it holds no language model.")
    c = config_of(file, theirs)
    state: dict[str, Tensor] = {}
    if c.tied:
        theirs.pop("output.weight", None)
    try:
        for ours, name in _names(c):
            t = theirs.pop(name)
            if file.arch == "llama" and _is_rotary(ours):
                t = _pairs_to_halves(t, c.heads if ".q." in ours else c.kv_heads)
            state[ours] = t
        if c.norm == "layer":
            for n in range(c.layers):
                for kind in ("weight", "bias"):
                    for name, part in zip("qkv", theirs.pop(f"blk.{n}.attn_qkv.{kind}").chunk(3), strict=True):
                        state[f"blocks.{n}.attention.{name}.{kind}"] = part.contiguous()
    except KeyError as error:
        raise UserError(f"{file.path} lacks the tensor {error.args[0]}.") from error
    if theirs:
        raise UserError(f"{file.path} has a tensor that this architecture does not: {min(theirs)}.")
    return c, state


def write_gguf(
    path: Path, c: ModelConfig, state: dict[str, Tensor], dtype: str, vocabulary: dict[str, Any], name: str
) -> None:
    """Write a file that llama.cpp runs. `vocabulary` is tokens.gguf_vocabulary.to_gguf's; matrices are stored as
    `dtype` (rows that do not divide into blocks of Q8_0 or Q4_0: as F16), vectors as float32."""
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import quantize

    arch = family_of(c)
    writer = GGUFWriter(path, arch)
    writer.add_name(name)
    writer.add_context_length(c.context)
    writer.add_embedding_length(c.width)
    writer.add_block_count(c.layers)
    writer.add_feed_forward_length(c.mlp_width)
    writer.add_head_count(c.heads)
    writer.add_head_count_kv(c.kv_heads)
    writer.add_vocab_size(c.vocab_size)
    if arch == "gpt2":
        writer.add_layer_norm_eps(c.norm_eps)
    else:
        writer.add_layer_norm_rms_eps(c.norm_eps)
        writer.add_rope_freq_base(c.rope_theta)
        writer.add_rope_dimension_count(c.head_dim)
        writer.add_key_length(c.head_dim)
        writer.add_value_length(c.head_dim)
    for key, value in vocabulary.items():
        _add(writer, key, value)

    def put(target: str, t: Tensor) -> None:
        kind = "F32" if t.ndim == 1 else WRITABLE[dtype]
        if kind in ("Q8_0", "Q4_0") and t.shape[-1] % 32:
            kind = "F16"
        values = t.float().contiguous().cpu().numpy()
        qtype = GGMLQuantizationType[kind]
        if kind in ("F32", "F16"):
            writer.add_tensor(target, values.astype(np.float32 if kind == "F32" else np.float16))
        else:
            writer.add_tensor(target, quantize(values, qtype), raw_dtype=qtype)

    for ours, target in _names(c):
        t = state[ours]
        if arch == "llama" and _is_rotary(ours):
            t = _halves_to_pairs(t, c.heads if ".q." in ours else c.kv_heads)
        put(target, t)
    if arch == "gpt2":
        for n in range(c.layers):
            for kind in ("weight", "bias"):
                put(f"blk.{n}.attn_qkv.{kind}", torch.cat([state[f"blocks.{n}.attention.{p}.{kind}"] for p in "qkv"]))
    if c.rope_factor != 1:
        from dataclasses import replace

        put("rope_freqs.weight", rope_frequencies(replace(c, rope_factor=1.0)) / rope_frequencies(c))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
