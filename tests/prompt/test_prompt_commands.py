"""Talking under a prompt: one question, and a conversation in the terminal."""

from __future__ import annotations

import io
import json
import shutil

import pytest
from test_prompt_library import fails

import jielong.prompt.answer as answer
import jielong.serve.terminal as terminal
from jielong.cli import main
from jielong.generate.engine import Engine
from jielong.tokens.chat import chat_ids


@pytest.fixture
def read(monkeypatch):
    """Every conversation that is turned into tokens."""
    seen: list[list[dict[str, str]]] = []

    def spy(tokenizer, messages, add_generation_prompt=False):
        seen.append(list(messages))
        return chat_ids(tokenizer, messages, add_generation_prompt)

    monkeypatch.setattr(answer, "chat_ids", spy)
    return seen


def test_one_question(tiny, read, capsys, monkeypatch):
    run = ["--run", str(tiny.path), "--max-tokens", "3", "--seed", "1"]
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tiny.path / "config"))
    assert main(["prompt", "new", "short", "--text", "Be {{how}}.", "--run", str(tiny.path)]) == 0
    assert main(["prompt", "run", "short", "--var", "how=brief", "--ask", "Hi {{there}}", *run]) == 0
    assert read[-1] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi {{there}}"}]
    first = capsys.readouterr().out.splitlines()[1:]
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi {{there}}\n"))
    assert main(["prompt", "run", "short", "--var", "how=brief", *run]) == 0
    assert capsys.readouterr().out.splitlines() == first and read[-1] == read[-2]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9"), encoding="utf-8"))
    assert "not UTF-8" in fails(["prompt", "run", "short", "--var", "how=brief", *run], capsys)
    for wrong, told in (
        (["--max-tokens", "0"], "max_tokens at least 1"), (["--temperature", "nan"], "temperature must be a number"),
        (["--temperature", "-1"], "temperature must be at least 0"), (["--ask", "\udcff"], "half of one"),
    ):  # fmt: skip
        assert told in fails(["prompt", "run", "short", "--var", "how=brief", "--ask", "x", *run, *wrong], capsys)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert "Nothing is asked" in fails(["prompt", "run", "short", "--var", "how=brief", *run], capsys)
    assert "needs 'how'; give it with --var how=…" in fails(["prompt", "run", "short", "--ask", "x", *run], capsys)
    assert "There is no prompt 'nobody'" in fails(["prompt", "run", "nobody", "--ask", "x", *run], capsys)
    long = ["prompt", "run", "short", "--var", "how=brief", "--ask", "word " * 400, *run]
    assert "this model reads at most 511" in fails(long, capsys)


def test_an_option_may_be_repeated(tiny, capsys):
    """Of two --var both count: else the last would silently win."""
    assert main(["prompt", "new", "both", "--text", "{{a}} {{b}}", "--run", str(tiny.path)]) == 0
    for given in (
        ["--var", "a=1", "--var", "b=2"],
        ["--var", "a=1", "b=2"],
        ["--var=a=1", "--lang", "en", "--var=b=2"],
    ):
        capsys.readouterr()
        assert main(["prompt", "show", "both", "--run", str(tiny.path), *given]) == 0
        assert capsys.readouterr().out.startswith("[system] 1 2\n")


def test_a_conversation(tiny, capsys, monkeypatch, tmp_path):
    seen: list[list[dict[str, str]]] = []
    real = Engine.chat_ids
    monkeypatch.setattr(
        Engine, "chat_ids", lambda engine, messages: seen.append(list(messages)) or real(engine, messages)
    )
    monkeypatch.setattr(terminal, "hint", lambda: "")
    saved = tmp_path / "talk.json"
    lines = iter(["Hello", "Again", f"/save {saved}", "/new", "Third", "/quit"])
    monkeypatch.setattr("builtins.input", lambda prompt="": next(lines))
    chat = ["chat", "--run", str(tiny.path), "--max-tokens", "3", "--prompt", "tutor.zh-TW"]
    assert main([*chat, "--var", "subject=歷史"]) == 0
    assert [[m["role"] for m in messages] for messages in seen] == [
        ["system", "user"], ["system", "user", "assistant", "user"], ["system", "user"],
    ]  # fmt: skip
    assert seen[0][0]["content"].startswith("你教歷史。") and seen[2][0] == seen[0][0]
    assert [m["role"] for m in json.loads(saved.read_text())["messages"]] == ["system", *["user", "assistant"] * 2]
    assert "no variable 'x'" in fails([*chat, "--var", "x=1"], capsys)


def test_what_gives_marks_answers_nothing(tiny, capsys, tmp_path):
    """A reward model has a model's weights, but no command takes it for one that talks; nor an artifact that is no model."""
    shutil.copytree(tiny.path / "sft", tiny.path / "reward-1")
    (tiny.path / "reward-1" / "score.safetensors").touch()
    with tiny.build("notes", kind="notes", config={}) as build:
        (build.path / "notes.txt").touch()
    text = tmp_path / "text.txt"
    text.write_text("Who wrote this text?")
    for command in (["prompt", "run", "translator", "--ask", "x"], ["chat"], ["detect", str(text)]):
        for name in ("reward-1", "notes"):
            assert "no model that talks" in fails([*command, "--model", name, "--run", str(tiny.path)], capsys)
