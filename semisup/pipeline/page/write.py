"""Collect what is known of a run and write its page."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from semisup.config import to_yaml
from semisup.data import ImageData, LabelBudget, load_data
from semisup.data.addresses import refuse_recorded
from semisup.data.store import Watch, unwatched
from semisup.errors import SemisupError
from semisup.evaluate.metrics import wilson
from semisup.files import write_atomically
from semisup.methods import METHODS
from semisup.pipeline.page.curves import HEIGHT, WIDTH, Curve, curve, logged, reliability_dots
from semisup.pipeline.page.doubts import find_doubts
from semisup.pipeline.page.read import TESTED, last_model, read_run
from semisup.pipeline.plan import recipe_budget
from semisup.pipeline.result import collapse_note
from semisup.plugins import load_plugins
from semisup.settings import Recipe, StageConfig
from semisup.settings.read import dump
from semisup.stages import load_predictor
from semisup.text import command, duration, number, percent

__all__ = ["PAGE", "report", "write_page"]

PAGE = "report.html"
QUALITY = "pseudo_labels_of_batch/"
SHARES = (QUALITY, "kept", "coverage", "accuracy")
"""What terms begin with that lie within 0 and 1."""
LARGEST_PICTURE = 600_000
"""Bytes of a stage's own figures, beyond which they are left in its folder."""
MOST_CLASSES = 30
"""Classes up to which the whole confusion matrix is shown."""


def report(folder: Path, watch: Watch = unwatched) -> tuple[Path, str | None]:
    """Write the page of a finished run anew, with pictures of its data if those are still there.

    Returns:
        The page, and why it has no pictures.

    Raises:
        SemisupError: no finished run there.
    """
    result, recipe = read_run(folder)
    try:
        refuse_recorded(recipe.data.path, "run the recipe again if you trust it")
        data = load_data(recipe.data, watch)
        if data.hash != result["data"]["hash"]:
            raise SemisupError("the data are not those of the run any more")
        return write_page(folder, data, recipe_budget(recipe, data)), None
    except SemisupError as error:
        return write_page(folder, None, None), str(error)


def write_page(folder: Path, data: ImageData | None, budget: LabelBudget | None, seconds: float | None = None) -> Path:
    """Write `report.html` into the folder of a finished run and return its path.

    Args:
        folder: of the run.
        data: that it learned from; None: the page does without pictures of them.
        budget: its labels; likewise.
        seconds: the most that looking at them may take, else the page says how to get the pictures; None: any.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # which reading a recipe need not wait for

    result, recipe = read_run(folder)
    load_plugins()
    final = next((stage for stage in reversed(result["stages"]) if TESTED in stage["metrics"]), None)
    model = last_model(folder, result)
    doubts = None
    if data is not None and budget is not None and model is not None:
        doubts = find_doubts(load_predictor(folder / model), data, budget, seconds)
    files = FileSystemLoader(Path(__file__).parent)
    pages = Environment(loader=files, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    pages.filters["duration"] = duration
    text = pages.get_template("page.html.j2").render(
        result=result,
        stages=_stages(folder, result, recipe),
        final=None if final is None else _final(final, result["data"]["n_test"], data),
        doubts=doubts,
        model=model,
        budget=_per_class(data, budget),
        commands=_commands(folder, model),
        where=str(folder / model) if model is not None else "",
        cited=_cited(result),
        recipe_text=to_yaml(recipe),
        run_folder=str(folder),
        percent=percent,
        number=number,
        width=WIDTH,
        height=HEIGHT,
    )
    write_atomically(folder / PAGE, text.encode("utf-8", "backslashreplace"))
    return folder / PAGE


def _stages(folder: Path, result: Mapping[str, Any], recipe: Recipe) -> list[dict[str, Any]]:
    """Return what the page tells of every stage."""
    terms, total = logged(folder), sum(stage["seconds"] for stage in result["stages"]) or 1.0
    stages, begun = [], 0.0
    for stage in result["stages"]:
        name = stage["name"]
        own = terms.get(name, {})
        lines = {term: _curve(term, values) for term, values in own.items()}
        metrics = {key: v for key, v in stage["metrics"].items() if isinstance(v, int | float) and not _trained(key)}
        stages.append(
            {
                **stage,
                "settings": _settings(recipe.stages[name]),
                "quality": [line for term, line in lines.items() if line and term.startswith(QUALITY)],
                "curves": [line for term, line in lines.items() if line and not term.startswith(QUALITY)],
                "numbers": metrics,
                "collapse": collapse_note(name, metrics),
                "figures": _figures(folder / name),
                "begun": begun / total,
                "share": stage["seconds"] / total,
            }
        )
        begun += stage["seconds"]
    return stages


def _settings(stage: StageConfig) -> str:
    """Return what a stage's recipe says, but for defaults."""
    return dump({"kind": stage.kind} | stage.model_dump(by_alias=True, exclude_defaults=True))


