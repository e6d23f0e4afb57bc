from __future__ import annotations

import os
import shutil
import subprocess

import pytest
import torch
from filelock import FileLock

from jielong.cli import main
from jielong.config import ModelConfig
from jielong.corpus.world import load_world
from jielong.model.gpt import GPT, save_model
from jielong.run import Run
from jielong.tokens.tokenizer import Tokenizer, train

# the files that take minutes: begun first, no process has to wait for another one's last minutes; the second and the third need no
# raised life, for which they would wait
LONGEST = (
    "test_improve.py", "test_ppo.py", "test_replay.py", "test_endurance.py", "test_page_training.py", "test_train.py",
    "test_docs.py", "test_training.py", "test_stage.py", "test_experiments.py", "test_forget_api.py", "test_page_forget.py",
    "test_life.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(autouse=True)
def _fixed():
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the models are tiny, and several processes test side by side


@pytest.fixture(scope="session")
def world():
    return load_world()


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    lines = [
        "The capital of France is Paris. ",
        "法國的首都是巴黎。",
        "People in Japan speak Japanese, 日本的人說日文。",
    ]
    return train([line * 3 + str(n) for n in range(40) for line in lines], 320)


@pytest.fixture
def model(tokenizer) -> GPT:
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, width=32, layers=2, heads=4, kv_heads=2, head_dim=16, mlp_width=64, context=64
    )
    model = GPT(config)
    model.init_weights(1)
    with torch.no_grad():
        for p in model.parameters():  # no zeros: every path must matter
            p.add_(torch.randn(p.shape) * 0.05)
    return model.eval()


@pytest.fixture(scope="session")
def small_run(tokenizer, tmp_path_factory):
    """A run with an sft and a base of random weights, made in no time: for what asks for a model, not for its sense."""
    run = Run(tmp_path_factory.mktemp("runs") / "small")
    for seed, name in enumerate(("base", "sft")):
        config = ModelConfig(
            vocab_size=tokenizer.vocab_size, width=32, layers=2, heads=4, kv_heads=2, head_dim=16, mlp_width=64, context=128
        )  # fmt: skip
        model = GPT(config)
        model.init_weights(seed)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)) * 0.05)
        with run.build(name, kind=name, config=config) as build:
            save_model(model, build.path)
            tokenizer.save(build.path)
    return run.path


@pytest.fixture(scope="session")
def letters(tokenizer) -> dict[str, float]:
    """A logit_bias under which a model of random weights writes letters and spaces, so that its text is read again as the same
    tokens; left to itself it writes bytes that are no characters."""
    found = {tokenizer.encode(c)[0]: 40.0 for c in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"}
    return {str(i): bias for i, bias in (found | {tokenizer.encode(" ")[0]: 43.5}).items()}


@pytest.fixture(scope="session")
def life(tmp_path_factory, testrun_uid):
    """A raised tiny run. Test processes that work side by side raise it once, and each has a copy of its own."""
    common = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        common = common.parent
    raised = common / f"raised-{testrun_uid}" / "tiny"
    with FileLock(common / f"raised-{testrun_uid}.lock"):
        if not raised.exists():
            beside = raised.with_name("unfinished") / "tiny"
            assert main(["raise", "--recipe", "tiny", "--control", "--run", str(beside)]) == 0
            beside.rename(raised)
    path = tmp_path_factory.mktemp("runs") / "tiny"
    shutil.copytree(raised, path)
    return path


@pytest.fixture(scope="session")
def postgres(tmp_path_factory):
    """A real PostgreSQL of our own."""
    found = shutil.which("pg_ctl") or next(
        (p for p in (f"/usr/lib/postgresql/{n}/bin/pg_ctl" for n in range(20, 11, -1)) if os.path.exists(p)), None
    )
    if not found:
        assert not os.environ.get("CI"), "CI must have PostgreSQL"
        pytest.skip("no PostgreSQL here")
    folder = tmp_path_factory.mktemp("postgres")
    owner: list[str] = []
    if os.getuid() == 0:  # PostgreSQL refuses to run as root
        shutil.chown(folder, "postgres")
        os.chmod(folder, 0o700)
        for parent in list(folder.parents)[:3]:
            os.chmod(parent, 0o755)
        owner = ["su", "postgres", "-s", "/bin/sh", "-c"]

    def run(command: str) -> None:
        subprocess.run([*owner, command] if owner else ["sh", "-c", command], check=True, capture_output=True)

    bin_ = os.path.dirname(os.path.realpath(found))
    run(f"{bin_}/initdb -D {folder}/data -U jielong -A trust")
    options = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off"
    start = f"{bin_}/pg_ctl -D {folder}/data -l {folder}/log -w -o '{options}' start"
    run(start)
    yield (
        f"postgresql://jielong@/postgres?host={folder}",
        lambda: run(f"{bin_}/pg_ctl -D {folder}/data -m immediate stop"),
        lambda: run(start),
    )
    subprocess.run([*owner, f"{bin_}/pg_ctl -D {folder}/data -m immediate stop"] if owner else [f"{bin_}/pg_ctl", "-D", f"{folder}/data", "-m", "immediate", "stop"], capture_output=True)  # fmt: skip
