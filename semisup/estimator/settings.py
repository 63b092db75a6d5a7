"""The estimator's own settings, checked when it is fitted, as scikit-learn does; a recipe's are checked as such."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from pathlib import Path
from typing import Any

from semisup.errors import raise_all
from semisup.estimator.pixels import LARGEST, SMALLEST
from semisup.settings import Recipe

__all__ = ["check_settings"]


def check_settings(given: Mapping[str, Any]) -> None:
    """Compare types and ranges of settings with what `SemiSupervisedClassifier` says of them.

    Args:
        given: all settings, by name.

    Raises:
        SemisupError: all that are not as they must be.
    """
    size, steps, seed = given["size"], given["max_steps"], given["random_state"]
    fine = {
        f"size: must be {SMALLEST} to {LARGEST} or None": size is None
        or (_whole(size) and SMALLEST <= size <= LARGEST),
        "max_steps: must be 1 or more, or None": steps is None or (_whole(steps) and steps >= 1),
        "recipe: must be a name, a file, a mapping or a Recipe": _is(given["recipe"], str, Path, Mapping, Recipe),
        "method: must be a name or a mapping with one": _is(given["method"], str, Mapping),
        "backbone: must be a name or a mapping with one": _is(given["backbone"], str, Mapping),
        "image_shape: must be (h, w), (h, w, 3) or 'square'": _is(given["image_shape"], str, tuple, list),
        "overrides: must be a list of key=value words": _words(given["overrides"]),
        "flip: must be True or False": isinstance(given["flip"], bool),
        "random_state: must be 0 to 4294967295, a generator or None": not isinstance(seed, Integral)
        or 0 <= int(seed) < 2**32,
        "device: must be auto, cpu, cuda or mps": _is(given["device"], str),
    }
    raise_all([f"{rule}, not {given[rule.split(':')[0]]!r}" for rule, good in fine.items() if not good])


def _whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is(value: Any, *types: type) -> bool:
    return value is None or isinstance(value, types)


def _words(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(word, str) for word in value)
