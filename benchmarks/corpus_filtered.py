"""Does filtering pay? Two small models, as many tokens each: one learns from a raw mixture, one from what `jielong corpus
build` leaves of it. Bits per byte on clean documents that neither has seen.

    python benchmarks/corpus_filtered.py --data PATH --mails PATH --api PATH --work FOLDER [--seeds 3] [--classifier]

PATHs as in corpus_quality.py. FOLDER keeps the mixture, the corpora and the models; the same command continues.

The raw mixture, in shares of the estimated tokens, was chosen once, before the first training: 30 % clean and different
documents, 20 % copies (half of them edited a little) of clean and other documents alike, 13 % other languages and scripts,
37 % web pages with their menus, mails, API strings, machine-translated manuals and pages of bad words. Published funnels lose
more: RefinedWeb (Penedo et al. 2023) keeps about a tenth of the documents, of which language takes half; FineWeb (Penedo et
al. 2024) keeps 15 of the 36 trillion tokens that language and Gopher's rules have left, 16 of them lost to copies. Web
pages come as their whole text in both arms, as WET files have it; whoever trained on HTML would lose more. The
tokenizer learns from half of each arm. Documents that share 13 words or 20 Chinese characters with a held-out one are in
neither.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import math
import random
import re
import shutil
import statistics
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from corpus_quality import api, edited, human, mails, pieces, rows, squad

from jielong import pretrain
from jielong.config import ClassifierConfig, CorpusBuildConfig, ModelConfig, PretrainConfig, TokenizerConfig
from jielong.corpus import classifier
from jielong.corpus.build import run as build
from jielong.corpus.build.funnel import measure
from jielong.corpus.decontaminate import ExamIndex
from jielong.corpus.documents import Document, read_documents, record_id, write_documents
from jielong.corpus.extract import normalise
from jielong.evaluate.bpb import bits_per_byte
from jielong.model.gpt import load_model
from jielong.run import Run
from jielong.tokens import tokenizer as tokens
from jielong.tokens.tokenizer import Tokenizer

SIZE = 5_500_000  # estimated tokens of the raw mixture
SHARES = {
    "textbooks": 9, "encyclopedia": 1, "stories": 8, "novels zh": 5, "laws zh": 3, "encyclopedia zh": 2, "manuals zh": 2,
    "copies": 20,
    "simplified": 10, "other languages": 3,
    "web pages": 7, "mails": 12, "API strings": 10, "machine-translated zh": 6, "bad words": 2,
}  # fmt: skip
CLEAN = tuple(SHARES)[:7]
HELD_OUT = 150  # documents per kind
T95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36}  # Student's t, two-sided, by the number of seeds


def wikitext(path: Path) -> list[str]:
    """Articles without the tokenizer's marks; sentences with unknown words are left out."""
    text = gzip.decompress(path.read_bytes()).decode()
    articles = []
    for article in re.split(r"\n = [^=\n]+ = \n", text):
        paragraphs = [" . ".join(s for s in p.strip().split(" . ") if "<unk>" not in s) for p in article.split("\n")]
        whole = "\n".join(p for p in paragraphs if len(p) > 200)
        whole = re.sub(r" @(.)@ ", r"\1", whole)
        whole = re.sub(r" ([,.;:!?)\]%]|'s|n't)", r"\1", re.sub(r"([(\[$]) ", r"\1", whole))
        articles.append(re.sub(r"\" ([^\"]*?) \"", r'"\1"', whole))
    return [a for a in articles if a]


def stories(data: Path) -> list[str]:
    tales = [
        r["response"]
        for r in rows(data / "synthetic-en-stories-tasks/train.jsonl.gz")
        if r["category"] in ("generated-child", "generated-bedtime")
    ]
    return [r["text"] for r in rows(data / "children-stories-en/stories.jsonl.gz")] + tales


def encyclopedia_zh(data: Path, held: bool) -> list[str]:
    """DRCD's paragraphs, whole articles on one side."""
    with gzip.open(data / "drcd/DRCD_dev.json.gz", "rt", encoding="utf-8") as f:
        articles = json.load(f)["data"]
    chosen = [a for a in articles if (int(record_id(a["title"])[:4], 16) % 3 == 0) == held]
    return [p["context"] for a in chosen for p in a["paragraphs"]]


