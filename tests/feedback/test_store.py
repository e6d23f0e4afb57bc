"""The store of feedback: nothing is lost, nothing counts twice, and what is to be forgotten is gone."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import threading
import time

import pytest
import sqlalchemy as sa

from jielong.errors import UserError
from jielong.feedback.exchange import encoded, export, labels, read, statistics
from jielong.feedback.store import LONGEST, Answer, Capped, Event, Store, StoreDown


def answer(name: str = "a", text: str = "Paris.", user: str = "ann", question: str = "Capital of France?") -> Answer:
    messages = [{"role": "user", "content": question}]
    return Answer(name, messages, text, [], [], [], {"temperature": 0.7, "seed": 3}, "stop", "sft", "f00d", user)


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request, tmp_path):
    if request.param == "sqlite":
        yield Store(tmp_path / "feedback.db")
        return
    url = request.getfixturevalue("postgres")[0]
    made = Store(url)
    with made.engine.begin() as connection:
        connection.execute(sa.text("TRUNCATE answer, event, erasure RESTART IDENTITY CASCADE"))
    yield made
    made.engine.dispose()


def test_the_last_word_counts(store):
    first = store.add(Event("thumb", "ann", "a", "up"), [answer()])
    store.add(Event("thumb", "bob", "a", "down"), [answer()])
    assert [(e.user, e.value) for e in store.current()] == [("ann", "up"), ("bob", "down")]
    store.add(Event("thumb", "ann", "a", "down", text="wrong", reasons=["facts"]))
    assert [(e.user, e.value) for e in store.current()] == [("bob", "down"), ("ann", "down")]
    assert len(store.all_events()) == 3  # nothing was changed
    with pytest.raises(UserError, match="of yours"):
        store.add(Event("undo", "bob", undoes=first))
    store.add(Event("undo", "ann", undoes=3))
    # the earlier thumb stands again
    assert [(e.user, e.value) for e in store.current()] == [("ann", "up"), ("bob", "down")]
    kept = store.answers_of(["a"])["a"]
    assert kept.sampling == {"temperature": 0.7, "seed": 3} and kept.model_hash == "f00d"


@pytest.mark.parametrize(
    ("event", "complaint"),
    [
        (Event("thumb", "ann", "nowhere", "up"), "not known"),
        (Event("thumb", "ann", "a", "sideways"), "value of a thumb"),
        (Event("star", "ann", "a"), "kind must be"),
        (Event("compare", "ann", "a", "answer", other="a"), "two different"),
        (Event("compare", "ann", "a", "answer", other="gone"), "not known"),
        (Event("teach", "ann", "a", text="  "), "needs a text"),
        (Event("thumb", "ann", "a", "up", text="x" * (LONGEST + 1)), "at most"),
        (Event("undo", "ann", undoes=77), "no feedback 77"),
        (Event("thumb", "ann", None, "up"), "names the answer"),
    ],
)
def test_nonsense_is_refused(store, event, complaint):
    store.add(Event("thumb", "zoe", "a", "up"), [answer()])
    with pytest.raises(UserError, match=complaint):
        store.add(event)
    assert len(store.all_events()) == 1


def test_the_cap(tmp_path):
    store = Store(tmp_path / "f.db", cap=5)
    now = time.time()
    for n in range(5):
        store.add(Event("thumb", "mallory", f"a{n}", "down"), [answer(f"a{n}")])
        store.add(Event("thumb", "ann", f"a{n}", "up"))
    with pytest.raises(Capped):
        store.add(Event("thumb", "mallory", "a9", "down"), [answer("a9")])
    store.add(Event("undo", "mallory", undoes=1))  # taking back is always allowed
    store.add(Event("thumb", "mallory", "a9", "down", created=now + 90_000), [answer("a9")])  # a day later
    told = statistics(store)["users"]
    assert told["mallory"]["agrees_with_others"] == 0.0 and told["ann"]["days_at_the_cap"] == 1
    # a file that was written without a cap is capped when it is read
    free = Store(tmp_path / "f.db", cap=10_000)
    for n in range(40):
        free.add(Event("thumb", "mallory", f"b{n}", "down"), [answer(f"b{n}")])
    assert sum(e.user == "mallory" for e in store.current()) <= 6


def test_erasing_a_user(store):
    store.add(Event("thumb", "ann", "a", "up", text="my secret"), [answer(user="ann", text="secret answer")])
    store.add(Event("thumb", "bob", "b", "up"), [answer("b", user="bob")])
    assert store.erase("ann") == (1, 1)
    assert [e.user for e in store.current()] == ["bob"]
    with store.engine.connect() as connection:
        everything = [
            str(row) for t in (store.answers, store.events, store.erasures) for row in connection.execute(sa.select(t))
        ]
    assert len(everything) == 5 and not any("secret" in row or "'ann'" in row for row in everything)


def test_concurrent_writers_lose_nothing(store):
    failures = []

    def press(user: int) -> None:
        try:
            for n in range(15):
                store.add(Event("thumb", f"u{user}", f"a{n}", "up"), [answer(f"a{n}")])
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=press, args=(n,)) for n in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures and len(store.current()) == 90 and len(store.answers_of([f"a{n}" for n in range(15)])) == 15


WRITER = """
import sys
from jielong.feedback.store import Store, Event, Answer
store = Store(sys.argv[1])
for n in range(100000):
    a = Answer(f"a{n}", [{"role": "user", "content": "q"}], "t" * 2000, [1], [2], [0.0], {}, "stop", "m", "h", "u")
    store.add(Event("thumb", f"u{n}", a.id, "up"), [a])
    print(n, flush=True)
