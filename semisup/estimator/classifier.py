"""A recipe behind scikit-learn's interface: fit on arrays with -1 for unlabeled, predict, transform."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from semisup.data import ImageData
from semisup.data.table import is_label
from semisup.errors import SemisupError
from semisup.estimator.pixels import ImageShape, check_scale, folded, pixel_range, scaled, squares
from semisup.estimator.recipes import Named, RecipeLike, plan_of, recipe_of
from semisup.estimator.settings import check_settings
from semisup.pipeline.execute import execute
from semisup.pipeline.plan import Plan
from semisup.stages import Artifact, load_predictor

__all__ = ["SemiSupervisedClassifier"]


class SemiSupervisedClassifier(  # scikit-learn has no types
    ClassNamePrefixFeaturesOutMixin,  # type: ignore[misc]
    TransformerMixin,  # type: ignore[misc]
    ClassifierMixin,  # type: ignore[misc]
    BaseEstimator,  # type: ignore[misc]
):
    """Learn to classify images of which few have a label: a recipe, or one method, as an estimator.

    The same settings give the same numbers as `semisup run`.

    Args:
        recipe: the name of a shipped recipe, a file, a mapping with a file's keys or a loaded recipe; its `data` is not
            read. None: one stage of `method` with adamw.
        method: name of a method, or {name: ..., its options}; None: fixmatch. Not together with a recipe.
        backbone: name of a network, or {name: ..., its options}; None: the recipe's, else cnn.
        max_steps: the most optimizer steps of each stage; None: the recipe's own, else 1,000.
        image_shape: of flat vectors, (height, width) or (height, width, 3); "square": they are no images, and are laid
            into the smallest square that holds them. None: X has images.
        size: side that the images are scaled to, pixels, 8 to 518; None: as they are. The center square is taken.
        flip: may images be mirrored left to right.
        overrides: `key=value` words laid over the recipe, e.g. "stages.train.optimizer.lr=0.001".
        random_state: an integer is the recipe's seed; None: the recipe's own, else 0.
        device: auto, cpu, cuda or mps; None: the recipe's own.

    Attributes:
        classes_: the classes in the order of the probabilities.
        predictor_: the trained network, see `semisup.stages.Predictor`.
        pixel_range_: the numbers that became black and white: 0 and 255 of bytes, else the smallest and the largest.
        metrics_: stage -> what was measured of it.
        n_features_in_: length of the vectors, or height of the images.
    """

    def __init__(
        self,
        recipe: RecipeLike | None = None,
        *,
        method: Named | None = None,
        backbone: Named | None = None,
        max_steps: int | None = None,
        image_shape: ImageShape = None,
        size: int | None = None,
        flip: bool = False,
        overrides: Sequence[str] = (),
        random_state: int | np.random.RandomState | None = None,
        device: str | None = None,
    ) -> None:
        self.recipe = recipe
        self.method = method
        self.backbone = backbone
        self.max_steps = max_steps
        self.image_shape = image_shape
        self.size = size
        self.flip = flip
        self.overrides = overrides
        self.random_state = random_state
        self.device = device

    def fit(self, X: Any, y: Any) -> SemiSupervisedClassifier:
        """Train on images, of which those with class -1 have no label.

        Args:
            X: images (n, h, w) or (n, h, w, c), c = 1 or 3, or flat vectors (n, d) with `image_shape`. Bytes are taken
                as they are; of other numbers the smallest becomes black and the largest white.
            y: (n,) classes, numbers or text; -1: unlabeled.

        Raises:
            SemisupError: wrong parameters, shapes or classes. It is a ValueError.
        """
        check_settings(self.get_params(deep=False))
        X, y = validate_data(self, X, _as_given(y), allow_nd=True, ensure_min_samples=2, **_READING)
        self.classes_, labels = _classes(column_or_1d(y))
        laid = folded(X, self.image_shape)
        self.pixel_range_ = pixel_range(X)
        images = squares(scaled(laid, *self.pixel_range_), self.size)
        recipe = recipe_of(self.recipe, self.method, self.backbone, list(self.overrides))
        data = _data(images, labels, [str(name) for name in self.classes_.tolist()], flip=self.flip)
        plan = plan_of(recipe, data, max_steps=self.max_steps, seed=self._seed(), device=self.device)
        # The caller's own random numbers go on as if nothing had happened.
        with TemporaryDirectory(prefix="semisup-") as folder, torch.random.fork_rng(devices=[]):
            artifacts = _executed(plan, Path(folder))
            last = plan.stages[-1].name
            self.predictor_ = load_predictor(artifacts[last].folder, plan.device)
        self.metrics_ = {name: artifact.metrics for name, artifact in artifacts.items()}
        self._n_features_out = int(self.predictor_.embed(images[:1]).shape[1])
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float32]:
        """Return the classes' probabilities, (n, classes), in the order of `classes_`."""
        images = self._images(X)
        return self.predictor_.predict_proba(images)

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the most probable class of every image, (n,)."""
        best = self.predict_proba(X).argmax(1)
        found: NDArray[Any] = self.classes_[best]
        return found

    def transform(self, X: Any) -> NDArray[np.float32]:
        """Return features, (n, features): what the classifier's last layer sees."""
        images = self._images(X)
        return self.predictor_.embed(images)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the accuracy on the images that have a label; those with class -1 are left out."""
        y = np.asarray(_as_given(y))
        known = ~_unlabeled(y)
        weights = None if sample_weight is None else np.asarray(sample_weight)[known]
        rows = np.flatnonzero(known)
        X = X.iloc[rows] if hasattr(X, "iloc") else np.asarray(X)[rows]
        return float(super().score(X, y[known], weights))

    def _images(self, X: Any) -> NDArray[np.uint8]:
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, allow_nd=True, **_READING)
        laid = folded(X, self.image_shape)
        check_scale(laid, *self.pixel_range_)
        images = scaled(laid, *self.pixel_range_)
        return squares(images, self.predictor_.image_size)

    def _seed(self) -> int | None:
        if self.random_state is None or isinstance(self.random_state, Integral):
            return None if self.random_state is None else int(self.random_state)
        return int(check_random_state(self.random_state).randint(2**31))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = self.image_shape is None
        tags.input_tags.two_d_array = self.image_shape is not None
        tags.transformer_tags.preserves_dtype = []  # float32, whatever comes in
        return tags


_MIXED = "y: classes must be all numbers or all text; -1 is unlabeled"
_READING: dict[str, Any] = {"dtype": "numeric", "order": "C"}


def _as_given(y: Any) -> Any:
    """Return a list of text and numbers as an array of both, of which numpy would make text, -1 too.

    Raises:
        SemisupError: one of several objects is neither, such as None and pandas' NA, which scikit-learn cannot compare.
    """
    mixed = isinstance(y, list | tuple) and len({isinstance(value, str) for value in y}) > 1
    y = np.array(y, object) if mixed else y
    values = getattr(y, "values", y)  # of a pandas Series
    objects = np.asarray(values).ravel().tolist() if getattr(values, "dtype", "") in (object, "string") else []
    if not all(isinstance(value, str | Real) for value in objects):
        raise SemisupError(_MIXED)
    return y


def _unlabeled(y: NDArray[Any]) -> NDArray[np.bool_]:
    """Tell which classes are -1, in an array of numbers or of objects.

    Raises:
        SemisupError: one is a text such as "-1" or "nan", of which nobody knows whether it is a class.
    """
    values = y.tolist()
    doubtful = [value for value in values if isinstance(value, str) and not is_label(value)]
    if doubtful:
        raise SemisupError(
            f"y: has '{doubtful[0]}' as text; unlabeled is the number -1, next to text in an array of objects"
        )
    return np.array([isinstance(value, Real) and value == -1 for value in values], bool)


def _classes(y: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the classes, sorted, and each image's place among them; -1 where it has none.

    Raises:
        SemisupError: fewer than two classes.
    """
    known = ~_unlabeled(y)
    named = y[known]
    if len({isinstance(value, str) for value in named.tolist()}) > 1:
        raise SemisupError(_MIXED)
    check_classification_targets(named)
    classes, places = np.unique(named, return_inverse=True)
    if len(classes) < 2:
        raise SemisupError(f"y: needs labeled images of at least two classes, not {len(classes)}; -1 is unlabeled")
    labels = np.full(len(y), -1, np.int64)
    labels[known] = places
    return classes, labels


def _data(images: NDArray[np.uint8], labels: NDArray[np.int64], classes: list[str], *, flip: bool) -> ImageData:
    nothing = np.empty(0, np.int64)
    return ImageData("arrays", images, labels, images[:0], nothing, classes, flip)


def _executed(plan: Plan, folder: Path) -> dict[str, Artifact]:
    """Run every stage of a plan in a folder of its own below `folder`."""
    artifacts: dict[str, Artifact] = {}
    for stage in plan.stages:
        home = folder / stage.fingerprint
        home.mkdir()
        artifacts[stage.name], _ = execute(plan, stage, home, artifacts)
    return artifacts