def passages(data: Path) -> list[str]:
    """Python's manual, translated by people: the passages of a file, twelve to a document."""
    files = defaultdict(list)
    for row in rows(data / "python-docs-zh-tw/pairs.jsonl.gz"):
        files[row["file"]].append(row["zh"])
    return ["\n".join(texts[at : at + 12]) for texts in files.values() for at in range(0, len(texts), 12)]


def web_pages(path: Path) -> list[str]:
    """All the text of real pages, menus and notices included, cut like the rest."""
    import lxml.html

    found = []
    with tarfile.open(path) as tar:
        for member in sorted(tar.getnames()):
            if member.endswith(".html.gz"):
                file = tar.extractfile(member)
                assert file is not None
                page = lxml.html.parse(
                    io.BytesIO(gzip.decompress(file.read())), lxml.html.HTMLParser(encoding="utf-8")
                ).getroot()
                for node in page.xpath("//script|//style|//noscript|//template"):
                    node.drop_tree()
                text = normalise("\n".join(line.strip() for line in page.itertext() if line.strip()))
                found += [text[at : at + 2500] for at in range(0, len(text), 2500)]
    return found


def bad_words(data: Path, clean: list[str], rng: random.Random) -> list[str]:
    words = [w for lang in ("en", "zh") for w in _list(data, lang)]
    return [" ".join(rng.sample(words, 25)) + "\n" + t[:200] for t in clean]


def _list(data: Path, lang: str) -> list[str]:
    return [w for w in gzip.decompress((data / f"ldnoobw/{lang}.txt.gz").read_bytes()).decode().split("\n") if w]


def simplified(data: Path) -> list[str]:
    from opencc import OpenCC

    convert = OpenCC("t2s").convert
    return squad(data / "cmrc2018/cmrc2018_dev.json.gz") + [
        convert(t) for t in pieces(data / "gutenberg-zh/train.jsonl.gz", 4500)[3000:]
    ]


def held_out(data: Path) -> dict[str, list[str]]:
    """Clean documents by kind, short enough to be read whole."""
    kinds = {
        "en textbooks": [t[:1000] for t in pieces(data / "openstax-en/valid.jsonl.gz", HELD_OUT)],
        "en encyclopedia": [t for a in wikitext(data / "wikitext-valid-test/wiki.test.tokens.txt.gz") for t in a.split("\n")],
        "zh novels": [t[:300] for t in pieces(data / "gutenberg-zh/valid.jsonl.gz", HELD_OUT)],
        "zh laws": [t[:300] for t in pieces(data / "twlaw/zh_valid.jsonl.gz", HELD_OUT)],
        "zh encyclopedia": [t[:300] for t in encyclopedia_zh(data, True)],
    }  # fmt: skip
    return {kind: sorted(texts, key=record_id)[:HELD_OUT] for kind, texts in kinds.items()}


def raw_mixture(data: Path, mail: Path, wheel: Path, held: Iterable[str]) -> list[tuple[str, str]]:
    """(kind, text) of all documents, in no order; the shares are those of SHARES."""
    rng = random.Random(11)
    clean = pieces(data / "openstax-en/train.jsonl.gz", 6000)
    texts = {
        "textbooks": clean[:5000],
        "encyclopedia": [a[at : at + 2500] for a in wikitext(data / "wikitext-valid-test/wiki.valid.tokens.txt.gz") for at in range(0, len(a), 2500)],
        "stories": stories(data),
        "novels zh": pieces(data / "gutenberg-zh/train.jsonl.gz", 4500)[:3000],
        "laws zh": pieces(data / "twlaw/zh_train.jsonl.gz", 1500),
        "encyclopedia zh": encyclopedia_zh(data, False),
        "manuals zh": passages(data) + pieces(data / "techdocs-zh-tw/docs.jsonl.gz", 800, human),
        "simplified": simplified(data),
        "other languages": [t for lang in ("es", "de", "vi", "ar") for t in squad(data / f"xquad/xquad.{lang}.json.gz")],
        "web pages": web_pages(data / "web-extract/article-extraction-benchmark.tar"),
        "mails": mails(mail, 6000),
        "API strings": api(wheel, 3000),
        "machine-translated zh": pieces(data / "techdocs-zh-tw/docs.jsonl.gz", 2000, lambda row: not human(row)),
        "bad words": bad_words(data, clean[5000:] * 2, rng),
    }  # fmt: skip
    exam = ExamIndex.of(held)
    chosen: list[tuple[str, str]] = []
    for kind, found in texts.items():
        rng.shuffle(found)
        chosen += [(kind, t) for t in _until(found, SIZE * SHARES[kind] / 100, exam, kind)]
    copies: list[tuple[str, str]] = []
    size = 0.0
    while size < SIZE * SHARES["copies"] / 100:
        _, text = rng.choice(chosen)
        for _ in range(min(50, int(rng.paretovariate(1.2)))):  # few documents have many copies
            copy = edited(text, rng, rng.choice([0.002, 0.01, 0.02])) if rng.random() < 0.5 else text
            copies.append(("copies", copy))
            size += measure(copy)[3]
    chosen += copies
    rng.shuffle(chosen)
    return chosen


