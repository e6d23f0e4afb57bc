"""`jielong edit`, `changes` and `undo`: a change is proposed, examined, judged, committed or refused, recorded, undone."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from jielong.changes.guard import judge
from jielong.changes.journal import conclude, settle
from jielong.changes.ledger import Entry, Ledger
from jielong.changes.words import say
from jielong.config import ChangesConfig, EditConfig, UndoConfig
from jielong.corpus.documents import Document, read_documents
from jielong.corpus.world import load_world
from jielong.edit import facts as reading
from jielong.edit.bench import RIDGE, Bench, Site
from jielong.edit.exam import answers, possible, sit, still_true
from jielong.edit.facts import Fact
from jielong.edit.methods import editor, told, usual
from jielong.edit.methods.additive import statements
from jielong.edit.probes import Probe, about, enriched, known, nearby, other_language, pairs, rest, ripple, translated
from jielong.edit.state import Change, State, read_changes, standing, talking, whole, write
from jielong.edit.statistics import key_statistics
from jielong.edit.sweep import sweep
from jielong.edit.verdict import Refused, figures, limits, show
from jielong.errors import Unclear, UserError
from jielong.generate.engine import Engine, chats
from jielong.generate.sampling import Sampling
from jielong.model.gpt import load_model
from jielong.run import Artifact, Run
from jielong.tokens.tokenizer import Tokenizer
from jielong.train.loop import use_threads

__all__ = ["State", "changes", "read_changes", "run", "standing", "undo"]
DOCUMENTS = 60  # held-out ones whose bits are counted


def run(config: EditConfig, run: Run) -> Artifact:
    """The edit stage → edited-N, which is served from now on. Raises Refused when the exam breaks a limit, and UserError for facts
    that cannot be meant; nothing is written then but what is kept for next time (statistics, the sweep)."""
    began = time.perf_counter()
    check_settings(config)
    wanted = read_facts(config)
    ledger = Ledger(run)
    settle(run, ledger)  # a broken chain stops everything
    use_threads(config.threads)
    state = State.of(talking(run, config.model))
    config = dataclasses.replace(config, ridge=config.ridge or state.ridge or RIDGE)
    _known_subjects(config, run, wanted)
    bench, why = make_bench(config, run, state)
    standing_now = standing(state.changes)
    if config.method == "auto":
        config = dataclasses.replace(config, method=usual(bench, standing_now[-1].method if standing_now else ""))
    model = load_model(state.artifact.path).requires_grad_(False).eval()
    now = Engine(model, bench.tokenizer, rows=64)
    now.memory = told({c.id: (c.method, c.fact) for c in standing_now})
    facts = [_with_old(fact, now) for fact in map(enriched, wanted)]
    if config.translate:
        facts = [in_both(fact, now, bench.chat) for fact in facts]
    facts = _with_the_rest(facts, standing_now)
    fresh = _new_changes(config, state, facts)
    say(f"{state.artifact.name}: layer {bench.site.layer}, at the {bench.site.place} ({why}), by {config.method}.")

    replaced = {i for c in fresh for i in c.replaces}
    earlier = [c for c in standing_now if c.id not in replaced]
    bench.earlier = {c.id: (c.method, c.stored) for c in earlier}
    ready = time.perf_counter()
    made = editor(config.method).propose(bench, [_as_the_base_says(f, w, bench) for f, w in zip(facts, wanted)])
    fresh = [dataclasses.replace(c, stored=s) for c, s in zip(fresh, made, strict=True)]
    changes = [*(c for c in state.changes if c.id not in {f.id for f in fresh}), *fresh]
    delta = whole(bench, changes)
    edited = time.perf_counter() - ready

    past = [c.fact for c in earlier]
    probes = possible(now, questions(facts, past, bench.chat, config.questions, config.seed))
    scored = pairs(facts, bench.chat, config.seed)
    documents = still_true(held_out(run), [*facts, *past])
    memory = told({c.id: (c.method, c.fact) for c in standing(changes)})
    before = sit(model, bench.tokenizer, scored, probes, documents, config.seed, now.memory)
    after = sit(bench.current(delta), bench.tokenizer, scored, probes, documents, config.seed, memory)
    old, new = figures(before, after, probes, bench, delta)
    show(old, new)
    broken = judge(limits(config), old, new)
    if broken:
        raise Refused(broken, config)
    seconds = {"edit": round(edited, 2), "all": round(time.perf_counter() - began, 2)}
    said = [_said(c) for c in fresh]
    metrics = {"before": old, "after": new, "site": dataclasses.asdict(bench.site), "times": seconds, "facts": said}
    artifact = write(
        run, state, changes, delta, bench.ridge, dataclasses.replace(config, run=Path(run.path.name)), metrics
    )
    conclude(
        run,
        ledger,
        "edit",
        artifact.name,
        ids=[c.id for c in fresh],
        edits=said,
        replaces=sorted(replaced),
        method=config.method,
        **{"from": state.artifact.name, "from_hash": state.artifact.hash, "to": artifact.name, "to_hash": artifact.hash},
        before=old,
        after=new,
    )  # fmt: skip
    for change in fresh:
        for n, fact in enumerate(statements(change.fact)):
            say(f"{change.id if not n else ' and':8}: {fact.prompt} {fact.old or '…'} → {fact.target}")
        if _one_tongue(change.fact):
            say(
                f"{'':8}  In the other language the old answer may stay; give the same fact in that language as `also` in an edits file."
            )
    say(f"{seconds['edit']} s for the edit, {seconds['all']} s with the exam; {artifact.name} is served now.")
    return artifact


def _said(change: Change) -> dict[str, Any]:
    def row(f: Fact) -> dict[str, Any]:
        return {"prompt": f.prompt, "subject": f.subject, "old": f.old, "target": f.target}

    return {"id": change.id, **row(change.fact), "also": [row(f) for f in change.fact.also]}


def _one_tongue(fact: Fact) -> bool:
    """Is it a fact that was taught in two languages, but corrected in one?"""
    return known(fact) is not None and all(other.lang == fact.lang for other in fact.also)


def check_settings(config: EditConfig) -> None:
    """Raises UserError for what would make no exam or no closed form."""
    if not 0 <= config.ridge < math.inf:
        raise UserError("--ridge must be a number above 0; 0 takes the one of the earlier edits, or the default.")
    if config.questions < 0 or config.seed < 0:
        raise UserError("--questions and --seed must be at least 0.")


def read_facts(config: EditConfig) -> list[Fact]:
    """The facts of the command or of its file. Raises UserError."""
    if config.edits is not None:
        if config.prompt or config.subject or config.to:
            raise UserError("Give either a prompt with --subject and --to, or --edits FILE.")
        return reading.read_edits(config.edits)
    if not (config.prompt or config.subject or config.to):
        text = 'There is nothing to edit: `jielong edit "The capital of X is" --subject X --to Y`, or --edits FILE.'
        raise Unclear("empty", text, field="prompt")
    return [reading.check(Fact(config.prompt, config.subject, config.to, config.old))]


def _known_subjects(config: EditConfig, run: Run, facts: Sequence[Fact]) -> None:
    corpus = run.artifact("corpus")
    if corpus is None or config.new_subject:
        return
    left = {f.subject for whole_fact in facts for f in (whole_fact, *whole_fact.also)}
    for document in read_documents(corpus.file("train.parquet")):
        if not left:
            return
        left = {s for s in left if not (s in document.text and reading.occurrences(document.text.encode(), s))}
    if left:
        first = sorted(left)[0]
        text = f"The corpus never mentions {first!r}, so the model does not know it; check the spelling, or add "
        raise Unclear("unknown_subject", text + "--new-subject to teach it all the same.", subject=first)


def make_bench(config: EditConfig, run: Run, state: State) -> tuple[Bench, str]:
    """(the bench of the base model, why it is set so)."""
    model = load_model(state.base.path).requires_grad_(False).eval()
    tokenizer = Tokenizer.load(state.base.file("tokenizer.json"))
    chat = chats(state.base.card, tokenizer)
    layers = model.config.layers
    if config.layer >= layers:
        raise UserError(f"--layer {config.layer}: this model has the layers 0 to {layers - 1}.")
    site = Site(config.layer if config.layer >= 0 else layers - 1, config.place or "answer")
    bench = Bench(
        model, tokenizer, chat, site,
        lambda wanted: key_statistics(run, state.base, model, tokenizer, list(dict.fromkeys(wanted)), chat),
        config.ridge or RIDGE,
        # plain text only: conversations come with the edits' own inputs, and half of them twice costs what else is said (docs/log.md)
        inputs_of=lambda wanted: key_statistics(run, state.base, model, tokenizer, list(wanted), False, of="mlp"),
    )  # fmt: skip
    why = "as was asked"
    if config.layer < 0:
        site, why = sweep(run, state.base, bench)
        site = dataclasses.replace(site, place=config.place or site.place)
    if site.place == "subject" and site.layer == layers - 1:
        raise UserError(
            "In the last layer a change at the subject reaches no answer; choose a lower --layer or --place answer."
        )
    return dataclasses.replace(bench, site=site), why


def _with_old(fact: Fact, now: Engine) -> Fact:
    """The fact with what the model says now in place of an old object that nobody named."""
    filled = tuple(_with_old(f, now) for f in fact.also)
    if fact.old:
        return dataclasses.replace(fact, also=filled)
    text = now.generate([now.tokenizer.prompt(fact.prompt)], Sampling(temperature=0.0, max_tokens=16))[0].text
    old = reading.first_clause(text)
    if reading.fold(old) == reading.fold(fact.target):
        old = ""
    return dataclasses.replace(fact, old=old, also=filled)


def _as_the_base_says(fact: Fact, wanted: Fact, bench: Bench) -> Fact:
    """The fact as an editor reads it: with what the base says in place of an old object that nobody named, whatever earlier edits
    have made of it, so that a value is found as if it were the first."""
    also = [f if w is None else _as_the_base_says(f, w, bench) for f, w in zip_longest(fact.also, wanted.also)]
    if wanted.old:
        return dataclasses.replace(fact, also=tuple(also))
    return dataclasses.replace(_with_old(dataclasses.replace(fact, old="", also=()), bench.engine), also=tuple(also))


def _with_the_rest(facts: Sequence[Fact], now: Sequence[Change]) -> list[Fact]:
    """The facts with what the edits that they stand for say about something else, in the other language for example. Those are
    replaced whole, and what nobody corrected anew is to stay."""
    spoken = {f.about for fact in facts for f in statements(fact)}
    found = []
    for fact in facts:
        mine = {f.about for f in statements(fact)}
        for theirs in (statements(change.fact) for change in now):
            if mine & {f.about for f in theirs}:
                rest = tuple(dataclasses.replace(f, also=()) for f in theirs if f.about not in spoken)
                fact = dataclasses.replace(fact, also=(*fact.also, *rest))
                spoken |= {f.about for f in rest}
        found.append(fact)
    return found


def in_both(fact: Fact, now: Engine, chat: bool) -> Fact:
    """The correction with its translation, where the world has the names, nobody gave another one, and the model answers in that
    language with something of the right kind (an English model is not taught Chinese by the way)."""
    there = translated(fact)
    if there is None or any(other.lang != fact.lang for other in fact.also):
        return fact
    (reply,) = answers(now, [(there.prompt, chat)])
    found = known(there)
    assert found is not None
    if not any(reading.says(reply, value) for value in load_world().values(found[0].attribute, found[1])):
        return fact
    return dataclasses.replace(fact, also=(*fact.also, there))


def _new_changes(config: EditConfig, state: State, facts: Sequence[Fact]) -> list[Change]:
    """The changes to be made, and which earlier ones each stands for. Raises UserError when all were made already."""
    now = {c.id: c for c in standing(state.changes)}
    made = []
    for fact in facts:
        mine = {f.about for f in statements(fact)}
        same = tuple(i for i, c in now.items() if i != fact.id and mine & {f.about for f in statements(c.fact)})
        if fact.id in now:
            continue
        made.append(Change(fact.id, config.method, fact, {}, same))
    if len(made) < len(facts):
        first = next(f for f in facts if f.id in now)
        text = f"{first.prompt!r} → {first.target!r} is an edit of {state.artifact.name} already ({first.id}); "
        raise Unclear("already", text + "undo it first to make it anew.", id=first.id)
    return made


def questions(facts: Sequence[Fact], earlier: Sequence[Fact], chat: bool, count: int, seed: int) -> list[Probe]:
    """Everything that the exam asks."""
    past = [dataclasses.replace(p, group="earlier") for p in about(earlier, chat) if p.group == "efficacy"]
    return [
        *about(facts, chat), *other_language(facts, chat), *past, *nearby(facts, chat, seed),
        *ripple(facts, chat), *rest([*facts, *earlier], chat, count, seed),
    ]  # fmt: skip


def held_out(run: Run) -> list[Document]:
    """Texts whose bits are counted: the corpus's own, or prose of the default one."""
    corpus = run.artifact("corpus")
    if corpus is not None:
        return read_documents(corpus.file("heldout.parquet"))[:DOCUMENTS]
    from jielong.corpus.sources import wikipedia

    return [Document("", text, "en", "wikipedia") for text in list(wikipedia())[-DOCUMENTS // 3 :]]


# the ledger


def changes(config: ChangesConfig, run: Run) -> list[Entry]:
    """Every entry of the ledger, and whether its edits are in use. Raises UserError when the chain is broken."""
    entries = Ledger(run).entries()
    state = State.of(run.need(run.serving())) if entries else None
    use = {c.id for c in standing(state.changes)} if state else set()
    held = {c.id for c in state.changes} if state else set()
    if config.json:
        print(json.dumps(entries, ensure_ascii=False, indent=1))
        return entries
    for entry in entries:
        for edit in entry.get("edits", []):
            i = edit["id"]
            status = "in use" if i in use else "replaced" if i in held else "not in use"
            what = f"{edit['prompt']} {edit['old'] or '…'} → {edit['target']}"
            say(
                f"{entry['number']:4} {entry['time'][:19]} {entry['kind']:5} {i} {entry.get('method', ''):9} {status:10} {what}"
            )
        if not entry.get("edits"):
            say(f"{entry['number']:4} {entry['time'][:19]} {entry['kind']:5} {' '.join(entry.get('ids', []))}")
    say(f"{len(entries)} entries, an unbroken chain." if entries else f"{run.path} has no changes yet.")
    return entries


def undo(config: UndoConfig, run: Run) -> str:
    """Take an edit back; the name of the artifact that is served then. Raises UserError for an id that is not in use."""
    ledger = Ledger(run)
    settle(run, ledger)
    use_threads(config.threads)
    state = State.of(run.need(run.serving()))
    live = standing(state.changes)
    wanted = live[-1].id if config.id == "last" and live else config.id
    match = [c for c in live if wanted and c.id.startswith(wanted)]
    if len(match) != 1:
        known = ", ".join(c.id for c in live) or "none"
        reason = "is the beginning of several edits" if match else "is no edit in use"
        raise Unclear("no_edit", f"{config.id!r} {reason} of {state.artifact.name}; in use are: {known}.", id=config.id)
    gone = match[0]
    left = [c for c in state.changes if c.id != gone.id]
    if standing(left):
        bench, _ = make_bench(EditConfig(layer=0, ridge=state.ridge or RIDGE), run, state)
        artifact = write(run, state, left, whole(bench, left), bench.ridge, {"undo": gone.id}, {"undone": gone.id})
    else:
        artifact = state.base
    exact = all(editor(c.method).exact for c in live[live.index(gone) + 1 :])
    conclude(
        run, ledger, "undo", artifact.name, ids=[gone.id], method=gone.method, exact=exact,
        **{"from": state.artifact.name, "from_hash": state.artifact.hash, "to": artifact.name, "to_hash": artifact.hash},
    )  # fmt: skip
    if not exact:
        say(
            "A later edit was found on top of this one, and stays as it is; only this one's own part is taken out. neurons and ridge undo exactly "
            "in any order."
        )
    return artifact.name
