"""What a short run is evaluated with: BatchNorm's running statistics by several momenta, and estimated anew at the end.

    OMP_NUM_THREADS=1 python benchmarks/batchnorm.py

Fashion-MNIST (20,000 training and 2,000 test images) with WRN-10-1, and digits with the CNN of their recipes; 200 steps
of 64 labeled and, for FixMatch, 64 unlabeled images, last weights, three draws. In training BatchNorm normalizes by the
batch, so that one training serves all momenta: their running statistics are kept on the side. That those of the
training's own momentum come out is checked.
Writes results/batchnorm.md next to this file, after every run anew.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import semisup
from semisup.data import draw_budget, load_data
from semisup.models import refresh_statistics
from semisup.settings import DataConfig
from semisup.stages import load_predictor
from semisup.stages.context import clean_batches
from semisup.text import markdown_table

Source = Literal["fashion_mnist", "digits"]
STEPS, DRAWS, BUDGETS = 200, (10, 11, 12), ("4/class", "60/class")
MOMENTA = (0.1, 1 - 0.05 ** (1 / STEPS), 0.001)
"""The second leaves 5% of the initial statistics after these steps."""
NETWORKS: dict[Source, dict[str, Any]] = {
    "fashion_mnist": {"name": "wrn", "depth": 10, "width": 1, "bn_momentum": MOMENTA[0]},
    "digits": {"name": "cnn", "width": 16},
}
METHODS: dict[str, dict[str, Any]] = {
    "labels alone, strong": {"name": "supervised", "strong": True},
    "FixMatch": {"name": "fixmatch", "threshold": 0.8},
}
RESULTS = Path(__file__).parent / "results"
TITLE = """# What BatchNorm's statistics are worth after a short run

`OMP_NUM_THREADS=1 python benchmarks/batchnorm.py`: test accuracy in % on 2,000 images of Fashion-MNIST (WRN-10-1) and
on the 359 of digits (CNN), 200 steps of 64 labeled and, for FixMatch, 64 unlabeled images, last weights, means over the
draws; two cores of a shared AMD EPYC, CPU. In a row the weights are the same: only what they are evaluated with
differs. The momentum in the middle leaves 5% of the initial statistics.
"""


class Statistics:
    """Running statistics of the BatchNorm layers of whatever network is being trained, by each of `MOMENTA`."""

    def __init__(self) -> None:
        self.layers: dict[_BatchNorm, list[tuple[Tensor, Tensor]]] = {}

    @torch.no_grad()
    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Look at what a layer gets (a global forward hook)."""
        if not isinstance(layer, _BatchNorm) or not layer.training or inputs[0].device.type == "meta":
            return
        x = inputs[0].detach().transpose(0, 1).flatten(1)
        mean, var = x.mean(1), x.var(1)
        kept = self.layers.setdefault(layer, [(torch.zeros_like(mean), torch.ones_like(var)) for _ in MOMENTA])
        for (running_mean, running_var), momentum in zip(kept, MOMENTA, strict=True):
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(var, momentum)


def _data(source: Source) -> dict[str, Any]:
    data = load_data(DataConfig(source=source))
    return {
        "x_train": data.x_train[:20_000],
        "y_train": data.y_train[:20_000],
        "x_test": data.x_test[:2_000],
        "y_test": data.y_test[:2_000],
    }


def _layers(network: nn.Module) -> list[_BatchNorm]:
    return [layer for layer in network.modules() if isinstance(layer, _BatchNorm)]


