"""The train stage: a network learns by a method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from semisup.settings import Input, TrainConfig

if TYPE_CHECKING:  # what a stage runs is imported when it is planned or run: reading recipes waits for none of it
    from semisup.stages.artifact import Artifact
    from semisup.stages.context import StageContext
    from semisup.stages.planned import Plan, StagePlan

__all__ = ["LEAVES", "Config", "check", "inputs", "plan", "run"]

Config = TrainConfig
LEAVES = ("network", "features", "predictions")


def inputs(stage: TrainConfig) -> list[Input]:
    """Return the earlier stages that a stage names."""
    found = (
        [] if stage.init is None or stage.init.source is None else [Input("init.from", stage.init.source, "network")]
    )
    found += [Input(f"teacher[{i}]", name, "features") for i, name in enumerate(stage.teacher)]
    if stage.pseudo_labels is not None:
        found.append(Input("pseudo_labels", stage.pseudo_labels, "pseudo-labels"))
    if stage.pool.by is not None:
        found.append(Input("pool.by", stage.pool.by, "features"))
    return found


def check(stage: TrainConfig) -> Iterator[tuple[str, str]]:
    """Yield a key and a sentence for each mistake that the stage alone shows."""
    if not stage.method:
        yield "method", "missing, e.g. method: {name: fixmatch}"
    if stage.steps is not None and stage.epochs is not None:
        yield "", "give steps or epochs, not both"
    if stage.steps is None and stage.epochs is None:
        yield "", "needs its length, steps or epochs"
    if stage.init is not None and (stage.init.source is None) == (stage.init.weights is None):
        yield "init", "needs one of from (a stage) and weights (a file), and not both"
    yield from _check_pool(stage)
    optimizer = stage.optimizer
    if optimizer.name == "sgd" and optimizer.nesterov and optimizer.momentum == 0:
        yield "optimizer", "nesterov needs momentum > 0; with momentum 0, set nesterov: false"
    yield from _check_tuning(stage)


def _check_pool(stage: TrainConfig) -> Iterator[tuple[str, str]]:
    if stage.pool.keep == "all":
        if stage.pool.by is not None:
            yield "pool.by", "has no effect without pool.keep"
        return
    if stage.batch.pool is not None:
        yield "pool.keep", "with batch.pool, which draws some of all images, it has no say; remove one of the two"
    if stage.pseudo_labels is not None:
        yield "pool.keep", f"the images are those of '{stage.pseudo_labels}'; give it the key, if it is a relabel stage"
    elif stage.pool.by is None and not stage.teacher and (stage.init is None or stage.init.source is None):
        yield "pool.by", "missing; name the stage by whose features images are told apart, e.g. a pretraining"


def _check_tuning(stage: TrainConfig) -> Iterator[tuple[str, str]]:
    """Yield what the keys on what learns ask of each other in vain."""
    if stage.lora is not None and stage.train == "norm":
        yield "train", "with lora it is all (LoRA alone) or bias (LoRA and the biases), not 'norm'"
    stays = stage.lora is not None or (stage.freeze is not None and stage.freeze.until is None)
    if stays and stage.refresh_batchnorm is True:
        yield "refresh_batchnorm", "would change the statistics of what is frozen; remove it"
    if stage.freeze is None:
        return
    whole, until = stage.freeze.blocks is None, stage.freeze.until is not None
    if (stage.train != "all" or stage.lora is not None) and (whole or until):
        other = "lora" if stage.lora is not None else "train"
        rest = "with `until`, everything learns afterwards" if until else "without `blocks`, nothing of it is left"
        yield "freeze", f"{rest} for {other} to choose from; keep one of the two"
    if whole and not until and stage.optimizer.lr_decay < 1:
        yield "optimizer.lr_decay", "freeze leaves no block that learns; remove one of the two"
    if whole and not until and stage.activation_checkpointing:
        yield "activation_checkpointing", "nothing is kept of a frozen backbone; remove it"


def plan(whole: Plan, name: str, stage: TrainConfig, earlier: Mapping[str, StagePlan]) -> StagePlan:
    """Plan a train stage, see `semisup.stages.training`."""
    from semisup.stages.training_plan import plan_training

    return plan_training(whole, name, stage, earlier, inputs(stage))


def run(context: StageContext) -> tuple[Artifact, int | None]:
    """Run a train stage, see `semisup.stages.training`."""
    from semisup.stages.training import train

    return train(context)
