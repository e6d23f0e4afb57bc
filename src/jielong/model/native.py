"""The forward pass in one call of compiled code (native.cpp), for processors: several times faster than the operators of
PyTorch where few tokens are computed at once, since nothing is copied, started or read twice.

The code is compiled at first use, for this processor, by the C++ compiler that the machine has ($CXX, c++, g++, clang++),
and kept in the user's cache folder. Without a compiler, or with JIELONG_NATIVE=0, model.runtime.TorchRuntime does the same
more slowly.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from jielong.config import ModelConfig
from jielong.model.cache import KVCache
from jielong.model.gpt import rope_frequencies

SOURCE = Path(__file__).with_name("native.cpp")
THREADS = Path(__file__).with_name("team.h")
PANEL, LANES = 32, 16  # as in native.cpp

Pointer, Int, Long, Float = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_float


class CMatrix(ctypes.Structure):
    _fields_ = [("weight", Pointer), ("scale", Pointer), ("bias", Pointer), ("outputs", Long), ("inputs", Long)]


class CNorm(ctypes.Structure):
    _fields_ = [("gain", Pointer), ("bias", Pointer)]


class CLayer(ctypes.Structure):
    _fields_ = [(n, CNorm) for n in ("attention_norm", "mlp_norm")] + [
        *((n, CMatrix) for n in ("qkv", "o", "up", "down")),
        ("qk_gain", Pointer),
    ]


class CModel(ctypes.Structure):
    _fields_ = [
        *((n, Int) for n in ("layers", "width", "heads", "kv_heads", "head_dim", "mlp_width")),
        *((n, Int) for n in ("precision", "activation", "norm_kind")),
        ("eps", Float), ("layer", ctypes.POINTER(CLayer)), ("norm", CNorm), ("head", CMatrix),
        ("embedding", Pointer), ("places", Pointer),
    ]  # fmt: skip


class CBatch(ctypes.Structure):
    _fields_ = [
        ("count", Int), ("threads", Int), ("tokens", Pointer), ("rows", Pointer), ("positions", Pointer),
        ("keys", Pointer), ("values", Pointer), ("row_stride", Long), ("head_stride", Long),
        ("cos", Pointer), ("sin", Pointer),
    ]  # fmt: skip


@cache
def library() -> ctypes.CDLL | None:
    """The compiled code; None where there is no compiler, or JIELONG_NATIVE=0 turns it off."""
    if os.environ.get("JIELONG_NATIVE") == "0":
        return None
    for command in _compilers():
        built = build([*command, "-O3", _tuning()])
        if built is not None:
            return built
    return None


def hint() -> str:
    """What a user without the compiled code should know, "" with it."""
    if library() is not None or os.environ.get("JIELONG_NATIVE") == "0":
        return ""
    return (
        "No C++ compiler works here, so generation takes PyTorch's operators, which are several times slower. "
        "Install one (apt install g++, xcode-select --install) and start again."
    )


def _compilers() -> list[list[str]]:
    if named := shlex.split(os.environ.get("CXX", "")):
        return [named]
    return [[path] for name in ("c++", "g++", "clang++") if (path := shutil.which(name))]


def _tuning() -> str:
    return "-march=native" if platform.machine().lower() in ("x86_64", "amd64", "i686") else "-mcpu=native"


def build(command: list[str]) -> ctypes.CDLL | None:
    """Compile with this command and load; None when that fails. What was compiled before by the same command for this
    processor is taken from the cache."""
    command = [*command, "-std=c++17", "-fPIC", "-shared", "-pthread"]
    key = hashlib.sha256(
        "\0".join([*command, _processor(), torch.__version__]).encode() + SOURCE.read_bytes() + THREADS.read_bytes()
    )
    name = f"native-{key.hexdigest()[:16]}.so"
    user = os.getuid() if hasattr(os, "getuid") else "native"
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    for folder in (home / "jielong", Path(tempfile.gettempdir()) / f"jielong-{user}"):
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not _ours(folder):
                continue
            if not (folder / name).is_file():
                with tempfile.TemporaryDirectory(dir=folder) as work:
                    fresh = Path(work) / name
                    done = subprocess.run([*command, str(SOURCE), "-o", str(fresh)], capture_output=True, timeout=180)
                    if done.returncode:
                        return None
                    os.replace(fresh, folder / name)
            return ctypes.CDLL(str(folder / name))
        except (OSError, subprocess.SubprocessError):
            continue
    return None


def _ours(folder: Path) -> bool:
    """Nobody else can have put code there."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or not hasattr(os, "getuid"):
        return stat.S_ISDIR(found.st_mode)
    return found.st_uid == os.getuid() and not found.st_mode & 0o022


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model", "CPU part"))}))


