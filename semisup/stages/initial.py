"""First weights of a stage from a file: an earlier stage's, one's own of other classes, or somebody else's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from semisup.errors import SemisupError
from semisup.methods import Method
from semisup.methods.base import given_to
from semisup.models import Classifier, Encoder, ModelSpec, WeightsReport, backbone_core
from semisup.models.foreign import Fit, as_used, file_shapes, finite_tensors, fit_names, is_ours
from semisup.models.from_timm import fit_file_whole
from semisup.models.from_torchvision import fetch_published
from semisup.models.origin import weights_origin
from semisup.models.weights import COUNT, Shape, compare, renamed
from semisup.records import MODEL, read_json
from semisup.settings import InitConfig

__all__ = [
    "Initial",
    "check_model_weights",
    "check_weights_file",
    "fit_file",
    "load_initial_weights",
    "networks_within",
    "weights_note",
]

PROJECTION, NECK, HEAD = "projector.layers.", "neck.", "head."
"""The layers of a projection head become the neck of the classifier that starts from inside it."""


@dataclass(frozen=True)
class Initial:
    """Which tensors of a file go where in a network."""

    names: dict[str, str]
    """The network's name -> the file's, of the tensors that fit."""
    report: WeightsReport
    deeper: str = ""
    """A name of the file that is of a block beyond the network's last."""


def fit_file(
    network: Classifier | Encoder,
    shapes: Mapping[str, Shape],
    rename: Mapping[str, str] | None = None,
    *,
    other_classes: bool = False,
) -> Initial:
    """Match a weights file with a network by names and shapes.

    Of a stage's own file the backbone is wanted, the kept projection layers, and the head if it was trained on the same
    classes; of anybody else's file the backbone alone.

    Args:
        network: what is to be filled.
        shapes: of the file's tensors.
        rename: prefixes of the file's names and what they become before anything is matched.
        other_classes: the file's head tells other classes apart.

    Raises:
        SemisupError: `rename` gives two tensors one name.
    """
    unused = [prefix for prefix in rename or {} if not any(name.startswith(prefix) for name in shapes)]
    origins = renamed(shapes, rename or {}, "init.rename")
    shapes = {name: shapes[origin] for name, origin in origins.items()}
    core, path = backbone_core(network.backbone)
    own = f"backbone.{path}"
    fit = fit_names(core, shapes)
    names = {own + name: theirs for name, theirs in fit.names.items()}
    wanted = _shapes(core, own)
    if fit.prefix == own:
        more, notes = _own_parts(network, shapes, other_classes=other_classes)
        wanted |= {name: shape for name, (shape, _) in more.items()}
        names |= {name: theirs for name, (_, theirs) in more.items() if theirs in shapes}
        others = [name for name in shapes if not (notes and name.startswith(HEAD))]
    else:
        others = [name for name in shapes if name.startswith(fit.prefix)]
        notes = _foreign_notes(fit, len(shapes) - len(others))
        if len(names) < sum(not name.endswith(COUNT) for name in wanted):
            notes.append("`init.rename: {old: new}` replaces what names in the file begin with")
    offered = {name: as_used(shapes[theirs], wanted[name]) for name, theirs in names.items()}
    if any(shapes[theirs] != offered[name] for name, theirs in names.items()):
        notes.append("the file's network takes gray images: its first kernels are spread over three channels")
    offered |= {name: shapes[name] for name in others if name not in names.values()}
    notes += [f"init.rename: no name of the file begins with '{prefix}'" for prefix in unused]
    report = compare(wanted, offered, notes)
    return Initial({name: origins[names[name]] for name in report.matched}, report, fit.deeper)


def _own_parts(
    network: Classifier | Encoder, shapes: Mapping[str, Shape], *, other_classes: bool
) -> tuple[dict[str, tuple[Shape, str]], list[str]]:
    """Return what a file of ours has besides the backbone, and what is to be said of a head that is left out.

    The former: the network's name -> its shape and the file's name.
    """
    if not isinstance(network, Classifier):
        return {}, []
    theirs = {name.replace(PROJECTION, NECK, 1): name for name in shapes}
    parts = {name: (shape, theirs.get(name, name)) for name, shape in _shapes(network.neck, NECK).items()}
    if not any(name.startswith(HEAD) for name in shapes):
        return parts, []
    head = _shapes(network.head, HEAD)
    if other_classes or shapes.get("head.bias") != head["head.bias"]:
        return parts, ["the head is new: that of the file tells other classes apart"]
    if {name for name in shapes if name.startswith(NECK)} - set(parts):
        return parts, ["the head is new: that of the file stands on projection layers, which are not kept"]
    return parts | {name: (shape, name) for name, shape in head.items()}, []


