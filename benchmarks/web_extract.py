"""Main-text extraction on scrapinghub/article-extraction-benchmark: F1 of 4-gram shingles, its own metric.

Per page: true positives, false positives and false negatives of the multiset of 4-grams of words, each divided by
their sum; precision and recall are means over the pages (those with an answer, those with a truth).

    python benchmarks/web_extract.py PATH   # the folder with ground-truth.json and html/
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import time
from collections import Counter
from pathlib import Path

from jielong.corpus.extract import main_text


def shingles(text: str, n: int = 4) -> Counter[tuple[str, ...]]:
    words = re.findall(r"\w+", text, re.UNICODE)
    return Counter(tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))) if words else Counter()


def counts(truth: str, answer: str) -> tuple[float, float, float]:
    a, b = shingles(truth), shingles(answer)
    tp = sum((a & b).values())
    fp, fn = sum((b - a).values()), sum((a - b).values())
    total = tp + fp + fn
    return (tp / total, fp / total, fn / total) if total else (0.0, 0.0, 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    folder = parser.parse_args().path
    truth = json.loads((folder / "ground-truth.json").read_text(encoding="utf-8"))
    rows = []
    started = time.perf_counter()
    for name, page in sorted(truth.items()):
        html = gzip.decompress((folder / "html" / f"{name}.html.gz").read_bytes()).decode("utf-8", "replace")
        rows.append(counts(page["articleBody"], main_text(html)))
    seconds = time.perf_counter() - started
    precisions = [tp / (tp + fp) for tp, fp, _ in rows if tp + fp > 0]
    recalls = [tp / (tp + fn) for tp, _, fn in rows if tp + fn > 0]
    precision, recall = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    f1 = 2 * precision * recall / (precision + recall)
    print(f"{len(rows)} pages in {seconds:.1f} s: precision {precision:.3f}, recall {recall:.3f}, F1 {f1:.3f}")


if __name__ == "__main__":
    main()
