"""The file of a matrix, in the form of promptfoo's: prompts, providers (our models) and tests; docs/prompting.md.

What is not understood is refused by name, since a test that is silently left out passes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from jielong.errors import UserError
from jielong.prompt.form import Prompt, fill, read, variables_in
from jielong.prompt.shots import HOW
from jielong.prompt.store import find
from jielong.prompt.task import METRICS, Item, Task, read_task

KEYS = ("description", "prompts", "providers", "targets", "defaultTest", "tests")
OURS = ("shots", "demonstrations", "choose", "seeds", "calibrate", "metric")
SEVERAL = ("contains-any", "contains-all", "icontains-any", "icontains-all")
KINDS = ("equals", "contains", "icontains", *SEVERAL, "starts-with", "regex", "is-json")
SETTINGS = {"temperature": 0.0, "max_tokens": 64, "seed": 0, "top_p": 1.0}


@dataclass(frozen=True)
class Check:
    """One demand on an answer."""

    kind: str
    """One of KINDS, each also with not- before it; or a metric: exact, f1."""
    values: tuple[str, ...] = ()

    def score(self, answer: str) -> float:
        """1 where it is met; a metric may give less."""
        if self.kind in METRICS:
            return METRICS[self.kind](answer, self.values)
        kind = self.kind.removeprefix("not-")
        return float(_met(kind, self.values, answer) != (kind != self.kind))


def _met(kind: str, values: Sequence[str], answer: str) -> bool:
    if kind == "is-json":
        try:
            json.loads(answer)
        except (ValueError, RecursionError):
            return False
        return True
    if kind.startswith("icontains"):
        kind, values, answer = kind[1:], [v.lower() for v in values], answer.lower()
    if kind == "contains-any":
        return any(v in answer for v in values)
    if kind in ("contains", "contains-all"):
        return all(v in answer for v in values)
    if kind == "starts-with":
        return answer.startswith(values[0])
    return answer.strip() == values[0].strip() if kind == "equals" else re.search(values[0], answer) is not None


@dataclass(frozen=True)
class Test:
    __test__ = False  # not pytest's

    values: dict[str, str]
    checks: tuple[Check, ...]

    @property
    def text(self) -> str:
        return joined(self.values)

    def score(self, answer: str) -> float:
        return min(c.score(answer) for c in self.checks)


def joined(values: Mapping[str, str]) -> str:
    """By what tests and demonstrations are compared: the same values give the same text, in whatever order they were written."""
    return " ".join(values[name] for name in sorted(values))


@dataclass(frozen=True)
class Model:
    """A provider: a run's artifact."""

    label: str
    run: Path
    artifact: str
    settings: dict[str, float]


@dataclass
class Sheet:
    prompts: list[Prompt]
    models: list[Model]
    tests: list[Test]
    labels: tuple[str, ...] = ()
    shots: list[int] = field(default_factory=lambda: [0])
    pool: dict[Item, dict[str, str]] = field(default_factory=dict)
    """Demonstrations, and the variables of each."""
    how: str = "random"
    seeds: int = 1
    calibrate: bool = True
    description: str = ""


