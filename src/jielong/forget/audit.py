"""`jielong audit`: does the ledger verify, is the run what it says, and does training again give the same bits?"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from jielong.changes.ledger import Entry, Ledger
from jielong.config import AuditConfig
from jielong.errors import UserError
from jielong.forget import commit
from jielong.forget.find import load_stage
from jielong.forget.replay import link, train_again
from jielong.run import Run, sha256_file


def run(config: AuditConfig, run: Run) -> list[Entry]:
    """Print the entries and what was checked; return the entries. Raises UserError that names what does not hold."""
    if not run.path.is_dir():
        raise UserError(f"There is no run {run.path}.")
    ledger = Ledger(run, config.key)
    problems = ledger.problems() if config.verify or config.replay else []
    if problems:
        raise UserError("The ledger does not verify. " + " ".join(problems))
    entries = ledger.entries()
    for entry in entries:
        print(describe(entry))
    if config.verify:
        for note in compare(run, entries):
            print(note)
        print(f"{len(entries)} entries: chain and signatures verify, and the run is what the last ones say.")
    if config.replay:
        _replay(config, run, entries)
    if config.leaks:
        from jielong.forget import exam

        print("\n".join(exam.table(exam.leaks(run, config.model))))
    return entries


def describe(entry: Entry) -> str:
    """An entry as one line. Who asked may be anybody's words over HTTP: they break no line and steer no terminal."""
    who = "".join(c if c.isprintable() else " " for c in entry.get("request", {}).get("who", ""))
    asked = f" for {who}" if who else ""
    head = f"{entry['number']:4} {entry['time'][:16]} {entry['kind']}"
    if entry["kind"] == "suppress":
        made = ", ".join(entry["artifacts"])
        return f"{head}  {entry['texts']['count']} texts {entry['word']}{asked} by {entry['method']}, no proof: {made}"
    if entry["kind"] == "owner":
        return f"{head}  an owner {entry['word']} by leaving the {entry['method']} out: {entry['artifacts']['owners']['fate']}"
    if entry["kind"] != "forget":
        return f"{head}  {entry['hash'][:12]}"
    records, made = entry["records"], entry["artifacts"]
    count = records["documents"] + records["held_out"] + records["conversations"] + records["feedback"]
    parts = [f"{name} {told['fate']}" for name, told in made.items() if told["fate"] != "kept"]
    return (
        f"{head}  {count} records {entry['word']}{asked} by {entry['method']}: {', '.join(parts) or 'deletion alone'}"
    )


def compare(run: Run, entries: list[Entry]) -> list[str]:
    """Is each artifact the one that the last entry about it names, and what was taken away still away? Notes on what has changed
    since. Raises UserError for what does not hold."""
    if commit.pending(run) is not None:
        raise UserError(
            f"A forgetting was stopped while it changed {run.path}; finish it: `jielong forget {run.path}`."
        )
    last: dict[str, tuple[int, Any]] = {}
    notes: list[str] = []
    for entry in entries:
        told = {entry["to"]: {"after": entry["to_hash"]}} if "to_hash" in entry else entry.get("artifacts", {})
        last |= {name: (entry["number"], what) for name, what in told.items()}
    for name, (number, told) in last.items():
        artifact = run.artifact(name)
        if artifact is None:
            notes.append(f"{name} of entry {number} is no longer there.")
            continue
        artifact.verify()
        if artifact.hash == told.get("before") != told["after"]:
            raise UserError(f"{artifact.path} is the one from before entry {number}: somebody put it back. Delete it.")
        if artifact.hash != told["after"]:
            notes.append(f"{name} was made anew after entry {number}, on {artifact.card['created'][:16]}.")
    return notes


def _replay(config: AuditConfig, run: Run, entries: list[Entry]) -> None:
    """Train again what an entry says was trained. Raises UserError when other bits come out."""
    entry = next((e for e in entries if e["number"] == config.replay and e["kind"] == "forget"), None)
    if entry is None:
        raise UserError(
            f"There is no forgetting with the number {config.replay} in {run.path}; `jielong audit {run.path}` lists them."
        )
    trained = {n: told for n, told in entry["artifacts"].items() if "weights" in told}
    if not trained:
        raise UserError(f"Entry {config.replay} trained nothing, so there is nothing to repeat.")
    with tempfile.TemporaryDirectory(dir=run.path, prefix=".audit-") as folder:
        shadow = Run(Path(folder))
        for name in ("corpus", "tokenizer", "base"):
            if (run.path / name).is_dir() and name not in trained:
                link(run.path / name, shadow.path / name)
        for name, told in trained.items():
            _again(config, run, shadow, name, told, entry["number"])


def _again(config: AuditConfig, run: Run, shadow: Run, name: str, told: dict[str, Any], number: int) -> None:
    artifact = run.artifact(name)
    if artifact is None or weights(artifact.path) != told["weights"]:
        raise UserError(f"{name} is no longer the one of entry {number}; a later change or training replaced it.")
    stage = load_stage(artifact, run.work(name), run)
    if stage is None:
        raise UserError(f"{run.work(name)} is gone, so {name} cannot be trained again from here.")
    there = sorted(int(p.parent.name.split("-")[1]) for p in (run.work(name) / "checkpoints").glob("step-*/state.json"))
    start = 0 if config.from_start else max([0, *(k for k in there if k <= told["from_step"])])
    train_again(run, shadow, artifact, stage, start)
    same = weights(shadow.need(name).path) == told["weights"]
    print(f"{name}: trained again from step {start} of {told['steps']}: {'the same bits' if same else 'OTHER bits'}.")
    if not same:
        raise UserError(f"{name} of entry {number} cannot be repeated on this machine: other weights came out.")


def weights(folder: Path) -> str:
    """Hex SHA-256 of an artifact's weights, as they lie on the disk."""
    file = next(folder / f for f in ("model.safetensors", "adapter.safetensors") if (folder / f).is_file())
    return sha256_file(file)
