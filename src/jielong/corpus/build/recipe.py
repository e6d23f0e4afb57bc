"""The recipe of a corpus: a TOML or YAML file that says what is read and what every step keeps."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from jielong.corpus.licences import PERMISSIVE
from jielong.errors import UserError

KINDS = ("auto", "warc", "html", "plain", "jsonl", "parquet", "code")


@dataclass
class Source:
    """One place that documents come from."""

    name: str
    """Stands in the report and in the corpus beside each document."""
    path: str
    """A file, folder or pattern (*, **); local, or any address that fsspec knows: s3://, https://, hf://datasets/…"""
    kind: str = "auto"
    """auto (by each file's suffix), warc, html, plain, jsonl, parquet or code."""
    text: str = ""
    """Field or column with the text; by default text, content or body."""
    weight: float | None = None
    """Share of the corpus in tokens, relative to the other weights; without weights everything is taken once."""
    epochs: float = 1.0
    """How often a document may stand in the corpus at most, where the weight asks for more than there is."""


@dataclass
class ListRules:
    """Lists of the user."""

    addresses: Path | None = None
    """Domains, or beginnings of addresses, whose pages are not wanted."""
    words: Path | None = None
    """Words of which a document may have few."""
    most_words: float = 0.005
    """Listed words per word (Chinese: per character) that are allowed."""


@dataclass
class ClassifierRule:
    """A quality classifier of `jielong corpus classifier train`."""

    path: Path | None = None
    """Its folder."""
    least: float = 0.5
    """Documents of a lower score are dropped."""


@dataclass
class DuplicateRules:
    """Exact duplicates are always dropped."""

    near: bool = True
    """Drop documents whose estimated Jaccard similarity with an earlier one is at least 0.8 (MinHash)."""
    line_copies: int = 5
    """A line that stands in more documents than this stays in the first of them only; 0 = lines are left alone."""


@dataclass
class Cluster:
    """What Ray and Slurm are told."""

    memory: float = 4.0
    """GB per task."""
    partition: str = "cpu"
    """Slurm: partition."""
    time: str = "24:00:00"
    """Slurm: longest time of a task."""
    qos: str = ""
    """Slurm: quality of service; empty = the default one."""
    setup: str = ""
    """Slurm: shell command before each task, such as the activation of an environment."""


@dataclass
class Recipe:
    """Everything that decides the corpus; how many workers do it does not."""

    source: list[Source] = field(default_factory=list)
    languages: list[str] = field(default_factory=lambda: ["en", "zh-Hant"])
    """en, zh-Hant, zh-Hans, yue, ja, ko, … as `language` names them; source code needs none."""
    rules: str = "web"
    """web (Gopher, C4, FineWeb and their Chinese counterparts), light (the small stage's rules) or none."""
    lists: ListRules = field(default_factory=ListRules)
    classifier: ClassifierRule = field(default_factory=ClassifierRule)
    decontaminate: list[Path] = field(default_factory=list)
    """Files of examinations; documents that contain a piece of one are dropped."""
    duplicates: DuplicateRules = field(default_factory=DuplicateRules)
    privacy: bool = True
    """Replace e-mail, telephone, card, national ID, IP and street addresses."""
    licences: list[str] = field(default_factory=lambda: sorted(PERMISSIVE))
    """SPDX names of the licences that source code may have."""
    tokens: float | None = None
    """Size of the corpus in estimated tokens; by default as much as the weights and epochs allow."""
    heldout: float = 0.01
    """Share of documents that no training sees."""
    largest: int = 8_000_000
    """Bytes of the largest record; larger ones are set aside."""
    deepest: int = 250
    """Levels of nested tags of the deepest page; parsers give up behind about 250, and nobody writes them."""
    part: int = 128_000_000
    """Bytes; a larger file is read in parts of about this size, where its form allows it."""
    tasks: int = 0
    """Tasks that files and parts are shared out to; 0 = one for each, at most 256. Workers take them one by one."""
    seed: int = 1
    cluster: Cluster = field(default_factory=Cluster)


