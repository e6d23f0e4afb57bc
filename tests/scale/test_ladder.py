"""A ladder in miniature: the whole stage, stopped and continued; and ladders that cannot be climbed."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil

import pytest
import torch

import jielong.pretrain
import jielong.scale.ladder as ladder
from jielong.cli import main
from jielong.config import ScaleFitConfig
from jielong.corpus.documents import Document, record_id, write_documents
from jielong.errors import UserError
from jielong.evaluate.bpb import bits_per_byte, read
from jielong.model.gpt import GPT, causal_mask, load_model
from jielong.run import Run
from jielong.scale.advice import shape
from jielong.tokens.tokenizer import Tokenizer
from jielong.tokens.tokenizer import train as train_tokenizer

SMALL = ScaleFitConfig(
    tokens=(320, 640),
    held_back=224,
    rows=2,
    length=16,
    rounds=20,
    minutes=0.1,
    threads=1,
    optim=dataclasses.replace(ScaleFitConfig().optim, muon=False),
)
OPTIONS = ["--tokens", "320", "640", "--held-back", "224", "--rows", "2", "--length", "16", "--rounds", "20"]
OPTIONS += ["--minutes", "0.1", "--threads", "1", "--optim.no-muon"]


def documents(count: int, first: int = 0) -> list[Document]:
    places = ["north", "south", "east", "west", "middle"]
    texts = [
        f"Day {n}: the {places[n % 5]} wind blew over hill {n % 7}, and {n % 11} ships came to the {places[n % 3]} port."
        for n in range(first, first + count)
    ]
    return [Document(record_id(t), t, "en", "invented") for t in texts]


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Run:
    """A corpus and a tokenizer, made in a second."""
    run = Run(tmp_path_factory.mktemp("runs") / "small")
    with run.build("corpus", kind="corpus", config={}) as build:
        write_documents(build.path / "train.parquet", documents(120))
        write_documents(build.path / "heldout.parquet", documents(12, 1000))
    with run.build("tokenizer", kind="tokenizer", config={}, parents=[build.artifact]) as build:
        train_tokenizer([d.text for d in documents(120)], 320).save(build.path)
    return run


@pytest.fixture(scope="module")
def climbed(small) -> Run:
    """The whole ladder, stopped in its third training and started again."""
    make_batch, calls = jielong.pretrain.make_batch, []

    def stop(*args, **kwargs):
        calls.append(args)
        if len(calls) == 10 + 20 + 6:
            raise KeyboardInterrupt
        return make_batch(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jielong.pretrain, "make_batch", stop)
        command = ["scale", "fit", "--run", str(small.path), *OPTIONS, "--flops", "1e9"]
        assert main([*command, "--checkpoint-seconds", "0"]) == 130
        finished = {p.name: small.need(p.name).hash for p in small.path.glob("rung-*")}
        assert len(finished) == 2 and small.artifact("scale") is None
        assert main(command) == 0
    assert {name: small.need(name).hash for name in finished} == finished
    # no step was done twice but the one in which it was stopped
    assert len(calls) == 36 + 5 + 20 + 4 * (10 + 20) + 20
    return small


def test_a_whole_ladder(climbed):
    artifact = climbed.need("scale")
    metrics = artifact.card["metrics"]
    rungs = metrics["rungs"]
    assert len(rungs) == 13 and len({r["name"] for r in rungs}) == 13
    assert {(r["width"], r["layers"]) for r in rungs} == {
        (32, 2),
        (64, 2),
        (96, 2),
        (128, 3),
        (160, 4),
        (192, 4),
        (224, 5),
    }
    assert set(artifact.card["parents"]) == {"corpus", "tokenizer", *(r["name"] for r in rungs)}
    for r in rungs:
        assert 0 < r["tokens"] <= (640 if "-640-" in r["name"] else 320) and r["epochs"] < 1 and r["seconds"] > 0
        assert r["total"] == r["blocks"] + 320 * r["width"] and 0 < r["loss"] < math.log(320)
        assert not climbed.work(r["name"]).exists()  # no checkpoints stay behind
    held = metrics["held_back"]
    assert held["rung"] == rungs[-1] and held["rung"]["width"] == 224
    low, high = held["predicted"][1:]
    assert low < held["predicted"][0] < high
    assert held["error"] == pytest.approx(held["predicted"][0] / held["rung"]["loss"] - 1)
    assert "three --tokens" in metrics["warning"]  # there were two
    assert metrics["counted"] == min(metrics["left_out"], key=metrics["left_out"].get)
    assert (metrics["law"]["points"], metrics["law_of_all"]["points"]) == (12, 13)
    assert {a["unit"] for a in metrics["advice"]} == {"seconds", "FLOPs"}
    for advice in metrics["advice"]:
        assert advice["loss"][0] == pytest.approx(min(p[2] for p in advice["curve"]))


def test_the_page_shows_what_the_card_says(climbed):
    text = (climbed.path / "scale" / "scale.html").read_text(encoding="utf-8")
    metrics = climbed.need("scale").card["metrics"]
    assert (
        f"{metrics['held_back']['rung']['loss']:.3f}" in text
        and f"{100 * metrics['held_back']['error']:+.1f} %" in text
    )
    assert all(f"{r['total']:,}" in text for r in metrics["rungs"]) and "http" not in re.sub(
        r"<script>.*?</script>", "", text, flags=re.S
    )
    charts = json.loads(re.search(r"for \(const chart of (\[.*?\])\) \{ const div", text, re.S).group(1))
    assert [c["layout"]["title"]["text"] for c in charts if "corpus" not in c["layout"]["title"]["text"]] == [
        "More parameters",
        "More tokens",
        "What 0.1 minutes buy",
        "What 1e+09 FLOPs buy",
    ]
    measured = [
        y
        for s in charts[0]["data"]
        if s["mode"] == "markers" and s["name"] != "predicted before training"
        for y in s["y"]
    ]
    assert sorted(measured) == sorted(r["loss"] for r in metrics["rungs"])


def test_the_second_call_trains_nothing(climbed, monkeypatch):
    before = climbed.need("scale").card["metrics"]
    monkeypatch.setattr(jielong.pretrain, "run", lambda *_, **__: pytest.fail("a rung was trained again"))
    again = ladder.run(SMALL, climbed).card["metrics"]
    assert again["rungs"] == before["rungs"] and again["law"] == before["law"]
    assert {a["unit"] for a in again["advice"]} == {"seconds"}


def test_losses_are_those_of_the_model(climbed):
    """Against a loop over the tokens of one document after the other."""
    rung = climbed.need("scale").card["metrics"]["rungs"][5]
    artifact = climbed.need(rung["name"])
    model, tokenizer = load_model(artifact.path), Tokenizer.load(artifact.file("tokenizer.json"))
    held_out = documents(12, 1000)
    nats = tokens = size = 0
    for d in sorted(held_out, key=lambda d: d.id):
        ids = tokenizer.encode(d.text)[: 2 * SMALL.length - 1]
        inputs = torch.tensor([[tokenizer.end_of_text, *ids[:-1]]])
        logits = model.logits(model(inputs, causal_mask(len(ids))))[0].log_softmax(-1)
        nats -= sum(float(logits[n, i].detach()) for n, i in enumerate(ids))
        tokens, size = tokens + len(ids), size + sum(len(tokenizer.token_bytes(i)) for i in ids)
    assert rung["loss"] == pytest.approx(nats / tokens, rel=3e-3)  # bfloat16 where the processor has it
    assert rung["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=3e-3)
    assert bits_per_byte(model, tokenizer, held_out)["en"] == pytest.approx(rung["bits_per_byte"], abs=1e-3)
    readings = read(model, tokenizer, [*held_out, Document("x", "", "en", "invented")])
    assert readings[-1].tokens == 0 and readings[-1].nats == 0 and len(readings) == 13


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--widths", "32", "64", "96"], "at least 6 widths"),
        (["--widths", "32", "64", "96", "128", "160", "160"], "at least 6 widths"),
        (["--tokens", "320"], "2 numbers of tokens"),
        (["--tokens", "640", "1e9"], "too few for 1,000,000,000"),
        (["--tokens", "64", "640"], "fewer than 10 steps"),
        (["--widths", "32", "40", "64", "96", "128", "160"], "multiples of 32"),
        (["--held-back", "192"], "wider than all others"),
        (["--held-back", "225"], "multiples of 32"),
        (["--most", "4e8"], "there are 2 and 2"),
        (["--rows", "0"], "at least 1"),
    ],
)
def test_ladders_that_cannot_be_climbed(small, capsys, options, message):
    before = sorted(small.path.iterdir())
    assert main(["scale", "fit", "--run", str(small.path), *OPTIONS, *options]) == 2
    assert message in capsys.readouterr().err
    assert [p for p in sorted(small.path.iterdir()) if p.name != ".lock"] == [p for p in before if p.name != ".lock"]


def test_a_corpus_without_held_out_documents(small, tmp_path):
    run = Run(tmp_path / "bare")
    with run.build("corpus", kind="corpus", config={}) as build:
        write_documents(build.path / "train.parquet", documents(120))
        write_documents(build.path / "heldout.parquet", [])
    with pytest.raises(UserError, match="no tokenizer yet"):
        ladder.run(SMALL, run)
    shutil.copytree(small.path / "tokenizer", run.path / "tokenizer")
    with pytest.raises(UserError, match="no held-out documents"):
        ladder.run(SMALL, run)


def test_advice_knows_how_much_text_there_is():
    """A budget that would read the corpus many times gets a second advice, which spends it on a larger model."""
    rungs = [
        ladder.Rung("", w, 2, n, n, d, 1.0, 0.1, 6.0 * n, 1e-9, 1.0 + 1e3 * n**-0.6 + 1e3 * d**-0.6, 1.0)
        for w, n in zip((32, 64, 96, 128, 160, 192), (1e5, 2e5, 4e5, 8e5, 16e5, 32e5), strict=True)
        for d in (1e5, 4e5)
    ]
    found = ladder.fit(*ladder.points(rungs, "total"), rounds=5)
    config = dataclasses.replace(SMALL, minutes=0, flops=1e13)
    free, bound = ladder.advised(config, found, "total", rungs, 320, 50_000)
    assert free.tokens[0] > 200_000 >= bound.tokens[0] and bound.parameters[0] > free.parameters[0]
    assert "more text is needed" in ladder.told(free, 50_000) and "at most 4 times" in ladder.told(bound, 50_000)
    (enough,) = ladder.advised(config, found, "total", rungs, 320, 10**9)
    assert enough == free and "needed" not in ladder.told(enough, 10**9)


def test_expensive_trainings_are_left_out():
    """Cheap ones first; six FLOPs per parameter and token."""
    whole = ladder.trainings(SMALL, 320)
    assert whole[0] == (32, 320) and whole[-1] == (192, 640) and len(whole) == 12
    most = 6 * 320 * GPT(dataclasses.replace(shape(192, 32), vocab_size=320)).parameter_count()
    cut = ladder.trainings(dataclasses.replace(SMALL, most=most), 320)
    assert cut == whole[:10] and set(whole[10:]) == {(160, 640), (192, 640)}


def test_rungs_of_another_making_are_not_taken(climbed, tmp_path):
    run = Run(tmp_path / "other")
    shutil.copytree(climbed.path, run.path)
    with pytest.raises(UserError, match=r"other settings \(optim\)"):
        ladder.run(dataclasses.replace(SMALL, rate_power=0.5), run)
    card = json.loads((run.path / "tokenizer" / "card.json").read_text(encoding="utf-8"))
    (run.path / "tokenizer" / "card.json").write_text(json.dumps({**card, "seed": 7}), encoding="utf-8")
    with pytest.raises(UserError, match="another corpus or tokenizer"):
        ladder.run(SMALL, run)
