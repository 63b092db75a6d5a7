"""From a stage's words to its networks: architecture, weights to start from, and the method around them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from semisup.errors import SemisupError
from semisup.methods import METHODS, Method
from semisup.methods.base import Statistics, given_to
from semisup.models import (
    Classifier,
    Encoder,
    ModelSpec,
    build_backbone,
    build_classifier,
    model_signature,
)
from semisup.models.origin import file_origin, input_spec, weights_origin
from semisup.models.prepared import InputSpec, InputWishes
from semisup.options import keys_of
from semisup.records import MODEL, read_json
from semisup.settings import TrainConfig

__all__ = [
    "Network",
    "build_method",
    "hashed_model",
    "network_of",
    "projector_widths",
    "stage_network",
    "wanted_weights",
    "weightless",
]


@dataclass(frozen=True)
class Network:
    """The network that a stage trains, before it is built.

    `projector` lists the output widths of the projection head next to an encoder; a classifier has none.
    """

    spec: ModelSpec
    kind: str
    """classifier or encoder."""
    projector: tuple[int, ...] = ()
    average_turns: bool = False
    """Of a classifier: see `semisup.models.Classifier`."""

    def to_json(self) -> dict[str, Any]:
        """Plain data for `model.json`."""
        return {
            "kind": self.kind,
            "spec": self.spec.to_json(),
            "projector": list(self.projector),
            "average_turns": self.average_turns,
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Network:
        """Read `to_json` back."""
        return Network(
            ModelSpec.from_json(value["spec"]),
            value["kind"],
            tuple(value["projector"]),
            value.get("average_turns", False),  # models of before there was such a thing
        )

    def build_classifier(self) -> Classifier:
        """Build the network of a classifier, for weights that follow: no pretrained ones are downloaded."""
        classifier = build_classifier(self.spec, pretrained=False)
        classifier.average_turns = self.average_turns
        return classifier

    @cached_property
    def shapes(self) -> Classifier:
        """The same without memory for its weights, built once for all who ask what it is like; not to be changed."""
        with weightless():
            return self.build_classifier()

    def built_as(self, other: Network) -> bool:
        """Whether both are built alike, with whatever weights each begins."""
        one, two = (replace(network, spec=replace(network.spec, options={})) for network in (self, other))
        return one == two and _architecture(self.spec) == _architecture(other.spec)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "shapes"}


@contextmanager
def weightless() -> Iterator[None]:
    """Build networks meanwhile on the meta device, where everything has a shape and nothing has a value."""
    with torch.device("meta"), _Uninitialized():
        yield


class _Uninitialized(TorchFunctionMode):
    """Skips random initialization, which costs 2 s of imports on the meta device, where no weight has a value."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.__name__ in ("normal_", "uniform_", "trunc_normal_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def stage_network(
    stage: TrainConfig,
    default_model: Mapping[str, Any],
    inputs: Mapping[str, Network],
    *,
    in_channels: int,
    image_size: int,
    num_classes: int,
    statistics: Statistics,
) -> ModelSpec:
    """Architecture of a stage: its own `model`, else that of the stage it starts from, else the recipe's.

    Starting from inside a projection head (`init.head_layer`) adds the kept layers as the classifier's neck.

    Raises:
        SemisupError: another architecture than that of the stage to start from; `head_layer` beyond the head, or where
            there is no head to keep.
    """
    source = inputs[stage.init.source] if stage.init is not None and stage.init.source is not None else None
    if stage.model is not None or source is None:
        model = dict(stage.model if stage.model is not None else default_model)
        name = model.pop("name")
        taken = _input(
            stage, name, model, source, in_channels=in_channels, image_size=image_size, statistics=statistics
        )
        spec = ModelSpec(name, model, in_channels, image_size, num_classes, input=taken)
    else:
        spec = replace(source.spec, neck=[], neck_final=False)
    if stage.init is None:
        return spec
    if source is None:
        if stage.init.head_layer:
            raise SemisupError("init.head_layer: only a stage to start from (init.from) has a projection head")
        return spec
    if _architecture(source.spec) != _architecture(spec):
        raise SemisupError(
            f"init: the weights of '{stage.init.source}' are those of {source.spec.name} {source.spec.options}, this "
            f"stage trains {spec.name} {spec.options}; remove its `model:` or its `init:`"
        )
    if source.kind == "classifier":
        if stage.init.head_layer:
            raise SemisupError(f"init.head_layer: '{stage.init.source}' trains a classifier, it has no projection head")
        return replace(spec, neck=list(source.spec.neck), neck_final=source.spec.neck_final)
    if METHODS[stage.method["name"]].trains == "encoder":
        if stage.init.head_layer:
            raise SemisupError("init.head_layer: this stage trains an encoder, whose projection head starts anew")
        return spec
    layers = len(source.projector)
    layer = stage.init.head_layer if stage.init.head_layer >= 0 else layers
    if layer > layers:
        raise SemisupError(
            f"init.head_layer: the projection head of '{stage.init.source}' has {layers} layers, got {layer}"
        )
    return replace(spec, neck=list(source.projector[:layer]), neck_final=0 < layer == layers)