def load_recipe(path: Path) -> Recipe:
    """The recipe of a .toml, .yaml or .yml file; relative paths in it are seen from its folder.

    Raises UserError that names the entry.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The recipe {path} cannot be read ({error}); give a TOML or YAML file.") from error
    try:
        if path.suffix == ".toml":
            entries = tomllib.loads(text)
        elif path.suffix in (".yaml", ".yml"):
            import yaml

            entries = yaml.safe_load(text)
        else:
            raise UserError(f"{path} must end in .toml, .yaml or .yml.")
    except ImportError as error:
        raise UserError("YAML recipes need PyYAML; `pip install 'jielong[scale]'`, or write TOML.") from error
    except UserError:
        raise
    except Exception as error:  # both parsers have several errors of their own
        raise UserError(f"{path} is not valid: {str(error).splitlines()[0]}.") from error
    recipe = _filled(Recipe, entries, path.name)
    _check(recipe, path)
    _resolve(recipe, path.resolve().parent)
    return recipe


def _filled(kind: Any, value: Any, where: str) -> Any:
    """`value` as a `kind`: a dataclass, list, number, text or path. Raises UserError."""
    if get_origin(kind) is UnionType:
        if value is None:
            return None
        kind = next(k for k in get_args(kind) if k is not NoneType)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise UserError(f"{where} must be a table of settings.")
        hints = get_type_hints(kind)
        for name in value:
            if name not in hints:
                raise UserError(f"{where} has no entry {name!r}; it may have {', '.join(hints)}.")
        for f in dataclasses.fields(kind):
            if f.default is f.default_factory is dataclasses.MISSING and f.name not in value:
                raise UserError(f"{where} needs an entry {f.name!r}.")
        return kind(**{name: _filled(hints[name], v, f"{where}: {name}") for name, v in value.items()})  # type: ignore[operator]
    if get_origin(kind) is list:
        if not isinstance(value, list):
            raise UserError(f"{where} must be a list.")
        return [_filled(get_args(kind)[0], v, where) for v in value]
    accepted = {float: (int, float), int: (int,), bool: (bool,), str: (str,), Path: (str,)}[kind]
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise UserError(f"{where} must be {'a path' if kind is Path else 'of type ' + kind.__name__}, not {value!r}.")
    return kind(value)


def _check(recipe: Recipe, path: Path) -> None:
    if not recipe.source:
        raise UserError(f"{path} has no source; it needs at least one with a name and a path.")
    names = [s.name for s in recipe.source]
    if len(set(names)) < len(names):
        raise UserError(f"{path} has two sources of one name; each needs its own.")
    for source in recipe.source:
        if source.kind not in KINDS:
            raise UserError(f"{path}: kind {source.kind!r} of {source.name} is unknown; use {', '.join(KINDS)}.")
        if source.epochs <= 0 or (source.weight is not None and source.weight <= 0):
            raise UserError(f"{path}: weight and epochs of {source.name} must be greater than 0.")
    weights = [s.weight is None for s in recipe.source]
    if any(weights) and not all(weights):
        raise UserError(f"{path}: give every source a weight, or none.")
    if recipe.rules not in ("web", "light", "none"):
        raise UserError(f"{path}: rules must be web, light or none.")
    if recipe.part < 1:
        raise UserError(f"{path}: part must be at least 1 byte.")
    if not 0 <= recipe.heldout < 1:
        raise UserError(f"{path}: heldout must be at least 0 and below 1.")


def _resolve(recipe: Recipe, folder: Path) -> None:
    """Local paths as seen from the recipe's folder."""
    for source in recipe.source:
        if "://" not in source.path:
            source.path = str(folder / Path(source.path).expanduser())
    recipe.decontaminate = [folder / p.expanduser() for p in recipe.decontaminate]
    for rule, name in ((recipe.lists, "addresses"), (recipe.lists, "words"), (recipe.classifier, "path")):
        if getattr(rule, name) is not None:
            setattr(rule, name, folder / getattr(rule, name).expanduser())


def same_corpus(recipe: Recipe) -> str:
    """What of the recipe decides the corpus, as text to compare with: all but the cluster."""
    values = dataclasses.asdict(recipe)
    del values["cluster"]
    return json.dumps(values, sort_keys=True, default=str)
