"""Causal tracing against its definition."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from jielong.cli import main
from jielong.edit.facts import places
from jielong.edit.trace import restore, subject_tokens
from jielong.model.gpt import causal_mask


def test_what_is_put_back(model, tokenizer):
    """Without noise every state is the clean one. With noise, the last token's state behind the last layer is the whole answer;
    what stands behind the subject's first noisy token in layer 0 is computed by hooks, the slow way."""
    ids = tokenizer.encode("The capital of France is")
    spots = subject_tokens(tokenizer, ids, "France")
    assert (
        tokenizer.decode([ids[n] for n in spots]).strip() == "France"
        and spots[-1] == places(tokenizer, ids, "France")[0]
    )
    clean, same, table = restore(model, ids, spots, 40, 2, 0.0, 1)
    assert same == pytest.approx(clean, rel=1e-5) and torch.allclose(table, torch.full_like(table, clean), rtol=1e-4)
    clean, blurred, table = restore(model, ids, spots, 40, 3, 3.0, 1)
    assert blurred != pytest.approx(clean, rel=1e-3) and table.shape == (len(ids), 2)
    assert float(table[-1, -1]) == pytest.approx(clean, rel=1e-5)
    assert torch.allclose(
        table[:-1, -1], torch.full((len(ids) - 1,), blurred), rtol=1e-4
    )  # the last layer moves nothing

    x = model.embedding(torch.tensor([ids])).detach()
    draws = torch.randn(3, len(spots), x.shape[-1], generator=torch.Generator().manual_seed(1))
    kept = {}
    hook = model.blocks[0].register_forward_hook(lambda _m, _i, out: kept.__setitem__("out", out.detach()))
    model(torch.tensor([ids]), causal_mask(len(ids)))
    hook.remove()

    def noise(_module, _given, out):
        out = out.clone()
        out[:, spots] += 3.0 * model.embedding.weight.std() * draws
        return out

    def back(_module, _given, out):
        out = out.clone()
        out[:, spots[-1]] = kept["out"][:, spots[-1]]
        return out

    hooks = [model.embedding.register_forward_hook(noise), model.blocks[0].register_forward_hook(back)]
    hidden = model(torch.tensor([ids] * 3), causal_mask(len(ids)))
    chance = model.logits(hidden[:, -1]).softmax(-1)[:, 40].mean()
    for one in hooks:
        one.remove()
    assert float(table[spots[-1], 0]) == pytest.approx(float(chance.detach()), rel=1e-4)


def test_the_command(raised, tmp_path, capsys):
    asked = ["edit", "trace", str(raised), "The capital of France is", "--subject", "France"]
    assert main([*asked, "--answer", "Paris", "--samples", "2", "--out", str(tmp_path / "trace.html")]) == 0
    out = capsys.readouterr().out
    assert "with the subject blurred" in out and "France" in (tmp_path / "trace.html").read_text()
    assert main([*asked[:-1], "Spain"]) == 2 and "does not stand in the prompt" in capsys.readouterr().err
    assert main([*asked, "--samples", "0"]) == 2
    capsys.readouterr()
    assert (
        main([*asked, "--out", str(tmp_path / "none" / "trace.html")]) == 2 and "no folder" in capsys.readouterr().err
    )


def test_tokens_that_reach_over_the_border(tokenizer):
    """A token that holds the subject's end and what follows, and one that holds its beginning and what stands before."""

    class Spelt:
        def token_bytes(self, i: int) -> bytes:
            return [b"The ", b"land Fr", b"an", b"ce is"][i]

    assert subject_tokens(cast(Any, Spelt()), [0, 1, 2, 3], "France") == [1, 2, 3]
