"""A quality classifier: hashed n-grams and logistic regression, after fastText (Joulin et al. 2017) as used for GPT-3's
and DCLM's corpora, small enough to train in seconds and to read in one sitting.

It learns what distinguishes the user's good examples from the bad ones, and nothing else: a classifier of textbooks
against e-mail knows nothing about a third kind of text. Evaluate it on kinds that it has not seen.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jielong.config import ClassifierConfig
from jielong.corpus.extract import main_text, normalise
from jielong.corpus.language import HAN
from jielong.corpus.ngrams import unit_hashes, windows
from jielong.corpus.quality import units
from jielong.corpus.readers import read_paths
from jielong.errors import UserError
from jielong.run import write_atomic

BUCKETS = 1 << 18
LONGEST = 6000  # characters of a document that are looked at
ROWS = 64  # documents per step
FILES = "classifier.safetensors", "classifier.json"


def features(text: str) -> np.ndarray:
    """(n,) int64: the buckets of a text's different n-grams: words and pairs of words, of Chinese 1 to 3 characters."""
    text = text[:LONGEST].lower()
    chinese = len(HAN.findall(text)) * 2 > sum(c.isalpha() for c in text)
    hashes = unit_hashes(units(text, "zh" if chinese else "en"))
    grams = np.concatenate([windows(hashes, n) for n in ((1, 2, 3) if chinese else (1, 2))])
    return np.unique(grams >> np.uint64(46)).astype(np.int64)  # the upper 18 bits are the best mixed


@dataclass
class Classifier:
    """Weights (BUCKETS,) float32 and a bias."""

    weights: np.ndarray
    bias: float
    facts: dict[str, Any]
    """What it was trained on and how well it does; written into classifier.json."""

    def score(self, text: str) -> float:
        """Probability that the text is good; 0 for a text without words."""
        found = features(text)
        if not len(found):
            return 0.0
        return float(_sigmoid(self.weights[found].sum() / np.sqrt(len(found)) + self.bias))

    def save(self, folder: Path) -> None:
        from safetensors.numpy import save

        folder.mkdir(parents=True, exist_ok=True)
        tensors = {"weights": self.weights, "bias": np.array([self.bias], dtype=np.float32)}
        write_atomic(folder / FILES[0], save(tensors))
        write_atomic(folder / FILES[1], json.dumps({"buckets": BUCKETS, **self.facts}, ensure_ascii=False, indent=1))

    @classmethod
    def load(cls, folder: Path) -> Classifier:
        """Raises UserError."""
        from safetensors.numpy import load

        try:
            tensors = load((folder / FILES[0]).read_bytes())
            facts = json.loads((folder / FILES[1]).read_text(encoding="utf-8"))
            weights, bias = tensors["weights"], float(tensors["bias"][0])
        except Exception as error:  # safetensors has its own
            raise UserError(
                f"{folder} is no classifier ({str(error).splitlines()[0]}); `jielong corpus classifier train` makes one."
            ) from error
        if weights.shape != (BUCKETS,):
            raise UserError(f"{folder} has {weights.shape} weights, not {BUCKETS}; train it again.")
        return cls(weights, bias, facts)


def _sigmoid(z: Any) -> Any:
    return 0.5 * (1 + np.tanh(0.5 * z))


def train(texts: list[str], good: np.ndarray, config: ClassifierConfig) -> Classifier:
    """Logistic regression by AdaGrad (Duchi et al. 2011) over the texts; `good` (n,) holds 0 and 1.

    Both classes weigh the same whatever their sizes.
    """
    rows = [features(text) for text in texts]
    share = float(good.mean())
    weight = np.where(good == 1, 0.5 / share, 0.5 / (1 - share))
    w, g2 = np.zeros(BUCKETS, dtype=np.float32), np.full(BUCKETS, 1e-8, dtype=np.float32)
    bias, bias_g2 = 0.0, 1e-8
    rng = np.random.default_rng(config.seed)
    for _ in range(config.epochs):
        order = rng.permutation(len(rows))
        for at in range(0, len(order), ROWS):
            part = [n for n in order[at : at + ROWS] if len(rows[n])]
            if not part:
                continue
            index = np.concatenate([rows[n] for n in part])
            scale = np.repeat([1 / np.sqrt(len(rows[n])) for n in part], [len(rows[n]) for n in part])
            document = np.repeat(np.arange(len(part)), [len(rows[n]) for n in part])
            z = np.bincount(document, w[index] * scale, minlength=len(part)) + bias
            error = (_sigmoid(z) - good[part]) * weight[part] / len(part)  # (documents,) d loss / d z
            touched, inverse = np.unique(index, return_inverse=True)
            gradient = np.bincount(inverse, error[document] * scale) + config.decay * w[touched]
            g2[touched] += gradient**2
            w[touched] -= config.rate * gradient / np.sqrt(g2[touched])
            bias_g2 += float(error.sum()) ** 2
            bias -= config.rate * float(error.sum()) / float(np.sqrt(bias_g2))
    return Classifier(w, bias, {})


