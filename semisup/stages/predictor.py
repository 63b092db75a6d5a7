"""The network of a finished stage as a plain function: uint8 images in, class probabilities out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from torch import Tensor, nn

from semisup.augment import Normalize, to_float
from semisup.data import take
from semisup.data.decode import Fit
from semisup.data.inputs import Images, images_of
from semisup.engine import resolve_device
from semisup.errors import SemisupError, raise_all
from semisup.evaluate import probabilities
from semisup.files import write_atomically
from semisup.models import BACKBONES, Classifier, load_into
from semisup.models.weights import read_shapes, save_weights
from semisup.plugins import load_plugins, package_of
from semisup.records import MODEL, WritableText, checked, read_json, read_record, require_model, verify
from semisup.stages.networks import Network, wanted_weights
from semisup.text import printable

__all__ = [
    "EXAMPLES",
    "MODEL",
    "WEIGHTS",
    "Predictor",
    "apply_network",
    "describe",
    "load_features",
    "load_headless",
    "load_network",
    "load_predictor",
    "read_network",
    "save_examples",
    "save_predictor",
]

WEIGHTS, EXAMPLES = "model.safetensors", "example.npy"


class _Spec(BaseModel):
    """What must hold of a network's description besides what `ModelSpec` checks."""

    model_config = ConfigDict(strict=True, extra="allow")

    name: str
    options: dict[str, Any]
    in_channels: Literal[1, 3]
    image_size: Annotated[int, Field(ge=8, le=2**15)]
    num_classes: Annotated[int, Field(ge=1, le=2**31)]


class _Description(BaseModel):
    """The keys of `model.json`."""

    model_config = ConfigDict(strict=True, extra="allow")

    kind: Literal["classifier", "encoder"]
    spec: _Spec
    projector: list[Annotated[int, Field(ge=1)]]
    mean: list[Annotated[float, Field(allow_inf_nan=False)]]
    std: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]]
    classes: list[WritableText]
    temperature: Annotated[float, Field(ge=1e-3, le=1e3)] = 1.0
    """That the logits are divided by; models of before there was such a thing have none."""
    fit: Fit = "crop"
    package: str | None = None
    """That its network comes from, if that is not semisup."""


_DESCRIPTION = TypeAdapter(_Description)


