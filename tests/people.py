"""A tiny run with people's thumbs, and a server of it, for the tests of training from feedback."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator

from jielong.align.rollout import rollout
from jielong.feedback.stage import store_of
from jielong.feedback.store import Answer, Event
from jielong.model.gpt import load_model
from jielong.run import Run
from jielong.tokens.chat import encode_chat
from jielong.tokens.tokenizer import Tokenizer

ROOM = 24  # tokens; these people like answers that come to an end within them
REWARD = {"optim": {"adam_lr": 3e-3, "scalar_lr": 3e-3}, "epochs": 6, "references": 64, "max_tokens": ROOM}
PPO = {
    "optim": {"adam_lr": 5e-3, "scalar_lr": 5e-3}, "iterations": 9, "episodes": 64, "epochs": 4, "ptx": 0.0,
    "max_tokens": ROOM, "temperature": 1.0, "kl": 0.02, "keep_every": 3,
}  # fmt: skip
TRAINING = {
    "reward": REWARD, "ppo": PPO, "samples": 2, "guard_bits": 0.5, "guard_language": 1.0, "guard_repetition": 99.0, "guard_kl": 99.0,
}  # fmt: skip


def press(run: Run, count: int, like=lambda answer: len(answer) < ROOM) -> None:
    """`count` thumbs of three people on answers of sft."""
    start = run.need("sft")
    tokenizer = Tokenizer.load(start.file("tokenizer.json"))
    messages = [[{"role": "user", "content": f"Tell me about {'ABCDEFGH'[n % 8]}{n // 2}."}] for n in range(count)]
    prompts = [encode_chat(tokenizer, m, True)[0] for m in messages]
    drawn = rollout(load_model(start.path), tokenizer, prompts, list(range(count)), 1.0, ROOM)
    rows = []
    for n, (text, s) in enumerate(zip(drawn.texts, drawn.sequences, strict=True)):
        user = f"person-{n % 3}"
        answer = Answer(f"a{n}", messages[n], text, list(s.prompt), list(s.answer), [0.0] * len(s.answer), {}, "stop", "sft", start.hash, user)  # fmt: skip
        rows.append((Event("thumb", user, answer.id, "up" if like(s.answer) else "down"), [answer]))
    store_of("", run).add_all(rows)


@contextlib.contextmanager
def served(run: Run, *options: str) -> Iterator[str]:
    """`jielong serve` of the run; its address."""
    command = [sys.executable, "-m", "jielong.cli", "serve", "--run", str(run.path), "--no-open", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found, "the server did not start"
        yield found.group()
    finally:
        process.terminate()
        process.wait(60)
