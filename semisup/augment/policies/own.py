"""A recipe's own list of albumentations transforms: names and arguments, as data.

Importing this module takes a second or more, because albumentations does.
"""

from __future__ import annotations

import inspect
import os
import random
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semisup.errors import SemisupError, first_line, nearest, raise_all

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else its import asks the network for a newer version

import albumentations as A
import cv2
from albumentations.core.serialization import SERIALIZABLE_REGISTRY

__all__ = ["OwnTransforms", "check_own", "transforms"]

FAILURES = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError, cv2.error)
"""What transforms raise on images that are not for them."""
TRIES = 4
"""Draws of each transform that are tried before training: sizes and types seldom depend on what is drawn."""


@lru_cache(maxsize=1)
def transforms() -> dict[str, type[Any]]:
    """Name -> transform of one image that albumentations offers by that name.

    Without `Lambda`, which is code, and without those that read files or other images too.
    """
    bases = (A.BasicTransform, A.DualTransform, A.ImageOnlyTransform)
    found = {}
    for name in SERIALIZABLE_REGISTRY:
        kind = getattr(A, name, None)
        if inspect.isclass(kind) and issubclass(kind, A.BasicTransform) and kind not in bases:
            reads_more = {"metadata_key", "read_fn", "font_path"} & set(_arguments(kind))
            if not reads_more and not issubclass(kind, A.Transform3D):
                found[name] = kind
    return found


def _arguments(kind: type[Any]) -> list[str]:
    return list(inspect.signature(kind).parameters)


def check_own(steps: object) -> list[str]:
    """Return what is wrong with an `albumentations:` list, one sentence each, beginning with the place ("[0].name").

    Args:
        steps: of mappings, `{name: GaussNoise, std_range: [0.1, 0.2]}`.
    """
    if not isinstance(steps, list | tuple) or not steps:
        return [": must be a list of transforms, such as [{name: GaussNoise, p: 0.5}]"]
    problems = []
    for i, step in enumerate(steps):
        if not isinstance(step, Mapping):
            problems.append(f"[{i}]: must be a mapping, such as {{name: GaussNoise, p: 0.5}}, got {step!r}")
        elif "name" not in step:
            problems.append(f"[{i}].name: missing")
        elif step["name"] not in transforms():
            what = "unknown transform, or one that takes more than an image,"
            problems.append(f"[{i}].name: {what} '{step['name']}'{nearest(str(step['name']), transforms())}")
        else:
            problems += [f"[{i}]{problem}" for problem in _problems(step)]
    return problems


def _problems(step: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the arguments of a transform that exists."""
    name = str(step["name"])
    known = _arguments(transforms()[name])
    found = [
        f".{key}: '{name}' takes no such argument{nearest(str(key), known)}"
        for key in step
        if key != "name" and key not in known
    ]
    found += [f".{key}: must be plain data, got {value!r}" for key, value in step.items() if not _is_plain(value)]
    if found:
        return found
    try:
        _build(step)
    except (TypeError, ValueError) as error:  # caused by one of pydantic, which lists what it found
        return [f": {name}: {problem}" for problem in _words(error)]
    return []


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return value is None or isinstance(value, bool | int | float | str)


def _words(error: Exception) -> list[str]:
    listed = getattr(error.__cause__, "errors", None)
    if not callable(listed):
        return [first_line(error)]
    return [": ".join([*map(str, found["loc"]), found["msg"]]) for found in listed()]


def _build(step: Mapping[str, Any], **more: Any) -> Any:
    options = {key: value for key, value in step.items() if key != "name"} | more
    return transforms()[step["name"]](**{key: _with_tuples(value) for key, value in options.items()})


def _with_tuples(value: Any) -> Any:
    """Return lists as tuples, which is how albumentations writes ranges, sizes and colors."""
    return tuple(_with_tuples(item) for item in value) if isinstance(value, list) else value


class OwnTransforms:
    """The transforms of one list, one after another. Not for two threads at a time: a transform remembers its draw.

    Args:
        steps: see `check_own`.

    Raises:
        SemisupError: everything that is wrong with them.
    """

    def __init__(self, steps: Sequence[Mapping[str, Any]]) -> None:
        raise_all(check_own(steps), "albumentations")
        self.steps = steps
        self.compose = A.Compose([_build(step) for step in steps])

    def __call__(self, image: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
        """Transform an image.

        Args:
            image: (H, W, C) uint8; stays as it is.
            seed: decides what is drawn.

        Raises:
            SemisupError: the result has another size, other channels or another type.
        """
        # One source for all transforms. By `set_random_seed` each would get one of its own, with the same numbers:
        # two flips would always agree.
        self.compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        result = self.compose(image=image)["image"]
        if (wrong := _wrong_result(image, result)) is not None:
            raise SemisupError(f"augment: albumentations {[step['name'] for step in self.steps]}: {wrong}")
        return result  # type: ignore[no-any-return]

    def try_on(self, image: NDArray[np.uint8]) -> list[str]:
        """Return what goes wrong with each transform, always applied, on one (H, W, C) uint8 image; as `check_own`."""
        problems = []
        for i, step in enumerate(self.steps):
            single = A.Compose([_build(step, p=1.0)])
            for seed in range(TRIES):
                single.set_random_state(np.random.default_rng(seed), random.Random(seed))
                try:
                    wrong = _wrong_result(image, single(image=image)["image"])
                except FAILURES as error:
                    wrong = f"fails on an image of shape {image.shape}: {first_line(error)}"
                if wrong is not None:
                    problems.append(f"[{i}]: {step['name']}: {wrong}")
                    break
        return problems


def _wrong_result(image: NDArray[np.uint8], result: Any) -> str | None:
    """Say how the result of a transform cannot go on, or None."""
    if not isinstance(result, np.ndarray) or result.dtype != np.uint8:
        kind = result.dtype if isinstance(result, np.ndarray) else type(result).__name__
        return f"must keep whole gray levels (uint8), makes {kind}"
    if result.shape != image.shape:
        return f"must keep height, width and channels {image.shape}, makes {result.shape}"
    return None
