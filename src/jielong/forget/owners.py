"""Adapters: each owner's conversations make a low-rank change of their own to a frozen base, and what is served is the base with all
of them. Forgetting an owner is leaving their change out: the sum is made anew of the base and the others, so that it is, bit for
bit, the one that would be there had the owner never come. That holds for what the owner brought, not for what the base knew before.
"""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass
from typing import Any

from jielong.changes.journal import settle
from jielong.changes.ledger import Entry, Ledger
from jielong.changes.words import say
from jielong.config import FinetuneConfig, ForgetConfig, OwnerConfig
from jielong.errors import Unclear, UserError
from jielong.finetune import run as finetune
from jielong.forget import commit, replay
from jielong.forget.find import NAME as GONE
from jielong.forget.find import OWNER
from jielong.forget.items import Examples
from jielong.forget.preview import Cost
from jielong.forget.telling import Tell, nobody
from jielong.forget.tree import TOGETHER, sorted_by_parents
from jielong.model.delta import Delta, joined, save_delta
from jielong.model.gpt import read_shape, write_shape
from jielong.model.lora import ADAPTER
from jielong.run import Artifact, Run, sha256_file
from jielong.tokens.tokenizer import copy_tokenizer

NAME = re.compile(r"[\w-]{1,64}", re.ASCII)


def run(config: OwnerConfig, run: Run) -> Artifact:
    """Train an owner's adapter and put all of them together. The caller holds the run's lock. Raises UserError for a name that
    is none or taken, and without conversations."""
    if not config.name:
        if not owners(run):
            raise UserError(f"{run.path} has no owners yet; name one with --name and --finetune.conversations FILE.")
        return put_together(run)
    if not NAME.fullmatch(config.name):
        raise UserError(f"{config.name!r} is no name for an owner; use letters, digits, - and _.")
    if config.finetune.conversations is None:
        raise UserError("An owner needs conversations of their own: --finetune.conversations FILE.")
    if config.finetune.lora_rank < 1 or config.finetune.from_scratch:
        raise UserError("An owner's adapter needs --finetune.lora-rank of at least 1, and the base to stand on.")
    name = OWNER + config.name
    if run.artifact(name) is not None:
        raise UserError(
            f"{run.path / name} exists; forget the owner first (`jielong forget {run.path} --owner {config.name}`)."
        )
    finetune(config.finetune, run, name=name)
    return put_together(run)


def owners(run: Run) -> list[Artifact]:
    """The adapters, by name."""
    return sorted((a for a in run.artifacts() if a.name.startswith(OWNER)), key=lambda a: a.name)


def told(run: Run) -> list[dict[str, Any]]:
    """Of every owner the name, how many conversations were taught, when, and whether they are in the model that talks."""
    whole, found = run.artifact(TOGETHER), []
    talks = run.serving() in (TOGETHER, *descendants(run, TOGETHER))
    summed = whole.card["parents"] if whole and talks else {}
    for adapter in owners(run):
        try:
            ids = json.loads(adapter.file("records.json").read_text(encoding="utf-8"))
        except FileNotFoundError:  # who leaves just now
            continue
        found.append({
            "name": adapter.name.removeprefix(OWNER), "conversations": sum(not i.startswith(GONE) for i in ids),
            "created": adapter.card["created"], "served": adapter.name in summed,
        })  # fmt: skip
    return found


def change(adapter: Artifact) -> Delta:
    """An adapter's low-rank change: U = scale · B, V = A for each matrix."""
    from safetensors.torch import load_file

    parts = load_file(adapter.file("adapter.safetensors"))
    scale = json.loads(adapter.file(ADAPTER).read_text(encoding="utf-8"))["scale"]
    names = [n.removesuffix(".lora.a") for n in parts if n.endswith(".lora.a")]
    return Delta({f"{n}.weight": (scale * parts[f"{n}.lora.b"], parts[f"{n}.lora.a"]) for n in sorted(names)})


def put_together(run: Run) -> Artifact:
    """Make the artifact `owners` of all adapters, and serve it."""
    made = add_up(run)
    if run.serving() != TOGETHER:
        run.promote(TOGETHER)
    return made


def add_up(run: Run) -> Artifact:
    """The artifact `owners`: one change on the base that is the sum of all adapters, in the order of their names. Raises
    UserError for an adapter of another base."""
    base, adapters = run.need("base"), owners(run)
    for adapter in adapters:
        adapter.verify()
        if adapter.card["parents"].get("base") != base.hash:
            raise UserError(f"{adapter.path} was trained on another base; forget that owner and teach it again.")
    with run.build(TOGETHER, kind="sft", config=FinetuneConfig(), parents=[base, *adapters]) as build:
        save_delta(joined([change(a) for a in adapters]), build.path, base)
        write_shape(read_shape(base.path), build.path)
        copy_tokenizer(base.file("tokenizer.json"), build.path)
        build.metrics = {"parameters": base.card["metrics"]["parameters"], "chat": True, "owners": len(adapters)}
    return build.artifact


