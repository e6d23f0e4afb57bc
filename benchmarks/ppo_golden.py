"""Golden values of PPO's arithmetic: what TRL 1.12, the last release with PPOTrainer, makes of frozen numbers.

    python -m venv /some/where/trl && /some/where/trl/bin/pip install 'torch~=2.13.0' 'trl==1.12.0'
    /some/where/trl/bin/python benchmarks/ppo_golden.py tests/align/golden/trl-1.12.json

TRL's PPO is one long method, PPOTrainer.train(). This runs that method, unchanged, on a random model of a few hundred
weights. What would come out of models is replaced by frozen tensors, which are written down as inputs: the drawn answers and
the tables of logits of the old, the reference and the new policy, old and new values, and scores. What the method
makes of them is read from its local variables at two places, where it whitens and where it asks for the gradient.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

E, L, V = 8, 6, 7  # episodes, longest answer, vocabulary
PAD, EOS, FIRST = 0, 1, 10  # a query is the token FIRST + episode, twice: nothing is embedded here
LENGTHS = [1, 2, 3, 4, 6, 6, 6, 5]  # of the ragged answers; 4 ends at the last place, 5 and 6 do not end
CASES: dict[str, dict[str, Any]] = {
    "full": {"temperature": 0.7, "kl_coef": 0.15, "gamma": 1.0, "lam": 0.95},
    "ragged": {"temperature": 0.7, "kl_coef": 0.05, "gamma": 0.9, "lam": 0.8, "missing_eos_penalty": 1.0},
    "whitened": {"temperature": 1.0, "kl_coef": 0.3, "gamma": 1.0, "lam": 0.95, "whiten_rewards": True},
}


def frozen() -> dict[str, Tensor]:
    """The inputs. The new policy and values lie far enough from the old ones for every clip to bite."""
    g = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    old, values = noise(E, L, V), noise(E, L)
    tables = {"old": old, "reference": old + 0.5 * noise(E, L, V), "new": old + 0.4 * noise(E, L, V)}
    tables |= {"values": values, "new_values": values + 0.4 * noise(E, L), "scores": 2 * noise(E)}
    return {name: (t * 1000).round() / 1000 for name, t in tables.items()}


def answers(ragged: bool) -> Tensor:
    """(E, L) token ids, padded."""
    tokens = torch.randint(2, V, (E, L), generator=torch.Generator().manual_seed(2))
    if ragged:
        for row, length in enumerate(LENGTHS):
            tokens[row, length:] = PAD
            if row not in (5, 6):
                tokens[row, length - 1] = EOS
    return tokens


def make_trainer(settings: dict[str, Any], ragged: bool, folder: str) -> Any:
    """TRL's trainer for one update of one pass over E episodes."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, Qwen3ForSequenceClassification
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    shape = Qwen3Config(
        vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=8, num_labels=1, pad_token_id=PAD, eos_token_id=EOS,
    )  # fmt: skip
    words = {"<pad>": PAD, "<eos>": EOS} | {f"w{n}": n for n in range(2, 32)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words)), pad_token="<pad>", eos_token="<eos>"
    )
    args = PPOConfig(
        output_dir=folder, use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[], save_strategy="no",
        per_device_train_batch_size=E, gradient_accumulation_steps=1, total_episodes=E, num_ppo_epochs=1,
        num_mini_batches=1, response_length=L, num_sample_generations=0, disable_tqdm=True,
        stop_token="eos" if ragged else None, **settings,
    )  # fmt: skip
    queries = Dataset.from_list([{"input_ids": [FIRST + n] * 2} for n in range(E)])
    policy, reference = Qwen3ForCausalLM(shape), Qwen3ForCausalLM(shape)
    reward, value = Qwen3ForSequenceClassification(shape), Qwen3ForSequenceClassification(shape)
    return PPOTrainer(args, tokenizer, policy, reference, reward, queries, value)


