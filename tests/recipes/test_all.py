"""Every shipped recipe is complete and could run: planned here on its data, or on images of the same shape."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from semisup.config import find_recipe, load_recipe, shipped_recipes, to_yaml
from semisup.data import ImageData, channel_statistics, draw_budget, load_data
from semisup.errors import SemisupError
from semisup.methods import METHODS
from semisup.models import save_weights
from semisup.pipeline.check import check_blocks
from semisup.pipeline.plan import Plan, plan_stages
from semisup.settings import DataConfig, Recipe
from semisup.settings.read import read_mapping

FOLDER = Path(__file__).parents[2] / "recipes"
FILES = sorted(FOLDER.rglob("*.y*ml"))
SHAPES = {
    "digits": (1438, 8, 1, 10),
    "fashion_mnist": (60_000, 28, 1, 10),
    "cifar10": (50_000, 32, 3, 10),
    "cifar100": (50_000, 32, 3, 100),
    "svhn": (73_257, 32, 3, 10),
    "stl10": (105_000, 96, 3, 10),
    "folder": (20_000, 64, 3, 10),  # some person's
    "npz": (20_000, 28, 1, 10),
}
"""Training images, side, channels and classes of the sources."""
LOCAL = ("digits", "fashion_mnist")
"""Sources that need no download where this test runs; the second one if its Debian package is installed."""


def blank(source: str) -> ImageData:
    """As many black images as the source has, without their memory (all share one pixel), labels in turn."""
    n, size, channels, classes = SHAPES[source]
    images = np.broadcast_to(np.zeros(1, np.uint8), (n, size, size, channels))
    data = ImageData(
        name=source,
        x_train=images,
        y_train=np.arange(n) % classes,
        x_test=images[:10],
        y_test=np.arange(10),
        classes=[str(k) for k in range(classes)],
        flip=True,
    )
    # The hash of real pixels, which are not here; `cached_property` keeps what it finds in the instance.
    data.__dict__["hash"] = f"blank {source}"
    return data


_loaded: dict[str, ImageData] = {}


def data_of(config: DataConfig) -> ImageData:
    if config.source not in _loaded:
        try:
            _loaded[config.source] = load_data(config) if config.source in LOCAL else blank(config.source)
        except SemisupError:
            if config.source == "digits":
                raise
            _loaded[config.source] = blank(config.source)
    return _loaded[config.source]


def name_of(path: Path) -> str:
    return path.relative_to(FOLDER).with_suffix("").as_posix()


def test_all_recipes_are_found_and_shipped() -> None:
    assert len(FILES) > 0
    assert [name_of(path) for path in FILES] == shipped_recipes()
    assert {path.suffix for path in FILES} == {".yaml"}, "shipped_recipes() and the wheel know no other"
    assert {len(path.relative_to(FOLDER).parts) for path in FILES} == {2}, "recipes/<dataset>/<name>.yaml"
    assert "digits/quickstart" in shipped_recipes()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_recipe_says_how_to_run_it_and_could_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One item for each recipe, which is read once: reading one costs more than all that is asked of it."""
    recipe = load_recipe(path, _weights_from_files(path, tmp_path))
    dataset, name = name_of(path).split("/")
    assert find_recipe(name_of(path)).read_text() == path.read_text(), "found by its shipped name"
    assert recipe.name == f"{dataset}-{name}".replace("_", "-"), "two recipes must not share an output folder"
    assert len(recipe.stages) > 1 or list(recipe.stages) == ["train"]
    header = re.match(r"(#.*\n)+", path.read_text())
    assert header is not None and f"semisup run {name_of(path)}" in header[0]
    assert check_blocks(recipe.model_dump(by_alias=True)) == []
    (tmp_path / "r.yaml").write_text(to_yaml(recipe))
    assert load_recipe(tmp_path / "r.yaml") == recipe, "equal to its resolved self"
    _could_run(recipe, monkeypatch, trial=quickly(path))


