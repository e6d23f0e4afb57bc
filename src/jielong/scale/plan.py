"""`jielong plan`: a large training on paper, before anyone pays for it.

FLOPs are six per weight and token (Kaplan et al. 2020) and attention's 12 · layers · heads · head_dim · length, of which the causal
mask is not subtracted, as everyone counts them. Layouts are all ways to share the GPUs: FSDP over all of them, tensor
parallel within a node, with and without checkpointing, so many rows per pass. The fastest that fits is taken.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass

from jielong.config import ModelConfig, PlanConfig
from jielong.errors import UserError
from jielong.scale.known import GPU, GPUS, MODELS, Published, gpu, published
from jielong.scale.memory import FULL, HALF, Memory, Sizes, memory, sizes

USABLE = 0.92  # of a GPU's memory: the context, communication buffers and the gaps between blocks need the rest
DAY = 86_400.0


def flops_per_token(config: ModelConfig, s: Sizes, length: int) -> tuple[float, float]:
    """(of the weights, of attention) in forward and backward pass. An embedding table is looked up, not multiplied; the head's
    matrix is, and where it is the table itself it counts once."""
    looked_up = config.vocab_size * config.width * (0 if config.tied else 1)
    if config.positions == "learned":
        looked_up += config.context * config.width
    attention = 12 * config.layers * config.heads * config.head_dim * length
    return 6.0 * (s.total - looked_up), float(attention)


@dataclass(frozen=True)
class Sharing:
    """How the work is shared."""

    gpus: int
    tensor: int
    rows: int
    """Per GPU group and pass."""
    passes: int
    """Passes per optimizer step, whose gradients are added up."""
    checkpointing: bool

    @property
    def shards(self) -> int:
        return self.gpus // self.tensor

    @property
    def rows_per_step(self) -> int:
        return self.shards * self.rows * self.passes


@dataclass(frozen=True)
class Times:
    """Seconds of one optimizer step."""

    compute: float
    fsdp: float
    """Weights gathered twice per pass, gradients scattered once per step; while computing."""
    tensor: float
    """Sums of activations within the node, while everyone waits."""
    muon: float = 0.0
    """Matrices dealt out, made orthogonal and collected, while everyone waits."""

    @property
    def step(self) -> float:
        return max(self.compute, self.fsdp) + self.tensor + self.muon


def volume(config: ModelConfig, s: Sizes, layout: Sharing, length: int) -> tuple[float, float]:
    """Bytes that each GPU sends per optimizer step, to other groups (FSDP) and within its own (tensor parallel); rings."""
    shards, t = layout.shards, layout.tensor
    own = config.layers * (s.block - s.matrices + s.matrices / t) + s.rest
    others = (shards - 1) / shards
    fsdp = own * others * (2 * HALF * layout.passes + FULL)
    # two sums of (rows, length, width) in the forward pass of a block, two in the backward, two more when it is computed again
    sums = (6 if layout.checkpointing else 4) * config.layers * layout.passes
    tensor = sums * 2 * (t - 1) / t * layout.rows * length * config.width * HALF
    return fsdp, tensor


def matrices(config: ModelConfig) -> list[tuple[int, int, int]]:
    """(rows, columns, the dimension that tensor parallel divides) of a block's matrices."""
    c = config
    inner, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    reading = [(inner, c.width, 0), (kv, c.width, 0), (kv, c.width, 0)]
    reading += [(c.mlp_width, c.width, 0)] * (2 if c.mlp == "swiglu" else 1)
    return [*reading, (c.width, inner, 1), (c.width, c.mlp_width, 1)]


def newton_schulz_flops(rows: int, columns: int) -> int:
    """Of five steps on a matrix: X Xᵀ, its square, and a product with X."""
    a, b = sorted((rows, columns))
    return 5 * (4 * a * a * b + 2 * a**3)


def muon_flops(config: ModelConfig) -> float:
    """Of all matrices of the blocks together."""
    return float(config.layers * sum(newton_schulz_flops(r, c) for r, c, _ in matrices(config)))


