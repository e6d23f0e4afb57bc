"""What a statistic is like on human texts: the null of its p-values.

A reference belongs to one model (by the hash of its artifact) and one corpus that the user names. Texts are compared at
equal length: all that a text of at least LENGTHS[k] tokens is asked about is its first LENGTHS[k] tokens, and so were the
humans'. Within a language and a length each document counts once, so that P(p ≤ α) ≤ α for a text from the same source
(conformal p-values, Vovk et al. 2005; per class: Mondrian). Statistics at every length come from one pass.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from jielong.config import ReferenceConfig
from jielong.corpus.documents import read_documents
from jielong.corpus.language import identify
from jielong.corpus.readers import read_paths
from jielong.detect.normalise import normalise
from jielong.detect.scores import SCORES
from jielong.detect.sketch import shingles
from jielong.detect.tilt import Human, Tilt, fit
from jielong.detect.tokenstats import Offsets, TokenStats, aligned, read, same_vocabulary, window
from jielong.errors import UserError
from jielong.generate.engine import Engine
from jielong.run import Artifact, Run

LENGTHS = (50, 75, 100, 150, 200, 300, 400, 600, 800)
FEWEST = 19
"""Documents of a language and length at least: fewer cannot give a p-value of 0.05."""
MADE_UP = {"world", "dirt", "dictionary", "idioms"}
"""Sources of the default corpus that templates have written."""
THIRD = 3
PART = 64  # documents that are read between two looks at the bar
FILE, ABOUT = "reference.safetensors", "reference.json"


@dataclass
class Reference:
    """Scores of human documents by language, length and statistic, each sorted."""

    corpus: str
    model: str
    """Hash of the scorer's artifact."""
    observer: str
    precision: str
    scores: dict[tuple[str, int, str], np.ndarray]
    shingles: dict[str, list[np.ndarray]]
    """Language → one array of uint64 per document: what the ledger is compared with."""
    tilts: dict[str, Human] = field(default_factory=dict)
    """Language → the model's human version, for `tilt`."""

    @classmethod
    def load(cls, artifact: Artifact) -> Reference:
        """Raises UserError when it is damaged."""
        from safetensors.numpy import load_file

        artifact.verify()
        try:
            about = json.loads(artifact.file(ABOUT).read_text(encoding="utf-8"))
            held = load_file(artifact.file(FILE))
            scores, cut, tilts = {}, {}, {}
            for name, array in held.items():
                kind, lang, *rest = name.split("/")
                if kind == "score":
                    scores[lang, int(rest[0]), rest[1]] = array
                elif kind == "shingles":
                    cut[lang] = np.split(array.view(np.uint64), held[f"ends/{lang}"][:-1])
                elif kind == "tilt":
                    tilts[lang] = Human.of(array)
            return cls(about["corpus"], about["model"], about["observer"], about["precision"], scores, cut, tilts)
        except Exception as error:
            raise UserError(f"{artifact.path} is no reference ({error}); delete it and make it again.") from error

    def null(self, lang: str, length: int, method: str) -> str:
        return f"human:{self.corpus}@{lang},{length} tokens,n={len(self.scores[lang, length, method])}"

    def p(self, lang: str, length: int, method: str, score: float) -> float:
        """(1 + how many humans score as high) / (N + 1)"""
        human = self.scores[lang, length, method]
        return float(1 + len(human) - np.searchsorted(human, score, side="left")) / (len(human) + 1)

    def languages(self, method: str = "") -> list[str]:
        """Those of which there are human texts, measured with this statistic or any."""
        return sorted({lang for lang, _, name in self.scores if method in ("", name)})


def fitting(run: Run, model: str, name: str = "") -> Artifact | None:
    """The reference `name`, or the newest one, that was made for the model with this hash. Raises UserError when the named
    one is missing or belongs to another model."""
    if name:
        found = run.artifact(name)
        if found is None or found.card["kind"] != "reference":
            raise UserError(
                f"{run.path} has no reference {name}; make it with `jielong detect reference --run {run.path}`."
            )
        if found.card["metrics"]["model"] != model:
            raise UserError(f"{found.path} was made for another model; make one for this one, or name that --model.")
        return found
    known = [a for a in run.artifacts() if a.card["kind"] == "reference" and a.card["metrics"]["model"] == model]
    return known[-1] if known else None