def _input(
    stage: TrainConfig,
    name: str,
    options: dict[str, Any],
    source: Network | None,
    *,
    in_channels: int,
    image_size: int,
    statistics: Statistics,
) -> InputSpec | None:
    """Return what a network of these options makes of its images.

    `resize` and `normalize` are taken out of the options.
    """
    wishes = {key: options.pop(key) for key in keys_of(InputWishes) if key in options}
    origin, base = None, None
    if source is not None:
        base = source.spec.input
    elif stage.init is not None and stage.init.weights is not None:
        path = Path(stage.init.weights)
        origin = file_origin(name, path, image_size)
        base = _described_input(path) if origin is None else None  # else a model.json is somebody else's, too
    else:
        origin = weights_origin(name, options)
    return input_spec(wishes, origin, base, in_channels=in_channels, image_size=image_size, statistics=statistics)


def hashed_model(spec: ModelSpec) -> dict[str, Any]:
    """Return a model as a stage's fingerprint has it: weights by their hash, wherever their file lies."""
    model, origin = spec.to_json(), weights_origin(spec.name, spec.options)
    if origin is not None:
        model["options"] = {**spec.options, "weights": origin.hash}
    if spec.name == "vit":
        model["names"] = "timm's"  # stages from before have others, which load no more
    return model


def _described_input(path: Path) -> InputSpec | None:
    """Return what the network did to its images whose description lies next to its weights."""
    description = path.with_name(MODEL)
    if not description.exists():
        return None
    content = read_json(description)
    spec = content.get("spec") if isinstance(content, dict) else None
    if not isinstance(spec, dict):
        raise SemisupError(f"{description}: not a model's description (no spec)")
    try:
        return ModelSpec.from_json(spec).input
    except SemisupError as error:
        raise SemisupError(f"{description}: not a model's description ({error})") from error


def _architecture(spec: ModelSpec) -> tuple[str, dict[str, Any]]:
    """Name and options with defaults spelled out; which pretrained weights it began with does not matter."""
    options = {name: parameter.default for name, parameter in model_signature(spec.name).items()} | spec.options
    return spec.name, {name: value for name, value in options.items() if name != "weights"}


def build_method(
    stage: TrainConfig,
    spec: ModelSpec,
    teachers: Sequence[nn.Module],
    *,
    num_images: int,
    num_labeled: int,
    statistics: Statistics,
    num_unlabeled: int | None = None,
    zero_head: bool = False,
    pretrained: bool = True,
) -> Method:
    """Return the stage's method around a freshly initialized network.

    Args:
        stage: names the method and its options.
        spec: the network.
        teachers: predictors of the stages that `teacher` names.
        num_images: images in the training set, for a method that remembers something of each.
        num_labeled: labeled ones among them, likewise.
        statistics: what the images are normalized by, for a method that asks what they were before.
        num_unlabeled: images that unlabeled batches are made of; None: all.
        zero_head: start the classifier's head at zero: for a network that comes from pretraining.
        pretrained: False ignores torchvision's `weights`: for a network that gets others at once, or none ever.
    """
    options = dict(stage.method)
    cls = METHODS[options.pop("name")]

    def fresh() -> nn.Module:
        if cls.trains == "classifier":
            return build_classifier(spec, zero_head=zero_head, pretrained=pretrained)
        sizes = {"in_channels": spec.in_channels, "image_size": spec.image_size}
        return Encoder(build_backbone(spec.name, spec.options, **sizes, pretrained=pretrained, input_spec=spec.input))

    model = fresh()
    there_is: dict[str, Callable[[], Any]] = {
        "teacher": lambda: teachers[0],
        "second": fresh,
        "num_images": lambda: num_images,
        "num_unlabeled": lambda: num_images if num_unlabeled is None else num_unlabeled,
        "num_labeled": lambda: num_labeled,
        "image_shape": lambda: (spec.in_channels, spec.image_size, spec.image_size),
        "statistics": lambda: statistics,
    }
    given = {name: there_is[name]() for name in given_to(cls)}
    return cls(model, **given, **options)


def network_of(method: Method, spec: ModelSpec) -> Network:
    """Describe the network that a method is evaluated by, built with its weights or without."""
    predictor = method.predictor()
    turns = bool(getattr(predictor, "average_turns", False))
    return Network(spec, method.trains, projector_widths(predictor), turns)


def projector_widths(predictor: nn.Module) -> tuple[int, ...]:
    """Output widths of the projection head of an encoder; empty if it has none."""
    if not isinstance(predictor, Encoder) or predictor.projector is None:
        return ()
    return tuple(layer.out_features for layer in predictor.projector.modules() if isinstance(layer, nn.Linear))


def wanted_weights(network: Classifier | Encoder, names: Iterable[str]) -> nn.ModuleDict:
    """Return the parts of a network that a file of these tensor names should fill.

    Of an encoder's file that is the backbone and the kept projection layers: the classifier's head is new. A file with
    a head fills everything.
    """
    parts: dict[str, nn.Module] = {"backbone": network.backbone}
    if isinstance(network, Classifier):
        parts["neck"] = network.neck
        if any(name.startswith("head.") for name in names):
            parts["head"] = network.head
    return nn.ModuleDict(parts)