def record(settings: dict[str, Any], ragged: bool, given: dict[str, Tensor]) -> dict[str, Any]:
    """What TRL makes of the inputs: padded (E, L) arrays in the order of the inputs, and numbers."""
    from trl.experimental.ppo import ppo_trainer as module

    drawn = answers(ragged)
    new = given["new"].clone().requires_grad_()
    new_values = given["new_values"].clone().requires_grad_()
    found: dict[str, Any] = {}

    def rows(tokens: Tensor) -> Tensor:
        return tokens[:, 0] - FIRST

    def beside_prompt(answer: Tensor) -> Tensor:
        """(B, L, …) → (B, 2 + L, …): what stands before answer token t is found at position t + 1."""
        blank = torch.zeros(len(answer), 1, *answer.shape[2:])
        return torch.cat([blank, answer, blank], 1)

    def keep(names: dict[str, str], seen: dict[str, Any], order: Tensor) -> None:
        for name, local in names.items():
            found[name] = seen[local].detach().clone()[order.argsort()]

    # stand-ins for the models

    def batch_generation(model, queries, *_):
        own = rows(queries)
        return torch.cat([queries, drawn[own]], 1), given["old"][own] / settings["temperature"]

    def forward(model, tokens, pad):
        own = rows(tokens)
        if model is trainer.ref_model:
            return SimpleNamespace(logits=beside_prompt(given["reference"][own]))
        return SimpleNamespace(logits=beside_prompt(new[own])), beside_prompt(new_values[own].unsqueeze(-1))

    def get_reward(model, tokens, *_):
        own = rows(tokens)
        return beside_prompt(given["values"][own].unsqueeze(-1)), given["scores"][own], None

    # looks into the method

    def masked_whiten(values, mask, shift_mean=True):
        seen = sys._getframe(1).f_locals
        order = rows(seen["queries"])
        if "returns" in seen:
            names = {"rewards": "rewards", "returns": "returns", "values": "values", "plain_advantages": "advantages"}
            keep({**names, "scores": "scores", "pad": "padding_mask", "pad_p1": "padding_mask_p1"}, seen, order)
        else:
            keep({"plain_rewards": "rewards"}, seen, order)
        return plain_whiten(values, mask, shift_mean=shift_mean)

    def backward(loss):
        seen = sys._getframe(1).f_locals
        keep({"advantages": "advantages", "logprobs": "logprobs", "kl": "kl"}, seen, rows(seen["queries"]))
        keep({"new_logprobs": "new_logprobs", "ratio": "ratio"}, seen, rows(seen["mb_query_responses"]))
        found.update({name: float(seen[name].detach()) for name in ("pg_loss", "vf_loss", "vf_clipfrac", "loss")})
        loss.backward()

    kept = {name: getattr(module, name) for name in ("batch_generation", "forward", "get_reward", "masked_whiten")}
    plain_whiten = module.masked_whiten
    module.batch_generation, module.forward, module.get_reward = batch_generation, forward, get_reward
    module.masked_whiten = masked_whiten
    try:
        with tempfile.TemporaryDirectory() as folder:
            trainer = make_trainer(settings, ragged, folder)
            trainer.accelerator.backward = backward
            told: dict[str, float] = {}
            trainer.log = told.update
            trainer.train()
    finally:
        for name, value in kept.items():
            setattr(module, name, value)
    names = {"policy/approxkl_avg": "approxkl", "policy/clipfrac_avg": "clipfrac", "val/ratio": "mean_ratio"}
    found |= {ours: told[theirs] for theirs, ours in names.items()}
    found |= {"new_gradient": new.grad, "new_values_gradient": new_values.grad}
    defaults = ("cliprange", "cliprange_value", "vf_coef", "whiten_rewards", "missing_eos_penalty")
    found["settings"] = {**{name: getattr(trainer.args, name) for name in defaults}, **settings}
    return {"answers": drawn, **found}


def plain(value: Any) -> Any:
    """As JSON data, to eight digits."""
    if isinstance(value, Tensor):
        return plain(value.int().tolist() if value.dtype == torch.bool else value.tolist())
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [plain(v) for v in value]
    return float(f"{value:.8g}") if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    import numpy as np
    import transformers
    import trl

    torch.manual_seed(0)
    np.random.seed(0)  # TRL's order of a pass
    given = frozen()
    made = {"trl": trl.__version__, "transformers": transformers.__version__, "torch": torch.__version__}
    cases = {name: record(settings, name != "full", given) for name, settings in CASES.items()}
    golden = {"made_by": "benchmarks/ppo_golden.py", "versions": made, "inputs": given, "cases": cases}
    args.out.write_text(json.dumps(plain(golden)) + "\n", encoding="utf-8")
    for name, case in cases.items():
        numbers = {k: round(case[k], 6) for k in ("pg_loss", "vf_loss", "loss", "approxkl", "clipfrac", "mean_ratio")}
        print(name, numbers)


if __name__ == "__main__":
    main()
