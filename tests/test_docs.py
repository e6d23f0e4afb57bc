"""The documented commands exist with the documented options, and the documented Python runs."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from jielong.cli import COMMANDS, parse, split

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "README.zh-TW.md", "docs/guide.md", "docs/guide.zh-TW.md"]


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
    name, args = split(shlex.split(command)[1:])
    assert name in COMMANDS
    parse(name, args)


def test_the_guides_tiny_commands_run(tmp_path):
    """The commands of the guide that take seconds, in their order, as a reader would type them."""
    lines = list(dict.fromkeys(c for c in commands() if "runs/tiny" in c))  # the same in both languages
    assert [shlex.split(c)[1] for c in lines] == [
        "raise", "chat", "serve", "export", "export", "import", "feedback", "improve", "rollback",
        "prompt", "prompt",
    ]  # fmt: skip
    for line in lines:
        command = [sys.executable, "-m", "jielong.cli", *shlex.split(line)[1:]]
        if " serve " in line:
            process = subprocess.Popen([*command, "--no-open"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
            assert process.stdout is not None
            url = next(m.group() for text in process.stdout if (m := re.search(r"http://[\w.:]+", text)))
            assert httpx.get(f"{url}/health").status_code == 200
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130
        else:
            done = subprocess.run(command, cwd=tmp_path, input="Hello!\n/quit\n", text=True, capture_output=True)
            if shlex.split(line)[1] in (
                "improve",
                "rollback",
            ):  # the tiny model's thumbs teach nothing, and that is what it says
                assert done.returncode == 2 and ("cannot be trusted" in done.stderr or "no other model" in done.stderr)
            else:
                assert done.returncode == 0 and done.stdout.strip(), done.stderr


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
