"""Weights on disk: safetensors files, written atomically, compared by their headers before a tensor is read."""

from __future__ import annotations

import math
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from semisup.errors import SemisupError
from semisup.files import replacing

__all__ = [
    "COUNT",
    "Shape",
    "WeightsReport",
    "compare",
    "in_utf8",
    "load_into",
    "load_weights",
    "read_shapes",
    "renamed",
    "save_weights",
]

Shape = tuple[int, ...]
Rename = Mapping[str, str | None]
COUNT = "num_batches_tracked"
"""Of BatchNorm: files from before PyTorch 0.4.1, such as torchvision's first ones, lack it, and `load_state_dict` asks
none of them for it either."""


@dataclass(frozen=True)
class WeightsReport:
    """How the tensors of a file fit a network, by name.

    Attributes:
        matched: names in both, with one shape.
        missing: names the network has and the file lacks, but for BatchNorm's counts of batches (`COUNT`).
        unexpected: names the file has and the network lacks.
        mismatched: names in both whose shapes differ: `{name: (network's shape, file's shape)}`.
        fraction: share of the network's elements that the file supplies, 0 to 1 (1 for a network without any).
        notes: sentences on what was assumed and left out.
    """

    matched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: dict[str, tuple[Shape, Shape]] = field(default_factory=dict)
    fraction: float = 1.0
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Say it in a few lines, naming at most eight tensors of a kind."""
        tensors = len(self.matched) + len(self.missing) + len(self.mismatched)
        lines = [
            f"{100 * self.fraction:.2f} % of the network's weights found ({len(self.matched)} of {tensors} tensors)"
        ]
        shapes = [f"{name} (network {mine}, file {theirs})" for name, (mine, theirs) in self.mismatched.items()]
        for kind, names in (("missing", self.missing), ("mismatched", shapes), ("unexpected", self.unexpected)):
            if names:
                rest = f" and {len(names) - 8} more" if len(names) > 8 else ""
                lines.append(f"  {kind}: {', '.join(names[:8])}{rest}")
        return "\n".join(lines + [f"  {note}" for note in self.notes])


def save_weights(path: str | Path, state_dict: Mapping[str, Tensor]) -> None:
    """Write a state dict as safetensors, so that `path` is at all times either the old file or the whole new one.

    Tensors of any memory layout and device, and tensors that share memory, are written as plain separate ones.

    Args:
        path: the file; its folder must exist.
        state_dict: names to tensors.

    Raises:
        SemisupError: the file cannot be written.
    """
    path = Path(path)
    tensors: dict[str, Tensor] = {}
    memories: set[int] = set()
    for name, tensor in state_dict.items():
        plain = tensor.detach().cpu().contiguous()
        memory = plain.untyped_storage().data_ptr()
        # safetensors refuses two tensors in one memory: tied weights, or views of one buffer.
        tensors[name] = plain.clone() if memory in memories else plain
        memories.add(memory)
    with replacing(path) as temporary:
        try:
            temporary.touch()
            mode = temporary.stat().st_mode  # as the umask has it; safetensors lets the owner alone read its files
            save_file(tensors, temporary)
            temporary.chmod(stat.S_IMODE(mode))
        except SafetensorError as error:  # its word for a full disk
            raise SemisupError(f"{path}: cannot be written ({error})") from error


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """Read all tensors of a safetensors file into CPU memory. Reading cannot execute code.

    Raises:
        SemisupError: no such file, or not a whole safetensors file.
    """
    try:
        with in_utf8(path) as name:
            return load_file(name)
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error


@contextmanager
def in_utf8(path: str | Path) -> Iterator[str | Path]:
    """Give a name of a file that is UTF-8, as safetensors wants it: its own, or else that of a link to it."""
    if str(path).isprintable() or os.name != "posix":
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / "weights.safetensors"
        link.symlink_to(Path(path).absolute())
        yield link


def read_shapes(path: str | Path) -> dict[str, Shape]:
    """Read the names and shapes from a safetensors file's header; no tensor data is touched.

    Raises:
        SemisupError: no such file, or not a whole safetensors file.
    """
    try:
        with in_utf8(path) as name, safe_open(name, framework="pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error


def compare(
    model_shapes: Mapping[str, Shape], file_shapes: Mapping[str, Shape], notes: Sequence[str] = ()
) -> WeightsReport:
    """Compare a network's tensors with a file's by name and shape; see `read_shapes` for the file's."""
    matched: list[str] = []
    missing: list[str] = []
    mismatched: dict[str, tuple[Shape, Shape]] = {}
    for name, shape in model_shapes.items():
        if name not in file_shapes:
            missing += [] if name.endswith(COUNT) else [name]
        elif tuple(file_shapes[name]) != tuple(shape):
            mismatched[name] = (tuple(shape), tuple(file_shapes[name]))
        else:
            matched.append(name)
    unexpected = [name for name in file_shapes if name not in model_shapes]
    total = sum(math.prod(model_shapes[name]) for name in (*matched, *missing, *mismatched))
    found = sum(math.prod(model_shapes[name]) for name in matched)
    told = [
        f"{name}: positions of {_tokens(theirs)} tokens in the file, {_tokens(mine)} in the network"
        for name, (mine, theirs) in mismatched.items()
        if "pos_embed" in name and len(mine) == len(theirs) == 3
    ]
    return WeightsReport(matched, missing, unexpected, mismatched, found / total if total else 1.0, (*notes, *told))