def human_texts(config: ReferenceConfig, run: Run) -> tuple[list[str], str]:
    """Documents of the named files, or the run's held-out ones that people wrote, and the corpus' name. Raises UserError
    when there are none."""
    if config.text:
        skipped: Counter[str] = Counter()
        texts = [raw.text for raw in read_paths(config.text, skipped)]
        return texts, config.corpus or "+".join(p.stem for p in config.text)
    held = read_documents(run.need("corpus").file("heldout.parquet"))
    return [d.text for d in held if d.source not in MADE_UP], config.corpus or "held-out"


def run(config: ReferenceConfig, run: Run) -> Artifact:
    """Human documents → reference. Raises UserError when too few of them are long enough."""
    if not config.name.replace("-", "").replace("_", "").isalnum() or not config.name.startswith("reference"):
        raise UserError(
            f"--name must begin with reference and have letters, digits, - and _ only, not {config.name!r}."
        )
    if config.most < 0:
        raise UserError("--most must be 0, for all documents, or more.")
    scorer = run.need(config.model or run.serving())
    engine = Engine.load(scorer.path, config.threads, precision=config.precision)
    parents, observer = [scorer], None
    if config.observer:
        other = observer_of(config.observer, run)
        observer = Engine.load(other.path, config.threads, precision=config.precision)
        # a card names parents by their names in this run; another run's may have the same one
        parents += [other] if other.path.parent == run.path else []
    texts, corpus = human_texts(config, run)
    documents = distinct(texts)[: config.most or None]
    with run.build(config.name, kind="reference", config=config, parents=parents) as build:
        enough, cut, tilts = compare(engine, observer, documents, corpus)
        write(build.path, corpus, engine, observer, enough, cut, tilts)
        build.threads = torch.get_num_threads()
        build.metrics = {
            "corpus": corpus,
            "model": engine.hash,
            "observer": observer.hash if observer else "",
            "documents": len(documents),
            "counts": {f"{lang} {L}": len(v) for (lang, L, m), v in sorted(enough.items()) if m == "likelihood"},
        }
    return build.artifact


def compare(
    engine: Engine, observer: Engine | None, documents: Sequence[str], corpus: str
) -> tuple[dict[tuple[str, int, str], np.ndarray], dict[str, list[np.ndarray]], dict[str, Human]]:
    """(sorted scores where FEWEST documents have them, shingles by language, the model's human versions). Raises UserError when
    too few documents are long enough."""
    tilts, apart = tilted(engine, documents)
    scores, cut = measure(engine, observer, documents, tilts, apart)
    enough = {key: np.sort(np.array(v)) for key, v in scores.items() if len(v) >= FEWEST}
    if not enough:
        counts = {lang: len(v) for (lang, L, _), v in scores.items() if LENGTHS[0] == L}
        has = ", ".join(f"{count} in {lang}" for lang, count in sorted(counts.items())) or "none"
        raise UserError(
            f"Of {len(documents)} documents in {corpus} too few have {LENGTHS[0]} tokens or more ({has}): {FEWEST} of one "
            "language are needed; name more human texts with --text."
        )
    return enough, cut, tilts


def distinct(texts: Sequence[str]) -> list[str]:
    """One text of those that begin alike (first 60 letters), as variants of one document are no independent witnesses."""
    kept: dict[str, str] = {}
    for text in texts:
        kept.setdefault("".join(c for c in text[:300] if c.isalnum())[:60].casefold(), text)
    return [t for t in kept.values() if t.strip()]


def prepared(engine: Engine, texts: Sequence[str]) -> tuple[list[str], list[str], list[list[int]]]:
    """(texts without disguises, their languages, their tokens as far as they count)"""
    normal = [normalise(t).text for t in texts]
    return normal, [identify(t) for t in normal], [i[: LENGTHS[-1]] for i in engine.tokenizer.encode_batch(normal)]


def tilted(engine: Engine, texts: Sequence[str]) -> tuple[dict[str, Human], set[int]]:
    """Language → the model's human version, from every THIRD long enough document, where FEWEST are; and the places of these documents,
    which `tilt` then takes no p-value from."""
    _, langs, ids = prepared(engine, texts)
    own: dict[str, list[int]] = {}
    for n, lang in enumerate(langs):
        if len(ids[n]) >= LENGTHS[0]:
            own.setdefault(lang, []).append(n)
    picked = {lang: places[::THIRD] for lang, places in own.items() if len(places) >= THIRD * FEWEST}
    tilts = {lang: fit(engine, [ids[n] for n in places]) for lang, places in picked.items()}
    return tilts, {n for places in picked.values() for n in places}


