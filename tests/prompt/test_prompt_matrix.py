"""The matrix: its file, its figures, its page."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from prompt_runs import make_run
from test_prompt_library import fails

from jielong.cli import main
from jielong.errors import UserError
from jielong.evaluate.qa import newcombe
from jielong.prompt.matrix import difference, mean_interval, percent
from jielong.prompt.sheet import Check, read_sheet

GOOD = """
prompts: ["Say {{word}}."]
providers: [RUN]
tests:
  - vars: {word: hello}
    assert: [{type: contains, value: hello}]
"""


def sheet(tmp_path, tiny, text):
    file = tmp_path / "m.yaml"
    file.write_text(text.replace("RUN", str(tiny.path)), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("[\"Say {{word}}.\"]", "[", "no valid YAML"),
        ("prompts:", "prompt:", "the file has 'prompt', which is not supported"),
        ("tests:", "scenarios: []\ntests:", "'scenarios', which is not supported"),
        ("{{word}}", "{{word | upper}}", "filters and conditions are not understood"),
        ("{{word}}", "{% if x %}", "filters and conditions are not understood"),
        ("{{word}}", "{{wort}}", "test 1 has no 'wort', which the prompt 'Say {{wort}}.' needs"),
        ("RUN", "openai:gpt-4o", "'openai:gpt-4o' is no run's folder"),
        ("[RUN]", "[{id: RUN, config: {top_k: 3}}]", "has 'top_k', which is not supported"),
        ("[RUN]", "[{id: RUN, config: {temperature: hot}}]", "temperature of .* must be a number"),
        ("[RUN]", "[{id: RUN, config: {max_tokens: 0}}]", "max_tokens at least 1"),
        ("[RUN]", "[{id: RUN, config: {max_tokens: 2.5}}]", "max_tokens of .* must be a whole number, not 2.5"),
        ("[RUN]", "[{id: RUN, config: {seed: .inf}}]", "seed of .* must be a whole number"),
        ("[RUN]", "[{id: RUN, config: {temperature: -1}}]", "temperature of .* must be at least 0"),
        ("[RUN]", "[{id: RUN, config: {top_p: 1.5}}]", "top_p above 0 and at most 1"),
        ("tests:", "defaultTest: {assert: 5}\ntests:", "defaultTest: assert must be a list"),
        ("[\"Say {{word}}.\"]", "['[{\"role\": \"user\", \"content\": [5]}]']", "a content must be a text"),
        ("[\"Say {{word}}.\"]", "[" * 20_000, "too much in each other"),
        ("[RUN]", "[RUN, RUN]", "two providers are called"),
        ("contains", "llm-rubric", "test 1: assert of type 'llm-rubric' is not supported; supported are equals, contains, icontains, contains-any, .*is-json"),
        ("contains, value: hello", "regex, value: '('", "no regular expression"),
        ("contains, value: hello", "is-json, value: '{}'", "a schema.* is not supported"),
        ("contains, value: hello", "contains-any, value: 'a,,b'", "an empty text is in every answer"),
        ("contains, value: hello", "contains-all, value: []", "value must be a list with at least one entry"),
        ("contains, value: hello", "contains-any, value: [yes]", "YAML reads True here"),
        ("value: hello}", "value: hello, weight: 2}", "has 'weight', which is not supported"),
        ("value: hello}", "value: yes}", "YAML reads True here, so put quotes around it"),
        ("{word: hello}", "{word: [a, b]}", "put quotes around it"),
        ("[{type: contains, value: hello}]", "[]", "test 1 has no assert"),
        ("tests:", "shots: [0, 2]\ntests:", "shots need demonstrations"),
        ("tests:", "shots: [-1]\ntests:", "numbers of demonstrations"),
        ("tests:", "choose: best\ntests:", "choose must be one of random, similar, embedding"),
        ("tests:", "seeds: 0\ntests:", "seeds must be a number of at least 1"),
        ("tests:", "demonstrations: [{vars: {w: a}, output: b}]\ntests:", "demonstration 1 has no 'word'"),
        ("tests:", "tests: file://gone.jsonl\nx:", "'x', which is not supported"),
        ("[\"Say {{word}}.\"]", "[file://gone.md]", "gone.md cannot be read"),
        ("[\"Say {{word}}.\"]", "[role://translater]", "similar ones: translator"),
    ],
)  # fmt: skip
def test_what_is_wrong_or_not_supported_is_named(tmp_path, tiny, old, new, told):
    assert old in GOOD
    file = sheet(tmp_path, tiny, GOOD.replace(old, new))
    with pytest.raises(UserError, match=told) as problem:
        read_sheet(file)
    assert str(file) in str(problem.value)


def test_a_wrong_file_ends_with_two_and_writes_nothing(tmp_path, tiny, capsys):
    file = sheet(tmp_path, tiny, GOOD.replace("contains", "javascript"))
    assert "is not supported" in fails(["prompt", "matrix", str(file)], capsys)
    assert "cannot be read" in fails(["prompt", "matrix", str(tmp_path / "gone.yaml")], capsys)
    long = GOOD.replace("Say", "Say " + "something " * 600)
    assert "this model reads at most" in fails(["prompt", "matrix", str(sheet(tmp_path, tiny, long))], capsys)
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["m.yaml"]


@pytest.mark.parametrize(
    ("kind", "value", "answer", "score"),
    [
        ("equals", "Yes", " Yes\n", 1), ("equals", "Yes", "yes", 0), ("contains", "es", "Yes", 1), ("contains", "ES", "Yes", 0),
        ("icontains", "ES", "Yes", 1), ("regex", "^Y.s$", "Yes", 1), ("regex", "^y", "Yes", 0), ("not-contains", "no", "Yes", 1),
        ("not-icontains", "ES", "Yes", 0), ("not-equals", "Yes", "Yes", 0), ("not-regex", "x", "Yes", 1), ("exact", "the yes", "Yes!", 1),
    ],
)  # fmt: skip
def test_checks(kind, value, answer, score):
    assert Check(kind, (value,)).score(answer) == score


@pytest.mark.parametrize(
    ("told", "answer", "score"),
    [
        ("type: contains-any, value: [nope, es]", "Yes", 1), ("type: contains-any, value: 'no, never'", "Yes", 0), ("type: contains-all, value: [Y, s]", "Yes", 1),
        ("type: contains-all, value: [Y, S]", "Yes", 0), ("type: icontains-all, value: [y, S]", "Yes", 1), ("type: not-icontains-any, value: [Y]", "yes", 0),
        ("type: icontains-any, value: ['{{word}}']", "HELLO!", 1), ("type: starts-with, value: Ye", "Yes", 1), ("type: not-starts-with, value: e", "Yes", 1),
        ("type: is-json", '{"a": [1]}', 1), ("type: is-json", "{a: 1}", 0), ("type: not-is-json", "Yes", 1), ("type: is-json", "[" * 100_000, 0),
    ],
)  # fmt: skip
def test_checks_as_a_file_has_them(tmp_path, tiny, told, answer, score):
    found = read_sheet(sheet(tmp_path, tiny, GOOD.replace("type: contains, value: hello", told)))
    assert found.tests[0].checks[0].score(answer) == score


def test_intervals():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 2, (1, 400)).astype(float), rng.integers(0, 2, (1, 400)).astype(float)
    value, low, high = difference(a, b)
    change = (a - b)[0]
    error = change.std() / 20
    assert value == pytest.approx(change.mean()) and low == pytest.approx(value - 1.96 * error, abs=0.25 * error)
    assert high == pytest.approx(value + 1.96 * error, abs=0.25 * error)
    assert difference(b, a)[0] == -value
    assert [percent(v) for v in (-1e-17, 0.5, math.nan)] == ["0.0", "50.0", "–"] and percent(-1e-17, True) == "+0.0"
    # pairs matter: a model that is right on the same tests and on forty more is better for sure, though both vary
    better = b.copy()
    better[0, np.flatnonzero(b[0] == 0)[:40]] = 1
    assert difference(better, b)[1] > 0.05 and difference(b, b)[0] == 0
    scores = rng.random((2, 60))  # no yes or no
    assert difference(scores, scores) == (0, 0, 0) and difference(scores + 0.1, scores) == pytest.approx((0.1,) * 3)
    value, low, high = mean_interval(np.ones((2, 20)))  # all right of 20 is not certainly all right
    assert value == 1 and 0.8 < low < 0.9 and high == pytest.approx(1)
    assert mean_interval(np.array([[0.5, 1.0], [0.25, 1.0]]))[0] == pytest.approx(0.6875)


@pytest.mark.parametrize(
    ("counts", "wanted"),
    [
        ((36, 12, 2, 0), (0.2, 0.0569, 0.3404)),  # Newcombe 1998
        ((36, 14, 0, 0), (0.28, 0.1528, 0.4167)),
        ((0, 0, 0, 4), (0, -(1.96**2) / (4 + 1.96**2), 1.96**2 / (4 + 1.96**2))),
        ((0, 3, 0, 0), (1, 1 - math.sqrt(2) * 1.96**2 / (3 + 1.96**2), 1)),  # φ is 0, Wilson's ends have closed forms
    ],
)
def test_paired_proportions(counts, wanted):
    both, first, second, neither = counts
    assert newcombe(*counts) == pytest.approx(wanted, abs=1e-4)
    value, low, high = newcombe(both, second, first, neither)
    assert (-value, -high, -low) == pytest.approx(wanted, abs=1e-4)
    a = np.repeat([1.0, 1.0, 0.0, 0.0], counts)[None]
    assert difference(a, np.repeat([1.0, 0.0, 1.0, 0.0], counts)[None]) == newcombe(*counts)


def test_three_tests_that_changed_among_eight_prove_nothing():
    """By chance all three change for the better one time in eight; the bootstrap leaves out 0."""
    after, before = np.array([[1.0, 1, 1, 1, 1, 0, 0, 0]]), np.array([[1.0, 1, 0, 0, 0, 0, 0, 0]])
    assert difference(after, before)[1] < 0 < difference(after, before)[0]


def test_a_matrix_with_shots_two_models_and_asserts(tmp_path, tiny, tokenizer, capsys, monkeypatch):
    other = make_run(tmp_path / "other", tokenizer, seed=5)
    (tmp_path / "own.txt").write_text("{{word}}!", encoding="utf-8")
    file = sheet(
        tmp_path,
        tiny,
        f"""
