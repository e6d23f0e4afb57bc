"""`jielong edit`, `changes` and `undo`: a change is proposed, examined, judged, committed or refused, recorded, undone."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jielong.changes.guard import Breach, Limit, judge
from jielong.changes.ledger import Entry, Ledger
from jielong.config import ChangesConfig, EditConfig, UndoConfig
from jielong.corpus.documents import Document, read_documents
from jielong.edit import facts as reading
from jielong.edit.bench import Bench, Site, Stored
from jielong.edit.exam import Sat, kept, sit
from jielong.edit.facts import Fact
from jielong.edit.methods import editor, together
from jielong.edit.probes import Probe, about, enriched, nearby, other_language, rest
from jielong.edit.statistics import key_statistics
from jielong.edit.sweep import sweep
from jielong.errors import UserError
from jielong.generate.engine import Engine, chats
from jielong.generate.sampling import Sampling
from jielong.model.delta import Delta, delta_base, save_delta
from jielong.model.gpt import GPT, load_model, write_shape
from jielong.run import Artifact, Run, write_atomic
from jielong.tokens.tokenizer import Tokenizer, copy_tokenizer
from jielong.train.loop import use_threads

EDITED = "edited"
DOCUMENTS = 60  # held-out ones whose bits are counted


def say(text: str) -> None:
    from rich.console import Console

    Console(highlight=False).print(text, markup=False)


class Refused(UserError):
    """The guard's answer; nothing was written."""


@dataclasses.dataclass(frozen=True)
class Change:
    """An edit that an artifact holds."""

    id: str
    method: str
    fact: Fact
    stored: Stored
    replaces: tuple[str, ...] = ()
    """Edits of the same fact that it stands for; they come back when it is undone."""


def standing(changes: Sequence[Change]) -> list[Change]:
    """Those that no other one replaces."""
    gone = {i for c in changes for i in c.replaces}
    return [c for c in changes if c.id not in gone]


@dataclasses.dataclass
class State:
    """A model to be edited: its base, and the edits that it has on top."""

    artifact: Artifact
    base: Artifact
    changes: list[Change]
    ridge: float | None = None
    """λ of its closed form."""

    @classmethod
    def of(cls, artifact: Artifact) -> State:
        if artifact.card["kind"] != EDITED:
            return cls(artifact, artifact, [])
        held, ridge = read_changes(artifact.path)
        return cls(artifact, Artifact(delta_base(artifact.path)), held, ridge)