class Predictor:
    """A trained classifier with its preprocessing: images in, class probabilities or features out.

    Images may be given as paths, Pillow images or uint8 arrays of any size, one or several; they are read and scaled
    as in training. An array (N, H, W, C) of the network's own size goes in as it is.

    Args:
        network: the classifier, in eval mode.
        normalize: its input scaling.
        classes: names by class number.
        image_size: side of the square images it was trained on, in pixels.
        channels: 1 or 3.
        temperature: that its logits are divided by (`semisup.evaluate.fit_temperature`); 1: not calibrated.
        fit: how images that are no squares become some, as in training.

    Attributes:
        temperature: may be set, to 1 for what the network itself says; what is predicted never changes by it.
    """

    def __init__(
        self,
        network: Classifier,
        normalize: Normalize,
        classes: list[str],
        image_size: int,
        channels: int,
        temperature: float = 1.0,
        fit: Fit = "crop",
    ) -> None:
        self.network = network.eval()
        self.normalize = normalize
        self.classes = classes
        self.image_size = image_size
        self.channels = channels
        self.temperature = temperature
        self.fit = fit

    @property
    def classes_(self) -> list[str]:
        """The classes' names, in the order of the probabilities, under the name that scikit-learn gives them."""
        return self.classes

    def predict(self, images: Images) -> np.ndarray:
        """Return the same as `predict_proba`."""
        return self.predict_proba(images)

    def predict_proba(self, images: Images, *, mirror: bool = False) -> np.ndarray:
        """Return class probabilities (N, num_classes), float32.

        Args:
            images: see the class.
            mirror: give the mean over each image and its mirror image.

        Raises:
            SemisupError: files that cannot be read, or arrays of another type or shape.
        """
        return self._run(images, lambda x: probabilities(self.network(x), self.temperature), mirror=mirror)

    def embed(self, images: Images, *, mirror: bool = False) -> np.ndarray:
        """Return features (N, num_features), float32: what the classifier's last layer sees.

        Args:
            images: see the class.
            mirror: give the mean over each image and its mirror image.

        Raises:
            SemisupError: files that cannot be read, or arrays of another type or shape.
        """
        return self._run(images, self.network.features, mirror=mirror)

    def predict_and_embed(self, images: Images, *, mirror: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Return what `predict_proba` and `embed` do, from one pass through the network."""

        def both(inputs: Tensor) -> Tensor:
            features = self.network.features(inputs)
            return torch.cat([probabilities(self.network.head(features), self.temperature), features.float()], dim=1)

        found = self._run(images, both, mirror=mirror)
        probs, features = np.split(found, [len(self.classes)], axis=1)
        return probs, features

    def _run(self, images: Images, function: Callable[[Tensor], Tensor], *, mirror: bool) -> np.ndarray:
        """Apply a function of network inputs to whatever a person hands over."""
        ready = images_of(images, self.image_size, self.channels, self.fit)
        return apply_network(function, self.normalize, ready, mirror=mirror)


def apply_network(
    function: Callable[[Tensor], Tensor], normalize: Normalize, images: np.ndarray, *, mirror: bool = False
) -> np.ndarray:
    """Apply a function of network inputs to images, some at a time, without gradients.

    Args:
        function: inputs (n, C, size, size) to values (n, D).
        normalize: the input scaling, on the device where the network is.
        images: (N, size, size, C) uint8.
        mirror: give the mean over each image and its mirror image.

    Returns:
        (N, D) float32.

    Raises:
        SemisupError: a row is not finite.
    """
    device = normalize.mean.device
    parts = []
    with torch.inference_mode():
        for part in _chunks(images):
            inputs = normalize(to_float(torch.from_numpy(part).to(device)))
            values = function(inputs).float()
            parts.append((values + function(inputs.flip(3)).float()) / 2 if mirror else values)
    return _finite(torch.cat(parts).cpu().numpy())


def _finite(values: np.ndarray) -> np.ndarray:
    """Return what a network gives, which must be numbers.

    Raises:
        SemisupError: a row of them is not.
    """
    bad = int((~np.isfinite(values)).any(1).sum())
    if bad:
        raise SemisupError(
            f"the network gives NaN or infinity for {bad:,} of {len(values):,} images: its weights, or mean and std in "
            "model.json, are damaged"
        )
    return values


def _chunks(images: np.ndarray, size: int = 512) -> Iterator[np.ndarray]:
    # Copies: the caller's array may be read-only, or a view with negative strides; torch takes neither.
    return (take(images, slice(start, start + size)) for start in range(0, max(len(images), 1), size))


def save_predictor(
    folder: Path,
    predictor: nn.Module,
    network: Network,
    statistics: tuple[list[float], list[float]],
    classes: list[str],
    *,
    temperature: float = 1.0,
    fit: Fit = "crop",
) -> list[str]:
    """Write weights and description of a stage's predictor; returns the names of the files."""
    save_weights(folder / WEIGHTS, predictor.state_dict())
    mean, std = statistics
    description = {**network.to_json(), "mean": mean, "std": std, "classes": classes}
    if temperature != 1.0:
        description["temperature"] = temperature
    if fit != "crop":
        description["fit"] = fit
    if (package := package_of(network.spec.name)) is not None:
        description["package"] = package
    write_atomically(folder / MODEL, (json.dumps(description, indent=2) + "\n").encode())
    return [MODEL, WEIGHTS]


def save_examples(folder: Path, images: NDArray[np.uint8]) -> str:
    """Write the first two of these images, to try the network with; returns the name of the file."""
    np.save(folder / EXAMPLES, take(images, slice(2)))
    return EXAMPLES


def describe(folder: Path) -> dict[str, Any]:
    """Read the description of a stage's network, once it and the weights are found to be what the stage has written.

    Raises:
        SemisupError: there is none, or it is none that this version writes.
    """
    path = folder / MODEL
    require_model(folder)
    load_plugins()
    verify(folder, read_record(folder), (MODEL, WEIGHTS))
    description: dict[str, Any] = read_json(path)
    found = checked(_DESCRIPTION, description, f"{path}: not a model's description")
    lengths = {"mean": found.spec.in_channels, "std": found.spec.in_channels, "classes": found.spec.num_classes}
    problems = [f"{key}: must have {n} items" for key, n in lengths.items() if len(getattr(found, key)) != n]
    raise_all(problems, f"{path}: not a model's description")
    if found.package is not None and found.spec.name not in BACKBONES:
        raise SemisupError(
            f"{path}: its network '{found.spec.name}' is one of the package {found.package}, which is not installed "
            "here, or has not registered it (semisup.register)"
        )
    return description | {"classes": [printable(name) for name in found.classes]}


def read_network(folder: Path) -> Network:
    """Describe the network of a finished stage.

    Raises:
        SemisupError: no model there.
    """
    return Network.from_json(describe(folder))


def load_network(folder: Path, device: torch.device) -> Classifier:
    """Return the trained classifier of a finished stage, in eval mode.

    Raises:
        SemisupError: no model there, or one that classifies nothing.
    """
    network = Network.from_json(describe(folder))
    if network.kind != "classifier":
        raise SemisupError(f"{folder}: an encoder without a classifier; fine-tune it first")
    module = network.build_classifier()
    load_into(module, folder / WEIGHTS)
    return module.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload, no-any-return]


