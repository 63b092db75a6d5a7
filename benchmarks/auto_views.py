"""What `augment: auto` chooses, and what it is worth: against always gentle, always weak and always strong views.

    python benchmarks/auto_views.py --work runs/auto_views --out benchmarks/results/auto_views.md

Needs Debian's package dataset-fashion-mnist. Labels alone, five sets, five draws of the labels. A set's test images
choose nothing. What is measured is kept in the folder of --work, one file a draw: after a stop the same command goes
on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from semisup.config import parse_recipe
from semisup.data import ImageData, load_data
from semisup.evaluate import predict_logits
from semisup.pipeline.execute import stage_context
from semisup.pipeline.plan import make_plan
from semisup.settings import DataConfig
from semisup.stages import StageContext
from semisup.stages.auto_views import STRENGTHS, choose
from semisup.stages.training import fit_quietly

DRAWS = range(5)
STAGE: dict[str, Any] = {
    "method": {"name": "supervised"},
    "optimizer": {"name": "adamw", "lr": 5e-3, "weight_decay": 1e-2},
    "schedule": {"name": "cosine", "warmup": 0.05},
    "batch": {"labeled": 32},
    "ema": "auto",
    "refresh_batchnorm": "auto",
    "steps": 200,
}
Images = NDArray[np.uint8]


@cache
def clothes() -> ImageData:
    """Fashion-MNIST at 14 pixels, the first 20,000 training images."""
    data = load_data(DataConfig(source="fashion_mnist"))

    def halved(images: Images) -> Images:
        smaller: Images = images.reshape(-1, 14, 2, 14, 2, 1).mean((2, 4)).round().astype(np.uint8)
        return smaller

    x_train, y_train = halved(data.x_train[:20_000]), data.y_train[:20_000]
    return replace(data, x_train=x_train, y_train=y_train, x_test=halved(data.x_test), known=None)


def made(name: str, classes: list[str], pick: Callable[[Images, NDArray[np.int64]], tuple[Any, Any]]) -> ImageData:
    """Return a set made of some images of the clothes, as the function picks and labels them."""
    data = clothes()
    x_train, y_train = pick(data.x_train, data.y_train)
    x_test, y_test = pick(data.x_test, data.y_test)
    return ImageData(name, x_train, y_train, x_test[:1000], y_test[:1000], classes, flip=True)


def coats(images: Images, y: NDArray[np.int64]) -> tuple[Any, Any]:
    """Pick coats and shirts, two coats to a shirt (more exactly 69 to 31)."""
    rows = np.flatnonzero((y == 4) | (y == 6))
    shirt = y[rows] == 6
    kept = ~shirt | (np.cumsum(shirt) % 20 < 9)
    order = np.random.default_rng(0).permutation(np.flatnonzero(kept))
    return images[rows][order], shirt[order].astype(np.int64)


def outlines(images: Images) -> Images:
    """Return which pixels are of the piece, white on black."""
    return np.where(images > 40, 255, 0).astype(np.uint8)


def facing(images: Images, y: NDArray[np.int64]) -> tuple[Any, Any]:
    """Pick outlines of shoes, every other one mirrored: where does it point?"""
    x = outlines(images[np.isin(y, [5, 7, 9])])
    label = np.arange(len(x)) % 2
    x[label == 1] = x[label == 1][:, :, ::-1]
    return x, label


def shapes(images: Images, y: NDArray[np.int64]) -> tuple[Any, Any]:
    """Pick outlines of trousers, dresses, sneakers, bags and boots: which is it?"""
    wanted = [1, 3, 7, 8, 9]
    rows = np.flatnonzero(np.isin(y, wanted))
    return outlines(images[rows]), np.searchsorted(wanted, y[rows])


SETS: dict[str, tuple[str, Callable[[], ImageData]]] = {
    "digits": ("40", lambda: load_data(DataConfig(source="digits"))),
    "digits, long-tailed": ("20%", lambda: load_data(DataConfig(source="digits", long_tail=50))),
    "coats and shirts": ("40", lambda: made("coats and shirts", ["coat", "shirt"], coats)),
    "outlines: which way a shoe points": ("40", lambda: made("facing", ["left", "right"], facing)),
    "outlines: which piece": (
        "40",
        lambda: made("shapes", ["trouser", "dress", "sneaker", "bag", "boot"], shapes),
    ),
}


def context(data: ImageData, labels: str, seed: int, augment: Any, folder: Path) -> StageContext:
    """Plan the stage with these views, and return what it works with."""
    recipe = parse_recipe(
        {
            "name": "auto-views",
            "seed": seed,
            "device": "cpu",
            "data": {"labels": labels},
            "model": {"name": "cnn", "width": 8},
            "stages": {"train": STAGE | {"augment": augment}},
        }
    )
    plan = make_plan(recipe, data, trial=False)
    (stage,) = plan.stages
    return stage_context(plan, stage, folder, {})


def measure(data: ImageData, labels: str, seed: int, folder: Path) -> dict[str, Any]:
    """Return the test accuracy with each strength, and what is chosen: `auto` then trains the same bits."""
    test = {}
    for name, views in STRENGTHS.items():
        one = context(data, labels, seed, {"weak": views}, folder)
        predicted = predict_logits(fit_quietly(one), one.clean_batches(data.x_test)).argmax(1)
        test[name] = float((predicted.numpy() == data.y_test).mean())
    choice = choose(context(data, labels, seed, "auto", folder), fit_quietly)
    found = {"strength": choice.strength, "accuracy": choice.accuracy, "loss": choice.loss, "seconds": choice.seconds}
    return {"test": test, "choice": found}


def page(rows: list[dict[str, Any]]) -> str:
    """Write the results for people."""
    lines = [
        "# `augment: auto` against always the same views",
        "",
        "`python benchmarks/auto_views.py --work runs/auto_views --out benchmarks/results/auto_views.md` (two cores of "
        "a shared AMD EPYC, CPU).",
        "",
        f"Test accuracy in percent, mean ± standard deviation over {len(DRAWS)} draws of the labels. Labels alone, a "
        f"CNN of width 8, {STAGE['steps']} steps of {STAGE['batch']['labeled']} images; mirroring is allowed but for "
        "digits. Fashion-MNIST is scaled to 14 pixels; outlines are its pixels above 40, white on black; coats and "
        "shirts are 69 to 31. Chosen: how many draws took weak / strong / gentle views. Best: the mean of each draw's "
        "best views, which nothing but test images could choose.",
        "",
        "| set | labels | always weak | always strong | always gentle | auto | chosen | best |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, (labels, _) in SETS.items():
        own = [row for row in rows if row["set"] == name]
        if own:
            lines.append(_line(name, labels, own))
    return "\n".join(lines) + "\n"


def _line(name: str, labels: str, rows: list[dict[str, Any]]) -> str:
    taken = [row["choice"]["strength"] for row in rows]
    auto = [row["test"][strength] for row, strength in zip(rows, taken, strict=True)]
    columns = [[row["test"][strength] for row in rows] for strength in STRENGTHS]
    cells = [f"{100 * mean(c):.1f} ± {100 * stdev(c) if len(c) > 1 else 0:.1f}" for c in [*columns, auto]]
    counts = " / ".join(str(taken.count(strength)) for strength in STRENGTHS)
    best = mean(max(row["test"].values()) for row in rows)
    return f"| {name} | {labels} | {' | '.join(cells)} | {counts} | {100 * best:.1f} |"


def main() -> None:
    """Measure what is not there, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of what is measured")
    parser.add_argument("--only", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--out", type=Path, help="table to write")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.work.mkdir(parents=True, exist_ok=True)
    for seed in DRAWS:
        for name in given.only:
            kept = given.work / f"{list(SETS).index(name)}-{seed}.json"
            if not kept.exists():
                labels, load = SETS[name]
                with tempfile.TemporaryDirectory() as folder:
                    row = {"set": name, "seed": seed} | measure(load(), labels, seed, Path(folder))
                kept.write_text(json.dumps(row))
                print(json.dumps(row), flush=True)
    rows = [json.loads(path.read_text()) for path in sorted(given.work.glob("*.json"))]
    table = page(rows)
    print(table)
    if given.out is not None:
        given.out.write_text(table)


if __name__ == "__main__":
    main()
