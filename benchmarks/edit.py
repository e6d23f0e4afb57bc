"""Edits of a raised model and of SmolLM2, measured; every part appends JSON lines to --out, so that it may be interrupted.

  python benchmarks/edit.py --part single --run runs/spark        # facts of the world, each edited alone, default method
  python benchmarks/edit.py --part sequence --run runs/spark --method ridge memit alphaedit r-rome ft-m in-context
  python benchmarks/edit.py --part twins --run runs/twins --steps 260        # trains four sparks, then compares
  python benchmarks/edit.py --part counterfact --run runs/smollm2 --data counterfact-train.jsonl.gz --layer 10 --place subject
  python benchmarks/edit.py --part table --out runs/edit.jsonl

The subjects differ from those by which settings were chosen (edit/sweep.py: `spared`). A fact counts only if the model knew it:
continued with the old object, and answered with it in a conversation. What a file has already is not measured again.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import json
import random
import time
from pathlib import Path

from jielong.config import EditConfig
from jielong.edit.bench import Bench, Stored
from jielong.edit.exam import kept, sit, still_true
from jielong.edit.facts import Fact, from_json
from jielong.edit.methods import editor, together, told
from jielong.edit.methods.additive import keep, read
from jielong.edit.probes import about, nearby, other_language, pairs, rest
from jielong.edit.stage import State, held_out, in_both, make_bench
from jielong.edit.sweep import answered, world_edits
from jielong.evaluate.qa import wilson
from jielong.evaluate.statistics import bootstrap
from jielong.model.delta import Delta, joined
from jielong.run import Run, write_atomic
from jielong.train.loop import use_threads

BITS, QUESTIONS = 6, 60  # documents after each single edit; questions per language at the points of a sequence
NEIGHBOURS, ASKED = 200, 100  # at a point of a sequence: neighbours; edits whose other wordings are asked
SAVE = 10  # edits of a sequence between two states that an interruption leaves


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", choices=["single", "sequence", "twins", "counterfact", "table"], required=True)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/edit.jsonl"))
    parser.add_argument("--method", nargs="+", default=["neurons"])
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--points", type=int, nargs="*", default=[1, 10, 100, 200])
    parser.add_argument("--layer", type=int, default=-1)
    parser.add_argument("--place", default="")
    parser.add_argument("--ridge", type=float, default=0.0)
    parser.add_argument("--one-language", action="store_true", help="do not edit the translation too")
    parser.add_argument("--seed", type=int, default=1, help="of the facts that are drawn")
    parser.add_argument("--steps", type=int, default=0, help="of the twins' pretraining; 0 = spark's own")
    parser.add_argument("--twins", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if args.part == "table":
        table(args.out)
        return
    if args.part == "twins":
        import edit_twins

        edit_twins.run(args, Teller(args.out, {"part": "twins", "seed": args.seed, "steps": args.steps}))
        return
    use_threads(args.threads)
    run = Run(args.run)
    state = State.of(run.need(run.serving()))
    bench, _ = make_bench(EditConfig(layer=args.layer, place=args.place, ridge=args.ridge), run, state)
    for method in args.method:
        common = {
            "part": args.part,
            "method": method,
            **dataclasses.asdict(bench.site),
            "ridge": bench.ridge,
            "seed": args.seed,
        }
        tell = Teller(args.out, common | {"one_language": args.one_language})
        {"single": single, "sequence": sequence, "counterfact": counterfact}[args.part](args, method, run, bench, tell)


def drawn(args, bench: Bench, count: int) -> list[Fact]:
    """Facts that the model knows, the same for every method: kept beside --out, since asking takes time."""
    file = args.out.with_suffix(f".facts-{bench.model.parameter_count()}-{args.seed}-{count}.json")
    if not file.exists():
        found = answered(bench, world_edits(3 * count, args.seed, False), count)
        write_atomic(file, json.dumps([dataclasses.asdict(f) for f in found], ensure_ascii=False))
    facts = [from_json(row) for row in json.loads(file.read_text(encoding="utf-8"))]
    return facts if args.one_language else [in_both(f, bench.engine, bench.chat) for f in facts]


class Teller:
    """Appends lines, and knows those that are there."""

    def __init__(self, path: Path, common: dict):
        self.path, self.common = path, common
        path.parent.mkdir(parents=True, exist_ok=True)

    def __call__(self, **row) -> None:
        with open(self.path, "a", encoding="utf-8") as f:
            f.write(json.dumps(self.common | row, ensure_ascii=False) + "\n")

    def there(self) -> list[dict]:
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        rows = [json.loads(line) for line in lines]
        return [r for r in rows if all(r.get(k) == v for k, v in self.common.items())]


def single(args, method: str, run: Run, bench: Bench, tell: Teller) -> None:
    """Each fact alone, on the base."""
    known = {tuple(r["fact"]) for r in tell.there()}
    facts = [f for f in drawn(args, bench, args.count) if (f.prompt, f.old, f.target) not in known]
    documents = held_out(run)[:BITS]
    probes_of = [
        [*about([f], bench.chat), *other_language([f], bench.chat), *nearby([f], bench.chat, 1)] for f in facts
    ]
    right = sit(bench.model, bench.tokenizer, [], [p for own in probes_of for p in own]).right
    one, at = editor(method), 0
    for fact, probes in zip(facts, probes_of, strict=True):
        before, at = right[at : at + len(probes)], at + len(probes)
        wall, cpu = time.perf_counter(), time.process_time()
        stored = one.propose(bench, [fact])[0]
        model = bench.current(one.delta(bench, {"": stored}))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        texts = still_true(documents, [fact])
        base = sit(bench.model, bench.tokenizer, [], [], texts).figures["bits_per_byte"]
        memory = told({"": (method, fact)})
        after = sit(model, bench.tokenizer, pairs([fact], bench.chat, 1), probes, texts, memory=memory)
        groups = {}
        for group in dict.fromkeys(p.group for p in probes):
            own = [(b, a) for p, b, a in zip(probes, before, after.right, strict=True) if p.group == group]
            groups[group] = (
                [sum(a for b, a in own if b), sum(b for b, _ in own)]
                if group == "neighbours"
                else [sum(a for _, a in own), len(own)]
            )
        scores = {k: after.figures[k] for k in ("es", "ps", "ns") if k in after.figures}
        tell(
            fact=[fact.prompt, fact.old, fact.target], groups=groups, **scores, wall=wall, cpu=cpu,
            bits=after.figures["bits_per_byte"] / base - 1, said=after.replies[0],
        )  # fmt: skip


def sequence(args, method: str, run: Run, bench: Bench, tell: Teller) -> None:
    """One edit after the other, examined at the points: all edits so far, what is near, the rest, and bits per byte."""
    passed = {r["edits"] for r in tell.there()}
    facts = drawn(args, bench, max(args.points))
    points = sorted(p for p in args.points if p <= len(facts) and p not in passed)
    file = args.out.with_suffix(
        f".{method}-{args.seed}-{bench.ridge:g}{'-one' if args.one_language else ''}.safetensors"
    )
    held = Held(method, file)
    rng = random.Random(args.seed)
    near = rng.sample(around := nearby(facts, bench.chat, 1), min(NEIGHBOURS, len(around)))
    others = [*near, *rest(facts, bench.chat, QUESTIONS, 1)]
    before = sit(bench.model, bench.tokenizer, [], others, (), 1)
    for point in points:
        began = time.process_time()
        while held.count < point:
            bench.earlier = held.changes
            held.add(editor(method).propose(bench, [facts[held.count]])[0])
            if held.count % SAVE == 0 or held.count == point:
                held.save()
        cpu, done = time.process_time() - began, facts[:point]
        model = bench.current(together(bench, held.changes))
        memory = told({str(n): (method, f) for n, f in enumerate(done)})
        texts = still_true(held_out(run), done)
        bits = [sit(m, bench.tokenizer, [], [], texts).figures["bits_per_byte"] for m in (bench.model, model)]
        asked = [
            dataclasses.replace(
                f, paraphrases=(*f.paraphrases[:1], *f.paraphrases[-1:]), also=f.also[:1] if n < ASKED else ()
            )
            for n, f in enumerate(done)
        ]
        asked = [
            dataclasses.replace(f, also=tuple(dataclasses.replace(g, paraphrases=()) for g in f.also)) for f in asked
        ]
        edits = sit(
            model,
            bench.tokenizer,
            pairs(done[:ASKED], bench.chat, 1)[:600],
            [*about(asked, bench.chat), *other_language(asked, bench.chat)],
            memory=memory,
        )
        after = sit(model, bench.tokenizer, [], others, (), 1, memory)
        tell(
            edits=point, cpu=cpu, **edits.figures,
            neighbours_kept=kept(before, after, others, "neighbours"), knowledge_kept=kept(before, after, others, "knowledge"),
            knowledge=after.figures["knowledge"], bits=bits[1] / bits[0] - 1,
            repetition=after.figures["repetition"], entropy=after.figures["entropy"],
        )  # fmt: skip
        print({k: round(v, 4) for k, v in tell.there()[-1].items() if isinstance(v, float)}, flush=True)


class Held:
    """The changes of a sequence so far. Of methods whose changes are added up only the sum is kept, with the keys."""

    def __init__(self, method: str, file: Path):
        from safetensors.torch import load_file

        self.method, self.file, self.count = method, file, 0
        self.changes: dict[str, tuple[str, Stored]] = {}
        if file.is_file():
            found = load_file(file)
            self.count = int(found.pop("count"))
            for key, tensor in found.items():
                name, _, part = key.partition("/")
                self.changes.setdefault(name, (method, {}))[1][part] = tensor

    def add(self, stored: Stored) -> None:
        if editor(self.method).exact:
            self.changes[f"{self.count:04}"] = self.method, stored
        else:
            both = [s for _, s in self.changes.values()] + [stored]
            total = joined([read(s) for s in both])
            names = {k for s in both for k in s if k.endswith("|k")}
            keys = {}
            import torch

            for name in names:
                keys[name] = torch.cat([s[name] for s in both if name in s])
            dense = Delta({name: (total.added(name),) for name in total.parts})
            self.changes = {"": (self.method, keep(dense) | keys)}
        self.count += 1

    def save(self) -> None:
        import torch
        from safetensors.torch import save

        tensors = {f"{name}/{part}": t.contiguous() for name, (_, s) in self.changes.items() for part, t in s.items()}
        write_atomic(self.file, save(tensors | {"count": torch.tensor(self.count)}))


def counterfact(args, method: str, run: Run, bench: Bench, tell: Teller) -> None:
    """Records of CounterFact, each alone: the published scores, and free generation of ten tokens behind the prompt."""
    with gzip.open(args.data, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines][-args.count :]  # settings were looked at on the first ones
    passed = {r["case"] for r in tell.there()}
    bench = dataclasses.replace(bench, chat=False)
    documents = held_out(run)[:4]
    base_bits = sit(bench.model, bench.tokenizer, [], [], documents).figures["bits_per_byte"]
    one = editor(method)
    for row in rows:
        if row["case_id"] in passed:
            continue
        near = ((row["locality_prompt"], row["locality_ground_truth"]),)
        fact = Fact(
            row["prompt"], row["subject"], row["target_new"], row["ground_truth"], (row["rephrase_prompt"],), near
        )
        probes, scored = [*about([fact], False), *nearby([fact], False, 1)], pairs([fact], False, 1)
        was = sit(bench.model, bench.tokenizer, scored, probes)
        wall, cpu = time.perf_counter(), time.process_time()
        blind = dataclasses.replace(fact, paraphrases=())  # the editor reads no paraphrase
        model = bench.current(one.delta(bench, {"": one.propose(bench, [blind])[0]}))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        now = sit(model, bench.tokenizer, scored, probes, documents)
        tell(
            case=row["case_id"], before=was.figures, after=now.figures, wall=wall, cpu=cpu,
            bits=now.figures["bits_per_byte"] / base_bits - 1,
        )  # fmt: skip


def table(path: Path) -> None:
    """The lines of a file, summed up."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    names = ("part", "method", "layer", "place", "ridge", "one_language")
    keys = sorted({tuple(r.get(n) for n in names) for r in rows}, key=str)
    for key in keys:
        own = [r for r in rows if tuple(r.get(n) for n in names) == key]
        print(*key)
        if key[0] == "sequence":
            for r in own:
                print(
                    "  ",
                    {k: round(v, 4) for k, v in r.items() if isinstance(v, (int, float)) and k not in names},
                )
        elif key[0] == "twins":
            for r in own:
                print("  ", r["what"], {k: v for k, v in r.items() if k not in (*names, "what", "seed", "steps")})
        elif key[0] == "single":
            for group in own[0]["groups"]:
                counted = [r["groups"][group] for r in own if group in r["groups"]]
                right, total = sum(a for a, _ in counted), sum(b for _, b in counted)
                # answers about one fact are no independent witnesses: the interval is that of one answer per fact
                low, high = wilson(right / total * len(counted), len(counted))
                print(
                    f"   {group}: {right / total:.3f} ({low:.3f} – {high:.3f}), {total} answers, {len(counted)} facts"
                )
            _means(own, ("bits", "wall", "cpu", "es", "ps", "ns"))
        else:
            for when in ("before", "after"):
                flat = [{f"{when} {k}": v for k, v in r[when].items()} for r in own]
                _means(flat, tuple(dict.fromkeys(k for r in flat for k in r)))
            _means(own, ("bits", "wall", "cpu"))


def _means(rows: list[dict], names: tuple[str, ...]) -> None:
    for name in names:
        values = [r[name] for r in rows if name in r]
        value, low, high = bootstrap(
            [[n] for n in range(len(values))], lambda i, v=values: sum(v[n] for n in i) / len(i)
        )
        print(f"   {name}: {value:.4f} ({low:.4f} – {high:.4f}), n {len(values)}, largest {max(values):.4f}")


if __name__ == "__main__":
    main()
