"""`jielong forget`: find, show, ask, replay, put in place, record."""

from __future__ import annotations

import hashlib
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jielong.changes.journal import settle
from jielong.changes.ledger import HEAD, LEDGER, Entry, Ledger
from jielong.changes.words import say
from jielong.config import ForgetConfig
from jielong.corpus.documents import read_documents
from jielong.errors import Unclear, UserError
from jielong.forget import commit, preview, replay
from jielong.forget.find import NAME, Found, find, read_back, spoken_of
from jielong.forget.items import Examples
from jielong.forget.request import Request, read_request
from jielong.forget.residue import pieces, search
from jielong.forget.scope import limits, tokenizer_check
from jielong.forget.telling import JOURNAL, Tell, nobody
from jielong.forget.tree import LEARNT_FROM_FEEDBACK, Step, fates
from jielong.run import CARD, FORGETTING, SERVING, STALE, Run
from jielong.teacher import judge
from jielong.tokens.tokenizer import Tokenizer

METHOD, WORD = "replay", "forgotten"
SHOWN = 12  # records
NO_REPLAY = "Examples are no records, and no replay reaches them; they can be suppressed, for example by --method npo."
OWN_FILES = {
    LEDGER,
    HEAD,
    SERVING,
    JOURNAL,
    "plan.json",
    ".lock",
    "feedback.db",
    "feedback.db-wal",
    "feedback.db-shm",
    "feedback.db.lock",
}


def run(config: ForgetConfig, run: Run, tell: Tell = nobody, examples: Examples | None = None) -> Entry | None:
    """Make the run forget; the ledger's entry, None when it was only shown. `tell` hears how far it is, without a word of what is
    forgotten; `examples` stand in the place of the config's files. Raises UserError, with nothing changed, for a request that asks
    for nothing, matches nothing or too much, and for a ledger that does not verify."""
    if not run.path.is_dir():
        raise UserError(f"There is no run {run.path}.")
    if config.method != METHOD and not config.owner:
        from jielong.forget import suppress

        with run.lock():
            return suppress.run(config, run, tell, examples)
    if not config.owner and (config.examples or (examples and examples.forget)):
        raise Unclear("suppress", NO_REPLAY)
    with run.lock(forgetting=True):
        return _run(config, run, tell)


def _run(config: ForgetConfig, run: Run, tell: Tell) -> Entry | None:
    if (begun := commit.pending(run)) is not None:
        tell("stage", stage="commit")
        entry = commit.finish(run, begun)
        say(f"A forgetting that was stopped is finished: entry {entry['number']} of the ledger.")
        if not (config.record or config.name or config.grep or config.request or config.owner):
            return entry
        if same_request(config, run, entry):
            return entry
    run.promotions()  # what cannot be read now could not be changed after the replay
    if config.owner:
        from jielong.forget.owners import leave_out

        return leave_out(config, run, tell)
    request = read_request(config)
    ledger = Ledger(run, config.key)
    if problems := ledger.problems():
        raise UserError(f"{problems[0]} Nothing is added to a ledger that does not verify.")
    settle(run, ledger)
    found = find(run, request, config.store)
    check(found, request, config, run)
    steps = fates(run, found)
    _show(run, request, found, steps)
    if not config.yes and not agreed("forget"):
        say("Nothing was changed; the same command with --yes does it.")
        return None
    stamp = hashlib.sha256(
        repr((request.canonical(), [(s.artifact.name, s.artifact.hash, s.fate) for s in steps])).encode()
    )
    shadow = replay.open_shadow(run, stamp.hexdigest())
    done = replay.make(run, shadow, request, found, steps, tell)
    tell("stage", stage="search")
    found.feedback |= spoken_of(run, request, config.store)  # what people said while the training was replayed
    what = _conclude(config, run, shadow, request, found, steps, done, ledger)
    tell("stage", stage="commit")
    commit.begin(run, what)
    advices = list(dict.fromkeys(again(run, name) for name in what["stale"]))
    entry = commit.finish(run, what)
    _tell(run, entry, advices)
    return entry


def same_request(config: ForgetConfig, run: Run, entry: Entry) -> bool:
    """Does the command ask for what the entry says?"""
    ledger = Ledger(run, config.key)
    if config.owner or entry["kind"] == "owner":
        return entry["kind"] == "owner" and ledger.fingerprint(config.owner, entry["salt"]) == entry["owner"]
    request = entry["request"]
    return ledger.fingerprint(read_request(config).canonical(), request["salt"]) == request["fingerprint"]


