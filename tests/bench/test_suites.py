"""Every shipped suite is complete and could run: planned here on its data, or on images of the same shape."""

from __future__ import annotations

import functools
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from semisup.bench import find_suite, load_suite, shipped_suites
from semisup.bench.execution.jobs import make_jobs, plan_run, step_kind
from semisup.bench.results.rows import read_rows
from semisup.bench.suites.runs import check_entries, expand
from semisup.bench.suites.suite import Suite
from semisup.data import ImageData, load_data
from semisup.errors import SemisupError
from semisup.models import save_weights
from semisup.settings import DataConfig

ROOT = Path(__file__).parents[2]
SHAPES = {"fashion_mnist": (60_000, 28, 1), "cifar10": (50_000, 32, 3), "folder": (400, 32, 3)}


_data: dict[str, ImageData] = {}


def data_of(suite: Suite) -> ImageData:
    """The suite's data, or as many black images; read and hashed once for all suites that share them."""
    settings = suite.data.model_dump_json()
    if settings not in _data:
        _data[settings] = _data_of(suite.data)
    return _data[settings]


def _data_of(config: DataConfig) -> ImageData:
    try:
        if config.source != "cifar10":  # which needs a download
            return load_data(config)
    except SemisupError:
        if config.source == "digits":
            raise
    n, size, channels = SHAPES[config.source]  # without their memory: all share one pixel
    images = np.broadcast_to(np.zeros(1, np.uint8), (n, size, size, channels))
    data = ImageData(
        name=config.source,
        x_train=images,
        y_train=np.arange(n) % 10,
        x_test=images[:10],
        y_test=np.arange(10),
        classes=[str(k) for k in range(10)],
        flip=True,
    )
    # What real pixels would say; `cached_property` keeps what it finds in the instance.
    data.__dict__.update(hash=f"blank {config.source}", statistics=([0.0] * channels, [1.0] * channels))
    return data


def with_weights(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Go to a folder that has the files that a suite names: weights are random numbers, pictures are missing."""
    monkeypatch.chdir(folder)
    (folder / "runs/stamps/labeled").mkdir(parents=True)
    for file, lite in set(re.findall(r"(runs/weights/(lite\d)\.safetensors)", find_suite(name).read_text())):
        timm = pytest.importorskip("timm")
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        save_weights(folder / file, timm.create_model(f"tf_efficientnet_{lite}").state_dict())


TRIED = [
    name if name.startswith("digits/") else pytest.param(name, marks=pytest.mark.slow) for name in shipped_suites()
]
"""Methods and networks of the others are those of the recipes, whose steps tests/recipes tries."""


@pytest.mark.parametrize("name", TRIED)
def test_every_entry_of_a_suite_can_make_a_step(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with_weights(name, tmp_path, monkeypatch)
    monkeypatch.setattr("semisup.pipeline.plan.available_memory", lambda device: math.inf)  # of a GPU elsewhere
    suite = load_suite(name)
    check_entries(suite, data_of(suite))


@pytest.mark.parametrize("name", shipped_suites())
def test_every_shipped_suite_could_run(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with_weights(name, tmp_path, monkeypatch)
    suite = load_suite(name)
    data = data_of(suite)
    source, _, rest = name.partition("/")
    assert suite.name == f"{source}-{rest.replace('_', '-')}", "the results' folder is called like the suite"
    assert suite.baselines and suite.settings
    specs = expand(suite)
    first = {(spec.entry, spec.compute): spec for spec in reversed(specs)}  # its first budget, draw and weights
    planned = [plan_run(suite, spec, data) for spec in first.values()]
    times = {step_kind(run.plan, stage): 0.1 for run in planned for stage in run.plan.stages}
    jobs = {run.spec: make_jobs(suite, run, times) for run in planned}
    judged = [run[-1].fingerprint for run in jobs.values()]
    assert len(set(judged)) == len(judged), "two rows of one table would be the same run"
    header = find_suite(name).read_text(encoding="utf-8")
    assert f"#   semisup bench {name}" in header


def test_the_published_budgets_of_cifar10_are_there() -> None:
    suite = load_suite("cifar10/budgets")
    assert suite.labels == [40, 250, 4000] and len(suite.draws) == 5
    spec = next(spec for spec in expand(suite) if spec.entry == "fixmatch")
    (stage,) = plan_run(suite, spec, data_of(suite)).plan.stages
    assert (stage.steps, stage.config.batch.labeled, stage.config.batch.unlabeled) == (2**20, 64, 448)


@pytest.mark.slow
def test_a_dry_run_of_cifar10_shows_runs_and_time(tmp_path: Path) -> None:
    """The real command, with an image file of CIFAR-10's shape and a network that a CPU can time."""
    draw = np.random.RandomState(0)
    images = draw.randint(0, 256, (6000, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(6000) % 10
    np.savez(
        tmp_path / "cifar.npz", x_train=images[100:], y_train=labels[100:], x_test=images[:100], y_test=labels[:100]
    )
    words = ["bench", "cifar10/budgets", "--dry-run", "--out", tmp_path / "out" / "x"]
    words += ["data={source: npz, path: %s}" % (tmp_path / "cifar.npz"), "model={name: cnn, width: 4}"]
    done = subprocess.run(
        [Path(sys.executable).with_name("semisup"), *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )
    assert done.returncode == 0, done.stderr
    assert "cifar10-budgets: " in done.stdout and " runs of " in done.stdout
    for entry in load_suite("cifar10/budgets").entries:
        assert f"\n{entry} " in done.stdout


@functools.cache
def suites() -> dict[str, tuple[str, Suite]]:
    """The shipped suites and their names, by the name of their results' folder."""
    return {suite.name: (name, suite) for name in shipped_suites() for suite in [load_suite(name)]}


def not_recorded(name: str) -> set[str]:
    """What a line of the suite's file says the results lack: entries that it got since, and initializations."""
    lines = re.findall(r"^# Not recorded yet: (.*)$", find_suite(name).read_text(encoding="utf-8"), re.M)
    return {word for line in lines for word in line.split(", ")}


RESULTS = sorted(path.name for path in (ROOT / "benchmarks" / "results").glob("*/"))


@pytest.mark.parametrize("name", RESULTS)
def test_committed_results_are_whole_and_of_their_suite(name: str) -> None:
    folder = ROOT / "benchmarks" / "results" / name
    shipped, suite = suites()[name]
    rows = read_rows(folder / "runs.csv")
    assert {row.entry for row in rows} <= set(suite.entries)
    found = {(row.entry, row.labels, row.draw, row.init, row.compute) for row in rows}
    pending = not_recorded(shipped)
    assert pending <= {*suite.entries, *(f"init {init}" for init in suite.inits)}
    runs = [spec for spec in expand(suite) if not pending & {spec.entry, f"init {spec.init}"}]
    wanted = {(c.entry, str(c.labels), c.draw, c.init, c.compute.text) for c in runs}
    assert found == wanted, "every run is listed, the failed ones too"
    splits: dict[tuple[str, int], set[str]] = {}
    for row in rows:
        splits.setdefault((row.labels, row.draw), set()).add(row.split_hash)
    assert all(len(hashes) == 1 for hashes in splits.values()), "not the same labels for every method"
