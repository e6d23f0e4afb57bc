"""POST /v1/detect, marked and remembered answers, over HTTP; and the stage's commands."""

from __future__ import annotations

import io
import json
import random
import shutil
import sys
import threading
from dataclasses import replace

import pytest
from fastapi.testclient import TestClient
from test_ledger import english

from jielong.cli import main
from jielong.config import ModelConfig
from jielong.corpus.language import ENGLISH
from jielong.detect import reference as references
from jielong.detect.evidence import Evidence, Report
from jielong.detect.examination import Examination, Tools
from jielong.detect.ledger import Ledger
from jielong.detect.reference import LENGTHS, Reference
from jielong.detect.watermark import load_key, make_key
from jielong.errors import UserError
from jielong.generate.engine import Engine
from jielong.model.gpt import GPT, save_model
from jielong.run import Run
from jielong.serve.app import Served, make_app
from jielong.serve.detect import LONGEST, Detection, detection_of
from jielong.tokens.tokenizer import Tokenizer, train

HI = [{"role": "user", "content": "Hi"}]
PLACES = ["France", "Japan", "Paris", "Tokyo", "Peru", "Chile", "Norway", "Kenya"]


def people(count, seed=1, words=45):
    """Texts whose language is English; each begins with another word."""
    rng = random.Random(seed)
    glue = sorted(ENGLISH)
    return [" ".join([f"text{seed}x{n}", *(rng.choice(glue + PLACES) for _ in range(words))]) for n in range(count)]


