"""The library of prompts: the run's own, the user's, and the built-in ones, all of them plain files."""

from __future__ import annotations

import csv
import difflib
import io
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from jielong.errors import UserError
from jielong.prompt.form import NAME, Prompt, fill, parse, read, variables_in, whole, write
from jielong.run import write_atomic

BUILT_IN = Path(__file__).parent / "roles"
LANGUAGES = ("en", "zh-TW")
_DOLLAR = re.compile(r"\$\{([^{}:]+)(?::([^{}]*))?\}")  # how some collections write a variable and its default


def own_folder(run: Path | None, everywhere: bool = False) -> Path:
    """Where a new prompt is kept."""
    if run is not None and not everywhere:
        return run / "prompts"
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "jielong" / "prompts"


def library(run: Path | None) -> tuple[list[Prompt], list[str]]:
    """(all prompts, what is wrong with files that cannot be read). Of several with one name and language the run's own
    wins over what a search found, that over the user's, and that over the built-in one."""
    places: list[tuple[str, Path]] = []
    if run is not None:
        places += [("run", own_folder(run)), *(("run", p) for p in sorted(run.glob("prompt-*")))]
    places += [("yours", own_folder(None)), ("built in", BUILT_IN)]
    found: dict[tuple[str, str], Prompt] = {}
    problems = []
    for source, folder in places:
        for file in sorted(folder.glob("*.md")):
            try:
                prompt = replace(read(file), source=source)
            except UserError as problem:
                problems.append(str(problem))
                continue
            found.setdefault((prompt.name, prompt.lang), prompt)
    return sorted(found.values(), key=lambda p: (p.name, p.lang)), problems


def find(name: str, run: Path | None, lang: str = "") -> Prompt:
    """The prompt of this name (NAME, or NAME.LANG), or in this file. Raises UserError that names similar ones when there is none."""
    if name.endswith(".md") and len(name.encode(errors="replace")) < 256 and Path(name).is_file():
        return read(Path(name))
    prompts, problems = library(run)
    name, _, given = name.partition(".")
    lang = lang or given
    named = [p for p in prompts if p.name == name]
    for prompt in named:
        if not lang or prompt.lang == lang:
            return prompt
    if named:
        raise UserError(f"The prompt {name} is there in {', '.join(p.lang or '?' for p in named)}, not in {lang}.")
    damaged = next((p for p in problems if name in p), "")
    near = difflib.get_close_matches(name, sorted({p.name for p in prompts}), 3)
    hint = f"similar ones: {', '.join(near)}" if near else "`jielong prompt list` shows them all"
    raise UserError(damaged or f"There is no prompt {name!r}; {hint}.")


def keep(prompt: Prompt, folder: Path, force: bool = False) -> Path:
    """Write a prompt's file into `folder`. Raises UserError for a wrong name, and where it exists already."""
    text = write(prompt)
    parse(text, f"The prompt {prompt.name!r}")
    path = folder / f"{prompt.name}.{prompt.lang}.md"
    if path.exists() and not force:
        raise UserError(f"{path} exists; use another name, or --force to overwrite it.")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text)
    return path


def made(
    name: str, text: str, lang: str, title: str = "", purpose: str = "", defaults: dict[str, str] | None = None
) -> Prompt:
    """A prompt whose system message is `text`; its variables are those that stand there. Raises UserError for an empty
    text or one that is not valid Unicode, a wrong name or language, or a default without a variable."""
    if not NAME.fullmatch(name):
        raise UserError(f"A prompt's name is 1 to 64 letters, digits, - or _, not {name!r}.")
    if lang not in LANGUAGES:
        raise UserError(f"--lang must be one of {', '.join(LANGUAGES)}.")
    if not text.strip():
        raise UserError("The prompt's text is empty; give it with --text, or on the standard input.")
    defaults = defaults or {}
    whole("".join((text, title, purpose, *defaults.values())), f"The prompt {name!r}")
    names = variables_in(text)
    for default in defaults:
        if default not in names:
            raise UserError(f"--var {default}=… has no {{{{{default}}}}} in the text.")
    variables = tuple((n, defaults.get(n)) for n in names)
    return Prompt(name, text.strip(), title=title or name, purpose=purpose, lang=lang, variables=variables)


def collection(path: Path, lang: str) -> list[Prompt]:
    """Prompts of a public collection: a JSON list of objects, or a CSV, with `act` and `prompt`; other fields are left out.
    `${Name:default}` becomes a variable. Raises UserError that names the row that is wrong; then nothing is taken."""
    try:
        raw = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    prompts: dict[str, Prompt] = {}
    for number, row in enumerate(_rows(raw, path), 1):
        act, text = (row.get(key) for key in ("act", "prompt")) if isinstance(row, dict) else (None, None)
        if not isinstance(act, str) or not isinstance(text, str) or not act.strip() or not text.strip():
            raise UserError(f"{path}: row {number} has no text for both act and prompt; mend or remove it.")
        text, defaults = _with_variables(text)
        name = stem = re.sub(r"[\W_]+", "-", act.lower()).strip("-")[:56] or f"prompt-{number}"
        prompt = made(stem, text, lang, " ".join(act.split()), "", defaults)
        again = 2
        while name in prompts and prompts[name].system != prompt.system:
            name, again = f"{stem}-{again}", again + 1
        prompts[name] = replace(prompt, name=name)
    if not prompts:
        raise UserError(f"{path} has no rows.")
    return list(prompts.values())


def _rows(raw: str, path: Path) -> list[Any]:
    if raw.lstrip().startswith("["):
        try:
            return json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is no valid JSON: {error}.") from error
    csv.field_size_limit(max(csv.field_size_limit(), len(raw)))
    reader = csv.DictReader(io.StringIO(raw), strict=True)
    try:
        if not {"act", "prompt"} <= set(reader.fieldnames or ()):
            raise UserError(f"{path} is neither a JSON list nor a CSV whose first line names act and prompt.")
        return list(reader)
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}, is no valid CSV: {error}.") from error


def _with_variables(text: str) -> tuple[str, dict[str, str]]:
    """`${Two words:default}` as {{Two_words}}, with the defaults; {{input}} would be the user's text, so it gets another name."""
    defaults: dict[str, str] = {}

    def variable(found: re.Match[str]) -> str:
        name = re.sub(r"\W+", "_", found[1].strip())
        name = f"_{name}" if not name or name[0].isdigit() or name == "input" else name
        if found[2] is not None:
            defaults[name] = " ".join(found[2].split())
        return f"{{{{{name}}}}}"

    text = _DOLLAR.sub(variable, text)
    names = {n: "{{" + ("_input" if n == "input" else n) + "}}" for n in variables_in(text)}
    return fill(text, names), defaults
