"""Hugging Face checkpoints in and out: GPT-2, Llama (Llama 3's rope scaling too), Qwen2 and Qwen3, as safetensors.

Proof: logits and greedy text equal those of transformers for each family (tests/model/test_hf.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jielong.config import ModelConfig
from jielong.errors import UserError

FAMILIES = ("gpt2", "llama", "qwen2", "qwen3")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# buffers that old checkpoints carry; they can be computed
IGNORED = (".attn.bias", ".attn.masked_bias", "rotary_emb.inv_freq")


def config_from_hf(raw: dict[str, Any]) -> ModelConfig:
    """The shape that a config.json describes. Raises UserError for families and options that GPT does not have."""
    family = raw.get("model_type")
    if family not in FAMILIES:
        raise UserError(f"The model is of the family {family!r}; jielong imports {', '.join(FAMILIES)}.")
    try:
        return _gpt2(raw) if family == "gpt2" else _llama_like(raw, family)
    except KeyError as error:
        raise UserError(f"config.json lacks {error.args[0]!r}.") from error


def _refuse(raw: dict[str, Any], **supported: Any) -> None:
    for key, value in supported.items():
        if raw.get(key, value) not in (value, None):
            raise UserError(f"config.json has {key} = {raw[key]!r}; only {value!r} is supported.")


def _gpt2(raw: dict[str, Any]) -> ModelConfig:
    if raw.get("activation_function", "gelu_new") not in ("gelu_new", "gelu_pytorch_tanh"):
        raise UserError(
            f"config.json has activation_function = {raw['activation_function']!r}; only gelu_new is supported."
        )
    _refuse(raw, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    width, heads = raw["n_embd"], raw["n_head"]
    return ModelConfig(
        vocab_size=raw["vocab_size"], context=raw.get("n_positions", 1024), layers=raw["n_layer"], width=width, heads=heads,
        kv_heads=heads, head_dim=width // heads, mlp_width=raw.get("n_inner") or 4 * width, mlp="gelu", norm="layer",
        positions="learned", qkv_bias=True, bias=True, qk_norm=False, tied=raw.get("tie_word_embeddings", True),
        norm_eps=raw.get("layer_norm_epsilon", 1e-5),
    )  # fmt: skip


def _llama_like(raw: dict[str, Any], family: str) -> ModelConfig:
    _refuse(raw, hidden_act="silu", use_sliding_window=False, partial_rotary_factor=1.0)
    if family != "llama":
        _refuse(raw, attention_bias=family == "qwen2")
    bias = family == "llama" and bool(raw.get("attention_bias"))
    if bias != bool(raw.get("mlp_bias")):
        raise UserError(
            "config.json has attention_bias without mlp_bias (or the other way); both or none is supported."
        )
    width, heads = raw["hidden_size"], raw["num_attention_heads"]
    rope = {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ("default", "llama3"):
        raise UserError(f"config.json has rope type {kind!r}; default and llama3 are supported.")
    scaling: dict[str, Any] = {}
    if kind == "llama3":
        scaling = {
            "rope_factor": float(rope["factor"]),
            "rope_low": float(rope["low_freq_factor"]),
            "rope_high": float(rope["high_freq_factor"]),
            "rope_original": int(rope["original_max_position_embeddings"]),
        }
    return ModelConfig(
        vocab_size=raw["vocab_size"], context=raw.get("max_position_embeddings", 2048), layers=raw["num_hidden_layers"],
        width=width, heads=heads, kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=raw.get("head_dim") or width // heads, mlp_width=raw["intermediate_size"],
        qkv_bias=bias or family == "qwen2", bias=bias, qk_norm=family == "qwen3",
        tied=bool(raw.get("tie_word_embeddings", False)), norm_eps=raw.get("rms_norm_eps", 1e-6),
        rope_theta=float(rope.get("rope_theta") or raw.get("rope_theta") or 10_000.0), **scaling,
    )  # fmt: skip


def family_of(c: ModelConfig) -> str:
    """The family whose code in other tools computes this shape. Raises UserError where there is none."""
    if c.norm == "layer" and c.positions == "learned" and c.mlp == "gelu" and c.bias and c.qkv_bias and not c.qk_norm:
        if c.kv_heads == c.heads and c.heads * c.head_dim == c.width:
            return "gpt2"
    elif c.norm == "rms" and c.positions == "rope" and c.mlp == "swiglu":
        if c.qk_norm and not (c.qkv_bias or c.bias):
            return "qwen3"
        if not c.qk_norm and c.qkv_bias == c.bias:
            return "llama"
        if not c.qk_norm and not c.bias:
            return "qwen2"
    raise UserError(
        "No other tool knows a model of this shape "
        f"(mlp={c.mlp}, norm={c.norm}, positions={c.positions}, qk_norm={c.qk_norm}); train with mlp=swiglu to export."
    )


def config_to_hf(c: ModelConfig, dtype: str = "fp32") -> dict[str, Any]:
    """config.json for transformers and vLLM, without the ids of special tokens."""
    family = family_of(c)
    common = {
        "model_type": family,
        "vocab_size": c.vocab_size,
        "tie_word_embeddings": c.tied,
        "torch_dtype": str(DTYPES[dtype]).removeprefix("torch."),
        "use_cache": True,
    }
    if family == "gpt2":
        return {
            **common, "architectures": ["GPT2LMHeadModel"], "n_embd": c.width, "n_layer": c.layers, "n_head": c.heads,
            "n_inner": c.mlp_width, "n_positions": c.context, "n_ctx": c.context, "layer_norm_epsilon": c.norm_eps,
            "activation_function": "gelu_new", "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
        }  # fmt: skip
    scaling = None
    if c.rope_factor != 1:
        scaling = {
            "rope_type": "llama3", "factor": c.rope_factor, "low_freq_factor": c.rope_low,
            "high_freq_factor": c.rope_high, "original_max_position_embeddings": c.rope_original,
        }  # fmt: skip
    shape = {
        "hidden_size": c.width, "intermediate_size": c.mlp_width, "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads, "num_key_value_heads": c.kv_heads, "head_dim": c.head_dim, "hidden_act": "silu",
        "max_position_embeddings": c.context, "rms_norm_eps": c.norm_eps, "rope_theta": c.rope_theta,
        "rope_scaling": scaling, "attention_dropout": 0.0,
    }  # fmt: skip
    name = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}[family]
    extra = {"use_sliding_window": False} if family != "llama" else {"mlp_bias": c.bias}
    if family != "qwen2":
        extra["attention_bias"] = c.bias
    return {**common, "architectures": [name], **shape, **extra}


def _parts(c: ModelConfig) -> list[tuple[str, str, bool]]:
    """(our name within a block, theirs, has a bias) for the Llama family."""
    parts = [
        ("attention_norm", "input_layernorm", False),
        ("attention.q", "self_attn.q_proj", c.qkv_bias),
        ("attention.k", "self_attn.k_proj", c.qkv_bias),
        ("attention.v", "self_attn.v_proj", c.qkv_bias),
        ("attention.o", "self_attn.o_proj", c.bias),
        ("mlp_norm", "post_attention_layernorm", False),
        ("mlp.gate", "mlp.gate_proj", c.bias),
        ("mlp.up", "mlp.up_proj", c.bias),
        ("mlp.down", "mlp.down_proj", c.bias),
    ]
    if c.qk_norm:
        parts += [("attention.q_norm", "self_attn.q_norm", False), ("attention.k_norm", "self_attn.k_norm", False)]
    return parts


def _llama_names(c: ModelConfig) -> Iterator[tuple[str, str]]:
    yield "embedding.weight", "model.embed_tokens.weight"
    yield "norm.weight", "model.norm.weight"
    if not c.tied:
        yield "head.weight", "lm_head.weight"
    for n in range(c.layers):
        for ours, theirs, bias in _parts(c):
            for kind in ("weight", "bias") if bias else ("weight",):
                yield f"blocks.{n}.{ours}.{kind}", f"model.layers.{n}.{theirs}.{kind}"


def _gpt2_names(c: ModelConfig) -> Iterator[tuple[str, str, bool]]:
    """(ours, theirs, is a Conv1D matrix: stored transposed); q, k and v stand in one matrix, see below."""
    yield "embedding.weight", "transformer.wte.weight", False
    yield "places.weight", "transformer.wpe.weight", False
    if not c.tied:
        yield "head.weight", "lm_head.weight", False
    pairs = [("attention_norm", "ln_1", False), ("attention.o", "attn.c_proj", True), ("mlp_norm", "ln_2", False)]
    pairs += [("mlp.up", "mlp.c_fc", True), ("mlp.down", "mlp.c_proj", True)]
    for kind in ("weight", "bias"):
        yield f"norm.{kind}", f"transformer.ln_f.{kind}", False
        for n in range(c.layers):
            for ours, theirs, matrix in pairs:
                yield f"blocks.{n}.{ours}.{kind}", f"transformer.h.{n}.{theirs}.{kind}", matrix and kind == "weight"


def state_from_hf(c: ModelConfig, theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict, in the dtypes of the checkpoint. Raises UserError that names a missing, surplus or wrongly shaped tensor."""
    left = {k: v for k, v in theirs.items() if not k.endswith(IGNORED)}
    if c.tied:
        left.pop("lm_head.weight", None)

    def take(name: str) -> Tensor:
        if name not in left:
            raise UserError(f"The checkpoint lacks the tensor {name}.")
        return left.pop(name)

    if c.positions == "learned":
        left = {k if k.startswith(("transformer.", "lm_head")) else f"transformer.{k}": v for k, v in left.items()}
        state = {ours: take(name).t().contiguous() if t else take(name) for ours, name, t in _gpt2_names(c)}
        for n in range(c.layers):
            for kind in ("weight", "bias"):
                joined = take(f"transformer.h.{n}.attn.c_attn.{kind}")  # (D, 3D) or (3D,)
                for part, name in zip(joined.chunk(3, dim=-1), "qkv", strict=True):
                    state[f"blocks.{n}.attention.{name}.{kind}"] = (part.t() if kind == "weight" else part).contiguous()
    else:
        state = {ours: take(name) for ours, name in _llama_names(c)}
    if left:
        raise UserError(f"The checkpoint has a tensor that this family does not: {min(left)}.")
    return state


