"""A prompt and its file.

A prompt file is plain text: a few `key: value` lines, a line `---`, and what the model reads first, the system message.
Demonstrations may follow, each begun by a line of its own, and at last the form of the user's text:

    name: opposite
    title: Opposites
    purpose: Names the opposite of a word.
    lang: en
    variable: tone = friendly
    ---
    Give the opposite of the word, in a {{tone}} way.
    === user
    hot
    === assistant
    cold
    === user
    Word: {{input}}

`{{name}}` stands for a variable in the first and the last part; `{{input}}` is what the user says. `label:` lines name the
only answers that there are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from jielong.errors import UserError

VARIABLE = re.compile(r"\{\{\s*([^\W\d]\w*)\s*\}\}")
NAME = re.compile(r"[\w-]{1,64}")
INPUT = "{{input}}"
_ROLE = re.compile(r"=== (user|assistant)")
_KEYS = ("name", "title", "purpose", "lang", "variable", "label", "calibrated")
Message = dict[str, str]


@dataclass(frozen=True)
class Prompt:
    """What stands before a question, and around it."""

    name: str
    system: str = ""
    shots: tuple[tuple[str, str], ...] = ()
    """Demonstrations: (what a user says, the answer)."""
    ask: str = INPUT
    """Form of the user's text."""
    title: str = ""
    purpose: str = ""
    lang: str = ""
    variables: tuple[tuple[str, str | None], ...] = ()
    """(name, default or None)"""
    labels: tuple[str, ...] = ()
    """The only answers that there are; none = any text."""
    calibrated: bool = False
    """Are the labels' probabilities to be divided by those without a question?"""
    source: str = ""
    """Where it comes from: run, yours or built in."""

    def values(self, given: Mapping[str, str]) -> dict[str, str]:
        """The variables' values. Raises UserError for a missing and for an unknown one."""
        names = [n for n, _ in self.variables]
        for name in given:
            if name not in names and name != "input":
                known = f"it has {', '.join(names)}" if names else "it has none"
                raise UserError(f"The prompt {self.name} has no variable {name!r}; {known}.")
        found = dict(self.variables) | dict(given)
        missing = [n for n in names if found[n] is None]
        if missing:
            raise UserError(f"The prompt {self.name} needs {missing[0]!r}; give it with --var {missing[0]}=….")
        return {n: v for n, v in found.items() if v is not None}

    def opening(self, given: Mapping[str, str]) -> list[Message]:
        """The messages before the first question."""
        system = fill(self.system, self.values(given))
        first = [{"role": "system", "content": system}] if system else []
        for said, answer in self.shots:
            first += [{"role": "user", "content": said}, {"role": "assistant", "content": answer}]
        return first

    def asked(self, given: Mapping[str, str], text: str) -> str:
        """The user's text in its form."""
        return fill(self.ask, {**self.values(given), "input": text})

    def messages(self, given: Mapping[str, str], text: str) -> list[Message]:
        """The whole conversation, up to and with one question."""
        return [*self.opening(given), {"role": "user", "content": self.asked(given, text)}]

    def with_shots(self, shots: list[tuple[str, str]]) -> Prompt:
        return replace(self, shots=(*self.shots, *shots))


def fill(template: str, values: Mapping[str, str]) -> str:
    """Variables replaced, each once: braces in a value stay braces. Raises UserError for one without a value."""

    def value(found: re.Match[str]) -> str:
        if found[1] not in values:
            raise UserError(f"Nothing is given for {{{{{found[1]}}}}}.")
        return values[found[1]]

    return VARIABLE.sub(value, template)


