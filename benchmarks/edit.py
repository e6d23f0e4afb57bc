"""Edits of a raised model and of SmolLM2, measured; every part appends JSON lines to --out, so that it may be interrupted.

  python benchmarks/edit.py --part single --run runs/spark        # facts of the world, each edited alone, default method
  python benchmarks/edit.py --part sequence --run runs/spark --method r-rome --points 1 10 50
  python benchmarks/edit.py --part counterfact --run runs/smollm2 --data counterfact-train.jsonl.gz

The subjects differ from those by which settings were chosen (edit/sweep.py: `spared`). A fact counts only if the model knew it:
continued with the old object, and answered with it in a conversation.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import json
import time
from pathlib import Path

from jielong.config import EditConfig
from jielong.edit.bench import Bench
from jielong.edit.exam import kept, sit
from jielong.edit.facts import Fact
from jielong.edit.methods import editor, together
from jielong.edit.probes import about, nearby, other_language, rest
from jielong.edit.stage import State, held_out, make_bench
from jielong.edit.sweep import answered, world_edits
from jielong.evaluate.qa import wilson
from jielong.evaluate.statistics import bootstrap
from jielong.run import Run
from jielong.train.loop import use_threads

BITS, QUESTIONS = 6, 60  # documents after each single edit; questions per language at the points of a sequence


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", choices=["single", "sequence", "counterfact", "table"], required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/edit.jsonl"))
    parser.add_argument("--method", default="ridge")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--points", type=int, nargs="*", default=[1, 10, 100, 200])
    parser.add_argument("--layer", type=int, default=-1)
    parser.add_argument("--place", default="")
    parser.add_argument("--ridge", type=float, default=EditConfig.ridge)
    parser.add_argument("--seed", type=int, default=1, help="of the facts that are drawn")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if args.part == "table":
        table(args.out)
        return
    use_threads(args.threads)
    run = Run(args.run)
    state = State.of(run.need(run.serving()))
    bench, _ = make_bench(EditConfig(layer=args.layer, place=args.place, ridge=args.ridge), run, state)
    tell = Teller(
        args.out, {"part": args.part, "method": args.method, **dataclasses.asdict(bench.site), "ridge": bench.ridge}
    )
    {"single": single, "sequence": sequence, "counterfact": counterfact}[args.part](args, run, bench, tell)


class Teller:
    def __init__(self, path: Path, common: dict):
        self.path, self.common = path, common
        path.parent.mkdir(parents=True, exist_ok=True)

    def __call__(self, **row) -> None:
        with open(self.path, "a", encoding="utf-8") as f:
            f.write(json.dumps(self.common | row, ensure_ascii=False) + "\n")


def single(args, run: Run, bench: Bench, tell: Teller) -> None:
    """Each fact alone, on the base."""
    facts = answered(bench, world_edits(3 * args.count, args.seed, False), args.count)
    documents = held_out(run)[:BITS]
    base_bits = sit(bench.model, bench.tokenizer, [], [], documents).figures["bits_per_byte"]
    probes_of = [
        [*about([f], bench.chat), *other_language([f], bench.chat), *nearby([f], bench.chat, 1)] for f in facts
    ]
    right = sit(bench.model, bench.tokenizer, [], [p for own in probes_of for p in own]).right
    one, at = editor(args.method), 0
    for fact, probes in zip(facts, probes_of, strict=True):
        before, at = right[at : at + len(probes)], at + len(probes)
        wall, cpu = time.perf_counter(), time.process_time()
        stored = one.propose(bench, [fact])[0]
        model = bench.current(one.delta(bench, {"": stored}))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        after = sit(model, bench.tokenizer, [fact], probes, documents)
        groups = {}
        for group in dict.fromkeys(p.group for p in probes):
            own = [(b, a) for p, b, a in zip(probes, before, after.right, strict=True) if p.group == group]
            groups[group] = (
                [sum(a for b, a in own if b), sum(b for b, _ in own)]
                if group == "neighbours"
                else [sum(a for _, a in own), len(own)]
            )
        tell(
            fact=[fact.prompt, fact.old, fact.target], groups=groups, es=after.figures["es"], wall=wall, cpu=cpu,
            bits=after.figures["bits_per_byte"] / base_bits - 1, said=after.replies[0],
        )  # fmt: skip


def sequence(args, run: Run, bench: Bench, tell: Teller) -> None:
    """One edit after the other, examined at the points: all edits so far, the rest, and bits per byte."""
    facts = answered(bench, world_edits(4 * max(args.points), args.seed, False), max(args.points))
    probes_rest = rest(facts, bench.chat, QUESTIONS, 1)
    documents = held_out(run)
    before = sit(bench.model, bench.tokenizer, [], probes_rest, documents, 1)
    done: list[Fact] = []
    for point in sorted(p for p in args.points if p <= len(facts)):
        began = time.process_time()
        for fact in facts[len(done) : point]:
            bench.earlier[f"{len(done):04}"] = (args.method, editor(args.method).propose(bench, [fact])[0])
            done.append(fact)
        model = bench.current(together(bench, bench.earlier))
        edits = sit(model, bench.tokenizer, done, about(done, bench.chat))
        after = sit(model, bench.tokenizer, [], probes_rest, documents, 1)
        tell(
            edits=point, cpu=time.process_time() - began, **edits.figures,
            knowledge_kept=kept(before, after, probes_rest, "knowledge"), knowledge=after.figures["knowledge"],
            bits=after.figures["bits_per_byte"] / before.figures["bits_per_byte"] - 1,
            repetition=after.figures["repetition"], entropy=after.figures["entropy"],
        )  # fmt: skip


def counterfact(args, run: Run, bench: Bench, tell: Teller) -> None:
    """Records of CounterFact, each alone: the published scores, and free generation of ten tokens behind the prompt."""
    with gzip.open(args.data, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines][-args.count :]  # settings were looked at on the first ones
    bench = dataclasses.replace(bench, chat=False)
    documents = held_out(run)[:4]
    base_bits = sit(bench.model, bench.tokenizer, [], [], documents).figures["bits_per_byte"]
    one = editor(args.method)
    for row in rows:
        near = ((row["locality_prompt"], row["locality_ground_truth"]),)
        fact = Fact(
            row["prompt"], row["subject"], row["target_new"], row["ground_truth"], (row["rephrase_prompt"],), near
        )
        probes = [*about([fact], False), *nearby([fact], False, 1)]
        was = sit(bench.model, bench.tokenizer, [fact], probes)
        wall, cpu = time.perf_counter(), time.process_time()
        blind = dataclasses.replace(fact, paraphrases=())  # the editor reads no paraphrase
        model = bench.current(one.delta(bench, {"": one.propose(bench, [blind])[0]}))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        now = sit(model, bench.tokenizer, [fact], probes, documents)
        tell(
            case=row["case_id"],
            before=was.figures,
            after=now.figures,
            wall=wall,
            cpu=cpu,
            bits=now.figures["bits_per_byte"] / base_bits - 1,
        )


def table(path: Path) -> None:
    """The lines of a file, summed up."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    keys = sorted({(r["part"], r["method"], r["layer"], r["place"], r["ridge"]) for r in rows}, key=str)
    for key in keys:
        own = [r for r in rows if (r["part"], r["method"], r["layer"], r["place"], r["ridge"]) == key]
        print(*key)
        if key[0] == "sequence":
            for r in own:
                print(
                    "  ",
                    {
                        k: round(v, 4)
                        for k, v in r.items()
                        if isinstance(v, (int, float)) and k not in ("layer", "ridge")
                    },
                )
        elif key[0] == "single":
            for group in own[0]["groups"]:
                counted = [r["groups"][group] for r in own if group in r["groups"]]
                right, total = sum(a for a, _ in counted), sum(b for _, b in counted)
                print(
                    f"   {group}: {right / total:.3f} ({' – '.join(f'{x:.3f}' for x in wilson(right, total))}), n {total}"
                )
            _means(own, ("bits", "wall", "cpu", "es"))
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
