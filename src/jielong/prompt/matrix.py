"""`jielong prompt matrix`: prompts × shots × models, every cell with its interval and its difference from a plain one."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jielong.config import PromptMatrixConfig
from jielong.evaluate.qa import newcombe, wilson
from jielong.evaluate.statistics import Interval, bootstrap
from jielong.generate.engine import Engine
from jielong.generate.sampling import Sampling
from jielong.prompt.answer import Reply, reply
from jielong.prompt.form import Prompt
from jielong.prompt.journal import Journal, bar
from jielong.prompt.sheet import Model, Sheet, Test, read_sheet
from jielong.prompt.shots import Chooser, embeddings
from jielong.run import Run, write_atomic

BATCH = 32  # answers between two entries of the journal


@dataclass
class Cell:
    """A prompt with so many shots before a model."""

    model: str
    prompt: str
    shots: int
    scores: np.ndarray
    """(seeds, tests)"""
    answers: list[str]
    """Of the first seed."""
    difference: Interval | None = None
    """From the model's first cell, on the same tests; none for that cell itself."""

    @property
    def score(self) -> Interval:
        return mean_interval(self.scores)


def mean_interval(scores: np.ndarray) -> Interval:
    """Mean of (seeds, tests) and its 95 % interval over tests: Wilson's for right and wrong, else the bootstrap's."""
    own = scores.mean(0)
    if np.isin(own, (0.0, 1.0)).all():
        return (float(own.mean()), *wilson(int(own.sum()), len(own)))
    return bootstrap([[n] for n in range(len(own))], lambda i: float(own[i].mean()))


def difference(a: np.ndarray, b: np.ndarray) -> Interval:
    """Mean of a − b over tests, both (seeds, tests), and its 95 % interval on the same tests: Newcombe's for right and wrong,
    else the paired bootstrap's."""
    x, y = a.mean(0), b.mean(0)
    if np.isin([x, y], (0.0, 1.0)).all():
        both, first, second = (int(n) for n in ((x * y).sum(), (x > y).sum(), (x < y).sum()))
        return newcombe(both, first, second, len(x) - both - first - second)
    change = x - y
    return bootstrap([[n] for n in range(len(change))], lambda i: float(change[i].mean()), rounds=2000)


def run(config: PromptMatrixConfig) -> Path:
    """The file's table on the terminal, and a page with every answer: its path. The same command continues after an
    interruption."""
    sheet = read_sheet(config.file)
    out = config.out or config.file.with_suffix(".html")
    found = [Run(m.run).need(m.artifact or Run(m.run).serving()) for m in sheet.models]
    kept = config.file.with_name(f".{config.file.stem}.matrix.jsonl")
    journal = Journal(
        kept, (sheet.prompts, sheet.tests, sheet.labels, list(sheet.pool.items()), sheet.how, sheet.calibrate)
    )
    cells = []
    with bar("answers", sum(len(sheet.tests) for _ in columns(sheet)) * len(sheet.models)) as advance:
        for model, artifact in zip(sheet.models, found, strict=True):
            engine = Engine.load(artifact.path, config.threads, precision="auto", rows=BATCH, prefix_bytes=512 << 20)
            cells += cells_of(sheet, model, engine, journal, advance)
    write_atomic(out, page(sheet, cells))
    journal.close()
    show(cells)
    return out


def columns(sheet: Sheet) -> Iterator[tuple[Prompt, int, int]]:
    """(prompt, shots, seed)"""
    for prompt in sheet.prompts:
        for count in sheet.shots:
            for seed in range(sheet.seeds if count and sheet.how == "random" else 1):
                yield prompt, count, seed


def cells_of(sheet: Sheet, model: Model, engine: Engine, journal: Journal, advance: Any) -> list[Cell]:
    """All cells of one model; `advance` is told how many answers have been given."""
    s = model.settings
    sampling = Sampling(
        temperature=s["temperature"], top_p=s["top_p"], max_tokens=int(s["max_tokens"]), seed=int(s["seed"])
    )
    vectors = embeddings(engine) if sheet.how == "embedding" else None
    cells: list[Cell] = []
    choosers: dict[int, Chooser] = {}
    for prompt, count, seed in columns(sheet):
        if count and seed not in choosers:
            choosers[seed] = Chooser(list(sheet.pool), sheet.how, seed, vectors)
        own = replace(prompt, labels=sheet.labels or prompt.labels, calibrated=sheet.calibrate)
        ready = [_ready(own, t, choosers[seed].pick(t.text, count) if count else [], sheet) for t in sheet.tests]
        column = hashlib.sha256(repr((engine.hash, s, prompt, count, seed)).encode()).hexdigest()[:16]
        replies = _answers(engine, ready, sheet.tests, sampling, journal, column, advance)
        scores = np.array([[t.score(r.text) for t, r in zip(sheet.tests, replies, strict=True)]])
        if seed:
            cells[-1].scores = np.concatenate([cells[-1].scores, scores])
        else:
            cells.append(Cell(model.label, prompt.name, count, scores, [r.text for r in replies]))
    for cell in cells[1:]:
        cell.difference = difference(cell.scores, cells[0].scores)
    return cells


