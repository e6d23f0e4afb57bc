"""`jielong forget --method NAME`: an approximate method makes texts unlikely. They are suppressed, not forgotten: the records stay in
the run, no proof says that the weights are free of them, and the exam shows how near a twin without them the model came."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from jielong.align.policy import save_policy
from jielong.align.scoring import merged_copy
from jielong.changes.guard import Limit, judge
from jielong.changes.journal import conclude, settle
from jielong.changes.ledger import Entry, Ledger
from jielong.changes.words import say
from jielong.config import ForgetConfig, SuppressConfig
from jielong.config.feedback import adam
from jielong.errors import Unclear, UserError
from jielong.forget.case import Case, answers, gather
from jielong.forget.columns import ASKED, Column, examine_model, lines, plain_figures, together
from jielong.forget.items import Examples
from jielong.forget.methods import method as method_of
from jielong.forget.methods.method import Method, Scene
from jielong.forget.telling import Tell, nobody
from jielong.forget.twins import make_twin
from jielong.model.gpt import GPT, load_model, read_shape
from jielong.model.lora import add_lora
from jielong.run import Artifact, Run
from jielong.train.bar import training_bar
from jielong.train.distributed import Team, pick_device
from jielong.train.loop import History, LoopConfig, dtype_of, train, use_threads
from jielong.train.making import begin, content

KIND, WORD = "suppressed", "suppressed"


def run(config: ForgetConfig, run: Run, tell: Tell = nobody, examples: Examples | None = None) -> Entry | None:
    """Suppress what the request asks for, examine and record it; the ledger's entry, None when it was only shown. The caller holds
    the run's lock; `tell` hears how far it is; `examples` stand in the place of the config's files. Raises UserError, with nothing changed, for wrong settings, and for a change that the guard refuses."""
    method = method_of(config.method)
    settings = resolved(config.suppress, method)
    device = pick_device(settings.device)
    if min(config.twins, config.samples) < 0:
        raise UserError("--twins and --samples must be at least 0.")
    ledger = Ledger(run, config.key)
    if problems := ledger.problems():
        raise UserError(f"{problems[0]} Nothing is added to a ledger that does not verify.")
    settle(run, ledger)
    case = gather(config, settings, run, examples)
    layers = read_shape(case.start.path).layers
    if settings.layer is not None and not 0 <= settings.layer < layers:
        raise UserError(f"--suppress.layer {settings.layer}: this model has the layers 0 to {layers - 1}.")
    steps = steps_of(settings, len(answers(case.forget)))
    show(config, run, case, settings, steps)
    if not config.yes and not agreed():
        say("Nothing was changed; the same command with --yes does it.")
        return None
    last = run.newest(KIND)
    name = f"{KIND}-{1 if last is None else int(last.name.rpartition('-')[2]) + 1}"
    settings = dataclasses.replace(settings, threads=use_threads(settings.threads))
    work = run.work(name)
    texts = hashlib.sha256(repr((case.forget, case.retain, case.material.others)).encode()).hexdigest()
    making = {
        "config": content(settings), "method": config.method, "parents": {case.start.name: case.start.hash},
        "texts": texts, "twins": config.twins, "samples": config.samples,
    }  # fmt: skip
    begin(work, making, settings.threads)
    tuned = None
    if settings.tune:
        from jielong.forget.tuning import tuned_on_decoys

        tell("stage", stage="tuning")
        tuned = tuned_on_decoys(config, settings, run, case, work / "tuned.json")
        settings = dataclasses.replace(settings, lr=tuned["lr"], epochs=tuned["epochs"])
    tell("stage", stage="exam")
    start = load_model(case.start.path).to(device)
    before = cached(work / "before.json", lambda: examine_model(start, case.tokenizer, case.material, case.chat))
    tell("stage", stage="suppress")
    model, history = suppress(method, start, case, settings, work)
    tell("stage", stage="exam")
    after = cached(work / "after.json", lambda: examine_model(model, case.tokenizer, case.material, case.chat))
    try:
        guard(config, together(before, after, [], len(case.forget)))
    except UserError:
        shutil.rmtree(work, ignore_errors=True)
        raise
    if config.twins:
        tell("stage", stage="twins")
    twins, unmade = twin_columns(config.twins, run, case, work, device)
    columns = together(before, after, twins, len(case.forget))
    tell("stage", stage="commit")
    with run.build(name, kind=KIND, config=settings, parents=[case.start], seed=settings.seed) as build:
        save_policy(model, case.start, build.path)
        build.threads, build.device = settings.threads, device.type
        build.metrics = {
            "parameters": model.parameter_count(), "chat": case.chat, "word": WORD, "method": config.method,
            "steps": len(history.loss), "train_seconds": round(history.seconds, 2), "loss": history.loss,
            "exam": plain_figures(columns), "tuned": tuned,
        }  # fmt: skip
    entry = record(config, settings, run, case, ledger, build.artifact, columns, tuned, unmade)
    shutil.rmtree(work, ignore_errors=True)
    print("\n".join(lines(columns)))
    say(
        f"{len(case.forget)} texts are {WORD}, not forgotten: entry {entry['number']} of {ledger.path}; {name} is served."
    )
    return entry


def resolved(config: SuppressConfig, method: Method) -> SuppressConfig:
    """The settings with the method's own where none were given. Raises UserError for senseless ones."""
    known = dataclasses.asdict(config)
    filled = dataclasses.replace(config, **{k: v for k, v in method.defaults.items() if known[k] is None})
    for name in ("lr", "epochs"):
        if not 0 < getattr(filled, name) < math.inf:
            raise UserError(f"--suppress.{name} must be a number above 0.")
    if filled.beta is not None and filled.beta <= 0:
        raise UserError("--suppress.beta must be above 0; gradient ascent is --method graddiff.")
    if min(filled.rows, filled.keep) < 1 or min(filled.tune, filled.lora_rank) < 0:
        raise UserError("--suppress.rows and --suppress.keep must be at least 1, tune and lora-rank at least 0.")
    return filled


