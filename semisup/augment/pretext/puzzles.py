"""Puzzles that an image poses without any label: which way up is it, and where in it was this tile?

What is random here comes from torch's global generator, on the images' device.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from semisup.errors import SemisupError

__all__ = [
    "cut_tiles",
    "drop_channels",
    "four_rotations",
    "halve",
    "lose_color",
    "maximin_permutations",
    "normalize_tiles",
    "quarters",
]

SMALLEST_CELL = 8  # of a grid of tiles, in pixels: half of it may go into gaps, and a backbone needs a tile of 4


def four_rotations(images: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate every image by 0, 1, 2 and 3 quarter turns.

    RotNet (Gidaris et al. 2018, arXiv:1803.07728, sec. 2.1): all four copies of one augmented image. Augment before
    rotating: what padding or cropping draws afterwards would tell the answer.

    Args:
        images: (N, C, S, S), square.

    Returns:
        Copies (4N, C, S, S) in channels_last memory, the four of an image side by side, and their quarter turns (4N,)
        int64: 0, 1, 2, 3, 0, 1, ... What belongs to an image (its label) goes with `repeat_interleave(4)`.

    Raises:
        ValueError: the images are not square.
    """
    if images.ndim != 4 or images.shape[2] != images.shape[3]:
        raise ValueError(f"rotation by quarters takes square images (N, C, S, S), got {tuple(images.shape)}")
    # Transposing and mirroring move pixels without computing on them.
    across = images.transpose(2, 3)
    turned = torch.stack([images, across.flip(2), images.flip(2, 3), across.flip(3)], dim=1).flatten(0, 1)
    quarters = torch.arange(4, device=images.device).repeat(len(images))
    return turned.contiguous(memory_format=torch.channels_last), quarters


def cut_tiles(images: Tensor, grid: int, gap: float, jitter: float) -> Tensor:
    """Cut every image into `grid` x `grid` equal cells, and of each cell take a tile at a random place.

    Without a distance between them, tiles tell where they were by the lines that go on from one to the next. Images
    with cells of less than 8 pixels are enlarged first, bilinearly. What the grid leaves over is lost at the border.

    Args:
        images: (N, C, S, S), square.
        grid: cells along each axis.
        gap: least distance of neighboring tiles as a fraction of the cell's side, in [0, 0.25].
        jitter: how far a tile may move along each axis, likewise; a tile is `1 - gap - jitter` cells wide. All
            three are whole pixels. Two neighbors are `gap + jitter` apart on average.

    Returns:
        (N, grid * grid, C, T, T), the tiles of an image row by row.

    Raises:
        ValueError: the images are not square.
    """
    if images.ndim != 4 or images.shape[2] != images.shape[3]:
        raise ValueError(f"tiles are cut from square images (N, C, S, S), got {tuple(images.shape)}")
    if images.shape[3] < grid * SMALLEST_CELL:
        images = F.interpolate(images, size=(grid * SMALLEST_CELL,) * 2, mode="bilinear", align_corners=False)
    count, channels, _, side = images.shape
    cell = side // grid
    room = round(jitter * cell)
    width = cell - round(gap * cell) - room
    cells = torch.arange(grid, device=images.device) * cell + (side - grid * cell) // 2
    corners = torch.stack([cells.repeat_interleave(grid), cells.repeat(grid)])  # (2, grid * grid): rows, columns
    moves = torch.randint(room + 1, (2, count, grid * grid), device=images.device)
    rows, columns = (corners[:, None] + moves)[..., None] + torch.arange(width, device=images.device)
    pixels = (rows[..., :, None] * side + columns[..., None, :]).flatten(1)  # (N, grid * grid * T * T)
    tiles = images.flatten(2).gather(2, pixels[:, None].expand(-1, channels, -1))
    return tiles.view(count, channels, grid * grid, width, width).transpose(1, 2)


def normalize_tiles(tiles: Tensor) -> Tensor:
    """Bring every channel of every tile (..., T, T) to mean 0 and std 1: brightness would tell its neighbors.

    A tile of one value becomes 0. The std divides by T * T, as batch norm's does.
    """
    centered = tiles - tiles.mean((-2, -1), keepdim=True)
    # Normalized images: one gray level of 255 in one pixel of a tile still counts for more than the bound.
    return centered / centered.square().mean((-2, -1), keepdim=True).sqrt().clamp(min=1e-3)


