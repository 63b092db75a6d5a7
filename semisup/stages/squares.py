"""Pictures of any size to squares by arithmetic on tensors, so that an exported file does what `data.fit` says."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from semisup.data.decode import Fit

__all__ = ["square"]


def square(images: Tensor, size: int, fit: Fit) -> Tensor:
    """Scale images as `semisup.data.decode` does for training, with a filter that averages when it shrinks.

    Args:
        images: (n, h, w, C) uint8; images of the network's size pass unchanged.
        size: side of the results, pixels.
        fit: how images that are no squares become some.

    Returns:
        (n, C, size, size) float32, 0 to 255. They differ from what was decoded for training by less than one level:
        Pillow rounds where this does not.

    Raises:
        IndexError: images of no pixels, of which a network would make a prediction.
    """
    height, width = images.shape[1:3]
    pixels = images.permute(0, 3, 1, 2).float()
    nothing = 0 * pixels[:, :, 0, 0, None, None]  # an image of no pixels ends here in an error, also in a file
    if fit == "pad":
        return _padded(pixels, size) + nothing
    side = torch.sym_min(height, width)
    used = (side, side) if fit == "crop" else (height, width)
    scaled: Tensor = weights(height, used[0], size) @ pixels @ weights(width, used[1], size).T
    return scaled + nothing


def weights(length: int, used: Any, size: int, target: Any = None) -> Tensor:
    """Return what each pixel of a line adds to each of those that its middle part is scaled to.

    These are Pillow's weights of its bilinear filter, written as arithmetic on the sides so that they stay free in an
    exported file, with operations that every runtime has.

    Args:
        length: pixels of the line.
        used: how many of them, in the middle, are scaled.
        size: rows of the result.
        target: in how many of its rows, in the middle, the part is put, a whole number; None: in all of them.

    Returns:
        (size, length); rows add up to 1, or are 0 outside the target. Those of the identity where `used` is `size`.
    """
    start = (length - used) // 2
    places, rows = torch.arange(length), torch.arange(size)
    if target is not None:
        rows = rows - (size - target) // 2
    into = size if target is None else target
    centers: Any = (rows + 0.5) * used / into - 0.5 + start
    reach: Any = torch.sym_max(used, size) if target is None else torch.clamp(target, min=used)
    distance = (places - centers[:, None]).abs() * into / reach
    found: Tensor = (1 - distance).clamp(min=0) * ((places >= start) & (places < start + used))
    if target is None:
        whole: Tensor = found / found.sum(1, keepdim=True)
        return whole
    inside = (rows >= 0) & (rows < target)
    placed: Tensor = found / found.sum(1, keepdim=True).clamp(min=1e-9) * inside[:, None]
    return placed.float()


def _padded(pixels: Tensor, size: int) -> Tensor:
    """Scale all of each image (n, C, h, w) into the middle of a square of its border's median color."""
    height, width = pixels.shape[2:]
    one = torch.ones((), dtype=torch.float64)
    scale: Any = size / (one * torch.sym_max(height, width))
    rows, columns = ((one * side * scale).round().clamp(min=1) for side in (height, width))  # as `fit_image` counts
    found = weights(height, height, size, rows) @ pixels @ weights(width, width, size, columns).T
    top, left = (size - rows) // 2, (size - columns) // 2
    place = torch.arange(size)
    upright, across = (place >= top) & (place < top + rows), (place >= left) & (place < left + columns)
    edges = [
        _line(found, 2, top, across),
        _line(found, 2, top + rows - 1, across),
        _line(found, 3, left, upright),
        _line(found, 3, left + columns - 1, upright),
    ]
    border = torch.cat(edges, dim=-1).sort(dim=-1).values
    middle = (rows + columns).long()  # half of an even number of pixels: the median is the mean of the two there
    color = (border.index_select(-1, (middle - 1).reshape(1)) + border.index_select(-1, middle.reshape(1))) / 2
    return torch.where(upright[:, None] & across, found, color.floor()[..., None])


def _line(images: Tensor, axis: int, place: Tensor, there: Tensor) -> Tensor:
    """Return a row or column of images (n, C, size, size) in whole levels: (n, C, size), infinity outside the image."""
    line = images.index_select(axis, place.long().reshape(1)).squeeze(axis).round()
    return torch.where(there, line, torch.inf)
