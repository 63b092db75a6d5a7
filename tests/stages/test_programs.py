"""ONNX and torch.export's files: every backbone gives what torch gives, for any number of images of any size."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from semisup.data.decode import Fit
from semisup.data.inputs import images_of
from semisup.errors import SemisupError
from semisup.records import read_record
from semisup.stages import deployed, programs
from semisup.stages.artifact import finish
from semisup.stages.deployed import examples, facts_of, load_deployed
from semisup.stages.predictor import EXAMPLES, Predictor
from semisup.stages.squares import square
from tests.stages.stages_small import run_stages, small_data, train_stage

slow = pytest.mark.slow  # torch takes some seconds to export one


def trained(model: dict[str, Any], folder: Path, channels: int) -> Path:
    stages = {"s": train_stage("supervised", stage={"ema": None, "steps": 2, "model": model})}
    return run_stages(stages, small_data(channels=channels), folder)["s"].folder


@pytest.mark.parametrize(
    ("model", "channels"),
    [
        ({"name": "cnn", "width": 4}, 1),
        pytest.param({"name": "wrn", "depth": 10, "width": 1}, 3, marks=slow),
        pytest.param({"name": "resnet50", "width": 0.25, "sk": True}, 3, marks=slow),
        pytest.param({"name": "vit", "width": 64, "depth": 3, "heads": 2, "patch": 4}, 1, marks=slow),
        pytest.param({"name": "torchvision/mobilenet_v3_small", "resize": 32}, 1, marks=slow),
        pytest.param({"name": "timm/efficientnet_lite0", "resize": 32}, 3, marks=slow),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_every_backbone_is_exported(model: dict[str, Any], channels: int, tmp_path: Path) -> None:
    folder, file = trained(model, tmp_path / "run", channels), tmp_path / "m.onnx"
    predictor, module = load_deployed(folder)
    worst = programs.write_onnx(predictor, module, facts_of(folder).metadata, examples(folder), file)
    assert max(worst.values()) < 1e-4
    run = programs.run_onnx(file)
    images = small_data(n=7, channels=channels, seed=9).x_train
    probs, embeddings = run(images)
    assert np.allclose(probs, predictor.predict_proba(images), atol=1e-4)
    assert np.allclose(embeddings, predictor.embed(images), rtol=1e-4, atol=1e-4)
    quantized = programs.quantize(file, small_data(channels=channels).x_train, {}, tmp_path / "q.onnx")
    assert np.abs(quantized(images)[0] - probs).max() < 0.4  # of networks that two steps have trained
    assert [node.op_type for node in onnx.load(tmp_path / "q.onnx").graph.node].count("QuantizeLinear") > 2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained({"name": "cnn", "width": 4}, tmp_path_factory.mktemp("gray") / "run", 1)


SHAPES = ((37, 90, 8), (37, 30, 16), (20, 20, 20), (9, 12, 32), (90, 3, 16), (5, 90, 24), (1, 90, 8), (32, 17, 32))


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("channels", [1, 3])
def test_scaling_is_pillows_but_for_rounding(fit: Fit, channels: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (90, 90, channels), dtype=np.uint8)
    noise[:, :, 0] //= 2  # so that channels have medians of their own
    for height, width, size in SHAPES:
        image = noise[:height, :width]
        found = square(torch.from_numpy(image[None]), size, fit)[0].permute(1, 2, 0).numpy()
        expected = images_of(image, size, channels, fit)[0].astype(float)
        assert np.abs(found - expected).max() <= 1.0, (height, width, size)
        assert (height, width) != (size, size) or np.array_equal(found, expected)


NO_PIXELS = ((1, 0, 0, 1), (2, 0, 8, 1), (1, 8, 0, 1))


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_of_an_image_of_no_pixels_no_square_is_made(fit: Fit) -> None:
    for shape in NO_PIXELS:
        with pytest.raises(IndexError):
            square(torch.zeros(shape, dtype=torch.uint8), 8, fit)


def test_a_file_refuses_an_image_of_no_pixels(model: Path, tmp_path: Path) -> None:
    predictor, module = load_deployed(model)
    programs.write_onnx(predictor, module, {}, examples(model), tmp_path / "m.onnx")
    small = programs.quantize(tmp_path / "m.onnx", small_data().x_train, {}, tmp_path / "q.onnx")
    for run in (programs.run_onnx(tmp_path / "m.onnx"), small):
        for shape in NO_PIXELS:
            with pytest.raises(Exception, match="out of data bounds"):
                run(np.zeros(shape, np.uint8))
        assert run(np.zeros((0, 8, 8, 1), np.uint8))[0].shape == (0, 3)


@slow
@pytest.mark.parametrize("fit", ["pad", "stretch"])
def test_a_file_makes_squares_as_training_did(fit: Fit, model: Path, tmp_path: Path) -> None:
    predictor, _ = load_deployed(model)
    predictor.fit = fit
    module, file = deployed.Deployed(predictor).eval(), tmp_path / "m.onnx"
    programs.write_onnx(predictor, module, {}, examples(model), file)
    run, noise = programs.run_onnx(file), np.random.default_rng(0).integers(0, 256, (2, 90, 90, 1), dtype=np.uint8)
    for height, width, _ in SHAPES[:-3]:
        images = np.ascontiguousarray(noise[:, :height, :width])
        assert np.allclose(run(images)[0], predictor.predict_proba(images), atol=0.01), (height, width)
    quantized = programs.quantize(file, small_data().x_train, {}, tmp_path / "q.onnx")
    assert np.abs(quantized(images)[0] - run(images)[0]).max() < 0.1


def test_eight_bits_see_in_a_picture_of_any_size_what_they_see_in_its_square(model: Path, tmp_path: Path) -> None:
    predictor, module = load_deployed(model)
    programs.write_onnx(predictor, module, {}, examples(model), tmp_path / "m.onnx")
    run = programs.quantize(tmp_path / "m.onnx", small_data().x_train, {}, tmp_path / "q.onnx")
    picture = np.kron(small_data(n=1, seed=9).x_train[0, ..., 0], np.ones((9, 9)))[:, :60, None].astype(np.uint8)
    large, squared = run(picture[None])[1], run(images_of(picture, 8, 1, predictor.fit))[1]
    assert np.abs(large - squared).max() < 0.1 * np.abs(squared).max()


@pytest.mark.parametrize("believed", [False, True], ids=["damaged", "recorded"])
def test_example_images_are_verified_and_are_images(believed: bool, model: Path, tmp_path: Path) -> None:
    """They were fed to the network as they came: an array of another shape was a traceback."""
    stage = tmp_path / "stage"
    shutil.copytree(model, stage)
    np.save(stage / EXAMPLES, np.zeros((3, 5)))
    if believed:  # by a record with the right sums
        record = read_record(stage)
        finish(stage, list(record["files"]), record)
    with pytest.raises(SemisupError, match="uint8 images" if believed else f"{EXAMPLES}: missing or damaged"):
        examples(stage)


def test_weights_have_seven_bits_so_that_no_sum_overflows(model: Path, tmp_path: Path) -> None:
    predictor, module = load_deployed(model)
    programs.write_onnx(predictor, module, {}, examples(model), tmp_path / "m.onnx")
    programs.quantize(tmp_path / "m.onnx", small_data().x_train, {}, tmp_path / "q.onnx")
    stored = [onnx.numpy_helper.to_array(weight) for weight in onnx.load(tmp_path / "q.onnx").graph.initializer]
    largest = [int(np.abs(array.astype(int)).max()) for array in stored if array.dtype == np.int8 and array.ndim > 1]
    assert largest and max(largest) <= 64


def test_pt2_gives_the_same_and_says_what_it_is(model: Path, tmp_path: Path) -> None:
    predictor, module = load_deployed(model)
    facts = facts_of(model)
    programs.write_pt2(predictor, module, facts.metadata, examples(model), tmp_path / "m.pt2")
    extra = {"metadata.json": ""}
    loaded = torch.export.load(tmp_path / "m.pt2", extra_files=extra).module()
    images = small_data(n=5, seed=9).x_train
    assert np.allclose(loaded(torch.from_numpy(images))[0].detach(), predictor.predict_proba(images), atol=1e-5)
    assert json.loads(extra["metadata.json"]) == facts.metadata


def test_the_facts(model: Path) -> None:
    found = facts_of(model).metadata
    assert json.loads(found["classes"]) == ["class 0", "class 1", "class 2"]
    assert found["data_hash"] == small_data().hash
    assert found["license"].startswith("trained from random weights")


def test_a_file_that_gives_something_else_gets_no_name(model: Path, tmp_path: Path) -> None:
    predictor, module = load_deployed(model)
    warm = Predictor(predictor.network, predictor.normalize, predictor.classes, 8, 1, temperature=0.1)
    with pytest.raises(SemisupError, match=r"m\.pt2: its probabilities differ from torch's"):
        programs.write_pt2(warm, module, {}, examples(model), tmp_path / "m.pt2")
    assert list(tmp_path.iterdir()) == []
