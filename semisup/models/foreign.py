"""Weights files that others wrote: read without running code, and their names matched to a network's."""

from __future__ import annotations

import argparse
import math
import pickle
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from semisup.errors import UNREADABLE, SemisupError, first_line, refuse_special
from semisup.models.weights import Shape, in_utf8, load_weights, read_shapes

__all__ = [
    "SUFFIXES",
    "TORCH_SUFFIXES",
    "Fit",
    "file_shapes",
    "file_tensors",
    "finite_tensors",
    "fit_names",
    "is_ours",
]

TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".tar", ".ckpt")
"""Of files that `torch.save` wrote; what a file is, its first bytes say."""
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""What numbers of a network may be stored as: whole ones and 8-bit floats stand for others, times a scale."""
SECOND_CHOICE = ("encoder_k.", "momentum", "target", "student", "discriminator")
"""Parts of prefixes of networks that have a better twin in the file: MoCo's key encoder (facebookresearch/moco),
solo-learn's and lightly's momentum encoders, BYOL's target, and the student next to DINO's teacher (facebookresearch/
dino, `eval_linear.py`: `checkpoint_key` is "teacher")."""
AVERAGED = ("state_dict_ema.", "model_ema.")
"""Parts of prefixes of averages of weights, which timm itself takes before the last ones (`load_state_dict`), and which
it and torchvision's references evaluate."""


def file_shapes(path: str | Path) -> dict[str, Shape]:
    """Read names and shapes of all tensors in a weights file.

    Nested names are joined by dots, as in `state_dict.module.conv1.weight`.

    Raises:
        SemisupError: no such file, not a whole one, or one that holds more than tensors and plain data.
    """
    if Path(path).is_dir():
        own = Path(path) / "model.safetensors"
        raise SemisupError(f"weights {path}: is a folder; name a file" + (f", e.g. {own}" if own.is_file() else ""))
    refuse_special(Path(path), f"weights {path}:")
    if _is_torch(path):
        return {name: tuple(tensor.shape) for name, tensor in _torch_tensors(path).items()}
    return read_shapes(path)


def file_tensors(path: str | Path, names: Mapping[str, str]) -> dict[str, Tensor]:
    """Read some tensors of a weights file into CPU memory.

    Args:
        path: .safetensors, or one of `TORCH_SUFFIXES`.
        names: name in the result -> name in the file, as `file_shapes` gives it.

    Raises:
        SemisupError: as for `file_shapes`.
    """
    if _is_torch(path):
        tensors = _torch_tensors(path)
        return {name: tensors[origin] for name, origin in names.items()}
    if len(names) * 2 > len(read_shapes(path)):
        tensors = load_weights(path)
        return {name: tensors[origin] for name, origin in names.items()}
    with in_utf8(path) as utf8, safe_open(utf8, framework="pt") as file:
        return {name: file.get_tensor(origin) for name, origin in names.items()}


