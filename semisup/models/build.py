"""From a model's name and options to a network, with every check done before anything is built."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from typing import Any

from torch import nn

from semisup.errors import SemisupError, nearest, raise_all
from semisup.models.checks import check_flag, check_whole
from semisup.models.classifier import Classifier, feature_width
from semisup.models.cnn import SmallCNN, check_cnn
from semisup.models.foreign import file_shapes
from semisup.models.from_timm import PRETRAINED, build_timm, check_timm
from semisup.models.from_torchvision import TorchvisionBackbone, check_torchvision, classifier_names
from semisup.models.heads import build_neck
from semisup.models.origin import TIMM, TORCHVISION
from semisup.models.prepared import INPUT_KEYS, InputSpec, check_input, prepared
from semisup.models.resnet import ResNet, check_resnet
from semisup.models.vit import VisionTransformer, check_grid, check_vit
from semisup.models.wrn import WideResNet, check_wrn

__all__ = [
    "BACKBONES",
    "ModelSpec",
    "build_backbone",
    "build_classifier",
    "check_model",
    "count_parameters",
    "model_signature",
]

# Adding a backbone = its file, a line here and a line in CHECKS.
BACKBONES: dict[str, Callable[..., nn.Module]] = {
    "cnn": SmallCNN,
    "wrn": WideResNet,
    "resnet18": partial(ResNet, 18),
    "resnet34": partial(ResNet, 34),
    "resnet50": partial(ResNet, 50),
    "vit": VisionTransformer,
}
CHECKS: dict[str, Callable[..., list[str]]] = {
    "cnn": check_cnn,
    "wrn": check_wrn,
    "resnet18": partial(check_resnet, 18),
    "resnet34": partial(check_resnet, 34),
    "resnet50": partial(check_resnet, 50),
    "vit": check_vit,
}
# Smaller than this, the maps of the deeper networks have no pixel left to pool.
SMALLEST_IMAGE = 8


@dataclass(frozen=True)
class ModelSpec:
    """All that is needed to build a classifier's network again, as plain JSON values.

    Attributes:
        name: the backbone, a key of ``BACKBONES``, ``torchvision/<classifier>`` or ``timm/<network>``.
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
        found = check_model(self.name, self.options)
        found += check_whole("in_channels", self.in_channels, 1)
        found += check_whole("image_size", self.image_size, SMALLEST_IMAGE)
        found += check_whole("num_classes", self.num_classes, 1)
        if isinstance(self.neck, list):
            found += [p for i, width in enumerate(self.neck) for p in check_whole(f"neck[{i}]", width, 1)]
        else:
            found.append(f"neck must be a list of widths, got {self.neck!r}")
        return found + check_flag("neck_final", self.neck_final)

    def to_json(self) -> dict[str, Any]:
        """Return the values as a new dict of plain JSON types; without `input` where there is none."""
        values = asdict(self)
        if self.input is None:
            del values["input"]
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ModelSpec:
        """Make a spec from :meth:`to_json`'s dict.

        Raises:
            SemisupError: unknown or missing keys, or values out of range; all of them are listed.
        """
        known = [f.name for f in fields(cls)]
        optional = ("neck", "neck_final", "input")
        problems = [f"unknown key {key!r}{nearest(str(key), known)}" for key in values if key not in known]
        problems += [f"missing key {key!r}" for key in known if key not in values and key not in optional]
        raise_all(problems, "model spec")
        given = values.get("input")
        try:
            read = None if given is None else InputSpec(**given)
        except TypeError as error:
            raise SemisupError(f"model spec: input is none that this version writes ({error})") from error
        spec = cls(**{**values, "input": read})
        raise_all(spec.problems(), "model spec")
        return spec


def model_signature(name: str) -> dict[str, inspect.Parameter]:
    """Return the options a backbone takes, with their defaults, without building it.

    Raises:
        SemisupError: no backbone has that name; the nearest one is given.
    """
    raise_all(_check_name(name), "model")
    if name.startswith(TIMM):
        return {"weights": inspect.Parameter("weights", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None)}
    builder = TorchvisionBackbone if name.startswith(TORCHVISION) else BACKBONES[name]
    parameters = inspect.signature(builder).parameters.values()
    # Keyword-only are in_channels and image_size, which follow from the data; torchvision's own name is not an option.
    return {p.name: p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is not p.empty}


