"""Any network of timm as a backbone, with random weights, with its makers' from the hub, or with those of a file.

timm takes seconds to import and is an extra (`semisup[timm]`), so it is imported inside the functions that need it.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from semisup.errors import SemisupError, first_line, nearest, raise_all
from semisup.models.blocks import blocks_of
from semisup.models.foreign import Fit, as_used, file_shapes, finite_tensors, fit_names
from semisup.models.hub_description import read_description
from semisup.models.weights import WeightsReport, compare
from semisup.options import Range

__all__ = [
    "PRETRAINED",
    "TimmBackbone",
    "TimmSource",
    "build_timm",
    "check_timm",
    "fill_from_file",
    "fit_file_whole",
    "output_shape",
    "timm_ends",
    "timm_options",
    "timm_sized",
    "timm_source",
    "timm_takes",
    "weights_of",
]

PRETRAINED = "pretrained"
HUB = "hf-hub:"
HUB_FILE = "model.safetensors"
ASK_AGAIN = 60.0
"""Seconds after which the hub is asked again for what it did not have."""
_MISSED: dict[tuple[str, str], tuple[float, str]] = {}
"""Repository and file -> when the hub was asked for them in vain, and why."""
_WIDTHS: dict[str, int] = {}
"""What was asked of `build_timm` -> width of the features: found by a forward that costs four builds of the network."""


@dataclass(frozen=True)
class TimmSource:
    """What timm knows about a network and its weights.

    Attributes:
        architecture: timm's name without a tag.
        args: of its constructor.
        hub: id of its repository on the hub, or None.
        size: side of the images that its weights take, in pixels.
        fixed_size: it takes no other.
        mean: that its images are normalized by.
        std: likewise.
        license: of its weights, or "unknown".
    """

    architecture: str
    args: dict[str, Any]
    hub: str | None
    size: int
    fixed_size: bool
    mean: list[float]
    std: list[float]
    license: str


def check_timm(name: str) -> list[str]:
    """Return what is wrong with a timm network's name, one sentence each; builds and fetches nothing.

    Args:
        name: timm's name, perhaps with a tag, or `hf-hub:owner/repository`; without the `timm/`.
    """
    if importlib.util.find_spec("timm") is None:
        return [f"name: timm/{name} needs the package timm; install semisup[timm]"]
    problems = []
    if not name.startswith(HUB):
        import timm

        if not timm.is_model(name):
            problems.append(f"name: timm/{name} is no network of timm{nearest(name, timm.list_models())}")
        elif "." in name and name not in timm.list_pretrained():
            of_it = [n for n in timm.list_pretrained() if n.split(".")[0] == name.split(".")[0]]
            problems.append(f"name: timm/{name}: timm knows no such weights{nearest(name, of_it)}")
    return problems


@functools.cache
def timm_source(name: str) -> TimmSource:
    """Look up a network in timm's registry, or read its description from a repository of the hub.

    Raises:
        SemisupError: the repository is not in the hub's cache and cannot be reached, or its description is refused.
    """
    import timm

    if not name.startswith(HUB):
        cfg = timm.get_pretrained_cfg(name)
        assert cfg is not None
        return _source(name.split(".")[0], {}, cfg.hf_hub_id, dataclasses.asdict(cfg))
    repository = name.removeprefix(HUB)
    described, images = read_description(_hub_file(repository, "config.json", name), f"model timm/{name}")
    return _source(described.architecture, described.model_args, repository, images.model_dump())


def _source(architecture: str, args: dict[str, Any], hub: str | None, cfg: Mapping[str, Any]) -> TimmSource:
    return TimmSource(
        architecture,
        args,
        hub,
        int(cfg["input_size"][-1]),
        bool(cfg.get("fixed_input_size", False)),
        [float(value) for value in cfg["mean"]],
        [float(value) for value in cfg["std"]],
        str(cfg.get("license") or "unknown"),
    )


def _hub_file(repository: str, file: str, name: str) -> Path:
    """Return a file of a repository, from the hub's cache or the hub, which checks what it has fetched.

    Raises:
        SemisupError: it cannot be had. The hub is not asked again for a minute, which its client's own attempts take
            where there is no network: a plan asks for each stage.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    since, reason = _MISSED.get((repository, file), (-math.inf, ""))
    if time.monotonic() - since > ASK_AGAIN:
        try:
            return Path(hf_hub_download(repository, file))
        except (OSError, HfHubHTTPError, LocalEntryNotFoundError, HFValidationError) as error:
            reason = first_line(error)
            _MISSED[repository, file] = (time.monotonic(), reason)
    raise SemisupError(
        f"model timm/{name}: {file} of {repository} is not in the hub's cache and could not be fetched ({reason}); "
        "a file will do as well, `weights: FILE`"
    )


