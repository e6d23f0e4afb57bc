"""Fine-tuning: the teacher's conversations, the loss on the assistant's tokens only."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from pathlib import Path

import torch

from jielong.changes.forgotten import forgotten
from jielong.config import FinetuneConfig, ModelConfig, OptimConfig
from jielong.errors import UserError
from jielong.model.gpt import GPT, load_model
from jielong.model.lora import add_lora
from jielong.pretrain import train_artifact
from jielong.run import Artifact, Run
from jielong.tokens.chat import check_messages, encode_chat, spell
from jielong.tokens.shards import DataIndex, Shard, make_index, read_shard, write_shard
from jielong.tokens.tokenizer import Tokenizer
from jielong.train.loop import use_threads

CONTROL_EPOCHS = 1.5  # as often as spark's pretraining reads its lessons


def read_conversations(path: Path) -> list[list[dict[str, str]]]:
    """JSONL with `messages`, or with `prompt` and `completion` as `jielong feedback export` writes demonstrations. Raises
    UserError that names the line."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); give a UTF-8 JSONL file with `messages`.") from error
    conversations = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = json.loads(line)
                messages = [*row["prompt"], *row["completion"]] if "completion" in row else row["messages"]
                check_messages(messages)
            except (ValueError, KeyError, TypeError, UserError) as error:
                raise UserError(f'{path}, line {number}: {error}. Each line needs {{"messages": [...]}}.') from error
            conversations.append(messages)
    if not conversations:
        raise UserError(f"{path} holds no conversations.")
    return conversations


def run(
    config: FinetuneConfig,
    run: Run,
    drop: frozenset[str] = frozenset(),
    keep: bool = False,
    name: str = "",
    history: bool = True,
) -> Artifact:
    """The fine-tuning stage: base + conversations → sft, or the artifact `name`.

    `drop` names conversations to train without; `keep` takes them, as tokens, from the work folder in place of their source, and goes on from the plan and the
    checkpoints there (forget.replay). Without `history` only the newest checkpoint is kept: nothing can be replayed, and a disk is spared.

    The control (`from_scratch`) starts from random weights of the same shape and reads every conversation that the
    assistant has read, those in its pretraining too: what it cannot answer, raw text taught the assistant.
    """
    base = run.need("base")
    tokenizer = Tokenizer.load(base.file("tokenizer.json"))
    name = name or ("control" if config.from_scratch else "sft")
    work = run.work(name)
    if keep:
        positions, _ = _measure(read_shard(work))
        ids, encoded = [], []
    else:
        conversations = _conversations(config, base)
        encoded = [encode_chat(tokenizer, messages) for messages in conversations]
        encoded = [(ids[: config.length + 1], learn[: config.length + 1]) for ids, learn in encoded]
        gone = forgotten(run)
        kept = [n for n, (ids, _) in enumerate(encoded) if not gone(spell(tokenizer, ids))]
        conversations, encoded = [conversations[n] for n in kept], [encoded[n] for n in kept]
        if not encoded:
            raise UserError("All of these conversations were forgotten by this run; give others.")
        ids = [
            hashlib.sha256(json.dumps([n, m], ensure_ascii=False).encode()).hexdigest()[:16]
            for n, m in enumerate(conversations)
        ]
        positions = sum(len(tokens) - 1 for tokens, _ in encoded)
    if config.from_scratch and not config.conversations:  # random weights pretraining's learning rates to learn at all
        config = dataclasses.replace(config, steps=0, epochs=CONTROL_EPOCHS, optim=OptimConfig())
    config = dataclasses.replace(
        config,
        threads=use_threads(config.threads),
        steps=config.steps or max(1, math.ceil(config.epochs * positions * 1.03 / (config.rows * config.length))),
    )
    with torch.device("meta"):  # the control's weights are drawn when it is divided
        model = GPT(ModelConfig(**json.loads(base.file("model.json").read_text(encoding="utf-8"))))
    if config.length > model.config.context:
        raise UserError(f"length ({config.length}) exceeds the model's context ({model.config.context}).")
    if not config.from_scratch:
        model = load_model(base.path)
        if config.lora_rank:
            add_lora(model, config.lora_rank, config.lora_alpha or 2.0 * config.lora_rank, config.seed)

    def prepare(work: Path) -> tuple[Shard, DataIndex, float]:
        if not (work / "index.npz").exists():
            write_shard(work, ids, [t for t, _ in encoded], tokenizer.vocab_size, [m for _, m in encoded])
            shard = read_shard(work)
            index = make_index(shard.lengths, shard.ids, config.length, config.steps * config.rows, config.seed)
            index.save(work / "index.partial")
            (work / "index.partial").rename(work / "index.npz")
        shard, index = read_shard(work), DataIndex.load(work / "index.npz")
        positions, learnt = _measure(shard)
        return shard, index, max(1.0, config.rows * config.length * (learnt / positions))

    return train_artifact(
        run, name, "sft", config, [base], model, base.file("tokenizer.json"), prepare, config.steps, config.optim, None,
        drop, history, keep,
    )  # fmt: skip


def _conversations(config: FinetuneConfig, base: Artifact) -> list[list[dict[str, str]]]:
    """The user's own, or those of the built-in teacher."""
    if config.conversations:
        return read_conversations(config.conversations)
    from jielong.corpus.world import load_world
    from jielong.teacher.lessons import lessons

    # pretraining has read the first ones, fine-tuning goes on with new ones; the control reads them all
    known = base.card["config"].get("lessons", 0)  # an imported model has read none
    found = lessons(load_world(), config.seed, config.lessons, first=known, habits=config.habits)
    if not config.from_scratch:
        return found
    return lessons(load_world(), config.seed, known, habits=base.card["config"].get("habits", 0.0)) + found


def _measure(shard: Shard) -> tuple[int, int]:
    """Positions of the conversations, and how many have a loss: those of forgotten ones, too, since the length of the training and
    the norm of its loss are those of the plan."""
    assert shard.trained is not None
    return len(shard.tokens) - len(shard), int(shard.trained.sum()) - int(shard.trained[shard.starts[:-1]].sum())
