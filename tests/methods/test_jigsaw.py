"""Jigsaw against the paper's equation: tiles cut by hand, shuffled and judged in loops."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisup.augment import cut_tiles, maximin_permutations, normalize_tiles
from semisup.errors import SemisupError
from semisup.methods import Batch, Progress, Update
from semisup.methods.jigsaw import Jigsaw
from tests.methods import methods_reference as ref
from tests.methods import pretext_reference as pretext

N, SIDE, TILE, P = 6, 16, 8, 10
U = pretext.images(N, SIDE)


def build(cls: type[Jigsaw], view: Tensor = U, **options: Any) -> Jigsaw:
    """On a linear encoder and with a linear head: 4 tiles of 8 x 8 pixels, which have no room to move."""
    options = {"grid": 2, "jitter": 0.0, "permutations": P, **options}
    method = cls(pretext.encoder(TILE**2, view.shape[1]), **options)
    torch.manual_seed(1)
    method.task.head = nn.Linear(4 * pretext.FEATURES, P)
    return method


def step(method: Jigsaw, view: Tensor = U) -> Update:
    torch.manual_seed(7)
    return ref.first(method, pretext.given(view))


def drawn_labels() -> list[int]:
    """With no room to move, tiles draw zeros first."""
    torch.manual_seed(7)
    torch.randint(1, (2, N, 4))
    labels: list[int] = torch.randint(P, (N,)).tolist()
    return labels


def shuffled_tiles() -> ref.Array:
    """(N, 4, 64): quarters of each image row by row, each less its mean and over its std, in the drawn order."""
    permutations, labels = maximin_permutations(4, P, 0), drawn_labels()
    rows = []
    for n, image in enumerate(U[:, 0].double().numpy()):
        quarters = [image[8 * i : 8 * i + 8, 8 * j : 8 * j + 8] for i in range(2) for j in range(2)]
        tiles = [((tile - tile.mean()) / tile.std()).flatten() for tile in quarters]
        rows.append([tiles[source] for source in permutations[labels[n]]])
    return np.array(rows)


def check_equation(cls: type[Jigsaw]) -> None:
    tiles, labels = shuffled_tiles(), drawn_labels()

    def reference(w: list[ref.Array]) -> float:
        """Of weight and bias of the encoder and of the head."""
        features = [(row @ w[0].T + w[1]).flatten() for row in tiles]
        return ref.mean(pretext.cross_entropies(np.array(features) @ w[2].T + w[3], labels))

    method = build(cls)
    update = step(method)
    assert update.log["jigsaw"] is update.loss
    pretext.check(update.loss, pretext.linear(pretext.encoding(method.encoder), method.task.head), reference)


def test_equation() -> None:
    check_equation(Jigsaw)


def test_every_image_has_a_permutation_of_its_own() -> None:
    assert len(set(drawn_labels())) > 2


def test_chance_level() -> None:
    method = Jigsaw(pretext.encoder(64))
    for p in method.task.head[1].parameters():
        nn.init.zeros_(p)
    ref.close(ref.first(method, pretext.given(pretext.images(N, 28))).loss, 4.605170)  # log 100


def test_the_set_is_in_the_state_and_depends_on_its_seed() -> None:
    first, again, other = (Jigsaw(pretext.encoder(64), permutation_seed=seed) for seed in (0, 0, 1))
    name = "task.permutations"
    assert torch.equal(first.state_dict()[name], torch.tensor(maximin_permutations(9, 100, 0)))
    assert torch.equal(first.state_dict()[name], again.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])
    other.load_state_dict(first.state_dict())
    assert torch.equal(other.task.permutations, first.task.permutations)


def test_more_permutations_than_there_are() -> None:
    with pytest.raises(SemisupError, match="only 24 of 4 tiles, got 100"):
        Jigsaw(pretext.encoder(64), grid=2)


def test_tiles_of_one_image_go_through_in_one_forward_and_by_themselves() -> None:
    method = build(Jigsaw)
    seen: list[Tensor] = []
    method.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    step(method)
    (tiles,) = seen
    assert tiles.shape == (4 * N, 1, TILE, TILE)
    torch.manual_seed(7)
    assert torch.equal(tiles, normalize_tiles(cut_tiles(U, 2, 0.0, 0.0)).flatten(0, 1))


def test_brightness_and_contrast_of_a_tile_do_not_matter() -> None:
    method = build(Jigsaw)
    changed = U.clone()
    changed[:, :, :8, :8] = 3 * changed[:, :, :8, :8] - 2
    torch.testing.assert_close(step(method, changed).loss, step(method).loss)
    whole = U.clone()
    whole[:, :, :4] += 1  # not a whole tile
    assert not torch.isclose(step(method, whole).loss, step(method).loss)


def test_some_color_images_lose_their_color() -> None:
    view = pretext.images(200, SIDE, channels=3)
    for gray, expected in ((0.0, 0), (1.0, 200), (0.3, 60)):
        method = build(Jigsaw, view, gray=gray)
        seen: list[Tensor] = []
        method.encoder.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(inputs[0]))
        step(method, view)
        channels = seen[0].view(200, 4, 3, TILE, TILE)
        gray_images = (channels[:, :, 0] == channels[:, :, 2]).flatten(1).all(1)
        assert abs(int(gray_images.sum()) - expected) <= (0 if expected in (0, 200) else 20)


def test_one_image() -> None:
    assert bool(step(build(Jigsaw), U[:1]).loss.isfinite())


# --- sabotage --------------------------------------------------------------------------------------------------------


class Planted(Jigsaw):
    """The method in pieces, so that each mistake is a line."""

    def prepare(self, tiles: Tensor) -> Tensor:
        return normalize_tiles(tiles)

    def sources(self, labels: Tensor) -> Tensor:
        return self.task.permutations[labels]

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        tiles = self.prepare(cut_tiles(batch.unlabeled["weak"], 2, 0.0, 0.0))
        labels = torch.randint(P, (len(tiles),))
        rows = [self.encoder(tile[source]).flatten() for tile, source in zip(tiles, self.sources(labels), strict=True)]
        loss = F.cross_entropy(self.task.head(torch.stack(rows)), labels)
        yield Update(loss, log={"jigsaw": loss})


class RawTiles(Planted):
    """Brightness tells which tiles were neighbors."""

    def prepare(self, tiles: Tensor) -> Tensor:
        return tiles


class JointNormalization(Planted):
    """All tiles of an image by one mean and std."""

    def prepare(self, tiles: Tensor) -> Tensor:
        return (tiles - tiles.mean((1, 3, 4), keepdim=True)) / tiles.std((1, 3, 4), correction=0, keepdim=True)


class InversePermutations(Planted):
    """The tile from place t goes to slot perm[t]."""

    def sources(self, labels: Tensor) -> Tensor:
        return self.task.permutations[labels].argsort(1)


class OnePermutation(Planted):
    """The whole batch is shuffled alike."""

    def sources(self, labels: Tensor) -> Tensor:
        return self.task.permutations[labels[:1]].expand(len(labels), -1)


class ColumnsFirst(Planted):
    """Tiles counted column by column."""

    def prepare(self, tiles: Tensor) -> Tensor:
        return normalize_tiles(tiles)[:, [0, 2, 1, 3]]


def test_the_pieces_without_a_mistake_pass() -> None:
    check_equation(Planted)


@pytest.mark.parametrize("cls", [RawTiles, JointNormalization, InversePermutations, OnePermutation, ColumnsFirst])
def test_equation_finds(cls: type[Jigsaw]) -> None:
    with pytest.raises(AssertionError, match="Not equal"):
        check_equation(cls)
