"""The files of the sources, and which task reads which; listed once, so that every task sees the same list."""

from __future__ import annotations

import dataclasses
import heapq
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from jielong.corpus.build.recipe import Recipe, Source
from jielong.corpus.licences import CODE_SUFFIXES
from jielong.corpus.readers import kind_of
from jielong.errors import UserError

MOST_TASKS = 256


@dataclass(frozen=True)
class InputFile:
    """One file to read."""

    source: str
    path: str
    kind: str
    bytes: int
    text: str = ""
    """Field or column with the text; empty = the usual names."""


@dataclass(frozen=True)
class Bad:
    """Something that could not be read, set aside and counted."""

    source: str
    path: str
    reason: str
    place: int = 0
    """Number of the record in its file."""


@dataclass
class Inputs:
    """Everything that is read."""

    tasks: list[list[InputFile]]
    bad: list[Bad]

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Inputs:
        return cls([[InputFile(**f) for f in task] for task in data["tasks"]], [Bad(**b) for b in data["bad"]])


def list_inputs(recipe: Recipe) -> Inputs:
    """Raises UserError for a local path that does not exist, and where nothing is left to read.

    A place that does not answer is counted as bad, and the others are read.
    """
    files: list[InputFile] = []
    bad: list[Bad] = []
    for source in recipe.source:
        found, problems = _files_of(source)
        files += found
        bad += problems
    if not files:
        why = f" ({bad[0].path}: {bad[0].reason})" if bad else ""
        raise UserError(f"The recipe's sources have no file of a known kind{why}; check their paths.")
    return Inputs(_shared_out(files, recipe.tasks or min(len(files), MOST_TASKS)), bad)


def _files_of(source: Source) -> tuple[list[InputFile], list[Bad]]:
    import fsspec
    from fsspec.core import url_to_fs

    local = "://" not in source.path
    try:
        fs, path = url_to_fs(source.path)
        if any(c in path for c in "*?["):
            names = sorted(fs.glob(path, detail=False))
        elif fs.isdir(path):
            names = sorted(fs.find(path))
        else:
            names = [path]
            if local:
                fs.info(path)  # raises where there is none
        rows = []
        bad = []
        for name in names:
            kind = source.kind if source.kind != "auto" else input_kind(name)
            if kind == "code" and PurePosixPath(name).suffix.lower() not in CODE_SUFFIXES:
                continue  # pictures and the like beside the code, and the licence files themselves
            if kind is None:
                bad.append(Bad(source.name, name, f"unknown kind {PurePosixPath(name).suffix or '(none)'}"))
                continue
            size = fs.info(name).get("size") or 0
            rows.append(
                InputFile(source.name, fs.unstrip_protocol(name) if not local else name, kind, size, source.text)
            )
        return rows, bad
    except ImportError as error:
        raise UserError(f"{source.path} needs another package: {str(error).splitlines()[0]}.") from error
    except ValueError as error:  # a protocol that fsspec does not know
        raise UserError(
            f"{source.path} cannot be read: {error}; fsspec {fsspec.__version__} knows s3, https, hf, …"
        ) from error
    except Exception as error:  # each kind of store has its own errors
        if local:
            raise UserError(f"{source.path} of source {source.name} does not exist or cannot be read.") from error
        return [], [Bad(source.name, source.path, f"does not answer: {type(error).__name__}: {_first_line(error)}")]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]


def input_kind(name: str) -> str | None:
    """warc, html, plain, jsonl or parquet by the suffix; None for another."""
    lower = name.lower()
    if lower.endswith((".warc", ".warc.gz", ".warc.zst", ".wet.gz", ".wet")):
        return "warc"
    return kind_of(PurePosixPath(name))


def _shared_out(files: list[InputFile], tasks: int) -> list[list[InputFile]]:
    """The largest file goes to the task with the fewest bytes; within a task the files keep their order."""
    order = {f: n for n, f in enumerate(files)}
    room = [(0, n) for n in range(tasks)]
    shares: list[list[InputFile]] = [[] for _ in range(tasks)]
    for f in sorted(files, key=lambda f: (-f.bytes, order[f])):
        used, n = heapq.heappop(room)
        shares[n].append(f)
        heapq.heappush(room, (used + f.bytes + 1, n))
    return [sorted(share, key=lambda f: order[f]) for share in shares]
