"""Every stage's settings. The line under a field is its documentation and its `--help` text.

These modules import nothing heavy, so that the command line answers at once.
"""

from jielong.config.corpus import ClassifierConfig, CorpusBuildConfig
from jielong.config.detect import DetectConfig, LedgerConfig, ReferenceConfig, WatermarkConfig
from jielong.config.feedback import (
    DirectConfig,
    FeedbackConfig,
    GroupConfig,
    ImproveConfig,
    PPOConfig,
    RewardConfig,
    RollbackConfig,
    RolloutConfig,
    ThumbsConfig,
    adam,
)
from jielong.config.lab import SizeLadderConfig
from jielong.config.scale import PlanConfig, ScaleFitConfig
from jielong.config.stages import (
    DEFAULT_RUN,
    ChatConfig,
    CorpusConfig,
    EvaluateConfig,
    ExportConfig,
    FinetuneConfig,
    ImportConfig,
    KeyConfig,
    ModelConfig,
    OptimConfig,
    ParallelConfig,
    PretrainConfig,
    RaiseConfig,
    ReportConfig,
    ServeConfig,
    TokenizerConfig,
    filled,
)

__all__ = [
    "DEFAULT_RUN",
    "ChatConfig",
    "ClassifierConfig",
    "CorpusBuildConfig",
    "CorpusConfig",
    "DetectConfig",
    "DirectConfig",
    "EvaluateConfig",
    "ExportConfig",
    "FeedbackConfig",
    "FinetuneConfig",
    "GroupConfig",
    "ImportConfig",
    "ImproveConfig",
    "KeyConfig",
    "LedgerConfig",
    "ModelConfig",
    "OptimConfig",
    "PPOConfig",
    "ParallelConfig",
    "PlanConfig",
    "PretrainConfig",
    "RaiseConfig",
    "ReferenceConfig",
    "ReportConfig",
    "RewardConfig",
    "RollbackConfig",
    "RolloutConfig",
    "ScaleFitConfig",
    "ServeConfig",
    "SizeLadderConfig",
    "ThumbsConfig",
    "TokenizerConfig",
    "WatermarkConfig",
    "adam",
    "filled",
]
