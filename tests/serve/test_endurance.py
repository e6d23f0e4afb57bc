"""Two minutes of benchmarks/endurance.py; the long run is 30 minutes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "endurance.py"


def test_two_minutes_of_mixed_load(life):
    command = [sys.executable, str(SCRIPT), "--run", str(life), "--minutes", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    assert done.stdout.rstrip().endswith("0 problems")
