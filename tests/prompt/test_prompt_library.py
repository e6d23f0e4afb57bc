"""Prompt files, the library, and what people bring in."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jielong.cli import main
from jielong.errors import UserError
from jielong.prompt.form import Prompt, fill, parse, write
from jielong.prompt.store import BUILT_IN, collection, find, library


def fails(argv, capsys) -> str:
    """The message of a command that must end with 2."""
    assert main(argv) == 2
    return capsys.readouterr().err


def test_every_built_in_prompt_is_whole_and_there_in_both_languages():
    prompts, problems = library(None)
    assert not problems
    assert len(prompts) == len(list(BUILT_IN.iterdir())) >= 30
    by_name: dict[str, dict[str, Prompt]] = {}
    for p in prompts:
        by_name.setdefault(p.name, {})[p.lang] = p
        text = p.opening({})[0]["content"]  # every variable has a default
        assert p.title and p.purpose and 60 < len(text) < 700 and "{" not in text
        assert any("\u4e00" <= c <= "\u9fff" for c in text) == (p.lang == "zh-TW")
    for both in by_name.values():
        assert set(both) == {"en", "zh-TW"}
        assert [n for n, _ in both["en"].variables] == [n for n, _ in both["zh-TW"].variables]


texts = st.text(st.characters(exclude_categories=("Cs", "Cc")) | st.just("\n"), max_size=60).map(
    lambda t: t.strip("\n").replace("\r", "").replace("{{", "")
)
lines = st.sampled_from(["=== user", "\\=== assistant", "\\\\=== user", "---", "name: x", "{{no}}", "=== users"])
bodies = st.lists(texts | lines, max_size=4).map(lambda parts: "\n".join(parts).strip("\n"))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
@given(system=texts, shots=st.lists(st.tuples(bodies, bodies), max_size=3), default=st.none() | texts)
def test_a_file_says_the_same_after_writing_and_reading(system, shots, default):
    default = None if default is None else " ".join(default.split())
    prompt = Prompt("a-1", f"{{{{tone}}}}{system}", tuple(shots), "Q: {{input}}", "Title", "For this.", "en", (("tone", default),), ("x", "y"), True)  # fmt: skip
    assert parse(write(prompt), "here") == prompt


def test_variables_are_filled_once_and_only_where_they_belong():
    prompt = parse("name: p\nlang: en\nvariable: who\nvariable: tone = kind\n---\nBe {{ tone }} to {{who}}.\n=== user\n{{who}}\n=== assistant\nyes\n=== user\n<{{input}}>\n", "p")  # fmt: skip
    assert prompt.messages({"who": "{{tone}}"}, "{{who}}") == [
        {"role": "system", "content": "Be kind to {{tone}}."},
        {"role": "user", "content": "{{who}}"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "<{{who}}>"},
    ]
    with pytest.raises(UserError, match="needs 'who'; give it with --var who=…"):
        prompt.opening({})
    with pytest.raises(UserError, match="no variable 'colour'; it has who, tone"):
        prompt.opening({"who": "x", "colour": "red"})
    with pytest.raises(UserError, match="b"):
        fill("{{a}}{{b}}", {"a": "1"})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: x\nno line", "must part its head"),
        ("name: x y\n---\nt", "letters, digits"),
        ("name: x\ncolour: red\n---\nt", "'colour: red' is not one of the lines"),
        ("name: x\n---\nBe {{tone}}.", "no line 'variable: tone'"),
        ("name: x\nvariable: input\n---\nt", "no name for a variable"),
        ("name: x\nvariable: 1a\n---\nt", "no name for a variable"),
        ("name: x\n---\n{{input}}", "belongs into the last user's part"),
        ("name: x\n---\nt\n=== user\nhi", "belongs into the last user's part"),
        ("name: x\n---\nt\n=== assistant\nhi", "one '=== assistant'"),
        ("name: x\n---\nt\n=== user\na\n=== user\n{{input}}", "one '=== assistant'"),
    ],
)
def test_a_wrong_file_is_named_with_what_is_wrong(text, told):
    with pytest.raises(UserError, match=told) as problem:
        parse(text, "my.md")
    assert "my.md" in str(problem.value)


def test_own_prompts_come_first_and_damaged_ones_do_not_hide_the_others(tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    text = "You are a pirate called {{name}}."
    make = ["prompt", "new", "translator", "--text", text, "--purpose", "Talks\nlike a pirate", "--run", str(run)]
    assert main([*make, "--var", "name=Jack"]) == 0
    assert (run / "prompts" / "translator.en.md").read_text(encoding="utf-8").endswith(f"---\n{text}\n")
    assert find("translator", run).source == "run" and find("translator", run, "zh-TW").source == "built in"
    assert find("translator.zh-TW", run).lang == "zh-TW"
    assert "exists; use another name, or --force" in fails(make, capsys)
    assert main([*make, "--force", "--everywhere"]) == 0  # for all runs
    assert find("translator", tmp_path / "other").source == "yours"
    (run / "prompts" / "broken.md").write_bytes(b"\xff\xfe")
    capsys.readouterr()
    assert main(["prompt", "list", "--run", str(run), "--lang", "en"]) == 0
    told = capsys.readouterr()
    assert "left out" in told.err and "broken.md" in told.err and "translator         en     run" in told.out
    assert "翻譯" not in told.out and "sceptic" in told.out
    assert main(["prompt", "list", "--run", str(run), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    mine = next(p for p in listed if p["name"] == "translator" and p["lang"] == "en")
    assert mine["system"] == text and mine["variables"] == [{"name": "name", "default": "Jack"}]
    assert main(["prompt", "show", "translator", "--var", "name=Ann", "--run", str(run)]) == 0
    assert "[system] You are a pirate called Ann." in capsys.readouterr().out


def test_wrong_names_and_values(tmp_path, capsys):
    run = ["--run", str(tmp_path)]
    assert "similar ones: translator" in fails(["prompt", "show", "translater", *run], capsys)
    assert "`jielong prompt list`" in fails(["prompt", "show", "qqqq", *run], capsys)
    assert "no variable 'x'; it has language" in fails(["prompt", "show", "translator", "--var", "x=1", *run], capsys)
    assert "must read NAME=VALUE" in fails(["prompt", "show", "translator", "--var", "French", *run], capsys)
    assert "there in en, zh-TW, not in fr" in fails(["prompt", "show", "poet", "--lang", "fr", *run], capsys)
    assert "letters, digits" in fails(["prompt", "new", "../x", "--text", "hi", *run], capsys)
    assert "one of en, zh-TW" in fails(["prompt", "new", "x", "--text", "hi", "--lang", "fr", *run], capsys)
    assert "no {{y}} in the text" in fails(["prompt", "new", "x", "--text", "hi", "--var", "y=1", *run], capsys)
    assert "no name for a variable" in fails(["prompt", "new", "x", "--text", "say {{input}}", *run], capsys)
    assert "is half of one" in fails(["prompt", "new", "x", "--text", "caf\udce9", *run], capsys)
    assert "There is no prompt" in fails(["prompt", "show", "x" * 300 + ".md", *run], capsys)
    assert "needs one word more: prompt list" in fails(["prompt"], capsys)
    assert list(tmp_path.iterdir()) == []


def test_public_collections_come_in(tmp_path, capsys):
    rows = [
        {"act": "Linux Terminal", "prompt": "Act as a terminal.\nMy command is ${first command:pwd}", "for_devs": True},
        {"act": "linux terminal!", "prompt": "Another one for {{input}}."},
        {"act": "擔任廣告商", "prompt": "我希望你充當廣告商。"},
        {"act": "Linux Terminal", "prompt": "Act as a terminal.\nMy command is ${first command:pwd}"},
    ]
    as_json, as_csv = tmp_path / "p.json", tmp_path / "p.csv"
    as_json.write_text(json.dumps(rows), encoding="utf-8")
    as_csv.write_text('\ufeff"act","prompt"\n"Poet ""x""","Write, in two\nlines"\n', encoding="utf-8")
    prompts = collection(as_json, "en")
    assert [p.name for p in prompts] == ["linux-terminal", "linux-terminal-2", "擔任廣告商"]
    assert prompts[0].opening({})[0]["content"].endswith("My command is pwd")
    assert prompts[0].variables == (("first_command", "pwd"),) and prompts[1].variables == (("_input", None),)
    run = ["--run", str(tmp_path / "run")]
    for command in (["import", str(as_json)], ["new", "x", "--text", "hi"]):  # a slip of the pen makes no folder
        assert "There is no run" in fails(["prompt", *command, *run], capsys) and not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    assert main(["prompt", "import", str(as_json), *run]) == 0
    assert "3 of 3 prompts stored" in capsys.readouterr().out
    assert main(["prompt", "import", str(as_json), *run]) == 0
    assert "0 of 3 prompts stored, 3 were there" in capsys.readouterr().out
    assert main(["prompt", "import", str(as_csv), *run]) == 0
    assert find("poet-x", tmp_path / "run").opening({})[0]["content"] == "Write, in two\nlines"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('[{"act": "a", "prompt": "b"}, {"act": "c"}]', "row 2 has no text"),
        ('[{"act": "a", "prompt": 3}]', "row 1 has no text"),
        ("[1, 2]", "row 1 has no text"),
        ("[{]", "no valid JSON"),
        ("[]", "has no rows"),
        ("name,text\na,b\n", "neither a JSON list nor a CSV"),
        ("act,prompt\na,b\nc\n", "row 2 has no text"),
        ("[" * 100_000, "no valid JSON"),
        ('[{"act": "a", "prompt": "b"}, {"act": "c", "prompt": "\\ud800"}]', "half of one"),
        ('act,prompt\na,"b\n', "unexpected end of data"),
    ],
)
def test_a_wrong_collection_is_refused_as_a_whole(tmp_path, capsys, content, told):
    file = tmp_path / "p"
    file.write_text(content, encoding="utf-8")
    (tmp_path / "run").mkdir()
    assert told in fails(["prompt", "import", str(file), "--run", str(tmp_path / "run")], capsys)
    assert list((tmp_path / "run").iterdir()) == []
