"""The relabel stage: a teacher, or several, label the training images once and for all."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal

from semisup.config import Input, PoolConfig, StageConfig
from semisup.errors import SemisupError
from semisup.options import Fraction, Size

if TYPE_CHECKING:  # what a stage runs is imported when it is planned or run: reading recipes waits for none of it
    from semisup.stages.artifact import Artifact
    from semisup.stages.context import StageContext
    from semisup.stages.planned import Plan, StagePlan

__all__ = ["LEAVES", "Config", "check", "inputs", "plan", "run"]


class Config(StageConfig):
    """How a relabel stage turns its teachers' predictions into labels."""

    kind: Literal["relabel"] = "relabel"
    """What the stage does."""
    teacher: list[str] = []
    """Earlier train stages, whose predictions are put together (`vote`); one may be written without the brackets."""
    threshold: Fraction = 0.0
    """Smallest confidence kept, 0 (keep all) to 1."""
    per_class: Size | None = None
    """Most confident images kept per class, >= 1; null: all."""
    soft: bool = True
    """Keep probabilities (true) or only the best class (false)."""
    balance: bool = False
    """Repeat images of classes that have fewer than `per_class`."""
    vote: Literal["mean", "labels"] = "mean"
    """What several teachers' predictions become: the mean of their probabilities, or of their one-hot guesses, which
    needs no common scale (V-PET, arXiv:2503.09707)."""
    pool: PoolConfig = PoolConfig()
    """Images without those of no class; by default as the first teacher sees them."""


LEAVES = ("pseudo-labels",)


def inputs(stage: Config) -> list[Input]:
    """Return the earlier stages that a stage names."""
    looked = [] if stage.pool.by is None else [Input("pool.by", stage.pool.by, "features")]
    return [*(Input(f"teacher[{i}]", name, "network") for i, name in enumerate(stage.teacher)), *looked]


def check(stage: Config) -> Iterator[tuple[str, str]]:
    """Yield a key and a sentence for each mistake that the stage alone shows."""
    if not stage.teacher:
        yield "teacher", "missing; a relabel stage needs the stage that predicts the labels"


def plan(whole: Plan, name: str, stage: Config, earlier: Mapping[str, StagePlan]) -> StagePlan:
    """Plan a relabel stage.

    Raises:
        SemisupError: a teacher predicts no classes.
    """
    from semisup.stages.planned import StagePlan
    from semisup.stages.requirements import names_of, require_classifier

    for teacher in stage.teacher:
        require_classifier(earlier[teacher], "teacher")
    return StagePlan(name=name, config=stage, inputs=names_of(inputs(stage)), memory=whole.data.resident_bytes)


def run(context: StageContext) -> tuple[Artifact, None]:
    """Run a relabel stage: clean images, teachers in eval mode, probabilities averaged over teachers.

    Where the recipe draws a budget, the labeled images are relabeled like the others; the student's labeled
    batch has their true labels.
    """
    import torch

    from semisup.engine import generator
    from semisup.evaluate import predict_logits
    from semisup.stages.pool import own_images, pool_metrics
    from semisup.stages.predictor import load_network
    from semisup.stages.targets import save_targets, select

    started = time.perf_counter()
    stage, data = context.config, context.data
    assert isinstance(stage, Config)
    probs = torch.zeros(len(data.x_train), data.num_classes)
    for name in stage.teacher:
        teacher = load_network(context.inputs[name].folder, context.device)
        logits = predict_logits(teacher, context.clean_batches(data.x_train)).cpu()
        said = logits.softmax(1)
        if stage.vote == "labels":
            said = torch.nn.functional.one_hot(said.argmax(1), data.num_classes).float()
        probs += said / len(stage.teacher)
    own = own_images(context, stage.pool, stage.teacher[0])
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
    metrics = {} if own is None else pool_metrics(len(own), int(own.sum()))
    return save_targets(context, pool, targets, started, len(probs) * len(stage.teacher), metrics), None
