"""What `semisup check` finds of flipped labels, and `pool: {keep: auto}` of images of no class.

    python benchmarks/wrong_and_foreign.py     # digits and Fashion-MNIST; writes results/wrong_and_foreign.md

Features are those of a frozen SimCLR encoder, trained without labels (a minute, and three), and pixels for comparison.
One label in ten of 2,000 is flipped (of the digits, of all); found is what lies in the first 15% of the list. For the
second table three of ten classes are foreign: openness tells their images from the others by some labels of the seven
classes. A draw is other images, flips and labels.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from label_next import features
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from semisup.data import load_data
from semisup.evaluate.openness import kept, openness
from semisup.labeling.wrong import out_of_fold
from semisup.settings import DataConfig
from semisup.text import markdown_table

DRAWS, LABELS, LISTED = 5, 2000, 0.15
OWN, PER_CLASS = 7, (4, 10, 25)
RESULTS = Path(__file__).parent / "results" / "wrong_and_foreign.md"
Floats = NDArray[np.float32]


def found(x: Floats, y: NDArray[np.int64], draw: int) -> float:
    """Return which part of the flipped labels is in the first 15% of the list."""
    rng = np.random.default_rng(draw)
    rows = rng.permutation(len(x))[:LABELS]
    given, flipped = y[rows].copy(), np.arange(len(rows)) < len(rows) // 10
    given[flipped] = (given[flipped] + rng.integers(1, 10, int(flipped.sum()))) % 10
    probs = out_of_fold(x[rows], given, np.arange(len(rows)), draw)
    first = np.argsort(probs[np.arange(len(rows)), given], kind="stable")[: round(LISTED * len(rows))]
    return float(flipped[first].sum() / flipped.sum())


def told_apart(x: Floats, y: NDArray[np.int64], labels: int, draw: int) -> tuple[float, float, float]:
    """Return openness's AUROC, and the parts of own and of foreign images that `auto` keeps."""
    rng = np.random.default_rng(draw)
    classes, rows = rng.permutation(10)[:OWN], rng.permutation(len(x))[:LABELS]
    y = y[rows]
    own = np.isin(y, classes)
    labeled = torch.from_numpy(np.concatenate([np.flatnonzero(y == k)[:labels] for k in classes]))
    scores = openness(torch.from_numpy(x[rows]), labeled)
    stays = kept(scores, labeled, "auto").numpy()
    rest = np.ones(len(rows), bool)
    rest[labeled.numpy()] = False
    area = float(roc_auc_score(~own[rest], scores.numpy()[rest]))
    return area, float(stays[rest & own].mean()), float(stays[rest & ~own].mean())


def spread(values: Sequence[float]) -> str:
    """Return mean and standard deviation of fractions, in percent."""
    return f"{100 * np.mean(values):.1f} ± {100 * np.std(values, ddof=1):.1f}"


def tables(source: str, work: Path) -> tuple[list[list[str]], list[list[str]]]:
    """Return a set's rows of both tables."""
    seen, data = features(source, work), load_data(DataConfig(source=source))
    x, y = seen["train"], seen["y_train"].astype(np.int64)
    pixels = (data.x_train[: len(x)].reshape(len(x), -1) / 255).astype(np.float32)
    wrong = [
        [f"{source}, {name}", spread([found(values, y, draw) for draw in range(DRAWS)])]
        for name, values in {"SimCLR": x, "pixels": pixels}.items()
    ]
    foreign = [
        [
            f"{source}, {count} labels",
            *map(spread, zip(*(told_apart(x, y, count, k) for k in range(DRAWS)), strict=True)),
        ]
        for count in PER_CLASS
    ]
    return wrong, foreign


def main() -> None:
    """Measure both sets and write the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS, help="Markdown file to write")
    given = parser.parse_args()
    with TemporaryDirectory() as work:
        both = [tables(source, Path(work)) for source in ("digits", "fashion_mnist")]
    wrong = [row for rows, _ in both for row in rows]
    foreign = [row for _, rows in both for row in rows]
    head = ["data, labels of each class", "AUROC", "own kept", "foreign kept"]
    given.out.write_text(
        f"# Wrong labels and foreign images\n\n`python benchmarks/wrong_and_foreign.py`: mean and standard deviation "
        f"of {DRAWS} draws, percent.\n\n## wrong\n\n"
        f"Of the flipped labels, one in ten of {LABELS:,} at most, in the first {LISTED:.0%} of `semisup check`'s list:"
        f"\n\n{markdown_table(['data, features', 'found'], wrong)}\n\n## foreign\n\n"
        f"Three of ten classes are foreign, features of SimCLR. AUROC: of so many of 100 pairs the foreign image is "
        f"farther from the labeled ones. Kept: by `pool: {{keep: auto}}`.\n\n{markdown_table(head, foreign)}\n"
    )
    print(given.out.read_text())


if __name__ == "__main__":
    main()
