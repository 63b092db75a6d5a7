"""From a model's name and options to a network, with every check done before anything is built."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from torch import nn

from semisup.errors import SemisupError, nearest, raise_all
from semisup.models.classifier import Classifier, feature_width
from semisup.models.cnn import SmallCNN
from semisup.models.foreign import file_shapes
from semisup.models.from_timm import PRETRAINED, build_timm, check_timm, timm_options
from semisup.models.from_torchvision import TorchvisionBackbone, check_torchvision, classifier_names
from semisup.models.heads import build_neck
from semisup.models.origin import TIMM, TORCHVISION
from semisup.models.prepared import InputSpec, InputWishes, prepared
from semisup.models.resnet import ResNet18, ResNet34, ResNet50
from semisup.models.vit import VisionTransformer, check_grid
from semisup.models.wrn import WideResNet
from semisup.options import Count, Range, Settings, check_named, check_options, keys_of, read

__all__ = [
    "BACKBONES",
    "ModelSpec",
    "build_backbone",
    "build_classifier",
    "check_model",
    "count_parameters",
    "model_signature",
]

BACKBONES: dict[str, type[nn.Module]] = {
    cls.name: cls for cls in (SmallCNN, WideResNet, ResNet18, ResNet34, ResNet50, VisionTransformer)
}
"""Every backbone by its name; `semisup.register` adds one."""
# Smaller than this, the maps of the deeper networks have no pixel left to pool.
SMALLEST_IMAGE = 8


class _Shape(Settings):
    """What a model is built for."""

    in_channels: Count
    image_size: Annotated[int, Range(SMALLEST_IMAGE, 4096)]
    num_classes: Count
    neck: list[Annotated[int, Range(1, 10**9)]] = []
    neck_final: bool = False


class _Input(Settings):
    channels: Count
    size: Count
    mean: list[float]
    std: list[float]
    data_mean: list[float]
    data_std: list[float]


class _Spec(_Shape):
    name: str
    options: dict[str, Any]
    input: _Input | None = None


@dataclass(frozen=True)
class ModelSpec:
    """All that is needed to build a classifier's network again, as plain JSON values.

    Attributes:
        name: the backbone, a key of `BACKBONES`, `torchvision/<classifier>` or `timm/<network>`.
        options: the backbone's own options, as its constructor takes them.
        in_channels: 1 for gray images, 3 for color.
        image_size: side of the (square) images in pixels, at least 8.
        num_classes: number of logits.
        neck: output width of each projection block kept between backbone and head; empty for none.
        neck_final: the last of them is also the projection's last block, which has no ReLU.
        input: what the backbone makes of the images before its first layer; None: it takes them as they are.
    """

    name: str
    options: dict[str, Any]
    in_channels: int
    image_size: int
    num_classes: int
    neck: list[int] = field(default_factory=list)
    neck_final: bool = False
    input: InputSpec | None = None

    def problems(self) -> list[str]:
        """Return what is wrong with the values, one sentence each; builds nothing."""
        found = read(_Spec, self.to_json())[1]
        return (
            found if not isinstance(self.options, dict) else found + check_model({"name": self.name} | self.options, "")
        )

    def to_json(self) -> dict[str, Any]:
        """Return the values as a new dict of plain JSON types; without `input` where there is none."""
        values = asdict(self)
        if self.input is None:
            del values["input"]
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ModelSpec:
        """Make a spec from `to_json`'s dict.

        Raises:
            SemisupError: unknown or missing keys, or values out of range; all of them are listed.
        """
        raise_all(read(_Spec, dict(values))[1], "model spec")
        given = values.get("input")
        spec = cls(**{**values, "input": None if given is None else InputSpec(**given)})
        raise_all(spec.problems(), "model spec")
        return spec


def model_signature(name: str) -> dict[str, inspect.Parameter]:
    """Return the options a backbone takes, with their defaults, without building it.

    Raises:
        SemisupError: no backbone has that name; the nearest one is given.
    """
    raise_all(_check_name(name), "model")
    if name.startswith(TIMM):
        return dict(inspect.signature(timm_options).parameters)
    builder = TorchvisionBackbone if name.startswith(TORCHVISION) else BACKBONES[name]
    parameters = inspect.signature(builder).parameters.values()
    # Keyword-only are in_channels and image_size, which follow from the data; torchvision's own name is not an option.
    return {p.name: p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is not p.empty}


def check_model(given: Any, at: str) -> list[str]:
    """Return what is wrong with a backbone as a recipe has it, one sentence each; builds nothing.

    Args:
        given: `name`, a key of `BACKBONES`, `torchvision/<classifier>` or `timm/<network>`, the backbone's own options,
            and those of `InputWishes`.
        at: key of the mapping.
    """
    wishes = {key: given[key] for key in keys_of(InputWishes) if key in given} if isinstance(given, Mapping) else {}
    given = {key: value for key, value in given.items() if key not in wishes} if wishes else given
    wrong = read(InputWishes, wishes, at)[1]
    name = given.get("name") if isinstance(given, Mapping) else None
    if not isinstance(name, str):
        return wrong + check_named(given, "name", BACKBONES, "model", at)
    prefix = f"{at}." if at else ""
    unknown = [f"{prefix}{problem}" for problem in _check_name(name)]
    if unknown:
        return wrong + unknown
    strange = _strange_keys(name, given)
    wrong += [f"{prefix}{key if key.isprintable() else repr(key)}: unknown key{hint}" for key, hint in strange.items()]
    given = {key: value for key, value in given.items() if key not in strange}
    if name in BACKBONES:
        return wrong + check_named(given, "name", BACKBONES, "model", at)
    options = {key: value for key, value in given.items() if key != "name"}
    problems = check_options(timm_options if name.startswith(TIMM) else TorchvisionBackbone, options, at)
    if not problems:
        problems = [f"{prefix}{problem}" for problem in _check_weights(name, options.get("weights"))]
    return wrong + problems


def build_backbone(
    name: str,
    options: Mapping[str, Any],
    *,
    in_channels: int,
    image_size: int,
    pretrained: bool = True,
    input_spec: InputSpec | None = None,
) -> nn.Module:
    """Build a backbone: images `(N, in_channels, image_size, image_size)` to features `(N, num_features)`.

    Args:
        name: a key of `BACKBONES`, `torchvision/<classifier>` or `timm/<network>`.
        options: the backbone's own options.
        in_channels: 1 for gray images, 3 for color.
        image_size: side of the images in pixels, at least 8.
        pretrained: False ignores the option `weights`: right where a file's weights follow at once, which must
            work without a network connection.
        input_spec: what is done to the images before the first layer.

    Raises:
        SemisupError: an unknown name or option (the nearest is given) or a value out of range; all are listed.
    """
    shape = {"in_channels": in_channels, "image_size": image_size, "num_classes": 1}
    raise_all(check_model({"name": name, **options}, "") + read(_Shape, shape)[1], f"model {name}")
    if input_spec is not None:
        inner = build_backbone(
            name, options, in_channels=input_spec.channels, image_size=input_spec.size, pretrained=pretrained
        )
        return prepared(inner, input_spec, in_channels=in_channels, image_size=image_size)
    if name.startswith(TIMM):
        weights = options.get("weights") if pretrained else None
        sizes = {"in_channels": in_channels, "image_size": image_size}
        pool, blocks = options.get("pool"), options.get("blocks")
        return build_timm(name.removeprefix(TIMM), weights, pool=pool, blocks=blocks, **sizes)
    if name.startswith(TORCHVISION):
        bare = name.removeprefix(TORCHVISION)
        weights = options.get("weights") if pretrained else None
        return TorchvisionBackbone(bare, weights, in_channels=in_channels, image_size=image_size)
    # Our own backbones take every size from 8 px with the same weights, but for one that cuts it into patches.
    backbone = BACKBONES[name](in_channels=in_channels, **options)
    if isinstance(backbone, VisionTransformer):
        raise_all(check_grid(image_size, image_size, backbone.patch), f"model {name}")
    return backbone


def build_classifier(spec: ModelSpec, *, zero_head: bool = False, pretrained: bool = True) -> Classifier:
    """Build the network of `spec` with fresh weights, or pretrained ones where its options ask for them.

    Args:
        spec: what to build.
        zero_head: start the linear head at zero, as SimCLRv2 does when it fine-tunes.
        pretrained: as for `build_backbone`.

    Raises:
        SemisupError: values out of range; all of them are listed.
    """
    raise_all(spec.problems(), f"model {spec.name}")
    backbone = build_backbone(
        spec.name,
        spec.options,
        in_channels=spec.in_channels,
        image_size=spec.image_size,
        pretrained=pretrained,
        input_spec=spec.input,
    )
    neck = build_neck(feature_width(backbone), spec.neck, final=spec.neck_final)
    return Classifier(backbone, neck, spec.num_classes, zero_head=zero_head)


def count_parameters(module: nn.Module) -> int:
    """Return the number of trainable and frozen parameter elements; buffers do not count, shared ones count once."""
    return sum(parameter.numel() for parameter in module.parameters())


def _check_weights(name: str, weights: str | None) -> list[str]:
    """Complain about weights that a network of another library has not got, or a file that cannot be read."""
    if name.startswith(TORCHVISION):
        return check_torchvision(name.removeprefix(TORCHVISION), weights=weights)
    if weights is None or weights == PRETRAINED:
        return []
    try:
        file_shapes(weights)
    except SemisupError as error:
        return [str(error)]
    return []


def _strange_keys(name: str, given: Mapping[Any, Any]) -> dict[str, str]:
    """Return the keys that neither a network nor all of them have, and what may have been meant."""
    valid = [*model_signature(name), *keys_of(InputWishes)]
    strange = {key: nearest(key, valid) for key in given if isinstance(key, str) and key not in ("name", *valid)}
    if "weights" in strange:
        strange["weights"] = "; `init: {weights: FILE}` of a stage starts this network from a file"
    return strange


def _check_name(name: str) -> list[str]:
    if name in BACKBONES:
        return []
    if name.startswith(TIMM):
        return check_timm(name.removeprefix(TIMM))
    if name.startswith(TORCHVISION):
        return check_torchvision(name.removeprefix(TORCHVISION))
    if name in classifier_names():
        return [f"name: unknown model '{name}'; did you mean '{TORCHVISION}{name}'?"]
    return [f"name: unknown model '{name}'{nearest(name, [*BACKBONES, TORCHVISION + '<name>', TIMM + '<name>'])}"]
