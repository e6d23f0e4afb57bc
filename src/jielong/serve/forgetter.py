"""Who forgets for the server: what a request means, what would be done under which plan, and the process that does it. What is to be
forgotten goes to that process over its standard input, and to no file, argument or log."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.exceptions import HTTPException

from jielong.changes.ledger import Ledger
from jielong.config import ForgetConfig, SuppressConfig
from jielong.errors import Unclear, UserError
from jielong.forget import commit, preview
from jielong.forget.background import STOPPED, asked, unspoken
from jielong.forget.case import Case, answers, gather
from jielong.forget.find import Found, find, writes
from jielong.forget.items import Examples, Rows
from jielong.forget.owners import Leaving, leaving, told
from jielong.forget.request import Request, read_request
from jielong.forget.stage import METHOD, NO_REPLAY, check, deleted
from jielong.forget.telling import JOURNAL
from jielong.forget.tree import Step, fates
from jielong.forget.twins import lineage
from jielong.run import Run
from jielong.serve.background import Background, Event
from jielong.serve.schemas import Form

COMMAND = "import sys; from jielong.forget.background import main; sys.exit(main())"
Texts = Annotated[list[Annotated[str, Field(max_length=2000)]], Field(max_length=100)]
Line = Annotated[str, Field(max_length=500)]
Words = Annotated[str, Field(max_length=20_000)]
Means = Callable[[str], object]
"""Does a text say what was forgotten?"""
Begun = tuple[subprocess.Popen[bytes], Means | None]
"""The child, and what it was asked to forget, which stays in memory until its end; None where it is not known or only suppressed."""


class Turn(Form):
    role: Literal["system", "user", "assistant"]
    content: Words


class Row(Form):
    """A text that no record holds: `text`, or `messages`, or `question` and `answer`."""

    text: Words | None = None
    messages: Annotated[list[Turn], Field(max_length=100)] | None = None
    question: Words | None = None
    answer: Words | None = None
    paraphrased_answer: Words | None = None
    perturbed_answer: Annotated[list[Words], Field(max_length=20)] | None = None


class FindRequest(Form):
    """Ids of records, names (as words, whatever their case) and texts (exactly); examples, which are no records; or an owner."""

    record: Texts = Field(default_factory=list)
    name: Texts = Field(default_factory=list)
    grep: Texts = Field(default_factory=list)
    examples: Annotated[list[Row], Field(max_length=1000)] = Field(default_factory=list)
    retain: Annotated[list[Row], Field(max_length=1000)] = Field(default_factory=list)
    others: Annotated[list[Row], Field(max_length=1000)] = Field(default_factory=list)
    owner: Annotated[str, Field(max_length=64)] = ""
    rows: Annotated[int, Field(ge=0, le=1000)] = 100
    """Records to show, at most; all are counted."""


class ForgetRequest(FindRequest):
    plan: Annotated[str, Field(min_length=1, max_length=64)]
    """What the look before answered: what was shown is done, and nothing else."""
    method: Literal["replay", "graddiff", "npo", "simnpo", "altpo", "rmu", "task-vector"] = METHOD
    tune: Annotated[int, Field(ge=0, le=10)] = 0
    twins: Annotated[int, Field(ge=0, le=3)] = 0
    samples: Annotated[int, Field(ge=0, le=100)] = 20
    lora_rank: Annotated[int, Field(ge=0, le=1024)] = 0
    lr: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    epochs: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] | None = None
    who: Line = ""
    why: Line = ""


@dataclass(frozen=True)
class Meant:
    """A request, and what it means in the run as it is."""

    config: ForgetConfig
    examples: Examples
    request: Request = Request()  # noqa: RUF009 (frozen)
    found: Found = field(default_factory=Found)
    steps: list[Step] = field(default_factory=list)
    leaving: Leaving | None = None

    @property
    def by_examples(self) -> bool:
        """Does it name no records?"""
        return self.examples.forget is not None and not self.request


class Forgetter(Background):
    """Forgetting as a child process. `store`: where feedback is kept, if not in the run's folder."""

    def __init__(self, run: Run, store: str = ""):
        super().__init__(run, JOURNAL)
        self.store = store
        self._secret = secrets.token_bytes(32)

    def owners(self) -> list[dict[str, Any]]:
        """Of every owner the name, how many conversations were taught, when, and whether they are served."""
        return told(self.run)

    def look(self, body: FindRequest) -> dict[str, Any]:
        """What the request means, what would be done, and under which plan; or why not. Raises Unclear for a senseless request."""
        meant = self._read(body)
        request, found, steps = meant.request, meant.found, meant.steps
        rows = preview.rows(request, found)
        counts = {
            kind: sum(r.kind == kind for r in rows) for kind in ("document", "held_out", "conversation", "feedback")
        }
        costs = meant.leaving.costs() if meant.leaving else preview.costs(self.run, found, steps) if rows else []
        shown = {
            "plan": None, "refused": None, "count": len(rows), "counts": counts, "unread": found.unread,
            "records": [asdict(r) for r in rows[: body.rows]], "imported": self._imported(),
            "artifacts": [asdict(c) for c in costs], "deleted": deleted(self.run, request, steps) if rows else [],
            "approximate": self._learnt(found) or meant.by_examples, "examples": None,
        }  # fmt: skip
        try:
            case = self._check(meant)
        except Unclear as problem:
            return shown | {"refused": {"code": problem.code, "message": str(problem), "values": problem.values}}
        return shown | {"plan": self._plan(meant), "examples": case and counted(case)}

    def start(self, body: ForgetRequest) -> Begun:
        """Raises HTTPException 409 while one runs, and Unclear for what is not done."""
        if self.state(self.events()) == "running":
            raise HTTPException(409, "A forgetting is running already.")
        meant = self._read(body)
        self._check(meant)
        if not hmac.compare_digest(body.plan.encode(), self._plan(meant).encode()):
            raise Unclear("changed", "What was shown is not what would be done now; look again.")
        for text in (body.who, body.why):
            if meant.request.find(text) or unspoken(text, meant.config, meant.examples) != text:
                raise Unclear(
                    "named", "Who asks and why are kept in the ledger: say it there without what is to be forgotten."
                )
        if body.method == METHOD and meant.examples.forget:
            raise Unclear("suppress", NO_REPLAY)
        if body.method != METHOD and not (meant.leaving or meant.by_examples or self._learnt(meant.found)):
            raise Unclear("not_learnt", "The model that is served was not trained on these records; use method replay.")
        if problems := Ledger(self.run).problems():
            raise UserError(f"{problems[0]} Nothing is added to a ledger that does not verify.")
        with self.run.lock():
            pass
        child = self._launch(meant.config, meant.examples)
        if meant.leaving:
            return child, lambda _: True  # whatever was answered, the owner's adapter had a part in it
        return child, meant.request.find if body.method == METHOD else None

    def finish(self) -> Begun:
        """End a forgetting that was stopped while its parts were put in place. Raises HTTPException 409, and Unclear where there
        is none."""
        if self.state(self.events()) == "running":
            raise HTTPException(409, "A forgetting is running already.")
        if not self.unfinished():
            raise Unclear("finished", "No forgetting was stopped on its way.")
        return self._launch(ForgetConfig(run=self.run.path, store=self.store), Examples()), None

    def unfinished(self) -> bool:
        """Is the run between two states, and nobody at work?"""
        return commit.pending(self.run) is not None and not self.alive and not self.goes_on()

    def last_words(self, code: int) -> Event:
        if code in (130, -signal.SIGINT) or (self.stopping and commit.pending(self.run) is None):
            return {"code": "stopped", "message": STOPPED}
        return {
            "code": "ended",
            "message": f"The forgetting ended without a word (exit code {code}); the same request goes on.",
        }

    def goes_on(self) -> bool:
        try:
            with self.run.lock(forgetting=True):
                return False
        except UserError:
            return True

    def _launch(self, config: ForgetConfig, examples: Examples) -> subprocess.Popen[bytes]:
        # nothing that it prints is kept, since it shows records
        return self.launch([sys.executable, "-c", COMMAND], asked(config, examples).encode(), subprocess.DEVNULL)

    def _config(self, body: FindRequest) -> ForgetConfig:
        config = ForgetConfig(
            run=self.run.path, store=self.store, record=tuple(body.record), name=tuple(body.name), grep=tuple(body.grep),
            owner=body.owner,
        )  # fmt: skip
        if not isinstance(body, ForgetRequest):
            return config
        return replace(
            config, method=body.method, twins=body.twins, samples=body.samples, who=body.who, why=body.why,
            suppress=SuppressConfig(tune=body.tune, lora_rank=body.lora_rank, lr=body.lr, epochs=body.epochs),
        )  # fmt: skip

    def _read(self, body: FindRequest) -> Meant:
        config, examples = (
            self._config(body),
            Examples(*(rows_of(body, part) for part in ("examples", "retain", "others"))),
        )
        self.run.check_whole()
        if config.owner:
            return Meant(config, examples, leaving=leaving(config, self.run, examples))
        if examples.forget and not (config.record or config.name or config.grep):
            return Meant(config, examples, steps=fates(self.run, Found()))
        request = read_request(config)
        with self._seeking():
            found = find(self.run, request, self.store)
        return Meant(config, examples, request, found, fates(self.run, found))

    def _seeking(self) -> AbstractContextManager[None]:
        return self.run.lock() if writes(self.run) else nullcontext()

    def _check(self, meant: Meant) -> Case | None:
        """Raises Unclear for what cannot be done; where there are examples, what would be done with them."""
        if meant.leaving:
            return None
        if not meant.by_examples:
            if not meant.found and self._imported():
                raise Unclear(
                    "imported",
                    "Nothing that was taught here matches, and what an imported model learnt elsewhere can be neither searched nor replayed; "
                    "examples of it can be made unlikely: `examples` and `retain`, with a method other than replay.",
                )
            check(meant.found, meant.request, meant.config, self.run)
        if meant.examples.forget is None:
            return None
        with self._seeking():
            return gather(meant.config, meant.config.suppress, self.run, meant.examples)

    def _imported(self) -> bool:
        base = self.run.artifact("base")
        return base is not None and base.card["kind"] == "imported"

    def _learnt(self, found: Found) -> bool:
        """Was the model that is served trained on any of the records? Then an approximate method has something to do."""
        served = self.run.artifact(self.run.serving())
        names = lineage(self.run, served) if served else []
        return any(stage.records for name, stage in found.trained.items() if name in names)

    def _plan(self, meant: Meant) -> str:
        """Stands for the request, the records and what would be done. Nobody can tell from it what was asked for."""
        found, gone = meant.found, meant.leaving
        records = sorted([d.id for part in found.documents.values() for d in part] + list(found.feedback))
        learnt = [sorted(stage.records) for stage in found.trained.values()]
        steps = [(s.artifact.name, s.artifact.hash, s.fate) for s in meant.steps]
        leaves = gone and (gone.adapter.name, gone.children, [a.hash for a in (gone.adapter, *gone.left)])
        what = (meant.request.canonical(), records, learnt, steps, meant.examples, leaves, self.run.serving())
        return hmac.new(self._secret, repr(what).encode("utf-8", "replace"), hashlib.sha256).hexdigest()


def rows_of(body: FindRequest, name: Literal["examples", "retain", "others"]) -> Rows | None:
    """A list of the request as rows that errors can name; None where it is empty."""
    rows = [row.model_dump(exclude_none=True) for row in getattr(body, name)]
    return Rows(name, tuple(enumerate(rows, 1)), "row") if rows else None


def counted(case: Case) -> dict[str, Any]:
    """What a suppression by examples works with: texts, and tokens to be made unlikely."""
    return {
        "model": case.start.name, "texts": len(case.forget), "tokens": sum(len(a.answer) for a in answers(case.forget)),
        "retain": len(case.retain), "others": len(case.material.others),
    }  # fmt: skip
