"""A finished stage as the teacher of smaller networks: the recipe that says so."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semisup.config import load_recipe, parse_recipe
from semisup.config.load import read_overrides
from semisup.data import ImageData, load_data
from semisup.data.addresses import is_address, place, refuse_recorded
from semisup.data.decoders import decoders
from semisup.data.inputs import images_of
from semisup.data.npz import read_images
from semisup.data.remote import Remote
from semisup.data.store import BLOCK, at_hand
from semisup.data.walk import images_below
from semisup.errors import SemisupError, raise_all
from semisup.models import check_model
from semisup.pipeline.execute import STORE
from semisup.pipeline.plan import make_plan, needed_stages
from semisup.records import RECORD, read_record
from semisup.settings import Recipe
from semisup.settings.schema import DataConfig
from semisup.stages import Predictor, load_predictor

__all__ = ["Distillation", "distillation", "parse_student"]

STEPS = 1000
LONGEST = 100
"""Letters of a recipe's name."""
Arrays = dict[str, NDArray[Any]]


def parse_student(text: str) -> dict[str, Any]:
    """Read a network written as `cnn,width=8`: its name, and options as YAML.

    Raises:
        SemisupError: an option without `=` or given twice, or an option or a network that there is not.
    """
    name, *options = (word.strip() for word in text.split(","))
    keys = ["name", *(option.partition("=")[0] for option in options)]
    problems = [f"{key} is given {keys.count(key)} times" for key in sorted(set(keys)) if keys.count(key) > 1]
    given: dict[str, Any] = {"name": name, **read_overrides(options, problems)}
    raise_all(problems or check_model(given, "model"), f"--student {text}")
    return given


@dataclass(frozen=True)
class Distillation:
    """What `semisup.run` is given.

    Attributes:
        recipe: the teacher and its students.
        data: images that are not the run's own, as arrays; None: the recipe names its data.
        notes: what to tell of them.
    """

    recipe: Recipe
    data: Arrays | None = None
    notes: tuple[str, ...] = ()


def distillation(
    model: Path, students: Sequence[str], *, steps: int = STEPS, data: str | Path | None = None, name: str | None = None
) -> Distillation:
    """Return the recipe of a finished run up to its stage `model`, and a student of that stage for every network.

    On the images of the run the stages before the students are those of the run: whatever runs the recipe next to it
    finds them finished. On others the teacher is one that another run has finished (`kind: finished`), and the test
    images are still those of the run, where they are at hand.

    Args:
        model: folder of a finished stage, in the folder of its run.
        students: networks, as `parse_student` reads them.
        steps: of every student.
        data: a folder of images, here or at an address, or an .npz file to distill on: where the run's images lie now,
            or any others, whose labels, if they have some, are not read; None: the run's images where they lay.
        name: of the recipe; None: that of the run, the stage and the first student.

    Raises:
        SemisupError: no finished stage of a run, a network that there is not, or other data than those of the run.
    """
    model = Path(os.path.normpath(model.absolute())) if model.name in ("", "..") else model  # its folder is the run's
    if not (model / RECORD).is_file() or not (model.parent / "recipe.yaml").is_file():
        raise SemisupError(
            f"{model}: not a finished stage in the folder of its run (with stage.json and ../recipe.yaml)"
        )
    networks = [parse_student(text) for text in students]
    recipe = load_recipe(model.parent / "recipe.yaml")
    if model.name not in recipe.stages:
        raise SemisupError(f"{model}: the recipe next to it has no stage '{model.name}'")
    if data is None:
        refuse_recorded(recipe.data.path, "name a folder of images: --data FOLDER")
    before = needed_stages(recipe.stages, model.name)
    raw = recipe.model_copy(update={"stages": before}).model_dump(by_alias=True)
    if data is not None:
        raw["data"]["path"] = str(data)
    given, notes = None, tuple[str, ...]()
    known = read_record(model).get("data", {}).get("hash")
    there = None if data is None else _loaded(recipe.data.model_copy(update={"path": str(data)}))
    if data is not None and (None if there is None else there.hash) != known:
        given, notes = _other(model, recipe.data, known, str(data))
        raw["data"] = {"labels": "all", "flip": recipe.data.flip, "drop_leaks": True, "allow_conflicts": True}
        raw["stages"] = {model.name: {"kind": "finished", "path": str(model.absolute())}}
    names = _names(networks, list(raw["stages"]))
    own = f"-{model.name}-{names[0]}".replace("_", "-")[-LONGEST:]
    raw["name"] = name or f"{recipe.name[: LONGEST - len(own)]}{own}"
    for stage, network in zip(names, networks, strict=True):
        raw["stages"][stage] = {
            "teacher": model.name,
            "model": network,
            "method": {"name": "distill", "form": "hinton", "temperature": 2.0},
            "optimizer": {"name": "adamw", "lr": 4e-3},
            "schedule": {"name": "cosine", "warmup": 0.05},
            "batch": {"unlabeled": 128},
            "ema": "auto",
            "refresh_batchnorm": "auto",
            "steps": steps,
        }
    distilled = parse_recipe(raw)
    if given is None:
        _require_finished(distilled, model, list(before))
    return Distillation(distilled, given, notes)


