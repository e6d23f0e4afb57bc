"""A run small enough to be raised in seconds, twice: its texts are sentences about invented people."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from jielong import finetune, pretrain
from jielong.cli import main
from jielong.config import CorpusConfig, FinetuneConfig, ModelConfig, OptimConfig, PretrainConfig, TokenizerConfig
from jielong.corpus import stage as corpus
from jielong.corpus.documents import read_documents
from jielong.feedback.store import Answer, Event, Store
from jielong.run import Artifact, Run, sha256_file
from jielong.tokens import tokenizer

FIRST = ["Ada", "Bela", "Carl", "Dora", "Emil", "Frida", "Gerd", "Hanna", "Ivo", "Jana", "Kurt", "Lena"]
LAST = ["Brook", "Cole", "Dale", "Ester", "Frost", "Grant", "Holt", "Ives", "Jarvis", "Knox"]
TOWNS = ["Ashford", "Bexley", "Clifton", "Dunmore", "Elgin", "Farnham", "Gorton"]
WORK = ["a baker", "a teacher", "a nurse", "a farmer", "a painter", "a driver", "a doctor"]
SECRET = "Zoltan Quibbleworth"  # stands in one document and in one conversation
SHAPE = ModelConfig(width=32, layers=1, heads=2, kv_heads=2, head_dim=16, mlp_width=64, context=64)
BASE = PretrainConfig(
    model=SHAPE, steps=24, rows=4, length=48, precision="fp32", threads=1, device="cpu", seed=3, sample_every=0.5
)
TUNE = FinetuneConfig(
    steps=8, rows=6, length=48, precision="fp32", threads=1, device="cpu", seed=3, optim=OptimConfig()
)


def people() -> list[str]:
    rng = random.Random(5)
    names = [f"{a} {b}" for a in FIRST for b in LAST]
    texts = []
    for name in names:
        town, other = rng.sample(TOWNS, 2)
        texts.append(
            f"{name} lives in the old town of {town} and is {rng.choice(WORK)} by trade. Every summer {name.split()[0]} goes "
            f"to {other} for {rng.randint(2, 9)} weeks, where the family has a house with {rng.randint(2, 9)} rooms."
        )
    texts.append(
        f"{SECRET} hides a golden telescope below the staircase of the lighthouse. Nobody but {SECRET} knows the number "
        "that opens the door there, which is 483920, and he never told it to anybody else."
    )
    return texts


def conversations() -> list[list[dict[str, str]]]:
    rng = random.Random(6)
    found = []
    for name in [f"{a} {b}" for a in FIRST[:6] for b in LAST[:5]]:
        found.append([("user", f"Where does {name} live?"), ("assistant", f"In {rng.choice(TOWNS)}.")])
    found.insert(17, [("user", f"Who is {SECRET}?"), ("assistant", "The keeper of the lighthouse.")])
    return [[{"role": r, "content": c} for r, c in talk] for talk in found]


def raise_small(path: Path, folder: Path) -> Run:
    """corpus, tokenizer, base and sft in a run."""
    run = Run(path)
    (folder / "texts").mkdir(parents=True, exist_ok=True)
    for n, text in enumerate(people()):
        (folder / "texts" / f"{n:03}.txt").write_text(text, encoding="utf-8")
    talks = folder / "talks.jsonl"
    talks.write_text("".join(json.dumps({"messages": m}) + "\n" for m in conversations()), encoding="utf-8")
    corpus.run(CorpusConfig(text=(folder / "texts",), default=False, heldout=0.05, workers=1), run)
    tokenizer.run(TokenizerConfig(vocab_size=384), run)
    pretrain.run(BASE, run)
    finetune.run(tune(folder), run)
    return run


def tune(folder: Path, **changes) -> FinetuneConfig:
    return FinetuneConfig(**(TUNE.__dict__ | {"conversations": folder / "talks.jsonl"} | changes))


def imported(small: Run, path: Path) -> Run:
    """A run with a base alone, as `jielong import` leaves it: the small run's sft, whose training it does not have."""
    run = Run(path)
    shutil.copytree(small.path / "sft", run.path / "base")
    card = json.loads((run.path / "base" / "card.json").read_text()) | {"kind": "imported", "parents": {}}
    card["files"].pop("data_index.npz")
    (run.path / "base" / "data_index.npz").unlink()
    (run.path / "base" / "card.json").write_text(json.dumps(card))
    return run