def _until(texts: list[str], size: float, exam: ExamIndex, kind: str) -> Iterator[str]:
    left = size
    for text in texts:
        if left <= 0:
            return
        if not exam.contains(text):
            left -= measure(text)[3]
            yield text
    print(f"{kind}: {left:,.0f} of {size:,.0f} tokens are wanting")


def examples(data: Path, mail: Path, wheel: Path, mixture: list[tuple[str, str]], folder: Path) -> None:
    """A classifier from 300 documents of each of four kinds that are not in the mixture."""
    used = {t for _, t in mixture}
    good = [
        pieces(data / "openstax-en/train.jsonl.gz", 9000)[6000:],
        pieces(data / "gutenberg-zh/train.jsonl.gz", 5000)[4500:],
    ]
    bad = [mails(mail, 6000), api(wheel, 6000)[3000:]]
    fresh = [[t for t in texts if t not in used][:300] for texts in (*good, *bad)]
    texts = [t for part in fresh for t in part]
    labels = np.array([int(n < 2) for n, part in enumerate(fresh) for _ in part])
    classifier.train(texts, labels, ClassifierConfig("train", folder)).save(folder)


def prepare(args: argparse.Namespace) -> tuple[dict[str, Path], dict[str, list[str]]]:
    """The runs of all arms, each with corpus and tokenizer, and the held-out documents."""
    work: Path = args.work
    held = held_out(args.data)
    mixture_file = work / "mixture.jsonl"
    if not mixture_file.exists():
        work.mkdir(parents=True, exist_ok=True)
        made = raw_mixture(args.data, args.mails, args.api, [t for texts in held.values() for t in texts])
        beside = mixture_file.with_suffix(".partial")
        beside.write_text(
            "".join(json.dumps({"kind": k, "text": t}, ensure_ascii=False) + "\n" for k, t in made), encoding="utf-8"
        )
        beside.rename(mixture_file)
    mixture = [(r["kind"], r["text"]) for r in map(json.loads, mixture_file.read_text(encoding="utf-8").splitlines())]
    arms = {"raw": work / "raw", "filtered": work / "filtered"}
    if Run(arms["raw"]).artifact("corpus") is None:
        with Run(arms["raw"]).build("corpus", kind="corpus", config=CorpusBuildConfig(mixture_file), seed=1) as made:
            write_documents(
                made.path / "train.parquet",
                [Document(record_id(f"{n} {t}"), t, "mixed", k) for n, (k, t) in enumerate(mixture)],
            )
            write_documents(made.path / "heldout.parquet", [])
    words = work / "words.txt"
    words.write_text("\n".join([*_list(args.data, "en"), *_list(args.data, "zh")]), encoding="utf-8")
    _build(work / "recipe.toml", "", arms["filtered"])
    if args.classifier:
        arms["classifier"] = work / "classifier"
        if not (work / "quality").exists():
            examples(args.data, args.mails, args.api, mixture, work / "quality")
        _build(work / "classifier.toml", '[classifier]\npath = "quality"\n', arms["classifier"])
    for name, path in arms.items():
        if name != "raw":
            funnel(mixture, path)
    if Run(arms["raw"]).artifact("tokenizer") is None:
        halves = [[d.text for d in read_documents(arms[n] / "corpus/train.parquet")] for n in ("raw", "filtered")]
        texts = [t for half in halves for t in tokens.sample(half, 3_000_000)]
        with Run(arms["raw"]).build("tokenizer", kind="tokenizer", config=TokenizerConfig(), seed=1) as made:
            tokens.train(texts, TokenizerConfig().vocab_size).rust.save(str(made.path / "tokenizer.json"))
    for path in arms.values():
        if Run(path).artifact("tokenizer") is None:
            shutil.copytree(arms["raw"] / "tokenizer", path / "tokenizer")
    return arms, held


