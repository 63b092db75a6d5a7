"""What a stage can be, one file each: to add a kind, write its file and put its module into `KINDS`.

A file has the kind's `Config`, what it `LEAVES`, and `inputs`, `check`, `plan` and `run` (see `Kind`). It imports torch
and what stands on it only inside the last two: settings are read before that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Protocol, Union

from pydantic import Discriminator, Tag

from semisup.settings import Input, Recipe, StageConfig
from semisup.stages.kinds import best, features, finished, head, knn, probe, propagate, relabel, train

if TYPE_CHECKING:
    from semisup.stages.artifact import Artifact
    from semisup.stages.context import StageContext
    from semisup.stages.planned import Plan, StagePlan

__all__ = ["KINDS", "CheckedRecipe", "Kind", "kind_of", "name_of"]


class Kind(Protocol):
    """What the file of a kind offers; `stage` is its own `Config`."""

    Config: Any
    """The model of its settings, a `StageConfig` whose `kind` has one value and a default."""
    LEAVES: Any
    """What later stages may want of it: network (to start from or to be taught by), features,
    predictions, pseudo-labels."""

    def inputs(self, stage: Any) -> list[Input]:
        """Return the earlier stages that a stage names."""

    def check(self, stage: Any) -> Iterator[tuple[str, str]]:
        """Yield a key (empty: the stage itself) and a sentence for each mistake that the stage alone shows."""

    def plan(self, whole: Plan, name: str, stage: Any, earlier: Mapping[str, StagePlan]) -> StagePlan:
        """Plan a stage; its fingerprint and the memory of a training step are not its own business."""

    def run(self, context: StageContext) -> tuple[Artifact, int | None]:
        """Run a stage; return what it leaves, and the step that it was resumed from, if it was."""


KINDS: tuple[Kind, ...] = (train, features, relabel, propagate, probe, knn, head, best, finished)
"""The first is what a stage is that names no kind."""


def name_of(kind: Kind) -> str:
    """Return what `kind:` says for a kind."""
    return str(kind.Config.model_fields["kind"].default)


def kind_of(name: str) -> Kind:
    """Return the kind of that name."""
    return next(kind for kind in KINDS if name_of(kind) == name)


def _tag(stage: Any) -> Any:
    default = name_of(KINDS[0])  # also for what is no mapping, to be told so
    return stage.get("kind", default) if isinstance(stage, dict) else getattr(stage, "kind", default)


if TYPE_CHECKING:
    Stage = StageConfig
else:
    Stage = Annotated[
        Union[tuple(Annotated[kind.Config, Tag(name_of(kind))] for kind in KINDS)],  # noqa: UP007
        Discriminator(_tag),
    ]


class CheckedRecipe(Recipe):
    """A recipe whose stages have the keys of their kinds and no others."""

    stages: dict[str, Stage] = {}
    """In the order they run; names of lower-case letters, digits and _."""
