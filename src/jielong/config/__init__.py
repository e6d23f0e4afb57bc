"""Every stage's settings. The line under a field is its documentation and its `--help` text.

These modules import nothing heavy, so that the command line answers at once.
"""

from jielong.config.corpus import ClassifierConfig, CorpusBuildConfig
from jielong.config.detect import DetectConfig, LedgerConfig, ReferenceConfig, WatermarkConfig
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
from jielong.config.lab import SizeLadderConfig
from jielong.config.prompt import (
    PromptImportConfig,
    PromptListConfig,
    PromptMatrixConfig,
    PromptNewConfig,
    PromptRunConfig,
    PromptSearchConfig,
    PromptShowConfig,
)
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
    "AuditConfig",
    "ChangesConfig",
    "ChatConfig",
    "ClassifierConfig",
    "CorpusBuildConfig",
    "CorpusConfig",
    "DetectConfig",
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
    "LedgerConfig",
    "ModelConfig",
    "OptimConfig",
    "PPOConfig",
    "ParallelConfig",
    "PlanConfig",
    "PretrainConfig",
    "PromptImportConfig",
    "PromptListConfig",
    "PromptMatrixConfig",
    "PromptNewConfig",
    "PromptRunConfig",
    "PromptSearchConfig",
    "PromptShowConfig",
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
    "TraceConfig",
    "UndoConfig",
    "WatermarkConfig",
    "adam",
    "filled",
]
