"""Weights files that others wrote: read without running code, and their names matched to a network's."""

from __future__ import annotations

import builtins
import math
import pickle
import re
import sys
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING  # torch.save writes the module names of Python 2
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from semisup.errors import UNREADABLE, SemisupError, first_line, refuse_special
from semisup.models.blocks import LISTS
from semisup.models.weights import Shape, in_utf8, load_weights, read_shapes

__all__ = [
    "SUFFIXES",
    "TORCH_SUFFIXES",
    "Fit",
    "as_used",
    "file_shapes",
    "file_tensors",
    "finite_tensors",
    "fit_names",
    "is_ours",
]

TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".tar", ".ckpt")
"""Of files that `torch.save` wrote; what a file is, its first bytes say."""
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
OF_DATA = {"argparse", "collections", "copyreg", "datetime", "decimal", "enum", "fractions", "functools", "logging"}
OF_DATA |= {"operator", "pathlib", "random", "re", "string", "threading", "time", "types", "typing", "uuid", "_codecs"}
"""Modules of Python whose objects stand next to weights. Who asks for another of its modules wants to run something."""
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""What numbers of a network may be stored as: whole ones and 8-bit floats stand for others, times a scale."""
TWINS = {
    r"(?<![a-z])ema(?![a-z])": 3,
    r"online": 2,
    r"target_encoder": 2,
    r"target|momentum|encoder_k\.|student|discriminator": -1,
}
"""What the prefix of a network says of it where the file has another of the same names; the larger sum is taken.

Averages of weights (timm's `state_dict_ema`, torchvision's `model_ema`, FixMatch-pytorch's `ema_state_dict`, TorchSSL's
`ema_model`) are what their makers evaluate. So are the teacher of DINO (`eval_linear.py`: `checkpoint_key`) and the
`target_encoder` of I-JEPA and V-JEPA, but of BYOL the online network, of MoCo the query encoder, and of solo-learn and
lightly what has no momentum.
"""


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
        wanted: the network's tensors, by name; they may be on the meta device. Their shapes are the file's, `as_used`.

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
    return {n: t if t.shape == wanted[n].shape else (t / 3).expand(wanted[n].shape) for n, t in tensors.items()}


def as_used(shape: Shape, wanted: Shape) -> Shape:
    """Return the shape in which a file's tensor is used: a first kernel of gray images takes three equal channels."""
    return wanted if len(shape) == 4 and shape[1] == 1 and wanted == (shape[0], 3, *shape[2:]) else shape


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
    unread: list[str] = []
    try:
        unread = _unknown(path)
        if running := sorted(filter(_runs, unread)):
            raise pickle.UnpicklingError(f"Unsupported: {running[0]}")
        with torch.serialization.safe_globals([(_Unread, n) for n in unread]), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of another pickle protocol, which works or is refused
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        if not _first_bytes(path).startswith((b"PK", b"\x80")):  # of a zip file, of a pickle of protocol 2 or later
            raise SemisupError(f"{subject}: neither a file of torch.save nor one of safetensors") from error
        told = _last_words(error)
        told = f"among it {', '.join(sorted(unread)[:3])}" if _Unread.__name__ in told else told
        raise SemisupError(
            f"{subject}: holds more than tensors and plain data, and unpacking that could run code; where it was made, "
            f"save its state_dict alone ({told})"
        ) from error
    except UNREADABLE as error:
        if "torchscript" in str(error).lower():
            raise SemisupError(
                f"{subject}: is a TorchScript program, not weights; save the state_dict() of what torch.jit.load gives"
            ) from error
        raise SemisupError(
            f"{subject}: not a readable file of torch.save, perhaps cut short ({first_line(error)})"
        ) from error
    found: dict[str, Tensor] = {}
    _collect(content, "", found, set())
    if not found:
        told = f", and objects that are not read ({', '.join(sorted(unread)[:3])})" if unread else ""
        raise SemisupError(f"{subject}: holds no tensors{told}")
    return found


class _Unread:
    """Stands for any object but tensors and plain data: a best accuracy of NumPy, a path or settings next to weights.

    It is built in place of the object, whose own code is neither imported nor run, and keeps nothing.
    """

    def __new__(cls, *given: Any) -> _Unread:
        """Take whatever the object would be made of."""
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Refuse to lose a network, whose weights would be in here."""
        if isinstance(state, Mapping) and "_parameters" in state:
            raise pickle.UnpicklingError("Unsupported: a whole network, weights and code")


def _unknown(path: str | Path) -> list[str]:
    """Return the names of all functions and classes that a file asks for and torch does not take for plain data.

    Of the old form, which is no zip file, the one in which DINO's, MAE's and MoCo's scripts keep their arguments.
    """
    if not zipfile.is_zipfile(path):
        return ["argparse.Namespace"]
    return torch.serialization.get_unsafe_globals_in_checkpoint(path)


def _runs(name: str) -> bool:
    """Return whether a name of a file is of a part of Python with which it would do something, not describe itself."""
    module, _, last = name.rpartition(".")
    module = IMPORT_MAPPING.get(module, module)
    if module == "builtins":
        return not isinstance(getattr(builtins, last, None), type)
    top = module.partition(".")[0]
    return top in sys.stdlib_module_names and top not in OF_DATA


def _last_words(error: Exception) -> str:
    """Return what torch says was in the file, out of its page of advice."""
    told = re.search(r"(?:Unsupported|Trying to|Can only)[^\n]*", str(error))
    return first_line(error) if told is None else told[0].partition(" Please use ")[0]


def _collect(content: Any, prefix: str, found: dict[str, Tensor], seen: set[int]) -> None:
    """Gather tensors by their nested names; a mapping that stands in a file twice, or in itself, is read once."""
    if isinstance(content, Tensor) and not content.is_nested:  # a nested one has no shape
        found[prefix.removesuffix(".")] = content
    elif isinstance(content, Mapping) and id(content) not in seen:
        seen.add(id(content))
        for key, value in content.items():
            _collect(value, f"{prefix}{key}.", found, seen)


ELSEWHERE = ((r"\.downsample\.", ".shortcut."), (r"(denselayer\d+\.(?:norm|relu|conv))(\d)", r"\1.\2"))
"""torchvision's names, and what others call the same: lightly's ResNets and those of kuangliu/pytorch-cifar and
SupContrast; and torchvision itself in the DenseNets that it publishes."""
INSIDE = r"(?<=\.)(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.|(?<=\bblocks\.)\d+\.(?=\d+\.)"
"""What names may have in their middle: wrappers around parts of a network, as torchvision's and PyTorch's examples
have for VGG, and the chunks that DINOv2 trains its blocks in, whose numbers go on from chunk to chunk."""
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
        deeper: a name of the file that belongs to a block beyond the network's last one in a list of them; "": none.
    """

    names: dict[str, str]
    prefix: str
    numbered: bool = False
    deeper: str = ""


