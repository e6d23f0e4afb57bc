"""Speed of generation, side by side on one machine in one run: jielong, transformers, llama.cpp.

    python benchmarks/decode.py --spark runs/spark --smollm2 runs/smollm2

Every figure is the median of `--repeats` rounds; in a round everyone takes a turn, in a process of its own (a library's
threads must not disturb the next one's), greedy, with a fixed number of tokens. It prints tokens per second, time to
the first token and peak memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

TURNS = 3  # of the short measurements, in one process
PROMPT = "Once upon a time there was a small dragon who lived in the mountains of a far country and"


def child(spec: dict) -> dict:
    """One measurement, in this process."""
    import torch

    torch.set_num_threads(spec["threads"])
    tools = {
        "jielong": jielong,
        "transformers": transformers,
        "llama.cpp": llama_cpp,
        "read": bandwidth,
        "served": served,
    }
    found = tools[spec["tool"]](spec)
    return {"peak_gb": peak("self"), **found}  # a server's peak is its own


def peak(process: str) -> float:
    """The most memory that a process had at once, in GB. (getrusage would count its parent's before exec.)"""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1e6


def jielong(spec: dict) -> dict:
    from jielong.generate.engine import Engine
    from jielong.generate.sampling import Sampling

    engine = Engine.load(Path(spec["model"]), spec["threads"], precision=spec["precision"], prefix_bytes=0)
    ids = engine.tokenizer.encode(PROMPT)
    sampling = Sampling(temperature=0, max_tokens=spec["tokens"], ignore_end=True)
    engine.generate([ids], Sampling(temperature=0, max_tokens=4, ignore_end=True))
    if spec.get("mixed"):
        return mixed(engine, ids, spec)

    runs = [batch(engine, ids, sampling, spec["batch"]) for _ in range(TURNS)]
    took, first = (statistics.median(times) for times in zip(*runs, strict=True))
    return {"tokens_per_second": spec["batch"] * spec["tokens"] / took, "first": first}


def batch(engine, ids: list[int], sampling, count: int) -> tuple[float, float]:
    """Seconds that the same request takes `count` times at once, and until the first tokens."""
    started = time.perf_counter()
    requests = [engine.submit(ids, sampling) for _ in range(count)]
    engine.step()
    first = time.perf_counter() - started
    while any(r.finish is None for r in requests):
        engine.step()
    return time.perf_counter() - started, first


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


def served(spec: dict) -> dict:
    """The engine behind `jielong serve`: `batch` clients at once, each on a connection of its own; with `stream` one event
    per token. In turns with the engine alone, in this process, since the machine's speed changes from second to second."""
    import http.client
    import re
    import threading

    from jielong.generate.engine import Engine
    from jielong.generate.sampling import Sampling

    command = [sys.executable, "-u", "-m", "jielong.cli", "serve", "--no-open", "--threads", str(spec["threads"])]
    command += ["--precision", spec["precision"], "--run", str(Path(spec["model"]).parent)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout
    try:
        host, port = re.search(r"http://([\d.]+):(\d+)", server.stdout.readline()).groups()  # pyright: ignore
        firsts: list[float] = []

        def ask(tokens: int) -> None:
            body = {
                "prompt": PROMPT,
                "max_tokens": tokens,
                "temperature": 0,
                "ignore_eos": True,
                "stream": spec["stream"],
            }
            connection = http.client.HTTPConnection(host, int(port))
            started = time.perf_counter()
            connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            response.readline()
            firsts.append(time.perf_counter() - started)
            response.read()
            connection.close()

        def everyone(tokens: int) -> float:
            threads = [threading.Thread(target=ask, args=(tokens,)) for _ in range(spec["batch"])]
            started = time.perf_counter()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return time.perf_counter() - started

        engine = Engine.load(Path(spec["model"]), spec["threads"], precision=spec["precision"], prefix_bytes=0)
        ids = engine.tokenizer.encode(PROMPT)
        sampling = Sampling(temperature=0, max_tokens=spec["tokens"], ignore_end=True)
        batch(engine, ids, sampling, spec["batch"])
        everyone(spec["tokens"])
        firsts.clear()
        turns = [(everyone(spec["tokens"]), batch(engine, ids, sampling, spec["batch"])[0]) for _ in range(3 * TURNS)]
        speed = spec["batch"] * spec["tokens"] / statistics.median(took for took, _ in turns)
        more = statistics.median(took / alone - 1 for took, alone in turns)
        return {
            "tokens_per_second": speed,
            "first": statistics.median(firsts),
            "more": more,
            "peak_gb": peak(str(server.pid)),
        }
    finally:
        server.terminate()
        server.wait()


def measure(spec: dict) -> dict:
    """One measurement in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--child", json.dumps(spec)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{spec} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


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
    read = {"tool": "read", "threads": args.threads}
    specs = [read]
    for name, run, tokens in (("spark", args.spark, 200), ("smollm2", args.smollm2, 100)):
        if run is not None:
            specs += list_specs(name, run, tokens, args)
    found: list[list[dict]] = [[] for _ in specs]
    for n in range(args.repeats):
        for spec, results in zip(specs, found, strict=True):
            print(f"round {n + 1}: {spec.get('model', '')} {spec['tool']} {spec.get('precision', '')}", file=sys.stderr)
            results.append(measure(spec))
    medians = [{key: statistics.median(r[key] for r in results) for key in results[0]} for results in found]
    bandwidth = medians[0]["gb_per_second"]
    print(f"medians of {args.repeats}; reading memory: {bandwidth:.1f} GB/s")
    for spec, median in list(zip(specs, medians, strict=True))[1:]:
        print(line(spec, median, bandwidth))


def list_specs(name: str, run: Path, tokens: int, args: argparse.Namespace) -> list[dict]:
    """Everything that is measured of a model."""
    artifact = next(run / a for a in ("sft", "base") if (run / a / "card.json").is_file())
    size = json.loads((artifact / "card.json").read_text())["metrics"]["parameters"]
    base = {"name": name, "model": str(artifact), "threads": args.threads, "tokens": tokens, "size": size}
    base["hf"] = export(run, "hf", "fp32", args.work / f"{name}-hf")
    rows = [("jielong", p, b) for b in (1, 16) for p in ("fp32", "bf16", "int8")]
    rows += [("transformers", p, b) for b in (1, 16) for p in ("fp32", "bf16")]
    specs = [{**base, "tool": tool, "precision": precision, "batch": batch} for tool, precision, batch in rows]
    if name == "smollm2":
        for precision in ("fp32", "bf16", "q8_0"):
            gguf = export(run, "gguf", precision, args.work / f"{name}-{precision}.gguf")
            specs.append({**base, "tool": "llama.cpp", "precision": precision, "batch": 1, "gguf": gguf})
    for precision in ("fp32", "bf16"):
        specs.append({**base, "tool": "jielong", "precision": precision, "batch": 32, "mixed": True})
    for batch in (1, 16):
        for stream in (False, True):
            specs.append({**base, "tool": "served", "precision": "bf16", "batch": batch, "stream": stream})
    return specs


def line(spec: dict, found: dict, bandwidth: float) -> str:
    """One result in words."""
    speed, first = found["tokens_per_second"], 1000 * found["first"]
    if spec.get("mixed"):
        return (
            f"{spec['name']:8} 32 mixed requests, {spec['precision']}: {found['alone']:.0f} tok/s one by one, "
            f"{speed:.0f} together: {found['gain']:.1f} ×, p95 first token {first:.0f} ms, peak {found['peak_gb']:.2f} GB"
        )
    tool = spec["tool"] + {True: " stream", False: " whole", None: ""}[spec.get("stream")]
    text = (
        f"{spec['name']:8} {tool:13} {spec['precision']:5} batch {spec['batch']:2}: {speed:8.1f} tok/s, "
        f"first token {first:6.1f} ms, peak {found['peak_gb']:.2f} GB"
    )
    if "more" in found:
        return f"{text}, {found['more']:+.0%} time over the engine alone"
    if spec["batch"] == 1:
        bytes_per_token = spec["size"] * {"fp32": 4, "bf16": 2, "int8": 1, "q8_0": 34 / 32}[spec["precision"]]
        text += f", {bytes_per_token * speed / bandwidth / 1e9:.0%} of the memory's bandwidth"
    return text


if __name__ == "__main__":
    main()
