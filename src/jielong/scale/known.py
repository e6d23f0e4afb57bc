"""Published models and GPUs, with their figures and where these stand."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from jielong.config import ModelConfig
from jielong.errors import UserError

GIGA, TERA = 1e9, 1e12


@dataclass(frozen=True)
class Published:
    """A model, and what its authors say of it; 0 where they say nothing."""

    shape: ModelConfig
    source: str
    parameters: float = 0.0
    tokens: float = 0.0
    batch_tokens: float = 0.0
    flops: float = 0.0
    """Of the whole training."""


def gpt2(layers: int, width: int, heads: int, context: int = 1024, vocabulary: int = 50257) -> ModelConfig:
    """GPT, GPT-2 and GPT-3: LayerNorm, learned positions, GELU, biases, and a feed-forward network four times as wide."""
    return ModelConfig(
        vocab_size=vocabulary, context=context, layers=layers, width=width, heads=heads, kv_heads=heads,
        head_dim=width // heads, mlp_width=4 * width, mlp="gelu", norm="layer", positions="learned", qkv_bias=True,
        bias=True, qk_norm=False, norm_eps=1e-5,
    )  # fmt: skip


def qwen3(layers: int, width: int, heads: int, mlp_width: int, tied: bool) -> ModelConfig:
    return ModelConfig(
        vocab_size=151_936, context=32_768, layers=layers, width=width, heads=heads, kv_heads=8, head_dim=128,
        mlp_width=mlp_width, tied=tied, rope_theta=1e6,
    )  # fmt: skip


GPT1 = "Radford et al. 2018; 117M in Radford et al. 2019, table 2. Its norms follow the sums, ours precede them: 1,536 weights more"
GPT2 = (
    "Radford et al. 2019, table 2 (which says 117M, 345M, 762M and 1542M); the counts are those of the released weights"
)
GPT3 = "Brown et al. 2020, tables 2.1 and D.1"
LLAMA3 = "Dubey et al. 2024; the count is that of the released weights"
QWEN3 = "Yang et al. 2025; the counts are those of the released weights"
SMOLLM2 = "Ben Allal et al. 2025; the count is that of the released weights"


def gpt3(
    layers: int, width: int, heads: int, millions: float, batch_millions: float, flops: float
) -> Published:  # every model of the ladder read 300 billion tokens
    return Published(gpt2(layers, width, heads, 2048), GPT3, millions * 1e6, 300e9, batch_millions * 1e6, flops)


LLAMA = ModelConfig(
    vocab_size=128_256, context=8192, layers=32, width=4096, heads=32, kv_heads=8, head_dim=128, mlp_width=14_336,
    qk_norm=False, tied=False, rope_theta=500_000.0, norm_eps=1e-5,
)  # fmt: skip
SMOL = ModelConfig(
    vocab_size=49_152, context=8192, layers=30, width=576, heads=9, kv_heads=3, head_dim=64, mlp_width=1536,
    qk_norm=False, rope_theta=100_000.0, norm_eps=1e-5,
)  # fmt: skip
MODELS: dict[str, Published] = {
    "gpt1-117m": Published(gpt2(12, 768, 12, 512, 40_478), GPT1, 117e6),
    "gpt2-124m": Published(gpt2(12, 768, 12), GPT2, 124_439_808),
    "gpt2-355m": Published(gpt2(24, 1024, 16), GPT2, 354_823_168),
    "gpt2-774m": Published(gpt2(36, 1280, 20), GPT2, 774_030_080),
    "gpt2-1542m": Published(gpt2(48, 1600, 25), GPT2, 1_557_611_200),
    "gpt3-125m": gpt3(12, 768, 12, 125, 0.5, 2.25e20),
    "gpt3-350m": gpt3(24, 1024, 16, 356, 0.5, 6.41e20),
    "gpt3-760m": gpt3(24, 1536, 16, 760, 0.5, 1.37e21),
    # table 2.1 says 24 heads of 128, whose queries alone would be wider than the model; the count fits 16
    "gpt3-1.3b": gpt3(24, 2048, 16, 1320, 1, 2.38e21),
    "gpt3-2.7b": gpt3(32, 2560, 32, 2650, 1, 4.77e21),
    "gpt3-6.7b": gpt3(32, 4096, 32, 6660, 2, 1.20e22),
    # table 2.1 says 5140 wide, which 40 heads do not divide; the count fits 5120
    "gpt3-13b": gpt3(40, 5120, 40, 12_850, 2, 2.31e22),
    "gpt3-175b": gpt3(96, 12_288, 96, 174_600, 3.2, 3.14e23),
    "llama3-8b": Published(LLAMA, LLAMA3, 8_030_261_248, 15e12),
    "qwen3-0.6b": Published(qwen3(28, 1024, 16, 3072, True), QWEN3, 596_049_920, 36e12),
    "qwen3-8b": Published(qwen3(36, 4096, 32, 12_288, False), QWEN3, 8_190_735_360, 36e12),
    "smollm2-135m": Published(SMOL, SMOLLM2, 134_515_008, 2e12),
}


@dataclass(frozen=True)
class GPU:
    """Figures of the maker's data sheet. Bandwidths are one way and per GPU."""

    flops: float
    """Dense products of bfloat16 matrices (float16 for the V100, which has no bfloat16)."""
    memory: float
    """Bytes."""
    link: float
    """Bytes per second to another GPU of the node."""
    network: float
    """Bytes per second to another node: one network card per GPU, as in the maker's own systems."""
    watts: float
    per_node: int = 8
    price: float = 0.0
    """Dollars per hour; 0 where we know no source."""


GPUS: dict[str, GPU] = {
    "v100-32g": GPU(125 * TERA, 32 * GIGA, 150 * GIGA, 12.5 * GIGA, 300),
    "a100-80g": GPU(312 * TERA, 80 * GIGA, 300 * GIGA, 25 * GIGA, 400),
    # nanochat's README (2026): a node of eight costs about $24 per hour
    "h100": GPU(989 * TERA, 80 * GIGA, 450 * GIGA, 50 * GIGA, 700, price=3.0),
    "h200": GPU(989 * TERA, 141 * GIGA, 450 * GIGA, 50 * GIGA, 700),
    "b200": GPU(2250 * TERA, 180 * GIGA, 900 * GIGA, 50 * GIGA, 1000),
    "rtx4090": GPU(165 * TERA, 24 * GIGA, 32 * GIGA, 1.25 * GIGA, 450),
}


def published(name: str) -> Published:
    """A known model, or that of a folder. Raises UserError for neither."""
    if name in MODELS:
        return MODELS[name]
    file = Path(name) / "model.json"
    if not file.is_file():
        raise UserError(
            f"There is no model {name!r}; known are {', '.join(MODELS)}, and any folder that has a model.json."
        )
    try:
        shape = replace(ModelConfig(), **json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{file} describes no model: {error}.") from error
    return Published(shape, str(file))


def gpu(name: str) -> GPU:
    """Raises UserError for an unknown one."""
    if name not in GPUS:
        raise UserError(f"There is no GPU {name!r} in the table; known are {', '.join(GPUS)}.")
    return GPUS[name]
