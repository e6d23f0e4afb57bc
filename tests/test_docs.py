"""The documented commands exist with the documented options, and the documented Python runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from jielong.cli import COMMANDS, parse

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "README.zh-TW.md", "docs/guide.md"]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.S)


def commands() -> list[str]:
    found = []
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        lines = [line.split("#")[0].strip() for block in blocks(page, "sh") for line in block.splitlines()]
        lines += re.findall(r"`(jielong [a-z]+ --[^`|]*)`", text)
        found += [line for line in lines if line.startswith("jielong ")]
    return found


@pytest.mark.parametrize("command", commands())
def test_documented_command(command):
    _, name, *args = shlex.split(command)
    assert name in COMMANDS
    parse(name, args)


def test_make_targets_exist():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
    for page in PAGES:
        for target in re.findall(r"(?:`|^)make ([a-z]+)", (ROOT / page).read_text(encoding="utf-8"), re.M):
            assert target in targets


@pytest.mark.parametrize("page", PAGES)
def test_documented_python(page, life):
    for block in blocks(page, "python"):
        code = block.replace("runs/spark", str(life)).replace("runs/tiny", str(life))
        code = code.replace('recipe="tiny",', 'recipe="tiny", control=True,')
        exec(compile(code, page, "exec"), {})
