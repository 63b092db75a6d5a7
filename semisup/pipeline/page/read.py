"""What a finished run's folder says of it. It may have been received: nothing is believed before it is checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from semisup.config import load_recipe
from semisup.errors import SemisupError, nearest, raise_all
from semisup.records import MODEL, WritableText, checked, read_json
from semisup.settings import Recipe

__all__ = ["TESTED", "last_model", "read_run"]

TESTED = "test/accuracy"
"""Number of a stage that was tested; the others of `test/` are there then, too."""

Count = Annotated[int, Field(ge=0, lt=2**63)]
Share = Annotated[float, Field(ge=0, le=1)]
Finite = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Bin = Annotated[list[Finite], Field(min_length=3, max_length=3)]
"""Count, confidence, accuracy."""
Number = Annotated[int, Field(gt=-(2**63), lt=2**63)] | float


class _Checked(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class _Data(_Checked):
    source: WritableText
    hash: str
    split_hash: str | None
    n_train: Count
    n_labeled: Count
    n_validation: Count
    n_test: Count
    notes: list[WritableText] = []


class _Stage(_Checked):
    name: str
    method: WritableText
    fingerprint: WritableText
    status: WritableText
    steps: Count
    seconds: Finite
    images_per_second: Finite | None
    parameters: Count
    chosen: WritableText | None = None
    metrics: dict[WritableText, Number | bool | str | list[Any] | dict[str, Any] | None]


class _Result(_Checked):
    """The keys of `result.json` that the page shows."""

    recipe: WritableText
    version: WritableText
    device: WritableText
    seed: Count
    data: _Data
    stages: list[_Stage]


class _Tested(_Checked):
    """What a stage that was tested says of it."""

    accuracy: Annotated[Share, Field(alias=TESTED)]
    majority_rate: Annotated[Share, Field(alias="test/majority_rate")]
    ece: Annotated[Share | None, Field(alias="test/ece")]
    nll: Annotated[float | None, Field(alias="test/nll")]
    confusion: Annotated[list[list[Count]], Field(alias="test/confusion")] = []
    reliability: Annotated[list[Bin], Field(alias="test/reliability")] = []


_RESULT, _TESTED = TypeAdapter(_Result), TypeAdapter(_Tested)


def read_run(folder: Path) -> tuple[dict[str, Any], Recipe]:
    """Return a finished run's `result.json` and its recipe.

    Raises:
        SemisupError: no finished run there, or one of its files is damaged.
    """
    path = folder / "result.json"
    if not path.is_file():
        raise SemisupError(f"{folder}: not the folder of a finished run (no result.json)")
    result: dict[str, Any] = read_json(path)
    subject = f"{path}: damaged"
    checked(_RESULT, result, subject)
    recipe = load_recipe(folder / "recipe.yaml")
    unknown = [stage["name"] for stage in result["stages"] if stage["name"] not in recipe.stages]
    raise_all([f"the recipe has no stage {name!r}{nearest(name, recipe.stages)}" for name in unknown], subject)
    for stage in result["stages"]:
        if TESTED in stage["metrics"]:
            _check_tested(stage, result["data"]["n_test"], subject)
    return result, recipe


def _check_tested(stage: dict[str, Any], tested: int, subject: str) -> None:
    subject = f"{subject}: stage {stage['name']}"
    found: _Tested = checked(_TESTED, stage["metrics"], subject)
    if any(len(row) != len(found.confusion) for row in found.confusion):
        raise SemisupError(f"{subject}: test/confusion: must have as many columns as rows")
    if not tested:
        raise SemisupError(f"{subject}: has {TESTED}, and data.n_test is 0")


def last_model(folder: Path, result: dict[str, Any]) -> str | None:
    """Return the last stage that leaves a classifier.

    Raises:
        SemisupError: a stage's `model.json` is damaged.
    """
    for stage in reversed(result["stages"]):
        path = folder / stage["name"] / MODEL
        if not path.is_file():
            continue
        found = read_json(path)
        if not isinstance(found, dict):
            raise SemisupError(f"{path}: not a model's description")
        if found.get("kind") == "classifier":
            return str(stage["name"])
    return None
