"""The ledger finds what it wrote, whole, edited and in part; never a human text; and knows when it was tampered with."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest

from jielong.detect.ledger import FILE, SECRET, Ledger
from jielong.detect.normalise import normalise
from jielong.detect.sketch import shingles
from jielong.errors import UserError

WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("n", "r", "st", "")]
HAN = [chr(0x4E00 + 37 * n) for n in range(400)]


def english(rng, count=120):
    return " ".join(rng.choice(WORDS) + ("." if n % 11 == 10 else "") for n in range(count))


def chinese(rng, count=160):
    return "".join(rng.choice(HAN) + ("，" if n % 13 == 12 else "") for n in range(count))


def edited(rng, text, share=0.1):
    """Every unit changed with this probability."""
    if " " in text:
        return " ".join(rng.choice(WORDS) if rng.random() < share else w for w in text.split())
    return "".join(rng.choice(HAN) if rng.random() < share else c for c in text)


@pytest.fixture
def rng():
    return random.Random(3)


@pytest.fixture(params=[english, chinese])
def write(request):
    return request.param


def look(ledger, text, humans):
    """humans: shingles."""
    return ledger.examine(normalise(text), humans, "people@x")


def cut(texts):
    return [shingles(t).hashes for t in texts]


def test_whole_edited_and_half_copied_texts_are_found_and_no_human_one(tmp_path, rng, write):
    ledger = Ledger(tmp_path / "ledger")
    answers = [write(rng) for _ in range(40)]
    for n, answer in enumerate(answers):
        assert ledger.add(f"a-{n}", answer, "sft", "ann")
    humans, others = cut(write(rng) for _ in range(220)), [write(rng) for _ in range(60)]
    whole = look(ledger, answers[7].upper().replace(".", " !"), humans)
    assert whole.p is not None and whole.p < 1e-15 and whole.null == "exact" and whole.score == 1.0
    found = [look(ledger, edited(rng, a), humans) for a in answers[:12]]
    assert all(e.p is not None and e.p <= 1 / 100 and e.null.startswith("human:people@x") for e in found)
    assert np.mean([e.score for e in found]) == pytest.approx(0.9**5, abs=0.1)
    for answer in answers[:12]:  # the first half is copied, the rest is new; the places are told
        text = answer[: len(answer) // 2] + write(rng)[: len(answer) // 2]
        e = look(ledger, text, humans)
        assert e.p is not None and e.p <= 1 / 100
        assert e.spans and max(s.end for s in e.spans) <= len(answer) // 2 + 3
    assert [p for t in others if (p := look(ledger, t, humans).p) is None or p <= 0.01] == []


def test_people_who_share_phrases_with_answers_are_no_false_alarm(tmp_path, rng):
    """Humans and answers quote the same stock phrases; the p-values of new humans keep their level."""
    phrases = [english(rng, 9) for _ in range(12)]

    def quoting():
        return " ".join(
            rng.choice(phrases) if rng.random() < 0.12 else rng.choice(WORDS) for _ in range(rng.randrange(60, 140))
        )

    ledger = Ledger(tmp_path / "ledger")
    for n in range(30):
        ledger.add(str(n), quoting())
    humans = cut(quoting() for _ in range(200))
    p = np.array([look(ledger, quoting(), humans).p for _ in range(100)])
    for alpha in (0.05, 0.2, 0.5):
        assert (p <= alpha).mean() <= alpha + 3.3 * np.sqrt(alpha * (1 - alpha) / len(p))


def test_a_long_text_is_cut_where_no_human_one_is_as_long(tmp_path, rng):
    ledger = Ledger(tmp_path / "ledger")
    ledger.add("a", long := english(rng, 400))
    humans = cut(english(rng, 100) for _ in range(400))
    e = look(ledger, english(rng, 100) + " " + long[: len(long) // 2] + " " + english(rng, 50), humans)
    assert e.p is not None and e.p < 0.03
    assert look(ledger, english(rng, 800), humans).p == 1.0


def test_without_human_texts_a_part_has_no_p_value(tmp_path, rng):
    ledger = Ledger(tmp_path / "ledger")
    assert look(ledger, english(rng), []).notes == ("the ledger is empty",)
    answer = english(rng)
    ledger.add("a", answer)
    part = look(ledger, edited(rng, answer), [])
    assert part.p is None and part.score is not None and part.score > 0.3 and "no p-value" in part.notes[-1]
    assert "too short" in look(ledger, "Hello there", []).notes[0]


def test_nothing_that_was_said_is_in_the_files(tmp_path, rng):
    ledger = Ledger(tmp_path / "ledger")
    ledger.add("id-1", "The secret of Ann Miller is 555-0199, and " + english(rng), "sft", "ann@example.org")
    assert not ledger.add("id-2", "Hello! How can I help you?", "sft", "ann@example.org")
    data = b"".join(p.read_bytes() for p in (tmp_path / "ledger").iterdir())
    assert (
        b"secret" not in data
        and b"Miller" not in data
        and b"ann@" not in data
        and b"id-1" in data
        and b"id-2" not in data
    )
    assert os.stat(tmp_path / "ledger" / SECRET).st_mode & 0o777 == 0o600
    # the same text under another secret has no mark in common
    other = Ledger(tmp_path / "other")
    other.add("id-1", text := english(rng))
    ledger.add("id-3", text)
    assert not set(other.entries()[0].marks.tolist()) & set(ledger.entries()[1].marks.tolist())


def test_erasing(tmp_path, rng):
    ledger, reader = Ledger(tmp_path / "l"), Ledger(tmp_path / "l")
    texts = [english(rng) for _ in range(6)]
    for n, text in enumerate(texts):
        ledger.add(f"a-{n}", text, user="ann" if n % 2 else "bob")
    assert len(reader.entries()) == 6
    assert ledger.erase(["a-0"]) == 1 and ledger.erase(["a-0"]) == 0 and ledger.erase(user="ann") == 3
    assert [e.id for e in reader.entries()] == ["a-2", "a-4"]
    assert not reader.match(shingles(texts[1])).whole and reader.match(shingles(texts[2])).whole
    ledger.add("a-7", texts[0])
    assert [e.id for e in Ledger(tmp_path / "l").entries()] == ["a-2", "a-4", "a-7"]
    assert b"a-1" not in (tmp_path / "l" / FILE).read_bytes()


def test_all_choices_of_an_answer_are_erased_with_it(tmp_path, rng):
    ledger = Ledger(tmp_path / "l")
    for name in ("a", "a:1", "a:2", "b", "b:1"):
        ledger.add(name, english(rng))
    assert ledger.erase(["a"]) == 3 and ledger.erase(["b:1"]) == 1
    assert [e.id for e in ledger.entries()] == ["b"]


def test_another_file_with_the_number_of_an_erased_one_is_read_from_its_beginning(tmp_path, rng):
    """File systems give the number (inode) of a file that is gone to the next one."""
    ledger, reader = Ledger(tmp_path / "l"), Ledger(tmp_path / "l")
    for n in range(3):
        ledger.add(f"a-{n}", english(rng))
    assert len(reader.entries()) == 3
    ledger.erase(["a-0"])
    for n in range(3, 6):
        ledger.add(f"a-{n}", english(rng))
    status = os.stat(ledger.file)
    reader._stamp = (status.st_dev, status.st_ino)
    assert [e.id for e in reader.entries()] == [f"a-{n}" for n in range(1, 6)]
    lines = ledger.file.read_text().splitlines(keepends=True)
    ledger.file.write_text("".join([*lines, lines[0]]))
    for _ in range(2):  # a broken seal is told every time
        with pytest.raises(UserError, match="line 6, does not fit its seal"):
            reader.entries()


def test_no_part_of_a_long_text_is_longer_than_the_humans_that_it_is_compared_with(tmp_path, rng, monkeypatch):
    """Only then is the p-value of a part one. What decides is marks, of which a part may have more than its share of words."""
    ledger = Ledger(tmp_path / "l")
    ledger.add("a", english(rng))
    humans, asked = cut(english(rng, 60) for _ in range(120)), []
    reach = sorted(len(ledger.marks(h)[0]) for h in humans)[-99]
    monkeypatch.setattr(ledger, "_best", lambda marks: asked.append(len(marks)) or (0, 0))
    for _ in range(20):
        look(ledger, english(rng, 300), humans)
    # of each text the whole is looked for first, and with the first one the humans
    assert max(n for n in asked[121:] if n < 100) <= reach < min(n for n in asked if n >= 100)


@pytest.mark.parametrize("damage", ["change", "remove", "swap", "forge", "rubbish", "key"])
def test_a_tampered_ledger_is_named(tmp_path, rng, damage):
    ledger = Ledger(tmp_path / "l")
    for n in range(4):
        ledger.add(f"a-{n}", english(rng))
    path, key = tmp_path / "l" / FILE, tmp_path / "l" / SECRET
    lines = path.read_text().splitlines()
    line = 2
    if damage == "change":
        lines[1] = lines[1].replace('"a-1"', '"a-9"')
    elif damage == "remove":
        del lines[1]
    elif damage == "swap":
        lines[1], lines[2] = lines[2], lines[1]
    elif damage == "forge":
        lines.append(
            "0" * 32 + " " + json.dumps({"id": "x", "day": "", "model": "", "user": "", "whole": "0", "marks": ""})
        )
        line = 5
    elif damage == "rubbish":
        lines[1] = "\x00\x00"
    else:
        key.write_text("00" * 32)
        line = 1
    path.write_text("\n".join(lines) + "\n")
    before = path.read_bytes()
    for use in (lambda: Ledger(tmp_path / "l").entries(), lambda: Ledger(tmp_path / "l").erase(["a-0"])):
        with pytest.raises(UserError, match=f"line {line}, does not fit its seal"):
            use()
    assert path.read_bytes() == before
    key.unlink()
    with pytest.raises(UserError, match="missing"):
        Ledger(tmp_path / "l").add("b", english(rng))
    assert path.read_bytes() == before and not key.exists()


def test_half_a_line_is_removed_by_the_next_writer(tmp_path, rng):
    ledger = Ledger(tmp_path / "l")
    ledger.add("a-0", english(rng))
    ledger.add("a-1", english(rng))
    path = tmp_path / "l" / FILE
    whole = path.read_bytes()
    for cut in (1, 40, len(whole.splitlines()[1]) - 1):
        path.write_bytes(whole + whole.splitlines(keepends=True)[1][:cut])
        assert [e.id for e in Ledger(tmp_path / "l").entries()] == ["a-0", "a-1"]
        Ledger(tmp_path / "l").add("a-2", english(rng))
        assert [e.id for e in Ledger(tmp_path / "l").entries()] == ["a-0", "a-1", "a-2"]
        path.write_bytes(whole)
    path.write_bytes(whole[:10])  # not even one line
    Ledger(tmp_path / "l").add("a-3", english(rng))
    assert [e.id for e in Ledger(tmp_path / "l").entries()] == ["a-3"]


WRITER = """
import random, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_ledger import english
from jielong.detect.ledger import Ledger
ledger, rng = Ledger(Path(sys.argv[1])), random.Random(sys.argv[2])
n = 0
while n < int(sys.argv[4]):
    ledger.add(f"{sys.argv[2]}-{n}", english(rng, 40))
    n += 1
    print(n, flush=True)
"""


def test_several_writers_and_one_that_is_killed(tmp_path):
    def writer(name, count):
        command = [sys.executable, "-c", WRITER, str(tmp_path / "l"), name, os.path.dirname(__file__), str(count)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    writers = [writer("a", 15), writer("b", 15), writer("c", 10_000)]
    victim = writers[2]
    assert victim.stdout is not None
    acknowledged = [victim.stdout.readline() for _ in range(5)]
    victim.kill()
    acknowledged += victim.stdout.readlines()
    for process in writers:
        if process.stdout is not None and process is not victim:
            process.stdout.read()
        process.wait(120)
    ids = [e.id for e in Ledger(tmp_path / "l").entries()]
    for name, count in (("a", 15), ("b", 15)):
        assert [i for i in ids if i.startswith(name)] == [f"{name}-{n}" for n in range(count)]
    killed = [i for i in ids if i.startswith("c")]
    whole = sum(line.endswith("\n") for line in acknowledged)
    assert killed == [f"c-{n}" for n in range(len(killed))] and whole <= len(killed) <= whole + 1
