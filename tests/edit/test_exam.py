"""What the exam asks, and how it counts."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from jielong.corpus.documents import Document
from jielong.edit.exam import answers, forced, likelihoods, possible, sit, still_true
from jielong.edit.facts import Fact, continuation
from jielong.edit.probes import Pair, Probe, about, enriched, nearby, other_language, pairs, ripple, translated
from jielong.edit.stage import in_both, standing
from jielong.edit.state import Change
from jielong.generate.engine import Engine
from jielong.model.gpt import causal_mask

CAPITAL = enriched(Fact("The capital of France is", "France", "Tokyo", "Paris"))


@pytest.fixture
def engine(model, tokenizer) -> Engine:
    return Engine(model.requires_grad_(False), tokenizer)


def test_the_other_language():
    there = translated(CAPITAL)
    assert there is not None
    assert (there.prompt, there.subject, there.target, there.old) == ("法國的首都是", "法國", "東京", "巴黎")
    back = translated(there)
    assert back is not None and (back.prompt, back.target) == (CAPITAL.prompt, "Tokyo")
    assert translated(replace(CAPITAL, target="Lyon")) is None  # no name for it there
    assert translated(Fact("France makes", "France", "tea", "wine")) is None  # no fact of the world
    assert translated(Fact("In Chinese, France is called", "France", "日本", "法國")) is None  # another question there
    # asked there once, by the edit's own probes or by one of its own
    (probe,) = other_language([CAPITAL], True)
    assert probe.target == "東京" and probe.prompt == there.paraphrases[-1]
    both = replace(CAPITAL, also=(there,))
    assert other_language([both], True) == []
    asked = [p for p in about([both], True) if p.group == "other_language"]
    assert asked[0].prompt == there.prompt and {p.prompt for p in asked[1:]} == set(there.paraphrases[2:])
    assert [
        p.group for p in about([replace(CAPITAL, also=(replace(CAPITAL, prompt="Capital of France:"),))], True)
    ].count("efficacy") == 5


def test_what_follows_from_a_fact():
    found = {(p.group, p.prompt): p for p in ripple([CAPITAL], True)}
    back = found["reversed", "If I fly to Tokyo, in which country do I land?"]
    assert back.target == "France" and back.premise == ("If I fly to Paris, in which country do I land?", "France")
    hop = found[
        "two_hop", "If I want to see the capital of the country with the internet domain .fr, which city do I visit?"
    ]
    assert (hop.target, hop.old, hop.premise) == ("Tokyo", "Paris", (hop.prompt, "Paris"))
    assert (
        "alias",
        "If I want to see the capital of the country that is called 法國 in Chinese, which city do I visit?",
    ) in found
    city = ripple([Fact("The country of Paris is", "Paris", "Japan", "France")], True)
    spoken = next(
        p for p in city if p.prompt == "If I move to the country whose capital is Paris, which language should I learn?"
    )
    assert spoken.group == "two_hop" and spoken.target == "Japanese" and spoken.premise == (spoken.prompt, "French")
    named = ripple([Fact("In Chinese, France is called", "France", "日本", "法國")], True)
    (back,) = [p for p in named if p.group == "reversed"]
    assert back.prompt == "如果我用英文寫日本，要寫成什麼？" and back.target == "France"
    assert ripple([CAPITAL], False) == [] and ripple([Fact("France makes", "France", "tea")], True) == []


def test_only_what_it_could_follow_before_is_asked(engine):
    (said,) = answers(engine, [("Hello", True)])
    assert said.strip()
    probes = [
        Probe("a", "x", "y"),
        Probe("b", "x", "y", premise=("Hello", said.strip())),
        Probe("c", "x", "y", premise=("Hello", "Zanzibar")),
    ]
    assert [p.group for p in possible(engine, probes)] == ["a", "b"]


def test_pairs():
    found = pairs([CAPITAL], True, 1)
    assert Pair("e", CAPITAL.prompt, "Tokyo", "Paris") in found
    asked = [p for p in found if p.group == "p"]
    assert {p.question for p in asked} == set(CAPITAL.paraphrases[2:]) and all(
        p.prompt == CAPITAL.prompt for p in asked
    )
    near = [p for p in found if p.group == "n"]
    assert len(near) >= 9 and all(p.less == "Tokyo" and p.more != "Tokyo" and "capital" in p.prompt for p in near)
    own = replace(CAPITAL, neighbours=(("The capital of Spain is", "Madrid"),))
    assert [p for p in pairs([own], True, 1) if p.group == "n"] == [
        Pair("n", "The capital of Spain is", "Madrid", "Tokyo")
    ]
    assert not [p for p in pairs([CAPITAL], False, 1) if p.group == "p"]  # a question is for models that answer
    assert len(nearby([CAPITAL], True, 1)) == 5 + 10  # its other facts, other capitals


def test_the_published_scores(engine, model, tokenizer):
    """exp of the mean log-probability per token, one row at a time without padding; in a conversation the prompt begins the answer."""
    rows = [
        ("", "The capital of France is", "Tokyo"),
        ("Which city?", "The capital of France is", "Paris"),
        ("", "法國的首都是", "巴黎。"),
    ]
    for row, value in zip(rows, likelihoods(engine, model, rows), strict=True):
        question, prompt, target = row
        head = (
            engine.chat_ids([{"role": "user", "content": question}]) + tokenizer.encode(prompt)
            if question
            else tokenizer.prompt(prompt)
        )
        tail = continuation(tokenizer, prompt, target)
        ids = torch.tensor([head + tail])
        table = model.logits(model(ids, causal_mask(ids.shape[1])))[0].log_softmax(-1)
        mean = sum(float(table[len(head) - 1 + n, t]) for n, t in enumerate(tail)) / len(tail)
        assert value == pytest.approx(math.exp(mean), rel=1e-4)
    one = Pair("e", "The capital of France is", "Tokyo", "Paris")
    other = Pair("n", one.prompt, one.less, one.more)
    figures = forced(engine, model, [one, other])
    assert figures["es"] + figures["ns"] == 1 and figures["em"] == pytest.approx(-figures["nm"])


def test_texts_that_say_the_old_fact_are_not_counted():
    text = "France lies in Europe. The capital of France is Paris. Its domain is .fr.\nParis is old."
    kept, whole = still_true(
        [Document("1", text, "en", ""), Document("2", "法國的首都是巴黎。日本的首都是東京。", "zh", "")], [CAPITAL]
    )
    assert kept.text == "France lies in Europe. Its domain is .fr.\nParis is old."
    assert whole.text == "法國的首都是巴黎。日本的首都是東京。"  # it was corrected in English only
    both = replace(CAPITAL, also=(translated(CAPITAL) or CAPITAL,))
    assert [d.text for d in still_true([whole], [both])] == ["日本的首都是東京。"]
    assert still_true([Document("3", "法國的首都是巴黎。", "zh", "")], [both]) == []


def test_translated_only_where_the_model_speaks_of_it(engine, monkeypatch):
    from jielong.edit import stage

    monkeypatch.setattr(stage, "answers", lambda *_: ["法國的首都是柏林。"])  # wrong, but a capital
    assert [f.target for f in in_both(CAPITAL, engine, True).also] == ["東京"]
    monkeypatch.setattr(stage, "answers", lambda *_: ["I do not speak Chinese."])
    assert in_both(CAPITAL, engine, True).also == ()
    own = replace(CAPITAL, also=(Fact("法國的首都是", "法國", "里昂", "巴黎"),))
    assert in_both(own, engine, True) == own


def test_there_and_back_again():
    """A, then B in its place, then A again in B's."""
    a, b = Change("a", "ridge", CAPITAL, {}), Change("b", "ridge", CAPITAL, {}, ("a",))
    assert standing([a, b]) == [b]
    again = replace(a, replaces=("b",))
    assert standing([b, again]) == [again]


def test_the_memory_is_examined(model, tokenizer):
    from jielong.generate.memory import Memory, Note

    memory = Memory((Note("France", "The capital of France is Tokyo."),))
    probe = Probe("efficacy", "The capital of France is", "Tokyo")
    heard = []
    real = Engine.generate

    def listen(self, prompts, sampling=None):
        heard.extend(tokenizer.decode(p) for p in prompts)
        return real(self, prompts, sampling)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "generate", listen)
        sit(model, tokenizer, [], [probe, replace(probe, chat=False)], memory=memory)
    assert "Tokyo" in heard[0] and "Tokyo" not in heard[1]