def check(found: Found, request: Request, config: ForgetConfig, run: Run) -> None:
    """Raises Unclear for a request that matches nothing, or too much."""
    if not found:
        where = "corpus, conversations and feedback" if found.documents else "conversations and feedback"
        more = f" The conversations of {' and '.join(found.unread)} could not be searched." if found.unread else ""
        raise Unclear(
            "nothing", f"Nothing in the {where} of {run.path} matches; nothing was changed.{more}", unread=found.unread
        )
    for what, share in found.shares.items():
        if share > config.most:
            raise Unclear(
                "too_much",
                f"The request matches {share:.0%} of the {what if what in ('documents', 'characters') else f'records of {what}'}, "
                f"more than the {config.most:.0%} of --most; a model without them is another model: train it anew.",
                what=what,
                share=share,
                most=config.most,
            )


def _show(run: Run, request: Request, found: Found, steps: list[Step]) -> None:
    """The records, and what will happen."""
    rows = preview.rows(request, found)
    say(f"{counted(len(rows))} of {run.path} match{'es' if len(rows) == 1 else ''}:")
    for row in rows[:SHOWN]:
        say(f"  {row}")
    if len(rows) > SHOWN:
        say(f"  … and {len(rows) - SHOWN} more")
    for cost in preview.costs(run, found, steps):
        say(f"  {cost}")
    if remove := deleted(run, request, steps):
        say(f"  deleted: {', '.join(remove)}")


def deleted(run: Run, request: Request, steps: list[Step]) -> list[str]:
    """Files and folders of the run that would go beside the artifacts."""
    kept = {step.artifact.name for step in steps if step.fate != "stale"}
    changed = any(step.fate in ("replayed", "rebuilt") for step in steps)
    return [n for n in _leftovers(run, kept, changed, lambda t: request.find(t) is not None) if n[0] != "."]


def agreed(word: str) -> bool:
    """Did somebody type so on a terminal?"""
    if not sys.stdin.isatty():
        return False
    return input(f"Type {word} to do this: ").strip().lower() == word


def _conclude(
    config: ForgetConfig, run: Run, shadow: Run, request: Request, found: Found, steps: list[Step], done: dict[str, Any], ledger: Ledger
) -> dict[str, Any]:  # fmt: skip
    """What the commit has to do, with the ledger's entry: who asked, what was done, and what is left."""
    stale = {s.artifact.name: s.why for s in steps if s.fate == "stale"}
    changed = {name for name, told in done.items() if told["fate"] in ("replayed", "rebuilt")}
    spoken = pieces(found.texts(), _kept_texts(shadow, found))

    def shows(text: str) -> bool:
        return request.find(text) is not None or any(piece in text for piece in spoken)

    # what stays is searched: the new parts, the kept ones, and files that belong to no artifact
    gone, left = {d.id for part in found.documents.values() for d in part}, []
    for path in search(_files(shadow.path), lambda text: shows(text) or any(i in text for i in gone)):
        name = path.relative_to(shadow.path).parts[0]
        if name in done and done[name]["fate"] == "kept" and not _is_model(shadow.path / name) and name != "tokenizer":
            stale[name] = "it shows what is to be forgotten"
        else:
            left.append(path.relative_to(shadow.path).as_posix())
    done = {name: told for name, told in done.items() if name not in stale}
    remove = [f".{name}.work" for name in found.unread] + _leftovers(run, set(done), bool(changed), shows)
    after = {told["after"] for told in done.values()}
    simulated = _of_old_models(config, run, after) if changed else []
    salt = secrets.token_hex(16)
    records = {
        "documents": len(found.documents.get("train", [])), "held_out": len(found.documents.get("heldout", [])),
        "conversations": sum(len([i for i in map(t.shard.ids.__getitem__, t.records) if i not in gone]) for t in found.trained.values()),
        "feedback": len(found.feedback), "characters": sum(map(len, found.texts())),
        "fingerprints": sorted({ledger.fingerprint(i, salt) for i in gone}
                               | {ledger.fingerprint(text, salt) for text in found.texts()}),
    }  # fmt: skip
    why = {
        name: f"{run.path / name} was taken away ({reason}): it came before a forgetting. {again(run, name)}"
        for name, reason in stale.items()
    }
    return {
        "kind": "forget",
        "replace": list(done),
        "stale": why,
        "remove": sorted(set(remove)),
        "feedback": sorted({*found.feedback, *simulated}),
        "store": config.store,
        "key": str(config.key) if config.key else "",
        "entry": {
            "method": METHOD,
            "word": WORD,
            "request": {
                "id": secrets.token_hex(8), "who": request.who, "why": request.why, "salt": salt,
                "fingerprint": ledger.fingerprint(request.canonical(), salt),
                "asked": {"records": len(request.ids), "names": len(request.names), "texts": len(request.texts)},
            },
            "records": records,
            "artifacts": done,
            "stale": stale,
            "removed": sorted(set(remove)),
            "feedback_erased": len({*found.feedback, *simulated}),
            "searched_pieces": len(spoken),
            "still_found": left,
            "tokenizer": tokenizer_check(run, shadow, found),
            "limits": limits(run, found, done, config.store, ledger.path.exists() and bool(search([ledger.path], shows))),
        },
    }  # fmt: skip


