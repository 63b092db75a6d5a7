"""Recipes: their models, and reading them with every mistake answered at once."""

from semisup.config.load import Reading, find_recipe, load_recipe, parse_recipe, read_recipe, shipped_recipes, to_yaml
from semisup.config.schema import (
    BatchConfig,
    DataConfig,
    FreezeConfig,
    InitConfig,
    Input,
    LoraConfig,
    LossConfig,
    OptimizerConfig,
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
    "Reading",
    "Recipe",
    "ScheduleConfig",
    "StageConfig",
    "TrackingConfig",
    "TrainConfig",
    "find_recipe",
    "load_recipe",
    "parse_recipe",
    "read_recipe",
    "shipped_recipes",
    "to_yaml",
]
