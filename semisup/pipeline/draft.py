"""A first recipe for somebody's own images: what they are like and what the machine can do decide on every setting."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from semisup._version import __version__
from semisup.config import parse_recipe
from semisup.data.folder import prepare_folder
from semisup.data.listing import list_csv, list_folders
from semisup.data.store import Watch, unwatched
from semisup.data.survey import Shapes, Survey, look_at, shapes_of
from semisup.data.table import UNLABELED
from semisup.engine import resolve_device
from semisup.errors import SemisupError
from semisup.models.from_timm import timm_takes
from semisup.models.origin import TIMM
from semisup.pipeline.plan import make_plan
from semisup.pipeline.timing import step_seconds
from semisup.settings import DataConfig
from semisup.settings.shipped import modeline
from semisup.stages.auto_views import choosing_steps, steps_within
from semisup.text import duration, printable

__all__ = ["Draft", "Wishes", "draft", "survey"]

CPU_SIZE, GPU_SIZE, PRETRAINED_SIZE = 32, 64, 64
"""Sides that images are scaled to, pixels, unless they are smaller."""
RESIZE = 112
"""Side at which a network of timm sees them, unless it takes its own alone."""
SMALL = 16
"""Side up to which three layers see enough, and strong views leave too little."""
ENOUGH = 20
"""Labels of every class from which on some of them only validate."""
MANY = 40
"""Labels of every class from which on small shifts teach more than strong changes: of Fashion-MNIST, 78.4% against
76.4% with 60 of each class, 54.4% against 63.1% with 4 (`benchmarks/results/fashion_mnist-methods`). With fewer the
labels choose, as strong changes are worse where shape or direction is the class (`benchmarks/results/auto_views.md`);
not with weights, of whose large networks the short trainings would take too long."""
SHORTEST, LONGEST = 300, 4000
"""Steps of a stage."""
SHARES = {"labels_alone": 0.25, "train": 0.75}
"""Of the time, where there are both."""
TRAINED = 0.85
"""Of the time, what is planned for steps: judging the stages, drawing pages, and other programs take some of it."""
FOLDS = 3
"""Parts of the labels by which one of the two is taken: both are trained so many times more, in the same time."""
EASY_POOL = ["identity", "rotate", "shear_x", "shear_y", "translate_x", "translate_y", "brightness", "contrast"]


@dataclass(frozen=True)
class Wishes:
    """What a person asks for besides the folder.

    Attributes:
        csv: table of path,label[,split] in place of the folders.
        minutes: that the training may take on this machine.
        size: side of the images, pixels; None: what fits the images and the machine.
        weights: file to start from, and the network that it is of; None: from scratch.
        device: as in a recipe.
        cache: folder of the decoded images; None: as in a recipe.
        out: file that the recipe is written to; None: <its name>.yaml.
    """

    csv: Path | None = None
    minutes: float = 10.0
    size: int | None = None
    weights: tuple[Path, str] | None = None
    device: str = "auto"
    cache: Path | None = None
    out: Path | None = None


@dataclass(frozen=True)
class Draft:
    """A recipe and what it was made from.

    Attributes:
        name: of the recipe.
        text: commented YAML.
        survey: of the images.
        seconds: stage -> expected training time.
        resized: the network sees the images at another size than theirs (`model.resize`).
    """

    name: str
    text: str
    survey: Survey
    seconds: dict[str, float] = field(default_factory=dict)
    resized: bool = False


def survey(folder: Path, wishes: Wishes, watch: Watch = unwatched) -> Survey:
    """List and decode a folder of images at the size that fits it.

    Raises:
        SemisupError: no images of two classes, or none that can be read.
    """
    listing = list_folders(folder) if wishes.csv is None else list_csv(folder, wishes.csv, UNLABELED)
    shapes = shapes_of(folder, listing.entries)
    if shapes is None:
        raise SemisupError(f"{folder}: none of the images can be read")
    config = DataConfig(
        source="folder",
        path=str(folder),
        csv=None if wishes.csv is None else str(wishes.csv),
        size=_size(shapes, wishes),
        cache=None if wishes.cache is None else str(wishes.cache),
        channels=1 if shapes.gray and wishes.weights is None else 3,
    )
    return look_at(shapes, prepare_folder(config, watch=watch))


def _size(shapes: Shapes, wishes: Wishes) -> int:
    if wishes.size is not None:
        return wishes.size
    most = CPU_SIZE if resolve_device(wishes.device).type == "cpu" else GPU_SIZE
    return max(8, min(shapes.sides[1], most if wishes.weights is None else PRETRAINED_SIZE))


def draft(found: Survey, wishes: Wishes) -> Draft:
    """Write a recipe for images that were looked at; its steps are measured to take the wished time here.

    Raises:
        SemisupError: the weights do not fit the network, or the recipe cannot run for another reason.
    """
    device = resolve_device(wishes.device)
    recipe = _recipe(found, wishes, device)
    once = parse_recipe(recipe)
    relaxed = once.model_copy(update={"data": once.data.model_copy(update={"max_bad": 1.0})})
    plan = make_plan(relaxed, trial=False)
    trained = [stage for stage in plan.stages if stage.steps]
    each = {stage.name: step_seconds(plan, stage, warm_up=1) for stage in trained}
    times = 1 + (FOLDS if "best" in recipe["stages"] else 0)
    planned = TRAINED * 60 * wishes.minutes
    expected = {}
    for stage in trained:
        seconds, short = each[stage.name], each["labels_alone"]
        share = (1.0 if len(each) == 1 else SHARES[stage.name]) / times
        steps = int(steps_within(stage, planned * share / seconds, short / seconds))
        steps = min(LONGEST, max(SHORTEST, steps))
        recipe["stages"][stage.name]["steps"] = steps = steps - steps % 50 if steps > 50 else steps
        expected[stage.name] = steps * seconds + choosing_steps(stage, steps) * short
    if times > 1:
        expected["best"] = FOLDS * sum(expected.values())
    text = _written(found, wishes, recipe, device, expected)
    return Draft(recipe["name"], text, found, expected, "resize" in recipe["model"])


def _recipe(found: Survey, wishes: Wishes, device: torch.device) -> dict[str, Any]:
    """Return the recipe as plain containers, with one step for every stage."""
    data = found.prepared.config
    small = (data.size or 0) <= SMALL
    gentle = small or min(found.labels.values()) >= MANY
    can_leave_out = max(found.labels.values()) > 1
    unsure = not gentle and wishes.weights is None and can_leave_out
    labels_alone: dict[str, Any] = {
        "method": {"name": "supervised"},
        "optimizer": {"name": "adamw", "lr": 5e-4 if wishes.weights else 2e-3, "weight_decay": 1e-2},
        "schedule": {"name": "cosine", "warmup": 0.05},
        "augment": "auto" if unsure else {"weak": {"policy": "weak" if gentle else "randaugment"}},
        "batch": {"labeled": 32 if device.type == "cpu" else 64},
        "ema": "auto",
        "refresh_batchnorm": "auto",
        "steps": 1,
    }
    stages = {"labels_alone": labels_alone}
    if found.unlabeled >= sum(found.labels.values()):
        stages["train"] = {
            "init": "labels_alone",
            "method": {"name": "fixmatch", "threshold": 0.9, "align": True, "prior": "estimated"},
            "optimizer": {"name": "adamw", "lr": 5e-4 if wishes.weights else 1e-3, "weight_decay": 1e-2},
            "schedule": {"name": "cosine", "warmup": 0.05},
            "batch": {"labeled": 32, "unlabeled": 64 if device.type == "cpu" else 256},
            "ema": "auto",
            "refresh_batchnorm": "auto",
            "steps": 1,
        }
        if unsure:
            stages["train"]["augment"] = "auto"
        if small:
            strong = {"policy": "randaugment", "pool": EASY_POOL, "ranges": "paper", "cutout": 0.0}
            stages["train"]["augment"] = {"strong": strong}
        if can_leave_out:
            stages["best"] = {"kind": "best", "among": ["labels_alone", "train"], "folds": FOLDS}
    return {
        "name": re.sub(r"[^A-Za-z0-9._-]", "-", Path(str(found.prepared.listing.root)).resolve().name)[:60].strip("-.")
        or "photos",
        "seed": 0,
        "device": wishes.device,
        "data": _data(found),
        "model": _model(small, wishes, device),
        "stages": stages,
    }


def _model(small: bool, wishes: Wishes, device: torch.device) -> dict[str, Any]:
    if wishes.weights is not None:
        file, network = wishes.weights
        smaller = network.startswith(TIMM) and timm_takes(network.removeprefix(TIMM), RESIZE)
        return {"name": network, "weights": str(file)} | ({"resize": RESIZE} if smaller else {})
    if small:
        return {"name": "cnn", "width": 32}
    depth, width = (10, 1) if device.type == "cpu" else (28, 2)
    return {"name": "wrn", "depth": depth, "width": width, "bn_momentum": 0.1}  # its own is for 100,000 steps and more


def _data(found: Survey) -> dict[str, Any]:
    """Return the keys of `data:` with which the run starts, whatever is wrong with the images."""
    prepared = found.prepared
    config = prepared.config
    data: dict[str, Any] = {"source": "folder", "path": config.path}
    data |= {key: value for key in ("csv", "cache") if (value := getattr(config, key)) is not None}
    data |= {"size": config.size, "channels": config.channels, "flip": False}
    data |= {"fit": config.fit} if found.shapes.long else {}
    least = min(found.labels.values())
    if least >= ENOUGH and not found.validates:
        data["validation"] = 0.1 if found.tested else 0.2
    bad = len(prepared.store.bad) / len(prepared.listing.entries)
    if bad > config.max_bad:
        data["max_bad"] = float(f"{min(1.0, bad * 1.1 + 0.001):.3f}")
    data |= {"drop_leaks": True} if prepared.duplicates.leaks else {}
    return data | ({"allow_conflicts": True} if prepared.duplicates.conflicts else {})


def _inline(value: Any) -> str:
    """Write plain containers as YAML on one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6)
    return text.removesuffix("\n...\n").strip()


