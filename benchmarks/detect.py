"""The card of `jielong detect`: how often it is right, and how often it accuses people, in figures.

    python benchmarks/detect.py --part pairs --run runs/smollm2 --data PATH/fastdetect_glimpse_pairs.jsonl.gz
    python benchmarks/detect.py --part own --run runs/spark --model base --observer runs/smollm2 --data … --zh DRCD_dev.json.gz
    python benchmarks/detect.py --part watermark --run runs/spark --model base
    python benchmarks/detect.py --part speed --run runs/spark --model base

Humans are split by document (their first 60 letters): one half is the reference, whose conformal p-values decide; the other
half and the machines are judged. Variants of one human document never stand in both halves. Every rate has a Wilson
interval. Paraphrase is not measured: it needs a model that paraphrases, and none is at hand offline.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from jielong.detect.normalise import normalise
from jielong.detect.reference import LENGTHS, compared, distinct
from jielong.detect.scores import SCORES
from jielong.detect.tokenstats import WINDOW, TokenStats, beginning, cut, read, same_vocabulary
from jielong.detect.watermark.key import Key, fingerprint
from jielong.detect.watermark.scheme import SCHEMES, examine, marked
from jielong.evaluate.qa import wilson
from jielong.evaluate.statistics import auc
from jielong.generate.engine import Engine
from jielong.generate.sampling import Sampling
from jielong.run import Run

Scores = dict[str, np.ndarray]


def engine_of(run: str, model: str, threads: int) -> Engine:
    folder = Run(run)
    return Engine.load(folder.need(model or folder.serving()).path, threads, precision="auto", rows=32)


def scored(engine: Engine, texts: Sequence[str], length: int, observer: Engine | None) -> tuple[Scores, np.ndarray]:
    """Every statistic of the first `length` tokens of the texts that have them, and the places of these texts."""
    clean = [normalise(t).text for t in texts]
    ids = [i[:length] for i in engine.tokenizer.encode_batch(clean)]
    long = [n for n, i in enumerate(ids) if len(i) == length]
    both = observer if observer and same_vocabulary(engine.tokenizer, observer.tokenizer) else None
    found: list[TokenStats] = read(engine, [ids[n] for n in long], both)
    if observer:
        found = compared(engine, found, observer, [clean[n] for n in long])
    names = [s for s in SCORES.values() if not s.needs or (both if s.needs == "cross" else observer)]
    return {s.name: np.array([s.of(x) for x in found]) for s in names}, np.array(long, dtype=int)


def p_values(human: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Conformal, as in detect.reference."""
    return (1 + len(human) - np.searchsorted(np.sort(human), scores, side="left")) / (len(human) + 1)


def rate(hits: np.ndarray) -> str:
    low, high = wilson(int(hits.sum()), len(hits))
    return f"{hits.mean():.3f} ({low:.3f}–{high:.3f})" if len(hits) else "–"


def row(name: str, null: np.ndarray, human: np.ndarray, machine: np.ndarray) -> str:
    """AUROC; TPR and FPR at the promised 5 % and 1 %."""
    area = auc(np.concatenate([machine, human]), np.repeat([1, 0], [len(machine), len(human)]))
    cells = [f"{name:34} n={len(machine):4} AUROC {area:.3f}"]
    for alpha in (0.05, 0.01):
        if (len(null) + 1) * alpha >= 1:
            tpr, fpr = p_values(null, machine) <= alpha, p_values(null, human) <= alpha
            cells.append(f"at {alpha:.0%}: TPR {rate(tpr)} FPR {rate(fpr)}")
    return "  ".join(cells)


def deletion(rng: random.Random, text: str) -> str:
    """20 % of the words (Chinese: characters) are gone."""
    space = " " if " " in text.strip() else ""
    return space.join(w for w in (text.split() if space else text) if rng.random() > 0.2)


