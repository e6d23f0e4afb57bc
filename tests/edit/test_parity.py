"""r-ROME and MEMIT against a slow reference that reads nothing but transformers' GPT-2, one text at a time."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from conftest_edit import FACTS, make_bench
from torch import Tensor

from jielong.edit.bench import Bench, Site
from jielong.edit.methods import editor, together
from jielong.edit.values import Context, Search, matrix
from jielong.model.gpt import GPT
from jielong.model.hf import config_to_hf, read_checkpoint, state_to_hf

LAST = 1  # the layer that the value is searched for; one comes behind it


@pytest.fixture
def theirs(tokenizer):
    torch.manual_seed(3)
    shape = {"vocab_size": tokenizer.vocab_size, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape)).eval().requires_grad_(False)
    for p in model.parameters():
        p.add_(torch.randn(p.shape) * 0.1)
    return model


def bench_of(config, state, tokenizer) -> Bench:
    model = GPT(config)
    model.load_state_dict(state)
    settings = Search(steps=6, lr=0.3, decay=0.0, clamp=1e9, enough=0.0)
    return make_bench(model.eval(), tokenizer, Site(LAST, "subject"), search=settings, ridge=2.0)


def spots(c: Context) -> list[int]:
    return [t for t, _ in c.spots]


def seen(model, c: Context, layer: int) -> tuple[Tensor, Tensor]:
    """(what the layer's second matrix reads (n, K), what stands behind block LAST (n, D)) at the subject's last tokens."""
    read: list[Tensor] = []
    hook = model.transformer.h[layer].mlp.c_proj.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    stream = model(torch.tensor([c.tokens]), output_hidden_states=True).hidden_states[LAST + 1]
    hook.remove()
    return read[0][0, spots(c)].double(), stream[0, spots(c)].double()


def table(model, c: Context, value: Tensor) -> Tensor:
    """(T, V) log-probabilities with `value` added to what block LAST's feed-forward writes."""
    push = torch.zeros(1, len(c.tokens), len(value)).index_add(
        1, torch.tensor(spots(c)), value.expand(1, len(c.spots), -1)
    )
    hook = model.transformer.h[LAST].mlp.register_forward_hook(lambda _, __, out: out + push)
    found = model(torch.tensor([c.tokens])).logits[0].log_softmax(-1)
    hook.remove()
    return found


def search(model, asked: list[Context], kept: list[Context], settings: Search) -> Tensor:
    """δ (D,): the least −log p(target) per token, + kl · KL(before ‖ after) behind the subject of the kept texts."""
    value = torch.zeros(model.config.n_embd, requires_grad=True)
    before = [table(model, c, value).detach() for c in kept]
    optimizer = torch.optim.Adam([value], settings.lr)
    for _ in range(settings.steps):
        loss = torch.zeros(())
        for c in asked:
            own = table(model, c, value)[len(c.ids) - 1 :]
            loss = loss - own.gather(1, torch.tensor(c.target)[:, None]).mean() / len(asked)
        places = [
            (b[t], table(model, c, value)[t]) for c, b in zip(kept, before) for t in range(spots(c)[0], len(c.ids))
        ]
        kl = sum(((b.exp() * (b - a)).sum() for b, a in places), torch.zeros(()))
        optimizer.zero_grad()
        (loss + settings.kl * kl / len(places)).backward()
        optimizer.step()
    return value.detach().double()


def reference(model, bench: Bench, method: str) -> dict[int, Tensor]:
    """Layer → Δ (D, K)."""
    asked = bench.contexts(FACTS[0])
    value = search(model, asked, bench.keep(FACTS[0]), bench.search)
    if method == "r-rome":
        k = torch.cat([seen(model, c, LAST)[0] for c in asked]).mean(0)
        u = torch.linalg.inv(bench.c(LAST)) @ k
        return {LAST: torch.outer(value, u) / (u @ k)}
    goal, changes = torch.cat([seen(model, c, LAST)[1] for c in asked]).mean(0) + value, {}
    for layer in (0, 1):
        k = torch.cat([seen(model, c, layer)[0] for c in asked]).mean(0)
        left = (goal - torch.cat([seen(model, c, LAST)[1] for c in asked]).mean(0)) / (LAST + 1 - layer)
        inverse = torch.linalg.inv(bench.ridge * bench.c(layer) + torch.outer(k, k))
        changes[layer] = torch.outer(left, k @ inverse)
        model.transformer.h[layer].mlp.c_proj.weight += changes[layer].T.float()  # (K, D) there
    return changes


@pytest.mark.parametrize("method", ["r-rome", "memit"])
def test_the_reference_on_gpt2_gives_the_same_change(theirs, tokenizer, tmp_path, method):
    """And so does the model after it was written in transformers' form and read again, to the bit."""
    theirs.save_pretrained(tmp_path / "one")
    config, state = read_checkpoint(tmp_path / "one")
    (tmp_path / "two").mkdir()
    from safetensors.torch import save_file

    (tmp_path / "two" / "config.json").write_text(json.dumps(config_to_hf(config)))
    save_file(state_to_hf(config, state, torch.float32), tmp_path / "two" / "model.safetensors")
    found = []
    for bench in (bench_of(config, state, tokenizer), bench_of(*read_checkpoint(tmp_path / "two"), tokenizer)):
        found.append(together(bench, {"a": (method, editor(method).propose(bench, FACTS[:1])[0])}))
    slow = reference(theirs, bench, method)
    assert found[0].parts.keys() == {matrix(n) for n in slow}
    for layer, expected in slow.items():
        ours = found[0].added(matrix(layer))
        assert torch.allclose(ours, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
        assert torch.equal(ours, found[1].added(matrix(layer))) and float(expected.abs().max()) > 0