@dataclass(frozen=True)
class Dealt:
    """What Muon asks of one GPU in a step, while everyone waits."""

    flops: float = 0.0
    between: float = 0.0
    """Bytes sent to other groups."""
    within: float = 0.0
    """Bytes sent within the own one."""


def muon_share(config: ModelConfig, sharing: Sharing) -> Dealt:
    """As the optimizer deals matrices of one shape out (train.layout): parts of gradients go in float32 to the GPU that makes
    the matrix orthogonal, those of the update come back in bfloat16. Where a number does not divide, zeros fill it up."""
    s, t = sharing.shards, sharing.tensor
    alike: dict[tuple[int, int, int], int] = {}
    for rows, columns, dim in matrices(config):
        one = rows, columns, dim if t > 1 else 0
        alike[one] = alike.get(one, 0) + config.layers
    flops = between = within = 0.0
    for (rows, columns, dim), count in alike.items():
        own_rows, own_columns = (rows // t, columns) if dim == 0 else (rows, columns // t)
        in_group = math.ceil(count / s)
        mine = math.ceil(in_group / t)
        between += (HALF + FULL) * in_group * (s - 1) * math.ceil(own_rows / s) * own_columns
        within += (HALF + FULL) * mine * (t - 1) * own_rows * own_columns
        flops += mine * newton_schulz_flops(rows, columns)
    return Dealt(flops, between, within)


def times(config: ModelConfig, s: Sizes, layout: Sharing, length: int, card: GPU, plan: PlanConfig) -> Times:
    """Of the layout on such GPUs."""
    per_token = sum(flops_per_token(config, s, length))
    tokens = layout.rows * layout.passes * length  # of a group of `tensor` GPUs
    speed = card.flops * plan.efficiency
    again = 4 / 3 if layout.checkpointing else 1.0  # the forward pass, a third of the rest, is done twice
    fsdp, tensor = volume(config, s, layout, length)
    wire = card.network if layout.gpus > card.per_node else card.link
    dealt = muon_share(config, layout) if plan.optimizer == "muon" else Dealt()
    return Times(
        compute=again * per_token * tokens / layout.tensor / speed,
        fsdp=fsdp / wire,
        tensor=tensor / card.link,
        muon=dealt.flops / speed + dealt.between / wire + dealt.within / card.link,
    )


def layouts(config: ModelConfig, plan: PlanConfig, rows_per_step: float, per_node: int) -> list[Sharing]:
    """All that make steps of about so many rows (within 5 %), whether they fit or not."""
    found = []
    for tensor in [plan.tensor] if plan.tensor else [1, 2, 4, 8]:
        if tensor > per_node or plan.gpus % tensor or config.kv_heads % tensor:
            continue
        shards = plan.gpus // tensor
        for rows in [plan.rows] if plan.rows else [1, 2, 4, 8, 16, 32, 64]:
            passes = max(1, round(rows_per_step / (shards * rows)))
            if abs(shards * rows * passes / rows_per_step - 1) > 0.05:
                continue
            for checkpointing in {"auto": (False, True), "on": (True,), "off": (False,)}[plan.checkpointing]:
                found.append(Sharing(plan.gpus, tensor, rows, passes, checkpointing))
    return found


@dataclass(frozen=True)
class Plan:
    """What `jielong plan` says; bytes, seconds, FLOPs, dollars."""

    name: str
    source: str
    published: dict[str, float]
    parameters: int
    tokens: float
    tokens_from: str
    length: int
    rows_per_step: int
    steps: int
    flops_weights: float
    flops_attention: float
    layout: Sharing
    memory: Memory
    times: Times
    volume_fsdp: float
    volume_tensor: float
    volume_muon: float
    seconds: float
    utilisation: float
    """Model FLOPs utilisation: useful FLOPs over the peak of all GPUs, waiting included."""
    kilowatt_hours: float
    """At the GPUs' rated power; the rest of the computer and cooling come on top."""
    dollars: float | None

    @property
    def flops(self) -> float:
        return self.flops_weights + self.flops_attention


def make(plan: PlanConfig) -> Plan:
    """The fastest layout that fits. Raises UserError when none does, and says what is missing."""
    known, card = published(plan.recipe), gpu(plan.gpu)
    config = known.shape
    check(plan)
    s, length = sizes(config), plan.length or config.context
    if length > config.context and config.positions == "learned":
        raise UserError(f"{plan.recipe} has {config.context} learned positions; --length {length} is longer.")
    tokens, origin = how_many(plan, known, s)
    batch = plan.batch_tokens or known.batch_tokens or 0.5e6
    possible = layouts(config, plan, batch / length, card.per_node)
    if not possible:
        raise UserError(
            f"{batch:,.0f} tokens per step are {batch / length:.1f} rows of {length}; {plan.gpus} GPUs cannot share them "
            "evenly with these settings. Give --batch-tokens, another number of --gpus, or leave --tensor and --rows out."
        )
    room = USABLE * card.memory
    needs = {
        one: memory(config, plan.gpus, one.tensor, one.rows, length, one.checkpointing, plan.optimizer, one.passes)
        for one in possible
    }
    fitting = [one for one in possible if needs[one].total <= room]
    if not fitting:
        raise UserError(missing(plan, config, needs, room))

    def haste(one: Sharing) -> tuple[float, ...]:
        per_row = times(config, s, one, length, card, plan).step / one.rows_per_step
        return per_row, one.tensor, one.checkpointing, one.passes

    best = min(fitting, key=haste)
    taken, rows = times(config, s, best, length, card, plan), best.rows_per_step
    steps = math.ceil(tokens / (rows * length))
    weights, attention = flops_per_token(config, s, length)
    seconds = steps * taken.step
    read = float(steps * rows * length)
    hours = seconds / 3600
    price = plan.price or card.price
    fsdp, tensor = volume(config, s, best, length)
    dealt = muon_share(config, best) if plan.optimizer == "muon" else Dealt()
    return Plan(
        plan.recipe, known.source, {"parameters": known.parameters, "flops": known.flops}, s.total, tokens, origin,
        length, rows, steps, weights * tokens, attention * tokens, best, needs[best], taken, fsdp, tensor,
        dealt.between + dealt.within, seconds,
        (weights + attention) * read / (seconds * plan.gpus * card.flops), plan.gpus * card.watts * hours / 1000,
        plan.gpus * hours * price if price else None,
    )  # fmt: skip


def check(plan: PlanConfig) -> None:
    """Raises UserError for settings that mean nothing."""
    if plan.gpus < 1 or plan.tensor < 0 or plan.rows < 0 or plan.length < 0:
        raise UserError("--gpus must be at least 1; --tensor, --rows and --length at least 0.")
    if min(plan.tokens, plan.batch_tokens, plan.price) < 0:
        raise UserError("--tokens, --batch-tokens and --price must not be negative.")
    if not 0 < plan.efficiency <= 1:
        raise UserError("--efficiency is a share of the peak, above 0 and at most 1.")


def how_many(plan: PlanConfig, known: Published, s: Sizes) -> tuple[float, str]:
    """(tokens, where the number comes from)"""
    if plan.tokens:
        return plan.tokens, "asked for"
    if known.tokens:
        return known.tokens, "published"
    return 20.0 * s.total, "20 per parameter (Hoffmann et al. 2022)"


def missing(plan: PlanConfig, config: ModelConfig, needs: dict[Sharing, Memory], room: float) -> str:
    """Why nothing fits, and how many GPUs would do."""
    layout, least = min(needs.items(), key=lambda item: item[1].total)
    said = (
        f"{plan.recipe} does not fit: {plan.gpus} × {plan.gpu} leave {room / 1e9:.0f} GB each, and the most frugal layout needs "
        f"{least.total / 1e9:.0f} GB ({(least.weights + least.gradients + least.optimizer) / 1e9:.0f} of weights, gradients "
        f"and optimizer, {least.activations / 1e9:.0f} of activations)."
    )
    length = plan.length or config.context
    for gpus in (plan.gpus * 2**n for n in range(1, 15)):
        found = memory(config, gpus, layout.tensor, 1, length, plan.checkpointing != "off", plan.optimizer, 2)
        if found.total <= room:
            return f"{said} With {gpus} it would fit."
    return f"{said} More of them would not help: try a shorter --length, --tensor, or GPUs with more memory."


def run(plan: PlanConfig) -> Plan | None:
    """Print the plan; None where only a table was asked for."""
    if plan.recipe == "list" or plan.gpu == "list":
        tables(plan)
        return None
    made = make(plan)
    traced = None
    if plan.trace:
        from jielong.scale.trace import traced_memory

        one = made.layout
        traced = traced_memory(published(plan.recipe).shape, one, made.length, plan.optimizer)
    if plan.json:
        print(
            json.dumps(
                asdict(made) | {"flops": made.flops, "memory_total": made.memory.total, "traced": traced}, indent=1
            )
        )
    else:
        show(made, plan, traced)
    return made


def tables(plan: PlanConfig) -> None:
    """The known models, or GPUs."""
    if plan.recipe == "list":
        for name, known in MODELS.items():
            print(f"{name:13} {sizes(known.shape).total:>15,} parameters   {known.source}")
    else:
        for name, card in GPUS.items():
            print(f"{name:10} {card.flops / 1e12:6,.0f} TFLOP/s  {card.memory / 1e9:4.0f} GB  {card.watts:5.0f} W")


def duration(seconds: float) -> str:
    for unit, size in (("years", 365.25 * DAY), ("days", DAY), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.1f} seconds"


def show(made: Plan, plan: PlanConfig, traced: float | None) -> None:
    """The plan for people."""
    from rich.console import Console
    from rich.table import Table

    m, t, one = made.memory, made.times, made.layout

    def beside(found: float, said: float) -> str:
        return f" ({found / said - 1:+.1%} against the published {said:.4g})" if said else ""

    rows: list[tuple[str, str]] = [
        ("model", f"{made.name}: {made.parameters:,} parameters{beside(made.parameters, made.published['parameters'])}"),
        ("source", made.source),
        ("data", f"{made.tokens:.3g} tokens ({made.tokens_from}): {made.steps:,} steps of {made.rows_per_step:,} rows × {made.length:,}"),
        ("FLOPs", f"{made.flops_weights:.3g}{beside(made.flops_weights, made.published['flops'])}, and {made.flops_attention:.2g} of attention"),
        ("layout", f"{one.gpus} × {plan.gpu}: FSDP over {one.shards}, tensor parallel over {one.tensor}, {one.rows} rows × {one.passes} passes, "
                   f"checkpointing {'on' if one.checkpointing else 'off'}"),
        ("memory per GPU", f"{m.total / 1e9:.1f} GB: weights {m.weights / 1e9:.1f}, gradients {m.gradients / 1e9:.1f}, optimizer "
                           f"{m.optimizer / 1e9:.1f}, gathered {m.gathered / 1e9:.1f}, activations {m.activations / 1e9:.1f}, head {m.head / 1e9:.1f}"),
        ("sent per GPU and step", f"{made.volume_fsdp / 1e9:.1f} GB between groups, {made.volume_tensor / 1e9:.1f} GB within"
                                  + (f", {made.volume_muon / 1e9:.1f} GB for Muon" if made.volume_muon else "")),
        ("step", f"{t.step:.3g} s: computing {t.compute:.3g}, FSDP {t.fsdp:.3g} meanwhile, tensor parallel {t.tensor:.3g}"
                 + (f", Muon {t.muon:.3g}" if t.muon else "")),
        ("time", f"{duration(made.seconds)}; {made.utilisation:.0%} of the GPUs' peak, {made.tokens / made.seconds:,.0f} tokens/s"),
        ("energy", f"{made.kilowatt_hours:,.0f} kWh of the GPUs at their rated power"),
        ("cost", f"${made.dollars:,.0f}" if made.dollars is not None else "unknown: give --price per GPU and hour"),
    ]  # fmt: skip
    if traced is not None:
        rows.insert(6, ("traced step", f"{traced / 1e9:.1f} GB: the plan is {m.total / traced - 1:+.1%} off"))
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, text in rows:
        table.add_row(name, text)
    Console(highlight=False).print(table)