def steps_of(settings: SuppressConfig, items: int) -> int:
    return max(1, round((settings.epochs or 1.0) * items / min(settings.rows, items)))


# the training


def suppress(
    method: Method,
    start: GPT,
    case: Case,
    settings: SuppressConfig,
    work: Path,
    observe: Callable[[GPT, int], dict[str, Any]] | None = None,
    observe_steps: frozenset[int] = frozenset(),
) -> tuple[GPT, History]:
    """A changed copy of the model, made where it lies. `observe` is called with it after the steps `observe_steps`."""
    frozen = merged_copy(start)
    model = merged_copy(start).requires_grad_(True)
    if settings.lora_rank:
        add_lora(model, settings.lora_rank, settings.lora_alpha or 2.0 * settings.lora_rank, settings.seed)
    dtype = dtype_of(settings.precision, start.device)
    forget, retain = answers(case.forget), answers(case.retain)
    scene = Scene(model, frozen, case.tokenizer, forget, retain, settings, dtype)
    method.prepare(scene)
    steps, rows = steps_of(settings, len(forget)), min(settings.rows, len(forget))

    def loss_of(model: GPT, step: int, dtype: torch.dtype) -> torch.Tensor:
        return method.loss(
            scene, drawn(len(forget), rows, step, settings.seed, 0), drawn(len(retain), rows, step, settings.seed, 1)
        )

    loop = LoopConfig(
        steps, adam(settings.lr or 1e-4), settings.precision, settings.threads, settings.checkpoint_seconds,
        2 * rows, "suppress", history=False,
    )  # fmt: skip
    with training_bar("suppress", steps) as progress:
        history = train(
            model, [loss_of], loop, work / "checkpoints", observe, observe_steps, progress, Team(start.device)
        )
    method.finish(scene)
    return model, history


def drawn(count: int, rows: int, step: int, seed: int, kind: int) -> list[int]:
    """The texts of a step: epoch after epoch, each in an order of its own."""
    import numpy as np

    at, found = step * rows, []
    while len(found) < min(rows, count):
        epoch, place = divmod(at + len(found), count)
        found += (
            np.random.default_rng([seed, kind, epoch]).permutation(count)[place : place + rows - len(found)].tolist()
        )
    return found


# the exam


def cached(path: Path, make: Callable[[], Column]) -> Column:
    if not path.is_file():
        column = make()
        column.save(path)
    return Column.load(path)


