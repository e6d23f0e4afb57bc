"""The experiment in miniature, its questions, its statistics against closed forms, and bad settings."""

from __future__ import annotations

import dataclasses
import json
import random
import re

import numpy as np
import pytest

import jielong.pretrain
from jielong.cli import COMMANDS, main
from jielong.config import CorpusConfig, LabAllConfig, SizeLadderConfig
from jielong.corpus.world import load_world, split
from jielong.errors import UserError
from jielong.evaluate.statistics import student, t_quantile
from jielong.lab import EXPERIMENTS, everything, size_ladder
from jielong.lab.branch import sized
from jielong.lab.claims import WORDS
from jielong.lab.published import CURVES
from jielong.lab.reading import SENTENCES, passage, reading_exam, reading_lessons
from jielong.lab.size_ladder import told
from jielong.lab.trend import Trend, trend
from jielong.run import Run
from jielong.teacher.questions import is_correct

SMALL = SizeLadderConfig(
    widths=(32, 64, 96, 128),
    tokens=1500,
    lessons=10,
    conversations=8,
    questions=4,
    rows=4,
    length=96,
    rounds=50,
    threads=1,
)
OPTIONS = [
    "--widths",
    "32",
    "64",
    "96",
    "128",
    "--tokens",
    "1500",
    "--lessons",
    "10",
    "--conversations",
    "8",
    "--questions",
    "4",
]
OPTIONS += ["--rows", "4", "--length", "96", "--rounds", "50", "--threads", "1"]


@pytest.fixture(scope="module")
def done(lab_run) -> Run:
    assert main(["lab", "size-ladder", "--run", str(lab_run.path), *OPTIONS]) == 0
    return lab_run


def test_a_whole_experiment(done):
    metrics = done.need("lab-size-ladder").card["metrics"]
    assert [s["width"] for s in metrics["sizes"]] == [32, 64, 96, 128]
    assert all(a["parameters"] < b["parameters"] for a, b in zip(metrics["sizes"], metrics["sizes"][1:], strict=False))
    for kind in ("closed", "reading", "withheld"):
        found = metrics["trends"][kind]
        assert len(found["accuracy"]) == 4 and len(found["steps"]) == 3
        for (value, low, high), seeds in zip(found["accuracy"], metrics["seeds"][kind], strict=True):
            assert 0 <= low <= value <= high <= 1 and len(seeds) == 3 and value == pytest.approx(np.mean(seeds))
    assert 0.05 < metrics["majority"] < 0.5 and len(metrics["findings"]) == 2
    rises = [metrics["trends"][k]["visible"] and metrics["trends"][k]["monotone"] for k in ("closed", "reading")]
    assert [c["met"] for c in metrics["conditions"]] == rises
    assert len(list(done.path.glob("size-ladder/*/exam/card.json"))) == 12
    page = (done.path / "lab-size-ladder" / "page.html").read_text(encoding="utf-8")
    assert all(finding.split(";")[0] in page for finding in metrics["findings"])
    assert all(c.source in page for c in CURVES)
    charts = json.loads(re.search(r"for \(const chart of (\[.*?\])\) \{ const div", page, re.S).group(1))
    ours = [next(s for s in c["data"] if s["name"] == "ours, 95 %") for c in charts]
    assert ours[1]["y"] == [a[0] for a in metrics["trends"]["reading"]["accuracy"]]
    grey = [s for c in charts for s in c["data"] if s["line" if "line" in s else "marker"]["color"] == "#a0a4ab"]
    assert len(grey) == len(CURVES)


def test_the_report_tells_of_it(done):
    row = everything.row("size-ladder", done.need("lab-size-ladder"))
    report = {"run": "lab", "quick": False, "experiments": [row], "missing": {}}
    for lang, word in (("en", WORDS[row["verdict"]]["en"]), ("zh", WORDS[row["verdict"]]["zh"])):
        page = everything.page(report, lang)
        assert row["claim"]["text"][lang] in page and word in page
    quick = everything.settings("size-ladder", LabAllConfig(quick=True, threads=1))
    assert sized(quick, size_ladder.QUICK) == dataclasses.replace(SMALL, quick=True, seeds=1)


