"""Recipes: their models, and the parts of reading them that know no kind of stage."""

from semisup.settings.schema import (
    BatchConfig,
    DataConfig,
    FreezeConfig,
    InitConfig,
    Input,
    LoraConfig,
    LossConfig,
    OptimizerConfig,
    PoolConfig,
    Recipe,
    ScheduleConfig,
    StageConfig,
    TrackingConfig,
    TrainConfig,
)

__all__ = [
    "BatchConfig",
    "DataConfig",
    "FreezeConfig",
    "InitConfig",
    "Input",
    "LoraConfig",
    "LossConfig",
    "OptimizerConfig",
    "PoolConfig",
    "Recipe",
    "ScheduleConfig",
    "StageConfig",
    "TrackingConfig",
    "TrainConfig",
]
