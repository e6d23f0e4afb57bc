"""PPO's arithmetic as pure functions.

The tokens of all answers stand in one flat row, answer after answer: (N,) with `lengths` (E,), N = Σ lengths. There is no
padding here, so that nothing needs a mask and no mean can count what is not there. The end token belongs to its answer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jielong.train.distributed import Team


def ends(lengths: Tensor) -> Tensor:
    """(E,) → index in the flat row of each answer's last token."""
    return lengths.cumsum(0) - 1


def per_answer(values: Tensor, lengths: Tensor) -> Tensor:
    """(N,) → (E,) sums over each answer's tokens."""
    owner = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    return torch.zeros(len(lengths), dtype=values.dtype).index_add_(0, owner, values)


def token_rewards(scores: Tensor, logprobs: Tensor, reference: Tensor, lengths: Tensor, kl: float) -> Tensor:
    """−kl · (log π − log π_ref) for every token, and the answer's score (E,) at its last one (Ziegler et al. 2019): (N,)."""
    rewards = -kl * (logprobs - reference)
    rewards[ends(lengths)] += scores
    return rewards


def gae(rewards: Tensor, values: Tensor, lengths: Tensor, gamma: float, lam: float) -> Tensor:
    """Generalised advantages (N,): A_t = Σ_k (γλ)^k δ_{t+k}, δ_t = r_t + γ V_{t+1} − V_t, V = 0 after the last token
    (Schulman et al. 2016, eq. 16)."""
    E, L = len(lengths), max(lengths.tolist(), default=0)
    column = torch.arange(L).unsqueeze(0)
    place = column < lengths.unsqueeze(1)  # (E, L), true where a token is
    r, v = torch.zeros(E, L), torch.zeros(E, L + 1)
    r[place], v[:, :L][place] = rewards.float(), values.float()
    delta = r + gamma * v[:, 1:] - v[:, :L]
    out = torch.zeros(E, L)
    running = torch.zeros(E)
    for t in reversed(range(L)):  # after an answer's end both δ and the running sum are 0
        running = delta[:, t] + gamma * lam * running
        out[:, t] = running
    return out[place]


def whiten(values: Tensor, keep_mean: bool = False, team: Team | None = None) -> Tensor:
    """Zero mean and unit variance over every process's tokens; with `keep_mean` only the variance is changed."""
    team = team or Team()
    count, first = team.sum(torch.tensor([float(values.numel()), float(values.sum(dtype=torch.float64))]).double())
    mean = first / count
    square = team.sum((values.double() - mean).square().sum())
    scaled = (values.double() - mean) * torch.rsqrt(square / count + 1e-8)
    return (scaled + mean if keep_mean else scaled).float()


def policy_loss(new: Tensor, old: Tensor, advantages: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """Σ of max(−A·ρ, −A·clip(ρ, 1 ± clip)) over tokens, ρ = exp(new − old) (Schulman et al. 2017, eq. 7), and the number
    of tokens at which the clipped term was the larger one."""
    ratio = (new - old).exp()
    plain, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)
    return torch.maximum(plain, clipped).sum(), (clipped > plain).sum()


def value_loss(new: Tensor, old: Tensor, returns: Tensor, clip: float) -> Tensor:
    """½ Σ max((V − R)², (clip(V, V_old ± clip) − R)²) over tokens."""
    near = torch.maximum(torch.minimum(new, old + clip), old - clip)
    return 0.5 * torch.maximum((new - returns).square(), (near - returns).square()).sum()


def kl_estimates(logprobs: Tensor, reference: Tensor) -> dict[str, Tensor]:
    """Per token, under samples of π: k1 = log π/π_ref, k2 = ½ k1², k3 = e^{−k1} − 1 + k1 (Schulman 2020); k1 and k3 are
    unbiased estimates of KL(π ‖ π_ref)."""
    k1 = logprobs - reference
    return {"k1": k1, "k2": 0.5 * k1.square(), "k3": torch.expm1(-k1) + k1}


def adapted(kl_coef: float, kl: float, target: float, episodes: int, horizon: float) -> float:
    """The next coefficient: β·(1 + clip(KL/target − 1, ±0.2)·episodes/horizon) (Ziegler et al. 2019, eq. 2)."""
    error = min(0.2, max(-0.2, kl / target - 1))
    return kl_coef * (1 + error * episodes / horizon)