def noise(rng: random.Random, text: str) -> str:
    """3 % of the characters are another letter, doubled or gone."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    return "".join(c if rng.random() > 0.03 else rng.choice((rng.choice(letters), c + c, "")) for c in text)


def alike(rng: random.Random, text: str) -> str:
    """Half of the letters that have Cyrillic doubles are these; invisible characters between words."""
    table = dict(zip("aeopcyx", "аеорсух", strict=True))
    changed = "".join(table.get(c, c) if rng.random() < 0.5 else c for c in text)
    return changed.replace(" ", " \u200b")


ATTACKS: dict[str, Callable[[random.Random, str], str]] = {
    "20 % of the words deleted": deletion, "3 % character noise": noise, "look-alikes, invisible characters": alike,
}  # fmt: skip


def key_of(text: str) -> str:
    return "".join(c for c in text[:300] if c.isalnum())[:60].casefold()


def pairs(args: argparse.Namespace) -> None:
    """The real set: machines of many kinds, black box."""
    with gzip.open(args.data, "rt") as f:
        rows = [r for r in map(json.loads, f) if r["lang"] == args.lang]
    engine = engine_of(args.run, args.model, args.threads)
    observer = engine_of(args.observer, "", args.threads) if args.observer else None
    rng = random.Random(args.seed)
    documents = sorted({key_of(r["human"]) for r in rows})
    rng.shuffle(documents)
    null_keys = set(documents[: len(documents) // 2])
    longest = {}
    for r in rows:
        if len(r["human"]) > len(longest.get(key_of(r["human"]), ("", ""))[1]):
            longest[key_of(r["human"])] = (r["domain"], r["human"])
    nulls = [longest[k] for k in documents if k in null_keys][: args.humans]
    others = [longest[k] for k in documents if k not in null_keys][: args.humans]
    groups: dict[str, list[dict]] = {}
    for r in rows:
        if key_of(r["human"]) not in null_keys:
            groups.setdefault(r["generator"], []).append(r)
    picked = {g: rng.sample(rs, min(args.most, len(rs))) for g, rs in sorted(groups.items())}
    machines = [(g, r["domain"], r["machine"]) for g, rs in picked.items() for r in rs]
    print(
        f"{engine.name} of {args.run}, {args.lang}: {len(nulls)} human documents as null, {len(others)} judged, {len(machines)} machine texts"
    )
    for length in args.lengths:
        null, _ = scored(engine, [t for _, t in nulls], length, observer)
        human, human_at = scored(engine, [t for _, t in others], length, observer)
        machine, machine_at = scored(engine, [t for *_, t in machines], length, observer)
        print(f"\n## {length} tokens: null n={len(null['likelihood'])}, humans n={len(human_at)}")
        for method in null:
            print(row(method, null[method], human[method], machine[method]))
        best = args.method
        names = np.array([machines[i][0] for i in machine_at])
        for name in sorted(set(names)):
            print("  ", row(f"{best}, {name}", null[best], human[best], machine[best][names == name]))
        domains = np.array([others[i][0] for i in human_at])
        for name in sorted(set(domains)):
            own = p_values(null[best], human[best][domains == name])
            print(
                f"   {best}, FPR on human {name:10} n={len(own):4} at 5 %: {rate(own <= 0.05)}  at 1 %: {rate(own <= 0.01)}"
            )
    length = args.lengths[0]
    null, _ = scored(engine, [t for _, t in nulls], length, observer)
    human, _ = scored(engine, [t for _, t in others], length, observer)
    some = rng.sample(machines, min(args.attacked, len(machines)))
    for name, attack in {"as they are": lambda _, t: t, **ATTACKS}.items():
        changed, _ = scored(engine, [attack(rng, t) for *_, t in some], length, observer)
        print(row(f"{args.method}, {name}", null[args.method], human[args.method], changed[args.method]))


def own(args: argparse.Namespace) -> None:
    """White box: what the model itself writes at temperature 1, unmarked, as text."""
    engine = engine_of(args.run, args.model, args.threads)
    observer = engine_of(args.observer, "", args.threads) if args.observer else None
    with gzip.open(args.data, "rt") as f:
        humans = distinct([r["human"] for r in map(json.loads, f) if r["lang"] == "en"])
    if args.lang == "zh":
        with gzip.open(args.zh, "rt") as f:
            humans = distinct([p["context"] for d in json.load(f)["data"] for p in d["paragraphs"]])
    rng = random.Random(args.seed)
    rng.shuffle(humans)
    humans = humans[: args.humans]
    length = args.lengths[0]
    texts = samples(engine, args.most, length, humans if args.prompted else [], rng)
    half = len(humans) // 2
    null, _ = scored(engine, humans[:half], length, observer)
    human, _ = scored(engine, humans[half:], length, observer)
    machine, _ = scored(engine, texts, length, observer)
    print(
        f"{engine.name} of {args.run}, {args.lang}: {length} tokens, null n={len(null['likelihood'])}, humans n={len(human['likelihood'])}"
    )
    for method in null:
        print(row(method, null[method], human[method], machine[method]))
    best = args.method
    for name, attack in ATTACKS.items():
        changed, _ = scored(engine, [attack(rng, t) for t in texts], length, observer)
        print(row(f"{best}, {name}", null[best], human[best], changed[best]))


def samples(engine: Engine, count: int, length: int, humans: Sequence[str], rng: random.Random) -> list[str]:
    """Texts of at least `length` tokens when they are read again. humans: their first words are the prompts, which are not
    part of the text."""
    kept: list[str] = []
    before = beginning(engine.tokenizer)
    for _ in range(40):
        prompts = [
            [before, *engine.tokenizer.encode(first_words(rng.choice(humans)) if humans else "")] for _ in range(32)
        ]
        for r in engine.generate(prompts, Sampling(temperature=1.0, max_tokens=length + 30, ignore_end=not humans)):
            text = engine.tokenizer.decode(i for i in r.answer if i not in engine.tokenizer.ends)
            if len(engine.tokenizer.encode(normalise(text).text)) >= length:
                kept.append(text)
        if len(kept) >= count:
            break
    return kept[:count]


def first_words(text: str) -> str:
    return " ".join(text.split()[:8]) if " " in text[:40] else text[:10]


def watermark(args: argparse.Namespace) -> None:
    """Marked answers of `length` tokens, as text read again; texts of other keys; edited ones."""
    engine = engine_of(args.run, args.model, args.threads)
    vocabulary, rng = fingerprint(engine.tokenizer), random.Random(args.seed)
    before = beginning(engine.tokenizer)
    for scheme in SCHEMES:
        key, other = (Key(scheme, f"wm-{n}", rng.randbytes(32).hex(), vocabulary) for n in range(2))
        for length in args.lengths:
            sampling = marked(key, Sampling(temperature=1.0, max_tokens=length, ignore_end=True))
            texts = [engine.tokenizer.decode(r.answer) for r in engine.generate([[before]] * args.most, sampling)]
            results: dict[str, list[float | None]] = {
                "with the key": [examine(key, engine.tokenizer, normalise(t)).p for t in texts],
                "with another key": [examine(other, engine.tokenizer, normalise(t)).p for t in texts],
            }
            for name, attack in ATTACKS.items():
                results[name] = [examine(key, engine.tokenizer, normalise(attack(rng, t))).p for t in texts]
            for name, found in results.items():
                p = np.array([1.0 if v is None else v for v in found])
                print(
                    f"{scheme:9} {length:4} tokens, {name:34} p ≤ 1e-3: {rate(p <= 1e-3)}  p ≤ 0.01: {rate(p <= 0.01)}  median {np.median(p):.1e}"
                )


def speed(args: argparse.Namespace) -> None:
    """Documents of 300 tokens: all statistics against one bare forward pass of the same windows, in turns."""
    engine = engine_of(args.run, args.model, args.threads)
    rng = random.Random(args.seed)
    ids = [[rng.randrange(300, engine.vocab_size) for _ in range(300)] for _ in range(args.most)]
    longest = min(WINDOW, engine.context)
    windows = sorted((w.ids for n, d in enumerate(ids) for w in cut(n, d, longest)), key=len)
    before, runtime = beginning(engine.tokenizer), engine.runtime

    def bare() -> None:
        left = windows
        while left:
            count = max(1, 2048 // len(left[-1]))
            left, batch = left[:-count], left[-count:]
            hidden = runtime.forward([[before, *w[:-1]] for w in batch], [0] * len(batch), runtime.cache())
            for at in range(0, len(hidden), 64):
                runtime.logits(hidden[at : at + 64])

    def full() -> None:
        for stats in read(engine, ids):
            for s in SCORES.values():
                if not s.needs:
                    s.of(stats)

    times: dict[str, list[float]] = {"bare": [], "full": []}
    work: dict[str, list[float]] = {"bare": [], "full": []}  # processor time, which others on the machine do not add to
    for _ in range(args.rounds):
        for name, job in (("bare", bare), ("full", full)):
            started, worked = time.perf_counter(), time.process_time()
            job()
            times[name].append(time.perf_counter() - started)
            work[name].append(time.process_time() - worked)
    ratio = statistics.median(f / b for f, b in zip(work["full"], work["bare"], strict=True))
    print(
        f"{engine.name} of {args.run}, {runtime.precision}, {torch.get_num_threads()} threads, LENGTHS up to {LENGTHS[-1]}: "
        f"{len(ids) / statistics.median(times['full']):.1f} documents of 300 tokens per second, "
        f"{len(ids) / statistics.median(work['full']):.1f} per second of processor time, of which a bare forward pass would take "
        f"1/{ratio:.2f} (median of {args.rounds} rounds)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("pairs", "own", "watermark", "speed"), required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--model", default="", help="artifact; by default the one that the run serves")
    parser.add_argument("--observer", default="", help="another run, for likelihood-ratio and binoculars")
    parser.add_argument("--data", help="pairs of human and machine texts, JSONL")
    parser.add_argument("--zh", help="human Chinese paragraphs (DRCD)")
    parser.add_argument("--lang", default="en", choices=("en", "zh"))
    parser.add_argument("--method", default="fast-detect")
    parser.add_argument("--lengths", type=int, nargs="+", default=[150])
    parser.add_argument("--most", type=int, default=100, help="machine texts of each kind")
    parser.add_argument("--humans", type=int, default=400, help="own: in all; pairs: in each half")
    parser.add_argument("--attacked", type=int, default=200, help="pairs: machine texts that are edited")
    parser.add_argument("--prompted", action="store_true", help="own: begin with the first words of human texts")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    {"pairs": pairs, "own": own, "watermark": watermark, "speed": speed}[args.part](args)


if __name__ == "__main__":
    main()
