"""What an approximate forgetting works with: the model, the texts to be suppressed, those that must stay, and what the exam needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from jielong.align.scoring import Answered
from jielong.config import ForgetConfig, SuppressConfig
from jielong.corpus.canaries import SOURCE, Canary, canaries
from jielong.corpus.documents import Document, read_documents
from jielong.edit.stage import held_out
from jielong.edit.state import talking
from jielong.errors import Unclear
from jielong.forget.columns import Material
from jielong.forget.find import Found, find, load_stage
from jielong.forget.items import (
    Examples,
    Text,
    of_canary,
    of_record,
    of_tokens,
    read_examples,
    text_of,
    texts_of,
    with_wrong,
)
from jielong.forget.request import Request, read_request
from jielong.forget.twins import lineage
from jielong.generate.engine import chats
from jielong.model.gpt import read_shape
from jielong.run import Artifact, Run
from jielong.tokens.shards import order
from jielong.tokens.tokenizer import Tokenizer

OTHERS = 200  # texts for membership inference, at most


@dataclass
class Case:
    """Everything that a suppression works with."""

    start: Artifact
    tokenizer: Tokenizer
    chat: bool
    request: Request
    found: Found
    names: list[str]
    """Trained stages of the lineage."""
    forget: list[Text]
    retain: list[Text]
    material: Material
    rehearsal: list[Document] = field(default_factory=list)
    """Held-out texts that settings are chosen by (`--suppress.tune`); the exam's are others."""


def answers(texts: Sequence[Text]) -> list[Answered]:
    return [a for t in texts for a in t.answers]


def gather(config: ForgetConfig, settings: SuppressConfig, run: Run, examples: Examples | None = None) -> Case:
    """Find the texts; `examples` stand in the place of the files that the config names. Raises UserError for a request that means
    nothing."""
    examples = examples or read_examples(config)
    start = talking(run, config.model)
    tokenizer = Tokenizer.load(start.file("tokenizer.json"))
    context = read_shape(start.path).context
    chat = chats(start.card, tokenizer)
    names = lineage(run, start)
    found, request = Found(), Request(who=config.who, why=config.why)
    forget: list[Text] = []
    retain: list[Text] = []
    asked = config.record or config.name or config.grep or config.request
    if asked or examples.forget is None:
        request = read_request(config)
        found = find(run, request, "")
        found.trained = {n: s for n, s in found.trained.items() if n in names}
        forget = records(found, context)
        if not forget:
            raise Unclear(
                "not_learnt",
                f"No record that {start.name} was trained on matches; nothing was changed. What an imported model learnt elsewhere is named "
                "with --examples FILE.",
            )
    if examples.forget is not None:
        forget += texts_of(examples.forget, tokenizer, context, chat)
    if examples.retain is not None:
        retain = texts_of(examples.retain, tokenizer, context, chat)
    elif found.trained or run.artifact("corpus"):
        retain = kept_records(run, names, found, settings, context)
    if not retain:
        raise Unclear("retain", "What must stay is needed, too: --retain FILE with texts of the same kind.")
    told, plain = asked_canaries(run, found), plain_text(run, request)
    spared = plain[1::2] if settings.tune else []
    forget = probed(forget, tokenizer, told)
    forget, retain = with_wrong(forget, retain, settings.seed), with_wrong(retain, retain, settings.seed)
    return Case(
        start, tokenizer, chat, request, found, names, forget, retain,
        Material(
            forget, others_of(examples, run, tokenizer, context, chat, found), told,
            plain[::2] if spared else plain,
            world=chat and default_world(run), seed=run_seed(run), samples=config.samples, relearn_lora=settings.lora_rank,
        ),
        spared,
    )  # fmt: skip


def plain_text(run: Run, request: Request) -> list[Document]:
    """Held-out texts whose bits tell what else the model can do: none that the request means, and no canaries, which repeat what
    planted ones say."""
    return [d for d in held_out(run) if d.source != SOURCE and not request.find(d.text)]


