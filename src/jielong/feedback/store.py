"""The store of feedback: append-only, in an SQLite file or a PostgreSQL database.

Nothing is changed or deleted but by `erase`. What counts now is read off the events in order: the last thumb of a user on
an answer wins, and an undone event is as if it had never been. An answer is stored with the first word about it; what
nobody judges is not stored.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import sqlalchemy.event
from filelock import FileLock
from sqlalchemy.exc import DatabaseError, InterfaceError, OperationalError, SQLAlchemyError

from jielong.errors import UserError

MIGRATIONS = Path(__file__).parent / "migrations"
DAY = 86_400.0
CAP = 500  # events that a user may leave within a day; what goes beyond is refused, and never learnt from
LONGEST = 20_000  # characters of a comment or a demonstration
KINDS = {
    "thumb": ("up", "down"),
    "compare": ("answer", "other", "tie", "neither"),
    "teach": ("",),
    "undo": ("",),
}
ERASED = "erased"
PERSON = "person"


@dataclass
class Answer:
    """An answer as the engine gave it."""

    id: str
    messages: list[dict[str, str]]
    text: str
    prompt_ids: list[int]
    answer_ids: list[int]
    logprobs: list[float]
    """Natural logs of the probabilities with which its tokens were drawn."""
    sampling: dict[str, Any]
    finish: str
    model: str
    model_hash: str
    user: str = ""
    source: str = PERSON
    """person, or the name of what pressed in a person's place"""
    created: float = field(default_factory=time.time)


@dataclass
class Event:
    """A word about an answer."""

    kind: str
    """thumb, compare, teach or undo"""
    user: str
    answer: str | None = None
    value: str = ""
    """thumb: up, down; compare: which one is better: answer, other, tie, neither"""
    other: str | None = None
    shown: str = ""
    """compare: which one stood first: answer, other"""
    reasons: list[str] = field(default_factory=list)
    text: str = ""
    """A comment; teach: the answer as it should have been."""
    consent: bool = True
    """May models be trained with it?"""
    undoes: int | None = None
    id: int = 0
    created: float = field(default_factory=time.time)


class StoreDown(Exception):
    """The database does not answer; nothing was stored."""


class Capped(Exception):
    """The user has left as many events today as one may."""