def _ready(prompt: Prompt, test: Test, demonstrations: Sequence[Any], sheet: Sheet) -> tuple[Prompt, dict[str, str]]:
    """The prompt with its demonstrations, and the variables that it has."""

    def own(values: dict[str, str]) -> dict[str, str]:
        return {n: values[n] for n, _ in prompt.variables if n in values}

    shots = []
    for item in demonstrations:
        values = sheet.pool[item]
        shots.append((prompt.asked(own(values), values.get("input", "")), item.outputs[0]))
    return prompt.with_shots(shots), own(test.values)


def _answers(
    engine: Engine,
    ready: list[tuple[Prompt, dict[str, str]]],
    tests: list[Test],
    sampling: Sampling,
    journal: Journal,
    column: str,
    advance: Any,
) -> list[Reply]:
    """One reply per test; those that the journal has are not asked again."""
    for start in range(0, len(tests), BATCH):
        part = range(start, min(start + BATCH, len(tests)))
        open_ = [n for n in part if f"{column}:{n}" not in journal.found]
        texts = [tests[n].values.get("input", "") for n in open_]
        replies = reply(engine, [ready[n][0] for n in open_], [ready[n][1] for n in open_], texts, sampling)
        journal.add({f"{column}:{n}": r for n, r in zip(open_, replies, strict=True)})
        advance(len(part))
    return [journal.found[f"{column}:{n}"] for n in range(len(tests))]


def percent(value: float, signed: bool = False) -> str:
    value = round(100 * value, 1) + 0.0  # never −0
    return "–" if math.isnan(value) else f"{value:+.1f}" if signed else f"{value:.1f}"


def rows(cells: list[Cell]) -> list[dict[str, str]]:
    """What the table says, for terminal and page. `sign`: better, worse, or nothing where the interval includes 0."""
    table = []
    for cell in cells:
        value, low, high = cell.score
        row = {"model": cell.model, "prompt": cell.prompt, "shots": str(cell.shots), "score": percent(value)}
        row |= {"interval": f"{percent(low)} – {percent(high)}", "difference": "", "sign": ""}
        if cell.difference:
            change, low, high = cell.difference
            row["difference"] = f"{percent(change, True)} ({percent(low, True)} to {percent(high, True)})"
            row["sign"] = "better" if low > 0 else "worse" if high < 0 else ""
        table.append(row)
    return table


def show(cells: list[Cell]) -> None:
    """The table on the terminal."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("model", "prompt", "shots", "score %", "95 % interval", "against the first prompt, paired")
    colours = {"better": "green", "worse": "red", "": "default"}
    for row in rows(cells):
        names = [escape(row["model"]), escape(row["prompt"])]
        mark = f"[{colours[row['sign']]}]{row['difference']}[/]"
        table.add_row(*names, row["shots"], row["score"], row["interval"], mark)
    Console(width=None).print(table)


def page(sheet: Sheet, cells: list[Cell]) -> str:
    """The table and every answer as one HTML page that needs no network."""
    from jinja2 import Environment, PackageLoader, select_autoescape

    environment = Environment(loader=PackageLoader("jielong.prompt", "."), autoescape=select_autoescape())
    tests = [
        {
            "values": t.values,
            "wanted": [f"{c.kind} {' | '.join(c.values)}" for c in t.checks],
            "answers": [{"text": c.answers[n], "score": float(c.scores[0, n])} for c in cells],
        }
        for n, t in enumerate(sheet.tests)
    ]
    return environment.get_template("matrix.html").render(
        description=sheet.description, rows=rows(cells), points=points(cells), tests=tests, how=sheet.how, seeds=sheet.seeds
    )  # fmt: skip


def points(cells: list[Cell]) -> list[dict[str, Any]]:
    """The chart: of each row its score and interval in percent, its colour as in the table, and where a model begins."""
    found = []
    for n, (cell, row) in enumerate(zip(cells, rows(cells), strict=True)):
        value, low, high = (round(100 * x, 2) for x in cell.score)
        first = n == 0 or cells[n - 1].model != cell.model
        found.append({**row, "value": value, "low": low, "high": high, "first": first})
    return found
