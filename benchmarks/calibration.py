"""A temperature without validation labels: which way of cross-fitting, if any, is better than none (T = 1)?

    python benchmarks/calibration.py            # digits and Fashion-MNIST; writes benchmarks/results/calibration.md

A network is trained on 40 labels, and its temperature found in several ways from these labels and images alone. What is
measured is NLL and ECE of the test images with that temperature. A fold is a quarter of the labels of every class: the
stage is trained again on the others, and the fold's logits are fitted. The last line, the temperature that the test
labels themselves give, is what no way can beat. Test labels are read for the table alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor

import semisup
from semisup.data import draw_budget, load_data
from semisup.evaluate import classification_metrics, fit_temperature
from semisup.settings import DataConfig
from semisup.stages import Predictor, load_predictor
from semisup.text import markdown_table

LABELS, FOLDS, IMAGES = 40, 4, 10_000
"""Labels, folds, and images of Fashion-MNIST that a draw trains on; with four labels of a class a fold has one."""
GEOMETRY = ["identity", "rotate", "shear_x", "shear_y", "translate_x", "translate_y", "brightness", "contrast"]
STRONG = {
    "digits": {"policy": "randaugment", "pool": GEOMETRY, "ranges": "paper", "cutout": 0.0},
    "fashion_mnist": {"policy": "randaugment", "ranges": "paper", "cutout": 0.25},
}
STAGES: dict[str, dict[str, Any]] = {
    "digits": {
        "model": {"name": "cnn", "width": 16},
        "optimizer": {"name": "adamw", "lr": 2e-3},
        "batch": {"labeled": 32, "unlabeled": 64},
        "steps": 400,
    },
    "fashion_mnist": {
        "model": {"name": "cnn", "width": 16},
        "optimizer": {"name": "adamw", "lr": 2e-3},
        "batch": {"labeled": 32, "unlabeled": 64},
        "steps": 300,
    },
}
METHODS: dict[str, dict[str, Any]] = {
    "supervised": {"name": "supervised", "strong": True},
    "fixmatch": {"name": "fixmatch", "threshold": 0.8, "align": True},
}
RESULTS = Path(__file__).parent / "results" / "calibration.md"
HEAD = """# A temperature without validation labels

`python benchmarks/calibration.py`: NLL and, in brackets, ECE in % of the test images, 40 labels, mean of {draws} draws;
last column: on how many of them the NLL is lower than with T = 1. A CNN of width 16, {digits} steps on digits and
{fashion} on 10,000 images of Fashion-MNIST; two cores of a shared AMD EPYC.

