"""What a GPU must do as the processor does. Without one nothing here could fail, so it is skipped; the same on a processor: test_replay
(equal bits), test_suppressors and test_columns (methods and exam against closed forms), test_engine (what is generated)."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from small_runs import BASE, document, people, raise_small, weights

from jielong import pretrain
from jielong.config import ForgetConfig, SuppressConfig
from jielong.corpus.canaries import canaries
from jielong.forget.case import gather
from jielong.forget.columns import examine_model
from jielong.forget.methods import METHODS, method
from jielong.forget.stage import run as forget
from jielong.forget.suppress import resolved, suppress
from jielong.generate.engine import Engine
from jielong.generate.sampling import Sampling
from jielong.model.gpt import load_model
from jielong.run import Run
from jielong.tokens.tokenizer import Tokenizer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
DEVICE = "cuda"
SECOND = replace(BASE, device=DEVICE, precision="bf16")


@pytest.fixture(scope="module")
def raised(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("gpu")
    return raise_small(folder / "run", folder)


@pytest.fixture
def there(raised, tmp_path) -> Run:
    """The same corpus, and a base that was trained on the device."""
    run = Run(tmp_path / "there")
    for name in ("corpus", "tokenizer"):
        shutil.copytree(raised.path / name, run.path / name)
    pretrain.run(SECOND, run)
    return run


def test_forgotten_exactly(there, tmp_path):
    """A replay from a checkpoint is bit for bit the training from the start without the record."""
    record, twin = document(there, people()[50]), Run(tmp_path / "twin")
    for name in ("corpus", "tokenizer"):
        shutil.copytree(there.path / name, twin.path / name)
    before = weights(there.need("base"))
    scratch = weights(pretrain.run(SECOND, twin, drop=frozenset({record}), history=False))
    entry = forget(ForgetConfig(there.path, record=(record,), yes=True), there)
    after = weights(there.need("base"))
    assert entry is not None and entry["word"] == "forgotten"
    assert all(torch.equal(after[k], scratch[k]) for k in scratch)
    assert not all(torch.equal(after[k], before[k]) for k in before)
    assert there.need("base").card["device"].startswith(DEVICE)


@pytest.mark.parametrize(("name", "rank"), [(name, 2 * (n % 2)) for n, name in enumerate(METHODS)])
def test_suppressed_as_on_the_processor(raised, tmp_path, name, rank):
    """Every method, in float32, some of them by an adapter: the same losses and the same exam."""
    person = people()[50].split(" lives")[0]
    found = {}
    for device in ("cpu", DEVICE):
        config = ForgetConfig(raised.path, name=(person,), method=name, samples=1)
        settings = resolved(
            SuppressConfig(precision="fp32", device=device, lora_rank=rank, threads=1, keep=8), method(name)
        )
        settings = replace(settings, epochs=3.0, lr=1e-3)
        case = gather(config, settings, raised)
        case.material.canaries = canaries(1, 1)[:1]
        work = tmp_path / device
        shutil.rmtree(work, ignore_errors=True)
        model, history = suppress(method(name), load_model(case.start.path).to(device), case, settings, work)
        assert model.device.type == device
        found[device] = (
            [loss for _, loss in history.loss],
            examine_model(model, case.tokenizer, case.material, case.chat),
        )
    ours, theirs = found["cpu"], found[DEVICE]
    assert theirs[0] == pytest.approx(ours[0], rel=2e-3, abs=2e-4)
    for figure in ("nll", "exposure", "nll q8_0", "relearnt 4", "bits per byte"):
        assert theirs[1].figures[figure] == pytest.approx(ours[1].figures[figure], rel=0.05), figure


def test_the_engine_says_the_same(raised):
    model, tokenizer = load_model(raised.need("sft").path), Tokenizer.load(raised.need("sft").file("tokenizer.json"))
    prompts = [tokenizer.encode(text)[:12] for text in people()[:6]]
    for sampling in (Sampling(temperature=0.0, max_tokens=12), Sampling(temperature=1.0, max_tokens=12, seed=3)):
        said = [
            [r.answer for r in Engine(model, tokenizer, device=d).generate(prompts, sampling)] for d in ("cpu", DEVICE)
        ]
        assert said[0] == said[1]