def _loaded(config: DataConfig) -> ImageData | None:
    """Return data, or None where there are none."""
    try:
        return load_data(config)
    except SemisupError:
        return None


def _other(model: Path, own: DataConfig, known: str | None, path: str) -> tuple[Arrays, tuple[str, ...]]:
    """Return other images to distill on, next to the test images of the run, and what to tell of them.

    Raises:
        SemisupError: no images, or none that can be read.
    """
    predictor = load_predictor(model)
    images, bad = _images(path, predictor)
    notes = [f"distilled on {len(images):,} images of {path}, which are not those of the run; no label of them is read"]
    notes += [f"{len(bad):,} of its files cannot be read, e.g. {name}" for name in bad[:1]]
    arrays: Arrays = {
        "x_train": images,
        "y_train": np.full(len(images), -1),
        "classes": np.array(predictor.classes),
    }
    recorded = own.path is not None and is_address(own.path)  # by a folder that may have been received: not followed
    tested = None if known is None or recorded else _loaded(own)
    if tested is not None and tested.hash == known:
        arrays |= {"x_test": np.asarray(tested.x_test), "y_test": tested.y_test}
    else:
        notes.append("the run's test images are not at hand: what the students are worth is not measured")
    return arrays, tuple(notes)


def _images(text: str, predictor: Predictor) -> tuple[NDArray[np.uint8], list[str]]:
    """Return the images of a folder or an .npz file as the teacher takes them, and the files that cannot be read."""
    root, shape = place(text), (predictor.image_size, predictor.channels, predictor.fit)
    if isinstance(root, Path) and root.is_file():
        return images_of(read_images(root)[1], *shape), []
    if isinstance(root, Path) and not root.is_dir():
        raise SemisupError(f"--data {text}: must be a folder of images or an .npz file")
    files = list(root.images("")) if isinstance(root, Remote) else images_below(root, ".")
    images, bad = list[NDArray[np.uint8]](), list[str]()
    with tempfile.TemporaryDirectory() as shard, decoders() as decode, at_hand(root, Path(shard) / "files") as fetch:
        for start in range(0, len(files), BLOCK):
            block = files[start : start + BLOCK]
            decoded = decode(*fetch([(file.path, file.bytes) for file in block]), *shape)
            for file, (image, _) in zip(block, decoded, strict=True):
                images += [] if image is None else [image]
                bad += [os.path.normpath(file.path)] if image is None else []
    if not images:
        raise SemisupError(f"--data {text}: no images found that can be read")
    return np.stack(images), bad


def _names(networks: Sequence[dict[str, Any]], taken: list[str]) -> list[str]:
    """Name a stage after each network: `student_cnn_width_8`, with a number where that is taken."""
    names: list[str] = []
    for network in networks:
        words = [str(network["name"]), *(f"{key}_{value}" for key, value in network.items() if key != "name")]
        wanted = re.sub(r"[^a-z0-9_]+", "_", "_".join(["student", *words]).lower())[:50]
        free = (wanted if i == 1 else f"{wanted}_{i}" for i in range(1, len(networks) + len(taken) + 2))
        names.append(next(word for word in free if word not in [*names, *taken]))
    return names


def _require_finished(recipe: Recipe, model: Path, names: Sequence[str]) -> None:
    """Refuse to train the teacher again: the stages before the students must be the finished ones."""
    planned = {stage.name: stage.fingerprint for stage in make_plan(recipe, trial=False).stages}
    store = model.absolute().parent.parent / STORE
    if planned[model.name] != read_record(model)["fingerprint"]:
        raise SemisupError(
            f"{model}: its data or this version of semisup are not those that it was trained with, so it would be "
            f"trained again; name the data with --data, or run the recipe anew"
        )
    for name in names:
        if not (store / planned[name] / RECORD).exists():
            raise SemisupError(f"{model}: the finished stage '{name}' is not in {store}; run the recipe again")
