from __future__ import annotations

import json
import shutil

import pytest

from jielong.changes.ledger import HEAD, LEDGER, Ledger, seal, sign
from jielong.errors import UserError
from jielong.run import Run


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    run = Run(tmp_path / "run")
    run.create()
    ledger = Ledger(run)
    for n in range(3):
        ledger.append("test", what=f"entry {n}", 字=n)
    return ledger


def test_chain(ledger):
    entries = ledger.entries()
    assert ledger.problems() == []
    assert [e["number"] for e in entries] == [1, 2, 3]
    assert entries[0]["prev"] == "0" * 64 and entries[2]["prev"] == entries[1]["hash"]
    assert ledger.key.stat().st_mode & 0o077 == 0  # for the owner alone


def test_every_flipped_byte_is_noticed(ledger):
    """Whichever byte of the file changes, verification fails."""
    raw = ledger.path.read_bytes()
    for at in range(len(raw)):
        ledger.path.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        assert ledger.problems(), at
    ledger.path.write_bytes(raw)
    assert ledger.problems() == []


def test_altered_entry_is_named(ledger):
    lines = ledger.path.read_text().splitlines()
    lines[1] = lines[1].replace("entry 1", "entry 9")
    ledger.path.write_text("\n".join(lines))
    assert "line 2 does not fit its own hash" in ledger.problems()[0]
    with pytest.raises(UserError, match="line 2"):
        ledger.entries()
    with pytest.raises(UserError, match="line 2"):
        ledger.append("test")
    # a chain that somebody without the key made anew
    entries = [json.loads(line) for line in lines]
    before = "0" * 64
    for entry in entries:
        entry["prev"] = before
        before = entry["hash"] = seal(entry)
        entry["signature"] = sign(b"other", before)
    ledger.path.write_text("".join(json.dumps(e) + "\n" for e in entries))
    assert "line 1, was not signed" in ledger.problems()[0]
    for refused in (ledger.entries, lambda: ledger.append("test")):
        with pytest.raises(UserError, match=r"line 1, was not signed.*nothing is changed"):
            refused()
    ledger.key.unlink()
    assert len(ledger.entries()) == 3  # without the key one can only read
    with pytest.raises(UserError, match="missing"):
        ledger.append("test")


@pytest.mark.parametrize("order", [[0, 2], [1, 2], [1, 0, 2], [0, 2, 1], [0, 1, 1, 2], [0, 1], [0], []])
def test_removed_moved_and_cut_off_lines(ledger, order):
    lines = ledger.path.read_text().splitlines()
    ledger.path.write_text("".join(f"{lines[n]}\n" for n in order))
    assert ledger.problems()


def test_head_of_another_time_or_hand(ledger):
    head = ledger.head.read_text()
    ledger.append("test")
    ledger.head.write_text(head)  # a crash between the entry and the head
    assert ledger.problems() == []
    ledger.append("test")
    ledger.head.write_text(head)
    assert ledger.problems()
    ledger.head.write_text(json.dumps(json.loads(head) | {"count": 5}))
    assert "not signed" in ledger.problems()[0]
    ledger.head.write_text("{")
    assert "damaged" in ledger.problems()[0]
    ledger.head.unlink()
    assert "missing" in ledger.problems()[0]


def test_key(ledger, tmp_path):
    ledger.key.rename(tmp_path / "elsewhere")
    assert "signing key" in ledger.problems()[0]
    with pytest.raises(UserError, match="missing"):
        ledger.append("test")
    run = Run(tmp_path / "run")
    assert Ledger(run, tmp_path / "elsewhere").problems() == []
    other = Ledger(run, tmp_path / "other")
    other.key.write_text("00" * 32)
    assert "not signed" in other.problems()[0]
    other.key.write_text("00")
    assert "damaged" in other.problems()[0]
    shutil.copytree(run.path, tmp_path / "copy" / "run")  # another folder has another key
    assert "missing" in Ledger(Run(tmp_path / "copy" / "run")).problems()[0]


def test_fingerprints_need_the_key(ledger, tmp_path):
    assert ledger.fingerprint("PIN 1234", "a") == ledger.fingerprint("PIN 1234", "a")
    assert ledger.fingerprint("PIN 1234", "a") != ledger.fingerprint("PIN 1234", "b")
    other = Ledger(Run(tmp_path / "another"), tmp_path / "another.key")
    assert other.fingerprint("PIN 1234", "a") != ledger.fingerprint("PIN 1234", "a")


def test_own_fields_are_refused(ledger):
    with pytest.raises(ValueError, match="hash"):
        ledger.append("test", hash="x")


def test_empty(tmp_path):
    ledger = Ledger(Run(tmp_path / "run"))
    assert ledger.entries() == [] and ledger.problems() == []
    assert not (tmp_path / "run" / LEDGER).exists() and not (tmp_path / "run" / HEAD).exists()
