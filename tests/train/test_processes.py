"""Several processes train what one alone trains, in whichever way they divide the work."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest
import torch
from jobs import ONE_THREAD, TORCHRUN, said, stop_second
from safetensors.torch import load_file
from training_process import ROWS, SHAPES, STEPS, config_of, training

from jielong.cli import dispatch, main
from jielong.config import ParallelConfig
from jielong.errors import UserError
from jielong.model.gpt import GPT
from jielong.run import Run
from jielong.train.distributed import LOST, _of_this_start, make_team, pick_device
from jielong.train.layout import Division, Layout
from jielong.train.making import begin

HERE = Path(__file__).parent


def torchrun(processes: int, folder: Path, cases: dict) -> dict[str, list[dict]]:
    """Train the cases one after the other; what each process told."""
    command = [
        *TORCHRUN,
        f"--nproc-per-node={processes}",
        str(HERE / "training_process.py"),
        str(folder),
        json.dumps(cases),
    ]
    done = subprocess.run(command, env=ONE_THREAD, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-4000:]
    return {n: [json.loads((folder / f"{n}.{r}.json").read_text()) for r in range(processes)] for n in cases}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process: {shape: (curve, weights and first gradients, checkpoints)}, without and with clipping."""
    folder = tmp_path_factory.mktemp("alone")
    torch.set_num_threads(1)
    found = {}
    for shape in SHAPES:
        for clip in (0.0, 0.1):
            name = f"{shape}-{clip}"
            told = training(folder, name, {"shape": shape, "clip": clip})
            found[shape, clip] = (told["loss"], load_file(folder / f"{name}.safetensors"), folder / name)
    return found


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    cases = {
        "ddp": {"shape": "qwen", "clip": 0.1, "parallel": {"strategy": "ddp", "micro_rows": 2}},
        "fsdp": {"shape": "qwen", "clip": 0.1, "parallel": {"strategy": "fsdp"}},
        "fsdp-gpt2": {"shape": "gpt2", "parallel": {"strategy": "fsdp", "recompute": True, "micro_rows": 1}},
        "tensor": {"shape": "qwen", "clip": 0.1, "parallel": {"tensor": 2}},
        "tensor-gpt2": {"shape": "gpt2", "parallel": {"tensor": 2, "recompute": True}},
        "compiled-fsdp": {
            "shape": "qwen",
            "clip": 0.1,
            "parallel": {"strategy": "fsdp", "recompute": True, "compile": True},
        },
        "drawn-fsdp": {"shape": "gpt2", "seed": 5, "parallel": {"strategy": "fsdp"}},
        "drawn-tensor": {"shape": "qwen", "seed": 5, "parallel": {"tensor": 2}},
    }
    return folder, cases, torchrun(2, folder, cases)


def check(alone, folder: Path, name: str, case: dict, told: list[dict], first: int = 0) -> None:
    loss, tensors, _ = alone[case["shape"], case.get("clip", 0.0)]
    for one in told:
        assert [s for s, _ in one["loss"]] == list(range(STEPS))
        assert [v for _, v in one["loss"]] == pytest.approx([v for _, v in loss], abs=2e-5)  # rounded to five digits
    ours = load_file(folder / f"{name}.safetensors")
    assert ours.keys() == tensors.keys()
    for key, tensor in tensors.items():
        if not (first and key.startswith("gradient/")):
            torch.testing.assert_close(
                ours[key], tensor, atol=1e-5, rtol=0, msg=lambda m, key=key: f"{name} {key}: {m}"
            )


WAYS = ["ddp", "fsdp", "fsdp-gpt2", "tensor", "tensor-gpt2", "compiled-fsdp"]


@pytest.mark.parametrize("name", WAYS)
def test_two_processes_train_what_one_does(alone, two, name):
    folder, cases, told = two
    check(alone, folder, name, cases[name], told[name])


def test_weights_that_are_drawn_in_parts_are_the_usual_ones(two):
    folder, cases, told = two
    for name in ("drawn-fsdp", "drawn-tensor"):
        usual = GPT(config_of(cases[name]["shape"]))
        usual.init_weights(5)
        found = load_file(folder / f"{name}.began.safetensors")
        assert found.keys() == usual.state_dict().keys()
        assert all(torch.equal(found[key], p) for key, p in usual.state_dict().items())
        assert max(one["held"] for one in told[name]) < 0.7 * usual.parameter_count()


def test_rows_are_shared_out_without_overlap(two):
    _, _, told = two
    for name in ("ddp", "fsdp"):
        rows = [[row for group in one["rows"] for row in group] for one in told[name]]
        assert sorted(rows[0] + rows[1])[:ROWS] == list(range(ROWS)) and not set(rows[0]) & set(rows[1])
    assert (
        [len(group) for group in told["ddp"][0]["rows"]] == [len(group) for group in told["ddp"][1]["rows"]] == [2, 1]
    )
    assert told["tensor"][0]["rows"] == told["tensor"][1]["rows"]


