"""Recipes: their models, and reading them with every mistake answered at once."""

from semisup.config.load import Reading, find_recipe, load_recipe, parse_recipe, read_recipe, shipped_recipes, to_yaml
from semisup.config.schema import (
    BatchConfig,
    DataConfig,
    InitConfig,
    KnnConfig,
    OptimizerConfig,
    ProbeConfig,
    PropagateConfig,
    Recipe,
    RelabelConfig,
    ScheduleConfig,
    StageConfig,
    TrackingConfig,
)

__all__ = [
    "BatchConfig",
    "DataConfig",
    "InitConfig",
    "KnnConfig",
    "OptimizerConfig",
    "ProbeConfig",
    "PropagateConfig",
    "Reading",
    "Recipe",
    "RelabelConfig",
    "ScheduleConfig",
    "StageConfig",
    "TrackingConfig",
    "find_recipe",
    "load_recipe",
    "parse_recipe",
    "read_recipe",
    "shipped_recipes",
    "to_yaml",
]