def run(config: EditConfig, run: Run) -> Artifact:
    """The edit stage → edited-N, which is served from now on. Raises Refused when the exam breaks a limit, and UserError for facts
    that cannot be meant; nothing is written then but what is kept for next time (statistics, the sweep)."""
    began = time.perf_counter()
    wanted = read_facts(config)
    ledger = Ledger(run)
    ledger.entries()  # a broken chain stops everything
    use_threads(config.threads)
    state = State.of(run.need(config.model or run.serving()))
    _known_subjects(config, run, wanted)
    bench, why = make_bench(config, run, state)
    now = load_model(state.artifact.path).requires_grad_(False).eval()
    facts = [_with_old(fact, now, bench) for fact in map(enriched, wanted)]
    fresh = _new_changes(config, state, facts)
    say(f"{state.artifact.name}: layer {bench.site.layer}, at the {bench.site.place} ({why}).")

    replaced = {i for c in fresh for i in c.replaces}
    earlier = [c for c in standing(state.changes) if c.id not in replaced]
    bench.earlier = {c.id: (c.method, c.stored) for c in earlier}
    ready = time.perf_counter()
    made = editor(config.method).propose(bench, facts)
    fresh = [dataclasses.replace(c, stored=s) for c, s in zip(fresh, made, strict=True)]
    changes = [*(c for c in state.changes if c.id not in {f.id for f in fresh}), *fresh]
    delta = whole(bench, changes)
    edited = time.perf_counter() - ready

    probes = questions(facts, [c.fact for c in earlier], bench.chat, config.questions, config.seed)
    documents = held_out(run)
    before = sit(now, bench.tokenizer, facts, probes, documents, config.seed)
    after = sit(bench.current(delta), bench.tokenizer, facts, probes, documents, config.seed)
    old, new = figures(before, after, probes, bench, delta)
    show(old, new)
    broken = judge(limits(config), old, new)
    if broken:
        raise Refused(refusal(broken))
    seconds = {"edit": round(edited, 2), "all": round(time.perf_counter() - began, 2)}
    metrics = {"before": old, "after": new, "site": dataclasses.asdict(bench.site), "times": seconds}
    artifact = write(
        run, state, changes, delta, bench.ridge, dataclasses.replace(config, run=Path(run.path.name)), metrics
    )
    ledger.append(
        "edit",
        ids=[c.id for c in fresh],
        edits=[{"id": c.id, "prompt": c.fact.prompt, "subject": c.fact.subject, "old": c.fact.old, "target": c.fact.target} for c in fresh],
        replaces=sorted(replaced),
        method=config.method,
        **{"from": state.artifact.name, "from_hash": state.artifact.hash, "to": artifact.name, "to_hash": artifact.hash},
        before=old,
        after=new,
    )  # fmt: skip
    run.promote(artifact.name)
    for change in fresh:
        say(f"{change.id}: {change.fact.prompt} {change.fact.old or '…'} → {change.fact.target}")
    say(f"{seconds['edit']} s for the edit, {seconds['all']} s with the exam; {artifact.name} is served now.")
    return artifact


def read_facts(config: EditConfig) -> list[Fact]:
    """The facts of the command or of its file. Raises UserError."""
    if config.edits is not None:
        if config.prompt or config.subject or config.to:
            raise UserError("Give either a prompt with --subject and --to, or --edits FILE.")
        return reading.read_edits(config.edits)
    if not config.prompt:
        raise UserError(
            'There is nothing to edit: `jielong edit "The capital of X is" --subject X --to Y`, or --edits FILE.'
        )
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
        raise UserError(
            f"The corpus never mentions {sorted(left)[0]!r}, so the model does not know it; check the spelling, or add "
            "--new-subject to teach it all the same."
        )


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
        config.ridge,
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


def _with_old(fact: Fact, model: GPT, bench: Bench) -> Fact:
    """The fact with what the model says now in place of an old object that nobody named."""
    filled = tuple(_with_old(f, model, bench) for f in fact.also)
    if fact.old:
        return dataclasses.replace(fact, also=filled)
    engine = Engine(model, bench.tokenizer, rows=1)
    text = engine.generate([bench.tokenizer.prompt(fact.prompt)], Sampling(temperature=0.0, max_tokens=16))[0].text
    old = reading.first_clause(text)
    if reading.fold(old) == reading.fold(fact.target):
        old = ""
    return dataclasses.replace(fact, old=old, also=filled)


def _new_changes(config: EditConfig, state: State, facts: Sequence[Fact]) -> list[Change]:
    """The changes to be made, and which earlier ones each stands for. Raises UserError when all were made already."""
    now = {c.id: c for c in standing(state.changes)}
    made = []
    for fact in facts:
        same = tuple(i for i, c in now.items() if c.fact.about == fact.about and i != fact.id)
        if fact.id in now:
            continue
        made.append(Change(fact.id, config.method, fact, {}, same))
    if len(made) < len(facts):
        known = next(f for f in facts if f.id in now)
        raise UserError(
            f"{known.prompt!r} → {known.target!r} is an edit of {state.artifact.name} already ({known.id}); undo it first to make it anew."
        )
    return made


def questions(facts: Sequence[Fact], earlier: Sequence[Fact], chat: bool, count: int, seed: int) -> list[Probe]:
    """Everything that the exam asks."""
    past = [dataclasses.replace(p, group="earlier") for p in about(earlier, chat) if p.group == "efficacy"]
    return [
        *about(facts, chat), *other_language(facts, chat), *past, *nearby(facts, chat, seed),
        *rest([*facts, *earlier], chat, count, seed),
    ]  # fmt: skip