def _trained(key: str) -> bool:
    """Tell whether a number is told elsewhere: the last of a curve, or of the weights before their average."""
    return key.startswith(("train/", "test_raw/"))


def _curve(term: str, values: list[tuple[int, float]]) -> Curve | None:
    shares = term.startswith(SHARES) and all(0 <= value <= 1 for _, value in values)
    return curve(term, values, (0.0, 1.0) if shares else None)


def _figures(folder: Path) -> list[tuple[str, str]]:
    """Return a stage's own figures, but for the confusion matrix, which the page draws itself.

    A link is none of them: a folder that was received may not show what lies elsewhere.
    """
    found = []
    for path in sorted(folder.glob("*.png")):
        if path.is_symlink() or not path.is_file():
            continue
        if path.name != "confusion.png" and path.stat().st_size <= LARGEST_PICTURE:
            encoded = base64.b64encode(path.read_bytes()).decode()
            found.append((path.stem.replace("_", " "), f"data:image/png;base64,{encoded}"))
    return found


def _final(stage: Mapping[str, Any], tested: int, data: ImageData | None) -> dict[str, Any]:
    """Return what is told of the last stage that was tested."""
    metrics = stage["metrics"]
    matrix = np.array(metrics.get("test/confusion") or [[]], float)
    classes = [str(k) for k in range(len(matrix))] if data is None or len(data.classes) != len(matrix) else data.classes
    low, high = wilson(metrics["test/accuracy"], tested)
    return {
        "name": stage["name"],
        "metrics": metrics,
        "low": low,
        "high": high,
        "classes": classes,
        "matrix": matrix.astype(int).tolist() if 0 < matrix.size <= MOST_CLASSES**2 else [],
        "confused": _confused(matrix, classes),
        "dots": reliability_dots(metrics.get("test/reliability") or [], 100),
    }


def _confused(matrix: Any, classes: list[str]) -> list[tuple[str, str, int]]:
    """Return the pairs of classes that are taken for each other most often: true, predicted, how many."""
    wrong = matrix * (1 - np.eye(*matrix.shape))
    order = np.argsort(-wrong, axis=None, kind="stable")[:8]
    places = [np.unravel_index(i, wrong.shape) for i in order]
    return [(classes[i], classes[j], int(wrong[i, j])) for i, j in places if wrong[i, j]]


def _per_class(data: ImageData | None, budget: LabelBudget | None) -> list[tuple[str, int]]:
    """Return class -> labels that were trained on."""
    return [] if data is None or budget is None else list(zip(data.classes, budget.per_class, strict=True))


def _commands(folder: Path, model: str | None) -> str:
    lines = [command("semisup", "run", folder / "recipe.yaml", "--out", folder)]
    if model is not None:
        lines.append(command("semisup", "predict", folder / model, "NEW-IMAGES", "--out", "predictions.csv"))
        lines.append(command("semisup", "export", folder / model, "model.onnx", "--int8"))
        lines.append(command("semisup", "distill", folder / model, "--student", "cnn,width=8"))
    return "\n".join(lines)


def _cited(result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return name, summary and paper of every method of the run, each once."""
    names = dict.fromkeys(stage["method"] for stage in result["stages"])
    return [(name, METHODS[name].summary, METHODS[name].citation) for name in names if name in METHODS]