def _tokens(shape: Shape) -> str:
    """Say of how many patches positions (1, tokens, width) are, and of how many tokens that belong to none."""
    side = math.isqrt(shape[1])
    return f"{side} x {side} + {shape[1] - side**2}"


def load_into(
    module: nn.Module,
    source: str | Path | Mapping[str, Tensor],
    *,
    minimum_match: float = 1.0,
    rename: Rename | None = None,
) -> WeightsReport:
    """Copy the tensors that fit by name and shape into `module`; refuse, before changing it, when too few do.

    Args:
        module: changed in place: its parameters and persistent buffers.
        source: a safetensors file, of which only the header is read before the decision, or a state dict.
        minimum_match: least share of the module's elements to be found, 0 to 1.
        rename: prefixes of the source's names and what they become, tried in order, each name once; None drops the
            tensors. `{"projector.layers.": "neck.", "head.": None}` carries a projection head over into a
            classifier's neck.

    Returns:
        What was found and what was not, by the module's names.

    Raises:
        SemisupError: fewer elements matched, two names became one, or the file cannot be read.
    """
    state = module.state_dict()
    model_shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if isinstance(source, Mapping):
        subject = "weights"
        source_shapes = {name: tuple(tensor.shape) for name, tensor in source.items()}
    else:
        subject = f"weights {source}"
        source_shapes = read_shapes(source)
    names = renamed(source_shapes, rename or {}, subject)
    report = compare(model_shapes, {name: source_shapes[origin] for name, origin in names.items()})
    if report.fraction < minimum_match:
        raise SemisupError(f"{subject}: do not fit, at least {100 * minimum_match:g} % must match\n{report}")
    tensors = source if isinstance(source, Mapping) else load_weights(source)
    with torch.no_grad():
        for name in report.matched:
            state[name].copy_(tensors[names[name]])
    return report


def renamed(source_names: Mapping[str, Shape], rename: Rename, subject: str) -> dict[str, str]:
    """Return `{new name: name in the source}`.

    Args:
        source_names: the names that are replaced.
        rename: prefixes and what they become, the first that fits; None drops the tensor.
        subject: what the message is about.

    Raises:
        SemisupError: two names would become one.
    """
    names: dict[str, str] = {}
    for origin in source_names:
        prefix = next((prefix for prefix in rename if origin.startswith(prefix)), None)
        replacement = "" if prefix is None else rename[prefix]
        if replacement is None:
            continue
        name = replacement + origin.removeprefix(prefix or "")
        if name in names:
            raise SemisupError(f"{subject}: rename turns both {names[name]!r} and {origin!r} into {name!r}")
        names[name] = origin
    return names


def _unreadable(path: str | Path, error: OSError | SafetensorError) -> SemisupError:
    if isinstance(error, FileNotFoundError):
        return SemisupError(f"weights {path}: no such file")
    return SemisupError(
        f"weights {path}: not a readable safetensors file, perhaps cut short or of another kind ({error})"
    )
