"""The head stage: a linear layer or a small MLP on cached features, with self-training on those without labels."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal

from semisup.options import BelowOne, Count, CountOrZero, Fraction, NonNegative, Positive, Size
from semisup.settings import Input, StageConfig

if TYPE_CHECKING:  # what a stage runs is imported when it is planned or run: reading recipes waits for none of it
    from semisup.stages.artifact import Artifact
    from semisup.stages.context import StageContext
    from semisup.stages.planned import Plan, StagePlan

__all__ = ["LEAVES", "Config", "check", "inputs", "plan", "run"]


class Config(StageConfig):
    """How a head is trained on the features of a frozen network."""

    kind: Literal["head"] = "head"
    """What the stage does."""
    of: str | None = None
    """An earlier features or train stage, whose features are learned from. Where a features stage has `views`, a
    guess on an image is learned on one of them; else on the image's own features with dropout."""
    hidden: CountOrZero = 0
    """Width of a hidden layer; 0: the head is linear."""
    dropout: BelowOne = 0.5
    """Share of the inputs of each layer that are left out while it learns, in [0, 1)."""
    threshold: Fraction | None = 0.95
    """Self-training: a guess on an image without a label is learned if it is so confident; null: none is."""
    lr: Positive = 1e-3
    """Peak learning rate of AdamW, > 0; cosine to 0."""
    weight_decay: NonNegative = 1e-2
    """Of AdamW, >= 0."""
    labeled: Count = 64
    """Labeled images per step, >= 1."""
    unlabeled: Count = 256
    """Images per step whose guesses are learned, >= 1."""
    steps: Size = 500
    """Length, >= 1."""


LEAVES = ("predictions",)


def inputs(stage: Config) -> list[Input]:
    """Return the earlier stages that a stage names."""
    return [] if stage.of is None else [Input("of", stage.of, "features")]


def check(stage: Config) -> Iterator[tuple[str, str]]:
    """Yield a key and a sentence for each mistake that the stage alone shows."""
    if stage.of is None:
        yield "of", "missing; a head stage needs the features stage that it learns from"
    if stage.threshold is None and stage.unlabeled != Config.model_fields["unlabeled"].default:
        yield "unlabeled", "has no effect without threshold"


def plan(whole: Plan, name: str, stage: Config, earlier: Mapping[str, StagePlan]) -> StagePlan:
    """Plan a head stage.

    Raises:
        SemisupError: there are no labels to learn from.
    """
    from semisup.stages.planned import StagePlan
    from semisup.stages.requirements import features_of, require_labels

    assert stage.of is not None
    require_labels(whole, "kind", stage.kind)
    views = getattr(earlier[stage.of].config, "views", 0)
    numbers = (1 + views) * features_of(earlier[stage.of]).num_features * len(whole.data.x_train)
    memory = whole.data.resident_bytes + 4 * numbers
    return StagePlan(
        name=name, config=stage, inputs=(stage.of,), parameters=earlier[stage.of].parameters, memory=memory
    )


def run(context: StageContext) -> tuple[Artifact, None]:
    """Run a head stage: `head.safetensors`, so that a relabel stage can ask it, and its test figures."""
    import torch

    from semisup.engine import seed_for
    from semisup.evaluate import predict_logits
    from semisup.models.weights import save_weights
    from semisup.stages.cache import stored_views
    from semisup.stages.evaluation import evaluate_test, evaluate_validation
    from semisup.stages.features import features_of_images, finish_evaluated, look
    from semisup.stages.head import HeadSettings, fit_head
    from semisup.stages.predictions import HEAD

    started = time.perf_counter()
    data, budget, config = context.data, context.budget, context.config
    assert isinstance(config, Config)
    of = str(config.of)
    network = look(context.inputs[of].folder, context.device)
    features = features_of_images(context, of, network, "train").cpu()
    settings = HeadSettings(**config.model_dump(exclude={"kind", "of"}))
    labels = torch.from_numpy(data.y_train[budget.index])
    seed = seed_for(context.recipe.seed, context.name, "head")
    views = stored_views(context.inputs[of].folder)
    head = fit_head(features[budget.index], labels, features, data.num_classes, settings, seed, views)
    save_weights(context.folder / HEAD, head.state_dict())
    seconds = time.perf_counter() - started
    with torch.no_grad():
        metrics = evaluate_validation(context, lambda batches: head(predict_logits(network, batches).cpu()))
        if len(data.x_test):
            metrics |= evaluate_test(context, head(features_of_images(context, of, network, "test").cpu()))
    return finish_evaluated(context, network, [HEAD], started, seconds, len(features), metrics), None
