"""Recipes as one reads them: from YAML and overrides, with every mistake answered at once.

The models of what is read are in `semisup.settings`, below the stages; `Recipe` is named here too.
"""

from semisup.config.load import (
    Reading,
    find_recipe,
    load_recipe,
    parse_recipe,
    read_recipe,
    replaced,
    require_recipe_name,
    shipped_recipes,
    to_yaml,
)
from semisup.settings import Recipe

__all__ = [
    "Reading",
    "Recipe",
    "find_recipe",
    "load_recipe",
    "parse_recipe",
    "read_recipe",
    "replaced",
    "require_recipe_name",
    "shipped_recipes",
    "to_yaml",
]
