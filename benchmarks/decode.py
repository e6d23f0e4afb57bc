"""Speed of generation, side by side on one machine in one run: jielong, transformers, llama.cpp.

    python benchmarks/decode.py --spark runs/spark --smollm2 runs/smollm2

Every figure is the median of `--repeats` runs in processes of their own (a library's threads must not disturb the next
one's), greedy, with a fixed number of tokens. It prints tokens per second, time to the first token and peak memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

PROMPT = "Once upon a time there was a small dragon who lived in the mountains of a far country and"


def child(spec: dict) -> dict:
    """One measurement, in this process."""
    import resource

    import torch

    torch.set_num_threads(spec["threads"])
    run = {"jielong": jielong, "transformers": transformers, "llama.cpp": llama_cpp, "read": bandwidth}[spec["tool"]]
    found = run(spec)
    found["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return found


def jielong(spec: dict) -> dict:
    from jielong.generate.engine import Engine
    from jielong.generate.sampling import Sampling

    engine = Engine.load(Path(spec["model"]), spec["threads"], precision=spec["precision"], prefix_bytes=0)
    ids = engine.tokenizer.encode(PROMPT)
    sampling = Sampling(temperature=0, max_tokens=spec["tokens"], ignore_end=True)
    engine.generate([ids], Sampling(temperature=0, max_tokens=4, ignore_end=True))
    if spec.get("mixed"):
        return mixed(engine, ids, spec)
    started = time.perf_counter()
    requests = [engine.submit(ids, sampling) for _ in range(spec["batch"])]
    engine.step()
    first = time.perf_counter() - started
    while any(r.finish is None for r in requests):
        engine.step()
    took = time.perf_counter() - started
    return {"tokens_per_second": spec["batch"] * spec["tokens"] / took, "first": first}


def mixed(engine, ids: list[int], spec: dict) -> dict:
    """32 requests of mixed length, together and one by one."""
    from jielong.generate.sampling import Sampling

    work = [(ids[: 4 + n % 12], 16 + 7 * (n % 13)) for n in range(32)]
    settings = [(p, Sampling(temperature=0, max_tokens=k, ignore_end=True)) for p, k in work]
    started = time.perf_counter()
    for prompt, sampling in settings:
        engine.generate([prompt], sampling)
    alone = time.perf_counter() - started
    firsts = []
    started = time.perf_counter()
    seen: set[int] = set()

    def sink(n):
        return lambda step: n in seen or (seen.add(n), firsts.append(time.perf_counter() - started))

    requests = [engine.submit(p, s, sink(n)) for n, (p, s) in enumerate(settings)]
    while any(r.finish is None for r in requests):
        engine.step()
    together = time.perf_counter() - started
    total = sum(k for _, k in work)
    p95 = sorted(firsts)[int(0.95 * len(firsts))]
    return {"tokens_per_second": total / together, "alone": total / alone, "gain": alone / together, "first": p95}


def transformers(spec: dict) -> dict:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    dtype = torch.bfloat16 if spec["precision"] == "bf16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(spec["hf"], dtype=dtype).eval()
    ids = AutoTokenizer.from_pretrained(spec["hf"])(PROMPT, return_tensors="pt", add_special_tokens=False)["input_ids"]
    ids = ids.expand(spec["batch"], -1)
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
    with torch.inference_mode():
        model.generate(ids, max_new_tokens=4, **options)
        started = time.perf_counter()
        model.generate(ids, max_new_tokens=1, **options)
        first = time.perf_counter() - started
        started = time.perf_counter()
        model.generate(ids, max_new_tokens=spec["tokens"], min_new_tokens=spec["tokens"], **options)
        took = time.perf_counter() - started
    return {"tokens_per_second": spec["batch"] * spec["tokens"] / took, "first": first}


def llama_cpp(spec: dict) -> dict:
    from llama_cpp import Llama

    model = Llama(spec["gguf"], n_ctx=512, n_threads=spec["threads"], n_threads_batch=spec["threads"], verbose=False)
    ids = model.tokenize(PROMPT.encode(), add_bos=False)

    def run(count: int) -> float:
        started = time.perf_counter()
        for n, _ in enumerate(model.generate(ids, temp=0.0, top_k=1, reset=True)):
            if n + 1 == count:
                break
        return time.perf_counter() - started

    run(4)
    model.reset()
    first = run(1)
    model.reset()
    return {"tokens_per_second": spec["tokens"] / run(spec["tokens"]), "first": first}


def bandwidth(spec: dict) -> dict:
    """Bytes per second of reading a large block of memory with every thread."""
    import torch

    block = torch.randn(128_000_000)
    block.sum()
    times = []
    for _ in range(8):
        started = time.perf_counter()
        block.sum()
        times.append(time.perf_counter() - started)
    return {"gb_per_second": block.numel() * 4 / min(times) / 1e9}


def measure(spec: dict, repeats: int) -> dict:
    """Medians over processes."""
    found = []
    for _ in range(repeats):
        command = [sys.executable, __file__, "--child", json.dumps(spec)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{spec} failed:\n{done.stderr[-2000:]}")
        found.append(json.loads(done.stdout.strip().splitlines()[-1]))
    return {key: statistics.median(f[key] for f in found) for key in found[0]}


def export(run: Path, to: str, dtype: str, out: Path) -> str:
    from jielong.config import ExportConfig
    from jielong.convert import run_export

    return str(run_export(ExportConfig(run=run, to=to, dtype=dtype, out=out, force=True)))  # pyright: ignore


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spark", type=Path)
    parser.add_argument("--smollm2", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("build/decode"))
    parser.add_argument("--child")
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(json.loads(args.child))))
        return
    base = {"threads": args.threads}
    read = measure({"tool": "read", **base}, 1)["gb_per_second"]
    print(f"reading memory: {read:.1f} GB/s")
    for name, run, tokens in (("spark", args.spark, 150), ("smollm2", args.smollm2, 100)):
        if run is None:
            continue
        artifact = next(run / a for a in ("sft", "base") if (run / a / "card.json").is_file())
        files = {"model": str(artifact), "hf": export(run, "hf", "fp32", args.work / f"{name}-hf")}
        rows = [("jielong", p, b) for b in (1, 16) for p in ("fp32", "bf16", "int8")]
        rows += [("transformers", p, b) for b in (1, 16) for p in ("fp32", "bf16")]
        if name == "smollm2":
            rows += [("llama.cpp", p, 1) for p in ("fp32", "bf16", "q8_0")]
        size = json.loads((artifact / "card.json").read_text())["metrics"]["parameters"]
        for tool, precision, batch in rows:
            spec = {"tool": tool, "precision": precision, "batch": batch, "tokens": tokens, **files, **base}
            if tool == "llama.cpp":
                spec["gguf"] = export(run, "gguf", precision, args.work / f"{name}-{precision}.gguf")
            found = measure(spec, args.repeats)
            share = ""
            if batch == 1:
                bytes_per_token = size * {"fp32": 4, "bf16": 2, "int8": 1, "q8_0": 34 / 32}[precision]
                share = f", {bytes_per_token * found['tokens_per_second'] / read / 1e9:.0%} of the memory's limit"
            print(
                f"{name:8} {tool:12} {precision:5} batch {batch:2}: {found['tokens_per_second']:8.1f} tok/s, "
                f"first token {found['first'] * 1000:6.1f} ms, peak {found['peak_gb']:.2f} GB{share}",
                flush=True,
            )
        spec = {"tool": "jielong", "precision": "bf16", "batch": 32, "tokens": tokens, "mixed": True, **files, **base}
        found = measure(spec, args.repeats)
        print(
            f"{name:8} 32 mixed requests: {found['alone']:.0f} tok/s one by one, {found['tokens_per_second']:.0f} together: "
            f"{found['gain']:.1f} ×, p95 first token {found['first'] * 1000:.0f} ms",
            flush=True,
        )


if __name__ == "__main__":
    main()
