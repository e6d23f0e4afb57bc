"""Jobs of several processes, for the tests that start torchrun and kill one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def stop_second(process: subprocess.Popen, checkpoints: Path, step: int) -> int:
    """Stop the process of rank 1 once there is a new checkpoint of `step` or later: its id."""
    until = time.time() + 120
    before = set(checkpoints.glob("step-*"))
    while not any(int(p.name[5:]) >= step for p in set(checkpoints.glob("step-*")) - before):
        assert time.time() < until and process.poll() is None
        time.sleep(0.005)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            if parent == process.pid and b"\0RANK=1\0" in (stat.parent / "environ").read_bytes():
                os.kill(second := int(stat.parent.name), signal.SIGSTOP)
                return second
        except OSError:
            continue
    raise AssertionError("There is no process of rank 1.")


def said(stderr: str) -> list[str]:
    """What the command told the user."""
    return [line for line in stderr.splitlines() if line.startswith("jielong:")]
