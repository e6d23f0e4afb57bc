"""`jielong prompt …`: every command of the room."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from jielong.config import PromptImportConfig, PromptListConfig, PromptNewConfig, PromptRunConfig, PromptShowConfig
from jielong.errors import UserError
from jielong.prompt.form import Prompt, pairs, whole
from jielong.prompt.sheet import settings
from jielong.prompt.store import collection, find, keep, library, made, own_folder
from jielong.run import Run


def run(name: str, config: Any, run: Run) -> None:
    """Do what `jielong NAME` (such as prompt list) says. Raises UserError for everything that the user can mend."""
    if name == "prompt matrix":
        from jielong.prompt.matrix import run as matrix

        print(matrix(config))
    elif name == "prompt search":
        from jielong.prompt.search import run as search

        run.need(config.model or run.serving())  # before a folder is made
        with run.lock():
            found = search(config, run)
        print(f"{found.path}: `jielong prompt run {found.name.removeprefix('prompt-')} --run {run.path}` uses it")
    else:
        {"prompt list": _list, "prompt show": _show, "prompt run": _run, "prompt new": _new, "prompt import": _import}[
            name
        ](config, run)


def _list(config: PromptListConfig, run: Run) -> None:
    prompts, problems = library(run.path)
    prompts = [p for p in prompts if config.lang in ("", p.lang)]
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    if config.json:
        print(json.dumps([described(p) for p in prompts], ensure_ascii=False, indent=1))
        return
    for p in prompts:
        needs = " ".join(n if d is None else f"{n}={d}" for n, d in p.variables)
        print(f"{p.name:18} {p.lang:6} {p.source:9} {p.title}: {p.purpose}" + (f" [{needs}]" if needs else ""))


def described(prompt: Prompt) -> dict[str, Any]:
    """A prompt as JSON, for programs and the page. `messages` and `ask` hold {{variables}}; demonstrations are as they are."""
    return {
        "name": prompt.name,
        "lang": prompt.lang,
        "title": prompt.title,
        "purpose": prompt.purpose,
        "source": prompt.source,
        "variables": [{"name": n, "default": d} for n, d in prompt.variables],
        "system": prompt.system,
        "shots": [list(shot) for shot in prompt.shots],
        "ask": prompt.ask,
        "labels": list(prompt.labels),
    }


def _show(config: PromptShowConfig, run: Run) -> None:
    prompt = find(config.name, run.path, config.lang)
    for message in prompt.messages(pairs(config.var), "…"):
        print(f"[{message['role']}] {message['content']}")
    if prompt.labels:
        print(f"answers: {' | '.join(prompt.labels)}")


def _run(config: PromptRunConfig, run: Run) -> None:
    from jielong.generate.engine import Engine
    from jielong.generate.sampling import Sampling
    from jielong.prompt.answer import prompt_ids, reply

    prompt, values = find(config.name, run.path, config.lang), pairs(config.var)
    prompt.values(values)
    settings(temperature=config.temperature, max_tokens=config.max_tokens)
    text = whole(config.ask or standard_input().strip(), "--ask")
    if not text:
        raise UserError("Nothing is asked; give --ask TEXT, or the text on the standard input.")
    start = run.need(config.model or run.serving())
    engine = Engine.load(start.path, precision="auto")
    stop = () if engine.chat else ("\n",)
    sampling = Sampling(temperature=config.temperature, max_tokens=config.max_tokens, seed=config.seed, stop=stop)
    if prompt.labels:
        found = reply(engine, [prompt], [values], [text], sampling)[0]
        ranked = sorted(zip(found.probabilities, prompt.labels, strict=True), reverse=True)
        print(found.text + "  (" + ", ".join(f"{label} {p:.2f}" for p, label in ranked) + ")")
        return
    for step in engine.stream(prompt_ids(engine, prompt, values, text), sampling):
        print(step.text, end="", flush=True)
    print()


def standard_input() -> str:
    """What comes in there; nothing from a terminal. Raises UserError where it is not UTF-8."""
    try:
        return "" if sys.stdin.isatty() else sys.stdin.read()
    except UnicodeDecodeError as error:
        raise UserError("The standard input is not UTF-8; convert it, for example with `iconv`.") from error


def _new(config: PromptNewConfig, run: Run) -> None:
    text = config.text or standard_input()
    prompt = made(config.name, text, config.lang, config.title, config.purpose, pairs(config.var))
    print(keep(prompt, _folder(config, run), config.force))


def _folder(config: PromptNewConfig | PromptImportConfig, run: Run) -> Path:
    """Where new prompts are kept. Raises UserError for a run that is not there: a folder would be made for a slip of the pen."""
    if not config.everywhere and not run.path.is_dir():
        raise UserError(
            f"There is no run {run.path}; name one with --run, or add --everywhere to keep it for all runs."
        )
    return own_folder(run.path, config.everywhere)


def _import(config: PromptImportConfig, run: Run) -> None:
    prompts = collection(config.file, config.lang)
    folder = _folder(config, run)
    new = [p for p in prompts if not (folder / f"{p.name}.{p.lang}.md").exists()]
    for prompt in new:
        keep(prompt, folder)
    print(f"{folder}: {len(new)} of {len(prompts)} prompts stored, {len(prompts) - len(new)} were there already.")
