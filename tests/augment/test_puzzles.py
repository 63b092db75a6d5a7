"""Rotations by quarters against torch.rot90; tiles pixel by pixel; permutations one by one."""

from __future__ import annotations

import itertools

import pytest
import torch

from semisup.augment import (
    cut_tiles,
    drop_channels,
    four_rotations,
    halve,
    maximin_permutations,
    normalize_tiles,
    quarters,
)
from semisup.errors import SemisupError

IMAGES = torch.rand(5, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def test_four_rotations_are_those_of_rot90_side_by_side() -> None:
    rotated, quarters = four_rotations(IMAGES)
    assert quarters.tolist() == [0, 1, 2, 3] * 5
    for i, image in enumerate(IMAGES):
        for k in range(4):
            assert torch.equal(rotated[4 * i + k], torch.rot90(image, k, (-2, -1)))


def test_a_quarter_turns_anticlockwise() -> None:
    image = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    assert four_rotations(image)[0][1].flatten().tolist() == [2.0, 4.0, 1.0, 3.0]


@pytest.mark.parametrize("channels", [1, 3])
def test_results_are_channels_last_and_the_input_stays(channels: int) -> None:
    images = IMAGES[:, :channels].contiguous(memory_format=torch.channels_last)
    before = images.clone()
    rotated, _ = four_rotations(images)
    assert rotated.is_contiguous(memory_format=torch.channels_last)
    rotated.zero_()
    assert torch.equal(images, before)


def test_one_image_and_none() -> None:
    assert four_rotations(IMAGES[:1])[0].shape == (4, 3, 6, 6)
    assert four_rotations(IMAGES[:0])[0].shape == (0, 3, 6, 6)


def test_meta_device_and_gradient() -> None:
    images = torch.empty(4, 1, 8, 8, device="meta")
    assert all(x.is_meta for x in four_rotations(images))
    variable = IMAGES.clone().requires_grad_()
    (slope,) = torch.autograd.grad((four_rotations(variable)[0] * 2).sum(), variable)
    assert torch.equal(slope, torch.full_like(IMAGES, 8.0))


def test_mistakes_are_named() -> None:
    wide = torch.zeros(2, 1, 4, 6)
    with pytest.raises(ValueError, match=r"square images \(N, C, S, S\), got \(2, 1, 4, 6\)"):
        four_rotations(wide)


# --- tiles -----------------------------------------------------------------------------------------------------------


def numbered(n: int, side: int, channels: int = 1) -> torch.Tensor:
    """(n, channels, side, side): every pixel its own number."""
    return torch.arange(n * channels * side * side, dtype=torch.float32).view(n, channels, side, side)


def test_without_distances_tiles_are_the_cells_row_by_row() -> None:
    images = numbered(2, 24, 3)
    tiles = cut_tiles(images, 3, 0.0, 0.0)
    assert tiles.shape == (2, 9, 3, 8, 8)
    for n in range(2):
        for row in range(3):
            for column in range(3):
                cell = images[n, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
                assert torch.equal(tiles[n, 3 * row + column], cell)


def test_tiles_move_within_their_cells_one_by_one() -> None:
    """12-pixel cells: 3 of them free on the right and below, and 3 to move in; hence tiles of 6."""
    torch.manual_seed(0)
    images = numbered(200, 24)
    tiles = cut_tiles(images, 2, 0.25, 0.25)
    assert tiles.shape == (200, 4, 1, 6, 6)
    corner = (tiles[:, :, 0, 0, 0] - images[:, 0, :1, 0]).long()
    rows, columns = corner // 24, corner % 24
    moves = {(int(r), int(c)) for r, c in zip(rows[:, 0], columns[:, 0], strict=True)}
    assert moves == {(r, c) for r in range(4) for c in range(4)}
    assert torch.equal(rows[:, [1, 2, 3]].amin(0), torch.tensor([0, 12, 12]))
    assert torch.equal(columns[:, [1, 2, 3]].amax(0), torch.tensor([15, 3, 15]))
    assert len({tuple(r.tolist()) for r in rows[:, [0, 3]]}) > 4, "tiles of one image move together"
    # Every tile is a square of neighboring pixels.
    assert torch.equal(tiles[..., 0, 0] + 24 * 5 + 5, tiles[..., 5, 5])


def test_the_rest_of_the_grid_is_lost_on_both_sides() -> None:
    tiles = cut_tiles(numbered(1, 29), 3, 0.0, 0.0)  # cells of 9, 2 pixels left over
    assert tiles.shape == (1, 9, 1, 9, 9)
    assert float(tiles[0, 0, 0, 0, 0]) == 29 + 1


def test_small_images_are_enlarged() -> None:
    images = torch.rand(2, 1, 8, 8)
    tiles = cut_tiles(images, 3, 0.25, 0.25)
    assert tiles.shape == (2, 9, 1, 4, 4)
    enlarged = torch.nn.functional.interpolate(images, (24, 24), mode="bilinear")
    assert torch.equal(cut_tiles(images, 3, 0.0, 0.0), cut_tiles(enlarged, 3, 0.0, 0.0))


def test_tiles_want_squares_and_run_on_meta() -> None:
    with pytest.raises(ValueError, match=r"square images \(N, C, S, S\), got \(2, 1, 24, 28\)"):
        cut_tiles(torch.zeros(2, 1, 24, 28), 3, 0.0, 0.0)
    assert cut_tiles(torch.empty(2, 3, 28, 28, device="meta"), 3, 0.1, 0.1).shape == (2, 9, 3, 7, 7)
    assert cut_tiles(torch.empty(0, 3, 28, 28), 3, 0.1, 0.1).shape == (0, 9, 3, 7, 7)


def test_normalized_tiles_forget_brightness_and_contrast() -> None:
    tiles = torch.rand(2, 4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    normal = normalize_tiles(tiles)
    torch.testing.assert_close(normal.mean((-2, -1)), torch.zeros(2, 4, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(normal.square().mean((-2, -1)), torch.ones(2, 4, 3))
    scale = torch.rand(2, 4, 3, 1, 1) + 0.5
    torch.testing.assert_close(normalize_tiles(scale * tiles + 3 * scale), normal, atol=1e-4, rtol=1e-4)
    assert float(normalize_tiles(torch.full((1, 1, 1, 4, 4), 0.7)).abs().max()) < 1e-3


def test_quarters_and_halves() -> None:
    torch.manual_seed(0)
    images = torch.randn(90, 2, 8, 8)
    parts = quarters(images)
    assert parts.shape == (90, 4, 2, 4, 4)
    assert torch.equal(torch.cat([torch.cat([*pair], -1) for pair in parts.transpose(0, 1).split(2)], -2), images)
    halves = halve(images)
    assert halves.shape == (90, 2, 4, 4)
    mean = images.view(90, 2, 4, 2, 4, 2).mean((3, 5))
    by_mean = (halves - mean).abs().amax((1, 2, 3)) < 1e-6
    by_first = (halves == images[..., ::2, ::2]).all(3).all(2).all(1)
    cubic = torch.nn.functional.interpolate(images, (4, 4), mode="bicubic")
    by_cubic = (halves - cubic).abs().amax((1, 2, 3)) < 1e-6
    assert torch.equal(by_mean.long() + by_first.long() + by_cubic.long(), torch.ones(90, dtype=torch.long))
    assert all(15 < int(kind.sum()) < 45 for kind in (by_mean, by_first, by_cubic))
    assert halve(torch.empty(3, 1, 8, 8, device="meta")).is_meta


def test_dropped_channels_are_faint_noise() -> None:
    torch.manual_seed(0)
    images = 5 * torch.randn(300, 3, 6, 6) + 2
    dropped = drop_channels(images)
    same = (dropped == images).all((2, 3))
    assert torch.equal(same.sum(1), torch.ones(300, dtype=torch.long)), "one channel is kept"
    assert all(60 < int(kept) < 140 for kept in same.sum(0))
    noise = dropped.transpose(1, 2)[~same[:, None].expand(-1, 6, -1)].view(300, -1)
    std = torch.stack([images[n, same[n]].std(correction=0) for n in range(300)])
    relative = noise / std[:, None]
    assert abs(float(relative.std()) - 0.01) < 2e-4
    assert abs(float(relative.mean())) < 2e-4
    gray = images[:, :1]
    assert drop_channels(gray) is gray
    assert drop_channels(torch.empty(4, 3, 8, 8, device="meta")).is_meta


# --- permutations ----------------------------------------------------------------------------------------------------


def distance(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    return sum(x != y for x, y in zip(a, b, strict=True))


def test_nine_permutations_of_nine_tiles_differ_everywhere_and_a_tenth_cannot() -> None:
    chosen = maximin_permutations(9, 10, 0)
    assert {distance(a, b) for a, b in itertools.combinations(chosen[:9], 2)} == {9}
    assert min(distance(a, chosen[9]) for a in chosen[:9]) == 8


def test_a_hundred_permutations_of_nine_tiles_differ_in_six_places_or_more() -> None:
    """methods.md 1.5; by the mean distance the two nearest would differ in 2."""
    chosen = maximin_permutations(9, 100, 0)
    assert all(sorted(row) == list(range(9)) for row in chosen)
    assert len(set(chosen)) == 100
    assert min(distance(a, b) for a, b in itertools.combinations(chosen, 2)) == 6


@pytest.mark.parametrize("seed", [0, 1])
def test_the_greedy_rule_one_by_one(seed: int) -> None:
    chosen = maximin_permutations(4, 24, seed)
    assert len(set(chosen)) == 24
    for n in range(1, 24):
        before = chosen[:n]

        def score(row: tuple[int, ...], before: tuple[tuple[int, ...], ...] = before) -> tuple[int, int]:
            distances = [distance(row, other) for other in before]
            return min(distances), sum(distances)

        # max() keeps the first of equals, and permutations() is in lexicographic order.
        assert chosen[n] == max(itertools.permutations(range(4)), key=score)


def test_permutations_depend_on_their_seed_alone() -> None:
    torch.manual_seed(5)
    first = maximin_permutations(9, 5, 3)
    maximin_permutations.cache_clear()
    torch.manual_seed(6)
    assert maximin_permutations(9, 5, 3) == first
    assert maximin_permutations(9, 5, 4) != first


def test_more_permutations_than_there_are() -> None:
    with pytest.raises(SemisupError, match="permutations: there are only 24 of 4 tiles, got 25"):
        maximin_permutations(4, 25, 0)
