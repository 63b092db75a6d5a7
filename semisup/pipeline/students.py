"""What a smaller network costs: the classifiers of a run by accuracy, parameters, bytes, FLOPs and latency."""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from semisup.config import load_recipe
from semisup.errors import SemisupError
from semisup.evaluate.plots import save_figure
from semisup.files import write_atomically
from semisup.records import read_record
from semisup.settings.schema import TrainConfig
from semisup.stages.predictor import WEIGHTS, load_network, read_network
from semisup.text import markdown_table, markdown_text, percent, signed

__all__ = ["Student", "compare_students", "students_figure", "students_table"]

ROUNDS = 30
"""Times that every network is timed, in turn; the median counts."""

AXES = (
    ("kB of weights", "bytes", 1e-3),
    ("MFLOPs of an image", "flops", 1e-6),
    ("ms of an image, CPU", "milliseconds", 1.0),
)
"""Title, attribute of `Student`, factor."""


@dataclass(frozen=True)
class Student:
    """A classifier as it is deployed.

    Attributes:
        name: of its stage.
        accuracy: on the test images, else on the validation images; None: neither was there.
        parameters: of the network.
        bytes: of its weights in 32 bits.
        flops: of one image, a multiplication and an addition counted as two (torch.utils.flop_counter).
        milliseconds: of one image on the CPU, median.
        teacher: whether the others learned from it.
    """

    name: str
    accuracy: float | None
    parameters: int
    bytes: int
    flops: int
    milliseconds: float
    teacher: bool = False


def compare_students(folder: Path, rounds: int = ROUNDS) -> list[Student]:
    """Measure the teacher and the students of a finished run, the teacher first, the students by their size.

    A stage that learns or teaches features is neither: it classifies nothing.

    Args:
        folder: of the run.
        rounds: how often each network is timed, all in turn, so that a busy machine is as busy for each.

    Raises:
        SemisupError: no finished run there, or none of its classifiers has a teacher that classifies.
    """
    if not (folder / "result.json").is_file():
        raise SemisupError(f"{folder}: not the folder of a finished run (no result.json)")
    stages = load_recipe(folder / "recipe.yaml").stages
    taught = {
        name: stage.teacher
        for name, stage in stages.items()
        if isinstance(stage, TrainConfig)
        and stage.teacher
        and all(read_network(folder / one).kind == "classifier" for one in (name, *stage.teacher))
    }
    if not taught:
        raise SemisupError(f"{folder}: no stage of this run learns classes of a teacher")
    teachers = list(dict.fromkeys(name for own in taught.values() for name in own if name not in taught))
    names = [*teachers, *taught]
    networks = {name: _network(folder / name) for name in names}
    times = _latencies(list(networks.values()), rounds)
    found = []
    for (name, (network, image)), milliseconds in zip(networks.items(), times, strict=True):
        metrics = read_record(folder / name)["metrics"]
        accuracy = metrics.get("test/accuracy", metrics.get("validation/accuracy"))
        parameters = sum(parameter.numel() for parameter in network.parameters())
        size = (folder / name / WEIGHTS).stat().st_size
        found.append(Student(name, accuracy, parameters, size, _flops(network, image), milliseconds, name in teachers))
    return sorted(found, key=lambda one: (not one.teacher, -one.parameters))


def _network(folder: Path) -> tuple[nn.Module, Tensor]:
    """Return a stage's classifier and an image that it takes."""
    spec = read_network(folder).spec
    return load_network(folder, torch.device("cpu")), torch.zeros(1, spec.in_channels, spec.image_size, spec.image_size)


def _flops(network: nn.Module, image: Tensor) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(image)
    return int(counter.get_total_flops())


def _latencies(networks: Sequence[tuple[nn.Module, Tensor]], rounds: int) -> list[float]:
    """Return the median milliseconds of one image by each network, timed in turn."""
    seconds: list[list[float]] = [[] for _ in networks]
    with torch.inference_mode():
        for network, image in networks:  # to warm up
            network(image)
        for _ in range(rounds):
            for own, (network, image) in zip(seconds, networks, strict=True):
                started = time.perf_counter()
                network(image)
                own.append(time.perf_counter() - started)
    return [1000 * statistics.median(own) for own in seconds]


def students_table(students: Sequence[Student]) -> str:
    """Return the comparison as a Markdown table; differences are to the first row."""
    teacher = students[0]
    rows = []
    for one in students:
        points = None if one.accuracy is None or teacher.accuracy is None else one.accuracy - teacher.accuracy
        rows.append(
            [
                markdown_text(one.name) + " (teacher)" * one.teacher,
                percent(one.accuracy),
                "" if one is teacher else signed(points),
                f"{one.parameters:,}",
                f"{one.parameters / teacher.parameters:.2f}",
                f"{one.bytes / 1000:,.0f}",
                f"{one.flops / 1e6:,.2f}",
                f"{one.milliseconds:.2f}",
            ]
        )
    header = ["network", "accuracy, %", "points", "parameters", "share", "kB", "MFLOPs", "ms, CPU"]
    return markdown_table(header, rows)


def students_figure(students: Sequence[Student], path: Path) -> None:
    """Write accuracy against bytes, FLOPs and latency, each on a logarithmic axis, as a PNG; the teacher is a star."""
    from matplotlib.figure import Figure

    known = [one for one in students if one.accuracy is not None]
    figure = Figure(figsize=(12.0, 4.2), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    for axis, (title, key, scale) in zip(axes, AXES, strict=True):
        for one in known:
            x, y = getattr(one, key) * scale, 100 * (one.accuracy or 0.0)
            axis.plot(x, y, "*" if one.teacher else "o", markersize=13 if one.teacher else 7)
            axis.annotate(one.name, (x, y), xytext=(5, 4), textcoords="offset points", fontsize=8, parse_math=False)
        axis.set_xscale("log")
        axis.set_xlabel(title)
        axis.grid(alpha=0.3)
        axis.margins(0.18)
    axes[0].set_ylabel("accuracy, %")
    file = io.BytesIO()
    save_figure(figure, file, 110)
    write_atomically(path, file.getvalue())
