"""The estimator: the command line's numbers, scikit-learn's tools around it, what it refuses."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

import semisup
from semisup.data import load_data
from semisup.data.budget import draw_budget
from semisup.errors import SemisupError
from semisup.estimator import SemiSupervisedClassifier
from semisup.estimator.recipes import recipe_of
from semisup.stages import load_predictor
from tests.pipeline.pipeline_small import SMALL, small

TINY: dict[str, Any] = {"method": "supervised", "backbone": {"name": "cnn", "width": 2}, "max_steps": 2}


def images(n: int = 40) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Images as scikit-learn has them, (n, 8, 8) from 0 to 16."""
    found, labels = load_digits(return_X_y=True)
    return found[:n].reshape(-1, 8, 8), labels[:n]


def test_the_command_lines_numbers(tmp_path: Path) -> None:
    """`semisup run` draws the labels; the estimator is given the same ones, as floats of 0 to 16."""
    data = load_data(small().data)
    drawn = draw_budget(data.y_train, 40, 0, 10).index
    semisup.run(SMALL, out=tmp_path / "out", quiet=True)
    labels = np.full(len(data.y_train), -1)
    labels[drawn] = data.y_train[drawn]
    digits = (data.x_train.reshape(len(labels), 64) * (16 / 255)).round()
    found = SemiSupervisedClassifier(SMALL, image_shape=(8, 8)).fit(digits, labels)
    for asked in (data.x_test, data.x_train[:100]):
        flat = (asked.reshape(len(asked), 64) * (16 / 255)).round()
        expected = load_predictor(tmp_path / "out" / "student").predict_proba(asked)
        np.testing.assert_array_equal(found.predict_proba(flat), expected)
    other = SemiSupervisedClassifier(SMALL, image_shape=(8, 8), random_state=1).fit(digits, labels)
    assert (other.predict_proba(flat) != expected).any()


def test_scikit_learns_tools() -> None:
    X, y = images()
    steps = {"max_steps": np.arange(1, 3)}
    search = GridSearchCV(SemiSupervisedClassifier(**TINY), steps, cv=2, error_score="raise").fit(X, y)
    assert search.best_estimator_.predict(X).shape == (40,)
    piped = make_pipeline(FunctionTransformer(lambda x: x * 2), SemiSupervisedClassifier(**TINY))
    assert cross_val_score(piped, X, y, cv=2, error_score="raise").shape == (2,)
    again = clone(search.best_estimator_).fit(X, y)
    restored = pickle.loads(pickle.dumps(again))  # noqa: S301 - joblib does the same
    np.testing.assert_array_equal(restored.predict_proba(X), again.predict_proba(X))
    assert again.transform(X).shape == (40, len(again.get_feature_names_out()))


@pytest.mark.slow  # two processes that import torch
def test_parallel_processes() -> None:
    X, y = images(20)
    scores = cross_val_score(SemiSupervisedClassifier(**TINY), X, y, cv=2, n_jobs=2, error_score="raise")
    np.testing.assert_array_equal(scores, cross_val_score(SemiSupervisedClassifier(**TINY), X, y, cv=2))


def test_classes_may_be_text_and_unlabeled_ones_are_not_scored() -> None:
    X, y = images()
    names = np.array(["no", "yes"], object)[y % 2]
    names[:5] = -1
    found = SemiSupervisedClassifier(**TINY).fit(X, names)
    assert found.classes_.tolist() == ["no", "yes"]
    assert SemiSupervisedClassifier(**TINY).fit(X, names.tolist()).classes_.tolist() == ["no", "yes"]  # numpy: all text
    right = found.predict(X) == names
    assert found.score(X, names) == pytest.approx(right[5:].mean())


def test_bytes_are_taken_as_they_are_and_the_rest_by_its_range() -> None:
    X, y = images()
    dark = (X * 2).astype(np.uint8)
    assert SemiSupervisedClassifier(**TINY).fit(dark, y).pixel_range_ == (0, 255)
    found = SemiSupervisedClassifier(**TINY).fit(X, y)
    assert found.pixel_range_ == (0, 16)
    np.testing.assert_array_equal(found.predict_proba(X * 3), found.predict_proba(np.minimum(X * 3, 16)))


def test_numbers_of_another_scale_are_refused() -> None:
    """They would all be black, or all white, and of one class."""
    X, y = images()
    of_bytes = SemiSupervisedClassifier(**TINY).fit((X * 15).astype(np.uint8), y)
    with pytest.raises(SemisupError, match=r"^X: has fractions up to 1, and fit had 0 to 255 for black to white; give"):
        of_bytes.predict(X / 16)
    assert len(of_bytes.predict(X * 0.0)) == len(X), "black is black on any scale"
    of_fractions = SemiSupervisedClassifier(**TINY).fit(X / 16, y)
    with pytest.raises(SemisupError, match=r"^X: has numbers up to 240, and fit had 0 to 1 for black to white; give"):
        of_fractions.transform((X * 15).astype(np.uint8))


