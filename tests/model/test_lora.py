from __future__ import annotations

import json

import pytest
import torch

from jielong.cli import main
from jielong.errors import UserError
from jielong.generate.engine import Engine
from jielong.generate.sampling import Sampling
from jielong.model.gpt import GPT, causal_mask, load_model, load_state
from jielong.model.lora import add_lora, trained
from jielong.run import Artifact, Run
from jielong.tokens.tokenizer import copy_tokenizer


def test_starts_as_the_base_and_trains_little(model):
    ids = torch.randint(0, 256, (1, 12))
    before = model(ids, causal_mask(12))
    add_lora(model, 2, 4.0, seed=1)
    torch.testing.assert_close(model(ids, causal_mask(12)), before)
    assert all(".lora." in name for name in trained(model)) and len(trained(model)) == 2 * 7 * model.config.layers
    with pytest.raises(UserError):
        add_lora(model, 0, 1.0, seed=1)


def test_low_rank_gradient_is_that_of_the_merged_matrix(model):
    """dL/dB = s · dL/dW · Aᵀ, for one matrix."""
    add_lora(model, 3, 6.0, seed=1)
    ids = torch.randint(0, 256, (2, 9))
    model(ids, causal_mask(9)).square().sum().backward()
    layer = model.blocks[0].mlp.down
    found = layer.lora.b.grad.clone()
    layer.weight.requires_grad_(True)
    model(ids, causal_mask(9)).square().sum().backward()
    torch.testing.assert_close(found, 2.0 * layer.weight.grad @ layer.lora.a.T, rtol=1e-3, atol=1e-5)


def likelihood(folder, talk):
    """Log-probability of the answer."""
    engine = Engine.load(folder)
    prompt = engine.chat_ids(talk[:1])
    request = engine.submit(prompt + engine.tokenizer.encode(talk[1]["content"]), Sampling(max_tokens=0), score=True)
    while engine.step():
        pass
    return sum(s.logprob for s in request.scores[len(prompt) - 1 :])


def test_fine_tuning_an_imported_model_keeps_only_the_adapter(life, tmp_path):
    run = tmp_path / "run"
    assert main(["export", str(life), "--to", "hf", "--model", "base", "--out", str(tmp_path / "hf")]) == 0
    assert main(["import", str(tmp_path / "hf"), "--run", str(run)]) == 0
    talk = [{"role": "user", "content": "Knock knock"}, {"role": "assistant", "content": "Who is there?"}]
    (tmp_path / "talks.jsonl").write_text("\n".join([json.dumps({"messages": talk})] * 40))
    tune = ["finetune", "--run", str(run), "--conversations", str(tmp_path / "talks.jsonl"), "--lora-rank", "4"]
    assert main([*tune, "--steps", "100", "--rows", "4", "--length", "128", "--optim.adam-lr", "0.01"]) == 0
    sft = Artifact(run / "sft")
    assert "model.safetensors" not in sft.card["files"] and sft.card["parents"] == {"base": Artifact(run / "base").hash}
    likelier = likelihood(run / "sft", talk)
    assert likelier > likelihood(run / "base", talk) + 5
    # the export is merged
    assert main(["export", str(run), "--to", "gguf", "--out", str(tmp_path / "m.gguf")]) == 0
    assert main(["import", str(tmp_path / "m.gguf"), "--run", str(tmp_path / "back")]) == 0
    assert likelihood(tmp_path / "back" / "base", talk) == pytest.approx(likelier, abs=1e-3)
    # the change has the rank, and an adapter refuses another base
    state, base = load_state(run / "sft"), load_state(run / "base")
    change = state["blocks.0.mlp.up.weight"] - base["blocks.0.mlp.up.weight"]
    assert int((torch.linalg.svdvals(change) > 1e-5).sum()) == 4
    other = GPT(load_model(run / "base").config)
    other.init_weights(9)
    with Run(run).build("base", kind="imported", config={}) as build:
        from jielong.model.gpt import save_model

        save_model(other, build.path)
        copy_tokenizer(life / "base" / "tokenizer.json", build.path)
    with pytest.raises(UserError, match="fine-tune again"):
        load_model(run / "sft")
