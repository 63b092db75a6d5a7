"""The finished stage: the network of another run, to learn from or to start from on other images."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from semisup.settings import Input, StageConfig

if TYPE_CHECKING:  # what a stage runs is imported when it is planned or run: reading recipes waits for none of it
    from semisup.stages.artifact import Artifact
    from semisup.stages.context import StageContext
    from semisup.stages.planned import Plan, StagePlan

__all__ = ["LEAVES", "Config", "check", "inputs", "plan", "run"]


class Config(StageConfig):
    """A stage that another run has finished.

    The images of the whole recipe are normalized as those that it was trained on, and must have its size and channels.
    """

    kind: Literal["finished"] = "finished"
    """What the stage does."""
    path: str | None = None
    """Folder of the stage, e.g. runs/photos/train."""


LEAVES = ("network", "features", "predictions")


def inputs(stage: Config) -> list[Input]:
    """Return the earlier stages that a stage names: none."""
    return []


def check(stage: Config) -> Iterator[tuple[str, str]]:
    """Yield a key and a sentence for each mistake that the stage alone shows."""
    if stage.path is None:
        yield "path", "missing; name the folder of a finished stage, e.g. runs/photos/train"


def plan(whole: Plan, name: str, stage: Config, earlier: Mapping[str, StagePlan]) -> StagePlan:
    """Plan a finished stage. It reads no label of this recipe.

    Raises:
        SemisupError: there is no model, or the images or classes of the recipe are not those that it knows.
    """
    from pathlib import Path

    from semisup.errors import SemisupError
    from semisup.models import count_parameters
    from semisup.stages.networks import Network
    from semisup.stages.planned import StagePlan
    from semisup.stages.predictor import describe

    description = describe(Path(str(stage.path)))
    network, data = Network.from_json(description), whole.data
    spec = network.spec
    if (spec.image_size, spec.in_channels) != (data.size, data.channels):
        raise SemisupError(
            f"path: the network of {stage.path} takes images of {spec.image_size}x{spec.image_size}x"
            f"{spec.in_channels}, those of the recipe are {data.size}x{data.size}x{data.channels}"
        )
    if network.kind == "classifier" and description["classes"] != list(data.classes):
        raise SemisupError(
            f"path: the classes of {stage.path} are {', '.join(description['classes'])}; those of the recipe's data "
            f"are {', '.join(data.classes)}"
        )
    return StagePlan(
        name=name,
        config=stage,
        inputs=(),
        reads_labels=False,
        parameters=count_parameters(network.shapes),
        network=network,
        memory=data.resident_bytes,
    )


def run(context: StageContext) -> tuple[Artifact, None]:
    """Copy a finished stage, and evaluate its classifier on the test images, if there are any."""
    import shutil
    from pathlib import Path

    from semisup.evaluate import predict_logits
    from semisup.records import read_record
    from semisup.stages.artifact import finish
    from semisup.stages.evaluation import evaluate_test
    from semisup.stages.predictor import MODEL, WEIGHTS, load_network, save_examples

    started = time.perf_counter()
    config, data = context.config, context.data
    assert isinstance(config, Config) and context.network is not None
    source = Path(str(config.path))
    files = [MODEL, WEIGHTS]
    for name in files:
        shutil.copyfile(source / name, context.folder / name)
    metrics, record = {}, read_record(source)
    if context.network.kind == "classifier" and len(data.x_test):
        network = load_network(source, context.device)
        metrics = evaluate_test(context, predict_logits(network, context.clean_batches(data.x_test)).cpu())
        files.append("confusion.png")
    files.append(save_examples(context.folder, data.x_train))
    seconds = time.perf_counter() - started
    kept: dict[str, Any] = {key: record[key] for key in ("parameters", "origins") if key in record}
    return finish(
        context.folder,
        files,
        {
            **kept,
            "name": context.name,
            "method": config.kind,
            "fingerprint": context.folder.name,
            "steps": 0,
            "seconds": seconds,
            "evaluation_seconds": 0.0,
            "images_per_second": len(data.x_test) / seconds,
            "loaded": str(source),
            "metrics": metrics,
        },
    ), None
