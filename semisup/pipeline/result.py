"""What a run returns and writes to `result.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from semisup.columns import headline
from semisup.errors import SemisupError, nearest
from semisup.stages import Artifact, Predictor, load_predictor
from semisup.text import percent

__all__ = ["RunResult", "StageResult", "collapse_note"]

HEADLINE = (
    "test/accuracy",
    "knn/accuracy",
    "probe/accuracy",
    "pseudo_labels/coverage",
    "pseudo_labels/kept_accuracy",
    "pool/part_left_out",
)


def collapse_note(stage: str, metrics: Mapping[str, Any]) -> str | None:
    """Return a sentence on a stage that predicts hardly more than one class; None of a sound one.

    Args:
        stage: its name.
        metrics: of it, see `semisup.stages.evaluation.collapse_metrics`.
    """
    if "collapsed/most_frequent" not in metrics:
        return None
    names = {"test/accuracy": "test", "validation/accuracy": "validation"}
    images = next((images for name, images in names.items() if name in metrics), "labeled training")
    most, majority = (percent(metrics[f"collapsed/{name}"]) for name in ("most_frequent", "majority_rate"))
    return (
        f"{stage}: has collapsed: it predicts one class for {most}% of the {images} images, of which the largest class "
        f"is {majority}%, and hardly ever finds the others. Try refresh_batchnorm: auto, a smaller learning rate, more "
        f"steps or more labels"
    )


@dataclass(frozen=True)
class StageResult:
    """One stage of a finished run."""

    name: str
    method: str
    fingerprint: str
    status: str
    """trained, reused or resumed."""
    steps: int
    seconds: float
    """Of the training, whenever it was done."""
    images_per_second: float
    parameters: int
    metrics: dict[str, Any]
    """Names to numbers or lists; None where it could not be measured."""
    chosen: str | None = None
    """What it chose and why: how strong its views are (`augment: auto`), or which stage (`kind: best`)."""

    @staticmethod
    def of(artifact: Artifact, status: str) -> StageResult:
        """Return the result of a finished stage."""
        keys = ("name", "method", "fingerprint", "steps", "seconds", "images_per_second", "parameters", "metrics")
        known = {key: artifact.record[key] for key in keys}
        return StageResult(status=status, chosen=artifact.record.get("chosen"), **known)

    def headline(self) -> dict[str, float | None]:
        """Return the few numbers to show first, and what a choice among stages was made by."""
        shown = [*HEADLINE, *(name for name in self.metrics if name.startswith("choice/"))]
        return {name: self.metrics[name] for name in shown if name in self.metrics}


@dataclass(frozen=True)
class RunResult:
    """A finished run, or of a dry run the plan's facts without stages."""

    recipe: str
    seed: int
    version: str
    device: str
    data: dict[str, Any]
    stages: list[StageResult] = field(default_factory=list)
    out: Path | None = None

    def __getitem__(self, stage: str) -> StageResult:
        """Return the stage of that name.

        Raises:
            KeyError: there is none.
        """
        return {s.name: s for s in self.stages}[stage]

    @property
    def final(self) -> StageResult | None:
        """The last stage."""
        return self.stages[-1] if self.stages else None

    def predictor(self, stage: str | None = None) -> Predictor:
        """Return the trained classifier of a stage, by default the last, as a function of uint8 images.

        Raises:
            SemisupError: of a dry run, of a stage that there is not, or of one that classifies nothing.
        """
        if self.out is None:
            raise SemisupError("a dry run has trained no predictor")
        names = [one.name for one in self.stages]
        if stage is not None and stage not in names:
            raise SemisupError(f"predictor: the run has no stage '{stage}'{nearest(stage, names)}")
        return load_predictor(self.out / (stage or names[-1]))

    def to_frame(self) -> Any:
        """Return a pandas DataFrame, a row for each stage in order, with its numbers as columns; lists are left out."""
        import pandas

        rows = []
        for stage in self.stages:
            row = asdict(stage)
            numbers = {key: value for key, value in row.pop("metrics").items() if not isinstance(value, list | dict)}
            rows.append(row | numbers)
        frame = pandas.DataFrame(rows)
        return frame.set_index("name") if rows else frame

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the recipe, its data, and a table of the stages."""
        facts = f"{self.data['n_train']:,} training images, {self.data['n_labeled']:,} labels, seed {self.seed}"
        title = f"<p><b>{escape(self.recipe)}</b>: {escape(facts)}</p>"
        if not self.stages:
            return f"{title}<p>A dry run: nothing was trained.</p>"
        frame = self.to_frame()
        shown = ["method", "status", "steps", "seconds", "parameters"]
        shown += [name for name in HEADLINE if name in frame and frame[name].notna().any()]
        return title + str(frame[shown].to_html(escape=True, na_rep="", float_format=lambda value: f"{value:.4g}"))

    def to_json(self) -> dict[str, Any]:
        """Plain data of `result.json`."""
        final = None
        if self.final is not None and self.out is not None:
            final = {
                "stage": self.final.name,
                "path": str(self.out / self.final.name),
                "test/accuracy": self.final.metrics.get("test/accuracy"),
                "headline": headline(self.data.get("class_ratio", 1)).key,
            }
        return {
            "recipe": self.recipe,
            "seed": self.seed,
            "version": self.version,
            "device": self.device,
            "data": self.data,
            "stages": [asdict(stage) for stage in self.stages],
            "final": final,
        }