def twin_columns(count: int, run: Run, case: Case, work: Path, device: torch.device) -> tuple[list[Column], str]:
    """The columns of the twins, and why there are none."""
    columns = []
    for number in range(count):
        path = work / f"twin-{number}.json"
        if not path.is_file():
            folder = work / f"twin-{number}"
            started = time.perf_counter()
            twin = make_twin(run, folder, case.names, case.found, number)
            if twin is None:
                return [], f"nothing of {case.start.name} was trained on these texts here, so no twin can be"
            say(f"twin {number + 1} of {count}: {time.perf_counter() - started:.0f} s")
            examine_model(load_model(twin.path).to(device), case.tokenizer, case.material, case.chat).save(path)
            shutil.rmtree(folder)
        columns.append(Column.load(path))
    return columns, ""


def guard(config: ForgetConfig, columns: dict[str, dict[str, float]]) -> None:
    """Raises Unclear, before anything is written, when the change breaks the rest."""
    gentler = "lower --suppress.lr or --suppress.epochs, or raise --suppress.alpha"
    other = "use another --method, or exact replay (--method replay)"
    knew = columns["before"].get("knowledge", 0.0)
    chance = 2 * math.sqrt(
        knew * (1 - knew) / ASKED
    )  # two standard errors: a model that knows little is not refused for one fact
    limits = [
        Limit("bits per byte", "bits per byte of held-out text", None, 1 + config.utility, False, False, f"{gentler}; {other}"),
        Limit("knowledge", "the share of known facts", min(0.9 * knew, knew - chance), None, True, True, f"{gentler}; {other}"),
    ]  # fmt: skip
    if broken := judge(limits, columns["before"], columns["after"]):
        raise Unclear(
            "guard", f"Refused, and nothing was changed: {'; '.join(b.text for b in broken)}. Next: {broken[0].advice}."
        )


# words


def agreed() -> bool:
    from jielong.forget.stage import agreed

    return agreed("suppress")


def show(config: ForgetConfig, run: Run, case: Case, settings: SuppressConfig, steps: int) -> None:
    """What will happen."""
    say(f"{len(case.forget)} texts of {run.path} are to be {WORD} in {case.start.name} by {config.method}:")
    for text in case.forget[:6]:
        spelt = case.tokenizer.decode(text.answers[0].answer[:24]).replace("\n", " ")
        say(f"  {spelt} …")
    if len(case.forget) > 6:
        say(f"  … and {len(case.forget) - 6} more")
    say(f"  {steps} steps beside {len(case.retain)} texts that must stay; {config.twins} twins to compare with.")
    say(
        "  The texts stay in the run, and nothing proves that the weights are free of them: that is what --method replay does."
    )


def record(
    config: ForgetConfig, settings: SuppressConfig, run: Run, case: Case, ledger: Ledger, made: Artifact,
    columns: dict[str, dict[str, float]], tuned: dict[str, Any] | None, unmade: str,
) -> Entry:  # fmt: skip
    """The ledger's entry: what was asked, by salted hashes, what was done, and how it came out; the model talks from then on."""
    salt, texts = secrets.token_hex(16), case.found.texts()
    spelt = [case.tokenizer.decode([i for a in t.answers for i in a.answer]) for t in case.forget]
    limits = [
        "the weights: an approximate method makes texts unlikely, and nothing proves that they are gone",
        "the records, which stay in the run's corpus, shards and feedback"
        if case.request
        else "the files that the examples came from",
        "the models before this one, which stay in the run",
    ]
    if unmade:
        limits.append(f"a comparison with twins: {unmade}")
    elif config.twins and case.names[-1] != case.start.name:
        limits.append(f"twins of {case.start.name}: they are of {case.names[-1]}, from which it came")
    return conclude(
        run, ledger, "suppress", made.name, method=config.method, word=WORD, exact=False,
        request={
            "id": secrets.token_hex(8), "who": case.request.who, "why": case.request.why, "salt": salt,
            "fingerprint": ledger.fingerprint(case.request.canonical(), salt),
            "asked": {"records": len(case.request.ids), "names": len(case.request.names), "texts": len(case.request.texts)},
        },
        texts={"count": len(case.forget),
               "fingerprints": sorted({ledger.fingerprint(t, salt) for t in (*texts, *spelt)})},
        settings=content(settings), tuned=tuned,
        artifacts={made.name: {"before": case.start.name, "before_hash": case.start.hash, "after": made.hash}},
        exam=plain_figures(columns), limits=limits,
    )  # fmt: skip