def whole(text: str, what: str) -> str:
    """The text. Raises UserError for one with half a character (a lone surrogate), which nothing can write or read."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{what} is not valid Unicode: its character {error.start + 1} is half of one.") from error
    return text


def variables_in(*templates: str) -> list[str]:
    """Names of the variables, in the order in which they first stand there."""
    return list(dict.fromkeys(name for t in templates for name in VARIABLE.findall(t)))


def pairs(given: tuple[str, ...]) -> dict[str, str]:
    """("a=b", …) → {"a": "b"}. Raises UserError for one without =."""
    for entry in given:
        if "=" not in entry:
            raise UserError(f"--var {entry} must read NAME=VALUE.")
    return {name.strip(): value for name, _, value in (entry.partition("=") for entry in given)}


def parse(text: str, where: str) -> Prompt:
    """A prompt file's content. Raises UserError that names the place `where` and what is wrong with it."""
    head, line, body = text.replace("\r\n", "\n").partition("\n---\n")
    if not line:
        raise UserError(f"{where} is no prompt file: a line --- must part its head from its text.")
    fields: dict[str, list[str]] = {key: [] for key in _KEYS}
    for entry in head.splitlines():
        key, colon, value = entry.partition(":")
        if entry.strip() and (not colon or key.strip() not in fields):
            raise UserError(f"{where}: {entry.strip()!r} is not one of the lines {', '.join(_KEYS)}.")
        if entry.strip():
            fields[key.strip()].append(value.strip())
    one = {key: (values[-1] if values else "") for key, values in fields.items()}
    if not NAME.fullmatch(one["name"]):
        raise UserError(f"{where}: name must be 1 to 64 letters, digits, - or _, not {one['name']!r}.")
    parts = _parts(body)
    system, turns = parts[0][1], parts[1:]
    ask = INPUT
    if turns and turns[-1][0] == "user":
        ask = turns.pop()[1]
    if [role for role, _ in turns] != ["user", "assistant"] * (len(turns) // 2):
        raise UserError(
            f"{where}: after each '=== user' there must be one '=== assistant', the last user's part excepted."
        )
    variables = []
    for entry in fields["variable"]:
        name, equals, default = (p.strip() for p in entry.partition("="))
        if not VARIABLE.fullmatch(f"{{{{{name}}}}}") or name == "input":
            raise UserError(f"{where}: {name!r} is no name for a variable.")
        variables.append((name, default if equals else None))
    known = {"input", *(n for n, _ in variables)}
    unknown = [n for n in variables_in(system, ask) if n not in known]
    if unknown:
        raise UserError(f"{where} uses {{{{{unknown[0]}}}}} and has no line 'variable: {unknown[0]}'.")
    if "input" in variables_in(system) or "input" not in variables_in(ask):
        raise UserError(f"{where}: {INPUT} belongs into the last user's part, and only there.")
    texts = [t for _, t in turns]
    return Prompt(
        one["name"],
        system,
        tuple(zip(texts[::2], texts[1::2], strict=True)),
        ask,
        one["title"] or one["name"],
        one["purpose"],
        one["lang"],
        tuple(variables),
        tuple(fields["label"]),
        one["calibrated"] == "yes",
    )


def _parts(body: str) -> list[tuple[str, str]]:
    """[("system", text), ("user", text), …]"""
    parts: list[tuple[str, list[str]]] = [("system", [])]
    for line in body.split("\n"):
        if found := _ROLE.fullmatch(line):
            parts.append((found[1], []))
        else:
            bare = line.lstrip("\\")
            parts[-1][1].append(line[1:] if line != bare and _ROLE.fullmatch(bare) else line)
    return [(role, "\n".join(lines).strip("\n")) for role, lines in parts]


def write(prompt: Prompt) -> str:
    """The file of a prompt; `parse` reads the same back, but for newlines around a part."""

    def guarded(text: str) -> str:
        return "\n".join("\\" + line if _ROLE.fullmatch(line.lstrip("\\")) else line for line in text.split("\n"))

    def flat(text: str) -> str:
        return " ".join(text.split())

    head = [
        f"name: {prompt.name}",
        f"title: {flat(prompt.title)}",
        f"purpose: {flat(prompt.purpose)}",
        f"lang: {prompt.lang}",
    ]
    head += [f"variable: {n}" + ("" if d is None else f" = {flat(d)}") for n, d in prompt.variables]
    head += [f"label: {label}" for label in prompt.labels]
    head += ["calibrated: yes"] if prompt.calibrated else []
    turns = [(role, text) for shot in prompt.shots for role, text in zip(("user", "assistant"), shot, strict=True)]
    if prompt.ask != INPUT:
        turns.append(("user", prompt.ask))
    body = [guarded(prompt.system), *(f"=== {role}\n{guarded(text)}" for role, text in turns)]
    return "\n".join([*head, "---", *body]) + "\n"


def read(path: Path) -> Prompt:
    """Raises UserError for a file that cannot be read or is no prompt."""
    try:
        return parse(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
