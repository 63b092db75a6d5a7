"""Self- and semi-supervised learning for images: pretrain, fine-tune, self-train and distill in one recipe."""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from semisup._version import __version__
from semisup.errors import SemisupError

if TYPE_CHECKING:
    from semisup.estimator import SemiSupervisedClassifier
    from semisup.methods import METHODS
    from semisup.pipeline import run
    from semisup.plugins import register
    from semisup.stages import load_predictor

__all__ = ["METHODS", "SemiSupervisedClassifier", "SemisupError", "__version__", "load_predictor", "register", "run"]

logging.getLogger("semisup").addHandler(logging.NullHandler())  # a program that uses the package says where logs go

# torch takes seconds to import; `semisup --help` and a recipe with a typing mistake should not wait for it.
_LAZY = {
    "METHODS": "semisup.methods",
    "SemiSupervisedClassifier": "semisup.estimator",
    "load_predictor": "semisup.stages",
    "register": "semisup.plugins",
    "run": "semisup.pipeline",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'semisup' has no attribute '{name}'")
    return getattr(importlib.import_module(_LAZY[name]), name)
