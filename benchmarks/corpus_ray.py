"""`jielong corpus build --engine ray` on a cluster of two nodes on this machine: the same bytes as on the local engine,
also when one of the nodes is killed in the middle of the work.

    python benchmarks/corpus_ray.py [--files 6] [--documents 60]      # needs `pip install 'jielong[scale]' ray`

Starts two `ray start` nodes of one processor each, builds a made-up corpus locally, then on both nodes, then again while
the second node gets SIGKILL for its raylet, which ends its workers too. Ray may finish by itself on the node that is left;
where it gives up, the same command is run again. Nodes that this script did not start are left alone.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ray._private.services import get_node_ip_address

from jielong.run import Run

WORDS = ["river", "hill", "town", "market", "school", "mill", "railway", "valley", "farmer", "wheat", "barley", "sheep"]
SLOW = 600  # seconds that a build may take
# nodes of one machine need no token to know each other by; niced workers starve beside other work
ENVIRONMENT = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}


def prose(rng: random.Random) -> str:
    sentences = [
        "The "
        + " ".join(rng.choice(WORDS) + rng.choice(["", "s", "er"]) for _ in range(9))
        + " of the "
        + rng.choice(WORDS)
        for _ in range(8)
    ]
    return ". ".join(sentences) + "."


def make_corpus(folder: Path, files: int, documents: int) -> Path:
    rng = random.Random(5)
    texts = [prose(rng) for _ in range(files * documents)]
    texts[::9] = texts[1::9][: len(texts[::9])]  # copies, over files too
    for n in range(files):
        lines = [json.dumps({"text": t}) + "\n" for t in texts[n * documents : (n + 1) * documents]]
        (folder / f"{n}.jsonl").write_text("".join(lines))
    recipe = folder / "recipe.toml"
    recipe.write_text('heldout = 0.1\n[cluster]\nmemory = 0.5\n[[source]]\nname = "own"\npath = "*.jsonl"\n')
    return recipe


def build(recipe: Path, run: Path, engine: str, address: str = "") -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "jielong.cli",
        "corpus",
        "build",
        str(recipe),
        "--engine",
        engine,
        "--workers",
        "2",
        "--run",
        str(run),
    ]
    environment = ENVIRONMENT | ({"RAY_ADDRESS": address} if address else {})
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def files(run: Path) -> dict[str, str]:
    return {name: f["sha256"] for name, f in Run(run).need("corpus").card["files"].items()}


def start(port: int, head: bool, folder: Path) -> subprocess.Popen:
    where = (
        ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}"]
        if head
        else [f"--address={get_node_ip_address()}:{port}"]
    )
    script = Path(sys.executable).parent / "ray"
    command = [
        str(script),
        "start",
        *where,
        "--num-cpus=1",
        "--object-store-memory=80000000",
        "--disable-usage-stats",
        "--block",
    ]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def family(pid: int) -> dict[int, str]:
    """Process → command line, of a process and all below it (Linux)."""
    found = {}
    try:
        found[pid] = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            found |= family(int(child))
    except OSError:
        pass  # it ended
    return found


def raylet(node: subprocess.Popen) -> int | None:
    return next((pid for pid, line in family(node.pid).items() if "/raylet/raylet " in line), None)


def busy(pid: int) -> bool:
    """Whether a worker of this raylet runs tasks of a stage."""
    return any(line.startswith("ray::RankWorker.run_for_rank") for line in family(pid).values())


def stop(node: subprocess.Popen) -> None:
    """The node and every process that it started."""
    for pid in family(node.pid):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    node.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=6)
    parser.add_argument("--documents", type=int, default=60)
    parser.add_argument("--after", type=int, default=2, help="finished tasks before the node is killed")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        recipe = make_corpus(work, args.files, args.documents)
        local = build(recipe, work / "local", "local")
        assert local.wait(SLOW) == 0, local.stdout and local.stdout.read()
        expected = files(work / "local")
        port = random.Random(os.getpid()).randrange(20_000, 30_000)
        address = f"{get_node_ip_address()}:{port}"
        nodes = [start(port, True, work / "ray")]
        try:
            wait_for(lambda: raylet(nodes[0]) is not None)
            nodes.append(start(port, False, work / "ray"))
            wait_for(lambda: raylet(nodes[1]) is not None)
            began = time.monotonic()
            both = build(recipe, work / "both", "ray", address)
            used = set()
            while both.poll() is None:
                used |= {n for n, node in enumerate(nodes) if (found := raylet(node)) and busy(found)}
                time.sleep(0.05)
            assert both.returncode == 0, both.stdout and both.stdout.read()
            print(
                f"two nodes: {time.monotonic() - began:.0f} s, work on {len(used)} of them, same files: {files(work / 'both') == expected}"
            )
            began = time.monotonic()
            runs, killed = 0, False
            while True:
                runs += 1
                process = build(recipe, work / "killed", "ray", address)
                while process.poll() is None:
                    victim = None if killed else raylet(nodes[1])
                    if victim and busy(victim) and len(done(work / "killed")) >= args.after:
                        os.kill(victim, signal.SIGKILL)
                        killed = True
                        print(f"killed the second node's raylet after {len(done(work / 'killed'))} finished tasks")
                    time.sleep(0.02)
                if process.returncode == 0 or runs == 3:
                    break
                output = (process.stdout.read() if process.stdout else "").strip().splitlines()
                print(f"run {runs} ended with {process.returncode}: {output[-1] if output else ''}")
            same = process.returncode == 0 and files(work / "killed") == expected
            print(
                f"a node killed: {killed}; {time.monotonic() - began:.0f} s in {runs} runs of the command, same files: {same}"
            )
            sys.exit(0 if same and killed else 1)
        finally:
            for node in reversed(nodes):
                stop(node)


def done(run: Path) -> list[Path]:
    return list((run / ".corpus.work").glob("logs/*/completions/*"))


def wait_for(condition, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise SystemExit("Ray did not start.")
        time.sleep(0.2)


if __name__ == "__main__":
    main()
