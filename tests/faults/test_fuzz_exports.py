"""What other programs may feed an exported file: it answers as torch does, or refuses; it never answers nonsense."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime.capi.onnxruntime_pybind11_state as runtime
import pytest

from semisup.stages.deployed import examples, facts_of, load_deployed
from semisup.stages.programs import Run, quantize, run_onnx, write_onnx
from tests.faults.fuzzing import outcomes_of, watched
from tests.stages.stages_small import run_stages, small_data, train_stage

OF_RUNTIME = (runtime.InvalidArgument, runtime.Fail, runtime.RuntimeException, runtime.NotImplemented)
REFUSALS = (*OF_RUNTIME, RuntimeError, TypeError)
"""What onnxruntime says of an input that does not fit, which is a Python error and no crash."""
TYPES = ("u1", "u1", "u1", "u1", "i1", "u2", "i4", "i8", "f2", "f4", "f8", "?", "c8", "U3", "O")
SIDES = (0, 1, 2, 3, 7, 8, 9, 40, 300)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run, Any]:
    """The same network in floats, in 8 bits, and in torch."""
    folder = tmp_path_factory.mktemp("export")
    stage = train_stage("supervised", stage={"ema": None, "steps": 2, "model": {"name": "cnn", "width": 4}})
    data = small_data(channels=3)
    home = run_stages({"s": stage}, data, folder)["s"].folder
    predictor, module = load_deployed(home)
    write_onnx(predictor, module, facts_of(home).metadata, examples(home), folder / "m.onnx")
    eight = quantize(folder / "m.onnx", data.x_train, {}, folder / "q.onnx")
    return run_onnx(folder / "m.onnx"), eight, module


def fed(draws: random.Random) -> Any:
    """Something that a program may take for images: mostly (n, h, w, 3) bytes, of any number and size."""
    shape = [draws.choice((0, 1, 1, 2, 5)), draws.choice(SIDES), draws.choice(SIDES), 3]
    if draws.random() < 0.2:
        shape[3] = draws.choice((0, 1, 2, 4))
    if draws.random() < 0.1:
        del shape[draws.randrange(4)]
    elif draws.random() < 0.1:
        shape.insert(draws.randrange(4), draws.choice((0, 1, 2)))
    kind = draws.choice(TYPES)
    if kind in ("U3", "O"):
        return np.full(shape, None if kind == "O" else "a", kind)
    values = np.random.default_rng(draws.randrange(2**32)).integers(0, 256, shape)
    found = values.astype(kind)
    if kind[0] == "f" and found.size:
        found.flat[draws.randrange(found.size)] = draws.choice((np.nan, np.inf, -np.inf))
    return found[:, ::-1] if found.ndim > 1 and draws.random() < 0.2 else found


def asked(run: Run, images: Any, classes: int) -> np.ndarray | None:
    """Return the probabilities that a file gives, compared with what they must be; None: it has refused."""
    try:
        probabilities, embeddings = run(images)
    except REFUSALS as error:
        assert str(error).strip()
        return None
    assert probabilities.shape == (len(images), classes) and len(embeddings) == len(images)
    if 0 in images.shape[1:3]:  # of an image without a pixel nothing can be asked but that nothing ends
        return None
    assert np.isfinite(probabilities).all() and np.isfinite(embeddings).all()
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-4)
    return probabilities


@pytest.mark.parametrize("cases", [30, pytest.param(1500, marks=pytest.mark.slow)])
def test_inputs(cases: int, exported: tuple[Run, Run, Any], tmp_path: Path) -> None:
    import torch

    floats, eight, module = exported
    draws, outcomes = random.Random(20261130), Counter[str]()
    classes = module.network.head.out_features
    for _ in range(cases):
        images = fed(draws)
        with watched(tmp_path, 200):
            found = asked(floats, images, classes)
            quantized = asked(eight, images, classes)
        assert (found is None) == (quantized is None)
        outcomes["refused" if found is None else "works"] += 1
        if found is not None:
            with torch.inference_mode():
                expected = module(torch.from_numpy(images.copy()))[0].numpy()
            np.testing.assert_allclose(found, expected, atol=1e-3)
    outcomes_of(outcomes)