def read_sheet(path: Path) -> Sheet:
    """Raises UserError that names the place in the file and what is wrong there."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is no valid YAML: {' '.join(str(error).split())}.") from error
    except RecursionError as error:
        raise UserError(f"{path} is no valid YAML: too much in each other.") from error
    try:
        return _Reader(path.parent).sheet(raw)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


class _Reader:
    """`folder`: from where files are seen."""

    def __init__(self, folder: Path):
        self.folder = folder

    def sheet(self, raw: Any) -> Sheet:
        _only(raw, (*KEYS, *OURS), "the file")
        prompts = [self.prompt(p, n) for n, p in enumerate(_list(raw.get("prompts"), "prompts"), 1)]
        models = [self.model(m) for m in _list(raw.get("providers", raw.get("targets")), "providers")]
        for things, what in (([p.name for p in prompts], "prompts"), ([m.label for m in models], "providers")):
            if twice := [x for x in things if things.count(x) > 1]:
                raise UserError(f"two {what} are called {twice[0]!r}; give each a label of its own.")
        tests, task = self.tests(raw, str(raw.get("metric", "exact")))
        pool = self.pool(raw.get("demonstrations"), task)
        shots = raw.get("shots", [0])
        shots = [shots] if isinstance(shots, int) else shots
        if not isinstance(shots, list) or not shots or not all(type(s) is int and s >= 0 for s in shots):
            raise UserError("shots must be a list of numbers of demonstrations, such as [0, 1, 4].")
        if max(shots) > 0 and not pool:
            raise UserError("shots need demonstrations: a list of {vars, output}, or file://TASK.jsonl.")
        how, seeds, calibrate = raw.get("choose", "random"), raw.get("seeds", 1), raw.get("calibrate", True)
        if how not in HOW:
            raise UserError(f"choose must be one of {', '.join(HOW)}, not {how!r}.")
        if type(seeds) is not int or seeds < 1:
            raise UserError("seeds must be a number of at least 1.")
        if not isinstance(calibrate, bool):
            raise UserError("calibrate must be true or false.")
        for prompt in prompts:
            for number, values in enumerate([*(t.values for t in tests), *pool.values()], 1):
                needed = [n for n, d in prompt.variables if d is None] + ["input"] * (
                    "input" in variables_in(prompt.ask)
                )
                if lacks := [n for n in needed if n not in values]:
                    which = f"test {number}" if number <= len(tests) else f"demonstration {number - len(tests)}"
                    raise UserError(f"{which} has no {lacks[0]!r}, which the prompt {prompt.name!r} needs.")
        labels = task.labels if task else ()
        return Sheet(
            prompts, models, tests, labels, shots, pool, how, seeds, calibrate, str(raw.get("description", ""))
        )

    def prompt(self, raw: Any, number: int) -> Prompt:
        label = ""
        if isinstance(raw, dict):
            _only(raw, ("id", "raw", "label"), f"prompt {number}")
            label, raw = str(raw.get("label", "")), raw.get("raw", raw.get("id"))
        if not isinstance(raw, str) or not raw.strip():
            raise UserError(f"prompt {number} must be a text, file://FILE or role://NAME.")
        if raw.startswith("role://"):
            found = find(raw.removeprefix("role://"), None)
        elif raw.startswith("file://"):
            file = self.folder / raw.removeprefix("file://")
            if file.suffix not in (".md", ".txt"):
                raise UserError(f"prompt {number}: {file.name} must be a prompt file (.md) or a text (.txt).")
            found = read(file) if file.suffix == ".md" else self.text(_text(file), file.stem)
        else:
            found = self.text(raw, raw if len(raw) <= 60 else f"{raw[:57]}…")
        return replace(found, name=label or found.name)

    def text(self, raw: str, name: str) -> Prompt:
        """A text, or messages in JSON: system and user."""
        if "{%" in raw or "{#" in raw or "{{" in re.sub(r"\{\{\s*[^\W\d]\w*\s*\}\}", "", raw):
            raise UserError(
                f"the prompt {name!r} has more than plain {{{{variables}}}}; filters and conditions are not understood."
            )
        system = ""
        if raw.lstrip().startswith("[") and '"role"' in raw:
            try:
                messages = json.loads(raw)
                *first, last = [(m["role"], _plain(m["content"], "a content")) for m in messages]
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise UserError(f"the prompt {name!r} looks like messages in JSON and is none: {error}.") from error
            if last[0] != "user" or [r for r, _ in first] not in ([], ["system"]):
                raise UserError(
                    f"the prompt {name!r} must be one user's message, with or without a system message before it."
                )
            system, raw = (first[0][1] if first else ""), last[1]
        names = tuple((n, None) for n in variables_in(system, raw) if n != "input")
        return Prompt(" ".join(name.split()), system, ask=raw, variables=names)

    def model(self, raw: Any) -> Model:
        label, config = "", {}
        if isinstance(raw, dict):
            _only(raw, ("id", "label", "config"), "a provider")
            label, config, raw = str(raw.get("label", "")), raw.get("config") or {}, raw.get("id")
        if not isinstance(raw, str) or not raw:
            raise UserError("a provider must be a run's folder, RUN or RUN:ARTIFACT.")
        _only(config, tuple(SETTINGS), f"the config of {raw}")
        if bad := [k for k, v in config.items() if isinstance(v, bool) or not isinstance(v, int | float)]:
            raise UserError(f"{bad[0]} of {raw} must be a number.")
        settings(f" of {raw}", **config)
        name = raw.removeprefix("jielong:")
        folder, _, artifact = name.partition(":")
        run = self.folder / folder if (self.folder / folder).is_dir() else Path(folder)
        if not run.is_dir():
            raise UserError(
                f"the provider {raw!r} is no run's folder; providers are models of jielong, RUN or RUN:ARTIFACT."
            )
        return Model(label or name, run, artifact, {**SETTINGS, **config})

    def tests(self, raw: dict[str, Any], metric: str) -> tuple[list[Test], Task | None]:
        given = raw.get("tests")
        if isinstance(given, str):
            if metric not in METRICS:
                raise UserError(f"metric must be one of {', '.join(METRICS)}, not {metric!r}.")
            if "defaultTest" in raw:
                raise UserError("defaultTest does not go with tests from a file.")
            task = read_task(self.file(given, "tests"))
            return [Test({"input": i.input}, (Check(metric, i.outputs),)) for i in task.items], task
        default = raw.get("defaultTest") or {}
        _only(default, ("vars", "assert"), "defaultTest")
        tests = []
        for number, row in enumerate(_list(given, "tests"), 1):
            where = f"test {number}"
            _only(row, ("description", "vars", "assert"), where)
            values = _values(default.get("vars"), "defaultTest") | _values(row.get("vars"), where)
            asserts = [
                *_list(default.get("assert") or [], "defaultTest: assert", empty=True),
                *_list(row.get("assert", []), f"{where}: assert", empty=True),
            ]
            checks = tuple(_check(a, where, values) for a in asserts)
            if not checks:
                raise UserError(f"{where} has no assert, so that every answer would pass.")
            tests.append(Test(values, checks))
        return tests, None

    def pool(self, raw: Any, task: Task | None) -> dict[Item, dict[str, str]]:
        if raw is None:
            return {i: {"input": i.input} for i in task.items} if task else {}
        if isinstance(raw, str):
            return {i: {"input": i.input} for i in read_task(self.file(raw, "demonstrations")).items}
        pool = {}
        for number, row in enumerate(_list(raw, "demonstrations"), 1):
            where = f"demonstration {number}"
            _only(row, ("vars", "output"), where)
            values, output = _values(row.get("vars"), where), _plain(row.get("output"), where)
            pool[Item(joined(values), (output,))] = values
        return pool

    def file(self, name: str, what: str) -> Path:
        if not name.startswith("file://") or not name.endswith(".jsonl"):
            raise UserError(f"{what} must be a list, or file://TASK.jsonl.")
        return self.folder / name.removeprefix("file://")


def _check(raw: Any, where: str, values: Mapping[str, str]) -> Check:
    _only(raw, ("type", "value"), f"{where}: assert")
    kind = raw.get("type")
    if not isinstance(kind, str) or kind.removeprefix("not-") not in KINDS:
        raise UserError(
            f"{where}: assert of type {kind!r} is not supported; supported are {', '.join(KINDS)}, also with not-."
        )
    given = raw.get("value")
    if kind.endswith("is-json"):
        if given is not None:
            raise UserError(f"{where}: is-json with a value (a schema) is not supported; leave the value out.")
        return Check(kind)
    if kind.removeprefix("not-") in SEVERAL:  # a list, or texts with commas between them
        given = [v.strip() for v in given.split(",")] if isinstance(given, str) else given
        texts = [fill(_plain(v, f"{where}: value"), values) for v in _list(given, f"{where}: value")]
        if not all(texts):
            raise UserError(f"{where}: an empty text is in every answer; take it out of the values of {kind}.")
        return Check(kind, tuple(texts))
    value = fill(_plain(given, f"{where}: value"), values)
    if kind.endswith("regex"):
        try:
            re.compile(value)
        except re.error as error:
            raise UserError(f"{where}: {value!r} is no regular expression: {error}.") from error
    return Check(kind, (value,))


def settings(of: str = "", **given: float) -> None:
    """Settings of drawing. Raises UserError for one that makes no sense; `of` says whose it is."""
    for name, value in given.items():
        if not math.isfinite(value) or (name in ("max_tokens", "seed") and value != int(value)):
            raise UserError(
                f"{name}{of} must be a {'whole ' if name in ('max_tokens', 'seed') else ''}number, not {value}."
            )
    if given.get("temperature", 0.0) < 0 or given.get("max_tokens", 1) < 1 or not 0 < given.get("top_p", 1.0) <= 1:
        raise UserError(f"temperature{of} must be at least 0, max_tokens at least 1, top_p above 0 and at most 1.")


def _values(raw: Any, where: str) -> dict[str, str]:
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise UserError(f"{where}: vars must be names and texts.")
    return {str(k): _plain(v, f"{where}: {k}") for k, v in raw.items()}


def _plain(value: Any, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UserError(f"{where} must be a text; YAML reads {value!r} here, so put quotes around it.")
    return str(value)


def _list(raw: Any, what: str, empty: bool = False) -> list[Any]:
    if not isinstance(raw, list) or not (raw or empty):
        raise UserError(f"{what} must be a list{'' if empty else ' with at least one entry'}.")
    return raw


def _only(raw: Any, known: tuple[str, ...], where: str) -> None:
    if not isinstance(raw, dict):
        raise UserError(f"{where} must have the entries {', '.join(known)}.")
    if unknown := [k for k in raw if k not in known]:
        raise UserError(f"{where} has {unknown[0]!r}, which is not supported; supported are {', '.join(known)}.")


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {error}.") from error