def load_features(folder: Path, device: torch.device) -> nn.Module:
    """Return the network of a finished stage, in eval mode, up to its features.

    Those are what a classifier's head sees of an image as it stands (`average_turns` is not for features), and of an
    encoder what its backbone gives.

    Raises:
        SemisupError: no model there.
    """
    module = load_headless(folder, device)
    return nn.Sequential(module.backbone, module.neck).eval()


def load_headless(folder: Path, device: torch.device) -> Classifier:
    """Return the network of a finished stage, in eval mode, to ask for features: an encoder gets a head of no meaning.

    Raises:
        SemisupError: no model there.
    """
    module = Network.from_json(describe(folder)).build_classifier()
    path = folder / WEIGHTS
    load_into(wanted_weights(module, read_shapes(path)), path)
    return module.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload, no-any-return]


def load_predictor(folder: str | Path, device: str | torch.device = "cpu", *, raw: bool = False) -> Predictor:
    """Return a finished stage as a function from images to probabilities.

    Args:
        folder: of the stage, e.g. `out/student`.
        device: where it runs: auto, cpu, cuda, mps, or one of torch's.
        raw: leave the probabilities as the network gives them, where validation labels have calibrated them.

    Raises:
        SemisupError: no model there, or one that classifies nothing, or no such device here.
    """
    folder = Path(folder)
    description = describe(folder)
    spec = Network.from_json(description).spec
    where = resolve_device(device) if isinstance(device, str) else device
    normalize = Normalize(description["mean"], description["std"]).to(where)
    temperature = 1.0 if raw else description.get("temperature", 1.0)
    network, classes = load_network(folder, where), description["classes"]
    fit = description.get("fit", "crop")
    return Predictor(network, normalize, classes, spec.image_size, spec.in_channels, temperature, fit)


class _Served:
    """A predictor as MLflow wants it: its answer has a column of probabilities for each class, by name."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    def predict(self, images: Images, params: Any = None) -> Any:
        """Return a data frame (N, classes); `params` is there because MLflow passes one."""
        import pandas as pd

        return pd.DataFrame(self.predictor.predict_proba(images).astype(float), columns=self.predictor.classes)


def _load_pyfunc(path: str) -> _Served:
    """Load a model of `mlflow.pyfunc`: it is this function's name and data files, nothing is unpickled."""
    return _Served(load_predictor(path))
