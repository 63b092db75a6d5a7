"""A model of MLflow is served by MLflow itself, here and where this package has never been installed."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import venv
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packaging.requirements import Requirement

from semisup.stages import load_predictor
from semisup.tracking.packages import read_classes, read_images, save_package
from semisup.tracking.wheel import WHEEL, write_wheel
from tests.stages.stages_small import run_stages, small_data, train_stage


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_stages({"s": train_stage("supervised")}, small_data(), tmp_path_factory.mktemp("run"))["s"].folder


@pytest.fixture(scope="module")
def package(stage: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as it is sent to MLflow."""
    folder = tmp_path_factory.mktemp("package") / "model"
    with warnings.catch_warnings():  # MLflow's own, about its own modules
        warnings.simplefilter("ignore")
        save_package(folder, stage, read_images(stage / "example.npy"), read_classes(stage), "m-0", "0" * 32)
    return folder


@contextlib.contextmanager
def serving(python: Path, package: Path, cwd: Path) -> Iterator[str]:
    """``mlflow models serve`` on loopback; gives its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(python), "-m", "mlflow", "models", "serve", "-m", str(package), "-h", "127.0.0.1", "-p", str(port)]
    extra = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_TRACKING_URI": f"sqlite:///{cwd}/none.db"}
    programs = cwd / "bin"  # an environment that borrows its packages has no program of theirs
    programs.mkdir()
    (programs / "uvicorn").write_text(f'#!/bin/sh\nexec "{python}" -m uvicorn "$@"\n')
    (programs / "uvicorn").chmod(0o755)
    extra["PATH"] = f"{programs}:{python.parent}:{os.environ['PATH']}"
    log = cwd / "serve.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--env-manager", "local"],
            cwd=cwd,
            env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | extra,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        url, end = f"http://127.0.0.1:{port}", time.monotonic() + 240
        while True:
            assert process.poll() is None and time.monotonic() < end, log.read_text()[-3000:]
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/ping", timeout=5):
                break
            time.sleep(0.3)
        yield url
    finally:
        with contextlib.suppress(ProcessLookupError):  # it may have ended by itself
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)


def asked(url: str, images: np.ndarray) -> list[dict[str, float]]:
    body = json.dumps({"inputs": images.tolist()}).encode()
    request = urllib.request.Request(f"{url}/invocations", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: list[dict[str, float]] = json.load(answer)["predictions"]
    return found


def check(answers: list[dict[str, float]], stage: Path, images: np.ndarray) -> None:
    predictor = load_predictor(stage)
    assert [list(answer) for answer in answers] == [predictor.classes] * len(images)
    expected = predictor.predict_proba(images)
    np.testing.assert_allclose([list(answer.values()) for answer in answers], expected, rtol=1e-4)


@pytest.mark.slow
def test_mlflow_serves_it_in_this_environment(stage: Path, package: Path, tmp_path: Path) -> None:
    images = small_data(n=5, seed=3).x_train
    with serving(Path(sys.executable), package, tmp_path) as url:
        check(asked(url, images), stage, images)


@pytest.mark.slow
def test_the_wheel_inside_is_enough_elsewhere(stage: Path, package: Path, tmp_path: Path) -> None:
    """A new environment that has the packages of this one, but not semisup, which comes from the model alone."""
    venv.create(tmp_path / "new", with_pip=True)
    python = tmp_path / "new" / "bin" / "python"
    new = next((tmp_path / "new" / "lib").glob("python*/site-packages"))
    shared = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (new / "shared.pth").write_text("\n".join(shared) + "\n")
    words = ["-m", "pip", "install", "-q", "--no-index", "--no-deps", "--ignore-installed", f"wheels/{WHEEL}"]
    subprocess.run([python, *words], cwd=package, check=True)
    where = [python, "-c", "import semisup; print(semisup.__file__)"]
    told = subprocess.run(where, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert told.startswith(str(new))
    images = small_data(n=2, seed=4).x_train
    with serving(python, package, tmp_path) as url:
        check(asked(url, images), stage, images)


def test_the_requirements_can_be_installed(package: Path) -> None:
    """Every line is a file of the model or a package that an index has; the wheel asks for the rest, without extras."""
    lines = (package / "requirements.txt").read_text().splitlines()
    assert f"wheels/{WHEEL}" in lines and (package / "wheels" / WHEEL).is_file()
    assert all(line.startswith(("wheels/", "mlflow")) for line in lines)
    with zipfile.ZipFile(package / "wheels" / WHEEL) as archive:
        metadata = archive.read(f"{WHEEL.removesuffix('-py3-none-any.whl')}.dist-info/METADATA").decode()
    wanted = [line.removeprefix("Requires-Dist: ") for line in metadata.splitlines() if line.startswith("Requires")]
    assert any(Requirement(one).name == "torch" for one in wanted)
    for one in map(Requirement, wanted):
        assert one.marker is None and importlib.metadata.version(one.name) in one.specifier


def test_the_wheel_is_the_same_each_time_and_complete(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_wheel(tmp_path / name)
    assert (tmp_path / "a" / WHEEL).read_bytes() == (tmp_path / "b" / WHEEL).read_bytes()
    names = set(zipfile.ZipFile(tmp_path / "a" / WHEEL).namelist())
    assert {"semisup/py.typed", "semisup/stages/predictor.py"} <= names
    assert [name for name in names if name.endswith(".j2")] and not [name for name in names if "__pycache__" in name]


def test_nothing_of_this_machine_travels(package: Path, stage: Path) -> None:
    content: dict[str, Any] = {path.name: path.read_bytes() for path in package.rglob("*") if path.is_file()}
    here = [str(stage.parent).encode(), str(Path(sys.prefix)).encode()]
    assert not [name for name, data in content.items() if name != WHEEL and any(word in data for word in here)]
