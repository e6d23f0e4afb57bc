"""Where in a run the records are that a request means."""

from __future__ import annotations

import shutil
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from jielong.corpus.documents import Document, read_documents
from jielong.errors import UserError
from jielong.feedback.stage import existing_store
from jielong.forget.request import Request
from jielong.run import Artifact, Run
from jielong.tokens.chat import spell
from jielong.tokens.shards import DataIndex, Shard, read_shard
from jielong.tokens.tokenizer import Tokenizer

STAGES = ("base", "sft", "control")  # what train_artifact made, each with a shard and a plan of its own
OWNER = "owner-"  # begins the names of further ones, the owners' adapters
NAME = "forgotten-"  # what a record is called that is gone, with a number that tells nothing


@dataclass
class Trained:
    """A trained stage and the records that its training had. `first` is the first step that saw one of `records`."""

    artifact: Artifact
    shard: Shard
    index: DataIndex
    records: dict[int, str] = field(default_factory=dict)
    """Number in the shard → text of the matching ones."""
    first: int | None = None

    @property
    def rows(self) -> int:
        return int(self.artifact.card["config"]["rows"])

    @property
    def steps(self) -> int:
        return int(self.artifact.card["config"]["steps"])

    def first_step(self, records: set[int]) -> int | None:
        """The first step whose batch has one of these records; None when no step has."""
        hit = np.isin(self.index.record, sorted(records))
        return int(self.index.row[hit].min()) // self.rows if hit.any() else None

    def first_steps(self) -> dict[int, int]:
        """The same for each of `records` that a step has."""
        hit = np.isin(self.index.record, sorted(self.records))
        first = np.full(len(self.shard), np.iinfo(np.int64).max, np.int64)
        np.minimum.at(first, self.index.record[hit], self.index.row[hit] // self.rows)
        return {n: int(first[n]) for n in self.records if first[n] < np.iinfo(np.int64).max}


@dataclass
class Found:
    """What a request matches."""

    documents: dict[str, list[Document]] = field(default_factory=dict)
    """train and heldout → the corpus's records."""
    trained: dict[str, Trained] = field(default_factory=dict)
    """Every stage that has a shard, whether it matches or not."""
    feedback: dict[str, str] = field(default_factory=dict)
    """Answer's id → its texts and those of the words about it, one a line."""
    shares: dict[str, float] = field(default_factory=dict)
    """Of the training corpus: documents and characters that match; of each stage beside it: its records."""
    unread: list[str] = field(default_factory=list)
    """Stages whose records could not be searched, since their work folder is gone."""

    def __bool__(self) -> bool:
        return bool(self.texts())

    def texts(self) -> list[str]:
        """Every matching text, once."""
        found = [d.text for part in self.documents.values() for d in part]
        found += [text for t in self.trained.values() for text in t.records.values()]
        return list(dict.fromkeys([*found, *self.feedback.values()]))

    def seen(self, name: str) -> bool:
        """Did the training of stage `name` see any of it?"""
        return name in self.trained and self.trained[name].first is not None


def find(run: Run, request: Request, store: str) -> Found:
    """Search corpus, shards and feedback. Raises UserError for a damaged run."""
    found, texts = Found(), {}
    corpus = run.artifact("corpus")
    if corpus is not None:
        corpus.verify()
        for part in ("train", "heldout"):
            documents = read_documents(corpus.file(f"{part}.parquet"))
            texts |= {d.id: d.text for d in documents}
            hits = [d for d in documents if request.named(d.id) or request.find(d.text)]
            found.documents[part] = hits
            if part == "train" and documents:
                chars = sum(len(d.text) for d in hits) / max(1, sum(len(d.text) for d in documents))
                found.shares |= {"documents": len(hits) / len(documents), "characters": chars}
    for name in stages(run):
        artifact = run.artifact(name)
        if artifact is None or not artifact.file("data_index.npz").is_file():
            continue  # an imported model was not trained here
        stage = load_stage(artifact, run.work(name), run)
        if stage is None:
            found.unread.append(name)
            continue
        found.trained[name] = stage
        tokenizer = Tokenizer.load(artifact.file("tokenizer.json"))
        for number, record in enumerate(stage.shard.ids):
            if number in stage.shard.forgotten:
                continue
            text = texts.get(record) or read_back(stage.shard, number, tokenizer)
            if request.named(record) or request.find(text):
                stage.records[number] = text
        stage.first = stage.first_step(set(stage.records))
        own = [n for n in stage.records if stage.shard.ids[n] not in texts]
        others = sum(i not in texts for i in stage.shard.ids)
        found.shares[name] = len(own) / others if others else 0.0
    found.feedback = spoken_of(run, request, store)
    return found


def writes(run: Run) -> bool:
    """Would `find` have to make a plan of the run's training again, since somebody cleared the work folder away?"""
    base = run.artifact("base")
    return base is not None and base.card["kind"] == "base" and not (run.work("base") / "index.npz").is_file()


def stages(run: Run) -> list[str]:
    """Names of the stages that may have a shard of their own."""
    return [*STAGES, *sorted(a.name for a in run.artifacts() if a.name.startswith(OWNER))]


def load_stage(artifact: Artifact, work: Path, run: Run) -> Trained | None:
    """The stage's shard and plan. The base's are made again from the corpus where somebody cleared them away; the
    conversations of fine-tuning are in no other place of the run: None. Raises UserError for another training's, and for a plan
    that cannot be read."""
    made = not (work / "index.npz").is_file()
    if made:
        if artifact.card["kind"] != "base":
            return None
        from jielong.config import PretrainConfig, filled
        from jielong.pretrain import write_plan

        write_plan(filled(PretrainConfig(), artifact.card["config"]), run, work)
    stage = Trained(artifact, read_shard(work), read_plan(work / "index.npz"))
    written = read_plan(artifact.file("data_index.npz"))
    if not np.array_equal(written.record, stage.index.record) or not np.array_equal(written.row, stage.index.row):
        if made:  # of a corpus that is another one by now
            shutil.rmtree(work)
        raise UserError(
            f"{work} belongs to another training than {artifact.path}; delete {artifact.name} and make it again."
        )
    return stage


def read_plan(path: Path) -> DataIndex:
    """Raises UserError for a file that is cut off or no plan."""
    try:
        return DataIndex.load(path)
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read ({error}); delete {path.parent} and make it again.") from error


def read_back(shard: Shard, number: int, tokenizer: Tokenizer) -> str:
    """The text of a record, from its tokens."""
    return spell(tokenizer, np.asarray(shard.tokens[shard.starts[number] : shard.starts[number + 1]]).tolist())


def spoken_of(run: Run, request: Request, url: str) -> dict[str, str]:
    """Answers in the feedback that the request means, by their own text or by what was said about them."""
    if not url and not (run.path / "feedback.db").is_file():
        return {}
    store = existing_store(url, run)
    texts = {a.id: "\n".join([*(m["content"] for m in a.messages), a.text]) for a in store.all_answers()}
    for event in store.all_events():
        if event.answer in texts and (event.text or event.reasons):
            texts[event.answer] += "\n".join(["", event.text, *event.reasons])
    return {i: text for i, text in texts.items() if request.named(i) or request.find(text)}
