"""Schedules: pure functions of progress in [0, 1]."""

from __future__ import annotations

from jielong.config import OptimConfig


def learning_rate(progress: float, config: OptimConfig) -> float:
    """Factor on the peak learning rate: linear up, flat, linear down to `final_lr` (warm-up, stable, decay)."""
    if config.warmup and progress < config.warmup:
        return progress / config.warmup
    if config.cooldown and progress > 1 - config.cooldown:
        left = (1 - progress) / config.cooldown
        return config.final_lr + (1 - config.final_lr) * max(0.0, left)
    return 1.0


def momentum(progress: float, peak: float) -> float:
    """Muon's momentum rises from 0.85 to `peak` over the first tenth."""
    low = min(0.85, peak)
    return low + (peak - low) * min(1.0, progress / 0.1)