def weights_of(name: str) -> Path:
    """Return the file of a network's published weights: safetensors alone, which hold no code.

    Raises:
        SemisupError: there are none, or they cannot be fetched.
    """
    source = timm_source(name)
    if source.hub is None:
        raise SemisupError(f"model timm/{name}: has no published weights; give a file")
    return _hub_file(source.hub, HUB_FILE, name)


class TimmBackbone(nn.Module):
    """A network of timm without its classifier: images `(N, 3, S, S)` to features `(N, num_features)`.

    Attributes:
        network: timm's.
        num_features: width of what its classifier would see.
        in_channels: of its images.
    """

    def __init__(self, network: nn.Module, num_features: int, in_channels: int) -> None:
        super().__init__()
        self.network = network
        self.num_features = num_features
        self.in_channels = in_channels

    def forward(self, images: Tensor) -> Tensor:
        """Map images `(N, C, S, S)` to features `(N, num_features)`."""
        features: Tensor = self.network(images)
        return features


class TimmMaps(TimmBackbone):
    """The same of a network whose stages can be looked at."""

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return the stages' maps `(N, channels, h, w)`, of a token network its blocks' patches.

        The mean of the last one is not what the classifier sees, where layers follow it.
        """
        maps: list[Tensor] = self.network.forward_intermediates(images, intermediates_only=True)  # type: ignore[operator]
        return maps


def timm_options(
    weights: str | None = None,
    pool: Literal["mean", "class"] | None = None,
    blocks: Annotated[int, Range(1, 1000)] | None = None,
) -> None:
    """Take the options of a network of timm as a recipe has them.

    Args:
        weights: None for random ones, "pretrained" for the hub's, or a file.
        pool: of a network of tokens, what its features are: the mean of the patches, or the class token; None: what
            its makers chose.
        blocks: the network ends after so many of its first blocks, >= 1, a small one that starts from the weights of a
            large one; None: it is whole.
    """


def build_timm(
    name: str,
    weights: str | None,
    *,
    in_channels: int,
    image_size: int,
    pool: str | None = None,
    blocks: int | None = None,
) -> TimmBackbone:
    """Build a network of timm for images of one size.

    Args:
        name: as for `check_timm`.
        weights: None for random weights, "pretrained" for the hub's, or a file.
        in_channels: of its images.
        image_size: side of its images in pixels. A vision transformer interpolates its positions for it.
        pool: see `timm_options`.
        blocks: likewise.

    Raises:
        SemisupError: what `check_timm` finds, a size that the network cannot take, more blocks than it has, or weights
            that do not fit.
    """
    import timm

    subject = f"model timm/{name}"
    raise_all(check_timm(name), subject)
    source = timm_source(name)
    try:
        sized = timm_sized(source, image_size)
        network = timm.create_model(
            source.architecture, pretrained=False, num_classes=0, in_chans=in_channels, **{**source.args, **sized}
        )
    except (RuntimeError, AssertionError, ValueError, TypeError, ArithmeticError, LookupError, AttributeError) as error:
        its = f"; its own size is {source.size} px (resize)" if source.fixed_size else ""
        raise SemisupError(
            f"{subject}: cannot be built for {image_size} px images: {first_line(error)}{its}"
        ) from error
    if pool is not None:
        _set_pool(network, pool, subject)
    if blocks is not None:
        _end_after(network, blocks, subject)
    asked = repr((source.architecture, source.args, sized, in_channels, image_size, pool, blocks))
    if asked not in _WIDTHS:
        _WIDTHS[asked] = _width(network, in_channels, image_size, subject)
    if weights is not None:
        fill_from_file(network, weights_of(name) if weights == PRETRAINED else Path(weights), subject)
    cls = TimmMaps if blocks is None and hasattr(network, "forward_intermediates") else TimmBackbone
    return cls(network, _WIDTHS[asked], in_channels)


def _set_pool(network: nn.Module, pool: str, subject: str) -> None:
    if not hasattr(network, "num_prefix_tokens"):
        raise SemisupError(f"{subject}: pool: only a network of tokens has a choice; remove it")
    if pool == "class" and getattr(network, "cls_token", None) is None:
        raise SemisupError(f"{subject}: pool: 'class' needs a class token, which it has not; use mean")
    network.reset_classifier(0, "token" if pool == "class" else "avg")  # type: ignore[operator]


def _end_after(network: nn.Module, blocks: int, subject: str) -> None:
    """Take out what follows a network's first blocks, in place: its features are the means of the last map left."""
    found = blocks_of(network).modules
    if blocks >= len(found):
        raise SemisupError(f"{subject}: blocks: must be less than the network's {len(found)} blocks, not {blocks}")
    if not hasattr(network, "prune_intermediate_layers"):
        raise SemisupError(f"{subject}: blocks: timm cannot end this network early; remove it")
    pool = () if hasattr(network, "num_prefix_tokens") else ("avg",)
    network.prune_intermediate_layers(1, prune_norm=True, prune_head=False)  # type: ignore[operator]  # what follows the last block
    network.reset_classifier(0, *pool)  # type: ignore[operator]
    left_out = {id(module) for module in found[blocks:]}
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if id(child) in left_out:
                setattr(parent, name, nn.Identity())


