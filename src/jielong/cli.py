"""Every command: build a config, call a stage. Heavy modules are imported only by the command that needs them."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import nullcontext
from dataclasses import field, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any

from jielong.commands import COMMANDS, OF_A_RUN, POSITIONAL, REPEATED, SHARED, WITH_RUN
from jielong.config import DEFAULT_RUN
from jielong.errors import UserError


def usage() -> str:
    lines = [
        "jielong 接龍: raise, own and talk with a whole ChatGPT.",
        "",
        "usage: jielong COMMAND [--help] [options]",
        "",
    ]
    return "\n".join(lines + [f"  {name:17} {text}" for name, (_, text) in COMMANDS.items()])


def main(argv: list[str] | None = None) -> int:
    """The `jielong` command. Exit codes: 0; 2 for what the user can mend; 130 for Ctrl-C."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(usage())
        return 0
    if args[0] in ("-V", "--version"):
        from jielong.run import code_version

        print(f"jielong {code_version()}")
        return 0
    name, rest = split(args)
    try:
        if name not in COMMANDS:
            if inner := [c for c in COMMANDS if c.startswith(f"{name} ")]:
                raise UserError(f"`jielong {name}` needs one word more: {', '.join(inner)}.")
            raise UserError(f"There is no command {name!r}; `jielong --help` lists them.")
        return dispatch(name, rest)
    except UserError as error:
        return fail(str(error))
    except KeyboardInterrupt:
        print("\nStopped. What was finished is kept; the same command continues.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
    except MemoryError:
        return fail("The memory is not enough; use a smaller model, fewer rows or less text.")
    except Exception as error:
        if _disk_full(error):
            return fail("The disk is full; free some space, and the same command continues.")
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            return fail(
                f"{error.filename or 'A file'} cannot be written ({error.strerror}); choose another --run folder."
            )
        raise


def split(args: list[str]) -> tuple[str, list[str]]:
    """The command, which may have two words, and its options."""
    two = " ".join(args[:2])
    return (two, args[2:]) if two in COMMANDS else (args[0], args[1:])


def _disk_full(error: Exception) -> bool:
    """Some libraries (safetensors, tokenizers) tell it in their message only."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "No space left on device" in str(error) or "StorageFull" in str(error)


def fail(message: str) -> int:
    print(f"jielong: {message}", file=sys.stderr)
    return 2


def dispatch(name: str, args: list[str]) -> int:
    config, run_path = parse(name, args)
    if name not in SHARED and os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError(f"torchrun is for {', '.join(SHARED)}; run `jielong {name}` without it.")
    from jielong.run import Run

    run = Run(run_path)
    if name in OF_A_RUN and not run.path.is_dir():
        raise UserError(f"There is no run {run.path}; `jielong raise --run {run.path}` makes one.")
    if name == "key":
        from jielong.serve.keys import make_key

        print(make_key(config.keys, config.name))
    elif name == "plan":
        from jielong.scale.plan import run as plan

        plan(config)
    elif name == "corpus classifier":
        from jielong.corpus.classifier import run as classifier

        classifier(config)
    elif name == "feedback":
        from jielong.feedback.stage import run as feedback

        feedback(config, run)
    elif name in ("detect", "detect key", "detect ledger"):
        from jielong.detect import stage as detecting

        {"detect": detecting.run, "detect key": detecting.key, "detect ledger": detecting.ledger}[name](config, run)
    elif name == "improve":
        from jielong.align.improve import run as improve
        from jielong.train.distributed import job

        with job() as first, run.lock() if first else nullcontext():
            made = improve(config, run)
            if first:
                print(made.path)
    elif name == "forget":
        from jielong.forget.stage import run as forget

        forget(config, run)
    elif name == "owner":
        from jielong.forget.owners import run as owner

        with run.lock():
            print(f"{owner(config, run).path} is served.")
    elif name == "audit":
        from jielong.forget.audit import run as audit

        audit(config, run)
    elif name == "edit":
        from jielong.edit.stage import run as edit

        with run.lock():
            edit(config, run)
    elif name == "edit trace":
        from jielong.edit.trace import run as trace

        trace(config, run)
    elif name == "changes":
        from jielong.edit.stage import changes

        changes(config, run)
    elif name == "undo":
        from jielong.edit.stage import undo

        with run.lock():
            print(f"{run.path} serves {undo(config, run)} now.")
    elif name == "rollback":
        print(f"{run.path} serves {run.rollback()} again.")
    elif name.startswith("prompt "):
        from jielong.prompt.stage import run as prompt

        prompt(name, config, run)
    elif name in ("import", "export"):
        from jielong import convert

        print(convert.run_import(config).path if name == "import" else convert.run_export(config))
    elif name == "raise":
        from jielong.life import raise_

        raise_(config)
    elif name == "chat":
        from jielong.serve.terminal import run as chat

        chat(config, run)
    elif name == "serve":
        from jielong.serve.stage import run as serve

        serve(config, run)
    elif name in SHARED:
        from jielong.train.distributed import job

        with job() as first, run.lock() if first else nullcontext():
            stage(name, config, run, first)
    else:
        with run.lock():
            stage(name, config, run)
    return 0


def stage(name: str, config: Any, run: Any, first: bool = True) -> None:
    """Make a stage's artifact. Of several processes the first one tells about it."""
    from importlib import import_module

    from jielong.lab import EXPERIMENTS
    from jielong.run import MADE_BY

    module = {
        **{f"lab {experiment}": module for experiment, module in EXPERIMENTS.items()},
        "lab all": "jielong.lab.everything",
        "corpus": "jielong.corpus.stage",
        "corpus build": "jielong.corpus.build",
        "tokenizer": "jielong.tokens.tokenizer",
        "pretrain": "jielong.pretrain",
        "finetune": "jielong.finetune",
        "evaluate": "jielong.evaluate.stage",
        "thumbs": "jielong.align.simulate",
        "detect reference": "jielong.detect.reference",
        "report": "jielong.report.stage",
        "scale fit": "jielong.scale.ladder",
    }[name]
    artifact_name = {"corpus build": "corpus", "pretrain": "base", "finetune": "sft", "evaluate": "evaluation"}.get(
        name, name
    )
    if name == "finetune" and config.from_scratch:
        artifact_name = "control"
    if name != "report" and run.artifact(artifact_name) is not None and artifact_name in MADE_BY:
        if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
            return  # torchrun starts all again when one process fails: here after the artifact was written
        raise UserError(
            f"{run.path / artifact_name} exists; delete it to make it anew, or choose another --run folder."
        )
    artifact = import_module(module).run(config, run)
    if artifact is None or not first:  # a cluster works on it; the first process tells
        return
    print(f"{artifact.path}: {artifact.card['seconds']} s")
    if name == "evaluate":
        from jielong.evaluate.stage import table

        for row in table(artifact.card["metrics"]):
            print(f"  {row[0]:8} {row[1]:7} en {row[2]}  zh-TW {row[3]}")


def parse(name: str, args: list[str]) -> tuple[Any, Path]:
    """The config and the run folder. Exits with 2 on unknown options, with 0 on --help."""
    import tyro

    config_type, text = COMMANDS[name]
    args = gathered(args, config_type, REPEATED.get(name, ()))
    if name in POSITIONAL or name in REPEATED:
        config_type = _marked(config_type, POSITIONAL.get(name), REPEATED.get(name, ()))
    if name in WITH_RUN:
        parsed: Any = tyro.cli(config_type, prog=f"jielong {name}", description=text, args=args)
        kind = COMMANDS[name][0]  # without the marks, so that the settings can go to other processes
        config = kind(**{f.name: getattr(parsed, f.name) for f in fields(kind)})
        return config, getattr(config, "run", None) or DEFAULT_RUN
    # the stage's settings and, beside them, the run's folder
    folder: Any = Annotated[Path, tyro.conf.arg(help="The run's folder.")]
    options = make_dataclass("Options", [("run", folder, field(default=DEFAULT_RUN))], bases=(config_type,))
    parsed = tyro.cli(options, prog=f"jielong {name}", description=text, args=args)
    return config_type(**{f.name: getattr(parsed, f.name) for f in fields(config_type)}), parsed.run


def gathered(args: list[str], config_type: type, repeated: tuple[str, ...] = ()) -> list[str]:
    """`--key A --key B` as `--key A B`, for options that take several values and have none by default: else only the last would
    count."""
    several = {f"--{f.name}" for f in fields(config_type) if f.default == () and f.name not in repeated}
    groups: list[list[str]] = [[]]
    first: dict[str, list[str]] = {}
    for arg in args:
        option, equals, value = arg.partition("=")
        known = "--" + option.removeprefix("--").replace("-", "_")
        if not arg.startswith("--"):
            groups[-1].append(arg)
        elif known in several:
            if known not in first:
                first[known] = [option]
            groups.append(first[known])
            first[known] += [value] if equals else []
        else:
            groups.append([arg])
    return [arg for n, group in enumerate(groups) if not any(group is g for g in groups[:n]) for arg in group]


def _marked(config_type: type, positional: str | tuple[str, ...] | None, repeated: tuple[str, ...]) -> type:
    """The same settings, with fields given by their place, and options that may be repeated."""
    from typing import get_type_hints

    import tyro

    places = (positional,) if isinstance(positional, str) else positional or ()
    marks: dict[str, Any] = dict.fromkeys(places, tyro.conf.Positional) | dict.fromkeys(
        repeated, tyro.conf.UseAppendAction
    )
    hints, first = get_type_hints(config_type), {f.name: f.default for f in fields(config_type)}
    marked: list[Any] = [
        (name, Annotated[hints[name], mark], field(default=first[name])) for name, mark in marks.items()
    ]
    return make_dataclass(config_type.__name__, marked, bases=(config_type,))


if __name__ == "__main__":
    code = main()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        # PyTorch's threads may outlive what they belong to, and abort a process that has done its work ("terminate called")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