def fits(c: ModelConfig) -> bool:
    """Can the compiled code run this shape?"""
    return c.head_dim % LANES == 0 and c.width % 2 == 0 and c.mlp_width % 2 == 0


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(N, K) → int8 (N, K) and float32 scales (N,): w ≈ scale · q, scale = max|w| / 127 of its row."""
    scale = (weight.abs().amax(1) / 127).clamp_min(1e-12)
    return (weight / scale.unsqueeze(1)).round().clamp(-127, 127).to(torch.int8), scale


class NativeRuntime:
    """tokens and a cache → hidden states → logits."""

    name = "native"

    def __init__(self, config: ModelConfig, state: dict[str, Tensor], precision: str, code: ctypes.CDLL):
        c = self.config = config
        self.precision = precision
        self.dtype = torch.float32 if precision == "fp32" else torch.bfloat16
        self._code = code
        self._kept: list[Tensor] = []  # what the structures point into
        self._cos, self._sin = torch.empty(0), torch.empty(0)
        with torch.no_grad():
            layers = [
                self._layer({k: state[k] for k in state if k.startswith(f"blocks.{n}.")}, n) for n in range(c.layers)
            ]
            self._layers = (CLayer * c.layers)(*layers)
            head = state["embedding.weight" if c.tied else "head.weight"]
            self._model = CModel(
                c.layers, c.width, c.heads, c.kv_heads, c.head_dim, c.mlp_width,
                ("fp32", "bf16", "int8").index(precision), ("swiglu", "relu2", "gelu").index(c.mlp),
                ("rms", "layer").index(c.norm), c.norm_eps, self._layers, self._norm(state, "norm"), self._matrix(head),
                self._keep(state["embedding.weight"].to(self.dtype)),
                self._keep(state["places.weight"].to(self.dtype)) if c.positions == "learned" else None,
            )  # fmt: skip

    def _keep(self, t: Tensor | None) -> int | None:
        """The address of a tensor, which lives as long as this object."""
        if t is None:
            return None
        self._kept.append(t := t.detach().clone().contiguous())
        return t.data_ptr()

    def _norm(self, state: dict[str, Tensor], name: str) -> CNorm:
        bias = state.get(f"{name}.bias")
        return CNorm(self._keep(state[f"{name}.weight"].float()), self._keep(None if bias is None else bias.float()))

    def _matrix(self, weight: Tensor, bias: Tensor | None = None) -> CMatrix:
        """Weights (N, K) in panels of 32 outputs; N is filled up with zeros."""
        n, k = weight.shape
        outputs = -(-n // PANEL) * PANEL
        fill = outputs - n
        weight = torch.nn.functional.pad(weight.float(), (0, 0, 0, fill))
        if bias is not None:
            bias = torch.nn.functional.pad(bias.float(), (0, fill))
        scale = None
        if self.precision == "int8":
            weight, scale = quantise(weight)
        elif self.precision == "bf16":
            weight = weight.bfloat16()
        pair = 1 if self.precision == "fp32" else 2
        weight = weight.view(outputs // PANEL, PANEL, k // pair, pair).transpose(1, 2)  # (panels, K/pair, 32, pair)
        return CMatrix(self._keep(weight), self._keep(scale), self._keep(bias), outputs, k)

    def _layer(self, state: dict[str, Tensor], n: int) -> CLayer:
        c, at = self.config, f"blocks.{n}."

        def matrix(*names: str) -> CMatrix:
            weights = [state[f"{at}{m}.weight"] for m in names]
            biases = [b for m in names if (b := state.get(f"{at}{m}.bias")) is not None]
            if names[0] == "mlp.gate":  # 16 gates, then their 16 values
                weights, biases = [_interleave(weights)], [_interleave(biases)] if biases else []
            return self._matrix(torch.cat(weights), torch.cat(biases) if biases else None)

        gain = None
        if c.qk_norm:  # (H + G, d)
            q, k = (state[f"{at}attention.{m}_norm.weight"] for m in "qk")
            gain = torch.cat([q.expand(c.heads, -1), k.expand(c.kv_heads, -1)]).float()
        return CLayer(
            self._norm(state, f"{at}attention_norm"), self._norm(state, f"{at}mlp_norm"),
            matrix("attention.q", "attention.k", "attention.v"), matrix("attention.o"),
            matrix("mlp.gate", "mlp.up") if c.mlp == "swiglu" else matrix("mlp.up"), matrix("mlp.down"),
            self._keep(gain),
        )  # fmt: skip

    def cache(self) -> KVCache:
        return KVCache(self.config, self.dtype)

    def forward(self, parts: Sequence[Sequence[int]], starts: Sequence[int], cache: KVCache, row: int = 0) -> Tensor:
        """See TorchRuntime.forward."""
        tokens: list[int] = []
        rows: list[int] = []
        positions: list[int] = []
        for b, (part, start) in enumerate(zip(parts, starts, strict=True)):
            tokens += part
            rows += [row + b] * len(part)
            positions += range(start, start + len(part))
        end = max(positions) + 1
        cache.reserve(row + len(parts), end)
        count = len(tokens)
        numbers = torch.tensor([tokens, rows, positions], dtype=torch.int32)  # (3, count)
        at, hidden = numbers.data_ptr(), torch.empty(count, self.config.width)
        cos, sin = self._rope(end)
        keys, values = cache.addresses()
        batch = CBatch(
            count, torch.get_num_threads(), at, at + 4 * count, at + 8 * count, keys, values,
            cache.keys[0].stride(0), cache.keys[0].stride(1), cos, sin,
        )  # fmt: skip
        self._code.jielong_forward(ctypes.byref(self._model), ctypes.byref(batch), Pointer(hidden.data_ptr()))
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """(N, D) → (N, V) float32"""
        hidden = hidden.contiguous()
        out = torch.empty(len(hidden), self._model.head.outputs)
        self._code.jielong_logits(
            ctypes.byref(self._model), Pointer(hidden.data_ptr()), Int(len(hidden)), Int(torch.get_num_threads()),
            Pointer(out.data_ptr()),
        )  # fmt: skip
        return out[:, : self.config.vocab_size]

    def likeliest(self, logits: Tensor) -> tuple[list[int], list[float]]:
        """See TorchRuntime.likeliest."""
        if logits.stride(1) != 1:
            logits = logits.contiguous()
        count, vocabulary = logits.shape
        best, total = torch.empty(count, dtype=torch.int64), torch.empty(count)
        self._code.jielong_greedy(
            Pointer(logits.data_ptr()), Int(count), Long(vocabulary), Long(logits.stride(0)),
            Int(torch.get_num_threads()), Pointer(best.data_ptr()), Pointer(total.data_ptr()),
        )  # fmt: skip
        return best.tolist(), total.tolist()

    def _rope(self, end: int) -> tuple[int | None, int | None]:
        """Addresses of the cosines and sines (S, d/2) of at least `end` positions."""
        if self.config.positions == "learned":
            return None, None
        if end > len(self._cos):
            angle = torch.arange(max(512, 2 * end)).float().unsqueeze(1) * rope_frequencies(self.config)
            self._cos, self._sin = angle.cos(), angle.sin()
        return self._cos.data_ptr(), self._sin.data_ptr()


def _interleave(halves: list[Tensor]) -> Tensor:
    """Two (N, …) → 16 rows of the first, 16 of the second, and so on; N is filled up with zeros."""
    fill = -len(halves[0]) % LANES
    full = [torch.cat([t, t.new_zeros(fill, *t.shape[1:])]).view(-1, LANES, *t.shape[1:]) for t in halves]
    return torch.stack(full, 1).flatten(0, 2)