def test_a_divided_model_is_held_in_parts(two):
    _, _, told = two
    whole = told["ddp"][0]["held"]
    parts = [one["held"] for one in told["fsdp"]]
    assert sum(parts) == whole and max(parts) < 0.55 * whole
    assert max(one["held"] for one in told["tensor"]) < 0.7 * whole


def test_a_checkpoint_continues_on_any_number_of_processes(alone, two, tmp_path):
    """2 processes (FSDP) → 1; then, on 4: 2 (FSDP) → 2 × 2 (FSDP and tensor), 1 → 4 (FSDP), 2 (tensor) → 2 × 2 (DDP and tensor)."""
    folder, _, _ = two
    half = "step-00000003"
    files = {p.suffix for p in (folder / "fsdp" / half).iterdir()}
    assert files == {".safetensors", ".json"}  # and no pickle
    case = {"shape": "qwen", "clip": 0.1}
    told = training(tmp_path, "alone", case, folder / "fsdp" / half)
    check(alone, tmp_path, "alone", case, [told], 3)
    cases = {
        "both": case | {"parallel": {"strategy": "fsdp", "tensor": 2}, "start": str(folder / "fsdp" / half)},
        "fsdp": case | {"parallel": {"strategy": "fsdp"}, "start": str(alone["qwen", 0.1][2] / half)},
        "tensor": case | {"parallel": {"tensor": 2}, "start": str(folder / "tensor" / half)},
        "fresh": case | {"parallel": {"strategy": "fsdp", "tensor": 2}},
    }
    told = torchrun(4, tmp_path, cases)
    for name in cases:
        check(alone, tmp_path, name, case, told[name], 0 if name == "fresh" else 3)


def test_layouts_cover_a_matrix_once():
    for shape in ((7, 5), (2, 3), (8, 4)):
        for dim in (0, 1):
            seen = torch.zeros(shape)
            for data in range(3):
                for tensor in range(2):
                    divisions = (Division(None, data, 3, 0), Division(None, tensor, 2, dim))  # pyright: ignore
                    start, size = Layout(divisions).box(torch.Size(shape))
                    seen[start[0] : start[0] + size[0], start[1] : start[1] + size[1]] += 1
            assert (seen == 1).all()


# the commands

