"""Two processes make the update that one makes alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import json, sys
sys.path[:0] = [sys.argv[1]]
import torch, torch.distributed as dist
rank, size, out = int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
torch.set_num_threads(1)
if size > 1:
    dist.init_process_group("gloo", init_method=f"file://{out}.meet", rank=rank, world_size=size)
from conftest_align import Letters, letters_model, make_ppo
from jielong.train.loop import History
from jielong.train.optim import Optimizer
model = letters_model(6, 1)
score = lambda drawn: torch.tensor([float(sum(s.answer)) for s in drawn.sequences])
ppo = make_ppo(model, Letters(), score, [[1], [2, 3], [4]], episodes=10, epochs=2, minibatches=2, max_tokens=4,
               kl_target=6.0, iterations=3)
optimizer, history = Optimizer(ppo.model, ppo.config.optim, torch.float32), History()
for step in range(3):
    ppo(optimizer, step, torch.float32, history)
weights = torch.cat([p.detach().flatten() for p in ppo.model.parameters()])
json.dump([weights.tolist(), history.seen], open(f"{out}.{rank}", "w"))
if size > 1:
    dist.destroy_process_group()
"""


def result(tmp_path: Path, size: int) -> list[list]:
    out = tmp_path / f"of{size}"
    here = str(Path(__file__).parent)
    running = [
        subprocess.Popen([sys.executable, "-c", SCRIPT, here, str(rank), str(size), str(out)]) for rank in range(size)
    ]
    assert [p.wait(120) for p in running] == [0] * size
    return [json.loads(Path(f"{out}.{rank}").read_text()) for rank in range(size)]


def test_one_and_two_processes(tmp_path):
    (alone,) = result(tmp_path, 1)
    first, second = result(tmp_path, 2)
    assert first[0] == second[0]  # both hold the same weights, to the bit
    assert max(abs(a - b) for a, b in zip(alone[0], first[0], strict=True)) < 1e-5
    for mine, theirs in zip(alone[1], first[1], strict=True):
        for name in (
            "score",
            "kl",
            "length",
            "ended",
            "approx_kl",
            "policy_loss",
            "value_loss",
            "entropy",
            "kl_weight",
        ):
            assert abs(mine[name] - theirs[name]) < 1e-4, name
