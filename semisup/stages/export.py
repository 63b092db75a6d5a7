"""A finished stage's network under the names that torchvision or timm give it, for use without semisup."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from semisup.errors import SemisupError
from semisup.models import Classifier, ModelSpec, backbone_core, load_into, save_weights
from semisup.models.from_timm import timm_sized, timm_source
from semisup.models.from_torchvision import drop_last_layer, torchvision_sized
from semisup.models.origin import TIMM, TORCHVISION
from semisup.models.weights import read_shapes
from semisup.records import refuse_stage_files
from semisup.stages.initial import HEAD
from semisup.stages.networks import Network, wanted_weights
from semisup.stages.predictor import WEIGHTS, describe

__all__ = ["Exported", "export_weights"]

TOLERANCE = 1e-3
"""By which a library's network may differ from ours, of its largest output: sums have another order there."""


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        model: the library's name of the network.
        args: of its constructor there, besides the number of classes.
        classes: that its head tells apart; 0: there is no head, the network is an encoder.
        size: side of its images in pixels.
        mean: that they are normalized by, per channel, of images in [0, 1].
        std: likewise.
    """

    model: str
    args: dict[str, Any]
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
        SemisupError: the library has no such network, layers of a projection head stand under the classifier, what
            the library computes with the weights is something else, or `file` would be taken for one of a finished
            stage.
    """
    refuse_stage_files([file])
    description = describe(stage)
    network = Network.from_json(description)
    module = network.build_classifier()
    path = stage / WEIGHTS
    load_into(wanted_weights(module, read_shapes(path)), path)
    if network.kind == "classifier" and len(list(module.neck.children())):
        raise SemisupError(
            f"{stage}: its classifier stands on layers of a projection head, which {library} does not have"
        )
    classes = network.spec.num_classes if network.kind == "classifier" else 0
    name, args = _name_in(library, network.spec)
    theirs, subject = _built(library, name, args, classes), f"{stage}: {library}'s {name}"
    tensors = _named(module, theirs.state_dict(), classes, subject)
    theirs.load_state_dict(tensors, strict=False)  # `_named` has compared the names; an encoder's lack those of a head
    _check_same(library, theirs, module.eval(), network.spec, classes, subject)
    save_weights(file, tensors)
    taken = network.spec.input
    if taken is not None:
        return Exported(name, args, classes, taken.size, taken.mean, taken.std)
    mean, std = (list(description[key]) * (3 // network.spec.in_channels) for key in ("mean", "std"))
    return Exported(name, args, classes, network.spec.image_size, mean, std)


def _name_in(library: str, spec: ModelSpec) -> tuple[str, dict[str, Any]]:
    """Return the library's name of a network, its own or that of one of our ResNets that is built as theirs.

    And the options by which it is built for the size of the network's images.
    """
    size = spec.image_size if spec.input is None else spec.input.size
    for prefix in (TORCHVISION, TIMM):
        if spec.name.startswith(prefix):
            name = spec.name.removeprefix(prefix)
            if prefix != f"{library}/" and name not in ("resnet18", "resnet34", "resnet50"):
                raise SemisupError(f"model {spec.name}: --to {prefix.removesuffix('/')} is where it comes from")
            if library == "torchvision":
                return name, torchvision_sized(name, size)
            if spec.options.get("blocks") is not None:
                raise SemisupError(
                    f"model {spec.name}: ends after {spec.options['blocks']} blocks (model.blocks), for which timm has "
                    "no name; an ONNX file has the network as it is: semisup export STAGE FILE.onnx"
                )
            source = timm_source(name)
            return source.architecture, {**source.args, **timm_sized(source, size)}
    options = {"width": 1.0, "stem": "cifar", "sk": False} | spec.options
    if spec.name.startswith("resnet") and (options["width"], options["stem"], options["sk"]) == (
        1.0,
        "imagenet",
        False,
    ):
        return spec.name, {}
    raise SemisupError(
        f"model {spec.name} {spec.options}: {library} has no such network; those of {library}/<name> and resnets "
        "of width 1 with `stem: imagenet` can be written"
    )


def _built(library: str, name: str, args: dict[str, Any], classes: int) -> nn.Module:
    """Return the library's network for that many classes (0: without a head, or with torchvision's own)."""
    network: nn.Module
    if library == "timm":
        import timm

        network = timm.create_model(name, num_classes=classes, **args)
    else:
        from torchvision import models

        network = models.get_model(name, weights=None, **args, **({"num_classes": classes} if classes else {}))
    return network


@torch.inference_mode()
def _check_same(library: str, theirs: nn.Module, ours: Classifier, spec: ModelSpec, classes: int, subject: str) -> None:
    """Compare what a library's network makes of two images with ours: the logits, or of an encoder the features.

    Raises:
        SemisupError: it is something else.
    """
    side = spec.image_size
    images = torch.randn(2, spec.in_channels, side, side, generator=torch.Generator().manual_seed(0))
    prepare = getattr(ours.backbone, "prepare", None)
    taken = (images if prepare is None else prepare(images)).expand(-1, 3, -1, -1)
    if not classes and library == "torchvision":
        drop_last_layer(theirs)
    found, wanted = theirs.eval()(taken), ours(images) if classes else ours.features(images)
    apart, scale = float((found - wanted).abs().max()), float(wanted.abs().max())
    if not apart <= TOLERANCE * max(scale, 1.0):
        raise SemisupError(
            f"{subject} computes something else with these weights (outputs up to {scale:.2g} differ by {apart:.2g}), "
            "so they are not written; an ONNX file has the network as it is: semisup export STAGE FILE.onnx"
        )


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