PRETRAIN = shlex.split(
    "pretrain --model.width 64 --model.layers 2 --model.heads 2 --model.kv-heads 2 --model.head-dim 32 "
    "--model.mlp-width 128 --steps 40 --rows 8 --length 64 --precision fp32 --checkpoint-seconds 0.1 --sample-every 0.5"
)
FAIL = """
import os, sys
from jielong import pretrain
from jielong.errors import UserError
original = pretrain.token_loss
def failing(*args):
    def loss_of(model, step, dtype):
        if step == 3 and os.environ["RANK"] == "1":
            raise UserError("The second process has had enough.")
        return original(*args)(model, step, dtype)
    return loss_of
pretrain.token_loss = failing
from jielong.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def run(tmp_path_factory) -> Path:
    """A run with a corpus and a tokenizer."""
    path = tmp_path_factory.mktemp("runs") / "shared"
    words = shlex.split(
        "the people of this old town went down to a river when the sun was high and they had seen boats"
    )
    random = Random(1)
    sentences = [" ".join(random.sample(words, 14)).capitalize() + "." for _ in range(1200)]
    rows = [{"text": " ".join(sentences[n : n + 8])} for n in range(0, 1200, 8)]
    (path.parent / "text.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert main(["corpus", "--no-default", "--text", str(path.parent / "text.jsonl"), "--run", str(path)]) == 0
    assert main(["tokenizer", "--vocab-size", "300", "--run", str(path)]) == 0
    return path


def test_a_killed_process_ends_the_job_and_the_command_continues_it(run, tmp_path, capsys):
    whole = tmp_path / "whole"
    for name in ("corpus", "tokenizer"):
        shutil.copytree(run / name, whole / name)
    assert main([*PRETRAIN, "--threads", "1", "--run", str(whole)]) == 0
    command = [*TORCHRUN, "--nproc-per-node=2", "-m", "--", "jielong.cli", *PRETRAIN, "--run", str(run)]
    process = subprocess.Popen(command, env=ONE_THREAD, stderr=subprocess.PIPE, text=True)
    os.kill(stop_second(process, run / ".base.work" / "checkpoints", 7), signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode and said(stderr) == [f"jielong: {LOST}"]
    assert not (run / "base").exists()

    # on from there in another way, killed again, and torchrun itself starts both processes again
    command = [
        *TORCHRUN,
        "--nproc-per-node=2",
        "--max-restarts=1",
        "-m",
        "--",
        "jielong.cli",
        *PRETRAIN,
        "--run",
        str(run),
    ]
    process = subprocess.Popen(
        [*command, "--parallel.strategy", "fsdp"], env=ONE_THREAD, stderr=subprocess.PIPE, text=True
    )
    second = stop_second(
        process, run / ".base.work" / "checkpoints", 20
    )  # stopped first: once it is dead, and until the restart, the lock is free
    capsys.readouterr()
    assert main([*PRETRAIN, "--run", str(run)]) == 2  # the ranks share the lock; nobody else gets it
    assert "Another jielong process" in capsys.readouterr().err
    os.kill(second, signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr[-3000:]
    kept = run / ".base.work" / "checkpoints"
    assert (kept / "step-00000007" / "model.safetensors").exists()  # of the first job: nothing was begun anew
    assert {p.name for p in (kept / "step-00000035").iterdir()} == {
        "state.json", "part-0.json", "part-0.safetensors", "part-1.json", "part-1.safetensors",
    }  # fmt: skip
    a, b = (load_file(path / "base" / "model.safetensors") for path in (whole, run))
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], atol=1e-5, rtol=0)
    one, both = (Run(path).need("base").card["metrics"] for path in (whole, run))
    assert (one["processes"], both["processes"]) == (1, 2) and one["parameters"] == both["parameters"]
    assert [v for _, v in both["loss"]] == pytest.approx([v for _, v in one["loss"]], abs=2e-5)
    assert [seen["step"] for seen in both["seen"]] == [20, 40]


def test_an_error_on_one_process_ends_the_job_with_one_sentence(run):
    script = run.parent / "fail.py"
    script.write_text(FAIL)
    command = [*TORCHRUN, "--nproc-per-node=2", "--", str(script), *PRETRAIN, "--run", str(run)]
    done = subprocess.run(command, env=ONE_THREAD, capture_output=True, text=True, timeout=60)
    assert done.returncode and said(done.stderr) == ["jielong: The second process has had enough."]
    assert not (run / "base").exists()


def test_what_work_is_continued(tmp_path, capsys):
    """Any number of processes goes on; one alone only with as many threads as before, if it was alone before."""
    made = tmp_path / "work" / "index.npz"
    for threads, continued in ((None, False), (2, True), (None, True), (4, True), (4, True), (2, False)):
        begin(tmp_path / "work", {"steps": 3}, threads)
        assert made.exists() == continued
        made.touch()
    begin(tmp_path / "work", {"steps": 4}, None)
    assert not made.exists() and not capsys.readouterr().out
    (tmp_path / "work" / "checkpoints").mkdir()
    made.touch()
    begin(tmp_path / "work", {"steps": 4, "parents": {"corpus": "a", "tokenizer": "b"}}, None)
    assert not made.exists() and "(other parents)" in capsys.readouterr().out
    (tmp_path / "work" / "checkpoints").mkdir()
    begin(tmp_path / "work", {"steps": 4, "parents": {"corpus": "a", "tokenizer": "c"}}, None)
    assert "(other tokenizer)" in capsys.readouterr().out


def test_a_second_start_shares_nothing_with_the_first():
    """torchrun's store outlives the processes; here with the names that those of a first start have left."""
    store = torch.distributed.HashStore()
    for start in ("first", "second"):
        with ThreadPoolExecutor() as pool:
            mine = list(pool.map(lambda rank: _of_this_start(store, rank, 3), range(3)))
        assert mine[0].add("failed", 1) == 1
        mine[1].set("address", start)
        assert mine[2].get("address") == start.encode()


def test_what_cannot_be_shared_is_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="torchrun --nproc-per-node"):
        make_team(ParallelConfig(tensor=2), "cpu", 0)
    with pytest.raises(UserError, match="torchrun --nproc-per-node"):
        make_team(ParallelConfig(strategy="fsdp"), "cpu", 0)
    with pytest.raises(UserError, match="leave one of them out"):
        make_team(ParallelConfig(tensor=2, compile=True), "cpu", 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="--device cpu"):
        pick_device("cuda")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="without it"):
        dispatch("corpus", ["--run", str(tmp_path)])


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_compiled_blocks_compute_the_same(shape, recompute, tmp_path, alone):
    """One process; without the last step, the machine's code (docs/log.md says how that was compared)."""
    torch.set_num_threads(1)
    case = {"shape": shape, "parallel": {"recompute": recompute, "compile": True}}
    torch._dynamo.reset()
    told = training(tmp_path, "compiled", case)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] and not torch._dynamo.utils.counters["graph_break"]
    check(alone, tmp_path, "compiled", case, [told])  # the names are those of the plain model, too