def default_world(run: Run) -> bool:
    """Do the facts of the default corpus's world concern this run? Those of a corpus of the user's own do not hold them."""
    corpus = run.artifact("corpus")
    return corpus is None or bool(corpus.card["config"].get("default"))


def run_seed(run: Run) -> int:
    corpus = run.artifact("corpus")
    return int(corpus.card["config"].get("seed", 1)) if corpus is not None else 1


def records(found: Found, context: int) -> list[Text]:
    """The matching records of all trained stages that their training reached."""
    texts = []
    for stage in found.trained.values():
        reached = set(stage.index.record.tolist())
        texts += [text_of(of_record(stage, n, context)) for n in sorted(stage.records) if n in reached]
    return texts


def kept_records(run: Run, names: list[str], found: Found, settings: SuppressConfig, context: int) -> list[Text]:
    """Other records of the same trainings, as many of each stage, in an order that the seed draws."""
    stages = dict(found.trained)
    for name in names:
        artifact = run.artifact(name)
        if name not in stages and artifact is not None and artifact.file("data_index.npz").is_file():
            stage = load_stage(artifact, run.work(name), run)
            if stage is not None:
                stages[name] = stage
    texts: list[Text] = []
    for stage in stages.values():
        most, taken = settings.keep // len(stages), 0
        reached = set(stage.index.record.tolist())
        for n in order(stage.shard.ids, settings.seed, 0).tolist():
            if taken == most:
                break
            if n in stage.records or n in stage.shard.forgotten or n not in reached:
                continue
            own = of_record(stage, n, context)
            if own:
                texts.append(text_of(own))
                taken += 1
    return texts


def asked_canaries(run: Run, found: Found) -> list[Canary]:
    """The planted canaries that the request means whole: all documents that tell their secret are among its matches."""
    corpus = run.artifact("corpus")
    count = corpus.card["config"].get("canaries", 0) if corpus is not None else 0
    hits = [d.text for d in found.documents.get("train", []) if d.source == SOURCE]
    if corpus is None or not count or not hits:
        return []
    texts = [d.text for d in read_documents(corpus.file("train.parquet")) if d.source == SOURCE]

    def asked(telling: str) -> bool:
        return 0 < sum(telling in t for t in texts) == sum(telling in t for t in hits)

    return [c for c in canaries(count, corpus.card["config"]["seed"]) if asked(c.telling(c.code))]


def probed(texts: list[Text], tokenizer: Tokenizer, told: Sequence[Canary]) -> list[Text]:
    """Texts that tell a canary's secret are asked for it."""
    if not told:
        return texts
    found = []
    for text in texts:
        spelt = tokenizer.decode([i for a in text.answers for i in a.answer])
        own = next((c for c in told if c.telling(c.code) in spelt), None)
        found.append(text_of(text.answers, of_canary(tokenizer, own)) if own else text)
    return found


def others_of(examples: Examples, run: Run, tokenizer: Tokenizer, context: int, chat: bool, found: Found) -> list[Text]:
    """Texts of the same kind that no model read: those given, for canaries those that were never planted, else held-out documents."""
    if examples.others is not None:
        return texts_of(examples.others, tokenizer, context, chat)[:OTHERS]
    corpus = run.artifact("corpus")
    if corpus is None or not found.documents.get("train"):
        return []
    if all(d.source == SOURCE for d in found.documents["train"]):
        seed = corpus.card["config"]["seed"]
        never = canaries(corpus.card["config"]["canaries"], seed, planted=False)
        texts = [c.documents(seed)[0] for c in never]
    else:
        gone = {d.id for d in found.documents["heldout"]}
        texts = [d.text for d in read_documents(corpus.file("heldout.parquet")) if d.id not in gone]
    end = tokenizer.end_of_text
    return [text_of(of_tokens([end, *tokenizer.encode(t), end], None, context)) for t in texts[:OTHERS] if t.strip()]