def _build(recipe: Path, more: str, run: Path) -> None:
    """`jielong corpus build` with its defaults and the list of bad words."""
    recipe.write_text(
        f'heldout = 0.0\n[lists]\nwords = "words.txt"\n{more}[[source]]\nname = "mixture"\npath = "mixture.jsonl"\n',
        encoding="utf-8",
    )
    if Run(run).artifact("corpus") is None:
        build(CorpusBuildConfig(recipe, workers=1, run=run), Run(run))


def funnel(mixture: list[tuple[str, str]], run: Path) -> None:
    """How much of each kind was kept: by the id of what was read."""
    kept = {d.id for d in read_documents(run / "corpus/train.parquet")}
    have, left = Counter(), Counter()
    for kind, text in mixture:
        size = measure(text)[3]
        have[kind] += size
        if (key := record_id(text)) in kept:
            left[kind] += size
            kept.discard(key)  # of equal documents one
    total, rest = sum(have.values()), sum(left.values())
    print(f"{run.name}: {rest / 1e6:.2f} of {total / 1e6:.2f} million estimated tokens kept ({rest / total:.1%})")
    print(
        "  "
        + ", ".join(
            f"{kind} {have[kind] / total:.1%} → {left[kind] / rest:.1%} ({left[kind] / have[kind]:.0%} kept)"
            for kind in SHARES
        )
    )


def training(args: argparse.Namespace, seed: int) -> PretrainConfig:
    heads = args.width // 64
    model = ModelConfig(
        context=256, layers=args.layers, width=args.width, heads=heads, kv_heads=heads, mlp_width=3 * args.width
    )
    return PretrainConfig(model, steps=args.steps, rows=args.rows, length=256, threads=1, sample_every=1.0, seed=seed)


def scores(run: Path, config: PretrainConfig, held: dict[str, list[str]]) -> dict[str, float]:
    """Bits per byte of each kind, after the product's pretraining; a finished one is not done again."""
    name = f"base-{config.model.layers}x{config.model.width}-{config.steps}x{config.rows}-{config.seed}"
    file = run / f"{name}.json"
    if not file.exists():
        artifact = Run(run).artifact(name) or pretrain.run(config, Run(run), name=name)
        model, tokenizer = load_model(artifact.path), Tokenizer.load(artifact.path / "tokenizer.json")
        documents = [Document(record_id(t), t, kind, "") for kind, texts in held.items() for t in texts]
        file.write_text(json.dumps(bits_per_byte(model, tokenizer, documents)))
    return json.loads(file.read_text())


def report(table: dict[str, list[dict[str, float]]]) -> None:
    """Paired by seed: how much lower than raw, with Student's interval over the seeds."""
    for arm in (a for a in table if a != "raw"):
        pairs = list(zip(table["raw"], table[arm]))
        if len(pairs) < 2:
            continue
        kinds = sorted(pairs[0][0])
        groups: dict[str, list[str]] = {k: [k] for k in kinds} | {
            "en": [k for k in kinds if k.startswith("en")], "zh": [k for k in kinds if k.startswith("zh")], "all": kinds
        }  # fmt: skip
        print(f"{arm} against raw, {len(pairs)} seeds, bits per byte (mean of the kinds; 95 %):")
        for name, members in groups.items():
            a, b = ([statistics.mean(row[k] for k in members) for row in side] for side in zip(*pairs))
            gain = [100 * (1 - y / x) for x, y in zip(a, b)]
            half = T95[len(gain)] * statistics.stdev(gain) / math.sqrt(len(gain))
            mean = statistics.mean(gain)
            print(
                f"  {name:16} {statistics.mean(a):.4f} → {statistics.mean(b):.4f}: {mean:.2f} % lower ({mean - half:.2f} to {mean + half:.2f})"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "mails", "api", "work"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    for name, value in (("layers", 4), ("width", 256), ("steps", 400), ("rows", 16)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--classifier", action="store_true", help="a third arm: the recipe with a trained classifier")
    args = parser.parse_args()
    arms, held = prepare(args)
    table: dict[str, list[Any]] = defaultdict(list)
    for seed in range(1, args.seeds + 1):
        for arm, path in arms.items():
            table[arm].append(scores(path, training(args, seed), held))
            print(f"{arm}, seed {seed}: {table[arm][-1]}", flush=True)
    report(table)


if __name__ == "__main__":
    main()
