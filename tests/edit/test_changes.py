"""The ledger and the guard, which editing and forgetting share."""

from __future__ import annotations

from pathlib import Path

import pytest

from jielong.changes.guard import Limit, judge
from jielong.changes.journal import BEGUN, conclude, settle
from jielong.changes.ledger import Ledger
from jielong.errors import UserError
from jielong.run import Run


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    ledger = Ledger(Run(tmp_path))
    for n in range(4):
        ledger.append("edit", ids=[f"id{n}"], what="法國")
    return ledger


def test_the_chain(ledger):
    entries = ledger.entries()
    assert [e["number"] for e in entries] == [1, 2, 3, 4]
    assert [e["prev"] for e in entries[1:]] == [e["hash"] for e in entries[:-1]]


def _lines(ledger) -> list[bytes]:
    return ledger.path.read_bytes().splitlines(keepends=True)


def test_whatever_is_done_to_a_line_is_noticed(ledger):
    whole = _lines(ledger)
    tampered = {
        "a byte": ([whole[0], whole[1].replace(b"id1", b"id7"), *whole[2:]], 2),
        "a line gone": ([whole[0], *whole[2:]], 2),
        "two lines exchanged": ([whole[0], whole[2], whole[1], whole[3]], 2),
        "half a line": ([*whole[:3], whole[3][:20]], 4),
        "a line twice": ([*whole, whole[3]], 5),
        "an empty line": ([*whole[:3], b"\n", whole[3]], 4),
    }
    for name, (lines, number) in tampered.items():
        ledger.path.write_bytes(b"".join(lines))
        with pytest.raises(UserError, match=f"line {number} does not fit"):
            ledger.entries()
        before = ledger.path.read_bytes()
        with pytest.raises(UserError):
            ledger.append("edit", ids=["x"])
        assert ledger.path.read_bytes() == before, name


def test_every_single_flipped_byte_is_noticed(ledger):
    raw = ledger.path.read_bytes()
    for at in range(0, len(raw) - 1, 7):
        changed = bytearray(raw)
        changed[at] ^= 1
        ledger.path.write_bytes(bytes(changed))
        with pytest.raises(UserError):
            ledger.entries()


def test_the_guard_names_what_broke():
    limits = [
        Limit("a", "the first", 0.95, None, absolute=True, advice="do this"),
        Limit("b", "the second", None, 1.01, percent=False),
        Limit("c", "the third", 0.9),
    ]
    fine = {"a": 1.0, "b": 2.0, "c": 10.0}
    assert judge(limits, fine, fine) == []
    assert judge(limits, {}, {"b": 9.0}) == []  # nothing to compare with, nothing else measured
    (one,) = judge(limits, fine, fine | {"a": 0.9})
    assert one.text == "the first is 90.0% (before: 100.0%), allowed is at least 95.0%" and one.advice == "do this"
    nothing = float("nan")  # of a model that was ruined
    assert [b.name for b in judge(limits, fine, dict.fromkeys("abc", nothing))] == ["a", "b", "c"]
    assert [b.name for b in judge(limits, fine, {"a": 0.95, "b": 2.03, "c": 8.9})] == ["b", "c"]


def test_the_key_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    """Stopped while it is made, there is none; of two that make it at once, both use the first."""
    ledger = Ledger(Run(tmp_path / "a"))

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", stopped)
        with pytest.raises(KeyboardInterrupt):
            ledger.fingerprint("x", "y")
    assert not list(tmp_path.iterdir())
    other, make = Ledger(Run(tmp_path / "b")), Ledger._make_key

    def second(self):
        make(other)  # between this one's look and its making
        make(self)

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "_make_key", second)
        assert ledger.fingerprint("x", "y") == other.fingerprint("x", "y")
    assert [p.name for p in tmp_path.iterdir()] == ["changes.key"]


class Stopped(BaseException):
    pass


@pytest.mark.parametrize(("before", "recorded"), [("append", False), ("promote", True), ("unlink", True)])
def test_an_entry_and_what_talks_go_together(tmp_path, monkeypatch, before, recorded):
    """Stopped before the entry, nothing is; behind it, whoever has the lock next makes it good, once."""
    run, ledger = Run(tmp_path), Ledger(Run(tmp_path))
    run.promote("ppo-1")

    def stop(*_, **__):
        raise Stopped

    owner = {"append": Ledger, "promote": Run, "unlink": Path}[before]
    with monkeypatch.context() as patch:
        patch.setattr(owner, before, stop)
        if owner is Path:  # files beside others are renamed, not deleted
            patch.setattr("jielong.changes.ledger.write_atomic", plain_write)
            patch.setattr("jielong.changes.journal.write_atomic", plain_write)
            patch.setattr("jielong.run.write_atomic", plain_write)
        with pytest.raises(Stopped):
            conclude(run, ledger, "edit", "edited-1", ids=["x"])
    for _ in range(2):
        settle(run, ledger)
        assert len(ledger.entries()) == recorded
        assert run.promotions() == (["ppo-1", "edited-1"] if recorded else ["ppo-1"])
        assert not (tmp_path / BEGUN).exists()
    assert conclude(run, ledger, "edit", "edited-2", ids=["y"])["number"] == recorded + 1
    run.rollback()
    settle(run, ledger)
    assert run.promotions()[-1] != "edited-2"  # taken back by the user, and not by a crash


def plain_write(path, data):
    path.write_bytes(data.encode() if isinstance(data, str) else data)
