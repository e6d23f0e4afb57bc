"""Plans against published figures, against counters of operations and bytes, and against the traced step."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from jielong.cli import main
from jielong.config import ModelConfig, OptimConfig, ParallelConfig, PlanConfig
from jielong.errors import UserError
from jielong.model.gpt import GPT, Block, causal_mask, for_gpu, rope_tables
from jielong.scale.known import GPUS, MODELS, gpu, published
from jielong.scale.memory import memory, saved_by_block, sizes
from jielong.scale.plan import (
    USABLE,
    Sharing,
    duration,
    flops_per_token,
    layouts,
    make,
    muon_flops,
    muon_share,
    times,
    volume,
)
from jielong.scale.trace import pretended_group, traced_memory
from jielong.train import layout as dealing
from jielong.train import optim
from jielong.train.distributed import make_team
from jielong.train.optim import Optimizer, orthogonalise
from jielong.train.shard import share

SMALL = ModelConfig(
    vocab_size=512, context=64, layers=2, width=64, heads=4, kv_heads=2, head_dim=16, mlp_width=192, tied=False
)


@pytest.mark.parametrize("name", MODELS)
def test_parameters_as_published(name):
    known = MODELS[name]
    assert abs(sizes(known.shape).total / known.parameters - 1) < 0.005


@pytest.mark.parametrize("name", [n for n in MODELS if MODELS[n].flops])
def test_flops_as_published(name):
    known = MODELS[name]
    weights, _ = flops_per_token(known.shape, sizes(known.shape), known.shape.context)
    assert abs(weights * known.tokens / known.flops - 1) < 0.05


def test_sizes_are_the_models():
    s, model = sizes(SMALL), GPT(SMALL)
    assert s.total == model.parameter_count()
    assert s.block == sum(p.numel() for p in model.blocks[0].parameters())
    assert s.matrices == sum(p.numel() for p in model.blocks[0].parameters() if p.ndim == 2)
    assert s.rest == model.parameter_count() - 2 * s.block


@pytest.mark.parametrize("tied", [True, False])
def test_flops_are_those_that_torch_counts(tied):
    config = dataclasses.replace(SMALL, tied=tied)
    model = GPT(config)
    model.init_weights(1)
    rows, length = 3, 32
    with FlopCounterMode(display=False) as counter:
        hidden = model(torch.zeros(rows, length, dtype=torch.int64), causal_mask(length))
        model.logits(hidden).sum().backward()
    planned = rows * length * sum(flops_per_token(config, sizes(config), length))
    # gains and the means of the norms' gradients are no matrix products; the embedding's gradient is none either
    assert abs(planned / counter.get_total_flops() - 1) < 0.02


def test_muons_flops_are_those_that_torch_counts():
    model = GPT(SMALL)
    with FlopCounterMode(display=False) as counter:
        for p in model.blocks.parameters():
            if p.ndim == 2:
                orthogonalise(p.detach().unsqueeze(0), dtype=torch.float32)
    assert muon_flops(SMALL) == counter.get_total_flops()


@pytest.mark.parametrize(("norm", "rows"), [("rms", 1), ("rms", 3), ("layer", 2)])
def test_what_a_block_keeps(norm, rows):
    """The storages that the real block saves, its weights left out."""
    config = dataclasses.replace(SMALL, norm=norm)
    block, found = Block(config), {}
    for_gpu(block)
    for p in block.parameters():
        p.data = p.data.normal_().bfloat16()
    x = torch.randn(rows, 16, config.width, dtype=torch.bfloat16, requires_grad=True)
    mask = torch.zeros(rows, 1, 16, 16, dtype=torch.bfloat16)
    rope = rope_tables(torch.arange(16).unsqueeze(0), config, torch.bfloat16)
    shared = {t.untyped_storage().data_ptr() for t in (*block.parameters(), mask, *rope)}

    def pack(t):
        if t.untyped_storage().data_ptr() not in shared:
            found[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = block(x, rope, mask)
    assert out.requires_grad and saved_by_block(config, rows, 16) == sum(found.values())
    half = saved_by_block(config, rows, 16, tensor=2)  # norms and residuals are not shared
    assert 0.5 < half / saved_by_block(config, rows, 16) < 0.8


def test_memory_by_hand():
    """The states of FSDP: sixteen bytes per weight, shared out; with Muon twelve for the matrices."""
    s = sizes(SMALL)
    m = memory(SMALL, 4, 1, 2, 32, False, "adamw", passes=1)
    assert m.weights == m.gradients == s.total and m.optimizer == 2 * s.total  # 4 bytes over 4 GPUs
    assert memory(SMALL, 4, 1, 2, 32, False, "muon", passes=1).optimizer == 2 * s.total - 2 * s.matrices
    assert m.activations == 2 * saved_by_block(SMALL, 2, 32) + 2 * 2 * 32 * 32
    # its own gradients in two precisions beside two gathered blocks, and those of the head
    assert m.gathered == 2 * s.rest + 10 * s.block and m.head == 64 * 64 * 2 + 512 * 64 * 2
    again = memory(SMALL, 4, 1, 2, 32, True, "adamw", passes=1)
    assert again.activations == 2 * 2 * 32 * 64 * 2 + saved_by_block(SMALL, 2, 32) + 2 * 2 * 32 * 32
    wide = dataclasses.replace(
        SMALL, vocab_size=8192
    )  # now the peak is in the head: logits of 64 tokens, two gradients
    m = memory(wide, 4, 1, 2, 32, True, "adamw", passes=1)
    assert m.gathered == 2 * sizes(wide).rest and m.head == 64 * (8192 + 64) * 2 + 8192 * 64 * 6
    assert m.activations == 2 * 2 * 32 * 64 * 2 + 2 * 2 * 32 * 32
    two = memory(SMALL, 4, 1, 2, 32, False, "adamw", passes=2)  # gradients wait for the last pass
    assert two.total == memory(SMALL, 4, 1, 2, 32, False, "adamw", passes=1).total + two.gradients


def test_what_is_sent_by_hand():
    s = sizes(SMALL)
    fsdp, tensor = volume(SMALL, s, Sharing(4, 1, 2, 3, False), 32)
    # bfloat16 weights twice a pass, float32 gradients once, all but the own quarter
    assert fsdp == pytest.approx(0.75 * s.total * (3 * 2 * 2 + 4)) and tensor == 0
    _, tensor = volume(SMALL, s, Sharing(4, 2, 2, 3, False), 32)
    # a ring's all-reduce sends 2 (t − 1) / t of what it sums: four sums per block and pass
    assert tensor == pytest.approx(3 * 2 * 4 * (2 * 32 * 64 * 2))


def test_the_fastest_that_fits_is_picked():
    plan = PlanConfig(recipe="gpt3-13b", gpus=64, gpu="a100-80g")
    made, config, card = make(plan), MODELS["gpt3-13b"].shape, GPUS["a100-80g"]
    assert made.memory.total <= USABLE * card.memory and made.layout.gpus == 64
    assert abs(made.layout.rows_per_step * made.length / 2e6 - 1) < 0.06
    for one in layouts(config, plan, 2e6 / 2048, card.per_node):
        need = memory(config, 64, one.tensor, one.rows, 2048, one.checkpointing, "adamw", one.passes)
        if need.total <= USABLE * card.memory:
            per_row = times(config, sizes(config), one, 2048, card, plan).step / one.rows_per_step
            assert made.times.step / made.layout.rows_per_step <= per_row * (1 + 1e-9)


def test_more_gpus_less_time_and_less_memory():
    few, many = (make(PlanConfig(recipe="gpt3-6.7b", gpus=n, gpu="h200", tensor=1, rows=1)) for n in (16, 64))
    assert few.seconds > 3 * many.seconds and few.memory.weights == pytest.approx(4 * many.memory.weights)
    assert few.flops == many.flops and 0 < many.utilisation <= 0.45


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"recipe": "gpt5"}, "There is no model 'gpt5'; known are gpt1-117m"),
        ({"gpu": "h1000"}, "There is no GPU 'h1000'"),
        ({"gpus": 0}, "at least 1"),
        ({"tokens": -1}, "must not be negative"),
        ({"efficiency": 1.5}, "share of the peak"),
        ({"recipe": "gpt2-124m", "length": 4096}, "1024 learned positions"),
        ({"gpus": 1000, "recipe": "gpt2-124m", "batch_tokens": 1024}, "cannot share them"),
        ({"gpus": 8}, "does not fit: 8 × h100"),
    ],
)
def test_what_cannot_be_planned(change, said):
    with pytest.raises(UserError, match=said.replace("(", r"\(")):
        make(dataclasses.replace(PlanConfig(), **change))


def test_what_would_fit_is_true():
    with pytest.raises(UserError, match=r"With (\d+) it would fit") as refused:
        make(PlanConfig(gpus=8))
    enough = int(str(refused.value).split("With ")[1].split()[0])
    assert make(PlanConfig(gpus=enough)).memory.total <= USABLE * gpu("h100").memory


def test_a_model_of_ones_own(tmp_path, capsys):
    (tmp_path / "model.json").write_text(json.dumps(dataclasses.asdict(SMALL)))
    assert main(["plan", "--recipe", str(tmp_path), "--gpus", "1", "--batch-tokens", "4096", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["parameters"] == GPT(SMALL).parameter_count() and told["tokens"] == 20 * told["parameters"]
    assert told["layout"]["rows"] * told["layout"]["passes"] * 64 == 4096 and told["dollars"] > 0
    (tmp_path / "model.json").write_text('{"wdth": 3}')
    with pytest.raises(UserError, match="describes no model"):
        published(str(tmp_path))


def test_what_people_read(capsys):
    assert main(["plan", "--recipe", "gpt3-175b", "--gpus", "1024"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "174,604,259,328 parameters (+0.0% against the published" in told and "tensor parallel over" in told
    assert main(["plan", "--recipe", "list"]) == 0 and "qwen3-8b" in capsys.readouterr().out
    assert main(["plan", "--gpu", "list"]) == 0 and "b200" in capsys.readouterr().out
    assert main(["plan", "--gpus", "8"]) == 2 and "does not fit" in capsys.readouterr().err
    assert duration(90) == "1.5 minutes" and duration(3 * 86400) == "3.0 days"


@pytest.mark.parametrize(
    ("name", "layout", "optimizer"),
    [
        ("gpt2-124m", Sharing(8, 1, 8, 1, False), "adamw"),
        ("gpt2-124m", Sharing(8, 1, 2, 2, True), "adamw"),
        ("qwen3-0.6b", Sharing(16, 2, 1, 1, False), "adamw"),
        ("qwen3-0.6b", Sharing(8, 1, 1, 2, False), "muon"),
    ],
)
def test_memory_is_that_of_the_traced_step(name, layout, optimizer):
    """Within 10 %: model, FSDP, tensor parallel and optimizer really run, on tensors without data."""
    config = dataclasses.replace(MODELS[name].shape, layers=2)
    traced = traced_memory(config, layout, 512, optimizer)
    planned = memory(
        config, layout.gpus, layout.tensor, layout.rows, 512, layout.checkpointing, optimizer, layout.passes
    )
    assert abs(planned.total / traced - 1) < 0.1


def test_muon_is_counted():
    plain, muon = (make(PlanConfig(recipe="gpt2-1542m", gpus=8, optimizer=o)) for o in ("adamw", "muon"))
    assert muon.times.muon > 0 == plain.times.muon and muon.volume_muon > 0 == plain.volume_muon
    assert muon.memory.optimizer < plain.memory.optimizer
    assert OptimConfig().muon  # what jielong trains with where nobody says otherwise


@pytest.mark.parametrize(("gpus", "tensor"), [(1, 1), (3, 1), (4, 2), (2, 2), (8, 1)])
def test_what_muon_sends_is_what_the_optimizer_sends(gpus, tensor, monkeypatch):
    """The real optimizer's step, as one process of a group that sends nothing; matrices and rows that do not divide evenly."""
    config = dataclasses.replace(SMALL, layers=3)
    sent, flops = {}, [0.0]
    exchange, whole = torch.distributed.all_to_all_single, optim.orthogonalise

    def counted(out, x, group):
        size = group.size()
        sent[group] = sent.get(group, 0) + x.numel() * x.element_size() * (size - 1) / size
        return exchange(out, x, group=group)

    def made(g, **kwargs):
        with FlopCounterMode(display=False) as counter:
            found = whole(g, **kwargs)
        flops[0] += counter.get_total_flops()
        return found

    monkeypatch.setattr(dealing.dist, "all_to_all_single", counted)
    monkeypatch.setattr(optim, "orthogonalise", made)
    with pretended_group(gpus):
        team = make_team(ParallelConfig("fsdp", tensor), "cpu", 0)
        model = GPT(config)
        model.init_weights(1)
        share(model, team, torch.bfloat16)
        steps = Optimizer(model, OptimConfig(), torch.bfloat16, team.layout)
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        steps.step(0.5)
        found = [sent.get(team.mesh.get_group(n), 0) for n in (0, 1)]
    planned = muon_share(config, Sharing(gpus, tensor, 1, 1, False))
    assert (planned.between, planned.within) == pytest.approx(tuple(found)) and planned.flops == flops[0]
    assert (planned.between > 0) == (gpus > tensor) and (planned.within > 0) == (tensor > 1)
    if gpus == 1:
        assert planned.flops == muon_flops(config)