def timm_sized(source: TimmSource, image_size: int) -> dict[str, Any]:
    """Return the options by which a network of one size takes another: interpolated positions, or built for it."""
    if not source.fixed_size or image_size == source.size:
        return {}
    import timm

    with torch.device("meta"):
        probe = timm.create_model(source.architecture, pretrained=False, num_classes=0, **source.args)
    return {"dynamic_img_size": True} if hasattr(probe, "dynamic_img_size") else {"img_size": image_size}


def timm_takes(name: str, image_size: int) -> bool:
    """Tell whether a network with its own weights takes images of a size; False of an unknown name, too.

    A network of one size may be built for another, and then has other shapes than the file.
    """
    try:
        raise_all(check_timm(name))
        sides = (image_size, timm_source(name).size)
        with torch.device("meta"):
            built = [build_timm(name, None, in_channels=3, image_size=side).state_dict() for side in sides]
    except SemisupError:
        return False
    return [tensor.shape for tensor in built[0].values()] == [tensor.shape for tensor in built[1].values()]


def timm_ends(name: str, wanted: int) -> int | None:
    """Return after how many blocks a network can end: so many as wanted, else half of its own; None: it cannot."""
    size = timm_source(name).size
    with torch.device("meta"):
        own = len(blocks_of(build_timm(name, None, in_channels=3, image_size=size).network).modules)
        for blocks in (wanted, max(1, own // 2)):
            try:
                build_timm(name, None, in_channels=3, image_size=size, blocks=blocks)
            except SemisupError:
                continue
            return blocks
    return None


def _width(network: nn.Module, in_channels: int, image_size: int, subject: str) -> int:
    """Return the width of a network's features, once it takes images of this size."""
    shape = output_shape(network, in_channels, image_size, subject)
    if len(shape) != 2:
        raise SemisupError(f"{subject}: gives {shape} for 2 images, not one row of features for each")
    return shape[1]


def output_shape(network: nn.Module, in_channels: int, image_size: int, subject: str) -> tuple[int, ...]:
    """Return the shape of what a network makes of two images, tried on the meta device, where nothing is computed.

    Args:
        network: stays in its mode.
        in_channels: of the images.
        image_size: their side in pixels.
        subject: what the message begins with.

    Raises:
        SemisupError: the network cannot process images of this size.
    """
    shapes = {n: torch.empty_like(t, device="meta") for n, t in (*network.named_parameters(), *network.named_buffers())}
    images = torch.empty(2, in_channels, image_size, image_size, device="meta")
    training = network.training
    network.eval()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            features: Tensor = torch.func.functional_call(network, shapes, (images,))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise SemisupError(f"{subject}: cannot process images of {image_size} px ({first_line(error)})") from error
    finally:
        network.train(training)
    return tuple(features.shape)


def fill_from_file(network: nn.Module, path: Path, subject: str) -> None:
    """Copy a file's tensors into a network, which must find all of its own there; others, such as heads, are left.

    Raises:
        SemisupError: as for `fit_file_whole`, or they are not finite.
    """
    fit, _ = fit_file_whole(network, path, subject)
    state = network.state_dict()
    with torch.no_grad():
        for name, tensor in finite_tensors(path, fit.names, f"{subject}: weights {path}", state).items():
            state[name].copy_(tensor)


def fit_file_whole(network: nn.Module, path: Path, subject: str) -> tuple[Fit, WeightsReport]:
    """Match a file with a network, which may be on the meta device.

    Raises:
        SemisupError: the file lacks some, they have other shapes, or it is of a network with more blocks.
    """
    shapes = file_shapes(path)
    fit = fit_names(network, shapes)
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    report = compare(wanted, {name: as_used(shapes[theirs], wanted[name]) for name, theirs in fit.names.items()})
    if report.fraction < 1:
        own = getattr(network, "pretrained_cfg", {})
        sized = own.get("fixed_input_size") and report.mismatched
        hint = (
            f"; the network's own size is {own['input_size'][-1]} px (resize), others have other shapes"
            if sized
            else ""
        )
        raise SemisupError(f"{subject}: weights {path} do not fit{hint}\n{report}")
    if fit.deeper:
        raise SemisupError(f"{subject}: weights {path} are of a deeper network, which has {fit.deeper}")
    return fit, report