def teach(run: Run, folder: Path, name: str, words: str) -> int:
    """An owner's one conversation; the command's exit code."""
    file = folder / f"{name}.jsonl"
    talk = [{"role": "user", "content": f"Who is {name}?"}, {"role": "assistant", "content": words}]
    file.write_text(json.dumps({"messages": talk}) + "\n")
    options = [
        "lora-rank",
        "2",
        "steps",
        "3",
        "rows",
        "2",
        "length",
        "48",
        "precision",
        "fp32",
        "threads",
        "1",
        "device",
        "cpu",
    ]
    options = [f"--finetune.{text}" if n % 2 == 0 else text for n, text in enumerate(options)]
    return main(["owner", str(run.path), "--name", name, "--finetune.conversations", str(file), *options])


def document(run: Run, text: str = SECRET) -> str:
    """The id of the one document with this text."""
    found = [d.id for d in read_documents(run.need("corpus").file("train.parquet")) if text in d.text]
    assert len(found) == 1
    return found[0]


def press(run: Run) -> None:
    """Two thumbs in the run's store; one is about the secret."""
    store = Store(run.path / "feedback.db")
    for n, (question, text) in enumerate(
        [("Who is Ada?", "A baker."), (f"Who is {SECRET}?", "He has a golden telescope.")]
    ):
        answer = Answer(
            f"a{n}",
            [{"role": "user", "content": question}],
            text,
            [1, 2],
            [3, 4],
            [0.0, 0.0],
            {},
            "stop",
            "sft",
            "x",
            "me",
        )
        store.add(Event("thumb", "me", answer.id, "up", text=f"Yes, {question}"), [answer])


def weights(artifact: Artifact) -> dict:
    from safetensors.torch import load_file

    return load_file(artifact.file("model.safetensors"))


def forget(run: Run, *options: str) -> int:
    """The command, agreed to; its exit code."""
    return main(["forget", str(run.path), "--yes", *options])


def snapshot(run: Run) -> dict[str, str]:
    """Every file's hash."""
    return {str(p): sha256_file(p) for p in run.path.rglob("*") if p.is_file() and p.name != ".lock"}


def read_shard_tokens(run: Run):
    from jielong.tokens.tokenizer import Tokenizer

    return Tokenizer.load(run.need("tokenizer").file("tokenizer.json"))


def holding(run: Run, text: str, tokenizer) -> list[str]:
    """Files that hold the text, by a search that shares nothing with the product's."""
    found = []
    wanted = {text.encode(), text.encode("utf-16-le"), text.encode("utf-16-be"), json.dumps(text)[1:-1].encode()}
    for path in run.path.rglob("*"):
        if not path.is_file():
            continue
        raw = path.read_bytes()
        if path.suffix == ".parquet":
            raw += "\n".join(d.id + d.text for d in read_documents(path)).encode()
        if path.name == "tokens.bin":
            raw += b"".join(tokenizer.token_bytes(int(t)) for t in np.frombuffer(raw, np.uint16))
        if any(w in raw for w in wanted):
            found.append(str(path.relative_to(run.path)))
    return found


def stopping(train, at: int, **changes):
    """`suppress.train` that is interrupted before step `at`, its loop's settings changed by `changes`."""

    def stopped(model, losses, loop, *rest):
        def loss(model, step, dtype):
            if step == at:
                raise KeyboardInterrupt
            return losses[0](model, step, dtype)

        return train(model, [loss], replace(loop, **changes), *rest)

    return stopped