def _quoted(text: str) -> str:
    """Write text as YAML; what is no UTF-8 in it becomes an escape, and what YAML takes for the end of a line."""
    written = json.dumps(text, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()
    return "".join(sign if sign.isprintable() else f"\\U{ord(sign):08x}" for sign in written)


def _written(
    found: Survey, wishes: Wishes, recipe: Mapping[str, Any], device: torch.device, seconds: Mapping[str, float]
) -> str:
    """Return the recipe as commented YAML."""
    files = FileSystemLoader(Path(__file__).parent)
    # It is YAML: what comes from the folder is quoted as JSON, which YAML reads.
    page = Environment(loader=files, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)  # nosec B701
    page.filters |= {"quoted": _quoted, "inline": _inline, "duration": duration}
    page.filters |= {"line": lambda text: " ".join(printable(str(text)).split())}
    counts = found.labels
    return page.get_template("draft.yaml.j2").render(
        modeline=modeline(),
        recipe=recipe,
        file=shlex.quote(f"{recipe['name']}.yaml" if wishes.out is None else str(wishes.out)),
        data=dict.fromkeys(("csv", "cache", "validation", "max_bad", "fit")) | recipe["data"],
        found=found,
        wishes=wishes,
        seconds=seconds,
        version=__version__,
        cores=torch.get_num_threads(),
        device=device,
        folds=FOLDS,
        least=min(counts.values()),
        most=max(counts.values()),
        total=sum(counts.values()),
        enough=ENOUGH,
        bad=len(found.prepared.store.bad),
        leaks=len(found.prepared.duplicates.leaks),
        conflicts=len(found.prepared.duplicates.conflicts),
        tables=found.prepared.store.folder,
    )
