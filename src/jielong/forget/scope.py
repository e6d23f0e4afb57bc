"""What a forgetting does not make anew, and whether that matters: checked where it can be, said in any case."""

from __future__ import annotations

from typing import Any

from jielong.corpus.documents import read_documents
from jielong.errors import UserError
from jielong.forget.find import Found
from jielong.run import Run
from jielong.tokens.tokenizer import TRAINING_CHARS, Tokenizer, sample, train


def tokenizer_check(run: Run, shadow: Run, found: Found) -> dict[str, Any]:
    """Would the vocabulary that is learnt without the records be the same? And does any of its entries stand in no kept text?"""
    artifact, corpus = run.artifact("tokenizer"), shadow.artifact("corpus")
    if artifact is None or corpus is None or not found.documents.get("train"):
        return {"concerned": False}
    left = [d.text for d in read_documents(corpus.file("train.parquet"))]
    now = Tokenizer.load(artifact.file("tokenizer.json"))
    try:
        same = train(sample(left, TRAINING_CHARS), now.vocab_size).rust.to_str() == now.rust.to_str()
    except UserError:  # too little text is left for as many entries
        same = False
    return {"concerned": True, "same_without": same, "entries_of_the_records_alone": len(own_entries(now, found, left))}


def own_entries(tokenizer: Tokenizer, found: Found, left: list[str]) -> list[str]:
    """Vocabulary entries of two bytes or more that stand in the records and in no kept text."""
    gone = "\x00".join(d.text for d in found.documents.get("train", [])).encode()
    kept = "\x00".join(left).encode()
    entries = (tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size))
    return [e.decode("utf-8", "replace") for e in entries if len(e) > 1 and e in gone and e not in kept]


def limits(run: Run, found: Found, done: dict[str, Any], store: str, in_ledger: bool) -> list[str]:
    """What the run's folder cannot show, in sentences."""
    said = ["the files that the corpus was read from, backups, and what disks keep of deleted files"]
    if found.documents.get("train"):
        said.append(
            "the vocabulary, which was learnt with the records (the entry says whether it would be the same without)"
        )
        said.append("documents that the corpus left out because they nearly repeated these records: they stay left out")
    if done.get("base", {}).get("fate") in ("replayed", "rewritten"):
        said.append("the plan of the training, which still shows where records of this length stood")
    if found.feedback:
        said.append("the number of the events and answers in the feedback, whose contents were erased")
    if found.feedback and "://" in store:
        said.append("what the database server keeps of erased rows until it vacuums")
    if in_ledger:
        said.append(
            "earlier entries of the ledger that hold such a text, edits for example: the ledger is never changed"
        )
    new = [name for name, told in done.items() if told["fate"] in ("replayed", "rebuilt") or name == "corpus"]
    linked = sum(p.stat().st_nlink > 1 for name in new for p in (run.path / name).rglob("*") if p.is_file())
    if linked:
        said.append(f"{linked} of the old files, which other folders have as well (hard links)")
    if any(a.card["metrics"].get("processes", 1) > 1 for a in run.artifacts() if a.name in done):
        said.append("equal bits: several processes trained this run, whose sums are rounded in another order")
    for name, told in done.items():
        if told.get("losses_compared", 0) > told.get("losses_equal", 0):
            said.append(f"equal bits: this machine does not repeat the losses of {name}'s own training")
    said += [f"the conversations of {name}, which could not be searched" for name in found.unread]
    return said