description: "<b>greetings</b>"
prompts:
  - "Say {{{{word}}}}."
  - {{id: file://own.txt, label: short}}
  - '[{{"role": "system", "content": "Be {{{{mood}}}}."}}, {{"role": "user", "content": "{{{{word}}}}"}}]'
  - role://poet
providers:
  - {{id: RUN, label: one, config: {{max_tokens: 4}}}}
  - {{id: "jielong:{other.path}:sft", label: two, config: {{max_tokens: 4}}}}
shots: [0, 2]
seeds: 2
demonstrations:
  - {{vars: {{word: a, mood: m, input: a}}, output: A}}
  - {{vars: {{word: b, mood: m, input: b}}, output: B}}
  - {{vars: {{word: c, mood: m, input: c}}, output: C}}
defaultTest: {{vars: {{mood: kind}}, assert: [{{type: not-contains, value: "%%%"}}]}}
tests:
  - vars: {{word: "<script>", input: x}}
    assert: [{{type: regex, value: "."}}]
  - vars: {{word: 日本, input: y}}
    assert: [{{type: equals, value: "{{{{word}}}}"}}]
  - vars: {{word: "7", input: z}}
""",
    )
    asked = []
    import jielong.prompt.matrix as matrix

    real = matrix.reply
    monkeypatch.setattr(matrix, "reply", lambda e, p, v, t, s: asked.append((p, v, t)) or real(e, p, v, t, s))
    assert main(["prompt", "matrix", str(file)]) == 0
    assert (
        "short" in capsys.readouterr().out and len(asked) == 2 * 4 * 3
    )  # models × prompts × (zero shots, two draws of two)
    prompts, values, _ = asked[1]
    shown = prompts[0].messages(values[0], "")
    assert (
        len(shown) == 5
        and shown[-1]["content"] == "Say <script>."
        and re.fullmatch(r"Say [abc]\.", shown[0]["content"])
    )
    assert shown[1]["content"] == shown[0]["content"][4].upper()
    page = file.with_suffix(".html").read_text(encoding="utf-8")
    assert "&lt;script&gt;" in page and "<script" not in page and "&lt;b&gt;greetings" in page and "http" not in page
    assert page.count('<td class="bars">') == 16
    # the chart: a point per row, from left to right as its score
    drawn = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', page)]
    scores = [float(s) for s in re.findall(r'<td class="n">([\d.]+)</td><td class="n">[\d.]+ –', page)]
    assert len(drawn) == len(scores) == 16
    assert [x - 260 for x in drawn] == pytest.approx([5 * s for s in scores], abs=0.3)
    assert not list(tmp_path.glob(".*.jsonl"))  # all is in the page: the journal may go


def test_a_demonstration_never_gives_the_answer_away_in_whatever_order_its_values_stand(tmp_path, tiny, monkeypatch):
    import jielong.prompt.matrix as matrix

    text = GOOD.replace("Say {{word}}.", "Say {{word}}, {{mood}}.").replace(
        "tests:",
        """shots: [1]
demonstrations:
  - {vars: {word: hello, mood: kind}, output: the answer}
  - {vars: {word: bye, mood: kind}, output: another}
defaultTest: {vars: {mood: kind}}
tests:""",
    )
    asked = []
    real = matrix.reply
    monkeypatch.setattr(matrix, "reply", lambda e, p, *rest: asked.extend(p) or real(e, p, *rest))
    for choose in ("random", "similar"):
        assert main(["prompt", "matrix", str(sheet(tmp_path, tiny, f"choose: {choose}\n{text}"))]) == 0
    assert [p.shots for p in asked] == [(("Say bye, kind.", "another"),)] * 2


def test_answers_after_other_demonstrations_are_asked_anew(tmp_path, tiny, monkeypatch):
    """A wrong demonstration was mended before the command went on."""
    import jielong.prompt.matrix as matrix

    text = GOOD.replace("tests:", "shots: [1]\ndemonstrations: [{vars: {word: bye}, output: OUT}]\ntests:")
    real, calls = matrix.reply, []
    monkeypatch.setattr(matrix, "reply", lambda e, p, *rest: calls.append(p) or real(e, p, *rest))

    def stops(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as stopped:
        stopped.setattr(matrix, "page", stops)
        assert main(["prompt", "matrix", str(sheet(tmp_path, tiny, text.replace("OUT", "wrong")))]) == 130
    assert main(["prompt", "matrix", str(sheet(tmp_path, tiny, text.replace("OUT", "right")))]) == 0
    assert [p[0].shots[0][1] for p in calls] == ["wrong", "right"]


def test_a_task_as_tests_is_scored_by_labels_and_goes_on_where_it_stopped(
    tmp_path, tiny, task_file, monkeypatch, capsys
):
    import jielong.prompt.matrix as matrix

    text = f'prompts: ["{{{{input}}}}"]\nproviders: [RUN]\ntests: file://{task_file.name}\nshots: [0, 3]\nchoose: similar\n'
    file, whole = sheet(tmp_path, tiny, text), tmp_path / "whole.html"
    assert main(["prompt", "matrix", str(file), "--out", str(whole)]) == 0
    real, calls = matrix.reply, []

    def stops(engine, prompts, *rest):
        if len(calls) == 1:
            raise KeyboardInterrupt
        calls.append(len(prompts))
        return real(engine, prompts, *rest)

    monkeypatch.setattr(matrix, "reply", stops)
    assert main(["prompt", "matrix", str(file)]) == 130
    journal = next(tmp_path.glob(".m.matrix.jsonl"))
    with open(journal, "ab") as f:
        f.write(b'["half a li')
    monkeypatch.setattr(matrix, "reply", lambda e, p, *rest: calls.append(len(p)) or real(e, p, *rest))
    assert main(["prompt", "matrix", str(file)]) == 0
    assert calls == [32, 0, 32]
    assert file.with_suffix(".html").read_text(encoding="utf-8") == whole.read_text(encoding="utf-8")
    assert not journal.exists()
    answers = set(re.findall(r'<td class="(?:right|wrong)">([^<]*)</td>', whole.read_text(encoding="utf-8")))
    assert answers and answers <= {"good", "bad"}
