"""Where the packages lie; everything else about the distribution stands in pyproject.toml."""

from setuptools import find_packages, setup

# Recipes and benchmark suites stay where a reader looks for them, and travel in the wheel as the package data of
# `semisup.recipes` and `semisup.suites`.
setup(
    packages=[*find_packages(include=["semisup", "semisup.*"]), "semisup.recipes", "semisup.suites"],
    package_dir={"semisup": "semisup", "semisup.recipes": "recipes", "semisup.suites": "benchmarks/suites"},
    package_data={
        "semisup": ["py.typed"],
        "semisup.bench.pages": ["*.j2"],
        "semisup.labeling": ["*.j2"],
        "semisup.pipeline": ["*.j2", "page/*.j2"],
        "semisup.recipes": ["*/*.yaml", "*.json"],
        "semisup.suites": ["*/*.yaml", "*.json"],
    },
)
