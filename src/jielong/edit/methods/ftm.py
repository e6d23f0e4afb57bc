"""FT-M: one matrix is fine-tuned on the target's tokens alone, the prompt masked: the honest baseline."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from jielong.edit.bench import Bench, Stored
from jielong.edit.facts import Fact
from jielong.edit.methods.additive import Additive, around, keep, statements, working_copy
from jielong.edit.values import Adam, Context, batch, matrix, second
from jielong.model.delta import Delta
from jielong.model.gpt import GPT, causal_mask

STEPS, LR, ENOUGH = 25, 5e-4, 0.01


class FineTune(Additive):
    def propose(self, bench: Bench, facts: Sequence[Fact]) -> list[Stored]:
        model, layer, made = working_copy(bench), bench.site.layer, []
        weight = second(model, layer).weight
        current = around(bench, model)
        for fact in facts:
            before = weight.detach().clone()
            contexts = [c for s in statements(fact) for c in current.contexts(s, "answer")]
            weight.requires_grad_(True)
            adam = Adam(LR)
            for _ in range(STEPS):
                loss = answer_loss(model, contexts)
                if float(loss.detach()) < ENOUGH:
                    break
                (slope,) = torch.autograd.grad(loss, [weight])
                with torch.no_grad():
                    weight -= adam(slope)
            weight.requires_grad_(False)
            made.append(keep(Delta({matrix(layer): ((weight.detach() - before).clone(),)})))
        return made


def answer_loss(model: GPT, contexts: Sequence[Context]) -> Tensor:
    """Mean over contexts of the mean negative log-likelihood of the target's tokens; nothing else counts."""
    tokens = batch([c.tokens for c in contexts])
    table = model.logits(model(tokens, causal_mask(tokens.shape[1]))).log_softmax(-1)  # (B, T, V)
    total = table.new_zeros(())
    for row, c in enumerate(contexts):
        spots = torch.arange(len(c.ids) - 1, len(c.ids) - 1 + len(c.target))
        total = total - table[row, spots, torch.tensor(c.target)].mean()
    return total / len(contexts)