def test_the_second_call_trains_nothing(done, monkeypatch):
    before = done.need("lab-size-ladder").card["metrics"]
    monkeypatch.setattr(jielong.pretrain, "train_artifact", lambda *_, **__: pytest.fail("something was trained again"))
    monkeypatch.chdir(done.path.parent)  # the same folder by another name
    assert size_ladder.run(SMALL, Run(done.path.name)).card["metrics"] == before
    with pytest.raises(UserError, match=r"other settings \(.*lessons"):
        size_ladder.run(dataclasses.replace(SMALL, lessons=11), done)
    with pytest.raises(UserError, match=r"sft was made with other settings \(conversations\)"):
        size_ladder.run(dataclasses.replace(SMALL, conversations=9), done)
    with pytest.raises(UserError, match=r"exam was made with other settings \(questions\)"):
        size_ladder.run(dataclasses.replace(SMALL, questions=5), done)


def test_passages_tell_what_no_memory_knows():
    world = load_world()
    taught, unseen = split(world, 1)
    asked = reading_exam(world, 1, 150)
    assert {q.lang for q, _ in asked} == {"en", "zh"} and {q.code for q, _ in asked} <= unseen
    assert len({q.code for q, _ in asked}) > 80
    for question, text in asked:
        true = world.of(question.code)[question.attribute].value[question.lang]
        assert question.golds[0] in text and question.golds[0] != true
        values = world.values(question.attribute, question.lang)
        assert is_correct(question, question.answer, values)
        assert not is_correct(question, question.answer.replace(question.golds[0], true), values)
    seen = {text for _, text in asked}
    lessons = reading_lessons(world, 1, 60)
    for user, assistant in lessons:
        text, prompt = user["content"].split("\n")
        assert text not in seen and prompt and assistant["role"] == "assistant"
        codes = {e.code for e in world.entities if e.name("en") in text or e.name("zh") in text}
        assert codes & taught  # values may name others
    assert lessons == reading_lessons(world, 1, 60) != reading_lessons(world, 2, 60)
    text, fact = next(p for c in sorted(unseen) if (p := passage(world, c, "en", random.Random(3))))
    assert text.count(fact.value["en"]) >= 1 and len(re.findall(r"[.](?: |$)", text)) == SENTENCES
    assert passage(dataclasses.replace(world, facts=()), "TW", "en", random.Random(1)) is None


def test_intervals_against_the_binomial():
    """One seed: the percentiles of the plain bootstrap of a proportion; many seeds alike: narrower, but not with the same questions."""
    rng = np.random.default_rng(5)
    easy, hard = rng.random((1, 400)) < 0.8, rng.random((1, 400)) < 0.4
    found = trend([hard, easy], rounds=4000)
    for (value, low, high), row in zip(found.accuracy, (hard, easy), strict=True):
        half = 1.96 * np.sqrt(row.mean() * (1 - row.mean()) / 400)
        assert (
            value == row.mean()
            and low == pytest.approx(value - half, abs=0.006)
            and high == pytest.approx(value + half, abs=0.006)
        )
    assert found.visible and found.monotone and found.whole == found.steps[0]
    many = trend([np.repeat(hard, 9, 0), np.repeat(easy, 9, 0)], rounds=500)
    assert many.accuracy[0][2] - many.accuracy[0][1] < 0.5 * (found.accuracy[0][2] - found.accuracy[0][1])

    same = trend([np.repeat(hard, 9, 0), np.repeat(easy, 9, 0)], rounds=2000, shared=True)
    for a, b in zip((*same.accuracy, same.whole), (*found.accuracy, found.whole), strict=True):
        assert a == pytest.approx(b, abs=0.01)  # nine seeds that say the same of 400 questions are no 3600 questions