def finite_tensors(
    path: str | Path, names: Mapping[str, str], subject: str, wanted: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Read tensors as `file_tensors`, and refuse those that no network could be started from.

    Args:
        path: as for `file_tensors`.
        names: likewise; tensors of other names may hold what they like.
        subject: what the message is about.
        wanted: the network's tensors, by name; they may be on the meta device.

    Raises:
        SemisupError: as for `file_tensors`, or one of them is of no plain float type, or not finite in the network's.
    """
    tensors = file_tensors(path, names)
    for name, tensor in tensors.items():
        plain = tensor.layout == torch.strided and not tensor.is_meta and not tensor.is_quantized
        if not plain or (wanted[name].is_floating_point() and tensor.dtype not in FLOATS):
            kind = str(tensor.dtype if tensor.layout == torch.strided else tensor.layout)
            kind = "a shape without any, of the meta device" if tensor.is_meta else kind
            raise SemisupError(
                f"{subject}: {names[name]} must be of plain float16, bfloat16, float32 or float64 numbers, not {kind}"
            )
    wrong = [names[name] for name, tensor in tensors.items() if not tensor.to(wanted[name].dtype).isfinite().all()]
    if wrong:
        these = f"{wrong[0]} and {len(wrong) - 1} other tensors hold" if len(wrong) > 1 else f"{wrong[0]} holds"
        raise SemisupError(f"{subject}: {these} NaN or infinite values, from which nothing can be trained")
    return tensors


def _is_torch(path: str | Path) -> bool:
    """Tell by the first bytes, else by its name; what ends in .safetensors torch itself reads by its name.

    A safetensors file begins with eight bytes of a length and `{`, one of torch.save with those of a zip file or of
    a pickle of protocol 2.
    """
    if Path(path).suffix == ".safetensors":
        return False
    first = _first_bytes(path)
    if first[8:] == b"{":
        return False
    return first.startswith((b"PK", b"\x80\x02")) or Path(path).suffix.lower() in TORCH_SUFFIXES


def _first_bytes(path: str | Path) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return file.read(9)
    except OSError:
        return b""  # it is named by who opens it next


def _torch_tensors(path: str | Path) -> dict[str, Tensor]:
    """Return all tensors of a file of `torch.save`, without their memory where the file can be mapped."""
    subject = f"weights {path}"
    if not Path(path).exists():
        raise SemisupError(f"{subject}: no such file")
    try:
        # Namespace: what DINO's, MAE's and MoCo's scripts keep their arguments in; attributes and nothing else.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of another pickle protocol, which works or is refused
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        if not _first_bytes(path).startswith((b"PK", b"\x80")):  # of a zip file, of a pickle of protocol 2 or later
            raise SemisupError(f"{subject}: neither a file of torch.save nor one of safetensors") from error
        raise SemisupError(
            f"{subject}: holds more than tensors and plain data, and unpacking that could run code; where it was made, "
            f"save its state_dict alone ({_last_words(error)})"
        ) from error
    except UNREADABLE as error:
        if "TorchScript" in str(error):
            raise SemisupError(
                f"{subject}: is a TorchScript program, not weights; save the state_dict() of what torch.jit.load gives"
            ) from error
        raise SemisupError(
            f"{subject}: not a readable file of torch.save, perhaps cut short ({first_line(error)})"
        ) from error
    found: dict[str, Tensor] = {}
    _collect(content, "", found, set())
    if not found:
        raise SemisupError(f"{subject}: holds no tensors")
    return found


def _last_words(error: Exception) -> str:
    """Return what torch says was in the file, out of its page of advice."""
    lines = [line.strip() for line in str(error).splitlines() if "GLOBAL" in line or "Unsupported" in line]
    return lines[0] if lines else first_line(error)


def _collect(content: Any, prefix: str, found: dict[str, Tensor], seen: set[int]) -> None:
    """Gather tensors by their nested names; a mapping that stands in a file twice, or in itself, is read once."""
    if isinstance(content, Tensor) and not content.is_nested:  # a nested one has no shape
        found[prefix.removesuffix(".")] = content
    elif isinstance(content, Mapping) and id(content) not in seen:
        seen.add(id(content))
        for key, value in content.items():
            _collect(value, f"{prefix}{key}.", found, seen)


PLACES = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
"""Of the parts of torchvision's ResNets, among which ReLU and pooling count; lightly's ResNets and ours lack them."""
OUR_PARTS = ("backbone.", "neck.", "head.", "projector.")


def is_ours(shapes: Mapping[str, Shape], *, wrapped: bool = False) -> bool:
    """Tell whether most names are those of a stage's `model.safetensors`; lightly has `backbone.`, too, but counts.

    Args:
        shapes: of the file's tensors.
        wrapped: the network is one of another library, which a stage's file has as `backbone.network.`.
    """
    if wrapped and not any(name.startswith("backbone.network.") for name in shapes):
        return False
    ours = [name for name in shapes if name.startswith(OUR_PARTS)]
    counted = any(name.startswith("backbone.") and name.split(".")[1].isdigit() for name in ours)
    return not counted and 2 * len(ours) > len(shapes)


@dataclass(frozen=True)
class Fit:
    """Which tensor of a file is meant for which of a network.

    Attributes:
        names: the network's name -> the file's, of all the network's tensors that the file has by name.
        prefix: what the file's names begin with.
        numbered: the file counts the parts of the network instead of naming them.
    """

    names: dict[str, str]
    prefix: str
    numbered: bool = False


def fit_names(network: nn.Module, shapes: Mapping[str, Shape]) -> Fit:
    """Find the prefix under which a file has the names of a network: the one with most weights of the right shape.

    Wrappers put words in front of the same names: `module.` (DataParallel), `backbone.` (lightly, solo-learn),
    `module.encoder_q.` (MoCo), `teacher.backbone.` (DINOv2), and many nest the weights (`state_dict`, `model`). A file
    may also count the parts, 0, 1, 4 ..., as `nn.Sequential(*resnet.children())` does, which lightly's examples train.

    Args:
        network: the backbone, as it would be named alone.
        shapes: of the file's tensors, as `file_shapes` gives them.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    best, most = Fit({}, ""), (0, 0, 0, 0)
    named = (False, {name: name for name in wanted})
    for numbered, spelled in (named, *((True, counted) for counted in _counted(network, wanted))):
        elements, names = _votes({spelled[name]: shape for name, shape in wanted.items()}, shapes)
        for prefix, count in names.items():
            choice = sum(word in prefix for word in AVERAGED) - sum(word in prefix for word in SECOND_CHOICE)
            rank = (elements[prefix], count, choice, -len(prefix))
            if rank > most:
                found = {name: prefix + theirs for name, theirs in spelled.items() if prefix + theirs in shapes}
                best, most = Fit(found, prefix, numbered), rank
    return best


def _votes(wanted: Mapping[str, Shape], shapes: Mapping[str, Shape]) -> tuple[Counter[str], Counter[str]]:
    """Prefix -> number of elements that fit under it in name and shape, and number of names."""
    elements: Counter[str] = Counter()
    names: Counter[str] = Counter()
    for name, shape in shapes.items():
        parts = name.split(".")
        for i in range(len(parts)):
            tail = ".".join(parts[i:])
            if tail in wanted:
                prefix = name.removesuffix(tail)
                names[prefix] += 1
                elements[prefix] += math.prod(shape) if wanted[tail] == shape else 0
    return elements, names


def _counted(network: nn.Module, names: Iterable[str]) -> Iterator[dict[str, str]]:
    """Yield name -> the same with the network's parts counted, conv1.weight -> 0.weight: ours, and torchvision's."""
    own = {part: str(i) for i, (part, _) in enumerate(network.named_children())}
    split = {name: name.partition(".") for name in names}
    for places in (own, PLACES) if set(own) >= set(PLACES) else (own,):
        yield {name: f"{places.get(first, first)}{dot}{rest}" for name, (first, dot, rest) in split.items()}