def quickly(path: Path) -> bool:
    """Whether a recipe is of images that are here, or of a method that has no recipe for these: its steps are tried."""
    dataset, name = name_of(path).split("/")
    return dataset in LOCAL or not any((FOLDER / local / f"{name}.yaml").exists() for local in LOCAL)


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in FILES if not quickly(path)], ids=name_of)
def test_a_recipe_of_larger_images_could_run(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _could_run(load_recipe(path), monkeypatch, trial=True)


def _weights_from_files(path: Path, folder: Path) -> list[str]:
    """Overrides by which a recipe's pretrained networks of timm start from files, as they do without a network."""
    raw = read_mapping(path)
    models = {"model": raw.get("model")} | {f"stages.{name}.model": s.get("model") for name, s in raw["stages"].items()}
    overrides = []
    for key, model in models.items():
        if isinstance(model, dict) and model.get("weights") == "pretrained" and model["name"].startswith("timm/"):
            timm = pytest.importorskip("timm")
            file = folder / f"{key}.safetensors"
            save_weights(file, timm.create_model(model["name"].removeprefix("timm/")).state_dict())
            overrides.append(f"{key}.weights={file}")
    return overrides


def recorded(recipe: str, result: str) -> bool:
    """Whether the suite whose results are in benchmarks/results/`result`, or that page, has this recipe."""
    results = FOLDER.parent / "benchmarks" / "results" / result
    if results.is_file():
        return recipe in results.read_text()
    suites = (FOLDER.parent / "benchmarks" / "suites").rglob("*.yaml")
    texts = [path.read_text() for path in suites if f"\nname: {result}\n" in path.read_text()]
    return results.is_dir() and any(re.search(rf"recipe: {recipe}\b", text) for text in texts)


def header_of(path: Path) -> str:
    """The comment that a recipe begins with, in one line."""
    header = re.match(r"(#.*\n)+", path.read_text())
    assert header is not None
    return " ".join(line.lstrip("# ") for line in header[0].splitlines())


def test_a_recipe_names_a_result_recorded_with_it_or_says_that_none_is() -> None:
    wrong = {}
    for path in FILES:
        text = header_of(path)
        if re.search("No recorded result of this recipe|not run to the end here|A template", text):
            continue
        suites = re.findall(r"made by `semisup bench (\w+)/(\w+)`", text)
        named = [f"{dataset}-{name.replace('_', '-')}" for dataset, name in suites]
        named += re.findall(r"benchmarks/results/([\w.-]+\w)", text)
        if not any(recorded(name_of(path), result) for result in named):
            wrong[name_of(path)] = named
    assert wrong == {}


def entries_of(results: Path, recipe: str, stage: str) -> set[str]:
    """Which entries of the suite that left these results are this stage of this recipe."""
    if not results.is_dir():
        return set()
    suite = json.loads((results / "suite.json").read_text())["command"].split()[2]  # semisup bench SUITE ...
    entries = read_mapping(FOLDER.parent / "benchmarks" / "suites" / f"{suite}.yaml")["entries"]
    return {name for name, entry in entries.items() if (entry.get("recipe"), entry.get("stage")) == (recipe, stage)}


def record_of(recipe: str, stage: str, header: str) -> dict[str, str]:
    """What the results that a recipe's header names have of a stage, or of the recipe's entry, by column."""
    results = FOLDER.parent / "benchmarks" / "results"
    named = re.search(r"recorded in\s+benchmarks/results/([\w.-]+\w)", header)
    file = results / (named[1] if named is not None else "digits-quickstart-draws")
    names = entries_of(file, recipe, stage) or {stage, recipe.split("/")[1]}
    file = file / "leaderboard.md" if file.is_dir() else file
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in file.read_text().splitlines()]
    columns: list[str] = []
    for row in rows:
        if row and row[0] in ("recipe", "entry"):
            columns = row
        if columns and row and (row[:2] == [recipe, stage] or row[0] in names):
            return dict(zip(columns, row, strict=True))
    raise AssertionError(f"{file} has no {recipe} {stage}")


def test_the_figures_of_a_header_are_those_of_its_record() -> None:
    """Headers say "Test accuracy in % over N draws: STAGE MEAN ± STD, STAGE kNN NUMBER; recorded in FILE"."""
    checked = 0
    for path in FILES:
        text = header_of(path)
        said = re.search(r"Test accuracy in % over [^:]*: (.*?); (recorded in|made by)", text)
        if said is None:
            assert "±" not in text or "not run to the end here" in text, f"{path}: figures of no record"
            continue
        for part in said[1].split(", "):
            found = re.fullmatch(r"(\w+) (kNN )?(\d+\.\d(?: ± \d+\.\d)?)", part)
            assert found is not None, f"{path}: {part}"
            stage, kind, figure = found.groups()
            record = record_of(name_of(path), stage, text)
            assert record["kNN" if kind else "accuracy"].rstrip(" *†") == figure, f"{name_of(path)}: {stage}"
            checked += 1
    assert checked > 15


def _could_run(recipe: Recipe, monkeypatch: pytest.MonkeyPatch, *, trial: bool) -> None:
    """Ask for everything that a dry run checks, `trial`: one step of every stage among it."""
    local = recipe.data.source in LOCAL
    if not local:  # a recipe for a GPU
        monkeypatch.setattr("semisup.pipeline.plan.available_memory", lambda device: 40 * 2**30)
    data = data_of(recipe.data)
    statistics = channel_statistics(data.x_train[:100])
    budget = draw_budget(data.y_train, recipe.data.labels, recipe.seed, data.num_classes)
    plan = plan_stages(
        Plan(recipe, data, budget, torch.device("cpu"), "fp32" if local else "bf16", statistics, []), trial=trial
    )
    assert [stage.name for stage in plan.stages] == list(recipe.stages)
    trained = [stage for stage in plan.stages if stage.config.kind == "train"]
    assert all(stage.steps >= 1 and stage.parameters > 0 for stage in trained)
    assert {stage.config.method["name"] for stage in trained} <= set(METHODS)
