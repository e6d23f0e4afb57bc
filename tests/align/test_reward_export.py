"""Reward models of imported models: LoRA; and out again: transformers' classifiers give the same scores."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file

from jielong.align import reward as stage
from jielong.align.reward import Judge, Labels, Offsets, train_reward
from jielong.align.scoring import Scored, merge, merged_copy, score
from jielong.cli import main
from jielong.config import RewardConfig, adam
from jielong.feedback.labels import Thumb
from jielong.model.gpt import load_model, load_state
from jielong.model.lora import add_lora
from jielong.run import Run
from jielong.serve.reward import RewardModel, answered
from jielong.tokens.tokenizer import Tokenizer

LORA = RewardConfig(
    lora_rank=4, epochs=6.0, rows=8, references=16, max_tokens=6, precision="fp32", threads=2, optim=adam(5e-3)
)


def shape(**more):
    return {
        "vocab_size": 320, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": 0, "eos_token_id": 0, **more,
    }  # fmt: skip


FOREIGN = {
    "gpt2": lambda t: t.GPT2LMHeadModel(
        t.GPT2Config(vocab_size=320, n_embd=48, n_layer=2, n_head=4, n_positions=512, bos_token_id=0, eos_token_id=0)
    ),
    "llama": lambda t: t.LlamaForCausalLM(t.LlamaConfig(**shape(vocab_size=384))),  # more rows than tokens
    "qwen2": lambda t: t.Qwen2ForCausalLM(t.Qwen2Config(**shape(), tie_word_embeddings=True)),
}
CHATS = [
    ([{"role": "user", "content": "What is the capital of France?"}], "Paris."),
    (
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "日本的人說什麼？"}],
        "日本的人說日文，" * 6,
    ),
    (
        [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello!"},
            {"role": "user", "content": "?"},
        ],
        "People in Japan speak Japanese",
    ),
    ([{"role": "user", "content": "a"}], ""),
]


def home_grown(run: Run, model, tokenizer) -> None:
    from jielong.model.gpt import save_model

    with run.build("base", kind="base", config={}) as build:
        save_model(model, build.path)
        tokenizer.save(build.path)


def imported(path, family, tokenizer) -> None:
    torch.manual_seed(0)
    theirs = FOREIGN[family](transformers)
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(torch.randn(p.shape) * 0.1)
    theirs.save_pretrained(path / "theirs")
    tokenizer.rust.save(str(path / "theirs" / "tokenizer.json"))
    (path / "theirs" / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    assert main(["import", str(path / "theirs"), "--run", str(path / "run")]) == 0


def with_reward(run: Run) -> RewardModel:
    """A reward artifact with a random score, scale and shift."""
    base = run.need("base")
    scored, tokenizer = Scored(load_model(base.path)), Tokenizer.load(base.file("tokenizer.json"))
    with torch.no_grad():
        scored.score.weight.normal_(0, 0.3)
        scored.score.bias.fill_(-1.7)
    with run.build("reward", kind="reward", config={}, parents=[base]) as build:
        scored.save(build.path)
        tokenizer.save(build.path)
    return RewardModel.load(build.artifact)


@pytest.fixture(params=["home", *FOREIGN])
def judge(request, tmp_path, model, tokenizer):
    if request.param == "home":
        home_grown(Run(tmp_path / "run"), model, tokenizer)
    else:
        imported(tmp_path, request.param, tokenizer)
    return with_reward(Run(tmp_path / "run"))


def test_transformers_gives_the_same_scores(judge, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["export", str(tmp_path / "run"), "--to", "hf", "--model", "reward", "--out", str(out)]) == 0
    theirs, told = transformers.AutoModelForSequenceClassification.from_pretrained(out, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"] and not told["mismatched_keys"]
    config, tokens = theirs.config, transformers.AutoTokenizer.from_pretrained(out)
    assert type(theirs).__name__ in config.architectures and config.num_labels == 1
    assert config.pad_token_id not in judge.tokenizer.ends - {judge.tokenizer.pad} and tokens.padding_side == "right"
    own = [answered(judge.tokenizer, messages, answer, True) for messages, answer in CHATS]
    expected = score(judge.model, own, torch.float32)
    assert expected.std() > 0.1
    whole = [[*messages, {"role": "assistant", "content": answer}] for messages, answer in CHATS]
    for side in ("right", "left"):
        if side == "left" and config.model_type == "gpt2":
            continue  # it counts positions from the left, padding included
        tokens.padding_side = side
        batch = tokens.apply_chat_template(whole, padding=True, return_tensors="pt", return_dict=True)
        for row, mask, one in zip(batch["input_ids"], batch["attention_mask"], own):
            assert tuple(row[mask.bool()].tolist()) == one.prompt + one.answer  # the template ends with the answer
        with torch.no_grad():
            found = theirs(**batch).logits[:, 0]
            alone = [theirs(torch.tensor([one.prompt + one.answer])).logits[0, 0] for one in own]
        torch.testing.assert_close(found + config.reward_shift, expected, atol=1e-4, rtol=0)
        torch.testing.assert_close((found - config.mean) / config.std, expected, atol=1e-4, rtol=0)  # OpenRLHF's form
        torch.testing.assert_close(torch.stack(alone), found, atol=1e-4, rtol=0)
    assert (config.reward_shift == 0) == (config.model_type == "gpt2")
    prompt = tokens.apply_chat_template(CHATS[0][0], add_generation_prompt=True, return_dict=False)
    assert tuple(prompt) == own[0].prompt
    capsys.readouterr()
    assert main(["export", str(tmp_path / "run"), "--to", "gguf", "--model", "reward"]) == 2
    assert "--to hf" in capsys.readouterr().err
    assert main(["import", str(out), "--run", str(tmp_path / "again")]) == 2  # it writes no text


def test_bf16_export_is_close(tmp_path, model, tokenizer):
    run = Run(tmp_path / "run")
    home_grown(run, model, tokenizer)
    judge = with_reward(run)
    assert main(["export", str(run.path), "--to", "hf", "--model", "reward", "--dtype", "bf16", "--out", str(tmp_path / "o")]) == 0  # fmt: skip
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "o", dtype=torch.float32)
    own = [answered(judge.tokenizer, messages, answer, True) for messages, answer in CHATS]
    with torch.no_grad():
        found = [
            theirs(torch.tensor([one.prompt + one.answer])).logits[0, 0] + theirs.config.reward_shift for one in own
        ]
    torch.testing.assert_close(torch.stack(found), score(judge.model, own, torch.float32), atol=0.1, rtol=0)


# LoRA


def thumbs(count: int) -> list[Thumb]:
    """Good answers hold the token 7."""
    return [
        Thumb((("user", f"q{n}"),), (300 - n % 9, 2, 3), (40 + n % 50, 7 if n % 2 else 8, 4), bool(n % 2), "ann")
        for n in range(count)
    ]


def test_lora_trains_little_and_keeps_a_plain_model(tmp_path, model, tokenizer):
    run = Run(tmp_path)
    home_grown(run, model, tokenizer)
    base = run.need("base")
    artifact = stage.run(LORA, run, thumbs(80), [], base)
    assert artifact.card["metrics"]["held_out"]["auc"][0] > 0.9
    before, after = load_state(base.path), load_file(artifact.file("model.safetensors"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {n for n, t in before.items() if n.startswith("blocks.") and t.ndim == 2}  # not the embedding
    for name in changed:
        rank = torch.linalg.matrix_rank((after[name] - before[name]).double(), rtol=1e-3)
        assert rank <= LORA.lora_rank
    critic = Scored.load(artifact.path)  # as PPO makes its critic
    assert all(p.requires_grad for p in critic.parameters())
    assert not any(".lora." in name for name, _ in critic.named_parameters())


def test_merging_in_place_is_merging_in_a_copy(model):
    add_lora(model, 4, 8.0, 1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("lora.b"):
                p.normal_(0, 0.1)
    copy = merged_copy(model)
    merge(model)
    assert all(torch.equal(p, q) for p, q in zip(model.state_dict().values(), copy.state_dict().values(), strict=True))
    assert model.state_dict().keys() == copy.state_dict().keys()


def test_lora_resumes_to_equal_weights(tmp_path, model):
    labels, start = Labels(thumbs(40), []), {k: v.clone() for k, v in model.state_dict().items()}

    def judge() -> Judge:
        from jielong.model.gpt import GPT

        body = GPT(model.config)
        body.load_state_dict(start)
        add_lora(body, 4, 8.0, 1)
        return Judge(Scored(body), Offsets(1, 40))

    def killed(step, *_):
        if step == 4:
            raise KeyboardInterrupt

    config = RewardConfig(rows=8, precision="fp32", threads=2, checkpoint_seconds=0.0, optim=adam(5e-3))
    whole, first, second = judge(), judge(), judge()
    train_reward(whole, labels, config, 8, tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        train_reward(first, labels, config, 8, tmp_path / "b", killed)
    train_reward(second, labels, config, 8, tmp_path / "b")
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), second.parameters(), strict=True))
