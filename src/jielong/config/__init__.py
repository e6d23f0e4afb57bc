"""Every stage's settings. The line under a field is its documentation and its `--help` text.

These modules import nothing heavy, so that the command line answers at once.
"""

from jielong.config.corpus import ClassifierConfig, CorpusBuildConfig
from jielong.config.edit import ChangesConfig, EditConfig, TraceConfig, UndoConfig
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
from jielong.config.forget import AuditConfig, ForgetConfig
from jielong.config.scale import PlanConfig
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
    "AuditConfig",
    "ChangesConfig",
    "ChatConfig",
    "ClassifierConfig",
    "CorpusBuildConfig",
    "CorpusConfig",
    "DirectConfig",
    "EditConfig",
    "EvaluateConfig",
    "ExportConfig",
    "FeedbackConfig",
    "FinetuneConfig",
    "ForgetConfig",
    "GroupConfig",
    "ImportConfig",
    "ImproveConfig",
    "KeyConfig",
    "ModelConfig",
    "OptimConfig",
    "PPOConfig",
    "ParallelConfig",
    "PlanConfig",
    "PretrainConfig",
    "RaiseConfig",
    "ReportConfig",
    "RewardConfig",
    "RollbackConfig",
    "RolloutConfig",
    "ServeConfig",
    "ThumbsConfig",
    "TokenizerConfig",
    "TraceConfig",
    "UndoConfig",
    "adam",
    "filled",
]