def test_a_backbone_is_what_the_recipes_references_name(tmp_path: Path) -> None:
    recipe = {
        "name": "x",
        "model": {"name": "wrn", "depth": 10, "width": 1},
        "stages": {
            "a": {"method": {"name": "supervised"}, "steps": 1},
            "b": {"model": {"name": "${model.name}", "width": 2}, "method": {"name": "supervised"}, "steps": 1},
        },
    }
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(recipe))
    for given in (recipe, file):
        found = recipe_of(given, None, "cnn", ["stages.a.steps=2"])
        assert (found.model, found.stages["b"].model) == ({"name": "cnn"}, {"name": "cnn", "width": 2})
        assert found.stages["a"].steps == 2


def test_colors_and_sizes() -> None:
    X, y = images(20)
    color = np.repeat(X[..., None], 3, axis=3)
    wide = np.pad(color, ((0, 0), (0, 0), (2, 2), (0, 0)))
    found = SemiSupervisedClassifier(**TINY, size=12).fit(wide, y)
    assert (found.predictor_.image_size, found.predictor_.channels) == (12, 3)
    flat = SemiSupervisedClassifier(**TINY, image_shape=(8, 8, 3)).fit(color.reshape(20, -1), y)
    np.testing.assert_array_equal(
        flat.predict_proba(color.reshape(20, -1)), SemiSupervisedClassifier(**TINY).fit(color, y).predict_proba(color)
    )


def test_the_callers_random_numbers_go_on() -> None:
    X, y = images(20)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    SemiSupervisedClassifier(**TINY).fit(X, y)
    torch.testing.assert_close(torch.rand(2), expected)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"image_shape": (4, 4)}, "image_shape"),
        ({"image_shape": "square"}, "image_shape"),
        ({"recipe": "digits/quickstart", "method": "fixmatch"}, "method"),
        ({"method": "fixmach"}, "did you mean 'fixmatch'"),
        ({"recipe": {"name": "x", "stages": {}}}, "at least one stage"),
        ({"size": 7}, "size: must be 8 to 518 or None, not 7"),
        ({"size": "16", "max_steps": 0}, "(?s)size: .*max_steps: must be 1 or more, or None, not 0"),
        ({"max_steps": True}, "max_steps"),
        ({"recipe": 3}, "recipe: must be a name"),
        ({"method": 3}, "method: must be a name"),
        ({"overrides": [3]}, "overrides: must be a list"),
        ({"flip": "x"}, "flip: must be True or False"),
        ({"device": 3}, "device: must be auto"),
        ({"random_state": -1}, "random_state: must be 0 to 4294967295, a generator or None, not -1"),
        ({"random_state": 2**32}, "random_state: must be 0"),
        ({"image_shape": 8}, "image_shape: must be"),
    ],
)
def test_wrong_parameters(parameters: dict[str, Any], words: str) -> None:
    X, y = images(20)
    with pytest.raises(SemisupError, match=words):
        SemiSupervisedClassifier(**parameters).fit(X, y)


def test_wrong_data() -> None:
    X, y = images(20)
    with pytest.raises(SemisupError, match="image_shape: missing"):
        SemiSupervisedClassifier(**TINY).fit(X.reshape(20, 64), y)
    with pytest.raises(SemisupError, match="at least two classes"):
        SemiSupervisedClassifier(**TINY).fit(X, np.where(y == 1, 1, -1))
    encoder = {"name": "x", "stages": {"a": {"method": {"name": "simclr"}, "steps": 1}}}
    with pytest.raises(SemisupError, match="'a', leaves no classifier"):
        SemiSupervisedClassifier(encoder).fit(X, y)
    for text in ("-1", "", "nan", "None"):  # numpy makes them of np.array(["a", np.nan])
        with pytest.raises(SemisupError, match=f"y: has '{text}' as text; unlabeled is the number -1"):
            SemiSupervisedClassifier(**TINY).fit(X, np.array(["a", "b", text, "a"] * 5))
    for none in (None, 1, pd.NA):
        with pytest.raises(SemisupError, match="all numbers or all text"):
            SemiSupervisedClassifier(**TINY).fit(X, np.array(["a", none] * 10, object))
    for shape in ((8.0, 8.0), (-8, -8), ("a", "b")):
        with pytest.raises(SemisupError, match="image_shape: must be"):
            SemiSupervisedClassifier(**TINY, image_shape=shape).fit(X.reshape(20, 64), y)
    far = X.copy()
    far[0, 0, :2] = 1.7e308, -1.7e308
    with pytest.raises(SemisupError, match="too far apart"):
        SemiSupervisedClassifier(**TINY).fit(far, y)
    with pytest.raises(SemisupError, match="X: must be"):
        SemiSupervisedClassifier(**TINY).fit(np.zeros((20, 0, 8)), y)
