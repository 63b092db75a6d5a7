"""Which strategy of `semisup label` brings most: 20 -> 40 -> 80 -> 160 labels by each, against images drawn at random.

    python benchmarks/label_next.py            # digits and Fashion-MNIST; writes benchmarks/results/label_next.md

Features are those of a frozen SimCLR encoder, which the script trains without labels (a minute, and three). A strategy
starts from 20 labels that it chose itself or, where it needs predictions, that were drawn at random; what is measured
is the test accuracy of a logistic regression on the labeled features. A draw is another random start, and another seed
of the clusters; of Fashion-MNIST each draw has 3,000 training images of its own to choose from. Where `auto` changes
from coverage to margin was found on draws 0 to 2; the table has draws 100 to 104.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import semisup
from semisup.augment import Normalize
from semisup.config.load import load_recipe
from semisup.data import load_data
from semisup.data.near import thumbnails
from semisup.evaluate import predict_logits
from semisup.labeling.choose import STRATEGIES, Question, choose, predictions, resolve
from semisup.settings import DataConfig
from semisup.stages.context import clean_batches
from semisup.stages.predictor import load_features
from semisup.text import markdown_table

__all__ = ["main", "simulate"]

BUDGETS = (20, 40, 80, 160)
FIRST = 100
"""Draw of the table."""
PREDICTING = ("margin", "entropy", "disagreement")
POOL = 3000
"""Images of a draw to choose from, out of the first ..."""
IMAGES = 20_000
PRETRAINED = {"digits": ("digits/quickstart", "pretrain"), "fashion_mnist": ("fashion_mnist/chain", "simclr")}
"""Data set -> recipe and stage of its encoder."""
RESULTS = Path(__file__).parent / "results" / "label_next.md"


HEAD = """# What to label next

`python benchmarks/label_next.py`: test accuracy in % of a logistic regression on the labeled features of a frozen
SimCLR encoder, mean and standard deviation of {draws} draws. Each strategy chooses the labels from 20 to 40 to 80 to
160; margin, entropy and disagreement start from 20 drawn at random, for they need predictions. Of Fashion-MNIST a draw
chooses from 3,000 images. The last column is the mean over budgets.
"""


def features(source: str, out: Path) -> dict[str, NDArray[np.float32]]:
    """Pretrain an encoder, and return its features of the training and test images."""
    name, stage = PRETRAINED[source]
    recipe = load_recipe(name, ["tracking.mlflow=false"])
    recipe = recipe.model_copy(update={"stages": {stage: recipe.stages[stage]}})
    semisup.run(recipe, out=out / source, quiet=True)
    cpu, data = torch.device("cpu"), load_data(DataConfig(source=source))
    network, normalize = load_features(out / source / stage, cpu), Normalize(*data.statistics)
    images = {"train": data.x_train[:IMAGES], "test": data.x_test}
    found = {part: predict_logits(network, clean_batches(x, normalize, cpu)).numpy() for part, x in images.items()}
    small = thumbnails(images["train"])
    return {**found, "y_train": data.y_train[:IMAGES], "y_test": data.y_test, "small": small}


def simulate(seen: dict[str, NDArray[np.float32]], strategy: str, draw: int) -> Iterator[tuple[int, float]]:
    """Yield label budget and test accuracy of one strategy and one draw."""
    rows = np.random.default_rng(draw).permutation(len(seen["train"]))[:POOL]
    x, y, small = seen["train"][rows], seen["y_train"][rows].astype(np.int64), seen["small"][rows]
    both = np.concatenate([x, seen["test"]])
    classes = int(y.max()) + 1
    labels = np.full(len(both), -1)
    members: list[NDArray[np.float32]] = []
    for budget in BUDGETS:
        have = labels[: len(x)] >= 0
        question = Question(x, labels[: len(x)], ~have, [each[: len(x)] for each in members], classes, draw)
        asked = strategy if members or strategy not in PREDICTING else "random"
        chosen, _ = choose(question, budget - int(have.sum()), resolve(asked, question), small)
        for choice in chosen:
            labels[choice.row] = y[choice.row]
        members = predictions(both, labels, classes, draw)
        yield budget, float((members[0][len(x) :].argmax(1) == seen["y_test"]).mean())


def table(seen: dict[str, NDArray[np.float32]], draws: int) -> str:
    """Return the accuracies of every strategy at every budget, mean and standard deviation over draws."""
    lines = []
    for strategy in STRATEGIES:
        runs = (
            np.array([[value for _, value in simulate(seen, strategy, draw)] for draw in range(FIRST, FIRST + draws)])
            * 100
        )
        cells = [f"{mean:.1f} ± {std:.1f}" for mean, std in zip(runs.mean(0), runs.std(0, ddof=1), strict=True)]
        lines.append([strategy, *cells, f"{runs.mean():.1f}"])
        print(lines[-1], flush=True)
    return markdown_table(["strategy", *(f"{n} labels" for n in BUDGETS), "mean"], lines)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/label_next"), help="of the encoders")
    parser.add_argument("--sources", nargs="*", choices=list(PRETRAINED), default=list(PRETRAINED))
    asked = parser.parse_args()
    parts = [f"## {source}\n\n{table(features(source, asked.out), asked.draws)}\n" for source in asked.sources]
    RESULTS.write_text("\n".join([HEAD.format(draws=asked.draws), *parts]), encoding="utf-8")


if __name__ == "__main__":
    main()