"""


def test_kill_in_mid_write(tmp_path):
    """What was acknowledged is there after kill -9, and the file is whole."""
    path = tmp_path / "f.db"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout
    told = -1
    while told < 40:
        told = int(writer.stdout.readline())
    writer.send_signal(signal.SIGKILL)
    rest = writer.stdout.read().split()
    writer.wait()
    told = int(rest[-1]) if rest else told
    store = Store(path)
    assert told + 1 <= len(store.current()) <= told + 2
    with sqlite3.connect(path) as raw:
        assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_newer_schema_and_a_damaged_file(tmp_path):
    path = tmp_path / "f.db"
    Store(path).engine.dispose()
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(UserError, match="newer jielong"):
        Store(path)
    bad = tmp_path / "bad.db"
    bad.write_bytes(b"no database at all" * 100)
    with pytest.raises(UserError, match="cannot be used"):
        Store(bad)
    with pytest.raises(UserError, match="cannot be opened"):
        Store("nosuchdatabase://x/y")


def test_postgres_goes_away(postgres):
    url, stop, start = postgres
    store = Store(url)
    store.add(Event("thumb", "ann", "gone", "up"), [answer("gone")])
    before = len(store.current())
    stop()
    try:
        with pytest.raises(StoreDown):
            store.add(Event("thumb", "ann", "gone", "down"))
        with pytest.raises(UserError, match="cannot be used"):
            Store(url)
    finally:
        start()
    assert len(store.current()) == before
    store.add(Event("thumb", "bob", "gone", "down"))  # and it goes on when the database is back
    assert len(store.current()) == before + 1
    with store.engine.begin() as connection:
        connection.execute(sa.text("TRUNCATE answer, event, erasure RESTART IDENTITY CASCADE"))
    store.engine.dispose()


# in and out


def filled(tmp_path) -> Store:
    store = Store(tmp_path / "f.db")
    store.add(Event("thumb", "ann", "a", "up"), [answer()])
    store.add(Event("thumb", "ann", "b", "down"), [answer("b", "Rome.")])
    store.add(Event("thumb", "shy", "b", "up", consent=False))
    store.add(Event("compare", "bob", "a", "other", other="c", shown="other"), [answer("c", "It is Paris.")])
    store.add(Event("compare", "bob", "a", "tie", other="b"))
    store.add(Event("teach", "cy", "b", text="It is Paris, of course."))
    return store


def test_there_and_back(tmp_path):
    store = filled(tmp_path)
    other = Store(tmp_path / "g.db")
    for form in ("unpaired-preference", "preference", "prompt-completion"):
        rows = list(export(store, form))
        file = tmp_path / f"{form}.jsonl"
        file.write_text("\n".join(json.dumps(r) for r in rows))
        for answers, event in read(file):
            other.add(event, answers)
        again = list(export(other, form))
        assert again == rows and rows
    assert [r["label"] for r in export(store, "unpaired-preference")] == [True, False]
    (pair,) = export(store, "preference")
    assert pair["chosen"][0]["content"] == "It is Paris." and pair["prompt"][0]["role"] == "user"
    with pytest.raises(UserError, match="format must be"):
        list(export(store, "csv"))


def test_labels(tmp_path, tokenizer):
    thumbs, pairs = labels(filled(tmp_path), tokenizer)
    assert [(t.up, t.user) for t in thumbs] == [(True, "ann"), (False, "ann")]
    assert len(pairs) == 2  # and the demonstration beside the answer that it was written for
    assert tokenizer.decode(pairs[0].chosen[:-1]) == "It is Paris." and pairs[0].chosen[-1] in tokenizer.ends
    # stored ids are taken as they are, unless they are another tokenizer's
    own = answer(text="Paris.")
    own.prompt_ids, own.answer_ids = [5, 6], [*tokenizer.encode("Par"), *tokenizer.encode("is."), tokenizer.im_end]
    assert encoded(own, tokenizer)[1:] == ((5, 6), tuple(own.answer_ids))
    own.answer_ids = [1, 2, 3]
    assert encoded(own, tokenizer)[2] == (*tokenizer.encode("Paris."), tokenizer.im_end)


def test_open_webui(tmp_path, tokenizer):
    """The export of Open WebUI's evaluations page, as its feedback table holds it."""
    history = {
        "m1": {"id": "m1", "parentId": None, "role": "user", "content": "Capital of Japan?"},
        "m2": {"id": "m2", "parentId": "m1", "role": "assistant", "content": "Tokyo."},
        "m3": {"id": "m3", "parentId": "m2", "role": "user", "content": "And of France?"},
        "m4": {"id": "m4", "parentId": "m3", "role": "assistant", "content": "Rome."},
    }

    def record(rating, message):
        return {
            "id": "f1", "user_id": "u-1", "version": 0, "type": "rating", "created_at": 1_760_000_000, "updated_at": 1_760_000_000,
            "data": {"rating": rating, "model_id": "sft", "sibling_model_ids": None, "reason": "not_factual", "comment": "no", "tags": ["geo"]},
            "meta": {"arena": False, "chat_id": "c", "message_id": message, "message_index": 2},
            "snapshot": {"chat": {"id": "c", "chat": {"history": {"messages": history, "currentId": "m4"}}}},
        }  # fmt: skip

    file = tmp_path / "feedback-history.json"
    file.write_text(json.dumps([record(1, "m2"), record(-1, "m4"), record(None, "m4")]))
    found = read(file)
    assert [(e.value, e.user, e.reasons, e.created) for _, e in found][1] == (
        "down",
        "webui:u-1",
        ["not_factual", "geo"],
        1_760_000_000.0,
    )
    assert [m["content"] for m in found[1][0][0].messages] == ["Capital of Japan?", "Tokyo.", "And of France?"]
    store = Store(tmp_path / "f.db")
    for answers, event in found:
        store.add(event, answers)
    thumbs, _ = labels(store, tokenizer)
    assert [t.up for t in thumbs] == [True, False]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{not json", "line 1"),
        ('{"prompt": "x"}', "record 1: a row needs"),
        ('{"prompt": "x", "completion": "y", "label": 3}', "true or false"),
        ('{"prompt": [{"role": "clown", "content": "x"}], "completion": "y", "label": true}', "role"),
        ('{"chosen": "a", "rejected": "b"}', "record 1"),
        ("[1, 2]", "record 1"),
        ("", "no feedback"),
        ('{"snapshot": {}, "data": {}, "meta": {}}', "record 1 is no feedback"),
    ],
)
def test_bad_files(tmp_path, text, complaint):
    file = tmp_path / "x.jsonl"
    file.write_text(text)
    with pytest.raises(UserError, match=complaint):
        read(file)


def test_hh_rows(tmp_path):
    start = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Bye\n\nAssistant:"
    file = tmp_path / "hh.jsonl"
    file.write_text(json.dumps({"chosen": start + " See you.", "rejected": start + " No."}))
    ((answers, event),) = read(file)
    assert [a.text for a in answers] == ["See you.", "No."] and event.value == "answer"
    assert [m["content"] for m in answers[0].messages] == ["Hi", "Hello", "Bye"]
