"""The knn stage: the labels of an image's nearest ones in the feature space of a frozen network vote."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from semisup.options import Count, Positive, Range
from semisup.settings import Input, StageConfig

if TYPE_CHECKING:  # what a stage runs is imported when it is planned or run: reading recipes waits for none of it
    from torch import Tensor

    from semisup.stages.artifact import Artifact
    from semisup.stages.context import StageContext
    from semisup.stages.planned import Plan, StagePlan

__all__ = ["LEAVES", "Config", "check", "inputs", "plan", "run"]

MOST_NEIGHBORS = 200
"""NPID's k (arXiv:1805.01978, sec. 3.4), whose bank is all of ImageNet."""


class Config(StageConfig):
    """How a knn stage evaluates a frozen network: by the labels of the nearest images (arXiv:1805.01978, sec. 3.4)."""

    kind: Literal["knn"] = "knn"
    """What the stage does."""
    of: str | None = None
    """An earlier train stage, or features stage, whose network is looked at."""
    bank: Literal["labels", "all"] = "labels"
    """Who votes. labels: the budget's images, a few-label result (test/accuracy). all: every training label, whatever
    the budget: a look at the features (knn/accuracy) that no few-label result may be compared with."""
    k: Count | None = None
    """Nearest images that vote, >= 1; null: 200, but no more than a class has in the bank on average: of many more than
    its own class has, most must vote wrongly."""
    tau: Positive = 0.07
    """A vote counts exp(cosine / tau), > 0."""
    grid: Annotated[int, Range(1, 64)] = 1
    """See the probe's."""


LEAVES: tuple[str, ...] = ()


def inputs(stage: Config) -> list[Input]:
    """Return the earlier stages that a stage names."""
    return [] if stage.of is None else [Input("of", stage.of, "features")]


def check(stage: Config) -> Iterator[tuple[str, str]]:
    """Yield a key and a sentence for each mistake that the stage alone shows."""
    if stage.of is None:
        yield "of", "missing; a knn stage needs the train stage whose network it evaluates"


def plan(whole: Plan, name: str, stage: Config, earlier: Mapping[str, StagePlan]) -> StagePlan:
    """Plan a knn stage. One that reads every label whatever the budget is shared by all budgets.

    Raises:
        SemisupError: there are no labels to vote with, or the network has no maps where a key asks for them.
    """
    from semisup.errors import collecting, raise_all
    from semisup.evaluate.knn import SIMILARITIES
    from semisup.stages.planned import StagePlan
    from semisup.stages.requirements import features_of, require_grid, require_labels

    assert stage.of is not None
    looked_at, data = earlier[stage.of], whole.data
    features, problems = features_of(looked_at), list[str]()
    with collecting(problems):
        require_labels(whole, "kind", stage.kind)
    with collecting(problems):
        require_grid("grid", stage.grid, looked_at, features)
    raise_all(problems)
    every_label = stage.bank == "all"
    bank = len(data.x_train) if every_label else len(whole.budget.index)
    memory = data.resident_bytes + 4 * stage.grid**2 * features.num_features * (bank + len(data.x_test))
    return StagePlan(
        name=name,
        config=stage,
        inputs=(stage.of,),
        reads_labels=not every_label,
        parameters=looked_at.parameters,
        memory=memory + 4 * SIMILARITIES,
    )


def run(context: StageContext) -> tuple[Artifact, None]:
    """Run a knn stage: the labels of an image's nearest ones in feature space vote.

    With `bank: labels` the voters are the budget's images, and the result is a few-label result, `test/...`. With
    `bank: all` they are all training images whose label anybody knows, hidden ones too: `knn/accuracy`, a look at the
    features that has no `test/accuracy` for a table of few-label results to take up.
    """
    import numpy as np
    import torch

    from semisup.evaluate import knn_predict, predict_logits
    from semisup.stages.evaluation import evaluate_test, evaluate_validation
    from semisup.stages.features import features_of_images, finish_evaluated, look, unchanged

    started = time.perf_counter()
    data, budget, config = context.data, context.budget, context.config
    assert isinstance(config, Config)
    every_label = config.bank == "all"
    index = np.flatnonzero(data.y_train >= 0) if every_label else budget.index
    of = str(config.of)
    network = look(context.inputs[of].folder, context.device, grid=config.grid)
    k = min(MOST_NEIGHBORS, max(1, len(index) // data.num_classes)) if config.k is None else min(config.k, len(index))
    metrics: dict[str, Any] = {"knn/bank": len(index), "knn/k": k}
    with unchanged(network):
        bank = features_of_images(context, of, network, "train", index)
        labels = torch.from_numpy(data.y_train[index]).to(bank.device)
        seconds = time.perf_counter() - started

        def predict(queries: Tensor) -> Tensor:
            votes = knn_predict(bank, labels, queries, num_classes=data.num_classes, k=k, temperature=config.tau)
            votes = votes.cpu().double()
            return (votes / votes.sum(1, keepdim=True)).clamp(min=1e-12).log()

        if not every_label:
            metrics |= evaluate_validation(context, lambda batches: predict(predict_logits(network, batches)))
        if len(data.x_test):
            logits = predict(features_of_images(context, of, network, "test"))
            if every_label:
                metrics["knn/accuracy"] = float((logits.argmax(1) == torch.from_numpy(data.y_test)).double().mean())
            else:
                metrics |= evaluate_test(context, logits)
    return finish_evaluated(context, network, [], started, seconds, len(index), metrics), None
