"""Answers through models: log-probabilities of their tokens, values at them, scores at their ends.

Batches are padded on the right, where a causal model cannot see, and only the answers' positions are read out. A model may lie on
a GPU: what is computed without gradients comes back to the CPU.

Models may be divided among the processes of a team. Then all compute at once, and one that has no sequence left reads a
single token of which nothing is taken.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jielong.errors import UserError
from jielong.model.gpt import GPT, Linear, causal_mask, load_model, save_model
from jielong.model.lora import merged_state
from jielong.train.distributed import Team

ALONE = Team()
PART = 4096  # tokens, padding included, that go through a model at once


@dataclass(frozen=True)
class Answered:
    """A prompt and an answer to it, as token ids."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


class Scored(nn.Module):
    """A GPT with one number for each position: a reward model, or a critic."""

    def __init__(self, body: GPT):
        super().__init__()
        self.body = body
        self.score = nn.Linear(body.config.width, 1)
        # zeros, not Stiennon et al.'s N(0, 1/√(D+1)): that noise outweighs what a few hundred labels teach (docs/log.md)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    def read(self, hidden: Tensor) -> Tensor:
        """(…, D) → (…,) float32"""
        return F.linear(hidden.float(), self.score.weight, self.score.bias).squeeze(-1)

    def save(self, folder: Path) -> None:
        """model.safetensors with model.json, and score.safetensors."""
        from safetensors.torch import save_file

        save_model(self.body, folder)
        score = {"weight": self.score.weight.detach().contiguous(), "bias": self.score.bias.detach().contiguous()}
        save_file(score, folder / "score.safetensors")

    @classmethod
    def load(cls, folder: Path) -> Scored:
        """Raises UserError when the folder holds no reward model."""
        from safetensors.torch import load_file

        model = cls(load_model(folder))
        try:
            model.score.load_state_dict(load_file(folder / "score.safetensors"))
        except (OSError, RuntimeError, json.JSONDecodeError) as error:
            raise UserError(f"{folder} holds no reward model ({str(error).splitlines()[0]}).") from error
        return model


def merged_copy(model: GPT) -> GPT:
    """A frozen copy with the LoRA, if there is one, added to the weights."""
    copy = GPT(model.config).to(model.device)
    copy.load_state_dict(merged_state(model))
    return copy.requires_grad_(False).eval()


@torch.no_grad()
def merge(model: GPT) -> None:
    """Add the LoRA, if there is one, to the weights, in place and without a second model: what remains is a plain model."""
    for layer in model.modules():
        change = getattr(layer, "lora", None)
        if isinstance(layer, Linear) and change is not None:
            layer.weight += change.scale * (change.b @ change.a)
            layer.lora = None


def parts(lengths: Sequence[int], most: int = PART) -> list[list[int]]:
    """Indices in groups of like length and at most `most` tokens, so that little of a batch is padding."""
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if not groups or (len(groups[-1]) + 1) * lengths[i] > most:
            groups.append([])
        groups[-1].append(i)
    return groups


def hidden_at_ends(body: GPT, sequences: Sequence[Answered], dtype: torch.dtype) -> Tensor:
    """Hidden states (B, D) at each answer's last token."""
    hidden = _forward(body, sequences, dtype)
    return hidden[torch.arange(len(sequences)), _indices([len(s) - 1 for s in sequences])]


def hidden_before(body: GPT, sequences: Sequence[Answered], dtype: torch.dtype) -> Tensor:
    """Hidden states (N, D) from which each answer token is drawn, answer after answer."""
    hidden = _forward(body, sequences, dtype)
    rows = [row for row, s in enumerate(sequences) for _ in s.answer]
    columns = [len(s.prompt) - 1 + t for s in sequences for t in range(len(s.answer))]
    return hidden[_indices(rows), _indices(columns)]


def _forward(body: GPT, sequences: Sequence[Answered], dtype: torch.dtype) -> Tensor:
    T = max(map(len, sequences), default=1)
    tokens = torch.zeros(
        max(1, len(sequences)), T, dtype=torch.int64
    )  # what stands after a sequence is never looked at
    for row, s in enumerate(sequences):
        tokens[row, : len(s)] = torch.tensor(s.prompt + s.answer)
    return body(tokens.to(body.device), causal_mask(T).to(body.device), dtype)  # (B, T, D)


def _indices(numbers: Sequence[int]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64)


def answer_tokens(sequences: Sequence[Answered]) -> Tensor:
    """(N,) the answers' token ids, answer after answer."""
    return _indices([t for s in sequences for t in s.answer])


def log_softmax(body: GPT, hidden: Tensor, temperature: float = 1.0) -> Tensor:
    """(N, D) → log-probabilities (N, V) in float32 of the distribution that is sampled from."""
    return F.log_softmax(body.logits(hidden).float() / temperature, -1)


def chosen(logprobs: Tensor, tokens: Tensor) -> Tensor:
    """(N, V), (N,) → (N,)"""
    return logprobs.gather(1, tokens.to(logprobs.device).unsqueeze(1)).squeeze(1)


def spread(sequences: Sequence[Answered], groups: list[list[int]], pieces: list[Tensor]) -> Tensor:
    """Flat pieces, one for each group of `parts`, in the order of the sequences: (N,)."""
    slots: list[Tensor] = [torch.empty(0)] * len(sequences)
    for group, piece in zip(groups, pieces, strict=True):
        for i, own in zip(group, piece.split([len(sequences[i].answer) for i in group]), strict=True):
            slots[i] = own
    return torch.cat(slots)


@torch.no_grad()
def answer_logprobs(
    body: GPT,
    sequences: Sequence[Answered],
    dtype: torch.dtype,
    temperature: float = 1.0,
    most: int = PART,
    team: Team = ALONE,
) -> Tensor:
    """(N,) log-probabilities of the answers' tokens."""
    groups = team.even(parts([len(s) for s in sequences], most))
    pieces = []
    for group in groups:
        own = [sequences[i] for i in group]
        table = log_softmax(body, hidden_before(body, own, dtype), temperature)  # (N, V)
        pieces.append(chosen(table, answer_tokens(own)).cpu())
    return spread(sequences, groups, pieces)


@torch.no_grad()
def answer_values(
    critic: Scored, sequences: Sequence[Answered], dtype: torch.dtype, most: int = PART, team: Team = ALONE
) -> Tensor:
    """(N,) values before each answer token."""
    groups = team.even(parts([len(s) for s in sequences], most))
    pieces = [critic.read(hidden_before(critic.body, [sequences[i] for i in g], dtype)).cpu() for g in groups]
    return spread(sequences, groups, pieces)


@torch.no_grad()
def score(
    model: Scored, sequences: Sequence[Answered], dtype: torch.dtype, most: int = PART, team: Team = ALONE
) -> Tensor:
    """(E,) scores at the answers' last tokens."""
    out = torch.zeros(len(sequences))
    for group in team.even(parts([len(s) for s in sequences], most)):
        out[group] = model.read(hidden_at_ends(model.body, [sequences[i] for i in group], dtype)).cpu()
    return out
