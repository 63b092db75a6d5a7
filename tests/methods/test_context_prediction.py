"""Context prediction against the paper's equation: tiles cut by hand, pairs judged in loops."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisup.augment import cut_tiles, normalize_tiles
from semisup.methods import Batch, Progress, Update
from semisup.methods.context_prediction import ContextPrediction
from tests.methods import methods_reference as ref
from tests.methods import pretext_reference as pretext

N, SIDE, TILE = 3, 24, 5
U = pretext.images(N, SIDE)
# (row, column) of the neighbors next to the middle, row by row.
OFFSETS = [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)]


def build(cls: type[ContextPrediction], view: Tensor = U, **options: Any) -> ContextPrediction:
    """On a linear encoder and with a linear head: cells of 8 pixels, a gap of 2, 1 to move, hence tiles of 5."""
    method = cls(pretext.encoder(TILE**2, view.shape[1]), **options)
    torch.manual_seed(1)
    method.task.head = nn.Linear(2 * pretext.FEATURES, 8)
    return method


def step(method: ContextPrediction, view: Tensor = U) -> Update:
    torch.manual_seed(7)
    return ref.first(method, pretext.given(view))


def tiles_by_hand() -> ref.Array:
    """(N, 3, 3, 25): each tile at its drawn place of its cell, less its mean and over its std."""
    torch.manual_seed(7)
    moves = torch.randint(2, (2, N, 9)).tolist()
    rows = np.zeros((N, 3, 3, TILE**2))
    for n, image in enumerate(U[:, 0].double().numpy()):
        for i in range(3):
            for j in range(3):
                top, left = 8 * i + moves[0][n][3 * i + j], 8 * j + moves[1][n][3 * i + j]
                tile = image[top : top + TILE, left : left + TILE]
                rows[n, i, j] = ((tile - tile.mean()) / tile.std()).flatten()
    return rows


def check_equation(cls: type[ContextPrediction]) -> None:
    tiles = tiles_by_hand()

    def reference(w: list[ref.Array]) -> float:
        """Of weight and bias of the encoder and of the head."""
        features = tiles @ w[0].T + w[1]
        pairs = [
            np.concatenate([features[n, 1, 1], features[n, 1 + down, 1 + right]])
            for n in range(N)
            for down, right in OFFSETS
        ]
        return ref.mean(pretext.cross_entropies(np.array(pairs) @ w[2].T + w[3], list(range(8)) * N))

    method = build(cls)
    update = step(method)
    assert update.log["context"] is update.loss
    pretext.check(update.loss, pretext.linear(pretext.encoding(method.encoder), method.task.head), reference)


def test_equation() -> None:
    check_equation(ContextPrediction)


def test_swapping_a_pair_mirrors_its_place() -> None:
    """methods.md 1.4: k becomes 7 - k."""
    for k, (down, right) in enumerate(OFFSETS):
        assert OFFSETS[7 - k] == (-down, -right)


def test_chance_level() -> None:
    method = ContextPrediction(pretext.encoder(49), gap=0.1)
    for p in method.task.head[1].parameters():
        nn.init.zeros_(p)
    ref.close(ref.first(method, pretext.given(pretext.images(N, 28))).loss, 2.079442)  # log 8


def test_all_tiles_in_one_forward() -> None:
    method = build(ContextPrediction)
    sizes: list[torch.Size] = []
    method.encoder.register_forward_pre_hook(lambda module, inputs: sizes.append(inputs[0].shape))
    step(method)
    assert sizes == [torch.Size([9 * N, 1, TILE, TILE])]


def test_a_tile_of_a_color_image_shows_one_channel() -> None:
    view = pretext.images(20, SIDE, channels=3)
    method = build(ContextPrediction, view)
    seen: list[Tensor] = []
    method.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    step(method, view)
    stds = seen[0].std((2, 3), correction=0).sort(1).values
    torch.testing.assert_close(stds[:, 2], torch.ones(180))
    assert 0.004 < float(stds[:, :2].min()) <= float(stds[:, :2].max()) < 0.02
    shown = seen[0].std((2, 3)).argmax(1).view(20, 9)
    assert len(set(shown[0].tolist())) > 1, "all tiles of an image keep the same channel"
    torch.manual_seed(7)
    tiles = normalize_tiles(cut_tiles(view, 3, 0.24, 0.1)).flatten(0, 1)
    rows = torch.arange(180)
    assert torch.equal(seen[0][rows, shown.flatten()], tiles[rows, shown.flatten()])


def test_one_image() -> None:
    assert bool(step(build(ContextPrediction), U[:1]).loss.isfinite())


# --- sabotage --------------------------------------------------------------------------------------------------------


class Planted(ContextPrediction):
    """The method in pieces, so that each mistake is a line."""

    def cut(self, images: Tensor) -> Tensor:
        return normalize_tiles(cut_tiles(images, 3, self.task.gap, self.task.jitter))

    def pair(self, middle: Tensor, other: Tensor) -> Tensor:
        return torch.cat([middle, other], 1)

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        tiles = self.cut(batch.unlabeled["weak"]).transpose(0, 1)
        middle = self.encoder(tiles[4])
        losses = [
            F.cross_entropy(self.task.head(self.pair(middle, self.encoder(tiles[k]))), torch.full((N,), place))
            for place, k in enumerate([0, 1, 2, 3, 5, 6, 7, 8])
        ]
        loss = torch.stack(losses).mean()
        yield Update(loss, log={"context": loss})


class NoJitter(Planted):
    """Tiles always at the same place of their cells."""

    def cut(self, images: Tensor) -> Tensor:
        return normalize_tiles(cut_tiles(images, 3, 0.34, 0.0))


class RawTiles(Planted):
    """Brightness tells which tiles belong together."""

    def cut(self, images: Tensor) -> Tensor:
        return cut_tiles(images, 3, self.task.gap, self.task.jitter)


class Swapped(Planted):
    """The neighbor first."""

    def pair(self, middle: Tensor, other: Tensor) -> Tensor:
        return torch.cat([other, middle], 1)


class OneTile(Planted):
    """Looks at the neighbor alone."""

    def pair(self, middle: Tensor, other: Tensor) -> Tensor:
        return torch.cat([other, other], 1)


class DetachedMiddle(Planted):
    """Only one of the two teaches the encoder. No value gives it away."""

    def pair(self, middle: Tensor, other: Tensor) -> Tensor:
        return torch.cat([middle.detach(), other], 1)


def test_the_pieces_without_a_mistake_pass() -> None:
    check_equation(Planted)


@pytest.mark.parametrize("cls", [NoJitter, RawTiles, Swapped, OneTile, DetachedMiddle])
def test_equation_finds(cls: type[ContextPrediction]) -> None:
    with pytest.raises(AssertionError, match="Not equal"):
        check_equation(cls)
