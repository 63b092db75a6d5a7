"""Packaging of semisup. Tool settings live in pyproject.toml; everything about the distribution is here."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "semisup" / "_version.py").read_text(encoding="utf-8"), re.M)
if VERSION is None:
    raise RuntimeError("semisup/_version.py states no version")

# Recipes and benchmark suites stay where a reader looks for them, and travel in the wheel as the package data of
# `semisup.recipes` and `semisup.suites`.
setup(
    name="semisup",
    version=VERSION[1],
    description="Self- and semi-supervised learning for images: pretrain, fine-tune, self-train, distill.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=[*find_packages(include=["semisup", "semisup.*"]), "semisup.recipes", "semisup.suites"],
    package_dir={"semisup": "semisup", "semisup.recipes": "recipes", "semisup.suites": "benchmarks/suites"},
    package_data={
        "semisup": ["py.typed"],
        "semisup.bench.pages": ["*.j2"],
        "semisup.recipes": ["*/*.yaml"],
        "semisup.suites": ["*/*.yaml"],
    },
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "albumentations>=2.0",
        "bokeh>=3.1",
        "distributed>=2024.8",
        "jinja2>=3.1",
        "joblib>=1.3",
        "matplotlib>=3.8",
        "mlflow>=3.0",
        "numpy>=1.26",
        "omegaconf>=2.4",
        "pillow>=10.0",
        "pyyaml>=6.0",
        "rich>=13.0",
        "safetensors>=0.4",
        "scikit-learn>=1.5",
        "scipy>=1.12",
        "typer>=0.12",
    ],
    extras_require={
        "heic": ["pillow-heif>=0.16"],
        "dev": [
            "mypy>=1.14",
            "pillow-heif>=0.16",
            "pytest>=8.0",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "ruff>=0.9",
            "selenium>=4.20",
            "types-PyYAML",
        ],
    },
    entry_points={"console_scripts": ["semisup=semisup.cli.app:main"]},
)
