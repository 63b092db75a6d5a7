"""What stages ask of the data and of the stages that they read, before anything is trained."""

from __future__ import annotations

from collections.abc import Iterable

from semisup.data import ImageData
from semisup.errors import SemisupError
from semisup.models import Classifier
from semisup.settings import Input
from semisup.stages.planned import Plan, StagePlan

__all__ = [
    "features_of",
    "names_of",
    "require_classifier",
    "require_grid",
    "require_labels",
    "require_maps",
    "require_mirror",
]


def names_of(inputs: Iterable[Input]) -> tuple[str, ...]:
    """Return the names of the stages, each once, in their order."""
    return tuple(dict.fromkeys(one.stage for one in inputs))


def require_labels(plan: Plan, key: str, name: str) -> None:
    """Refuse a stage that learns from labels where the budget has none.

    Raises:
        SemisupError: names the key and what it chose.
    """
    if not len(plan.budget.index):
        raise SemisupError(
            f"{key}: '{name}' learns from labels, but no image of '{plan.data.name}' has one that "
            f"data.labels={plan.recipe.data.labels} allows"
        )


def require_classifier(stage: StagePlan, key: str) -> None:
    """Refuse a stage as a teacher that predicts no classes.

    Raises:
        SemisupError: names the key and the stage.
    """
    if stage.network is None or stage.network.kind != "classifier":
        raise SemisupError(f"{key}: '{stage.name}' trains an encoder and cannot predict; fine-tune it first")


def features_of(stage: StagePlan) -> Classifier:
    """Return the network of a planned stage, without memory for its weights."""
    assert stage.network is not None
    return stage.network.shapes


def require_maps(key: str, what: str, stage: StagePlan, features: Classifier) -> None:
    """Refuse a look at the maps of a network that has none.

    Raises:
        SemisupError: names the key, the network and what was asked of it.
    """
    assert stage.network is not None
    if not hasattr(features.backbone, "maps"):
        raise SemisupError(f"{key}: the network of '{stage.name}', {stage.network.spec.name}, {what}")


def require_grid(key: str, grid: int, stage: StagePlan, features: Classifier) -> None:
    """Refuse a grid where there is no map for it.

    Raises:
        SemisupError: names the network.
    """
    if grid == 1:
        return
    require_maps(key, "has no maps to average in parts; leave it at 1", stage, features)
    if len(list(features.neck.children())):
        raise SemisupError(
            f"{key}: the network of '{stage.name}' keeps layers of a projection head, which take one mean; "
            "leave it at 1"
        )


def require_mirror(key: str, data: ImageData) -> None:
    """Refuse mirror images where they may be of another class.

    Raises:
        SemisupError: names the data.
    """
    if not data.flip:
        raise SemisupError(
            f"{key}: a mirrored image of '{data.name}' may be of another class; leave it false, or say that it "
            f"keeps its class with data.flip=true"
        )
