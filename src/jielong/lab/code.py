"""`jielong lab code`: models with and without code in their corpus go on with code.

The talk: what GPT learnt from source code shows in what it can do. Code is Python's own standard library, which lies on every machine
that runs this; whole modules are held out. The control reads the same number of positions of prose alone; both have one
vocabulary, learnt from prose and code.
"""

from __future__ import annotations

import ast
import hashlib
import platform
import sysconfig
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jielong.config import CodeConfig
from jielong.corpus.documents import Document, read_documents, record_id
from jielong.errors import UserError
from jielong.generate.engine import Engine
from jielong.generate.sampling import Sampling
from jielong.lab.branch import (
    Branch,
    check_positions,
    corpus_of,
    examined,
    folder,
    pretrained,
    pretraining,
    say,
    sized,
    stamp,
)
from jielong.lab.claims import Claim, Condition, above, shown
from jielong.lab.exams import bits, difference, mean
from jielong.lab.sheet import Sheet, Table, bars, finish
from jielong.lab.texts import ranked
from jielong.model.gpt import load_model
from jielong.run import Artifact, Run
from jielong.scale.advice import shape
from jielong.scale.ladder import kept
from jielong.tokens.tokenizer import Tokenizer, train

NAME = "code"
CLAIM = Claim(
    {"en": "Code in the corpus", "zh": "語料裡有程式碼"},
    {
        "en": "A model whose corpus holds source code continues code that it has never seen better than one that read prose alone.",
        "zh": "語料裡有程式碼的模型，接續沒看過的程式碼，比只讀一般文章的模型好。",
    },
)
ARMS = {"code": "prose and code", "prose": "prose alone"}
HELD_OUT = 0.15  # of the modules
SKIPPED = {
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "site-packages",
    "dist-packages",
    "encodings",
    "pydoc_data",
    "__pycache__",
    "ensurepip",
}
LONGEST = 12_000  # characters of a document; a longer module is cut between its statements
LINES = (6, 24)  # of a function that is continued
GENERATED = 64  # tokens
PROSE_TESTS = 150
QUICK = {
    "width": 32, "tokens": 1500.0, "rows": 4, "length": 96, "vocab_size": 420, "prose": 8000, "code": 20_000, "functions": 6,
}  # fmt: skip


@dataclass(frozen=True)
class Cut:
    """A function of a held-out module: its beginning, which is valid code, and what follows."""

    module: str
    begin: str
    rest: str

    @property
    def next_line(self) -> str:
        return self.rest.split("\n")[0].rstrip()


def run(config: CodeConfig, run: Run) -> Artifact:
    """The experiment → `lab-code`. Models that are there are not trained again."""
    corpus = run.need("corpus")
    config = sized(config, QUICK)
    shape(config.width, 2 * config.length)
    if not 0 < config.share < 1:
        raise UserError("share must lie between 0 and 1.")
    if min(config.functions, config.prose, config.code) < 1:
        raise UserError("functions, prose and code must be at least 1.")
    check_positions(config, tokens=config.tokens)
    trunk = Branch(run, folder(NAME, config.quick), ())
    seen, cuts = modules(config.code), functions(config.functions)
    vocabulary = vocabulary_of(trunk, corpus, seen, config)
    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    for seed in range(config.seed, config.seed + config.seeds):
        for arm in ARMS:
            found[arm].append(one(config, trunk, corpus, vocabulary, seen, cuts, arm, seed))
            own = found[arm][-1]["scores"]
            say(f"{ARMS[arm]}, seed {seed}: " + ", ".join(f"{k} {sum(v) / len(v):.3f}" for k, v in own.items()))
    scores = {arm: {k: [m["scores"][k] for m in own] for k in own[0]["scores"]} for arm, own in found.items()}
    figures = {arm: {k: mean(v, config, shared=True) for k, v in own.items()} for arm, own in scores.items()}
    changes = {k: difference(scores["code"][k], scores["prose"][k], config, shared=True) for k in figures["code"]}
    parameters = found["code"][0]["parameters"]
    metrics = {
        "figures": figures,
        "changes": changes,
        "examples": found["code"][0]["examples"],
        "python": platform.python_version(),
        "parameters": parameters,
    }
    return finish(
        NAME,
        config,
        run,
        CLAIM,
        conditions(changes),
        sheet(figures, changes, config, parameters, len(cuts)),
        metrics,
        [corpus],
    )


# the code


def library() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


