"""Two processes learn from feedback what one learns alone, in whichever way they divide the work."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch
from jobs import ONE_THREAD, TORCHRUN
from learning_process import learning
from safetensors.torch import load_file

from jielong.errors import UserError
from jielong.train import group
from jielong.train.distributed import Team

FSDP, TENSOR = {"strategy": "fsdp"}, {"tensor": 2}
CASES = {
    "reward-ddp": {"kind": "reward"},
    "reward-fsdp": {"kind": "reward", "parallel": FSDP},
    "reward-tensor": {"kind": "reward", "parallel": TENSOR},
    "ppo-ddp": {"kind": "ppo"},
    "ppo-fsdp": {"kind": "ppo", "warmup": 1, "parallel": FSDP | {"recompute": True}},
    "ppo-tensor": {"kind": "ppo", "parallel": TENSOR},
    "ppo-lora-fsdp": {"kind": "ppo", "lora": True, "parallel": FSDP},
    "grpo-fsdp": {"kind": "grpo", "parallel": FSDP},
    "dpo-fsdp": {"kind": "dpo", "parallel": FSDP},
    "kto-ddp": {"kind": "kto"},
}


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> tuple[Path, dict[str, list[dict]]]:
    folder = tmp_path_factory.mktemp("two")
    command = [
        *TORCHRUN,
        "--nproc-per-node=2",
        str(Path(__file__).parent / "learning_process.py"),
        str(folder),
        json.dumps(CASES),
    ]
    done = subprocess.run(command, env=ONE_THREAD, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder, {n: [json.loads((folder / f"{n}.{r}.json").read_text()) for r in range(2)] for n in CASES}


def alike(mine, theirs, name: str) -> None:
    """Numbers to 2e-5 of their size or of 1, everything else to the letter."""
    if isinstance(mine, float) and isinstance(theirs, float):
        assert mine == pytest.approx(theirs, abs=2e-5, rel=2e-5, nan_ok=True), name
    elif isinstance(mine, dict):
        assert mine.keys() == theirs.keys(), name
        for key in mine:
            alike(mine[key], theirs[key], f"{name} {key}")
    elif isinstance(mine, list | tuple):
        assert len(mine) == len(theirs), name
        for a, b in zip(mine, theirs, strict=True):
            alike(a, b, name)
    else:
        assert mine == theirs, name


def compare(folder: Path, name: str, told: list[dict], alone: Path, expected: dict) -> None:
    for one in told:
        for what in ("loss", "seen"):
            alike(json.loads(json.dumps(one[what])), json.loads(json.dumps(expected[what])), name)
    ours, theirs = load_file(folder / f"{name}.safetensors"), load_file(alone / f"{name}.safetensors")
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        torch.testing.assert_close(ours[key], tensor, atol=1e-5, rtol=0, msg=lambda m, key=key: f"{name} {key}: {m}")


@pytest.mark.parametrize("name", CASES)
def test_two_processes_learn_what_one_does(two, name, tmp_path):
    folder, told = two
    torch.set_num_threads(1)
    expected = learning(tmp_path, name, {k: v for k, v in CASES[name].items() if k != "parallel"})
    compare(folder, name, told[name], tmp_path, expected)
    parts = [one["held"] for one in told[name]]
    if "fsdp" in name:  # offsets and score are everywhere
        assert max(parts) < 0.55 * expected["held"] < 0.6 * sum(parts)
    elif "ddp" in name:
        assert parts == [expected["held"]] * 2


@pytest.mark.parametrize("name", ["reward-fsdp", "ppo-fsdp"])
def test_one_process_continues_what_two_began(two, name, tmp_path):
    folder, told = two
    torch.set_num_threads(1)
    case = {k: v for k, v in CASES[name].items() if k != "parallel"}
    begun = sorted((folder / name).iterdir())[0]
    assert begun.name in ("step-00000002", "step-00000003")  # of 3 iterations, 6 steps
    assert {p.suffix for p in begun.iterdir()} == {".safetensors", ".json"}
    compare(folder, name, told[name], tmp_path, learning(tmp_path, name, case, begun))


def test_what_the_first_process_says_and_what_it_complains_of(monkeypatch):
    """Here the second process hears what the first one has sent."""
    sent = []
    monkeypatch.setattr(group, "from_first", lambda data: sent.append(data) or data)
    monkeypatch.setattr(Team, "first", True)
    first = Team(mesh=object())  # pyright: ignore
    assert first.told(lambda: {"a": (1, "二")}) == {"a": [1, "二"]}

    def complain():
        raise UserError("Press more thumbs.")

    with pytest.raises(UserError, match="Press more"):
        first.told(complain)
    monkeypatch.setattr(Team, "first", False)
    monkeypatch.setattr(group, "from_first", lambda data: sent.pop(0))
    assert first.told(complain) == {"a": [1, "二"]}
    with pytest.raises(UserError, match="Press more"):
        first.told(lambda: None)
