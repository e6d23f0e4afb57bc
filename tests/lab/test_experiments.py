"""All experiments in miniature and the report; what they read and ask; their statistics and rules."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import shutil

import numpy as np
import pytest

from jielong.align import reward
from jielong.align.contest import win_rate, wins
from jielong.cli import main
from jielong.config import CodeConfig, CutoffConfig, LabAllConfig, PPOConfig, PromptingConfig, TwoLanguagesConfig
from jielong.corpus.documents import Document, read_documents
from jielong.corpus.world import load_world
from jielong.errors import UserError
from jielong.evaluate.bpb import Reading
from jielong.feedback.labels import Thumb
from jielong.lab import EXPERIMENTS, code, cutoff, everything, prompting, teaching, two_languages
from jielong.lab.branch import Branch, sized
from jielong.lab.claims import Condition, above, shown, verdict
from jielong.lab.cutoff import Archive, Times, gap, later_questions
from jielong.lab.exams import closed_book, difference, per_byte
from jielong.lab.texts import has_han, held_out, part, prose
from jielong.pages import render
from jielong.run import Run
from jielong.teacher import judge
from jielong.teacher.questions import SEEN_PHRASINGS
from jielong.tokens.tokenizer import Tokenizer

HERE = tuple(name for name in EXPERIMENTS if name != "size-ladder")  # which has a file of its own
QUICK = LabAllConfig(quick=True, threads=1, only=HERE)


@pytest.fixture(scope="module")
def checked(lab_run) -> Run:
    assert main(["lab", "all", "--quick", "--threads", "1", "--only", *HERE, "--run", str(lab_run.path)]) == 0
    return lab_run


def test_the_talk_checked(checked):
    report = checked.need("lab-report-quick")
    told = json.loads(report.file("report.json").read_text(encoding="utf-8"))
    assert [e["name"] for e in told["experiments"]] == list(HERE) and not told["missing"] and told["quick"]
    for e in told["experiments"]:
        card = checked.need(f"lab-{e['name']}-quick").card
        conditions = [Condition(**c) for c in card["metrics"]["conditions"]]
        assert len(conditions) >= 2 and e["verdict"] == verdict(conditions) and e["seeds"] == 1
        for lang, file in everything.FILES.items():
            page = report.file(file).read_text(encoding="utf-8")
            assert e["claim"]["text"][lang] in page and e["page"] in page
            assert all(
                re.sub("[&<>'\"]", "", getattr(c, lang)) in re.sub("&.*?;|[<>'\"]", "", page) for c in conditions
            )
        page = (report.path / e["page"]).read_text(encoding="utf-8")
        assert e["claim"]["text"]["en"] in page and "Plotly.newPlot" in page
    assert "快速版" in report.file("report.zh-TW.html").read_text(encoding="utf-8")


def test_the_second_call_repeats_nothing(checked, monkeypatch):
    before = {name: checked.need(f"lab-{name}-quick").card["metrics"] for name in HERE}
    monkeypatch.setattr("jielong.pretrain.train_artifact", lambda *_, **__: pytest.fail("something was trained again"))
    monkeypatch.setattr("jielong.lab.two_languages.ask_all", lambda *_: pytest.fail("something was asked again"))
    monkeypatch.setattr("jielong.lab.teaching.imitate", lambda *_: pytest.fail("something was taught again"))
    monkeypatch.setattr("jielong.lab.prompting.cells_of", lambda *_: pytest.fail("something was asked again"))
    assert everything.run(QUICK, checked).card["metrics"]["verdicts"]
    for name in before:
        shutil.rmtree(checked.path / f"lab-{name}-quick")
    everything.run(QUICK, checked)
    after = {name: checked.need(f"lab-{name}-quick").card["metrics"] for name in HERE}
    assert after == before
    monkeypatch.setitem(two_languages.QUICK, "questions", 2)
    with pytest.raises(UserError, match=r"other settings \(.*questions"):
        two_languages.run(TwoLanguagesConfig(quick=True, threads=1), checked)


def test_a_stale_experiment_is_made_anew_and_an_impossible_one_named(checked, lab_run, tmp_path):
    assert everything.current(checked, "code", True) and everything.current(checked, "code", False) is None
    copy = Run(shutil.copytree(checked.path, tmp_path / "copy"))
    with copy.build("corpus", kind="corpus", config={}):
        pass
    assert everything.current(copy, "code", True) is None and everything.current(copy, "prompting", True)
    with pytest.raises(UserError, match=r"No experiment could be run. cutoff: .*has no corpus"):
        everything.run(dataclasses.replace(QUICK, only=("cutoff",)), Run(tmp_path / "empty"))
    with pytest.raises(UserError, match="no experiment 'nonsense'; known are two-languages"):
        everything.run(dataclasses.replace(QUICK, only=("nonsense",)), lab_run)
    only = everything.run(dataclasses.replace(QUICK, only=("prompting",)), copy)
    assert only.card["metrics"]["verdicts"].keys() == {"prompting", "thumbs"}  # what stands on sft is there


@pytest.mark.parametrize(
    ("met", "expected"), [((True, True), "held"), ((True, False), "partly"), ((False,), "not"), ((), "untested")]
)
def test_the_rule(met, expected):
    assert verdict([Condition("", "", m, "") for m in met]) == expected


def test_a_condition_needs_its_whole_interval():
    assert above("", "", (0.2, 0.01, 0.4)).met and not above("", "", (0.2, 0.0, 0.4)).met
    assert not above("", "", (0.2, 0.1, 0.4), bound=0.15).met and not above("", "", (float("nan"),) * 3).met
    assert (
        above("", "", (0.123, -0.01, 0.25)).figure == "+12.3 [-1.0, +25.0]"
        and shown((0.5, 0.4, 0.6), False) == "0.500 [0.400, 0.600]"
    )


# two languages


def test_english_lessons_and_texts_hold_no_chinese(checked):
    world = part(load_world(), [e.code for e in load_world().entities][:30])
    made = two_languages.taught(world, 1, 20)
    assert len(made) == 40 and not any(has_han(turn["content"]) for m in made for turn in m)
    assert sum("\n" in m[0]["content"] for m in made) == 20 and made != two_languages.taught(world, 2, 20)
    texts = read_documents(checked.path / "two-languages-quick" / "english-1" / "corpus" / "train.parquet")
    both = read_documents(checked.path / "two-languages-quick" / "both-1" / "corpus" / "train.parquet")
    assert texts and not any(has_han(d.text) for d in texts) and any(has_han(d.text) for d in both)


# the cutoff

SMALL = CutoffConfig(countries=40, later=6, facts=12, questions=10)


def test_no_old_text_names_what_comes_later(lab_run):
    times = Times.of(SMALL, 1)
    names = [e.name(lang) for e in times.after.entities for lang in ("en", "zh")]
    assert len(times.after.entities) == 6 and len(times.before.entities) == 34 and set(names) <= set(times.names)
    texts = [
        *prose(lab_run.need("corpus"), 10**6, without=times.names),
        *held_out(lab_run.need("corpus"), without=times.names),
    ]
    assert texts and not any(n in d.text for d in texts for n in times.names)
    assert {d.lang for d in texts} == {"en", "zh"} and not any(d.source == "world" for d in texts)
    spoken = " ".join(
        t["content"] for m in cutoff.taught(times, 1, dataclasses.replace(SMALL, conversations=60)) for t in m
    )
    assert not any(re.search(rf"(?<!\w){re.escape(n)}(?!\w)", spoken) for n in names if not has_han(n))
    assert Times.of(SMALL, 1) == times != Times.of(SMALL, 2)


def test_later_questions_are_in_wordings_of_the_exam():
    times = Times.of(SMALL, 1)
    asked = later_questions(times, 1)
    assert len(asked) == 4 * len(times.asked) == len({q.prompt for q in asked})
    seen = {p.format(s=q.subject) for q in asked for p in SEEN_PHRASINGS[q.lang][q.attribute]}
    assert not seen & {q.prompt for q in asked} and {q.code for q in asked} <= {e.code for e in times.after.entities}
    assert {q.attribute for q in closed_book(times.before, 1, 50, cutoff.ATTRIBUTES)} <= set(cutoff.ATTRIBUTES)
    for fact in times.asked:
        for lang in ("en", "zh"):
            edit = cutoff.as_edit(fact, lang)
            assert edit.target == fact.value[lang] and not {*edit.paraphrases, edit.prompt} & {q.prompt for q in asked}


def test_the_archive_finds_sentences_and_puts_them_first():
    times = Times.of(SMALL, 1)
    archive, asked = Archive(times), later_questions(times, 1)
    for question in asked:
        found = archive.find(question.prompt)
        near = archive._known @ archive._vectors([question.prompt])[0]
        best = sorted(range(len(near)), key=lambda n: (-near[n], n))[:3]
        assert found == [archive.lines[n] for n in reversed(best)]
        put = archive.before(question)
        assert put.prompt.endswith("\n" + question.prompt) and all(line in put.prompt for line in found)
    hits = [any(q.golds[0] in line and q.subject in line for line in archive.find(q.prompt)) for q in asked]
    assert np.mean(hits) > 0.5


def test_the_gap_against_the_binomial():
    rng = np.random.default_rng(0)
    known, after = rng.random((1, 500)) < 0.8, rng.random((1, 300)) < 0.1
    value, low, high = gap({"known": known, "after": after}, dataclasses.replace(SMALL, rounds=3000))
    p, q = known.mean(), after.mean()
    half = 1.96 * np.sqrt(0.25 * p * (1 - p) / 500 + q * (1 - q) / 300)
    assert value == pytest.approx(0.5 * p - q) and (low, high) == pytest.approx((value - half, value + half), abs=0.006)


# code


@pytest.mark.parametrize(
    ("generated", "expected"),
    [
        ("    return 1\n", True),
        ("    return 1\nThe capital of", True),  # the last line may be cut
        ("    return 1", False),  # not one whole line
        ("\n\n# only words\n", False),
        (" France is Paris.\n", False),
        ("    x = (1,\n         2)\n    y = (", True),
        ("    if x:\n", False),
        ("    if x:\n        pass\n    for", True),
    ],
)
def test_continuations_that_parse(generated, expected):
    assert code.parses("def f(x):\n    x += 1\n", generated) is expected


def test_functions_come_from_modules_that_nobody_reads():
    cuts, seen = code.functions(30), code.modules(40_000)
    assert (
        len(cuts) == 30
        and len({c.module for c in cuts}) > 5
        and not {c.module for c in cuts} & {d.source for d in seen}
    )
    for c in cuts:
        assert code.valid(c.begin) and code.valid(c.begin + c.rest) and c.next_line.strip() and c.begin.endswith("\n")
        assert c.begin + c.rest not in " ".join(d.text for d in seen)
        assert code.parses(c.begin, c.rest + "\n")  # the truth is a valid continuation
    assert 40_000 <= sum(len(d.text) for d in seen) < 40_000 + 3 * code.LONGEST
    text = "a = 1\n" + "\n".join(f"def f{n}():\n    return {n}" for n in range(2000))
    assert (
        "\n".join(code.pieces(text)) == text
        and all(code.valid(p) for p in code.pieces(text))
        and len(list(code.pieces(text))) > 2
    )


def test_code_has_its_share(tokenizer: Tokenizer):
    words = [Document(f"p{n}", "The capital of France is Paris. ", "en", "") for n in range(200)]
    own = [Document(f"c{n}", "x = 1\n", "code", "") for n in range(900)]
    for share, positions in ((0.5, 1000), (0.25, 10**9)):
        kept = code.blended(words, own, share, tokenizer, positions)
        sizes = {lang: sum(len(tokenizer.encode(d.text)) for d in kept if d.lang == lang) for lang in ("en", "code")}
        assert sizes["code"] / sum(sizes.values()) == pytest.approx(share, abs=0.03)
        assert sum(sizes.values()) <= positions + 40


def test_bits_are_all_bits_over_all_bytes():
    readings = [Reading(3.0, 2, 5), Reading(1.0, 1, 10), Reading(8.0, 9, 30)]
    assert np.mean(per_byte(readings)) == pytest.approx(12 / np.log(2) / 45)


# prompting


def test_the_best_prompt_is_picked_on_one_half_and_judged_on_the_other():
    right = {
        "plain": [[0, 1, 1, 0], [0, 0, 1, 1]],
        "lucky": [[1, 1, 0, 0], [1, 1, 0, 0]],
        "good": [[1, 0, 1, 1], [0, 1, 1, 1]],
    }
    best = prompting.picked(right, PromptingConfig(rounds=100))
    assert best["name"] == "lucky" and best["gain"][0] == pytest.approx(-0.75)
    shown, asked = prompting.drawn(30, 4, 1)
    assert len({q for q, _ in [*shown, *asked]}) == 34 and len(shown) == 4
    assert (shown, asked) == prompting.drawn(30, 4, 1) != prompting.drawn(30, 4, 2)
    with pytest.raises(UserError, match="ask for fewer"):
        prompting.drawn(1000, 1, 1)


def test_no_seed_judges_a_prompt_by_a_fact_that_another_has_picked_it_by():
    def facts(asked):
        return {re.sub(r"\W+", " ", gold) + next(c for c in names if c in q) for q, gold in asked}

    names = sorted({f.subject["en"] for f in load_world().facts}, key=len, reverse=True)
    drawn = [prompting.drawn(60, 4, seed)[1] for seed in range(1, 7)]
    picks, judges = set().union(*(facts(d[:30]) for d in drawn)), set().union(*(facts(d[30:]) for d in drawn))
    assert len(picks) > 60 < len(judges) and not picks & judges


# thumbs


def test_dealt_thumbs_are_the_same_presses():
    thumbs = [Thumb((("user", str(n)),), (1,), (2, n), n % 3 == 0, "u") for n in range(60)]
    dealt = teaching.dealt(thumbs, 1)
    assert [t.answer for t in dealt] == [t.answer for t in thumbs] and sum(t.up for t in dealt) == 20
    assert dealt != thumbs and dealt == teaching.dealt(thumbs, 1) != teaching.dealt(thumbs, 2)


def test_wins_average_to_the_win_rate():
    rng = np.random.default_rng(2)
    new, old = rng.integers(0, 3, (20, 2)).astype(float), rng.integers(0, 3, (20, 2)).astype(float)
    slow = [np.mean([(a > b) + 0.5 * (a == b) for a in new[n] for b in old[n]]) for n in range(20)]
    assert wins(new, old) == pytest.approx(slow) and win_rate(new, old)[0] == pytest.approx(np.mean(slow))


def test_demonstrations_are_what_the_teacher_likes(lab_run):
    exam = teaching.Exam(lab_run, 1001, 4)
    shown = teaching.demonstrations(exam, 1, 30, 1)
    asked = {a.prompt: a for a in judge.prompts(exam.world, 1, 30, 1)}
    assert len(shown) == 30 and not asked.keys() & {a.prompt for a in exam.asked}
    said = [(m[0]["content"], m[1]["content"]) for m in shown]
    assert all(judge.is_right(exam.world, asked[q], a) for q, a in said)
    assert np.mean([judge.score(exam.world, asked[q], a) >= judge.GOOD for q, a in said]) > 0.9


def test_a_trusted_reward_model_is_followed_and_another_not(lab_run, monkeypatch):
    branch = Branch(lab_run, "followed", ("corpus", "tokenizer", "base", "sft"))
    thumbs, _ = teaching.pressed(branch, 1, 24)
    assert len(thumbs) == 24 and teaching.pressed(branch, 1, 24)[0] == thumbs
    rng = random.Random(1)
    thumbs = [dataclasses.replace(t, up=rng.random() < 0.5) for t in thumbs]
    settings = PPOConfig(iterations=1, episodes=4, max_tokens=8)
    for complaint in ("it knows nothing", ""):
        monkeypatch.setattr(reward, "complaint", lambda _, complaint=complaint: complaint)
        model, why = teaching.by_thumbs(branch, 1, thumbs, [], settings, complaint[:2] or "followed")
        assert why == complaint and (model is None) == bool(complaint)
    assert model.card["kind"] == "ppo" and model.card["config"]["iterations"] == 1 and model.card["config"]["ptx"] == 0
    assert teaching.by_thumbs(branch, 1, [], [], settings, "none") == (
        None,
        "There are 0 thumbs and 0 comparisons; a reward model needs at least 20.",
    )


# settings


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("two-languages", ["--seeds", "2"], "at least 3 --seeds"),
        ("two-languages", ["--width", "50"], "multiples of 32"),
        ("two-languages", ["--questions", "0"], "at least 1"),
        ("cutoff", ["--later", "31"], "too few from before"),
        ("cutoff", ["--facts", "0"], "at least 1"),
        ("prompting", ["--shots", "0"], "at least 1"),
        ("prompting", ["--model", "ppo-7"], "no ppo-7"),
        ("thumbs", ["--budgets", "30"], "at least 60 seconds"),
        ("code", ["--share", "1"], "between 0 and 1"),
        ("code", ["--functions", "0"], "at least 1"),
        ("code", ["--prose", "0"], "at least 1"),
        ("code", ["--tokens", "1"], "tokens must be at least one step of 24 × 128 positions, not 1"),
        ("code", ["--tokens", "inf"], "not inf"),
        ("two-languages", ["--tokens", "nan"], "not nan"),
        ("two-languages", ["--rows", "0"], "rows and length must be at least 1"),
        ("cutoff", ["--news", "10"], "news must be at least one step"),
        ("prompting", ["--rounds", "0"], "rounds must be at least 1"),
        ("prompting", ["--threads", "-1"], "threads must be 0"),
        ("all", ["--seeds", "1"], "at least 3 --seeds"),
    ],
)
def test_bad_settings(lab_run, capsys, name, options, message):
    (lab_run.path / ".lock").touch()  # the first command leaves it
    before = sorted(lab_run.path.rglob("*"))
    assert main(["lab", name, "--run", str(lab_run.path), *options]) == 2
    assert message in capsys.readouterr().err and sorted(lab_run.path.rglob("*")) == before


@pytest.mark.parametrize("name", ["lab prompting", "lab all", "detect reference"])
def test_a_run_that_is_not_there_is_not_made(tmp_path, capsys, name):
    assert main([*name.split(), "--run", str(tmp_path / "typo")]) == 2
    assert "typo" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_quick_is_a_size_of_its_own():
    config = sized(CodeConfig(quick=True, threads=1, seeds=9), code.QUICK)
    assert (config.width, config.seeds, config.threads) == (32, 1, 1)
    assert sized(CodeConfig(threads=1), code.QUICK).width == CodeConfig().width


def test_differences_are_paired():
    rng = np.random.default_rng(3)
    b = rng.random((6, 50)) < 0.5
    a = b | (rng.random((6, 50)) < 0.2)
    value, low, high = difference(a, b, SMALL)
    assert value == pytest.approx(a.mean() - b.mean()) and 0 < low < value < high
    assert difference(b, b, SMALL) == (0, 0, 0)


def test_a_page_without_charts_has_no_script():
    text = render("jielong.lab", "report.html", words=everything.WORDING["en"], verdicts={}, which="en", lang="en", rule_text="<&>", experiments=[], missing={})  # fmt: skip
    assert "<script" not in text and "&lt;&amp;&gt;" in text
