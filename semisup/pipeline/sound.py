"""What is sound of a recipe that has mistakes: the rest of it can be checked against the data all the same."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from semisup.config.check import check_recipe
from semisup.options import without
from semisup.pipeline.check import check_blocks
from semisup.settings import Recipe
from semisup.stages.kinds import CheckedRecipe

__all__ = ["sound_part"]

NAMES = ("name", "policy", "from", "weights")
"""Keys without which the others next to them mean nothing."""
HARMLESS = ("data.labels", "data.validation", "data.split_seed")
"""Keys of the data that leave them what they are."""


def sound_part(raw: Mapping[str, Any], problems: Iterable[str]) -> Recipe | None:
    """Return a recipe with the defaults in place of what these sentences are about.

    Without the stages of which nothing is known then: those that lack their method or network, or have other mistakes.

    Args:
        raw: plain containers, every short form spelled out.
        problems: each begins with its full key.

    Returns:
        None where it would be a recipe for other data, or a wrong key cannot be found again, such as one of spaces.
    """
    keys = [re.match(r"[^\s:]*", problem)[0] for problem in problems]  # type: ignore[index]
    if any(key.startswith("data") and key not in HARMLESS for key in keys):
        return None
    kept = {"name": "x"} | without(dict(raw), [place for key in keys if (place := _removed(key)) is not None])
    nameless = "model" in raw and "model" not in kept
    given = kept.get("stages")
    named = given.items() if isinstance(given, Mapping) else ()  # of a list only what is wrong in it was taken away
    stages = {name: _with_length(stage) for name, stage in named if isinstance(stage, Mapping)}
    kept["stages"] = {
        name: stage for name, stage in stages.items() if _has_parts(stage, raw["stages"][name], nameless=nameless)
    }
    wrong = [problem.split(".")[1] for problem in [*check_recipe(kept), *check_blocks(kept)] if "stages." in problem]
    kept["stages"] = {name: stage for name, stage in kept["stages"].items() if name not in wrong}
    try:
        return CheckedRecipe.model_validate(kept)
    except ValidationError:
        return None


def _removed(key: str) -> tuple[str | int, ...] | None:
    """Return the place of what goes with a wrong key; None: nothing does, as of a stage's missing length."""
    place = tuple(int(word[1:-1]) if word[0] == "[" else word for word in re.findall(r"\[\d+\]|[^.\[\]]+", key))
    if len(place) == 2 and place[0] == "stages":
        return None
    return place[:-1] if len(place) > 1 and place[-1] in NAMES else place


def _with_length(stage: Mapping[str, Any]) -> dict[str, Any]:
    """Give a train stage one step if its length is missing, or said twice."""
    given = [key for key in ("steps", "epochs") if stage.get(key) is not None]
    if stage.get("kind", "train") != "train" or len(given) == 1:
        return dict(stage)
    return {**{key: value for key, value in stage.items() if key not in given}, "steps": 1}


def _has_parts(stage: Mapping[str, Any], raw: Mapping[str, Any], *, nameless: bool) -> bool:
    """Say whether a stage still has its method, its network and, where another key needs them, its first weights."""
    parts = ["kind", "method", "model", "teacher", *(["init"] if stage.keys() & {"freeze", "lora", "train"} else [])]
    lost = [key for key in parts if raw.get(key) and not stage.get(key)]
    return not lost and not (nameless and stage.get("model") is None)
