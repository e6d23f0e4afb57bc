"""The closed forms against their definitions, and what each method promises."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest_edit import FACTS, make_bench, some_keys

from jielong.edit.bench import Site
from jielong.edit.methods import alphaedit, editor, together
from jielong.edit.methods.additive import keep
from jielong.edit.methods.alphaedit import null_space
from jielong.edit.methods.ftm import answer_loss
from jielong.edit.methods.ridge import closed_form
from jielong.edit.methods.rome import equality
from jielong.edit.statistics import add_keys
from jielong.edit.values import Context, at_answer, at_subject, inner, keys, matrix, search
from jielong.errors import UserError
from jielong.model.delta import Delta, applied
from jielong.model.gpt import causal_mask

K, D = 24, 6


def covariance(seed: int = 5) -> torch.Tensor:
    k = some_keys(200, K, seed)
    return k.T @ k / len(k)


def random_edit(seed: int, keys_: int = 3, values: int = 2) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "keys": torch.randn(keys_ * values, K, generator=g),
        "still": torch.randn(2, K, generator=g),
        "slots": torch.arange(values).repeat_interleave(keys_),
        "values": torch.randn(values, D, generator=g),
        "layer": torch.tensor(0),
    }


def product(form: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return form[0] @ form[1]


# r-ROME and EMMET


def test_rome_meets_its_constraint_and_has_rank_one():
    c, k, r = covariance(), some_keys(1, K).T, some_keys(1, D, 1).T
    delta = product(equality(r, k, c))
    assert torch.allclose(delta @ k, r, atol=1e-10)
    assert torch.linalg.matrix_rank(delta) == 1
    u = torch.linalg.solve(c, k)
    assert torch.allclose(delta, r @ u.T / (u.T @ k), atol=1e-10)  # ROME's own formula
    other = some_keys(1, K, 2).T
    other = other - k * (u.T @ other) / (u.T @ k)  # C-orthogonal: uᵀx = kᵀC⁻¹x = 0
    assert torch.allclose(delta @ other, torch.zeros(D, 1, dtype=torch.float64), atol=1e-10)


def test_rome_is_the_least_change_and_the_limit_of_ridge():
    c, k, r = covariance(), some_keys(1, K).T, some_keys(1, D, 1).T
    best = product(equality(r, k, c))
    cost = torch.trace(best @ c @ best.T)
    for seed in range(100):
        step = 0.1 * some_keys(D, K, seed)
        step = step - (step @ k) @ k.T / (k.T @ k)  # stays feasible
        worse = best + step
        assert torch.allclose(worse @ k, r) and torch.trace(worse @ c @ worse.T) > cost
    edit = {"keys": k.T, "still": k.T[:0], "slots": torch.tensor([0]), "values": r.T, "layer": torch.tensor(0)}
    assert torch.allclose(product(closed_form([edit], c, 1e-9)), best, atol=1e-6)


def test_several_equalities_hold_at_once():
    c, k, r = covariance(), some_keys(7, K).T, some_keys(7, D, 1).T
    assert torch.allclose(product(equality(r, k, c)) @ k, r, atol=1e-9)


# the ridge ledger


def test_ridge_satisfies_the_normal_equations():
    c, edits, ridge = covariance(), [random_edit(n) for n in range(4)], 3.0
    delta = product(closed_form(edits, c, ridge))
    k = torch.cat([torch.cat([e["keys"], e["still"]]) for e in edits]).double()  # (n, K)
    goal = torch.cat([torch.cat([e["values"][e["slots"]], torch.zeros(2, D)]) for e in edits]).double()  # (n, D)
    assert torch.allclose(delta @ (ridge * c + k.T @ k), goal.T @ k, atol=1e-8)


def test_ridge_one_by_one_equals_the_batch():
    """Recursive least squares with the full cache (Sherman and Morrison), edit after edit, ends where the closed form is."""
    c, edits, ridge = covariance(), [random_edit(n) for n in range(5)], 2.0
    inverse, delta = torch.linalg.inv(ridge * c), torch.zeros(D, K, dtype=torch.float64)
    for edit in edits:
        nothing = torch.zeros(2, D)
        goals = torch.cat([edit["values"][edit["slots"]], nothing]).double()
        for k, goal in zip(torch.cat([edit["keys"], edit["still"]]).double(), goals, strict=True):
            gain = inverse @ k / (1 + k @ inverse @ k)
            delta = delta + torch.outer(goal - delta @ k, gain)
            inverse = inverse - torch.outer(gain, k @ inverse)
    assert torch.allclose(product(closed_form(edits, c, ridge)), delta, atol=1e-8)


def test_ridge_does_not_know_the_order(model, tokenizer):
    bench = make_bench(model, tokenizer)
    made = editor("ridge").propose(bench, FACTS)
    alone = [editor("ridge").propose(bench, [f])[0] for f in FACTS]
    for a, b in zip(made, alone, strict=True):
        assert all(torch.equal(a[n], b[n]) for n in a)
    orders = [dict(zip("abc", made, strict=True)), {key: made["abc".index(key)] for key in "cab"}]
    name = matrix(1)
    first, second = (editor("ridge").delta(bench, o).parts[name] for o in orders)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_undoing_a_middle_edit_is_never_having_made_it(model, tokenizer):
    bench = make_bench(model, tokenizer)
    made = dict(zip("abc", [("ridge", s) for s in editor("ridge").propose(bench, FACTS)], strict=True))
    without = {k: v for k, v in made.items() if k != "b"}
    later = replace(bench, earlier=dict(made))  # what is proposed after b, and then b is undone
    again = ("ridge", editor("ridge").propose(later, [FACTS[2]])[0])
    state = model.state_dict()
    one = applied(state, {"": together(bench, without)})
    two = applied(state, {"": together(bench, {"a": made["a"], "c": again})})
    assert all(torch.equal(one[n], two[n]) for n in one)
    assert torch.equal(applied(state, {"": together(bench, {})})[matrix(1)], state[matrix(1)])


@pytest.mark.parametrize(("place", "gain"), [("answer", 1.0), ("subject", 0.15)])
def test_the_edited_model_says_the_target(model, tokenizer, place, gain):
    """The random model hardly looks at the subject, so that little can be gained there."""
    bench = make_bench(model, tokenizer, Site(1 if place == "answer" else 0, place))
    fact = FACTS[0]
    changed = bench.current(together(bench, {"a": ("ridge", editor("ridge").propose(bench, [fact])[0])}))
    context = bench.contexts(fact)[0]

    def likelihood(m) -> float:
        return float(-answer_loss(m, [context]).detach())

    assert likelihood(changed) > likelihood(model) + gain


def test_keys_do_not_move_when_their_layer_is_edited(model, tokenizer):
    bench = make_bench(model, tokenizer)
    contexts = bench.contexts(FACTS[0])
    changed = bench.current(together(bench, {"a": ("ridge", editor("ridge").propose(bench, [FACTS[0]])[0])}))
    assert not torch.equal(changed.blocks[1].mlp.down.weight, model.blocks[1].mlp.down.weight)
    for before, after in zip(keys(model, contexts, 1), keys(changed, contexts, 1), strict=True):
        assert torch.equal(before, after)


# the search


@pytest.mark.parametrize(("layer", "place"), [(0, "subject"), (0, "answer"), (1, "answer")])
def test_the_value_does_what_the_search_says(model, tokenizer, layer, place):
    """Written into the whole model by a hook, δ gives the likelihood that the search ended with."""
    bench = make_bench(model, tokenizer, Site(layer, place))
    contexts = bench.contexts(FACTS[0])
    values, nll = search(model, layer, contexts, replace(bench.search, steps=7))

    def push(_module, _given, out):
        out = out.clone()
        for row, c in enumerate(contexts):
            for t, slot in c.spots:
                out[row, t] += values[slot].float()
        return out

    hook = model.blocks[layer].mlp.register_forward_hook(push)
    assert float(answer_loss(model, contexts)) == pytest.approx(nll, abs=1e-4)
    hook.remove()
    assert float(answer_loss(model, contexts)) > nll


# AlphaEdit


def test_null_space():
    k0 = some_keys(10, K)
    p = null_space(k0.T @ k0 / 10, energy=1.0)
    assert torch.allclose(p, p.T, atol=1e-10) and torch.allclose(p @ p, p, atol=1e-10)
    assert torch.allclose(p @ k0.T, torch.zeros(K, 10, dtype=torch.float64), atol=1e-6)
    assert round(float(torch.trace(p))) == K - 10
    with pytest.raises(UserError, match="rank 0"):
        null_space(torch.eye(K, dtype=torch.float64), energy=1.0)


def test_alphaedit_leaves_alone_what_ordinary_text_writes(model, tokenizer, monkeypatch):
    """(W + Δ) K0 = W K0 for the keys K0 of ordinary text, where these leave room."""
    k0 = some_keys(10)
    bench = replace(make_bench(model, tokenizer), statistics=lambda layers: dict.fromkeys(layers, k0.T @ k0 / 10))
    monkeypatch.setattr(alphaedit, "null_space", lambda c: null_space(c, energy=1.0))
    made = {str(n): ("alphaedit", s) for n, s in enumerate(editor("alphaedit").propose(bench, FACTS[:2]))}
    delta = together(bench, made)
    for n in (0, 1):
        change = delta.added(matrix(n))
        assert float(change.norm()) > 0.01 and float((change @ k0.T).abs().max()) < 1e-6


@pytest.mark.parametrize("method", ["r-rome", "memit", "alphaedit", "ft-m"])
def test_every_method_changes_only_its_layers_and_takes(model, tokenizer, method):
    bench = make_bench(model, tokenizer)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    stored = editor(method).propose(bench, FACTS[:2])
    changes = {str(n): (method, s) for n, s in enumerate(stored)}
    changed = bench.current(together(bench, changes))
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())  # an editor writes nothing
    moved = {n for n, t in changed.state_dict().items() if not torch.equal(t, before[n])}
    assert matrix(1) in moved and moved <= {matrix(0), matrix(1)}
    for fact in FACTS[:2]:
        contexts = bench.contexts(fact)
        assert float(answer_loss(changed, contexts)) < float(answer_loss(model, contexts))


def test_memit_at_one_layer_is_the_ridge_form_over_averaged_keys(model, tokenizer):
    bench = make_bench(model, tokenizer, Site(0, "answer"))
    stored = editor("memit").propose(bench, [FACTS[0]])[0]
    contexts = bench.contexts(FACTS[0])
    values, _ = search(model, 0, contexts, bench.search)
    mean = torch.stack([k.mean(0) for k in keys(model, contexts, 0)])
    edit = {
        "keys": mean,
        "still": mean[:0],
        "slots": torch.arange(len(values)),
        "values": values,
        "layer": torch.tensor(0),
    }
    mine = product(closed_form([edit], bench.c(0), bench.ridge))
    theirs = editor("memit").delta(bench, {"": stored}).added(matrix(0))
    assert torch.allclose(mine, theirs, atol=1e-4 * float(mine.abs().max()))


def test_fine_tuning_counts_the_answer_only(model):
    contexts = [Context((5, 6, 7), (8, 9)), Context((5, 6, 7, 8, 9, 10), (11,))]
    total = 0.0
    for c in contexts:  # one at a time, no padding
        ids = torch.tensor([[*c.ids, *c.target]])
        table = model.logits(model(ids, causal_mask(ids.shape[1]))).log_softmax(-1)[0]
        own = [float(table[len(c.ids) - 1 + n, t].detach()) for n, t in enumerate(c.target)]
        total += -sum(own) / len(own)
    assert float(answer_loss(model, contexts).detach()) == pytest.approx(total / 2, abs=1e-5)


# statistics and deltas


def test_statistics_stream(model):
    tokens = torch.randint(5, 60, (6, 9))
    lengths = [9, 3, 5, 1, 9, 7]
    whole = torch.zeros(64, 64, dtype=torch.float64)
    for rows in ([0, 1], [2], [3, 4, 5]):
        add_keys(whole, inner(model, tokens[rows], [1])[1], [lengths[r] for r in rows])
    direct = torch.zeros(64, 64, dtype=torch.float64)
    for row in (5, 3, 1, 0, 2, 4):  # another order, alone, without padding
        for k in inner(model, tokens[row : row + 1, : lengths[row]], [1])[1][0].double():
            direct += torch.outer(k, k)
    assert torch.allclose(whole, direct, atol=1e-6 * float(direct.abs().max()))


def test_deltas_know_no_order_and_name_strangers(model):
    state, name = model.state_dict(), matrix(0)
    shape = state[name].shape
    low = {k: Delta({name: (some_keys(shape[0], 2, n), some_keys(2, shape[1], n + 9))}) for n, k in enumerate("pqr")}
    one = applied(state, low)
    two = applied(state, {k: low[k] for k in "rqp"})
    assert torch.equal(one[name], two[name]) and not torch.equal(one[name], state[name])
    expected = state[name].double() + sum(d.added(name) for d in low.values())
    assert torch.equal(one[name], expected.float())
    with pytest.raises(UserError, match="no matrix"):
        applied(state, {"x": Delta({"blocks.9.mlp.down.weight": low["p"].parts[name]})})
    assert keep(low["p"]).keys() == {f"{name}|u", f"{name}|v"}


def test_places_of_a_context():
    subject = at_subject([1, 2, 3], [7, 8], [1])
    answer = at_answer([1, 2, 3], [7, 8])
    assert subject.spots == ((1, 0),) and answer.spots == ((2, 0), (3, 1)) and answer.tokens == (1, 2, 3, 7)