def auc(scores: np.ndarray, good: np.ndarray) -> float:
    """Probability that a good text scores higher than a bad one, ties counting half (Mann and Whitney 1947)."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # mean rank of each value, from 1
    positive, negative = int((good == 1).sum()), int((good == 0).sum())
    return float((ranks[good == 1].sum() - positive * (positive + 1) / 2) / (positive * negative))


def measure(classifier: Classifier, texts: list[str], good: np.ndarray) -> dict[str, Any]:
    """AUC with its 95 % interval (Hanley and McNeil 1982), and precision and recall at 0.5."""
    scores = np.array([classifier.score(t) for t in texts])
    a, n1, n0 = auc(scores, good), int((good == 1).sum()), int((good == 0).sum())
    q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
    error = np.sqrt(max(0.0, a * (1 - a) + (n1 - 1) * (q1 - a * a) + (n0 - 1) * (q2 - a * a)) / (n1 * n0))
    kept = scores >= 0.5
    right = int((kept & (good == 1)).sum())
    return {
        "auc": round(a, 4),
        "interval": [round(float(max(0.0, a - 1.96 * error)), 4), round(float(min(1.0, a + 1.96 * error)), 4)],
        "precision": round(right / max(1, int(kept.sum())), 4),
        "recall": round(right / n1, 4),
        "good": n1,
        "bad": n0,
    }


def read_texts(paths: tuple[Path, ...], most: int) -> list[str]:
    """Normalised documents of files and folders; of more than `most` those with the smallest hashes. Raises UserError."""
    skipped: Counter[str] = Counter()
    found = {normalise(main_text(raw.text) if raw.html else raw.text) for raw in read_paths(paths, skipped)}
    return sorted((t for t in found if t), key=_hash)[:most]


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "replace")).digest()


def examples(config: ClassifierConfig) -> tuple[list[str], np.ndarray]:
    """The good and the bad texts together, in an order that follows neither. Raises UserError without either."""
    good, bad = (read_texts(tuple(paths), config.most) for paths in (config.good, config.bad))
    if len(good) < 2 or len(bad) < 2:
        raise UserError("A classifier needs at least two --good and two --bad documents.")
    both = sorted([(t, 1) for t in good] + [(t, 0) for t in bad], key=lambda row: _hash(row[0]))
    return [t for t, _ in both], np.array([label for _, label in both])


def run(config: ClassifierConfig, say: Callable[[str], None] = print) -> dict[str, Any]:
    """`train` writes a classifier, measured on a fifth of the documents that it did not see; `evaluate` measures one.

    Raises UserError.
    """
    texts, good = examples(config)
    if config.action == "evaluate":
        found = measure(Classifier.load(config.classifier), texts, good)
    else:
        held = np.array([_hash("held" + t)[0] < 256 // 5 for t in texts])
        if min(np.bincount(good[held], minlength=2)) < 1 or min(np.bincount(good[~held], minlength=2)) < 1:
            raise UserError("There are too few documents to keep a fifth of them for measuring; give more.")
        classifier = train(list(_where(texts, ~held)), good[~held], config)
        found = measure(classifier, list(_where(texts, held)), good[held])
        classifier.facts = {"trained_on": int((~held).sum()), "held_out": found, "config": _plain(config)}
        classifier.save(config.classifier)
        say(f"{config.classifier}: trained on {int((~held).sum()):,} documents")
    low, high = found["interval"]
    say(f"AUC {found['auc']:.4f} ({low:.4f}–{high:.4f}) on {found['good']:,} good and {found['bad']:,} bad documents")
    say(f"at score 0.5: precision {found['precision']:.4f}, recall {found['recall']:.4f}")
    return found


def _where(texts: list[str], mask: np.ndarray) -> Iterator[str]:
    return (t for t, chosen in zip(texts, mask, strict=True) if chosen)


def _plain(config: ClassifierConfig) -> dict[str, Any]:
    return {
        k: [str(p) for p in v] if isinstance(v, tuple) else str(v) if isinstance(v, Path) else v
        for k, v in asdict(config).items()
    }