class Store:
    """`url`: a path (SQLite) or an SQLAlchemy URL, for example postgresql+psycopg://user:password@host/name."""

    def __init__(self, url: str | Path, cap: int = CAP):
        self.cap = cap
        text = str(url)
        self.file = None
        if "://" not in text:
            self.file = Path(text)
            self.file.parent.mkdir(parents=True, exist_ok=True)
            text = f"sqlite:///{self.file}"
        elif text.startswith(("postgres://", "postgresql://")):
            text = "postgresql+psycopg://" + text.partition("://")[2]
        try:
            self.engine = sa.create_engine(text, pool_pre_ping=True)
        except (SQLAlchemyError, ImportError, ValueError) as error:
            raise UserError(f"The feedback store {url} cannot be opened: {error}") from error
        if self.file:
            sqlalchemy.event.listen(self.engine, "connect", _careful)
        meta = sa.MetaData()
        with self._upgraded() as connection:
            try:
                self.answers = sa.Table("answer", meta, autoload_with=connection)
                self.events = sa.Table("event", meta, autoload_with=connection)
                self.erasures = sa.Table("erasure", meta, autoload_with=connection)
            except SQLAlchemyError as error:
                raise UserError(f"The feedback store {url} is damaged: {error}") from error

    @contextmanager
    def _upgraded(self) -> Iterator[sa.Connection]:
        """A connection to a database of the newest schema; one process at a time migrates."""
        from alembic import command
        from alembic.config import Config
        from alembic.migration import MigrationContext
        from alembic.script import ScriptDirectory

        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        script = ScriptDirectory.from_config(config)
        known = {r.revision for r in script.walk_revisions()}
        lock = FileLock(f"{self.file}.lock") if self.file else nullcontext()
        try:
            with lock, self.engine.begin() as connection:
                if not self.file:
                    connection.execute(sa.text("SELECT pg_advisory_xact_lock(74656)"))
                now = MigrationContext.configure(connection).get_current_revision()
                if now is not None and now not in known:
                    raise UserError(
                        f"The feedback store {self.engine.url!r} was made by a newer jielong (schema {now}); update jielong."
                    )
                if now != script.get_current_head():
                    config.attributes["connection"] = connection
                    command.upgrade(config, "head")
                yield connection
        except (OperationalError, DatabaseError, InterfaceError) as error:
            raise UserError(f"The feedback store {self.engine.url!r} cannot be used: {error.orig}") from error

    @contextmanager
    def _connect(self) -> Iterator[sa.Connection]:
        """A transaction. Raises StoreDown, with nothing stored, when the database is not there."""
        try:
            with self.engine.begin() as connection:
                yield connection
        except (OperationalError, InterfaceError) as error:
            raise StoreDown(str(error.orig)) from error

    # writing

    def add(self, event: Event, answers: Sequence[Answer] = ()) -> int:
        """Store an event, and the answers that it is about where they are new; the event's id once it is on the disk.

        Raises UserError for an event that makes no sense, Capped, and StoreDown.
        """
        return self.add_all([(event, answers)])[0]

    def add_all(self, items: Sequence[tuple[Event, Sequence[Answer]]]) -> list[int]:
        """The same for several, in one transaction: all of them are stored or none."""
        for event, _ in items:
            _check(event)
        with self._connect() as connection:
            return [self._add(connection, event, answers) for event, answers in items]

    def _add(self, connection: sa.Connection, event: Event, answers: Sequence[Answer]) -> int:
        if event.kind != "undo" and self._today(connection, event.user, event.created) >= self.cap:
            raise Capped
        for answer in answers:
            self._insert_answer(connection, answer)
        if event.kind == "undo":
            own = sa.select(self.events).where(self.events.c.id == event.undoes)
            undone = connection.execute(own).mappings().first()
            if undone is None or undone["user"] != event.user or undone["kind"] == "undo":
                raise UserError(f"There is no feedback {event.undoes} of yours to undo.")
        for known in filter(None, (event.answer, event.other)):
            if not connection.execute(sa.select(self.answers.c.id).where(self.answers.c.id == known)).first():
                raise UserError(f"The answer {known} is not known; ask again and press then.")
        row = {k: v for k, v in asdict(event).items() if k != "id"}
        result = connection.execute(self.events.insert().values(row))
        assert result.inserted_primary_key
        return int(result.inserted_primary_key[0])

    def _insert_answer(self, connection: sa.Connection, answer: Answer) -> None:
        row = asdict(answer)
        if connection.dialect.name == "postgresql":
            from sqlalchemy.dialects.postgresql import insert
        else:
            from sqlalchemy.dialects.sqlite import insert
        connection.execute(insert(self.answers).values(row).on_conflict_do_nothing())

    def _today(self, connection: sa.Connection, user: str, now: float) -> int:
        count = sa.select(sa.func.count()).where(
            self.events.c.user == user, self.events.c.created > now - DAY, self.events.c.kind != "undo"
        )
        return int(connection.execute(count).scalar_one())

    def erase(self, user: str) -> tuple[int, int]:
        """Delete the user's words: texts, tokens and name go, that there was something stays. (events, answers)"""
        with self._connect() as connection:
            events = connection.execute(
                self.events.update()
                .where(self.events.c.user == user)
                .values(user=ERASED, text="", reasons=[], consent=False)
            ).rowcount
            answers = connection.execute(
                self.answers.update()
                .where(self.answers.c.user == user)
                .values(user=ERASED, text="", messages=[], prompt_ids=[], answer_ids=[], logprobs=[], sampling={})
            ).rowcount
            connection.execute(
                self.erasures.insert().values(
                    created=time.time(),
                    user_hash=hashlib.sha256(user.encode()).hexdigest(),
                    events=events,
                    answers=answers,
                )
            )
        return events, answers

    def forget(self, ids: Sequence[str]) -> tuple[int, int]:
        """Erase these answers and every word about them, whoever's they are, and overwrite what the file held. (events, answers)"""
        counts = [0, 0]
        with self._connect() as connection:
            for at in range(0, len(ids), 500):
                part = list(ids[at : at + 500])
                about = self.events.c.answer.in_(part) | self.events.c.other.in_(part)
                blank = {"user": ERASED, "text": "", "reasons": [], "consent": False}
                counts[0] += connection.execute(self.events.update().where(about).values(blank)).rowcount
                empty = {"text": "", "messages": [], "prompt_ids": [], "answer_ids": [], "logprobs": [], "sampling": {}}
                own = self.answers.update().where(self.answers.c.id.in_(part)).values(empty | {"user": ERASED})
                counts[1] += connection.execute(own).rowcount
        if self.file:  # SQLite keeps deleted bytes in free pages and in its log until it is told otherwise
            with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
                connection.exec_driver_sql("VACUUM")
                connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        return counts[0], counts[1]

    # reading

    def all_answers(self) -> list[Answer]:
        """Every answer that was not erased, in the order of its id."""
        with self._connect() as connection:
            rows = connection.execute(sa.select(self.answers).order_by(self.answers.c.id)).mappings().all()
        return [Answer(**row) for row in rows if row["messages"]]

    def known(self, answer_id: str) -> bool:
        """Has the answer been stored?"""
        with self._connect() as connection:
            found = connection.execute(sa.select(self.answers.c.id).where(self.answers.c.id == answer_id)).first()
        return found is not None

    def all_events(self) -> list[Event]:
        """Every event, undone and replaced ones too, in order."""
        with self._connect() as connection:
            rows = connection.execute(sa.select(self.events).order_by(self.events.c.id)).mappings().all()
        return [Event(**row) for row in rows]

    def current(self) -> list[Event]:
        """The events that count: neither undone nor replaced, at most `cap` per user and day, in order."""
        events = self.all_events()
        undone = {e.undoes for e in events if e.kind == "undo"}
        last: dict[tuple[str, ...], Event] = {}
        for e in events:
            if e.kind == "undo" or e.id in undone or e.user == ERASED:
                continue
            about = sorted(filter(None, (e.answer, e.other)))
            last[e.kind, e.user, *about] = e
        kept, per_day = [], Counter()
        for e in sorted(last.values(), key=lambda e: e.id):
            per_day[e.user, int(e.created // DAY)] += 1
            if per_day[e.user, int(e.created // DAY)] <= self.cap:
                kept.append(e)
        return kept

    def answers_of(self, ids: Sequence[str]) -> dict[str, Answer]:
        """Stored answers by id; erased ones are left out."""
        found: dict[str, Answer] = {}
        wanted = sorted(set(ids))
        with self._connect() as connection:
            for at in range(0, len(wanted), 500):
                query = sa.select(self.answers).where(self.answers.c.id.in_(wanted[at : at + 500]))
                for row in connection.execute(query).mappings():
                    if row["messages"]:
                        found[row["id"]] = Answer(**row)
        return found


def _careful(connection: Any, _: Any) -> None:
    """SQLite: what is acknowledged is on the disk; writers wait for each other."""
    cursor = connection.cursor()
    for setting in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=20000", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {setting}")
    cursor.close()


def _check(event: Event) -> None:
    if event.kind not in KINDS:
        raise UserError(f"kind must be one of {', '.join(KINDS)}.")
    if event.value not in KINDS[event.kind]:
        raise UserError(f"value of a {event.kind} must be one of {', '.join(KINDS[event.kind])}.")
    if len(event.text) > LONGEST:
        raise UserError(f"A comment or demonstration has at most {LONGEST} characters.")
    if event.kind == "compare" and (not event.other or event.other == event.answer):
        raise UserError("A comparison needs two different answers.")
    if event.kind == "teach" and not event.text.strip():
        raise UserError("A demonstration needs a text.")
    if (event.kind == "undo") != (event.undoes is not None):
        raise UserError("undo, and nothing else, names the feedback that it undoes.")
    if event.kind != "undo" and not event.answer:
        raise UserError("Feedback names the answer that it is about.")