@dataclass(frozen=True)
class Leaving:
    """An owner who leaves: the adapter, the sum as it was, the other adapters, and what came of the sum."""

    adapter: Artifact
    before: Artifact | None
    left: list[Artifact]
    children: list[str]

    def costs(self) -> list[Cost]:
        """What becomes of every artifact that is not kept."""
        name = self.adapter.name
        whole = (
            Cost(TOGETHER, "summed", f"without {name}")
            if self.left
            else Cost(TOGETHER, "deleted", "the last owner leaves")
        )
        gone = [Cost(child, "stale", f"it came of {TOGETHER}") for child in self.children]
        return [Cost(name, "deleted", "it is what the owner taught"), whole, *gone]


def leaving(config: ForgetConfig, run: Run, examples: Examples | None = None) -> Leaving:
    """Who leaves, and what with them. Raises Unclear for an owner who is not there, and where something else is asked for, too."""
    asked = config.record or config.name or config.grep or config.request or config.examples
    if asked or (examples and examples.forget):
        raise Unclear("mixed", "--owner forgets all that an owner taught; ask for records in a command of their own.")
    adapter = run.artifact(OWNER + config.owner) if NAME.fullmatch(config.owner) else None  # no way out of the folder
    if adapter is None:
        known = [a.name.removeprefix(OWNER) for a in owners(run)]
        raise Unclear(
            "no_owner",
            f"{run.path} has no owner {config.owner!r}; there are: {', '.join(known) or 'none'}.",
            said=config.owner,
            known=known,
        )
    left = [a for a in owners(run) if a.name != adapter.name]
    return Leaving(adapter, run.artifact(TOGETHER), left, descendants(run, TOGETHER))


def leave_out(config: ForgetConfig, run: Run, tell: Tell = nobody) -> Entry | None:
    """Forget an owner: delete the adapter, its tokens and checkpoints, and make the sum anew, by the same commit as a replay's; the
    ledger's entry, None when it was only shown. The caller holds the run's lock; `tell` hears how far it is. Raises UserError for an
    owner who is not there."""
    from jielong.forget.stage import agreed

    ledger = Ledger(run, config.key)
    if problems := ledger.problems():
        raise UserError(f"{problems[0]} Nothing is added to a ledger that does not verify.")
    settle(run, ledger)
    gone = leaving(config, run)
    name, before, left, children = gone.adapter.name, gone.before, gone.left, gone.children
    say(f"{name} leaves {run.path}: the base stays, {TOGETHER} is made anew of the other {len(left)}.")
    if children:
        say(f"  taken away, as they came of {TOGETHER}: {', '.join(children)}")
    if not config.yes and not agreed("forget"):
        say("Nothing was changed; the same command with --yes does it.")
        return None
    kept = [run.need("base"), *left] if left else []
    for artifact in kept[1:]:
        artifact.verify()  # here, where it can be mended, and before anything is made
    tell("stage", stage=TOGETHER)
    salt, removed = secrets.token_hex(16), [name, run.work(name).name]
    shadow = replay.open_shadow(run, secrets.token_hex(16))  # always a new one
    if left:
        for artifact in kept:
            replay.link(artifact.path, shadow.path / artifact.name)
        summed = add_up(shadow)
        fate = {"fate": "summed anew", "after": summed.hash, "weights": sha256_file(summed.file("delta.safetensors"))}
    else:
        removed.append(TOGETHER)
        fate = {"fate": "deleted, as the last owner left", "after": ""}
    what = {
        "kind": "owner",
        "replace": [TOGETHER] if left else [],
        "stale": {
            child: f"{run.path / child} was taken away: it came of owners' adapters, one of which was forgotten. Make it again."
            for child in children
        },
        "remove": removed,
        "feedback": [],
        "store": "",
        "key": str(config.key) if config.key else "",
        "entry": {
            "method": "adapter", "word": "forgotten", "exact": True,
            "request": {"id": secrets.token_hex(8), "who": config.who, "why": config.why},
            "owner": ledger.fingerprint(config.owner, salt), "salt": salt,
            "artifacts": {TOGETHER: {"before": before.hash if before else "", **fate}}, "stale": children,
            "limits": ["what the base knew before the owner came", "the file of conversations that the adapter was taught from, and its copies",
                       "what others' conversations say of the owner", "feedback on answers in which the adapter had a part"],
        },
    }  # fmt: skip
    tell("stage", stage="commit")
    commit.begin(run, what)
    entry = commit.finish(run, what)
    say(f"{config.owner} is forgotten: entry {entry['number']} of {ledger.path}.")
    return entry


def descendants(run: Run, name: str) -> list[str]:
    """Artifacts that came of `name`, directly or not."""
    found: list[str] = []
    for artifact in sorted_by_parents(run.artifacts()):
        parents = artifact.card.get("parents") or {}
        if artifact.name != name and any(p == name or p in found for p in parents):
            found.append(artifact.name)
    return found