def measure(
    engine: Engine,
    observer: Engine | None,
    texts: Sequence[str],
    tilts: Mapping[str, Human] | None = None,
    apart: Collection[int] = (),
) -> tuple[dict[tuple[str, int, str], list[float]], dict[str, list[np.ndarray]]]:
    """Scores by (language, length, statistic), and shingles by language. apart: texts that the tilts have seen."""
    normal, langs, ids = prepared(engine, texts)
    tilts = tilts or {}
    flat = Human(torch.zeros(engine.vocab_size))
    both = observer if observer and same_vocabulary(engine.tokenizer, observer.tokenizer) else None
    both = both if both and both.context >= window(engine) else None
    long = [n for n, i in enumerate(ids) if len(i) >= LENGTHS[0]]
    scores: dict[tuple[str, int, str], list[float]] = {}
    cut: dict[str, list[np.ndarray]] = {}
    has = {"": True, "outside": observer, "cross": both, "tilt": tilts}
    methods = [s for s in SCORES.values() if has[s.needs]]
    parts = [long[at : at + PART] for at in range(0, len(long), PART)]
    console = Console(stderr=True)
    for part in track(parts, "human texts", console=console, disable=not console.is_terminal):
        probes = [Tilt(tilts.get(langs[n], flat), ids[n]) for n in part] if tilts else []
        found = read(engine, [ids[n] for n in part], both, probes=probes)
        if tilts:
            found = [replace(s, tilt=s.probed[:, 0]) for s in found if s.probed is not None]
        if observer:
            found = compared(engine, found, observer, [normal[n] for n in part])
        for n, stats in zip(part, found, strict=True):
            cut.setdefault(langs[n], []).append(shingles(normal[n]).hashes)
            for L in LENGTHS:
                if len(stats) >= L:
                    for method in methods:
                        if method.needs == "tilt" and (n in apart or langs[n] not in tilts):
                            continue
                        scores.setdefault((langs[n], L, method.name), []).append(method.of(stats.head(L)))
    return scores, cut


def compared(engine: Engine, found: list[TokenStats], outsider: Engine, texts: Sequence[str]) -> list[TokenStats]:
    """Statistics of texts with those of an outsider beside them."""
    offsets = [engine.tokenizer.encode_spans(t, markup=False)[1] for t in texts]
    theirs = [outside(outsider, t, o, len(s)) for t, o, s in zip(texts, offsets, found, strict=True)]
    other = read(outsider, [ids for ids, _ in theirs])
    return [aligned(s, o, t, places) for s, o, t, (_, places) in zip(found, offsets, other, theirs, strict=True)]


def outside(outsider: Engine, text: str, offsets: Offsets, count: int) -> tuple[list[int], list[tuple[int, int]]]:
    """The outsider's tokens of what the first `count` tokens of a text hold, and their characters."""
    return outsider.tokenizer.encode_spans(text[: offsets[count - 1][1]] if count else "", markup=False)


def observer_of(name: str, run: Run) -> Artifact:
    """The observer: an artifact of the run, or RUN or RUN:ARTIFACT of another one. Raises UserError when it is missing."""
    if run.artifact(name) is not None:
        return run.need(name)
    folder, _, artifact = name.rpartition(":") if ":" in name else (name, "", "")
    other = Run(folder)
    if not other.artifacts():
        raise UserError(f"There is no model {name!r}: name an artifact of {run.path}, another run, or RUN:ARTIFACT.")
    return other.need(artifact or other.serving())


def write(
    folder: Path, corpus: str, engine: Engine, observer: Engine | None,
    scores: dict[tuple[str, int, str], np.ndarray], cut: dict[str, list[np.ndarray]], tilts: dict[str, Human],
) -> None:  # fmt: skip
    from safetensors.numpy import save_file

    arrays: dict[str, np.ndarray] = {f"score/{lang}/{L}/{method}": v for (lang, L, method), v in scores.items()}
    for lang in {key[0] for key in scores}:
        arrays[f"shingles/{lang}"] = np.concatenate(cut[lang]).view(np.int64)
        arrays[f"ends/{lang}"] = np.cumsum([len(c) for c in cut[lang]])
    arrays |= {f"tilt/{lang}": human.array() for lang, human in tilts.items()}
    save_file(arrays, folder / FILE)
    about: dict[str, Any] = {
        "corpus": corpus,
        "model": engine.hash,
        "observer": observer.hash if observer else "",
        "precision": engine.runtime.precision,
    }
    (folder / ABOUT).write_text(json.dumps(about, ensure_ascii=False, indent=1), encoding="utf-8")
