"""Settings of feedback and of what is learnt from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jielong.config.stages import DEFAULT_RUN, OptimConfig, ParallelConfig


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
class LearningConfig:
    """What every training from feedback is told."""

    precision: str = "auto"
    """auto, bf16 or fp32."""
    threads: int = 0
    """CPU threads; 0 = all cores."""
    checkpoint_seconds: float = 30.0
    """Longest time between two checkpoints."""


@dataclass
class RewardConfig(LearningConfig):
    """Thumbs and comparisons → a model that guesses how much people like an answer."""

    model: str = ""
    """Artifact to start from; by default the one that is served."""
    optim: OptimConfig = field(default_factory=lambda: adam(5e-4))
    """Optimizer and schedule."""
    epochs: float = 2.0
    """Passes over the labels."""
    least_steps: int = 28
    """Steps at least: few labels are passed over more often."""
    most_epochs: float = 8.0
    """Passes at most for the sake of least_steps."""
    rows: int = 32
    """Labels (thumbs and comparisons) per step."""
    held_out: float = 0.33
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
    seed: int = 1
    """Seed of the order and the split."""


@dataclass
class RolloutConfig(LearningConfig):
    """What every method sets that draws answers and follows a reward model."""

    model: str = ""
    """Artifact to start from, which is also the reference; by default the one that the reward model started from."""
    reward: str = "reward"
    """Artifact of the reward model."""
    optim: OptimConfig = field(default_factory=lambda: adam(1.5e-4))
    """Optimizer and schedule of actor and critic."""
    iterations: int = 8
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
    kl: float = 0.1
    """Weight of the penalty on log π/π_ref, per token."""
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
    ptx: float = 1.0
    """Weight of the pretraining loss that is mixed in where the run has a corpus (PPO-ptx, Ouyang et al. 2022), so that
    knowledge stays; 0 = none."""
    ptx_rows: int = 4
    """Rows of pretraining text per optimizer step."""
    lora_rank: int = 0
    """Train only a low-rank change of the actor of this rank; 0 = all weights."""
    lora_alpha: float = 0.0
    """Scale of the change times the rank; 0 = twice the rank."""
    keep_every: int = 2
    """Iterations between two kept states, from which the best is chosen."""
    seed: int = 1
    """Seed of prompts, draws and order."""


@dataclass
class PPOConfig(RolloutConfig):
    """A model + a reward model → a model whose answers earn more reward (Schulman et al. 2017, Ziegler et al. 2019)."""

    gamma: float = 1.0
    """Discount of later rewards."""
    lam: float = 0.95
    """λ of the generalised advantages."""
    value_clip: float = 0.2
    """How far a value may move from its old one before its error stops counting."""
    value_weight: float = 0.1
    """Weight of the critic's loss."""
    value_warmup: int = 0
    """Iterations at the start in which only the critic learns."""
    whiten_rewards: bool = False
    """Divide the rewards by their standard deviation, too."""


@dataclass
class DirectConfig(LearningConfig):
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
    held_out: float = 0.33
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
    seed: int = 1
    """Seed of the order, the split and the draws."""


@dataclass
class GroupConfig(RolloutConfig):
    """A model + a reward model → a model whose answers earn more reward, without a critic: an answer is compared with
    others to the same prompt (RLOO: Ahmadian et al. 2024; GRPO: Shao et al. 2024)."""

    method: Literal["rloo", "grpo"] = "rloo"
    """rloo: reward minus the mean of the others', KL in the reward, one ratio per answer; grpo: reward minus the mean, over
    the standard deviation, KL in the loss, one ratio per token."""
    answers: int = 4
    """Answers per prompt."""


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
    settings: Path | None = None
    """JSON file with any of these settings, for example {"ppo": {"iterations": 16}}; what it names wins."""
    force: bool = False
    """Train again with the same feedback that the last training had."""
    method: Literal["ppo", "rloo", "grpo", "dpo", "kto"] = "ppo"
    """How the model learns: ppo, or one of its baselines. rloo and grpo follow the reward model without a critic, dpo and
    kto the labels themselves."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    """Reward model."""
    ppo: PPOConfig = field(default_factory=PPOConfig)
    """PPO."""
    group: GroupConfig = field(default_factory=GroupConfig)
    """RLOO and GRPO."""
    direct: DirectConfig = field(default_factory=DirectConfig)
    """DPO and KTO."""
    few: int = 200
    """With fewer labels than this only a small step is taken: fewer iterations and a heavier KL penalty."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """Several processes, as in `jielong pretrain`; how much each computes at a time is bounded here by itself."""
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
    guard_kl: float = 4.0
    """Nats per answer by which the new answers may lie from the served model's (KL); beyond, the judge is deceived, too."""
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
