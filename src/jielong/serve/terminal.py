"""Chat in the terminal."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

from jielong.config import ChatConfig
from jielong.errors import UserError
from jielong.generate.engine import Engine
from jielong.generate.sampling import Sampling
from jielong.model.native import hint
from jielong.prompt.form import Prompt, pairs
from jielong.prompt.store import find
from jielong.run import Run, write_atomic

HELP = "/new starts anew, /save FILE keeps the conversation as JSON, /quit ends."


def run(config: ChatConfig, run: Run) -> None:
    """Read questions from the terminal (or a pipe) until /quit or the end of the input."""
    from jielong.serve.stage import pick_model

    prompt, values = find(config.prompt, run.path) if config.prompt else Prompt("none"), pairs(config.var)
    opening = prompt.opening(values)
    if told := hint():
        print(told, file=sys.stderr)
    engine = Engine.load(pick_model(run, config.model))
    interactive = sys.stdin.isatty()
    if interactive:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # arrow keys edit the line and bring earlier questions back
    if interactive:
        print(f"{engine.name}: {engine.card['metrics'].get('parameters', 0):,} parameters. {HELP}")
    messages: list[dict[str, str]] = []
    sampling = Sampling(temperature=config.temperature, max_tokens=config.max_tokens, seed=config.seed)
    if config.watermark:
        sampling = _marked(config.watermark, engine, sampling)
    while True:
        try:
            line = input("> " if interactive else "").strip()
        except EOFError:
            return
        if not line:
            continue
        command, _, rest = line.partition(" ")
        if command == "/quit":
            return
        if command == "/new":
            messages = []
        elif command == "/help":
            print(HELP)
        elif command == "/save":
            save([*opening, *messages], rest.strip())
        elif command.startswith("/"):
            print(f"There is no {command}. {HELP}")
        else:
            messages.append({"role": "user", "content": prompt.asked(values, line)})
            try:
                messages.append({"role": "assistant", "content": say(engine, [*opening, *messages], sampling)})
            except UserError as error:
                messages.pop()
                print(error)
            except KeyboardInterrupt:
                messages.pop()
                print(" (stopped)")


def _marked(path: Path, engine: Engine, sampling: Sampling) -> Sampling:
    from jielong.detect.watermark import load_key, marked

    key = load_key(path)
    key.fit(engine.tokenizer, engine.name)
    return marked(key, sampling)


def say(engine: Engine, messages: list[dict[str, str]], sampling: Sampling) -> str:
    text = ""
    for step in engine.stream(engine.chat_ids(messages), sampling):
        print(step.text, end="", flush=True)
        text += step.text
    print()
    return text


def save(messages: list[dict[str, str]], name: str) -> None:
    if not name:
        print("Name a file: /save FILE")
        return
    try:
        write_atomic(Path(name), json.dumps({"messages": messages}, ensure_ascii=False, indent=1))
        print(f"Saved {name}.")
    except OSError as error:
        print(f"{name} cannot be written: {error.strerror}")