def drop_channels(images: Tensor) -> Tensor:
    """Keep one random channel of every image and put noise in place of the others.

    Colors that a lens shifts against one another tell where in a photograph a tile was. The noise is Gaussian, of
    1/100 of the kept channel's std (arXiv:1505.05192, sec. 4.1). Images of one channel stay as they are.

    Args:
        images: (N, C, H, W).
    """
    count, channels = images.shape[:2]
    if channels == 1:
        return images
    kept = F.one_hot(torch.randint(channels, (count,), device=images.device), channels).to(images.dtype)
    kept = kept[:, :, None, None]
    centered = images - images.mean((2, 3), keepdim=True)
    std = (kept * centered.square().mean((2, 3), keepdim=True)).sum(1, keepdim=True).sqrt()
    return kept * images + (1 - kept) * std / 100 * torch.randn_like(images)


def lose_color(images: Tensor, part: float) -> Tensor:
    """Make a random part of the images gray, the mean of their channels. Images of one channel stay as they are.

    Args:
        images: (N, C, H, W).
        part: of the images, on average, in [0, 1].
    """
    if images.shape[1] == 1:
        return images
    uncolored = torch.rand(len(images), 1, 1, 1, device=images.device) < part
    return torch.where(uncolored, images.mean(1, keepdim=True), images)


def quarters(images: Tensor) -> Tensor:
    """Cut every image (N, C, 2T, 2T) into (N, 4, C, T, T), row by row."""
    half = images.shape[-1] // 2
    return torch.stack([images[..., i : i + half, j : j + half] for i in (0, half) for j in (0, half)], dim=1)


def halve(images: Tensor) -> Tensor:
    """Shrink every image (N, C, 2T, 2T) to (N, C, T, T) by a random one of three filters.

    The mean of four pixels, the first of the four, or a bicubic one: a network that knows the filter could tell a
    shrunken image from a piece of one (arXiv:1708.06734, sec. 5).
    """
    half = (images.shape[-2] // 2, images.shape[-1] // 2)
    shrunken = torch.stack([F.interpolate(images, half, mode=mode) for mode in ("area", "nearest", "bicubic")])
    choice = torch.randint(len(shrunken), (len(images),), device=images.device)
    return shrunken[choice, torch.arange(len(images), device=images.device)]


@cache
def maximin_permutations(length: int, count: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """Choose permutations that are far from one another: a puzzle whose answers are hard to confuse.

    Starts from a random one, and again and again adds the one whose Hamming distance to the nearest chosen one is
    largest; of several, the one with the largest mean distance to all chosen, and of those the first in lexicographic
    order. The authors' rule (arXiv:1603.09246, algorithm 1) takes the mean distance alone, which leaves
    near-duplicates: of 100 permutations of 9 tiles the two nearest differ in 2 places, here in 6.

    Args:
        length: of a permutation, up to 9, whose 362,880 permutations take 10 ms for each one that is chosen.
        count: how many.
        seed: of the first.

    Returns:
        `count` different permutations of 0 ... `length - 1`. Equal arguments, equal result.

    Raises:
        SemisupError: there are fewer permutations than `count`.
    """
    everything = _permutations(length)
    if count > len(everything):
        raise SemisupError(f"permutations: there are only {len(everything)} of {length} tiles, got {count}")
    columns = np.ascontiguousarray(everything.T)
    chosen = [int(np.random.default_rng(seed).integers(len(everything)))]
    nearest = np.full(len(everything), length, np.int64)
    total = np.zeros(len(everything), np.int64)
    while len(chosen) < count:
        distance = (columns != columns[:, chosen[-1:]]).sum(0, dtype=np.int64)
        np.minimum(nearest, distance, out=nearest)
        total += distance
        # Lexicographic comparison in one number; a chosen one has nearest 0 and is never the best again.
        chosen.append(int((nearest * (length * count + 1) + total).argmax()))
    return tuple(tuple(row) for row in everything[chosen].tolist())


def _permutations(length: int) -> np.ndarray[tuple[int, int], np.dtype[np.int8]]:
    """(length!, length) in lexicographic order."""
    rows = np.zeros((1, 1), np.int8)
    for n in range(2, length + 1):
        # First the place of each new head among the n, then the rest in the order of the shorter ones around it.
        heads = np.repeat(np.arange(n, dtype=np.int8), len(rows))[:, None]
        rest = np.tile(rows, (n, 1))
        rows = np.concatenate([heads, rest + (rest >= heads)], axis=1).astype(np.int8)
    return rows