def _foreign_notes(fit: Fit, left: int) -> list[str]:
    notes = []
    if not fit.names:
        notes.append("no name of the file is one of the network's")
    if fit.prefix:
        notes.append(f"names in the file begin with '{fit.prefix}'")
    if fit.numbered:
        notes.append("the file counts the parts of the network instead of naming them")
    if left:
        notes.append(f"{left} tensors with other beginnings are left aside")
    return notes


def _shapes(module: nn.Module, prefix: str) -> dict[str, Shape]:
    return {prefix + name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def check_weights_file(method: Method, init: InitConfig, path: Path, classes: Sequence[str]) -> WeightsReport:
    """Say how a weights file fits, and refuse one that does not.

    Args:
        method: its networks are to be filled.
        init: `rename` and `minimum_match`.
        path: of the file.
        classes: names of the classes that the stage tells apart.

    Raises:
        SemisupError: it supplies less than `minimum_match` of what the network wants from it, or no numbers; or it is
            of a deeper network, of which `minimum_match` asks for all.
    """
    fits = _fits(method, init, path, classes)
    for network, fit in fits:
        finite_tensors(path, fit.names, f"init.weights {path}", network.state_dict())
    return fits[0][1].report


def weights_note(spec: ModelSpec) -> str | None:
    """Say what weights a model starts from by its own options; None: they are random."""
    origin = weights_origin(spec.name, spec.options)
    return None if origin is None else str(origin)


def check_model_weights(backbone: nn.Module, spec: ModelSpec) -> str | None:
    """Say what weights a model starts from by its own options, after looking whether their file fits.

    Args:
        backbone: of that model, which may be on the meta device.
        spec: of the model.

    Returns:
        The sentence, or None: they are random.

    Raises:
        SemisupError: they cannot be read or fetched, do not fit, or are not finite.
    """
    origin = weights_origin(spec.name, spec.options)
    if origin is None:
        return None
    subject = f"model {spec.name}"
    if origin.file is None:
        fetch_published(origin.hash, subject)  # now, and not when the stages before this one have run
    else:
        core, _ = backbone_core(backbone)
        fit, _ = fit_file_whole(core, origin.file, subject)
        finite_tensors(origin.file, fit.names, f"{subject}: weights {origin.file}", core.state_dict())
    return str(origin)


def _fits(
    method: Method, init: InitConfig, path: Path, classes: Sequence[str]
) -> list[tuple[Classifier | Encoder, Initial]]:
    shapes = file_shapes(path)
    other = is_ours(shapes) and _other_classes(path, classes)
    fits = [(n, fit_file(n, shapes, init.rename, other_classes=other)) for n in networks_within(method)]
    for _, fit in fits:
        if fit.report.fraction < init.minimum_match:
            raise SemisupError(
                f"init.weights {path}: do not fit, init.minimum_match asks for {init.minimum_match:.1%}\n{fit.report}"
            )
        if fit.deeper and init.minimum_match == 1:
            raise SemisupError(
                f"init.weights {path}: are of a deeper network, which has {fit.deeper}; init.minimum_match below 1 "
                "takes its first blocks"
            )
    return fits


def _other_classes(path: Path, classes: Sequence[str]) -> bool:
    """Whether a description next to a stage's weights names other classes; without one nobody knows."""
    description = path.with_name(MODEL)
    if not description.exists():
        return False
    content = read_json(description)
    named = content.get("classes") if isinstance(content, dict) else None
    return named is not None and named != list(classes)


def load_initial_weights(method: Method, init: InitConfig, path: Path, classes: Sequence[str]) -> WeightsReport:
    """Put the weights of a file into the method's network and whatever the method copied from it.

    Args:
        method: its networks are changed in place.
        init: `rename` and `minimum_match`.
        path: of the file.
        classes: names of the classes that the stage tells apart.

    Raises:
        SemisupError: less than `minimum_match` of the wanted weights is in the file, or they are not finite.
    """
    fits = _fits(method, init, path, classes)
    for network, fit in fits:
        state = network.state_dict()
        with torch.no_grad():
            for name, tensor in finite_tensors(path, fit.names, f"init.weights {path}", state).items():
                state[name].copy_(tensor)
    return fits[0][1].report


def networks_within(method: Method) -> list[Classifier | Encoder]:
    """Return the networks of a method that start from the same weights: all but a given teacher."""
    skip = getattr(method, "teacher", None) if "teacher" in given_to(type(method)) else None
    return [module for module in method.modules() if isinstance(module, Classifier | Encoder) and module is not skip]