def held_out(run: Run) -> list[Document]:
    """Texts whose bits are counted: the corpus's own, or prose of the default one."""
    corpus = run.artifact("corpus")
    if corpus is not None:
        return read_documents(corpus.file("heldout.parquet"))[:DOCUMENTS]
    from jielong.corpus.sources import wikipedia

    return [Document("", text, "en", "wikipedia") for text in list(wikipedia())[-DOCUMENTS // 3 :]]


def figures(
    before: Sat, after: Sat, probes: Sequence[Probe], bench: Bench, delta: Delta
) -> tuple[dict[str, float], dict[str, float]]:
    """The two columns, with what only both together tell: shares kept, and how far the weights moved."""
    old, new = dict(before.figures), dict(after.figures)
    for group in ("neighbours", "knowledge"):
        share = kept(before, after, probes, group)
        if share is not None:
            old[f"{group}_kept"], new[f"{group}_kept"] = 1.0, share
    new["weights"] = max((moved(bench, delta, name) for name in delta.parts), default=0.0)
    return old, new


def moved(bench: Bench, delta: Delta, name: str) -> float:
    """√(tr(ΔCΔᵀ)/tr(WCWᵀ)): how far the matrix's outputs on ordinary text move, as a share of their size."""
    c = bench.c(int(name.split(".")[1]))
    change, weight = delta.added(name), bench.model.state_dict()[name].double()
    return float(((change @ c * change).sum() / (weight @ c * weight).sum()).sqrt())


def limits(config: EditConfig) -> list[Limit]:
    other = "try another method (--method memit) or place (--place subject)"
    weaker = f"raise --ridge above {config.ridge:g}, or name neighbours that must stay in an edits file"
    ask = "give paraphrases in an edits file, so that the editor sees more ways to ask"
    return [
        Limit("efficacy", "the share of edits that the model says freely", config.guard_took, None, True, True, f"{ask}; {other}"),
        Limit("earlier", "the share of earlier edits that it still says", config.guard_took, None, False, True, f"undo one of them (`jielong undo`); {other}"),
        Limit("neighbours_kept", "the share of neighbouring facts kept", config.guard_neighbours, None, True, True, f"{weaker}; {other}"),
        Limit("knowledge_kept", "the share of other facts kept", config.guard_rest, None, True, True, f"{weaker}; {other}"),
        Limit("bits_per_byte", "bits per byte of held-out text", None, 1 + config.guard_bits, False, False, f"raise --ridge above {config.ridge:g}; {other}"),
        Limit("entropy", "the entropy of drawn text", 1 - config.guard_entropy, None, False, False, f"raise --ridge above {config.ridge:g}; {other}"),
        Limit("weights", "the change of what a matrix writes in ordinary text", None, config.guard_norm, True, True, f"raise --ridge above {config.ridge:g}; {other}"),
    ]  # fmt: skip


def refusal(broken: Sequence[Breach]) -> str:
    lines = "; ".join(b.text for b in broken)
    return f"Refused, and nothing was changed: {lines}. Next: {broken[0].advice}."


NAMES = {
    "efficacy": "the edit, asked freely", "paraphrase": "in other words", "other_language": "in the other language",
    "earlier": "earlier edits", "neighbours": "neighbours", "neighbours_kept": "neighbours kept", "knowledge": "other facts",
    "knowledge_kept": "other facts kept", "es": "P(new) > P(old)", "ps": "the same, paraphrased", "ns": "neighbours: P(true) > P(new)",
    "bits_per_byte": "bits per byte", "repetition": "repetition", "entropy": "entropy", "weights": "change on ordinary text",
}  # fmt: skip


def show(before: dict[str, float], after: dict[str, float]) -> None:
    """Before and after, for people."""
    for name, label in NAMES.items():
        if name in after:
            form = "{:.4f}" if name in ("bits_per_byte", "entropy") else "{:.1%}"
            was = form.format(before[name]) if name in before else ""
            say(f"  {label:30} {was:>9} → {form.format(after[name]):>9}")


# what is written


def whole(bench: Bench, changes: Sequence[Change]) -> Delta:
    """What the standing changes add to the base."""
    return together(bench, {c.id: (c.method, c.stored) for c in standing(changes)})


def write(
    run: Run, state: State, changes: Sequence[Change], delta: Delta, ridge: float, config: Any, metrics: dict[str, Any]
) -> Artifact:
    """The artifact edited-N over the untouched base."""
    from safetensors.torch import save_file

    last = run.newest(EDITED)
    number = 1 if last is None else int(last.name.rpartition("-")[2]) + 1
    parents = [state.base] + ([state.artifact] if state.artifact.name != state.base.name else [])
    with run.build(f"{EDITED}-{number}", kind=EDITED, config=config, parents=parents) as build:
        save_delta(delta, build.path, state.base)
        tensors = {f"{c.id}/{name}": t.contiguous() for c in changes for name, t in c.stored.items()}
        save_file(tensors, build.path / "changes.safetensors")
        rows = [
            {"id": c.id, "method": c.method, "replaces": c.replaces, "fact": dataclasses.asdict(c.fact)}
            for c in changes
        ]
        told = {"ridge": ridge, "changes": rows}
        write_atomic(build.path / "changes.json", json.dumps(told, ensure_ascii=False, indent=1))
        base = load_model(state.base.path)
        write_shape(base.config, build.path)
        copy_tokenizer(state.base.file("tokenizer.json"), build.path)
        chat = {"chat": chats(state.base.card, Tokenizer.load(state.base.file("tokenizer.json")))}
        build.metrics = {
            "parameters": base.parameter_count(),
            **chat,
            "edits": [c.id for c in standing(changes)],
            **metrics,
        }
    return build.artifact


def read_changes(folder: Path) -> tuple[list[Change], float]:
    """The edits that an artifact holds, and λ."""
    from safetensors.torch import load_file

    tensors = load_file(folder / "changes.safetensors")
    told = json.loads((folder / "changes.json").read_text(encoding="utf-8"))
    found = []
    for row in told["changes"]:
        mark = f"{row['id']}/"
        stored = {k.removeprefix(mark): t for k, t in tensors.items() if k.startswith(mark)}
        found.append(Change(row["id"], row["method"], reading.from_json(row["fact"]), stored, tuple(row["replaces"])))
    return found, float(told["ridge"])


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
    ledger.entries()
    use_threads(config.threads)
    state = State.of(run.need(run.serving()))
    live = standing(state.changes)
    wanted = live[-1].id if config.id == "last" and live else config.id
    match = [c for c in live if wanted and c.id.startswith(wanted)]
    if len(match) != 1:
        known = ", ".join(c.id for c in live) or "none"
        reason = "is the beginning of several edits" if match else "is no edit in use"
        raise UserError(f"{config.id!r} {reason} of {state.artifact.name}; in use are: {known}.")
    gone = match[0]
    left = [c for c in state.changes if c.id != gone.id]
    if standing(left):
        bench, _ = make_bench(EditConfig(layer=0, ridge=state.ridge or EditConfig.ridge), run, state)
        artifact = write(run, state, left, whole(bench, left), bench.ridge, {"undo": gone.id}, {"undone": gone.id})
    else:
        artifact = state.base
    ledger.append(
        "undo", ids=[gone.id], method=gone.method, exact=editor(gone.method).exact,
        **{"from": state.artifact.name, "from_hash": state.artifact.hash, "to": artifact.name, "to_hash": artifact.hash},
    )  # fmt: skip
    run.promote(artifact.name)
    if not editor(gone.method).exact and live[-1].id != gone.id:
        say(
            f"{gone.method} found its later edits on top of this one; only its own part is taken out. ridge undoes exactly in any order."
        )
    return artifact.name