@cache
def sources() -> dict[str, tuple[str, ...]]:
    """Module → its files' texts; of the standard library, without tests and tables. Raises UserError where there is none."""
    found: dict[str, list[str]] = {}
    root = library()
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if not SKIPPED & set(parts) and not parts[0].startswith("_sysconfigdata"):
            found.setdefault(parts[0], []).append(path.read_text(encoding="utf-8", errors="replace"))
    if len(found) < 20:
        raise UserError(f"{root} holds no standard library in source form; this experiment reads it.")
    return {module: tuple(texts) for module, texts in found.items()}


def is_held_out(module: str) -> bool:
    return int(hashlib.sha256(module.encode()).hexdigest()[:8], 16) < HELD_OUT * 2**32


def modules(chars: int) -> list[Document]:
    """About so many characters of the modules that may be read."""
    found, left = [], chars
    for module in ranked((m for m in sources() if not is_held_out(m)), NAME):
        for text in sources()[module]:
            for piece in pieces(text):
                if left <= 0:
                    return found
                left -= len(piece)
                found.append(Document(record_id(piece), piece, "code", module))
    return found


def pieces(text: str) -> Iterator[str]:
    """A module in parts of at most about LONGEST characters, cut where a statement begins at the margin."""
    at: list[str] = []
    size = 0
    for line in text.split("\n"):
        if size > LONGEST and line[:1].isalpha():
            yield "\n".join(at)
            at, size = [], 0
        at.append(line)
        size += len(line) + 1
    if "".join(at).strip():
        yield "\n".join(at)


def functions(count: int) -> list[Cut]:
    """So many functions of held-out modules, cut at about half; module by module in turns, so that none outweighs the others."""
    turns = []
    for module in ranked((m for m in sources() if is_held_out(m)), NAME):
        own = [c for text in sources()[module] for c in cuts_of(module, text)]
        turns += [
            (n, module, c) for n, c in enumerate(sorted(own, key=lambda c: hashlib.sha256(c.begin.encode()).digest()))
        ]
    return [c for _, _, c in sorted(turns, key=lambda t: t[:2])[:count]]