def fit_names(network: nn.Module, shapes: Mapping[str, Shape]) -> Fit:
    """Find the prefix under which a file has the names of a network: the one with most weights of the right shape.

    Wrappers put words in front of the same names: `module.` (DataParallel), `backbone.` (lightly, solo-learn),
    `module.encoder_q.` (MoCo), `teacher.backbone.` (DINOv2), and many nest the weights (`state_dict`, `model`). A file
    may also count the parts, 0, 1, 4 ..., as `nn.Sequential(*resnet.children())` does, which lightly's examples train,
    and have other words in the names (`ELSEWHERE`, `INSIDE`).

    Args:
        network: the backbone, as it would be named alone.
        shapes: of the file's tensors, as `file_shapes` gives them.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    best = _best(network, wanted, shapes)
    theirs = {re.sub(INSIDE, "", name): name for name in shapes}
    if len(best.names) == len(wanted) or len(theirs) < len(shapes) or theirs.keys() == shapes.keys():
        return best
    inside = _best(network, wanted, {name: shapes[origin] for name, origin in theirs.items()})
    if len(inside.names) <= len(best.names):
        return best
    names = {name: theirs[found] for name, found in inside.names.items()}
    return replace(inside, names=names, deeper=theirs.get(inside.deeper, ""))


def _best(network: nn.Module, wanted: Mapping[str, Shape], shapes: Mapping[str, Shape]) -> Fit:
    """Find the spelling and the prefix under which most weights fit."""
    best, most = Fit({}, ""), (0, 0, 0, 0)
    for numbered, spelled in _spellings(wanted, shapes):
        elements, names = _votes({spelled[name]: shape for name, shape in wanted.items()}, shapes)
        for prefix, count in names.items():
            choice = sum(worth for words, worth in TWINS.items() if re.search(words, prefix))
            rank = (elements[prefix], count, choice, -len(prefix))
            if rank > most:
                found = {name: prefix + theirs for name, theirs in spelled.items() if prefix + theirs in shapes}
                best, most = Fit(found, prefix, numbered), rank
    return replace(best, deeper=_deeper(network, best, shapes))


def _deeper(network: nn.Module, fit: Fit, shapes: Iterable[str]) -> str:
    """Return the file's first name of a block beyond the last one of a list that the network has; "": there is none.

    ResNet-18 has the names and shapes of the first blocks of each of ResNet-34's stages, which are no network together.
    """
    firsts = {n.partition(".")[0]: t.removeprefix(fit.prefix).partition(".")[0] for n, t in fit.names.items()}
    lengths = {}
    for path, module in network.named_modules():
        if path and type(module) in LISTS and any(True for block in module for _ in block.children()):
            first, dot, rest = path.partition(".")
            lengths[f"{fit.prefix}{firsts.get(first, first)}{dot}{rest}."] = len(module)
    for name in shapes:
        for number in re.finditer(r"(?<=\.)\d+(?=\.)", name):
            if int(number[0]) >= lengths.get(name[: number.start()], math.inf):
                return name
    return ""


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


def _spellings(wanted: Mapping[str, Shape], shapes: Mapping[str, Shape]) -> Iterator[tuple[bool, dict[str, str]]]:
    """Yield whether a file counts the parts, and the network's names -> what it may call them, but for a prefix."""
    named, other = {name: name for name in wanted}, {name: _elsewhere(name) for name in wanted}
    for spelled in (named, other) if other != named else (named,):
        yield False, spelled
        for places in _places(wanted, shapes):
            split = {name: theirs.partition(".") for name, theirs in spelled.items()}
            yield True, {name: f"{places[first]}{dot}{rest}" for name, (first, dot, rest) in split.items()}


def _elsewhere(name: str) -> str:
    for ours, theirs in ELSEWHERE:
        name = re.sub(ours, theirs, name)
    return name


def _places(wanted: Iterable[str], shapes: Iterable[str]) -> list[dict[str, int]]:
    """List what numbers the network's parts may have in a file, in their order; those without weights count, too."""
    parts = list(dict.fromkeys(name.partition(".")[0] for name in wanted))
    numbers: dict[str, set[int]] = {}
    for name in shapes:
        for number in re.finditer(r"(?<![^.])\d+(?=\.)", name):
            numbers.setdefault(name[: number.start()], set()).add(int(number[0]))
    found = {tuple(sorted(each)[: len(parts)]) for each in numbers.values() if len(each) >= len(parts)}
    return [dict(zip(parts, each, strict=True)) for each in sorted(found)]