- head: logistic regressions on the trained network's features of {rest} of {folds} folds, evaluated on the last.
- short: the stage trained again for each fold without its labels, with 1/{folds} of the steps: as much time again.
- full: the same with all steps: {folds} times the time.
- match: the T whose mean confidence on the training images is the accuracy of the short folds.
- best: the T of the test labels themselves, which no way can beat.
"""


def train(out: Path, source: str, method: str, arrays: dict[str, NDArray[Any]], steps: int) -> Predictor:
    """Train on arrays; return the network as it is."""
    out.mkdir(parents=True, exist_ok=True)
    np.savez(out / "data.npz", **arrays)  # type: ignore[arg-type]
    stage = {**STAGES[source], "method": METHODS[method], "augment": {"strong": STRONG[source]}, "ema": "auto"}
    recipe = {
        "name": "calibration",
        "data": {"source": "npz", "path": str(out / "data.npz"), "labels": "all", "flip": source == "fashion_mnist"},
        "tracking": {"mlflow": False},
        "stages": {"train": {**stage, "steps": steps}},
    }
    semisup.run(recipe, out=out / "run", quiet=True)
    return load_predictor(out / "run" / "train", raw=True)


def logits_of(predictor: Predictor, images: NDArray[np.uint8]) -> Tensor:
    """Return log probabilities (N, C), which are logits."""
    return torch.from_numpy(np.log(predictor.predict_proba(images).clip(1e-30)))


def folds_of(y: NDArray[np.int64], rows: NDArray[np.int64], draw: int) -> NDArray[np.int64]:
    """Return the fold of each labeled row; every class is spread over all of them."""
    order = np.random.default_rng(draw).permutation(len(rows))
    order = order[np.argsort(y[rows][order], kind="stable")]
    folds = np.empty(len(rows), np.int64)
    folds[order] = np.arange(len(rows)) % FOLDS
    return folds


def of_head(features: NDArray[np.float32], y: NDArray[np.int64], folds: NDArray[np.int64]) -> float:
    """Return the temperature of logistic regressions on features that the network learned from these labels."""
    found = np.zeros((len(y), int(y.max()) + 1))
    scale = features.std() + 1e-9
    for k in range(FOLDS):
        inside = folds != k
        fitted = LogisticRegression(max_iter=1000).fit(features[inside] / scale, y[inside])
        found[np.ix_(~inside, fitted.classes_)] = fitted.predict_log_proba(features[~inside] / scale)
    return fit_temperature(torch.from_numpy(found), torch.from_numpy(y))


def of_mean(logits: Tensor, accuracy: float) -> float:
    """Return the temperature whose mean confidence is an accuracy."""
    grid = np.geomspace(0.05, 20, 400)
    means = [float((logits / t).softmax(1).max(1).values.mean()) for t in grid]
    return float(grid[np.abs(np.array(means) - accuracy).argmin()])


def temperatures(out: Path, source: str, method: str, draw: int) -> tuple[dict[str, float], Tensor, Tensor]:
    """Return the temperature of every way, and the test images' logits and labels."""
    data = load_data(DataConfig(source=source))
    images, y = data.x_train[:IMAGES], data.y_train[:IMAGES].astype(np.int64)
    rows = draw_budget(y, LABELS, draw, data.num_classes).index
    steps = STAGES[source]["steps"]

    def fitted(name: str, kept: NDArray[np.int64], steps: int) -> Predictor:
        labels = np.full(len(y), -1)
        labels[kept] = y[kept]
        arrays = {"x_train": images, "y_train": labels, "x_test": data.x_test[:64], "y_test": data.y_test[:64]}
        return train(out / f"{source}-{method}-{draw}" / name, source, method, arrays, steps)

    whole = fitted("whole", rows, steps)
    folds, truth = folds_of(y, rows, draw), torch.from_numpy(y[rows])
    found = {"none": 1.0, "head": of_head(whole.embed(images[rows]), y[rows], folds)}
    for name, length in (("short", steps // FOLDS), ("full", steps)):
        logits = torch.zeros(len(rows), data.num_classes)
        for k in range(FOLDS):
            logits[folds == k] = logits_of(fitted(f"{name}{k}", rows[folds != k], length), images[rows[folds == k]])
        found[name] = fit_temperature(logits, truth)
        if name == "short":
            right = float((logits.argmax(1) == truth).double().mean())
            found["match"] = of_mean(logits_of(whole, images), right)
    tested, known = logits_of(whole, data.x_test), torch.from_numpy(data.y_test)
    return found | {"best": fit_temperature(tested, known)}, tested, known


def table(out: Path, source: str, draws: int) -> str:
    """Return NLL and ECE of every method and way."""
    lines = []
    for method in METHODS:
        figures: dict[str, list[tuple[float, float, float]]] = {}
        for draw in range(draws):
            found, logits, y = temperatures(out, source, method, draw)
            for way, t in found.items():
                metrics = classification_metrics(logits / t, y, int(y.max()) + 1)
                figures.setdefault(way, []).append((t, metrics["nll"], metrics["ece"]))
            print(source, method, draw, {k: tuple(round(x, 3) for x in v[-1]) for k, v in figures.items()}, flush=True)
        for way, values in figures.items():
            t, nll, ece = np.array(values).T
            better = sum(mine < base[1] for mine, base in zip(nll, figures["none"], strict=True))
            each = ", ".join(f"{x:.2f}" for x in t)
            lines.append([method, way, each, f"{nll.mean():.3f} ({100 * ece.mean():.1f})", f"{better} of {draws}"])
    return markdown_table(["method", "way", "T of each draw", "NLL (ECE, %)", "better"], lines)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/calibration"))
    parser.add_argument("--sources", nargs="*", default=list(STAGES))
    asked = parser.parse_args()
    parts = [f"## {source}\n\n{table(asked.out, source, asked.draws)}\n" for source in asked.sources]
    steps = [STAGES[source]["steps"] for source in ("digits", "fashion_mnist")]
    head = HEAD.format(draws=asked.draws, digits=steps[0], fashion=steps[1], folds=FOLDS, rest=FOLDS - 1)
    RESULTS.write_text("\n".join([head, *parts]), encoding="utf-8")


if __name__ == "__main__":
    main()