def state_to_hf(c: ModelConfig, ours: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The state dict as transformers names it."""
    if family_of(c) != "gpt2":
        return {name: ours[key].to(dtype).contiguous() for key, name in _llama_names(c)}
    theirs = {name: (ours[key].t() if t else ours[key]).to(dtype).contiguous() for key, name, t in _gpt2_names(c)}
    for n in range(c.layers):
        weights = [ours[f"blocks.{n}.attention.{p}.weight"].t() for p in "qkv"]
        biases = [ours[f"blocks.{n}.attention.{p}.bias"] for p in "qkv"]
        theirs[f"transformer.h.{n}.attn.c_attn.weight"] = torch.cat(weights, -1).to(dtype).contiguous()
        theirs[f"transformer.h.{n}.attn.c_attn.bias"] = torch.cat(biases).to(dtype)
    return theirs


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no file. Raises UserError when it is none."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error}).") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no JSON object.")
    return found


def read_checkpoint(folder: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Shape and state dict of a folder in Hugging Face's form, sharded or not.

    Raises UserError when files are missing or damaged, or when there are only pickle files, which are never read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} has no config.json: it is no model in Hugging Face's form.")
    config = config_from_hf(read_json(folder / "config.json"))
    index = read_json(folder / "model.safetensors.index.json")
    files = sorted(set(index["weight_map"].values())) if "weight_map" in index else ["model.safetensors"]
    tensors: dict[str, Tensor] = {}
    for name in files:
        path = folder / name
        if Path(name).name != name or not path.is_file():
            if not index and (any(folder.glob("*.bin")) or any(folder.glob("*.pt"))):
                raise UserError(
                    f"{folder} holds its weights as pickle (.bin), which can run code and is never read; "
                    "save them as safetensors first (transformers: save_pretrained)."
                )
            raise UserError(f"{path} is missing; download the checkpoint again.")
        try:
            tensors |= load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"{path} is damaged ({error}); download it again.") from error
    return config, state_from_hf(config, tensors)