def test_three_seeds_of_no_effect_are_seldom_taken_for_one():
    """The share of experiments without an effect whose whole interval lies above 0: 2.5 %, and 12.5 % by the bootstrap alone."""
    rng = np.random.default_rng(4)
    seeds = [rng.normal(0, 1, (3, 1)) + rng.normal(0, 0.1, (3, 4)) for _ in range(400)]
    wrong = np.mean([trend([np.zeros((3, 4)), own], rounds=30, seed=n).visible for n, own in enumerate(seeds)])
    assert wrong < 0.025 + 3.3 * np.sqrt(0.025 * 0.975 / 400)
    lucky = trend([np.zeros((3, 4)), np.repeat([[0.1], [0.2], [0.9]], 4, 1)])
    assert lucky.whole == pytest.approx(student(np.array([0.1, 0.2, 0.9]))) and lucky.whole[1] < 0


def test_students_interval_by_the_tables():
    for freedom, wanted in ((1, 12.706), (2, 4.303), (5, 2.571), (6, 2.447), (9, 2.262), (30, 2.042), (1000, 1.962)):
        assert t_quantile(freedom) == pytest.approx(wanted, abs=0.002)
    assert student(np.array([1.0, 2.0, 6.0])) == pytest.approx(
        (3.0, 3 - 4.3027 * 7**0.5 / 3**0.5, 3 + 4.3027 * 7**0.5 / 3**0.5)
    )
    assert np.isnan(student(np.array([1.0]))[1])


def test_seeds_that_differ_widen_the_interval_and_pairs_narrow_the_difference():
    lucky = [np.arange(100) < n for n in (20, 50, 80)]
    found = trend([lucky, [np.roll(v, 1) for v in lucky]], rounds=1000)
    assert found.accuracy[0][1] < 0.35 and found.accuracy[0][2] > 0.65
    same = trend([lucky, lucky], rounds=200)
    assert same.whole == (0, 0, 0) and same.monotone and not same.visible


def test_falls_are_seen():
    rng = np.random.default_rng(1)
    sizes = [rng.random((3, 300)) < p for p in (0.2, 0.6, 0.3)]
    found = trend(sizes)
    assert found.visible and not found.monotone and found.steps[1][2] < 0


@pytest.mark.parametrize(
    ("accuracies", "losses", "message"),
    [
        ((0.1, 0.4), (3.0, 2.0), "it rises"),
        ((0.4, 0.4), (3.0, 3.1), "have not read enough"),
        ((0.02, 0.02), (3.0, 2.0), "too small"),
        ((0.95, 0.95), (3.0, 2.0), "too easy"),
        ((0.4, 0.2), (3.0, 2.0), "from size 1 to size 2 it falls by 20.0 points"),
        ((0.4, 0.4), (3.0, 2.0), "this many seeds do not show"),
    ],
)
def test_the_page_says_why_not(accuracies, losses, message):
    step = accuracies[1] - accuracies[0]
    interval = (step, step - 0.01, step + 0.01)
    found = Trend(tuple((a, a - 0.01, a + 0.01) for a in accuracies), (interval,), interval)
    assert message in told("closed", found, list(losses))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--widths", "32", "64", "96"], "4 to 6 widths"),
        (["--seeds", "2"], "at least 3 --seeds"),
        (["--widths", "32", "64", "96", "100"], "multiples of 32"),
        (["--tokens", "10"], "tokens must be at least one step of"),
        (["--tokens", "nan"], "tokens must be at least one step of"),
        (["--rounds", "0"], "rounds must be at least 1"),
        (["--questions", "0"], "at least 1"),
    ],
)
def test_bad_settings(done, capsys, options, message):
    before = sorted(done.path.rglob("*"))
    assert main(["lab", "size-ladder", "--run", str(done.path), *OPTIONS, *options]) == 2
    assert message in capsys.readouterr().err and sorted(done.path.rglob("*")) == before


def test_other_text_has_no_questions(tmp_path):
    run = Run(tmp_path / "own")
    for name in ("corpus", "tokenizer"):
        with run.build(name, kind=name, config=CorpusConfig(default=False)):
            pass
    with pytest.raises(UserError, match="about the default corpus"):
        size_ladder.run(SMALL, run)


def test_experiments_are_commands():
    assert {f"lab {name}" for name in [*EXPERIMENTS, "all"]} == {c for c in COMMANDS if c.startswith("lab ")}
