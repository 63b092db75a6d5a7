"""What the recipe of `semisup init` is worth, unedited, on folders that it was not made for.

    python benchmarks/init_folders.py /tmp/folders --minutes 10 --out benchmarks/results/init.md

Needs Debian's packages tuxpaint-stamps-default and dataset-fashion-mnist. Each folder has labeled/, perhaps
unlabeled/, and test/, by a fixed seed. The recipe's last stage is compared with the largest class and with logistic
regression on the pixels of the labeled images at the recipe's size. Test images choose nothing. The table is written
after every folder; a folder that was run before is not run again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from semisup.data import ImageData, load_data
from semisup.settings import DataConfig

STAMPS = Path("/usr/share/tuxpaint/stamps")
CATEGORIES = ("animals", "food", "household", "plants", "symbols", "vehicles")
Item = tuple[str, str, Image.Image]
"""Part (labeled, unlabeled, test), class, picture."""


def stamps(generator: np.random.Generator) -> Iterator[Item]:
    """Yield six kinds of stamps on white: 12 labeled ones of each, a fifth of each for the test."""
    for kind in CATEGORIES:
        files = sorted((STAMPS / kind).rglob("*.png"))
        order = generator.permutation(len(files))
        tested = len(files) // 5
        for place, i in enumerate(order.tolist()):
            with Image.open(files[i]) as image:
                stamp = image.convert("RGBA")
            ground = Image.alpha_composite(Image.new("RGBA", stamp.size, "white"), stamp).convert("RGB")
            part = "test" if place < tested else "labeled" if place < tested + 12 else "unlabeled"
            yield part, kind, ground


def digits(generator: np.random.Generator) -> Iterator[Item]:
    """Yield scikit-learn's digits: 10 labeled of each, 359 for the test."""
    yield from _array(load_data(DataConfig(source="digits")), generator, 10, 10_000)


def fashion(generator: np.random.Generator) -> Iterator[Item]:
    """Yield Fashion-MNIST: 10 labeled of each class, 2,000 unlabeled, 1,000 for the test."""
    yield from _array(load_data(DataConfig(source="fashion_mnist")), generator, 10, 2000, tested=1000)


def two_classes(generator: np.random.Generator) -> Iterator[Item]:
    """Yield coats and shirts, 69 to 31: 400 labeled, none unlabeled, 500 for the test."""
    data = load_data(DataConfig(source="fashion_mnist"))
    shares = {"Coat": 0.69, "Shirt": 0.31}
    for part, total, x, y in (("labeled", 400, data.x_train, data.y_train), ("test", 500, data.x_test, data.y_test)):
        for name, share in shares.items():
            rows = np.flatnonzero(y == data.classes.index(name))
            for i in generator.permutation(rows)[: round(share * total)].tolist():
                yield part, name, Image.fromarray(x[i, :, :, 0])


def coarse(generator: np.random.Generator) -> Iterator[Item]:
    """Yield coats and shirts, 69 to 31: 40 labeled, 1,000 unlabeled, 1,000 for the test."""
    data = load_data(DataConfig(source="fashion_mnist"))
    for name, share in {"Coat": 0.69, "Shirt": 0.31}.items():
        k = data.classes.index(name)
        rows = generator.permutation(np.flatnonzero(data.y_train == k))
        for place, i in enumerate(rows[: round(share * 1040)].tolist()):
            part = "labeled" if place < round(share * 40) else "unlabeled"
            yield part, name, Image.fromarray(data.x_train[i, :, :, 0])
        for i in generator.permutation(np.flatnonzero(data.y_test == k))[: round(share * 1000)].tolist():
            yield "test", name, Image.fromarray(data.x_test[i, :, :, 0])


