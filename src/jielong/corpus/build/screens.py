"""The steps that look at one document alone. Each is an ordinary datatrove step around functions of `jielong.corpus`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.io import get_datafolder
from datatrove.pipeline.base import PipelineStep

from jielong.corpus.build.funnel import Tally
from jielong.corpus.classifier import Classifier
from jielong.corpus.decontaminate import ExamIndex
from jielong.corpus.encoding import repair
from jielong.corpus.extract import main_text, normalise, tag_depth
from jielong.corpus.language import identify
from jielong.corpus.licences import code_reason
from jielong.corpus.privacy import scrub
from jielong.corpus.quality import reason_to_drop, units
from jielong.corpus.webrules import web_reason
from jielong.corpus.wordlists import AddressList, WordList, read_list

CHINESE = ("zh-Hant", "zh-Hans", "yue")


def is_code(document: Document) -> bool:
    return document.metadata.get("code") == "yes"


def script(document: Document) -> str:
    """en, zh or another code: which of the rules' languages a document belongs to."""
    lang = document.metadata["lang"]
    return "zh" if lang in CHINESE else lang


class Screen(PipelineStep):
    """A step that keeps, changes or drops documents, and writes its row of the funnel.

    A document that makes the step fail is dropped and counted: one page of a stranger must not end a run of days.
    """

    type = "jielong"

    def __init__(self, folder: str):
        super().__init__()
        self.folder = get_datafolder(folder)

    def start(self, rank: int, tally: Tally) -> None:
        """Load what the step needs in this process."""

    @abstractmethod
    def judge(self, document: Document) -> str | None:
        """Why the document falls, or None; may change its text."""

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        tally = Tally(self.name)
        self.start(rank, tally)
        for document in data:
            tally.enter(document)
            try:
                reason = self.judge(document)
            except Exception as error:  # parsers have many
                reason = f"failed: {type(error).__name__}"
            if reason:
                tally.drop(document, reason)
                continue
            tally.leave(document)
            yield document
        tally.save(self.folder, rank)


class Addresses(Screen):
    """Pages of addresses that the user does not want."""

    name = "addresses"

    def __init__(self, folder: str, path: Path):
        super().__init__(folder)
        self.path = path

    def start(self, rank: int, tally: Tally) -> None:
        self.list = AddressList(read_list(self.path))

    def judge(self, document: Document) -> str | None:
        return "on the list" if self.list.blocks(document.metadata["url"]) else None


class Extract(Screen):
    """Main text of HTML, repaired encoding, one form of space and line end."""

    name = "extract"

    def __init__(self, folder: str, deepest: int):
        super().__init__(folder)
        self.deepest = deepest

    def start(self, rank: int, tally: Tally) -> None:
        self.tally = tally

    def judge(self, document: Document) -> str | None:
        if is_code(document):
            document.text = document.text.replace("\r\n", "\n")
            return None
        text = document.text
        if document.metadata["html"]:
            if tag_depth(text) > self.deepest:
                return "tags nested too deep"
            text = main_text(text)
        whole = repair(text)
        document.text = normalise(whole)
        if not document.text:
            return "no main text" if document.metadata["html"] else "empty"
        if whole != text:
            self.tally.note("encoding repaired", 1, document)
        return None


class Language(Screen):
    """Documents in the recipe's languages."""

    name = "language"

    def __init__(self, folder: str, languages: list[str]):
        super().__init__(folder)
        self.languages = frozenset(languages)

    def judge(self, document: Document) -> str | None:
        if is_code(document):
            document.metadata["lang"] = "code"
            return None
        found = identify(document.text)
        document.metadata["lang"] = found
        return None if found in self.languages else found


class Rules(Screen):
    """Rules that drop what teaches nothing."""

    name = "rules"

    def __init__(self, folder: str, rules: str):
        super().__init__(folder)
        self.rules = rules

    def judge(self, document: Document) -> str | None:
        if is_code(document):
            return code_reason(document.text)
        lang = script(document)
        reason = reason_to_drop(document.text, "zh" if lang == "zh" else "en") if lang in ("zh", "en") else None
        return reason or (web_reason(document.text, lang) if self.rules == "web" else None)


class Words(Screen):
    """Documents with many of the user's listed words."""

    name = "words"

    def __init__(self, folder: str, path: Path, most: float):
        super().__init__(folder)
        self.path = path
        self.most = most

    def start(self, rank: int, tally: Tally) -> None:
        self.list = WordList(read_list(self.path))

    def judge(self, document: Document) -> str | None:
        found = self.list.count(document.text)
        if found and found > self.most * len(units(document.text, script(document))):
            return "many listed words"
        return None


class Licences(Screen):
    """Source code under licences that the recipe allows."""

    name = "licences"

    def __init__(self, folder: str, allowed: list[str]):
        super().__init__(folder)
        self.allowed = frozenset(allowed)

    def judge(self, document: Document) -> str | None:
        if not is_code(document):
            return None
        licence = document.metadata.get("licence", "")
        return None if licence in self.allowed else licence or "no licence found"


class Quality(Screen):
    """Documents that the classifier finds good."""

    name = "classifier"

    def __init__(self, folder: str, path: Path, least: float):
        super().__init__(folder)
        self.path = path
        self.least = least

    def start(self, rank: int, tally: Tally) -> None:
        self.classifier = Classifier.load(self.path)

    def judge(self, document: Document) -> str | None:
        if is_code(document):
            return None
        return "low score" if self.classifier.score(document.text) < self.least else None


class Decontaminate(Screen):
    """Documents without a piece of an examination."""

    name = "decontaminate"

    def __init__(self, folder: str, index: Path):
        super().__init__(folder)
        self.path = index

    def start(self, rank: int, tally: Tally) -> None:
        self.index = ExamIndex.load(self.path)

    def judge(self, document: Document) -> str | None:
        return "a piece of an examination" if self.index.contains(document.text) else None


class Privacy(Screen):
    """Private data replaced by what they were."""

    name = "privacy"

    def start(self, rank: int, tally: Tally) -> None:
        self.tally = tally

    def judge(self, document: Document) -> str | None:
        document.text, found = scrub(document.text, addresses=not is_code(document))
        for kind, count in found.items():
            self.tally.note(f"{kind} replaced", count, document)
        return None