def check_model(name: str, options: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with a backbone's name or options, one sentence each; builds nothing.

    Args:
        name: a key of ``BACKBONES``, ``torchvision/<classifier>`` or ``timm/<network>``.
        options: as in a recipe's ``model:``, without the name.
    """
    problems = _check_name(name)
    if not isinstance(options, Mapping):
        problems.append(f"options must be a mapping of names to values, got {options!r}")
    if problems:
        return problems
    signature = model_signature(name)
    known = [*signature, *INPUT_KEYS]
    problems = [f"unknown option {key!r} of {name}{nearest(str(key), known)}" for key in options if key not in known]
    problems += check_input(options)
    values = {key: options.get(key, parameter.default) for key, parameter in signature.items()}
    if name.startswith(TIMM):
        return problems + check_timm(name.removeprefix(TIMM), **values) + _check_file(values["weights"])
    if name.startswith(TORCHVISION):
        return problems + check_torchvision(name.removeprefix(TORCHVISION), **values)
    return problems + CHECKS[name](**values)


def build_backbone(
    name: str,
    options: Mapping[str, Any],
    *,
    in_channels: int,
    image_size: int,
    pretrained: bool = True,
    input_spec: InputSpec | None = None,
) -> nn.Module:
    """Build a backbone: images ``(N, in_channels, image_size, image_size)`` to features ``(N, num_features)``.

    Args:
        name: a key of ``BACKBONES``, ``torchvision/<classifier>`` or ``timm/<network>``.
        options: the backbone's own options.
        in_channels: 1 for gray images, 3 for color.
        image_size: side of the images in pixels, at least 8.
        pretrained: False ignores the option ``weights``: right where a file's weights follow at once, which must
            work without a network connection.
        input_spec: what is done to the images before the first layer.

    Raises:
        SemisupError: an unknown name or option (the nearest is given) or a value out of range; all are listed.
    """
    problems = check_model(name, options)
    problems += check_whole("in_channels", in_channels, 1)
    problems += check_whole("image_size", image_size, SMALLEST_IMAGE)
    raise_all(problems, f"model {name}")
    if input_spec is not None:
        inner = build_backbone(
            name, options, in_channels=input_spec.channels, image_size=input_spec.size, pretrained=pretrained
        )
        return prepared(inner, input_spec, in_channels=in_channels, image_size=image_size)
    if name.startswith(TIMM):
        weights = options.get("weights") if pretrained else None
        return build_timm(name.removeprefix(TIMM), weights, in_channels=in_channels, image_size=image_size)
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
    """Build the network of ``spec`` with fresh weights, or pretrained ones where its options ask for them.

    Args:
        spec: what to build.
        zero_head: start the linear head at zero, as SimCLRv2 does when it fine-tunes.
        pretrained: as for :func:`build_backbone`.

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


def _check_file(weights: object) -> list[str]:
    """Complain about a file of weights that cannot be read."""
    if not isinstance(weights, str) or weights == PRETRAINED:
        return []
    try:
        file_shapes(weights)
    except SemisupError as error:
        return [str(error)]
    return []


def _check_name(name: object) -> list[str]:
    if not isinstance(name, str):
        return [f"name must be a string, got {name!r}"]
    if name in BACKBONES:
        return []
    if name.startswith(TIMM):
        return check_timm(name.removeprefix(TIMM))
    if name.startswith(TORCHVISION):
        return check_torchvision(name.removeprefix(TORCHVISION))
    if name in classifier_names():
        return [f"unknown model {name!r}; did you mean '{TORCHVISION}{name}'?"]
    return [f"unknown model {name!r}{nearest(name, [*BACKBONES, TORCHVISION + '<name>', TIMM + '<name>'])}"]
