"""The compiled forward pass against the operators of PyTorch and the plain model."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import threading

import pytest
import torch

from jielong.config import ModelConfig
from jielong.generate.engine import Engine
from jielong.generate.sampling import Sampling
from jielong.model import native
from jielong.model.gpt import GPT, causal_mask
from jielong.model.native import NativeRuntime, build, fits, library, quantise
from jielong.model.runtime import TorchRuntime, make_runtime

pytestmark = pytest.mark.skipif(library() is None, reason="no compiler")

SHAPES = {
    "llama": {},
    "odd sizes": {"vocab_size": 331, "width": 50, "mlp_width": 78, "heads": 3, "kv_heads": 3, "head_dim": 16},
    "shared keys": {"heads": 6, "kv_heads": 2, "head_dim": 48},
    "home-grown": {"qk_norm": True, "mlp": "relu2", "tied": False},
    "gpt2": {"norm": "layer", "positions": "learned", "mlp": "gelu", "bias": True, "qkv_bias": True, "kv_heads": 4},
    "qwen": {"qkv_bias": True, "kv_heads": 1},
    "wide": {"width": 1100, "mlp_width": 1030, "layers": 1},  # sums of integers in several parts
}


def make(**shape) -> GPT:
    base = {"vocab_size": 320, "width": 64, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 16, "mlp_width": 96}
    model = GPT(ModelConfig(**base | {"context": 512} | shape))
    model.init_weights(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape) * 0.05)
    return model.eval()


def run(runtime, sequences: list[list[int]], cuts: list[int]) -> list[torch.Tensor]:
    """Logits (T, V) of each sequence, computed in ragged parts that end at the cuts (the same for all, where they reach)."""
    cache, found = runtime.cache(), [[] for _ in sequences]
    for start, end in zip([0, *cuts], [*cuts, 10**6], strict=True):
        parts = [s[start:end] for s in sequences]
        assert all(parts)
        logits = runtime.logits(runtime.forward(parts, [start] * len(parts), cache))
        for f, part in zip(found, logits.split([len(p) for p in parts]), strict=True):
            f.append(part)
    return [torch.cat(f) for f in found]


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_equal_the_plain_pass(shape):
    model = make(**SHAPES[shape])
    V = model.config.vocab_size
    sequences = [torch.randint(0, V, (n,)).tolist() for n in (130, 100, 73, 102, 41)]
    runtime = make_runtime(model.config, model.state_dict())
    assert isinstance(runtime, NativeRuntime)
    for sequence, logits in zip(sequences, run(runtime, sequences, [17, 18, 40]), strict=True):
        with torch.no_grad():
            expected = model.logits(model(torch.tensor([sequence]), causal_mask(len(sequence))))[0]
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize("shape", SHAPES)
def test_rounding_is_no_worse_than_pytorchs(shape, precision):
    model = make(**SHAPES[shape])
    sequences = [torch.randint(0, model.config.vocab_size, (n,)).tolist() for n in (130, 90, 41)]
    exact = torch.cat(run(TorchRuntime(model.config, model.state_dict()), sequences, [40]))
    error = {}
    for runtime in (
        make_runtime(model.config, model.state_dict(), precision),
        TorchRuntime(model.config, model.state_dict(), precision),
    ):
        error[runtime.name] = float((torch.cat(run(runtime, sequences, [40])) - exact).square().mean().sqrt())
    assert 0 < error["native"] < 1.1 * error["torch"], error


def test_integer_weights_are_computed_almost_exactly():
    """With the dequantised weights in a plain model, what is left is the rounding of inputs to 16 bits and of the cache."""
    model = make(width=1100, layers=1, tied=False)
    runtime = make_runtime(model.config, model.state_dict(), "int8")
    state = {k: v.clone() for k, v in model.state_dict().items()}
    for name, weight in state.items():
        if weight.ndim == 2 and "embedding" not in name:
            q, scale = quantise(weight)
            assert (
                q.dtype == torch.int8
                and float((q * scale.unsqueeze(1) - weight).abs().max()) <= float(scale.max()) / 2 + 1e-6
            )
            state[name] = q * scale.unsqueeze(1)
    state["embedding.weight"] = state["embedding.weight"].bfloat16().float()
    model.load_state_dict(state)
    ids = torch.randint(0, 320, (60,))
    with torch.no_grad():
        expected = model.logits(model(ids[None], causal_mask(60)))[0]
    found = run(runtime, [ids.tolist()], [])[0]
    assert float((found - expected).square().mean().sqrt()) < 3e-3 * float(expected.std())


def test_a_token_is_the_same_bits_alone_and_in_a_batch():
    model = make()
    for precision in ("fp32", "bf16", "int8"):
        runtime = make_runtime(model.config, model.state_dict(), precision)
        sequences = [torch.randint(0, 320, (n,)).tolist() for n in (30, 21, 25, 40, 33, 22, 27)]
        together = run(runtime, sequences, [20])
        for sequence, logits in zip(sequences, together, strict=True):
            assert torch.equal(run(runtime, [sequence], [7, 19])[0], logits)


def test_many_threads_may_call_at_once():
    """Engines in several Python threads, with teams of several sizes, larger ones than the machine too."""
    model = make()
    sequence = torch.randint(0, 320, (60,)).tolist()
    runtime = make_runtime(model.config, model.state_dict())
    expected = run(runtime, [sequence], [1, 2, 30])[0]
    wrong = []

    def work(size: int) -> None:
        torch.set_num_threads(size)
        for _ in range(30):
            wrong.extend([size] * (not torch.equal(run(runtime, [sequence], [1, 2, 30])[0], expected)))

    before = torch.get_num_threads()
    threads = [threading.Thread(target=work, args=(1 + n % 4,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    torch.set_num_threads(before)
    assert not any(t.is_alive() for t in threads) and not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_after_a_fork():
    """The child has none of its parent's threads and must not wait for them."""
    code = """
import os, sys, torch
sys.path.insert(0, "tests")
from model.test_native import make, make_runtime, run
torch.set_num_threads(2)
model = make()
runtime = make_runtime(model.config, model.state_dict())
before = run(runtime, [[1, 2, 3, 4]], [2])[0]
child = os.fork()
if not child:
    os._exit(0 if torch.equal(run(runtime, [[1, 2, 3, 4]], [2])[0], before) else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_the_likeliest_token():
    model = make(vocab_size=331)
    runtime = make_runtime(model.config, model.state_dict())
    logits = torch.randn(9, 331) * 30
    logits[3] = 1.0  # a tie: the first
    logits[4, 330] = 200.0
    logits[5, 1:] = float("-inf")
    best, total = runtime.likeliest(logits)
    assert best == logits.argmax(-1).tolist() and best[3] == 0 and best[4] == 330 and best[5] == 0
    torch.testing.assert_close(torch.tensor(total), logits.logsumexp(-1), atol=1e-4, rtol=1e-6)
    assert runtime.likeliest(logits[:, :7])[0] == logits[:, :7].argmax(-1).tolist()


@pytest.mark.skipif(not shutil.which("c++") or os.uname().machine != "x86_64", reason="x86-64 with a compiler")
@pytest.mark.parametrize("flags", [["-march=x86-64-v3"], ["-march=x86-64"]])
def test_processors_without_the_instructions(flags, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code = build(["c++", "-O2", *flags])
    assert code is not None
    model = make(width=1100, layers=1)
    sequences = [torch.randint(0, 320, (n,)).tolist() for n in (70, 41)]
    for precision, tolerance in (("fp32", 1e-4), ("bf16", 2e-2), ("int8", 2e-2)):
        here = torch.cat(run(make_runtime(model.config, model.state_dict(), precision), sequences, [40]))
        there = torch.cat(run(NativeRuntime(model.config, model.state_dict(), precision, code), sequences, [40]))
        torch.testing.assert_close(there, here, atol=tolerance * float(here.std()), rtol=0)


def test_without_a_compiler_it_goes_on_and_says_so(tmp_path):
    """In a process of its own, since what was compiled stays loaded."""
    script = (
        "from jielong.model import native, runtime\n"
        "from tests.model.test_native import make\n"
        "m = make()\n"
        "print(runtime.make_runtime(m.config, m.state_dict()).name, '|', native.hint())"
    )
    for change, expected in (
        ({"CXX": "/nowhere/c++"}, "torch | No C++ compiler"),
        ({"JIELONG_NATIVE": "0"}, "torch | \n"),
        ({"XDG_CACHE_HOME": "/proc/nowhere", "TMPDIR": str(tmp_path)}, "native | \n"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", script], env={**os.environ, **change}, capture_output=True, text=True
        )
        assert done.stdout.startswith(expected), (change, done.stdout, done.stderr)


def test_code_from_a_folder_that_others_can_write_is_not_run(tmp_path, monkeypatch):
    open_to_all = tmp_path / "jielong"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    link = tmp_path / "tmp" / f"jielong-{os.getuid()}"
    link.parent.mkdir()
    link.symlink_to(open_to_all)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native.tempfile, "gettempdir", lambda: str(link.parent))
    assert build(["c++", "-O1"]) is None and not list(open_to_all.iterdir())
    open_to_all.chmod(0o700)
    assert stat.S_IMODE(open_to_all.stat().st_mode) == 0o700 and build(["c++", "-O1"]) is not None


def test_shapes_that_it_cannot_run_take_pytorch():
    small = make(head_dim=8)
    assert not fits(small.config) and make_runtime(small.config, small.state_dict()).name == "torch"


def test_the_answer_is_the_same_with_both(tokenizer, monkeypatch):
    model = make(vocab_size=tokenizer.vocab_size)
    prompts = [tokenizer.encode(t) for t in ("The capital", "日本的人說", "People in")]
    settings = Sampling(temperature=0.8, seed=5, max_tokens=40, ignore_end=True)
    ours = [r.answer for r in Engine(model, tokenizer).generate(prompts, settings)]
    monkeypatch.setattr("jielong.model.runtime.library", lambda: None)
    assert ours == [r.answer for r in Engine(model, tokenizer).generate(prompts, settings)]
