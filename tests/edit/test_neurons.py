"""The neuron ledger: its closed form, its promises, and that a wider model is saved, served, undone and exported like any other."""

from __future__ import annotations

import shutil

import pytest
import torch
from conftest_edit import FACTS, make_bench, some_keys

from jielong.cli import main
from jielong.edit.methods import editor, together
from jielong.edit.methods.ftm import answer_loss
from jielong.edit.methods.neurons import FLOOR, LEAST, SHARP, activation, closed_form
from jielong.edit.values import inner
from jielong.model.delta import Delta, applied
from jielong.model.gpt import causal_mask, load_model
from jielong.run import Run

LOOSE = ["--layer", "1", "--questions", "4", "--guard-neighbours", "0", "--guard-rest", "0", "--guard-took", "0", "--guard-bits", "9",
         "--guard-entropy", "1", "--guard-norm", "99", "--threads", "1", "--no-translate", "--method", "neurons"]  # fmt: skip


def with_one(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)


def neuron_bench(model, tokenizer):
    x = with_one(some_keys(400, model.config.width, 3))
    bench = make_bench(model, tokenizer)
    bench.inputs_of = lambda layers: dict.fromkeys(layers, x.T @ x / len(x))
    return bench


def test_the_closed_form():
    """The normal equations; a neuron is 1 at its own mean input, and of all directions that are, the least in text and edits; its
    gate is lower by a share of what comes nearest to 1 everywhere."""
    ordinary = with_one(some_keys(200, 8) + 1)
    y = ordinary.T @ ordinary / 200
    edits = [
        {"inputs": some_keys(6, 8, n), "still": some_keys(2, 8, n + 9), "slots": torch.tensor([0, 1, 0, 1, 0, 1]), "values": some_keys(2, 5, n + 20)}
        for n in range(3)
    ]  # fmt: skip
    gate, w, down = closed_form(edits, y)
    x = torch.cat([torch.cat([e["inputs"], e["still"]]) for e in edits])
    goal = torch.cat([torch.cat([e["values"][e["slots"]], torch.zeros(2, 5, dtype=torch.float64)]) for e in edits])
    phi = activation(x, gate, w)
    assert torch.allclose(
        down @ (phi.T @ phi + LEAST * torch.eye(len(w), dtype=torch.float64)), goal.T @ phi, atol=1e-8
    )
    # the constant's direction, by a library's least squares over all points, half the weight on each kind
    points = torch.cat([ordinary[:, :-1] / 200**0.5, x / len(x) ** 0.5])
    ones = torch.cat([torch.full((200, 1), 200**-0.5), torch.full((len(x), 1), len(x) ** -0.5)]).double()
    one = torch.linalg.lstsq(points, ones).solution[:, 0]
    assert torch.allclose(gate, SHARP * (w - FLOOR * one), atol=1e-8)
    s = points.T @ points
    mean = edits[0]["inputs"][::2].mean(0)
    assert float(w[0] @ mean) == pytest.approx(1)
    for seed in range(20):
        step = some_keys(1, 8, seed)[0] * 0.1
        other = w[0] + step - mean * (step @ mean) / (mean @ mean)
        assert other @ mean == pytest.approx(1) and other @ s @ other > w[0] @ s @ w[0]


def test_the_wider_model_computes_what_was_solved(model, tokenizer):
    bench = neuron_bench(model, tokenizer)
    stored = dict(zip("ab", editor("neurons").propose(bench, FACTS[:2]), strict=True))
    delta = editor("neurons").delta(bench, stored)
    wide = bench.current(delta)
    assert wide.config.mlp_width > model.config.mlp_width and wide.config.mlp_width % 32 == model.config.mlp_width % 32
    gate, w, down = closed_form([stored["a"], stored["b"]], bench.inputs(1))
    tokens = torch.tensor([tokenizer.encode("The capital of France is")])
    x = inner(model, tokens, [1], "mlp")[1]
    expected = model.blocks[1].mlp(x)[0].double() + activation(x[0].double(), gate, w) @ down.T
    assert torch.allclose(wide.blocks[1].mlp(x)[0].double(), expected, atol=1e-4)
    assert torch.allclose(wide.blocks[0].mlp(x), model.blocks[0].mlp(x), atol=1e-6)  # the others are only wider
    for fact in FACTS[:2]:
        contexts = bench.contexts(fact)
        assert float(answer_loss(wide, contexts)) < float(answer_loss(model, contexts)) - 1


def test_a_function_of_the_set(model, tokenizer):
    bench = neuron_bench(model, tokenizer)
    made = dict(zip("abc", [("neurons", s) for s in editor("neurons").propose(bench, FACTS)], strict=True))
    state = model.state_dict()
    first = applied(state, {"": together(bench, made)})
    second = applied(state, {"": together(bench, {k: made[k] for k in "cab"})})
    assert all(torch.equal(first[n], second[n]) for n in first)
    bench.earlier = dict(made)
    again = ("neurons", editor("neurons").propose(bench, [FACTS[2]])[0])
    one = applied(state, {"": together(bench, {"a": made["a"], "c": again})})
    two = applied(state, {"": together(bench, {"a": made["a"], "c": made["c"]})})
    assert all(torch.equal(one[n], two[n]) for n in one)
    # beside a method that changes the matrix itself
    ridge = ("ridge", editor("ridge").propose(bench, [FACTS[1]])[0])
    both = bench.current(together(bench, {"a": made["a"], "b": ridge}))
    linear = bench.current(together(bench, {"b": ridge}))
    K = model.config.mlp_width
    assert torch.allclose(both.blocks[1].mlp.down.weight[:, :K], linear.blocks[1].mlp.down.weight, atol=1e-6)


def test_a_wider_change_must_fit(model):
    from jielong.errors import UserError

    name = "blocks.0.mlp.down.weight"
    rows, columns = model.state_dict()[name].shape
    for shape in ((rows + 1, columns), (rows, columns - 1), (rows + 1, columns + 1)):
        with pytest.raises(UserError, match="another shape"):
            applied(model.state_dict(), {"": Delta({name: (torch.zeros(shape),)})})
    assert applied(model.state_dict(), {"": Delta({name: (torch.zeros(rows, columns + 4),)})})[name].shape == (
        rows,
        columns + 4,
    )


def test_it_is_saved_served_exported_undone(raised, tmp_path):
    import transformers

    run = tmp_path / "run"
    shutil.copytree(raised, run)
    assert main(["edit", str(run), "The capital of France is", "--subject", "France", "--to", "Tokyo", *LOOSE]) == 0
    model, base = load_model(run / "edited-1"), load_model(run / "sft")
    assert model.config.mlp_width > base.config.mlp_width
    assert main(["export", str(run), "--to", "hf", "--out", str(tmp_path / "hf")]) == 0
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    ids = torch.tensor([[5, 9, 33, 70, 12]])
    with torch.no_grad():
        assert torch.allclose(theirs(ids).logits, model.logits(model(ids, causal_mask(5))), atol=1e-4)
    assert main(["undo", str(run), "last", "--threads", "1"]) == 0 and Run(run).serving() == "sft"
