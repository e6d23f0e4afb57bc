"""`jielong detect`: read a text, look at it with everything the run has, say what was found."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path

from jielong.config import DetectConfig, LedgerConfig, WatermarkConfig
from jielong.corpus.readers import decode
from jielong.detect import scores
from jielong.detect.evidence import Report, check_level
from jielong.detect.examination import Examination, Tools
from jielong.detect.ledger import FILE, Ledger
from jielong.detect.reference import Reference, fitting, observer_of
from jielong.detect.watermark import load_key, make_key
from jielong.errors import UserError
from jielong.generate.engine import Engine
from jielong.run import Run
from jielong.tokens.tokenizer import Tokenizer

LARGEST = 16_000_000  # bytes of a text
LEDGER = "ledger"
SAID = {
    "generated": "generated: at least one of these would be rarer than {alpha:g} if it were not",
    "no evidence": "no evidence that it was generated, which does not say that a person wrote it",
    "abstain": "abstain: nothing here can be compared with a known null",
}


def run(config: DetectConfig, run: Run) -> None:
    """Print a report. Raises UserError for everything that the user can mend."""
    check_level(config.alpha)
    for name in config.methods:
        scores.find(name)
    text, keys = read_text(config.file), {key.id: key for key in map(load_key, config.key)}
    artifact = run.need(config.model or run.serving())
    engine = Engine.load(artifact.path, config.threads, precision=config.precision)
    found = fitting(run, engine.hash, config.reference)
    named = config.observer or (found.card["config"]["observer"] if found and not config.methods else "")
    observer = None
    if named:
        observer = Engine.load(observer_of(named, run).path, config.threads, precision=config.precision)
    tools = Tools(
        engine,
        observer,
        Reference.load(found) if found else None,
        list(keys.values()),
        Ledger(run.path / LEDGER) if (run.path / LEDGER / FILE).exists() else None,
    )
    look = Examination(text, tools, config.methods)
    report = look.report(config.alpha)
    if config.json:
        more = {"language": look.lang, "model": engine.name, **({"tokens": look.tokens()} if config.tokens else {})}
        print(json.dumps({**report.json(), **more}, ensure_ascii=False, allow_nan=False))
        return
    _show(report, look.lang)
    if config.tokens:
        for token in look.tokens():
            print(
                f"{token['rank']:7} {token['logprob']:9.3f}  {json.dumps(text[token['start'] : token['end']], ensure_ascii=False)}"
            )


def _show(report: Report, lang: str) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    print(SAID[report.verdict].format(alpha=report.alpha) + f" (language: {lang})")
    table = Table("method", "score", "p", "p (Holm)", Column("null", overflow="fold"), "length", "notes")
    for e in report.evidence:
        adjusted = report.adjusted.get(e.method)
        cells = [e.method, number(e.score), number(e.p), number(adjusted), e.null, str(e.n), "; ".join(e.notes)]
        table.add_row(*map(escape, cells))
    Console().print(table)


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def read_text(path: Path) -> str:
    """A text file in any common encoding, or the standard input for -. Raises UserError where there is none."""
    try:
        with nullcontext(sys.stdin.buffer) if str(path) == "-" else open(path, "rb") as f:
            data = f.read(LARGEST + 1)
    except IsADirectoryError as error:
        raise UserError(f"{path} is a folder; name one text file.") from error
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; name a text file, or - for the standard input.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from error
    if len(data) > LARGEST:
        raise UserError(f"{path} has more than {LARGEST} bytes; cut out the part that is in question.")
    return decode(data, str(path)) if data else ""


def key(config: WatermarkConfig, run: Run) -> None:
    """Write a new key. Raises UserError for a file that exists."""
    artifact = run.need(config.model or run.serving())
    tokenizer = Tokenizer.load(artifact.file("tokenizer.json"))
    made = make_key(config.file, tokenizer, config.scheme, config.context, config.green, config.bias)
    print(
        f"{config.file}: {made.scheme} {made.id} for the vocabulary of {artifact.path}. Whoever has it can find and imitate the mark."
    )


def ledger(config: LedgerConfig, run: Run) -> None:
    """Verify or erase. Raises UserError for a missing or damaged ledger, and when nothing is named to erase."""
    book = Ledger(run.path / LEDGER)
    if not book.file.exists():
        raise UserError(f"{run.path} has no ledger; `jielong serve --ledger` keeps one.")
    if config.action == "verify":
        entries = book.entries()
        print(f"{book.file}: {len(entries)} answers, every seal holds.")
        return
    if not config.id and not config.user:
        raise UserError("Name what to erase: --id ANSWER … or --user NAME.")
    gone = book.erase(config.id, config.user)
    print(f"{book.file}: {gone} answers erased.")
    if config.user and not gone:
        print("Who came with an API key stands there as key:KEY, or key:KEY/NAME; who gave no name, as local.")