def cuts_of(module: str, text: str) -> Iterator[Cut]:
    try:
        tree = parsed(text)
    except SyntaxError:
        return
    lines = text.split("\n")
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.end_lineno:
            own = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno])).split("\n")
            if LINES[0] <= len(own) <= LINES[1]:
                for at in range(len(own) // 2, 2, -1):
                    if own[at].strip() and not own[at].lstrip().startswith("#") and valid("\n".join(own[:at])):
                        yield Cut(module, "\n".join(own[:at]) + "\n", "\n".join(own[at:]))
                        break


def parsed(text: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        return ast.parse(text)


def valid(text: str) -> bool:
    try:
        parsed(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def parses(begin: str, generated: str) -> bool:
    """Is the beginning, with at least one whole generated line of code and as many as one likes, valid?"""
    lines = generated.split("\n")[:-1]  # the last one may not be whole
    for size in range(len(lines), 0, -1):
        if any(line.strip() and not line.lstrip().startswith("#") for line in lines[:size]) and valid(
            begin + "\n".join(lines[:size]) + "\n"
        ):
            return True
    return False


# the models


def vocabulary_of(trunk: Branch, corpus: Artifact, seen: Sequence[Document], config: CodeConfig) -> Artifact:
    """One vocabulary for all, learnt from prose and code alike."""
    settings = {"vocab_size": config.vocab_size, "prose": config.prose, "code": stamp([d.id for d in seen])}
    found = kept(trunk, "tokenizer", [corpus], settings)
    if found is None:
        with trunk.build("tokenizer", kind="tokenizer", config=settings, parents=[corpus]) as build:
            texts = [d.text for d in [*prose_of(corpus, config.prose), *seen]]
            train(texts, config.vocab_size).rust.save(str(build.path / "tokenizer.json"))
        found = build.artifact
    return found


def prose_of(corpus: Artifact, chars: int) -> list[Document]:
    found, left = [], chars
    documents = read_documents(corpus.file("train.parquet"))  # in the order of their ids, which are hashes
    for d in documents:
        if left <= 0:
            break
        left -= len(d.text)
        found.append(d)
    return found


def one(
    config: CodeConfig, trunk: Branch, corpus: Artifact, vocabulary: Artifact, seen: Sequence[Document], cuts: Sequence[Cut], arm: str, seed: int
) -> dict[str, Any]:  # fmt: skip
    """Pretrain and examine one model, as far as that is not done."""
    branch = Branch(trunk, f"{arm}-{seed}", ("tokenizer",))
    texts = prose_of(corpus, config.prose)
    settings = pretraining(config, seed, config.tokens)
    if arm == "code":
        texts = blended(
            texts,
            seen,
            config.share,
            Tokenizer.load(vocabulary.file("tokenizer.json")),
            settings.steps * config.rows * config.length,
        )
    corpus_of(branch, texts)
    base = pretrained(branch, settings)
    asked = {"functions": stamp([[c.begin, c.rest] for c in cuts])}
    tests = [d for d in read_documents(corpus.file("heldout.parquet")) if d.text][:PROSE_TESTS]
    return examined(branch, "exam", [base], asked, lambda: examine(base, cuts, tests, config.threads), seed)


def blended(
    prose: Sequence[Document], code: Sequence[Document], share: float, tokenizer: Tokenizer, positions: int
) -> list[Document]:
    """So much of each that a reading of `positions` has this share of code: both are cut to what one pass can hold, and the scarcer one
    decides where there is less."""
    sizes = [[len(ids) for ids in tokenizer.encode_batch([d.text for d in docs])] for docs in (prose, code)]
    whole = min(positions, sum(sizes[0]) / (1 - share), sum(sizes[1]) / share)
    kept: list[Document] = []
    for documents, own, room in ((prose, sizes[0], (1 - share) * whole), (code, sizes[1], share * whole)):
        for document, size in zip(documents, own, strict=True):
            if room <= 0:
                break
            room -= size
            kept.append(document)
    return kept


def examine(base: Artifact, cuts: Sequence[Cut], prose: Sequence[Document], threads: int) -> dict[str, Any]:
    """Bits per byte of code and prose, and greedy continuations of the functions."""
    engine, model = Engine.load(base.path, threads, rows=64), load_model(base.path)
    longest = engine.context - GENERATED
    prompts = [engine.tokenizer.encode(c.begin)[-longest:] for c in cuts]
    said = [r.text for r in engine.generate(prompts, Sampling(temperature=0.0, max_tokens=GENERATED))]
    wholes = [Document("", c.begin + c.rest, "code", c.module) for c in cuts]
    scores = {
        "bits per byte of code": bits(model, engine.tokenizer, wholes),
        "bits per byte of prose": bits(model, engine.tokenizer, prose),
        "the next line is right": [float(text.split("\n")[0].rstrip() == c.next_line) for text, c in zip(said, cuts, strict=True)],
        "the continuation is valid code": [float(parses(c.begin, text)) for text, c in zip(said, cuts, strict=True)],
    }  # fmt: skip
    step = max(1, len(cuts) // 6)
    examples = [
        {"begin": c.begin, "rest": c.rest, "said": text} for c, text in list(zip(cuts, said, strict=True))[::step]
    ]
    return {"scores": scores, "examples": examples, "parameters": model.parameter_count()}


def conditions(changes: dict[str, Any]) -> list[Condition]:
    """Fewer bits, more right lines, more valid code."""
    value, low, high = changes["bits per byte of code"]
    return [
        above("bits per byte of held-out code: how much fewer", "沒看過的程式碼每位元組的位元數：少多少", (-value, -high, -low), points=False),
        above("the next line is right: points more", "下一行完全正確：高幾個百分點", changes["the next line is right"]),
        above("the continuation is valid code: points more", "接續是合法的程式：高幾個百分點", changes["the continuation is valid code"]),
    ]  # fmt: skip


def sheet(figures: dict[str, Any], changes: dict[str, Any], config: CodeConfig, parameters: int, count: int) -> Sheet:
    """For people."""
    rows = []
    for key in figures["code"]:
        points = not key.startswith("bits")
        rows.append(
            [
                key + (", %" if points else ""),
                *(shown(figures[a][key], points) for a in ARMS),
                shown(changes[key], points, signed=True),
            ]
        )
    cost = changes["bits per byte of prose"]
    shares = {ARMS[a]: [figures[a][k] for k in figures[a] if not k.startswith("bits")] for a in ARMS}
    return Sheet(
        about=f"Models of {parameters / 1e6:.2f} million parameters read {config.tokens / 1e6:.2f} million positions of the run's text, or of it and of Python's standard library "
        f"({platform.python_version()}; {100 * config.share:.0f} % code). {count} functions of held-out modules are cut where what stands before is valid, and continued greedily by {GENERATED} tokens; "
        "valid: with at least one line of what was generated. One vocabulary, learnt from both.",
        findings=[f"With code in the corpus, prose of the run costs {shown(cost, points=False, signed=True)} bits per byte more: the positions that code takes are missing there."],
        tables=[Table("Figures", ["", *ARMS.values(), "difference"], rows)],
        charts=[bars("Continuing held-out functions", "%", [k for k in figures["code"] if not k.startswith("bits")], shares)],
    )  # fmt: skip
