"""Against transformers: logits, greedy text, token ids; import → export → import is the identity."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

from jielong.cli import main
from jielong.config import ModelConfig
from jielong.errors import UserError
from jielong.generate.engine import Engine
from jielong.generate.sampling import Sampling
from jielong.model.gpt import GPT, causal_mask
from jielong.model.hf import config_from_hf, config_to_hf, family_of, read_checkpoint
from jielong.run import Artifact
from jielong.tokens.tokenizer import Tokenizer

V = 320
SHAPE = {
    "vocab_size": V, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip
FAMILIES = {
    "gpt2": lambda t: t.GPT2LMHeadModel(
        t.GPT2Config(vocab_size=V, n_embd=64, n_layer=3, n_head=4, n_positions=512, bos_token_id=0, eos_token_id=0)
    ),
    "llama": lambda t: t.LlamaForCausalLM(t.LlamaConfig(**SHAPE)),
    "llama3": lambda t: t.LlamaForCausalLM(
        t.LlamaConfig(**SHAPE, tie_word_embeddings=True, rope_parameters=LLAMA3, head_dim=32)
    ),
    "llama-bias": lambda t: t.LlamaForCausalLM(t.LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True)),
    "qwen2": lambda t: t.Qwen2ForCausalLM(t.Qwen2Config(**SHAPE, tie_word_embeddings=True)),
    "qwen3": lambda t: t.Qwen3ForCausalLM(t.Qwen3Config(**SHAPE, head_dim=32)),
}
MIXED = (
    "The capital of France is Paris.\n\n  Two  spaces,\ttabs\r\n and   more   ",
    "法國的首都是巴黎。日本的人說日文，不是嗎？「是的」",
    "naïve café 🙂👨‍👩‍👧 1234567 x=3.14; don't I'LL <|im_end|>",
    " ", "", "\n", "a" * 50,
)  # fmt: skip


def make(family, folder, tokenizer, shard="100KB"):
    """A random model of the family, saved by transformers with our tokenizer."""
    torch.manual_seed(0)
    theirs = FAMILIES[family](transformers).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(torch.randn(p.shape) * 0.15)
    theirs.save_pretrained(folder, max_shard_size=shard)
    tokenizer.rust.save(str(folder / "tokenizer.json"))
    special = {"eos_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(special))
    return theirs


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_greedy_text_equal_transformers(family, tmp_path, tokenizer):
    theirs = make(family, tmp_path / "theirs", tokenizer)
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1  # sharded
    assert main(["import", str(tmp_path / "theirs"), "--run", str(tmp_path / "run")]) == 0
    config, state = read_checkpoint(tmp_path / "theirs")
    ours = GPT(config)
    ours.load_state_dict(state)
    ids = torch.randint(0, V, (2, 300))
    with torch.no_grad():
        expected = theirs(ids).logits
        torch.testing.assert_close(ours.logits(ours(ids, causal_mask(300))), expected, atol=1e-4, rtol=0)
    engine = Engine.load(tmp_path / "run" / "base")
    prompt = ids[:1, :20]
    answer = engine.generate([prompt[0].tolist()], Sampling(temperature=0, max_tokens=200, ignore_end=True))[0].answer
    with torch.no_grad():
        greedy = theirs.generate(
            prompt,
            max_new_tokens=200,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            attention_mask=torch.ones_like(prompt),
        )
    assert answer == greedy[0, 20:].tolist() and len(set(answer)) > 5
    # out again: transformers loads it, and it comes back as it was
    assert main(["export", str(tmp_path / "run"), "--to", "hf", "--out", str(tmp_path / "out")]) == 0
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert type(again) is type(theirs)
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, expected, atol=1e-5, rtol=0)
    back, state_back = read_checkpoint(tmp_path / "out")
    assert back == config and state_back.keys() == state.keys()
    assert all(torch.equal(state[k], state_back[k]) for k in state)
    assert main(["import", str(tmp_path / "out"), "--run", str(tmp_path / "again")]) == 0
    files = [Artifact(tmp_path / r / "base").card["files"] for r in ("run", "again")]
    assert files[0]["model.safetensors"] == files[1]["model.safetensors"]
    assert files[0]["tokenizer.json"] == files[1]["tokenizer.json"]


def test_home_grown_models_leave_and_come_back(life, tmp_path):
    out = tmp_path / "out"
    assert main(["export", str(life), "--to", "hf", "--out", str(out)]) == 0
    raw = json.loads((out / "config.json").read_text())
    assert raw["architectures"] == ["Qwen3ForCausalLM"] and raw["model_type"] == "qwen3"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    tokens = transformers.AutoTokenizer.from_pretrained(out)
    engine = Engine.load(life / "sft")
    for text in MIXED:
        plain = text.replace("<|im_end|>", "")
        assert tokens(plain, add_special_tokens=False)["input_ids"] == engine.tokenizer.encode(plain)
    messages = [{"role": "user", "content": "What is the capital of Japan?"}]
    prompt = tokens.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert prompt == engine.chat_ids(messages)
    request = engine.generate([prompt], Sampling(temperature=0, max_tokens=40))[0]
    with torch.no_grad():
        greedy = theirs.generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False)[0, len(prompt) :].tolist()
    assert request.answer == greedy  # also stops at the same token
    assert main(["import", str(out), "--run", str(tmp_path / "back")]) == 0
    files = [Artifact(p).card["files"] for p in (life / "sft", tmp_path / "back" / "base")]
    assert files[0]["model.safetensors"]["sha256"] == files[1]["model.safetensors"]["sha256"]
    assert not Tokenizer.load(tmp_path / "back" / "base" / "tokenizer.json").imported
    assert main(["export", str(life), "--to", "hf", "--dtype", "bf16"]) == 0
    small = next(life.glob("*-sft-bf16-hf")) / "model.safetensors"
    assert small.stat().st_size < 0.6 * (out / "model.safetensors").stat().st_size


def test_llama3_rope_is_that_of_transformers():
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    from jielong.model.gpt import rope_frequencies

    theirs = transformers.LlamaConfig(**SHAPE, head_dim=128, rope_parameters={**LLAMA3, "original_max_position_embeddings": 8192})  # fmt: skip
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](theirs, "cpu")
    torch.testing.assert_close(rope_frequencies(config_from_hf(theirs.to_dict())), expected)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"model_type": "mamba"}, "mamba"),
        ({**SHAPE, "model_type": "llama", "rope_scaling": {"rope_type": "yarn", "factor": 2}}, "yarn"),
        ({**SHAPE, "model_type": "llama", "hidden_act": "gelu"}, "hidden_act"),
        ({**SHAPE, "model_type": "llama", "attention_bias": True}, "mlp_bias"),
        ({**SHAPE, "model_type": "qwen2", "use_sliding_window": True}, "sliding"),
        ({"model_type": "llama", "vocab_size": 3}, "lacks"),
        ({"model_type": "gpt2", "activation_function": "relu"}, "relu"),
    ],
)
def test_what_gpt_cannot_be_is_refused(raw, message):
    with pytest.raises(UserError, match=message):
        config_from_hf(raw)


def test_shapes_that_no_other_tool_knows():
    with pytest.raises(UserError, match="relu2"):
        family_of(ModelConfig(mlp="relu2"))
    assert config_to_hf(ModelConfig())["model_type"] == "qwen3"


def test_bad_sources_say_what_to_do(tmp_path, tokenizer, capsys):
    folder = tmp_path / "model"
    make("llama", folder, tokenizer, shard="10MB")

    def said(*args):
        assert main(["import", *map(str, args), "--run", str(tmp_path / "bad")]) == 2
        assert not (tmp_path / "bad" / "base").exists()
        return capsys.readouterr().err

    assert "no file or folder" in said(tmp_path / "nothing")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert "damaged" in said(folder)
    weights.rename(folder / "pytorch_model.bin")
    assert "pickle" in said(folder)
    (folder / "config.json").write_text("{")
    assert "JSON" in said(folder)
    (folder / "config.json").unlink()
    assert "config.json" in said(folder)
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + b"\0" * 100)
    assert "GGUF" in said(tmp_path / "x.gguf")
    (tmp_path / "y.gguf").write_bytes(b"not one")
    assert "GGUF" in said(tmp_path / "y.gguf")