def measure(source: Source, method: dict[str, Any], labels: str, draw: int, out: Path) -> dict[str, float]:
    """Train once; return the test accuracy in % by what the network is evaluated with."""
    data = _data(source)
    recipe = {
        "name": "batchnorm",
        "seed": draw,
        "data": {
            "source": "npz",
            "labels": labels,
            "split_seed": draw,
            "flip": source == "fashion_mnist",
            "allow_leakage": True,
            "allow_conflicts": True,
        },
        "model": NETWORKS[source],
        "tracking": {"mlflow": False},
        "stages": {
            "train": {
                "method": method,
                "optimizer": {"lr": 0.1},
                "batch": {"labeled": 64, "unlabeled": 64},
                "steps": STEPS,
            }
        },
    }
    statistics = Statistics()
    hook = nn.modules.module.register_module_forward_pre_hook(statistics)
    semisup.run(recipe, data=data, out=out, quiet=True)
    hook.remove()
    predictor = load_predictor(out / "train")
    network = predictor.network
    found = list(statistics.layers.values())[-len(_layers(network)) :]  # the last network that was trained
    own = {id(layer) for layer in _layers(network)}
    order: list[_BatchNorm] = []  # in the order of the forward, as the layers were found
    seen = nn.modules.module.register_module_forward_pre_hook(
        lambda layer, _: order.append(layer) if id(layer) in own else None
    )
    predictor.predict_proba(data["x_test"][:2])
    seen.remove()
    for layer, kept in zip(order, found, strict=True):
        torch.testing.assert_close(layer.running_mean, kept[0][0], atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(layer.running_var, kept[0][1], atol=1e-3, rtol=1e-3)

    def accuracy() -> float:
        return 100 * float((predictor.predict_proba(data["x_test"]).argmax(1) == data["y_test"]).mean())

    results = {}
    for at, momentum in enumerate(MOMENTA):
        for layer, kept in zip(order, found, strict=True):
            layer.running_mean, layer.running_var = kept[at]
        results[f"{momentum:.3g}"] = accuracy()
    rows = np.arange(len(data["x_train"]))
    if method["name"] == "supervised":  # it reads no other images
        rows = draw_budget(data["y_train"], labels, draw, 10).index
    rows = np.random.default_rng(draw).permutation(rows)[:2048]
    parts = np.array_split(rows, max(1, round(len(rows) / 256)))
    cpu = torch.device("cpu")
    refresh_statistics(
        network,
        (
            batch
            for part in parts
            for batch in clean_batches(data["x_train"], predictor.normalize, cpu, part, size=len(part))
        ),
    )
    results["anew"] = accuracy()
    return results


def write(found: list[dict[str, Any]]) -> None:
    """Write the table of means over the draws that are there."""
    columns = [f"{momentum:.3g}" for momentum in MOMENTA] + ["anew"]
    rows = []
    for row in itertools.product(NETWORKS, BUDGETS, METHODS):
        own = [run["accuracy"] for run in found if (run["set"], run["labels"], run["method"]) == row]
        if own:
            rows.append([*row, str(len(own)), *(f"{np.mean([run[c] for run in own]):.1f}" for c in columns)])
    head = ["set", "labels", "method", "draws", *(f"momentum {c}" for c in columns[:-1]), "estimated anew"]
    (RESULTS / "batchnorm.md").write_text(f"{TITLE}\n{markdown_table(head, rows, left=3)}\n")


def main() -> None:
    """Make the runs that are missing, and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/batchnorm"), help="where finished runs are kept")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS)
    parser.add_argument("--draws", nargs="*", type=int, default=DRAWS)
    arguments = parser.parse_args()
    arguments.runs.mkdir(parents=True, exist_ok=True)
    for draw, source, name, labels in itertools.product(arguments.draws, NETWORKS, arguments.methods, BUDGETS):
        file = arguments.runs / f"{source}-{METHODS[name]['name']}-{labels.replace('/', '-')}-{draw}.json"
        if not file.exists():
            with tempfile.TemporaryDirectory() as folder:
                accuracy = measure(source, METHODS[name], labels, draw, Path(folder) / "out")
            run = {"set": source, "method": name, "labels": labels, "draw": draw, "accuracy": accuracy}
            file.write_text(json.dumps(run))
            print(run, flush=True)
        write([json.loads(kept.read_text()) for kept in sorted(arguments.runs.glob("*.json"))])


if __name__ == "__main__":
    main()
