"""A model card: a page of Markdown that says what a model was made of and how good it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from semisup.stages.deployed import INPUT, OUTPUTS, Facts
from semisup.text import markdown_table, markdown_text, number, percent

__all__ = ["card"]

_SQUARES = {
    "crop": "of which the largest centered square is taken",
    "pad": "which bands of the border's color make a square",
    "stretch": "whose sides are scaled apart to a square",
}
"""What becomes of pictures that are no squares, by `data.fit`."""


def card(facts: Facts, files: Mapping[str, int], comparison: str = "", *, run: str | None = None) -> str:
    """Return the model card of an exported stage.

    Args:
        facts: of the stage.
        files: names and bytes of what was exported.
        comparison: a Markdown table of them, where they were measured.
        run: name of its recipe, where that is at hand.
    """
    spec, record = facts.description["spec"], facts.record
    classes = [markdown_text(name) for name in facts.description["classes"]]
    size, channels = spec["image_size"], spec["in_channels"]
    title = ": ".join(markdown_text(name) for name in (run, record["name"]) if name is not None)
    parts = [
        f"# {title}\n\nA classifier of {len(classes)} classes: {', '.join(classes)}.",
        f"Network: {spec['name']}, {record['parameters']:,} parameters, images of {size} x {size} px with "
        f"{channels} channel{'s' if channels > 1 else ''}. Written by semisup {facts.metadata['semisup_version']}.",
        "## Files\n\n" + markdown_table(["file", "bytes"], [[name, f"{length:,}"] for name, length in files.items()]),
        f"Input `{INPUT}`: uint8 (n, height, width, {channels}) of any size, {_SQUARES[facts.metadata['fit']]}. "
        f"Outputs: `{OUTPUTS[0]}` (n, {len(classes)}), `{OUTPUTS[1]}` (n, features). Scaling, normalization and "
        "calibration are inside; class names, data hash and license are in the file's metadata.",
        comparison,
        _data(record.get("data")),
        _accuracy(record["metrics"], classes),
        _calibration(record["metrics"]),
        "## Training\n\n" + _training(record),
        f"## License of the weights\n\n{markdown_text(facts.metadata['license'])}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _data(data: Mapping[str, Any] | None) -> str:
    if data is None:
        return "## Data\n\nNot recorded: the stage was trained by an older version."
    return (
        f"## Data\n\nSource {markdown_text(data['source'])}: {data['images']:,} training images, {data['labels']:,} of "
        f"them labeled, {data['validation']:,} labels that only validate, {data['test']:,} test images. Hash of the "
        f"data `{data['hash']}`, of the labels' draw `{data['split_hash']}`."
    )


def _accuracy(metrics: Mapping[str, Any], classes: Sequence[str]) -> str:
    if "test/accuracy" not in metrics:
        return "## Accuracy\n\nNot measured: there were no test images."
    each = metrics.get("test/per_class_accuracy") or []
    rows = [[name, percent(value)] for name, value in zip(classes, each, strict=False)]
    rate = percent(metrics.get("test/majority_rate"))
    return (
        f"## Accuracy\n\n{percent(metrics['test/accuracy'])}% of the test images; always naming the largest class: "
        f"{rate}%. Of each class, in %:\n\n" + markdown_table(["class", "accuracy"], rows)
    )


def _calibration(metrics: Mapping[str, Any]) -> str:
    if "calibration/temperature" not in metrics:
        return "## Calibration\n\nNone: there were no validation labels. Confidences are what the network says."
    tested = "test_calibrated/ece" in metrics
    names = ("test/{}", "test_calibrated/{}") if tested else ("calibration/{}_before", "calibration/{}_after")
    rows = [
        [label, percent(metrics[name.format("ece")]), number(metrics[name.format("nll")], 3)]
        for label, name in zip(("raw", "calibrated"), names, strict=True)
    ]
    images = "the test images" if tested else "the labels that it was fitted on"
    return (
        f"## Calibration\n\nTemperature {metrics['calibration/temperature']:.3f}, from "
        f"{metrics['calibration/labels']:,} validation labels. Of {images}:\n\n"
        + markdown_table(["", "ECE in %", "NLL"], rows)
    )


def _training(record: Mapping[str, Any]) -> str:
    told = f"Method {markdown_text(record['method'])}, {record['steps']:,} steps."
    if not record.get("settings"):
        return told
    settings = yaml.safe_dump(_without_folders(record["settings"]), sort_keys=False, allow_unicode=True)
    return f"{told} Settings that differ from the defaults:\n\n```yaml\n{settings}```"


def _without_folders(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stage's settings with weights files by their names alone: where they lie is this machine's business."""

    def told(key: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return _without_folders(value)
        return Path(value).name if key == "weights" and isinstance(value, str) else value

    return {key: told(key, value) for key, value in settings.items()}
