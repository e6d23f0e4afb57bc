"""The files of the sources, and which task reads which; listed once, so that every task sees the same list."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from jielong.corpus.build.parts import parts_of
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
    begin: int = 0
    """Of a part of a file: the first of its bytes, or rows of parquet."""
    end: int | None = None
    """The one behind its last; None = the whole file."""
    encoding: str = ""
    """Of a part of a text; that of the whole file."""


@dataclass(frozen=True)
class Bad:
    """Something that could not be read, set aside and counted."""

    source: str
    path: str
    reason: str
    place: int = 0
    """Number of the record in its file, or part of a file."""
    begin: int = 0
    """Where that part begins: byte, or row of parquet."""


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
        found, problems = _files_of(source, recipe.part)
        files += found
        bad += problems
    if not files:
        why = f" ({bad[0].path}: {bad[0].reason})" if bad else ""
        raise UserError(f"The recipe's sources have no file of a known kind{why}; check their paths.")
    return Inputs(_shared_out(files, recipe.tasks or min(len(files), MOST_TASKS)), bad)


def _files_of(source: Source, part: int) -> tuple[list[InputFile], list[Bad]]:
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
        bad = [] if names else [Bad(source.name, source.path, "there is no file")]
        for name in names:
            kind = source.kind if source.kind != "auto" else input_kind(name)
            if kind == "code" and PurePosixPath(name).suffix.lower() not in CODE_SUFFIXES:
                continue  # pictures and the like beside the code, and the licence files themselves
            if kind is None:
                bad.append(Bad(source.name, name, f"unknown kind {PurePosixPath(name).suffix or '(none)'}"))
                continue
            try:
                size = fs.info(name).get("size") or 0
            except OSError as error:  # a link that leads nowhere
                if name == path:
                    raise
                bad.append(Bad(source.name, name, f"{type(error).__name__}: {_first_line(error)}"))
                continue
            path = fs.unstrip_protocol(name) if not local else name
            rows += parts_of(InputFile(source.name, path, kind, size, source.text), part, fs)
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
    """About as many bytes to each task. The files of the tasks, one after the other, keep their order, so that the number
    of tasks changes nothing: of equal documents the first one stays."""
    if tasks >= len(files):
        return [[f] for f in files]
    shares: list[list[InputFile]] = [[] for _ in range(tasks)]
    total = sum(f.bytes + 1 for f in files)
    before = 0
    for f in files:
        shares[(2 * before + f.bytes + 1) * tasks // (2 * total)].append(f)  # where the middle of the file lies
        before += f.bytes + 1
    return [share for share in shares if share]
