"""The relabel stage: a teacher, or several, label the training images once and for all."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from semisup.errors import SemisupError
from semisup.options import Fraction, Range, Size
from semisup.settings import Input, PoolConfig, StageConfig

if TYPE_CHECKING:  # what a stage runs is imported when it is planned or run: reading recipes waits for none of it
    from torch import Tensor

    from semisup.stages.artifact import Artifact
    from semisup.stages.context import StageContext
    from semisup.stages.planned import Plan, StagePlan

__all__ = ["LEAVES", "Config", "check", "inputs", "plan", "run"]


class Config(StageConfig):
    """How a relabel stage turns its teachers' predictions into labels."""

    only_with: ClassVar = {"folds": ("vote", "best"), "repeats": ("vote", "best")}
    kind: Literal["relabel"] = "relabel"
    """What the stage does."""
    teacher: list[str] = []
    """Earlier stages whose predictions are put together (`vote`): train stages that classify, and probe, head,
    propagate and relabel stages. One may be written without the brackets."""
    threshold: Fraction = 0.0
    """Smallest confidence kept, 0 (keep all) to 1."""
    per_class: Size | None = None
    """Most confident images kept per class, >= 1; null: all."""
    soft: bool = True
    """Keep probabilities (true) or only the best class (false)."""
    balance: bool = False
    """Repeat images of classes that have fewer than `per_class`."""
    vote: Literal["mean", "labels", "best"] = "mean"
    """What several teachers' predictions become: the mean of their probabilities, or of their one-hot guesses, which
    needs no common scale (V-PET, arXiv:2503.09707). best: the predictions of one of them alone, whose kind is right
    most often about labeled images that it was not given, by cross-fitting, among those whose squared error is within a
    standard error of the least."""
    folds: Annotated[int, Range(2, 100)] = 5
    """Of `vote: best`: parts of the labels, each of which is predicted by the others, >= 2; every teacher is run so
    many times more."""
    repeats: Annotated[int, Range(1, 20)] = 1
    """Of `vote: best`: how often the labels are parted, >= 1. With a handful of labels per class two partings choose
    better than one (benchmarks/results/choice.md), and take twice as long."""
    pool: PoolConfig = PoolConfig()
    """Images without those of no class, as the stage `by` sees them."""


LEAVES = ("pseudo-labels", "predictions")


def inputs(stage: Config) -> list[Input]:
    """Return the earlier stages that a stage names."""
    looked = [] if stage.pool.by is None else [Input("pool.by", stage.pool.by, "features")]
    return [*(Input(f"teacher[{i}]", name, "predictions") for i, name in enumerate(stage.teacher)), *looked]


def check(stage: Config) -> Iterator[tuple[str, str]]:
    """Yield a key and a sentence for each mistake that the stage alone shows."""
    if not stage.teacher:
        yield "teacher", "missing; a relabel stage needs the stage that predicts the labels"
    if stage.pool.keep == "all" and stage.pool.by is not None:
        yield "pool.by", "has no effect without pool.keep"
    if stage.pool.keep != "all" and stage.pool.by is None:
        yield "pool.by", "missing; name the stage by whose features images are told apart, e.g. a pretraining"


def plan(whole: Plan, name: str, stage: Config, earlier: Mapping[str, StagePlan]) -> StagePlan:
    """Plan a relabel stage.

    Raises:
        SemisupError: a teacher predicts no classes, or there are too few labels to choose one by.
    """
    from semisup.stages.choice import all_below, check_choice
    from semisup.stages.planned import StagePlan
    from semisup.stages.predictions import asked_too, check_teacher
    from semisup.stages.requirements import names_of, require_labels

    for teacher in stage.teacher:
        check_teacher(earlier[teacher], "teacher")
    needed = [*names_of(inputs(stage)), *(other for teacher in stage.teacher for other in asked_too(earlier[teacher]))]
    choice: str | None = None
    trials: tuple[int, tuple[str, ...]] = (0, ())
    if stage.vote == "best":
        most = stage.folds * stage.repeats
        choice = (
            f"vote: best first runs {', '.join(stage.teacher)} up to {most} times more, each time without a part of "
            f"the labels, to take what is right about most of them"
        )
        trials = most, tuple(stage.teacher)
        require_labels(whole, "vote", stage.vote)
        check_choice(whole, "teacher", [earlier[teacher] for teacher in stage.teacher])
        needed += [other for teacher in stage.teacher for other in all_below(earlier, teacher)]
    return StagePlan(
        name=name,
        config=stage,
        inputs=tuple(dict.fromkeys(needed)),
        memory=whole.data.resident_bytes,
        choice=choice,
        trials=trials,
    )


def run(context: StageContext) -> tuple[Artifact, None]:
    """Run a relabel stage: what the teachers say of clean images, averaged, or of the one that was chosen.

    Where the recipe draws a budget, the labeled images are relabeled like the others; the student's labeled
    batch has their true labels.
    """
    from semisup.engine import generator
    from semisup.stages.pool import own_images, pool_metrics
    from semisup.stages.targets import save_targets, select

    started = time.perf_counter()
    stage = context.config
    assert isinstance(stage, Config)
    probs, evaluated = _chosen(context, stage) if stage.vote == "best" else (_voted(context, stage), {})
    own = own_images(context, stage.pool, None)
    pool, targets = select(
        probs,
        generator(context.recipe.seed, context.name, "balance"),
        threshold=stage.threshold,
        per_class=stage.per_class,
        soft=stage.soft,
        balance=stage.balance,
        allowed=own,
    )
    if not len(pool):
        raise SemisupError(
            f"stages.{context.name}.threshold: no image reaches {stage.threshold:g}; the most "
            f"confident one has {probs.max():.3f}"
        )
    if own is not None:
        evaluated |= pool_metrics(len(own), int(own.sum()))
    return save_targets(context, pool, targets, started, len(probs) * len(stage.teacher), evaluated), None


def _voted(context: StageContext, stage: Config) -> Tensor:
    """Return the mean (N, C) of what the teachers say."""
    import torch

    from semisup.stages.predictions import predictions

    probs = torch.zeros(len(context.data.x_train), context.data.num_classes)
    for name in stage.teacher:
        said = predictions(context, name)
        if stage.vote == "labels":
            said = torch.nn.functional.one_hot(said.argmax(1), said.shape[1]).float()
        probs += said / len(stage.teacher)
    return probs


def _chosen(context: StageContext, stage: Config) -> tuple[Tensor, dict[str, Any]]:
    """Return what the teacher says (N, C) that was best in cross-fitting, and the record of the choice.

    The record has every teacher's accuracy and squared error, and as its own test metrics those of the chosen one.
    """
    import shutil

    from semisup.stages.choice import cross_fitted
    from semisup.stages.predictions import predictions

    choice = cross_fitted(context, stage.teacher, stage.folds, stage.repeats)
    record: dict[str, Any] = {**choice.metrics(), "choice/chosen": stage.teacher.index(choice.taken)}
    chosen = context.inputs[choice.taken]
    record |= {key: value for key, value in chosen.metrics.items() if key.startswith(("test/", "validation/"))}
    if "confusion.png" in chosen.record["files"]:
        shutil.copyfile(chosen.folder / "confusion.png", context.folder / "confusion.png")
    return predictions(context, choice.taken), record
