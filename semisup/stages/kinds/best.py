"""The best stage: of several trained stages the one that is right most often about labels it was not given."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from semisup.options import Range
from semisup.settings import Input, StageConfig

if TYPE_CHECKING:  # what a stage runs is imported when it is planned or run: reading recipes waits for none of it
    from semisup.stages.artifact import Artifact
    from semisup.stages.context import StageContext
    from semisup.stages.planned import Plan, StagePlan

__all__ = ["LEAVES", "Config", "check", "inputs", "plan", "run"]


class Config(StageConfig):
    """A choice among trained networks.

    Self-training may be worse than the labels alone, and few labels are too dear to keep some for validation. Every
    stage named is trained again without a part of the labels, which it then predicts, and so for each part; the one
    that is right most often is taken as it was trained on all of them, unless the squared error of its probabilities is
    more than a standard error above the least. Classes that differ by more than 3 times count alike.
    """

    kind: Literal["best"] = "best"
    """What the stage does."""
    among: list[str] = []
    """Earlier train stages that classify, two at least, of the same network. Of equals the one with the least squared
    error is taken."""
    folds: Annotated[int, Range(2, 100)] = 3
    """Parts of the labels, each of which is predicted by the others, >= 2; every stage is trained so many times more,
    and the stages that it starts from too."""
    repeats: Annotated[int, Range(1, 20)] = 1
    """How often the labels are parted, >= 1; each parting takes as long as the first."""


LEAVES = ("network", "features", "predictions")


def inputs(stage: Config) -> list[Input]:
    """Return the earlier stages that a stage names."""
    return [Input(f"among[{i}]", name, "network") for i, name in enumerate(stage.among)]


def check(stage: Config) -> Iterator[tuple[str, str]]:
    """Yield a key and a sentence for each mistake that the stage alone shows."""
    if len(set(stage.among)) < 2:
        yield "among", "needs two stages at least to choose among, e.g. [labels_alone, train]"


def plan(whole: Plan, name: str, stage: Config, earlier: Mapping[str, StagePlan]) -> StagePlan:
    """Plan a choice.

    Raises:
        SemisupError: a stage is none that can be trained again, their networks differ, or there are too few labels.
    """
    from semisup.errors import SemisupError
    from semisup.stages.choice import all_below, check_choice
    from semisup.stages.planned import StagePlan
    from semisup.stages.requirements import require_classifier, require_labels

    require_labels(whole, "among", name)
    check_choice(whole, "among", [earlier[other] for other in stage.among])
    first, *others = (earlier[other] for other in stage.among)
    for other in (first, *others):
        require_classifier(other, "among")
    for other in others:
        assert other.network is not None and first.network is not None
        if not other.network.built_as(first.network):
            raise SemisupError(
                f"among: '{other.name}' has another network than '{first.name}'; what is taken must be one"
            )
    needed = [below for other in stage.among for below in (other, *all_below(earlier, other))]
    return StagePlan(
        name=name,
        config=stage,
        inputs=tuple(dict.fromkeys(needed)),
        parameters=first.parameters,
        network=first.network,
        memory=max(earlier[other].memory for other in stage.among),
        choice=f"trains {', '.join(stage.among)} {stage.folds * stage.repeats} times more, each time without a part of "
        f"the labels, and takes what is right about most of them",
        trials=(stage.folds * stage.repeats, tuple(stage.among)),
    )


def run(context: StageContext) -> tuple[Artifact, None]:
    """Choose, and leave the files of the chosen stage with its record."""
    import shutil

    from semisup.stages.artifact import finish
    from semisup.stages.choice import cross_fitted

    started = time.perf_counter()
    stage = context.config
    assert isinstance(stage, Config)
    choice = cross_fitted(context, stage.among, stage.folds, stage.repeats)
    chosen = context.inputs[choice.taken]
    for name in chosen.record["files"]:
        shutil.copyfile(chosen.folder / name, context.folder / name)
    own: dict[str, Any] = {
        "name": context.name,
        "fingerprint": context.folder.name,
        "seconds": time.perf_counter() - started,
        "evaluation_seconds": 0.0,
        "chosen": f"{choice.taken}, of labels that were left out: {choice.told()}",
        "metrics": {key: value for key, value in chosen.metrics.items() if not key.startswith("choice")}
        | choice.metrics(),
    }
    return finish(context.folder, list(chosen.record["files"]), chosen.record | own), None