def again(run: Run, name: str) -> str:
    """What makes an artifact anew that is taken away, as a sentence."""
    found = run.artifact(name)
    kind = found.card["kind"] if found else ""
    if kind in ("keys", "sites"):
        return "The next `jielong edit` makes it again."
    if kind == "edited":
        return f"Make its edits again with `jielong edit`; `jielong changes {run.path}` shows them."
    if kind == "suppressed":
        return f"Make it again with `jielong forget {run.path} --method`, and the request."
    return f"Make it again with `jielong {'improve ' if kind in LEARNT_FROM_FEEDBACK else 'raise --run '}{run.path}`."


def _kept_texts(shadow: Run, found: Found) -> list[str]:
    """Everything that the run still says: its documents, and the conversations of its stages."""
    corpus = shadow.artifact("corpus")
    kept = [d.text for p in ("train", "heldout") for d in read_documents(corpus.file(f"{p}.parquet"))] if corpus else []
    for stage in found.trained.values():
        tokenizer = Tokenizer.load(stage.artifact.file("tokenizer.json"))
        known = {d.id for part in found.documents.values() for d in part}
        names = [
            n
            for n, i in enumerate(stage.shard.ids)
            if n not in stage.records and i not in known and not i.startswith(NAME)
        ]
        lone = (
            names if stage.artifact.name != "base" else [n for n in names if stage.shard.ids[n].startswith("lesson-")]
        )
        kept += [read_back(stage.shard, n, tokenizer) for n in lone]
    return kept


def _leftovers(run: Run, kept: set[str], changed: bool, shows: Callable[[str], bool]) -> list[str]:
    """What goes beside the artifacts: journals of trainings, work folders of what is not kept, exports of models that changed, and
    other files that show what is to be forgotten."""
    found = []
    for path in sorted(run.path.iterdir()):
        name, own = path.name, path.name.removeprefix(".").removesuffix(".work")
        if name in OWN_FILES or name == FORGETTING or (path / CARD).is_file() or (path / STALE).is_file():
            continue
        hidden = path.is_dir() and name.startswith(".")
        spent = changed and (_is_export(path) or name in commit.JOURNALS)
        if spent or (hidden and own not in kept) or (not hidden and search(_files(path), shows)):
            found.append(name)
    return found


def _is_model(path: Path) -> bool:
    """A model is not taken away because a file beside its weights says such a word; the entry names the file."""
    return any((path / f).is_file() for f in ("model.safetensors", "adapter.safetensors", "delta.json"))


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(p for p in path.rglob("*") if p.is_file() and not p.is_symlink())


def _is_export(path: Path) -> bool:
    """What `jielong export` wrote beside the artifacts."""
    return path.suffix == ".gguf" or (
        path.is_dir() and (path / "config.json").is_file() and not path.name.startswith(".")
    )


def _of_old_models(config: ForgetConfig, run: Run, hashes: set[str]) -> list[str]:
    """What the simulated teacher said about answers of models that are no longer there: new ones get words of their own."""
    from jielong.feedback.stage import store_of

    if not config.store and not (run.path / "feedback.db").is_file():
        return []
    return [
        a.id for a in store_of(config.store, run).all_answers() if a.source == judge.NAME and a.model_hash not in hashes
    ]


def _tell(run: Run, entry: Entry, advices: list[str]) -> None:
    """What was done, in words, and what makes anew what was taken away."""
    for name, told in entry["artifacts"].items():
        if told["fate"] in ("replayed", "rebuilt") and "steps" in told:
            say(f"{name}: {told['fate']} from step {told['from_step']} of {told['steps']} in {told['seconds']:.0f} s")
    records = entry["records"]
    count = records["documents"] + records["held_out"] + records["conversations"] + records["feedback"]
    say(
        f"{counted(count)} {'is' if count == 1 else 'are'} {entry['word']}: entry {entry['number']} of {run.path / LEDGER}."
    )
    for line in entry["limits"]:
        say(f"  not reached: {line}")
    for path in entry["still_found"]:
        say(f"  {path} still says such a word: a new sample of the model, or what others say, too")
    if entry["stale"]:
        say(f"Taken away, as they came before: {', '.join(entry['stale'])}.")
        for advice in advices:
            say(f"  {advice}")


def counted(records: int) -> str:
    return "1 record" if records == 1 else f"{records} records"