def tail(generator: np.random.Generator) -> Iterator[Item]:
    """Yield Fashion-MNIST with 400 to 8 images of a class, a tenth labeled, two at least; 1,000 for the test."""
    data = load_data(DataConfig(source="fashion_mnist"))
    for k, name in enumerate(data.classes):
        count = round(400 * 50 ** (-k / 9))
        for place, i in enumerate(generator.permutation(np.flatnonzero(data.y_train == k))[:count].tolist()):
            part = "labeled" if place < max(2, count // 10) else "unlabeled"
            yield part, name, Image.fromarray(data.x_train[i, :, :, 0])
    for i in generator.permutation(len(data.x_test))[:1000].tolist():
        yield "test", data.classes[int(data.y_test[i])], Image.fromarray(data.x_test[i, :, :, 0])


def outlines(generator: np.random.Generator) -> Iterator[Item]:
    """Yield the outlines of shoes, half of them mirrored: which way does one point? 20 labeled of each way."""
    data = load_data(DataConfig(source="fashion_mnist"))
    shoes = [data.classes.index(name) for name in ("Sandal", "Sneaker", "Ankle boot")]
    for parts, x, y in (((40, 1040), data.x_train, data.y_train), ((0, 1000), data.x_test, data.y_test)):
        for place, i in enumerate(generator.permutation(np.flatnonzero(np.isin(y, shoes)))[: parts[1]].tolist()):
            outline = np.where(x[i, :, :, 0] > 40, 255, 0).astype(np.uint8)
            part = "test" if parts[0] == 0 else "labeled" if place < parts[0] else "unlabeled"
            yield part, ("left", "right")[place % 2], Image.fromarray(outline[:, ::-1] if place % 2 else outline)


def _array(
    data: ImageData, generator: np.random.Generator, labels: int, unlabeled: int, tested: int | None = None
) -> Iterator[Item]:
    order = generator.permutation(len(data.x_train))
    seen = np.zeros(data.num_classes, int)
    left = unlabeled
    for i in order.tolist():
        k = int(data.y_train[i])
        seen[k] += 1
        part = "labeled" if seen[k] <= labels else "unlabeled"
        left -= part == "unlabeled"
        if part == "labeled" or left >= 0:
            yield part, data.classes[k], Image.fromarray(data.x_train[i, :, :, 0])
    for i in generator.permutation(len(data.x_test))[:tested].tolist():
        yield "test", data.classes[int(data.y_test[i])], Image.fromarray(data.x_test[i, :, :, 0])


FOLDERS = {
    "stamps": stamps,
    "digits": digits,
    "fashion": fashion,
    "two_classes": two_classes,
    "coarse": coarse,
    "tail": tail,
    "outlines": outlines,
}


def build(name: str, folder: Path) -> None:
    """Write a folder's pictures as PNG, unless it is there."""
    if folder.exists():
        return
    for i, (part, label, picture) in enumerate(FOLDERS[name](np.random.default_rng(0))):
        home = folder / part / ("" if part == "unlabeled" else label.replace("/", "-"))
        home.mkdir(parents=True, exist_ok=True)
        picture.save(home / f"{i:05d}.png")


def baselines(data: ImageData) -> tuple[float, float]:
    """Return test accuracies of the largest class and of logistic regression on standardized pixels."""
    known = data.y_train >= 0

    def flat(images: NDArray[np.uint8]) -> NDArray[np.float64]:
        return images.reshape(len(images), -1) / 255.0

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(flat(data.x_train[known]), data.y_train[known])
    majority = np.bincount(data.y_test).max() / len(data.y_test)
    return float(majority), float(model.score(flat(data.x_test), data.y_test))


def run(name: str, work: Path, minutes: float) -> dict[str, Any]:
    """Build a folder, draft its recipe and run it, both by the command line; return the row."""
    kept = work / f"{name}.json"
    if kept.exists():
        found: dict[str, Any] = json.loads(kept.read_text())
        return found
    build(name, work / name)
    command = [sys.executable, "-m", "semisup"]
    recipe = work / f"{name}.yaml"
    wanted = ["init", str(work / name), "--minutes", str(minutes), "--out", str(recipe), "--force"]
    subprocess.run([*command, *wanted], check=True)
    out = work / "runs" / name
    subprocess.run([*command, "run", str(recipe), "tracking.mlflow=false", "--out", str(out)], check=True)
    stages = {stage["name"]: stage for stage in json.loads((out / "result.json").read_text())["stages"]}
    data = load_data(DataConfig(**yaml.safe_load(recipe.read_text())["data"] | {"validation": 0.0}))
    majority, pixels = baselines(data)
    row = {
        "folder": name,
        "counts": f"{int((data.y_train >= 0).sum()):,} / {int((data.y_train < 0).sum()):,} / {len(data.y_test):,}",
        "size": data.size,
        "steps": " + ".join(str(stage["steps"]) for key, stage in stages.items() if key != "best"),
        "majority": majority,
        "pixels": pixels,
        "stages": {key: stage["metrics"]["test/accuracy"] for key, stage in stages.items()},
        "balanced": {key: stage["metrics"]["test/balanced_accuracy"] for key, stage in stages.items()},
        "left_out": {k: v for k, v in stages.get("best", {}).get("metrics", {}).items() if k.startswith("choice")},
        "minutes": sum(stage["seconds"] for stage in stages.values()) / 60,
    }
    kept.write_text(json.dumps(row, indent=1))
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown."""
    lines = [
        "| folder | labeled / unlabeled / test | px | steps | largest class | pixels | labels alone | FixMatch | taken "
        "| of left-out labels | squared error | balanced | training |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        stages, last = row["stages"], list(row["stages"])[-1]
        figures = [row["majority"], row["pixels"], stages["labels_alone"], stages.get("train"), stages[last]]
        shown = " | ".join("" if figure is None else f"{100 * figure:.1f}" for figure in figures)
        asked = [key for key in stages if row["left_out"] and key != "best"]
        left_out = " : ".join(f"{100 * row['left_out'][f'choice/{key}']:.1f}" for key in asked)
        errors = " : ".join(f"{row['left_out'][f'choice_error/{key}']:.2f}" for key in asked)
        balanced = " : ".join(f"{100 * row['balanced'][key]:.1f}" for key in stages if key != "best")
        lines.append(
            f"| {row['folder']} | {row['counts']} | {row['size']} | {row['steps']} | {shown} | {left_out} | {errors} "
            f"| {balanced} | {row['minutes']:.1f} min |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run all folders, or those that are named, and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path, help="folder for the pictures, recipes and runs")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--only", nargs="*", default=list(FOLDERS), choices=list(FOLDERS))
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    parser.add_argument("--build", action="store_true", help="write the pictures and stop")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    if given.build:
        for name in given.only:
            build(name, given.work / name)
        return
    rows = []
    for name in given.only:
        rows.append(run(name, given.work, given.minutes))
        if given.out is not None:
            given.out.write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
