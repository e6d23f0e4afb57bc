"""The card of `jielong detect`: how often it is right, and how often it accuses people, in figures.

    python benchmarks/detect.py --part pairs --run runs/smollm2 --data PATH/fastdetect_glimpse_pairs.jsonl.gz --paraphraser runs/smollm2
    python benchmarks/detect.py --part own --run runs/spark --model base --observer runs/smollm2 --data … --zh DRCD_dev.json.gz
    python benchmarks/detect.py --part watermark --run runs/spark --model base --lengths 200
    python benchmarks/detect.py --part speed --run runs/spark --model base

Humans are split by document (their first 60 letters): one half is the reference, whose conformal p-values decide; the other
half and the machines are judged. Variants of one human document never stand in both halves. Every rate has a Wilson
interval. --most, --humans, --attacked and --lengths choose the size; with --work FOLDER what a model has written is kept, so
that an interrupted or changed measurement does not write it again.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from detect_attacks import ATTACKS, rewritten

from jielong.detect.examination import Examination, Tools
from jielong.detect.normalise import normalise
from jielong.detect.reference import LENGTHS, compared, distinct
from jielong.detect.scores import SCORES
from jielong.detect.tilt import Human, Tilt, fit
from jielong.detect.tokenstats import WINDOW, TokenStats, beginning, cut, read, same_vocabulary
from jielong.detect.watermark.key import Key
from jielong.detect.watermark.scheme import SCHEMES, marked
from jielong.evaluate.qa import wilson
from jielong.evaluate.statistics import auc
from jielong.generate.engine import Engine
from jielong.generate.sampling import Sampling
from jielong.run import Run, write_atomic

Scores = dict[str, np.ndarray]


def engine_of(run: str, model: str, threads: int) -> Engine:
    folder = Run(run)
    return Engine.load(folder.need(model or folder.serving()).path, threads, precision="auto", rows=32)


def scored(
    engine: Engine, texts: Sequence[str], length: int, observer: Engine | None, human: Human | None = None
) -> tuple[Scores, np.ndarray]:
    """Every statistic of the first `length` tokens of the texts that have them, and the places of these texts."""
    clean = [normalise(t).text for t in texts]
    ids = [i[:length] for i in engine.tokenizer.encode_batch(clean)]
    long = [n for n, i in enumerate(ids) if len(i) == length]
    both = observer if observer and same_vocabulary(engine.tokenizer, observer.tokenizer) else None
    probes = [] if human is None else [Tilt(human, ids[n]) for n in long]
    found: list[TokenStats] = read(engine, [ids[n] for n in long], both, probes=probes)
    if human is not None:
        found = [replace(s, tilt=s.probed[:, 0]) for s in found if s.probed is not None]
    if observer:
        found = compared(engine, found, observer, [clean[n] for n in long])
    has = {"": True, "cross": both, "outside": observer, "tilt": human is not None}
    names = [s for s in SCORES.values() if has[s.needs]]
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
    first: tuple[Scores, ...] = ()
    for length in args.lengths:
        null, _ = scored(engine, [t for _, t in nulls], length, observer)
        human, human_at = scored(engine, [t for _, t in others], length, observer)
        machine, machine_at = scored(engine, [t for *_, t in machines], length, observer)
        first = first or (null, human)
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
    if not args.attacked:
        return
    some = [t for *_, t in rng.sample(machines, min(args.attacked, len(machines)))]
    name = f"{Path(args.run).name}-pairs-{args.lang}-{args.attacked}-{args.seed}"
    attacked(args, engine, observer, some, *first, name)


def tilt_of(engine: Engine, humans: Sequence[str]) -> Human:
    return fit(engine, engine.tokenizer.encode_batch([normalise(t).text for t in humans]))


def attacked(
    args: argparse.Namespace, engine: Engine, observer: Engine | None, texts: list[str], null: Scores, human: Scores, name: str,
    version: Human | None = None,
) -> None:  # fmt: skip
    """The same texts as they are and after each attack, at the first length."""
    length, best, rng = args.lengths[0], args.method, random.Random(args.seed)
    cases = {"as they are": texts} | {what: [attack(rng, t) for t in texts] for what, attack in ATTACKS.items()}
    if args.paraphraser:
        chat = engine_of(args.paraphraser, "", args.threads)
        cases["said anew, sentence by sentence"] = kept(
            args, f"{name}-rewritten", lambda: rewritten(chat, texts, args.seed)
        )
    print(f"\n## attacks, {length} tokens")
    for what, changed in cases.items():
        print(
            row(f"{best}, {what}", null[best], human[best], scored(engine, changed, length, observer, version)[0][best])
        )


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
    name = f"{Path(args.run).name}-{args.model}-own-{args.lang}-{length}-{args.most}-{'prompted' if args.prompted else 'free'}-{args.seed}"
    texts = kept(args, name, lambda: samples(engine, args.most, length, humans if args.prompted else [], args.seed))
    # for tilt a third is fitted, a third is the null, a third is judged; else there are two halves
    fitted = len(humans) // 3 if args.method == "tilt" else 0
    version = tilt_of(engine, humans[:fitted]) if fitted else None
    half = (fitted + len(humans)) // 2
    null, _ = scored(engine, humans[fitted:half], length, observer, version)
    human, _ = scored(engine, humans[half:], length, observer, version)
    machine, _ = scored(engine, texts, length, observer, version)
    print(
        f"{engine.name} of {args.run}, {args.lang}: {length} tokens, null n={len(null['likelihood'])}, humans n={len(human['likelihood'])}"
    )
    for method in null:
        print(row(method, null[method], human[method], machine[method]))
    if args.attacked:
        attacked(args, engine, observer, texts, null, human, name, version)


def samples(engine: Engine, count: int, length: int, humans: Sequence[str], seed: int) -> list[str]:
    """Texts of at least `length` tokens when they are read again. humans: their first words are the prompts, which are not
    part of the text."""
    kept: list[str] = []
    before, rng = beginning(engine.tokenizer), random.Random(seed)
    sampling = Sampling(temperature=1.0, max_tokens=length + 30, ignore_end=not humans)
    for _ in range(40):
        prompts = [[before, *engine.tokenizer.encode(first_words(rng.choice(humans)) if humans else "")] for _ in range(32)]  # fmt: skip
        for answer in answers(engine, prompts, [replace(sampling, seed=rng.randrange(2**31)) for _ in prompts]):
            text = engine.tokenizer.decode(i for i in answer if i not in engine.tokenizer.ends)
            if len(engine.tokenizer.encode(normalise(text).text)) >= length:
                kept.append(text)
        if len(kept) >= count:
            break
    return kept[:count]


def answers(engine: Engine, prompts: Sequence[list[int]], settings: Sequence[Sampling]) -> list[list[int]]:
    requests = [engine.submit(p, s) for p, s in zip(prompts, settings, strict=True)]
    while engine.step():
        pass
    return [r.answer for r in requests]


def kept(args: argparse.Namespace, name: str, make: Callable[[], list[str]]) -> list[str]:
    """What is made once and, with --work, kept under this name."""
    if args.work is None:
        return make()
    file = args.work / f"{name}.json"
    if not file.exists():
        args.work.mkdir(parents=True, exist_ok=True)
        write_atomic(file, json.dumps(make(), ensure_ascii=False))
    return json.loads(file.read_text(encoding="utf-8"))


def first_words(text: str) -> str:
    return " ".join(text.split()[:8]) if " " in text[:40] else text[:10]


def watermark(args: argparse.Namespace) -> None:
    """Marked answers of `length` tokens, as text read again, each under a key of its own; other keys; edited texts."""
    engine = engine_of(args.run, args.model, args.threads)
    vocabulary, before = engine.tokenizer.fingerprint, beginning(engine.tokenizer)

    def key_of(scheme: str, n: int) -> Key:
        secret = random.Random(f"{args.seed} {n}").randbytes(32).hex()
        return Key(scheme, "wm", secret, vocabulary, args.context, again=not args.once)

    for scheme in args.schemes:
        for length in args.lengths:
            keys = [key_of(scheme, n) for n in range(args.most)]
            others = [key_of(scheme, n + args.most) for n in range(args.most)]

            def make(keys: list[Key] = keys, length: int = length) -> list[str]:
                sampling = Sampling(temperature=args.temperature, max_tokens=length, ignore_end=True)
                settings = [marked(k, replace(sampling, seed=args.seed * 1000 + n)) for n, k in enumerate(keys)]
                return [engine.tokenizer.decode(a) for a in answers(engine, [[before]] * len(keys), settings)]

            name = (
                f"{Path(args.run).name}-{args.model}-{scheme}-{length}-{args.temperature:g}-{args.context}-{args.seed}"
            )
            texts = kept(args, name + ("-once" if args.once else ""), make)[: args.most]
            rng = random.Random(args.seed)
            cases = {"with the key": (keys, texts), "with another key": (others, texts)}
            some = ATTACKS if args.attacked else {}
            cases |= {what: (keys, [attack(rng, t) for t in texts]) for what, attack in some.items()}
            for what, (own, changed) in cases.items():
                found: dict[str, list[float]] = {}
                for k, t in zip(own, changed, strict=False):
                    for how, p in marks(engine, k, t).items():
                        found.setdefault(how, []).append(p)
                for how, values in found.items():
                    p = np.array(values)
                    print(f"{scheme:9} {length:4} tokens, {what:34} {how:14} p ≤ 1e-3: {rate(p <= 1e-3)}  p ≤ 0.01: {rate(p <= 0.01)}  median {np.median(p):.1e}")  # fmt: skip


def marks(engine: Engine, key: Key, text: str) -> dict[str, float]:
    """The p-values of the key alone and, for gumbel, with the model; 1 where there is none."""
    look = Examination(text, Tools(engine, keys=[key]))
    found = [e.p for e in look.report().evidence if e.kind == "watermark"]
    return dict(zip(("key alone", "key and model"), (1.0 if p is None else p for p in found), strict=False))


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
    parser.add_argument(
        "--method",
        default="fast-detect",
        help="the one that groups and attacks are told of; own: tilt is fitted only when named",
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=[150])
    parser.add_argument("--most", type=int, default=100, help="machine texts of each kind")
    parser.add_argument("--humans", type=int, default=400, help="own: in all; pairs: in each half")
    parser.add_argument(
        "--attacked", type=int, default=200, help="pairs: machine texts that are edited; 0 = no attacks"
    )
    parser.add_argument("--paraphraser", default="", help="a run whose model says every sentence anew (English)")
    parser.add_argument("--schemes", nargs="+", default=list(SCHEMES), choices=list(SCHEMES))
    parser.add_argument("--temperature", type=float, default=1.0, help="watermark: of the answers")
    parser.add_argument("--context", type=int, default=4, help="watermark: tokens that choose the numbers")
    parser.add_argument(
        "--once", action="store_true", help="watermark: leave repeated contexts to chance, as keys of format 1 did"
    )
    parser.add_argument("--work", type=Path, help="folder of what was written, to be used again")
    parser.add_argument("--prompted", action="store_true", help="own: begin with the first words of human texts")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    {"pairs": pairs, "own": own, "watermark": watermark, "speed": speed}[args.part](args)


if __name__ == "__main__":
    main()
