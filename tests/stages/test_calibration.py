"""A finished classifier is calibrated by the validation labels, and by nothing else."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from semisup.evaluate import classification_metrics, fit_temperature
from semisup.stages import Artifact, load_predictor
from tests.stages.stages_small import run_stages, small_data, train_stage

TRAIN, HELD = small_data(seed=0), small_data(n=40, seed=5)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """The same stage without validation images, and with 40."""
    found = {}
    for name, data in (
        ("without", TRAIN),
        ("with", dataclasses.replace(TRAIN, x_val=HELD.x_train, y_val=HELD.y_train)),
    ):
        folder = tmp_path_factory.mktemp(name)
        found[name] = run_stages({"s": train_stage("supervised", stage={"steps": 20})}, data, folder)["s"]
    return found


def test_the_temperature_is_that_of_the_validation_labels(done: dict[str, Artifact]) -> None:
    calibrated, raw = load_predictor(done["with"].folder), load_predictor(done["with"].folder, raw=True)
    log_probs = torch.from_numpy(np.log(raw.predict_proba(HELD.x_train)))
    y = torch.from_numpy(HELD.y_train)
    metrics = done["with"].metrics
    assert metrics["calibration/labels"] == 40
    assert calibrated.temperature == metrics["calibration/temperature"] == pytest.approx(fit_temperature(log_probs, y))
    assert calibrated.temperature != 1 and raw.temperature == 1
    assert metrics["calibration/nll_after"] < metrics["calibration/nll_before"]
    expected = (log_probs / calibrated.temperature).softmax(1).numpy()
    assert np.allclose(calibrated.predict_proba(HELD.x_train), expected, atol=1e-5)


def test_before_and_after_are_of_the_test_images(done: dict[str, Artifact]) -> None:
    y = torch.from_numpy(TRAIN.y_test)
    for raw, prefix in ((True, "test"), (False, "test_calibrated")):
        probs = load_predictor(done["with"].folder, raw=raw).predict_proba(TRAIN.x_test)
        expected = classification_metrics(torch.from_numpy(np.log(probs)), y, 3)
        for name in ("nll", "ece", "brier"):
            assert done["with"].metrics[f"{prefix}/{name}"] == pytest.approx(expected[name], abs=1e-5)
    assert (done["with"].folder / "reliability.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_is_claimed_without_validation_labels(done: dict[str, Artifact]) -> None:
    assert not [name for name in done["without"].metrics if "calibrat" in name]
    assert "temperature" not in json.loads((done["without"].folder / "model.json").read_text())
    assert not (done["without"].folder / "reliability.png").exists()


def test_it_changes_no_prediction_and_no_other_number(done: dict[str, Artifact]) -> None:
    shared = {name: value for name, value in done["without"].metrics.items() if name.startswith("test")}
    assert {name: done["with"].metrics[name] for name in shared} == shared


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"temperature": 0.0}, "temperature: Input should be greater than"),
        ({"temperature": 1e-320}, "temperature: Input should be greater than"),
        ({"temperature": 1e308}, "temperature: Input should be less than"),
        ({"temperature": float("nan")}, "temperature: Input should be"),
        ({"temperature": "x"}, "temperature: Input should be a valid number"),
        ({"classes": ["\ud800", *"123456789"]}, "classes.0: Value error, must be text"),
        ({"std": [1e-320]}, "gives NaN or infinity for 2 of 2 images"),
    ],
)
def test_a_description_that_is_none_is_refused(
    done: dict[str, Artifact], tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    from semisup.errors import SemisupError
    from semisup.stages.artifact import finish

    record = done["with"].record
    for name in record["files"]:
        (tmp_path / name).write_bytes((done["with"].folder / name).read_bytes())
    description = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(description | changed))
    rest = {key: value for key, value in record.items() if key != "digest"}
    finish(tmp_path, list(record["files"]), rest)
    with pytest.raises(SemisupError, match=said):
        load_predictor(tmp_path).predict_proba(np.ones((2, 8, 8, 1), np.uint8))
