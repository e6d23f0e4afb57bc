"""The order of all steps, and the function behind `jielong corpus build`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from jielong.config import CorpusBuildConfig
from jielong.corpus.build.collect import Collect, remove_work
from jielong.corpus.build.engine import Stage, run_local, run_ray, submit_slurm
from jielong.corpus.build.inputs import Inputs, list_inputs
from jielong.corpus.build.near import Compare, Signatures, bands
from jielong.corpus.build.read import Read, Store, Stored
from jielong.corpus.build.recipe import Recipe, load_recipe, same_corpus
from jielong.corpus.build.repeats import SHARDS, DropLines, DropMarked, Find, Keys, document_keys, line_keys
from jielong.corpus.build.screens import (
    Addresses,
    Decontaminate,
    Extract,
    Language,
    Licences,
    Privacy,
    Quality,
    Rules,
    Screen,
    Words,
)
from jielong.corpus.classifier import Classifier
from jielong.corpus.decontaminate import ExamIndex
from jielong.corpus.dedup import BANDS
from jielong.corpus.wordlists import read_list
from jielong.errors import UserError
from jielong.run import Artifact, Run, write_atomic


def run(config: CorpusBuildConfig, run: Run, say: Callable[[str], None] = print) -> Artifact | None:
    """Raw text by a recipe → the run's corpus artifact; None where Slurm was given the work.

    The same command continues after an interruption. Raises UserError.
    """
    recipe = load_recipe(config.recipe)
    work = run.work("corpus").absolute()
    config.run = run.path.absolute()  # a worker may stand elsewhere
    inputs = _inputs(recipe, work)
    screens = _prepared(recipe, work)
    stages = plan(config, recipe, inputs, screens, work)
    files = sum(map(len, inputs.tasks))
    say(f"{files:,} files of {len(recipe.source)} sources in {len(inputs.tasks):,} tasks")
    workers = config.workers or os.cpu_count() or 1
    logs = work / "logs"
    if config.engine == "slurm":
        job = submit_slurm(stages, logs, config.workers, recipe.cluster)
        say(f"Slurm's job {job} writes {run.path / 'corpus'} at the end; `squeue` shows how far it is.")
        return None
    if config.engine == "ray":
        run_ray(stages, logs, workers, recipe.cluster, say)
    else:
        run_local(stages, logs, workers, say)
    artifact = run.need("corpus")
    _summary(artifact, say)
    if not config.keep:
        remove_work(work)
    return artifact


def _inputs(recipe: Recipe, work: Path) -> Inputs:
    """The list of files, made once. Raises UserError where the folder belongs to another recipe."""
    plan = work / "plan.json"
    wanted = same_corpus(recipe)
    if plan.is_file():
        saved = json.loads(plan.read_text(encoding="utf-8"))
        if saved["recipe"] != wanted:
            raise UserError(
                f"{work} holds the beginnings of a corpus of another recipe; delete it, or choose another --run folder."
            )
        return Inputs.from_json(saved["inputs"])
    inputs = list_inputs(recipe)
    work.mkdir(parents=True, exist_ok=True)
    write_atomic(plan, json.dumps({"recipe": wanted, "inputs": inputs.as_json()}))
    return inputs


def _prepared(recipe: Recipe, work: Path) -> list[Screen]:
    """The screens of single documents, cheap ones first; everything that they need is read once here, so that a wrong
    file is noticed at once."""
    folder = str(work)
    screens: list[Screen] = []
    if recipe.lists.addresses:
        read_list(recipe.lists.addresses)
        screens.append(Addresses(folder, recipe.lists.addresses))
    if any(s.kind == "code" for s in recipe.source):
        screens.append(Licences(folder, recipe.licences))
    screens += [Extract(folder, recipe.deepest), Language(folder, recipe.languages)]
    if recipe.rules != "none":
        screens.append(Rules(folder, recipe.rules))
    if recipe.lists.words:
        read_list(recipe.lists.words)
        screens.append(Words(folder, recipe.lists.words, recipe.lists.most_words))
    if recipe.classifier.path:
        Classifier.load(recipe.classifier.path)
        screens.append(Quality(folder, recipe.classifier.path, recipe.classifier.least))
    if recipe.decontaminate:
        index = work / "exams.npz"
        ExamIndex.read(recipe.decontaminate).save(index)
        screens.append(Decontaminate(folder, index))
    return screens


def plan(config: CorpusBuildConfig, recipe: Recipe, inputs: Inputs, screens: list[Screen], work: Path) -> list[Stage]:
    """All stages in order; `work` keeps what passes between them."""
    folder, tasks, rules = str(work), len(inputs.tasks), recipe.duplicates

    def exact(counted: bool = True) -> DropMarked:
        return DropMarked(folder, "exact", "exact duplicates", "same text", counted)

    kept, signed, clean = (f"{folder}/{name}" for name in ("kept", "signed", "clean"))
    read = Read(inputs.tasks, folder, recipe.largest, config.run)
    stages = [
        Stage("read", [read, *screens, Keys(folder, "exact", document_keys), Store(kept)], tasks),
        Stage("find-exact", [Find(folder, "exact")], SHARDS, light=True),
    ]
    later: list[Screen] = [exact()]
    if rules.line_copies:
        stages += [
            Stage("lines", [Stored(kept), exact(counted=False), Keys(folder, "lines", line_keys)], tasks),
            Stage("find-lines", [Find(folder, "lines", rules.line_copies)], SHARDS, light=True),
        ]
        later.append(DropLines(folder))
    last: list[Screen] = [Privacy(folder)] if recipe.privacy else []
    if rules.near:
        near = DropMarked(folder, "near", "near duplicates", "nearly the same text")
        stages += [
            Stage("signatures", [Stored(kept), *later, Signatures(folder), Store(signed)], tasks),
            Stage("bands", [bands(folder)], BANDS, light=True),
            Stage("compare", [Compare(folder)], 1),
            Stage("clean", [Stored(signed), near, *last, Store(clean)], tasks),
        ]
        later.append(near)
    else:
        stages.append(Stage("clean", [Stored(kept), *later, *last, Store(clean)], tasks))
    steps = [s.name for s in (read, *screens, *later, *last)]
    collect = Collect(folder, config, recipe, tasks, steps, inputs.bad)
    return [*stages, Stage("collect", [collect], 1)]


def _summary(artifact: Artifact, say: Callable[[str], None]) -> None:
    for step in artifact.card["metrics"]["funnel"]:
        why = ", ".join(f"{reason} {n:,}" for reason, n in list(step["dropped"].items())[:4])
        say(f"  {step['step']:17} {step['docs_in']:>9,} → {step['docs_out']:>9,} documents  {why}")
    say(f"The report: {artifact.file('funnel.html')}")
