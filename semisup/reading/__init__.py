"""Reading recipes, with every mistake answered at once."""

from semisup.reading.load import Reading, find_recipe, load_recipe, parse_recipe, read_recipe, shipped_recipes, to_yaml

__all__ = [
    "Reading",
    "find_recipe",
    "load_recipe",
    "parse_recipe",
    "read_recipe",
    "shipped_recipes",
    "to_yaml",
]
