"""A run on several ranks: what it refuses, and what the ranks do of which nobody hears."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from semisup.engine import ranks
from semisup.errors import SemisupError
from semisup.pipeline.execute import help_to_execute
from semisup.pipeline.plan import Plan
from semisup.settings import Recipe, TrainConfig
from semisup.stages import Artifact

__all__ = ["check_same_plan", "help_to_run", "not_shared"]


def not_shared(recipe: Recipe, processes: int) -> list[str]:
    """Return what of a recipe cannot run on so many processes, one sentence each; nothing for one."""
    return list(_problems(recipe, processes)) if processes > 1 else []


def _problems(recipe: Recipe, processes: int) -> Iterator[str]:
    if recipe.compile:
        yield "compile: is for one process; remove it, or run on one"
    if recipe.device not in ("auto", "cpu", "cuda"):
        yield f"device: each of {processes} processes takes its own, by auto, cpu or cuda, not '{recipe.device}'"
    for name, stage in recipe.stages.items():
        if isinstance(stage, TrainConfig) and stage.activation_checkpointing:
            yield f"stages.{name}.activation_checkpointing: is for one process; remove it, or run on one"


def check_same_plan(plan: Plan) -> None:
    """Refuse a rank that has planned other stages than rank 0, as one does that reads other images.

    Raises:
        SemisupError: on that rank.
    """
    mine = " ".join(stage.fingerprint for stage in plan.stages)
    if ranks.size() > 1 and ranks.same_everywhere(mine.encode) != mine.encode():
        raise SemisupError("it has other data than rank 0, another precision, or another version of semisup")


def help_to_run(plan: Plan, homes: Mapping[str, Path]) -> None:
    """Take this rank's part in the stages that rank 0 runs, in their folders."""
    finished: dict[str, Artifact] = {}
    for stage in plan.stages:
        finished[stage.name] = help_to_execute(plan, stage, homes[stage.name], finished)
