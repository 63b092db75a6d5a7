"""What `semisup predict` costs on top of the network itself, by processor time, without the start of Python.

    python benchmarks/predict_rate.py            # writes benchmarks/results/predict_rate.md

PNG files of 64 px; the bare network gets the same images as one array in memory, 512 at a time. They run in turn, and
of the rounds the median counts. Decoding is in processes of its own, one here: what it takes is measured apart, for on
two cores it runs beside the network.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from speed_results import circumstances

import semisup
from semisup.augment import to_float
from semisup.pipeline.predict import PredictOptions, predict_files
from semisup.stages import Predictor, load_predictor
from semisup.text import markdown_table

SIZE, BLOCK = 64, 512
NETWORKS: dict[str, dict[str, object]] = {
    "cnn, width 32": {"name": "cnn", "width": 32},
    "wrn-10-1": {"name": "wrn", "depth": 10, "width": 1},
    "resnet18": {"name": "resnet18"},
}
RESULTS = Path(__file__).parent / "results" / "predict_rate.md"


def trained(folder: Path, model: dict[str, object], photos: np.ndarray) -> Path:
    """Return the folder of a stage that one step has trained."""
    stage = {"method": {"name": "supervised"}, "batch": {"labeled": 4}, "steps": 1}
    recipe = {"name": "rate", "tracking": {"mlflow": False}, "model": model, "stages": {"train": stage}}
    semisup.run(recipe, data=(photos[:20], np.arange(20) % 2), out=folder, quiet=True)
    return folder / "train"


def seconds_of(work: Callable[[], object]) -> tuple[float, float]:
    """Return the processor time of a piece of work, of this process and of those that it waited for."""
    before = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    work()
    after = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    own, others = (b.ru_utime + b.ru_stime - a.ru_utime - a.ru_stime for a, b in zip(before, after, strict=True))
    return own, others


def bare(predictor: Predictor, photos: np.ndarray) -> None:
    """Run the network over all images and nothing else."""
    with torch.inference_mode():
        for start in range(0, len(photos), BLOCK):
            images = torch.from_numpy(photos[start : start + BLOCK])
            predictor.network(predictor.normalize(to_float(images))).softmax(1).numpy()


def measure(model: Path, folder: Path, photos: np.ndarray, rounds: int) -> tuple[float, float, float]:
    """Return the median seconds of the bare network, of predict's own process, and of those that decode."""
    predictor = load_predictor(model)
    options = PredictOptions(device="cpu", workers=2)
    bare(predictor, photos[:BLOCK])
    found = []
    for _ in range(rounds):
        network, _ = seconds_of(lambda: bare(predictor, photos))
        found.append((network, *seconds_of(lambda: predict_files(model, [folder], folder / "x.csv", options))))
    network, own, others = (statistics.median(values) for values in zip(*found, strict=True))
    return network, own, others


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    photos = np.random.default_rng(0).integers(0, 256, (asked.images, SIZE, SIZE, 3), dtype=np.uint8)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "photos"
        folder.mkdir()
        for i, pixels in enumerate(photos):
            Image.fromarray(pixels).save(folder / f"{i:05}.png")
        for network in asked.networks:
            stage = trained(Path(name) / network, NETWORKS[network], photos)
            alone, own, others = measure(stage, folder, photos, asked.rounds)
            per = 1e6 / len(photos)
            rows.append([network, *(f"{per * x:,.0f}" for x in (alone, own, others)), f"{100 * alone / own:.0f}"])
            print(rows[-1], flush=True)
    header = ["network", "bare network, us", "predict's process, us", "decoding processes, us", "rate, %"]
    text = f"""# What predict costs

`python benchmarks/predict_rate.py`: processor time of an image of {SIZE} px, median of {asked.rounds} rounds over
{asked.images:,} images of noise (the slowest PNG to decode), one thread. The rate is that of the bare network's time to
that of predict's own process, which finds the files, runs the network and writes the table; decoding runs beside it on
the other core.

{markdown_table(header, rows)}
{circumstances()}
"""
    RESULTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
