"""A finished stage's network under the names that torchvision or timm give it, for use without semisup."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from semisup.errors import SemisupError
from semisup.models import Classifier, ModelSpec, backbone_core, load_into, save_weights
from semisup.models.from_timm import timm_source
from semisup.models.origin import TIMM, TORCHVISION
from semisup.models.weights import read_shapes
from semisup.records import refuse_stage_files
from semisup.stages.initial import HEAD
from semisup.stages.networks import Network, wanted_weights
from semisup.stages.predictor import describe

__all__ = ["LIBRARIES", "Exported", "export_weights"]

LIBRARIES = ("torchvision", "timm")


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        model: the library's name of the network.
        classes: that its head tells apart; 0: there is no head, the network is an encoder.
        size: side of its images in pixels.
        mean: that they are normalized by, per channel, of images in [0, 1].
        std: likewise.
    """

    model: str
    classes: int
    size: int
    mean: list[float]
    std: list[float]


def export_weights(stage: Path, library: Literal["torchvision", "timm"], file: Path) -> Exported:
    """Write a stage's network as a safetensors file that a library loads strictly.

    Args:
        stage: folder of a finished train stage.
        library: whose names are written.
        file: to write.

    Raises:
        SemisupError: the library has no such network, layers of a projection head stand under the classifier, or
            `file` would be taken for one of a finished stage.
    """
    refuse_stage_files([file])
    description = describe(stage)
    network = Network.from_json(description)
    module = network.build_classifier()
    path = stage / "model.safetensors"
    load_into(wanted_weights(module, read_shapes(path)), path)
    if network.kind == "classifier" and len(list(module.neck.children())):
        raise SemisupError(
            f"{stage}: its classifier stands on layers of a projection head, which {library} does not have"
        )
    name = _name_in(library, network.spec)
    classes = network.spec.num_classes if network.kind == "classifier" else 0
    tensors = _named(module, _empty(library, name, classes), classes, f"{stage}: {library}'s {name}")
    save_weights(file, tensors)
    taken = network.spec.input
    if taken is not None:
        return Exported(name, classes, taken.size, taken.mean, taken.std)
    mean, std = (list(description[key]) * (3 // network.spec.in_channels) for key in ("mean", "std"))
    return Exported(name, classes, network.spec.image_size, mean, std)


def _name_in(library: str, spec: ModelSpec) -> str:
    """Return the library's name of a network: its own, or that of one of our ResNets that is built as theirs."""
    for prefix in (TORCHVISION, TIMM):
        if spec.name.startswith(prefix):
            name = spec.name.removeprefix(prefix)
            if prefix != f"{library}/" and name not in ("resnet18", "resnet34", "resnet50"):
                raise SemisupError(f"model {spec.name}: --to {prefix.removesuffix('/')} is where it comes from")
            return timm_source(name).architecture if prefix == TIMM else name
    options = {"width": 1.0, "stem": "cifar", "sk": False} | spec.options
    if spec.name.startswith("resnet") and (options["width"], options["stem"], options["sk"]) == (
        1.0,
        "imagenet",
        False,
    ):
        return spec.name
    raise SemisupError(
        f"model {spec.name} {spec.options}: {library} has no such network; those of {library}/<name> and resnets "
        "of width 1 with `stem: imagenet` can be written"
    )


def _empty(library: str, name: str, classes: int) -> dict[str, Tensor]:
    """Return the library's state dict of a network for that many classes (0: torchvision's own number)."""
    with torch.device("meta"):
        if library == "timm":
            import timm

            network: nn.Module = timm.create_model(name, num_classes=classes)
        else:
            from torchvision import models

            network = models.get_model(name, weights=None, **({"num_classes": classes} if classes else {}))
    return network.state_dict()


def _named(module: Classifier, wanted: dict[str, Tensor], classes: int, subject: str) -> dict[str, Tensor]:
    """Return a network's tensors as `wanted` names and shapes them; without those of a head where there is none."""
    state = dict(backbone_core(module.backbone)[0].state_dict())
    missing = [name for name in wanted if name not in state]
    if len(missing) == 2 and classes:
        weight, bias = missing
        head = {name.removeprefix(HEAD): tensor for name, tensor in module.head.state_dict().items()}
        state |= {weight: head["weight"].reshape(wanted[weight].shape), bias: head["bias"]}
    named = {}
    for name, target in wanted.items():
        if name in state:
            tensor = state[name]
            if tensor.ndim == 4 and tensor.shape[1] == 1 and target.shape[1] == 3:
                tensor = tensor.repeat(1, 3, 1, 1) / 3  # a gray image in three equal channels gives the same
            named[name] = tensor
    wrong = [n for n, t in named.items() if t.shape != wanted[n].shape] + [n for n in state if n not in wanted]
    if wrong or (classes and len(named) < len(wanted)):
        raise SemisupError(f"{subject} is built otherwise: {', '.join(wrong[:8] or missing[:8])}")
    return named