@pytest.fixture(scope="module")
def run_with_humans(small_run, tmp_path_factory):
    """A small run with a reference of 100 texts."""
    folder = tmp_path_factory.mktemp("runs") / "detect"
    for name in ("sft", "base"):
        shutil.copytree(small_run / name, folder / name)
    texts = tmp_path_factory.mktemp("texts") / "people.jsonl"
    texts.write_text("".join(json.dumps({"text": t}) + "\n" for t in people(100)))
    assert main(["detect", "reference", "--text", str(texts), "--observer", "base", "--run", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """A run whose model has a vocabulary of its own."""
    other = train([f"something else altogether {n}" for n in range(60)], 280)
    model = GPT(ModelConfig(vocab_size=other.vocab_size, width=32, layers=1, heads=2, kv_heads=1, head_dim=16, mlp_width=32, context=128))  # fmt: skip
    model.init_weights(3)
    run = Run(tmp_path_factory.mktemp("runs") / "stranger")
    with run.build("sft", kind="sft", config={}) as build:
        save_model(model, build.path)
        other.save(build.path)
    return run.path


def test_a_reference_is_an_artifact_with_prefix_scores(run_with_humans):
    artifact = Run(run_with_humans).need("reference")
    assert artifact.card["kind"] == "reference" and artifact.card["metrics"]["corpus"] == "people"
    assert artifact.card["parents"].keys() == {"sft", "base"} and artifact.card["threads"] >= 1
    assert artifact.card["seconds"] > 0.1  # of reading the texts, not of writing the file alone
    held = Reference.load(artifact)
    engine = Engine.load(run_with_humans / "sft", precision="auto")
    assert held.model == engine.hash and held.languages() == ["en"] and len(held.shingles["en"]) == 100
    for (lang, length, method), values in held.scores.items():
        assert lang == "en" and length in LENGTHS and 19 <= len(values) <= 100
        assert list(values) == sorted(values)
        assert method in ("likelihood", "log-rank", "lrr", "fast-detect", "binoculars", "likelihood-ratio", "tilt")
        # p is the rank among the humans: smallest above all of them, 1 below
        assert held.p(lang, length, method, values[-1] + 1) == pytest.approx(1 / (len(values) + 1))
        assert held.p(lang, length, method, values[0] - 1) == 1.0
        assert held.p(lang, length, method, values[-1]) == pytest.approx(2 / (len(values) + 1))
    assert b"France" not in (run_with_humans / "reference" / references.FILE).read_bytes()


def test_an_observer_of_another_run_is_no_parent(run_with_humans, stranger, tmp_path):
    """Its artifact has the name of the scorer, whose hash the card would not hold any more."""
    texts = tmp_path / "people.jsonl"
    texts.write_text("".join(json.dumps({"text": t}) + "\n" for t in people(20)))
    options = [
        "--text",
        str(texts),
        "--observer",
        str(stranger),
        "--name",
        "reference-2",
        "--run",
        str(run_with_humans),
    ]
    assert main(["detect", "reference", *options]) == 0
    run = Run(run_with_humans)
    card = run.need("reference-2").card
    assert card["parents"] == {"sft": run.need("sft").hash} and card["metrics"]["observer"]
    shutil.rmtree(run_with_humans / "reference-2")


def test_conformal_p_values_hold_on_new_humans(run_with_humans):
    """P(p ≤ α) ≤ α + 3 standard errors for texts from the same source, every statistic."""
    engine = Engine.load(run_with_humans / "sft", precision="auto")
    held = Reference.load(Run(run_with_humans).need("reference"))
    scores, _ = references.measure(engine, None, people(100, seed=2), held.tilts)
    assert len(held.scores["en", 50, "tilt"]) == 66 and ("en", 50, "tilt") in scores
    tested = 0
    for (lang, length, method), values in scores.items():
        human = held.scores.get((lang, length, method))
        if human is None or len(human) < 60 or len(values) < 60:
            continue
        tested += 1
        p = [held.p(lang, length, method, v) for v in values]
        for alpha in (0.02, 0.1, 0.5):
            spread = (alpha * (1 - alpha) * (1 / len(p) + 1 / len(human))) ** 0.5
            assert sum(x <= alpha for x in p) / len(p) <= alpha + 3 * spread, (length, method, alpha)
    assert tested >= 8


def look(engine, text, **tools):
    e = Examination(text, Tools(engine, **{k: v for k, v in tools.items() if k != "methods"}), tools.get("methods", ()))
    while e.step():
        pass
    return e.report(0.02)


def by(report, method) -> Evidence:
    return next(e for e in report.evidence if e.method == method)


def test_abstaining(run_with_humans):
    engine = Engine.load(run_with_humans / "sft", precision="auto")
    held = Reference.load(Run(run_with_humans).need("reference"))
    (text,) = people(1, seed=9)
    found = by(look(engine, text, reference=held), "fast-detect")
    assert found.p is not None and found.null.startswith("human:people@en,") and found.n in LENGTHS
    cases = {
        "too short": ("The capital of France.", {"reference": held}),
        "no human texts to compare": (text, {}),
        "its language (zh-Hant)": ("法國的首都是巴黎，日本的人說日文，這裡的國家都有首都。" * 12, {"reference": held}),
        "cannot give a p-value": (text, {"reference": replace(held, scores={k: v[:20] for k, v in held.scores.items()})}),
        "measured without magic": (text, {"reference": replace(held, scores={("en", 50, "magic"): held.scores["en", 50, "lrr"]})}),
    }  # fmt: skip
    for note, (asked, tools) in cases.items():
        report = look(engine, asked, **tools)
        e = by(report, "fast-detect")
        assert report.verdict == "abstain" and e.p is None, note
        assert note.replace("magic", "fast-detect") in e.notes[0]
    tilted = look(engine, text, reference=held, methods=("tilt",)).evidence[0]
    assert tilted.p is not None and tilted.null.endswith("n=66")
    fewer = replace(held, tilts={}, scores={k: v for k, v in held.scores.items() if k[2] != "tilt"})
    for tools, note in (
        ({}, "no human texts to compare"),
        ({"reference": fewer}, "57 documents of a language are needed"),
    ):
        e = look(engine, text, methods=("tilt",), **tools).evidence[0]
        assert e.p is None and e.score is None and note in e.notes[0]
    # German ones are enough for the tilt, English ones not
    other = {("de", *k[1:]): v for k, v in held.scores.items() if k[2] == "tilt"}
    e = look(engine, text, methods=("tilt",), reference=replace(held, tilts={}, scores=fewer.scores | other)).evidence[
        0
    ]
    assert e.p is None and e.notes[0] == "too few human texts for tilt in its language (en); people has de"
    # where few humans are as long, fewer tokens are compared
    short = {k: (v[:30] if k[1] > 75 else v) for k, v in held.scores.items()}
    found = by(look(engine, text, reference=replace(held, scores=short)), "fast-detect")
    assert found.p is not None and found.n == 75 and "its first 75 of" in found.notes[0]
    with pytest.raises(UserError, match="no text"):
        look(engine, " \u200b … ")
    with pytest.raises(UserError, match="second model"):
        look(engine, text, methods=("binoculars",))
    with pytest.raises(UserError, match="no statistic"):
        look(engine, text, methods=("magic",))
    observer = Engine.load(run_with_humans / "base", precision="auto")
    pair = look(engine, text, reference=held, observer=observer, methods=("binoculars", "likelihood-ratio"))
    assert all(e.p is not None for e in pair.evidence)
    wrong = look(engine, text, reference=held, observer=engine, methods=("binoculars",))
    assert wrong.verdict == "abstain" and "another observer" in wrong.evidence[0].notes[0]


def test_references_that_do_not_fit(run_with_humans, tmp_path, capsys):
    run = Run(run_with_humans)
    with pytest.raises(UserError, match="another model"):
        references.fitting(run, "0" * 64, "reference")
    assert references.fitting(run, "0" * 64) is None
    with pytest.raises(UserError, match="no reference"):
        references.fitting(run, "0" * 64, "reference-2")
    few = tmp_path / "few.txt"
    few.write_text(people(1)[0])
    before = sorted(p.name for p in run_with_humans.iterdir())
    for options, said in (
        (["--text", str(few)], "name more human texts"),
        (["--text", str(tmp_path / "none")], "does not exist"),
        (["--text", str(few), "--name", "../x"], "--name must"),
        (["--text", str(few), "--most", "-1"], "--most must be 0"),
        (["--text", str(few), "--threads", "-1"], "--threads must be 0"),
        (["--text", str(few)], "too few have 50 tokens or more (1 in en): 19 of one language are needed"),
        (["--text", str(few), "--observer", "nothing"], "no model 'nothing'"),
    ):
        assert main(["detect", "reference", "--run", str(run_with_humans), *options]) == 2
        assert said in capsys.readouterr().err
    assert sorted(p.name for p in run_with_humans.iterdir()) == before
    (run_with_humans / "reference" / references.ABOUT).write_text("{}")
    with pytest.raises(UserError, match="damaged"):
        Reference.load(run.artifact("reference"))
    texts = tmp_path / "people.jsonl"
    texts.write_text("".join(json.dumps({"text": t}) + "\n" for t in people(100)))
    assert main(["detect", "reference", "--text", str(texts), "--observer", "base", "--run", str(run_with_humans)]) == 0


# the commands


def test_the_command(run_with_humans, stranger, tmp_path, capsys, monkeypatch):
    (text,) = people(1, seed=5)
    file = tmp_path / "text.txt"
    file.write_text(text)
    run = ["--run", str(run_with_humans)]
    key = tmp_path / "key.json"
    assert main(["detect", "key", str(key), *run]) == 0 and load_key(key).scheme == "gumbel"
    assert main(["detect", "key", str(key), *run]) == 2
    capsys.readouterr()
    assert main(["detect", str(file), *run, "--key", str(key), "--json", "--tokens"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["verdict"] in ("no evidence", "generated") and told["language"] == "en" and told["model"] == "sft"
    assert [e["method"].split(":")[0] for e in told["evidence"]] == ["watermark", "watermark+model", "likelihood-ratio"]
    assert "".join(text[t["start"] : t["end"]] for t in told["tokens"]) == text
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Hi there")))
    assert main(["detect", str(file), *run]) == 0  # the null is told whole, however narrow the terminal
    cells = [row.split("│")[5].strip() for row in capsys.readouterr().out.splitlines() if row.count("│") == 8]
    assert "human:people@en," in "".join(cells)
    assert main(["detect", "-", *run, "--tokens"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("abstain") and "too short" in said.replace("\n", " ")
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**json.loads(key.read_text()), "vocabulary": "0" * 16}))
    other.chmod(0o600)
    (tmp_path / "binary").write_bytes(bytes(range(256)) * 8)
    monkeypatch.setattr("jielong.detect.stage.LARGEST", 5000)
    (tmp_path / "large").write_text("a" * 5001)
    monkeypatch.setattr("pathlib.Path.read_bytes", lambda path: pytest.fail(f"{path} was read whole"))
    for command in (
        [str(tmp_path / "large"), *run], [str(file) + "/x", *run], [str(tmp_path / ("x" * 300)), *run], [str(file), *run, "--threads", "-2"],
        [str(tmp_path / "none"), *run], [str(tmp_path), *run], [str(tmp_path / "binary"), *run],
        [str(file), *run, "--key", str(other)], [str(file), *run, "--alpha", "0"], [str(file), *run, "--methods", "magic"],
        [str(file), *run, "--observer", "nothing"], ["ledger", "verify", *run],
        [str(file), *run, "--methods", "binoculars", "--observer", str(stranger)], [str(file), "--run", str(stranger), "--key", str(key)],
    ):  # fmt: skip
        assert main(["detect", *command]) == 2, command
        assert capsys.readouterr().err.startswith("jielong: ")
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello!\n/quit\n"))
    assert main(["chat", *run, "--watermark", str(key)]) == 0
    assert main(["chat", *run, "--watermark", str(other)]) == 2
    assert main(["chat", *run, "--watermark", str(tmp_path / "none")]) == 2


def test_the_ledgers_command(run_with_humans, tmp_path, capsys):
    book = Ledger(run_with_humans / "ledger")
    rng = random.Random(1)
    texts = [english(rng) for _ in range(3)]
    for n, text in enumerate(texts):
        book.add(f"a-{n}", text, "sft", "ann" if n else "bob")
    run = ["--run", str(run_with_humans)]
    assert main(["detect", "ledger", "verify", *run]) == 0 and "3 answers" in capsys.readouterr().out
    file = tmp_path / "t.txt"
    file.write_text(texts[0])
    assert main(["detect", str(file), *run, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["verdict"] == "generated" and told["evidence"][0]["null"] == "exact"
    assert main(["detect", "ledger", "erase", *run]) == 2
    assert (
        main(["detect", "ledger", "erase", "--user", "ann", *run]) == 0
        and "2 answers erased" in capsys.readouterr().out
    )
    assert main(["detect", "ledger", "erase", "--id", "a-0", *run]) == 0
    book.file.unlink()


# the server


@pytest.fixture
def client(small_run, tokenizer, tmp_path):
    engine, other = Engine.load(small_run / "sft"), Engine.load(small_run / "base")
    key = make_key(tmp_path / "key.json", tokenizer, "gumbel", 2, 0.25, 2.0)
    detection = Detection({"sft": key}, Ledger(tmp_path / "ledger"))
    with TestClient(make_app([Served(engine), Served(other)], detection=detection)) as client:
        yield client


def detect(client, text, **body):
    return client.post("/v1/detect", json={"text": text, **body})


def test_what_the_server_generates_it_finds(client, letters):
    body = {"messages": HI, "max_tokens": 90, "temperature": 1.0, "seed": 1, "logit_bias": letters}
    answer = client.post("/v1/chat/completions", json=body).json()
    text = answer["choices"][0]["message"]["content"]
    found = detect(client, text, tokens=True, top=3).json()
    kinds = {e["kind"]: e for e in found["evidence"]}
    assert (
        found["verdict"] == "generated"
        and kinds["watermark"]["p"] < 1e-3
        and kinds["watermark"]["null"] == "random-key"
    )
    assert [e["kind"] for e in found["evidence"]][:4] == ["ledger", "watermark", "watermark", "statistic"]
    assert len(found["tokens"][0]["top"]) == 3 and found["tokens"][0]["rank"] >= 1
    # another model of the same server bears no mark
    plain = client.post("/v1/chat/completions", json={**body, "model": "base"}).json()["choices"][0]["message"][
        "content"
    ]
    marks = [e for e in detect(client, plain).json()["evidence"] if e["kind"] == "watermark"]
    assert min(m["p"] for m in marks) > 1e-4
    assert not [e for e in detect(client, plain, model="base").json()["evidence"] if e["kind"] == "watermark"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["chat/completions", "completions"])
def test_answers_of_every_form_are_remembered(client, tmp_path, stream, path, monkeypatch):
    monkeypatch.setattr("jielong.detect.ledger.SHORTEST", 1)
    asked = {"messages": HI} if path.startswith("chat") else {"prompt": "The"}
    body = {**asked, "max_tokens": 30, "ignore_eos": True, "temperature": 1.0, "n": 2, "stream": stream, "user": "ann"}
    client.post(f"/v1/{path}", json=body)
    detect(client, "Anything at all.")  # stands behind the writing
    entries = Ledger(tmp_path / "ledger").entries()
    assert len(entries) == 2 and entries[1].id == entries[0].id + ":1" and entries[0].model == "sft" and entries[0].user


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"text": ""}, 400), ({"text": " … "}, 400), ({}, 400), ({"text": "x", "alpha": 0}, 400), ({"text": "x", "alpha": 0.9}, 400),
        ({"text": "x", "methods": ["magic"]}, 400), ({"text": "x", "methods": ["binoculars"]}, 400), ({"text": "x", "model": "none"}, 404),
        ({"text": "x", "observer": "none"}, 404), ({"text": 5}, 400), ({"text": "x", "top": 99}, 400),
        ({"text": "x", "methods": ["binoculars"], "observer": "base"}, 200), ({"text": "\U0001f600 one \u0000 two"}, 200),
    ],
)  # fmt: skip
def test_requests_good_and_bad(client, body, status):
    response = client.post("/v1/detect", json=body)
    assert response.status_code == status
    if status == 200:
        assert response.json()["verdict"] == "abstain"
    else:
        assert response.json()["error"]["message"]


def test_a_name_of_millions_of_letters_is_not_repeated(client):
    assert len(detect(client, "x", model="a" * 3_000_000).content) < 1000


def test_half_a_character_is_no_text(client):
    response = client.post(
        "/v1/detect", content=b'{"text": "\\ud83d alone"}', headers={"Content-Type": "application/json"}
    )
    assert response.status_code == 400


def test_a_long_text_is_answered_by_its_beginning_and_a_longer_one_refused(client, monkeypatch):
    text = "The capital of France is Paris. " * 3000 + "\u200b" * 1000
    found = detect(client, text, tokens=True).json()
    assert len(found["tokens"]) == 800
    kinds = {e["method"].split(":")[0]: e for e in found["evidence"]}
    assert {len(e["spans"]) for e in kinds.values() if e["kind"] in ("watermark", "disguise")} == {798, 800}
    assert kinds["watermark"]["n"] > 9000 and kinds["disguise"]["score"] == 1000
    monkeypatch.setattr(Examination, "__init__", lambda *_: pytest.fail("it was looked at"))
    refused = detect(client, "a" * (LONGEST + 1))
    assert refused.status_code == 400 and "at most 100000" in refused.json()["error"]["message"]


def test_what_is_found_is_written_where_it_holds_nobody_up(client, monkeypatch):
    """Of a long text there are as many spans as places: the event loop has no part in them."""
    wrote, whole = [], Report.json
    monkeypatch.setattr(Report, "json", lambda report: wrote.append(threading.current_thread().name) or whole(report))
    assert detect(client, "The capital of France is Paris. ").status_code == 200
    assert len(wrote) == 1 and wrote[0].startswith("ledger")


def test_a_text_is_made_into_tokens_once(client, monkeypatch):
    asked, spans = [], Tokenizer.encode_spans
    monkeypatch.setattr(Tokenizer, "encode_spans", lambda *a, **k: asked.append(a[1]) or spans(*a, **k))
    assert detect(client, "The capital of France is Paris. " * 4).status_code == 200
    assert len(asked) == 1


def test_a_server_with_keys_that_do_not_fit_does_not_start(model, tokenizer, tmp_path):
    served = [Served(Engine(model, tokenizer, name="sft"))]
    key = make_key(tmp_path / "key.json", tokenizer, "gumbel", 4, 0.25, 2.0)
    run = Run(tmp_path)
    assert detection_of((str(tmp_path / "key.json"),), False, served, run).keys == {"": key}
    assert detection_of((f"sft={tmp_path / 'key.json'}",), False, served, run).keys == {"sft": key}
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps({**json.loads((tmp_path / "key.json").read_text()), "vocabulary": "0" * 16}))
    wrong.chmod(0o600)
    for entry, said in (
        (str(wrong), "another vocabulary"),
        (f"base={wrong}", "no model 'base'"),
        ("none.json", "does not exist"),
    ):
        with pytest.raises(UserError, match=said):
            detection_of((entry,), False, served, run)
    (tmp_path / "ledger").mkdir()
    (tmp_path / "ledger" / "ledger.jsonl").write_text("rubbish\n")
    with pytest.raises(UserError, match=r"ledger\.key is missing"):
        detection_of((), True, served, run)
