"""Exemplar patches: where they are cut, and each transformation by itself against plain arithmetic."""

from __future__ import annotations

import colorsys
import math

import pytest
import torch
import torch.nn.functional as F

from semisup.augment.pretext.exemplars import NUMBERS, draw_changes, draw_places, transform_patches

SIDE, WIDTH = 12, 6
MIDDLE = torch.zeros(1, 2)


def change(column: int, value: float, count: int = 1) -> torch.Tensor:
    changes = torch.zeros(count, NUMBERS)
    changes[:, column] = value
    return changes


def picture(channels: int = 1, seed: int = 0) -> torch.Tensor:
    """(1, channels, 12, 12), smooth, with the extremes 0 and 1 of every channel in its corners."""
    coarse = torch.rand(1, channels, 4, 4, generator=torch.Generator().manual_seed(seed)) * 0.6 + 0.2
    image = F.interpolate(coarse, (SIDE, SIDE), mode="bilinear")
    image[..., 0, 0], image[..., -1, -1] = 0.0, 1.0
    return image


@pytest.mark.parametrize("channels", [1, 3])
def test_no_change_is_the_patch_itself(channels: int) -> None:
    images = torch.cat([picture(channels, seed) for seed in range(3)]) * 4 - 2
    places = torch.tensor([[0.0, 0.0], [-0.5, 0.5], [1 / 6, -1 / 3]])  # corners (3, 3), (0, 6), (4, 1)
    patches = transform_patches(images, places, WIDTH, torch.zeros(3, NUMBERS))
    for n, (left, top) in enumerate([(3, 3), (0, 6), (4, 1)]):
        torch.testing.assert_close(patches[n], images[n, :, top : top + WIDTH, left : left + WIDTH])


@pytest.mark.parametrize(("column", "dx", "dy"), [(0, 1, 0), (1, 0, 1)])
def test_shift(column: int, dx: int, dy: int) -> None:
    """By 0.2 of 5 pixels, one pixel: the content moves right or down."""
    image = picture()
    places = torch.full((1, 2), 1 / SIDE)  # corner (4, 4)
    patch = transform_patches(image, places, 5, change(column, 1.0))
    torch.testing.assert_close(patch[0], image[0, :, 4 - dy : 9 - dy, 4 - dx : 9 - dx])


def test_scale() -> None:
    """A linear ramp becomes flatter where it is enlarged."""
    ramp = torch.linspace(0, 1, SIDE).expand(1, 1, SIDE, SIDE)
    slopes = [
        float(transform_patches(ramp, MIDDLE, WIDTH, change(2, z))[0, 0, 0].diff().mean()) for z in (-1.0, 0.0, 1.0)
    ]
    assert slopes[0] / slopes[1] == pytest.approx(math.sqrt(2), rel=1e-4)
    assert slopes[2] / slopes[1] == pytest.approx(1 / math.sqrt(2), rel=1e-4)


@pytest.mark.parametrize("turn", [-1.0, 0.5, 1.0])
def test_turn(turn: float) -> None:
    """A ramp to the right turns clockwise by 20 degrees times the number: it then rises to the bottom too."""
    ramp = torch.linspace(0, 1, SIDE).expand(1, 1, SIDE, SIDE)
    patch = transform_patches(ramp, MIDDLE, WIDTH, change(3, turn))[0, 0]
    across, down = float(patch.diff(dim=1).mean()), float(patch.diff(dim=0).mean())
    assert math.degrees(math.atan2(down, across)) == pytest.approx(20 * turn, abs=1e-2)
    assert math.hypot(across, down) == pytest.approx(1 / (SIDE - 1), rel=1e-4)


def test_contrast_of_a_gray_image_is_about_zero() -> None:
    image = (picture() - 0.5) * 0.4
    image[..., 0, 0], image[..., -1, -1] = -1.0, 1.0
    plain = transform_patches(image, MIDDLE, WIDTH, change(4, 0.0))
    for z, factor in ((1.0, 2.0), (-1.0, 0.5), (0.5, math.sqrt(2))):
        torch.testing.assert_close(transform_patches(image, MIDDLE, WIDTH, change(4, z)), factor * plain)
    # Gray images have one axis only.
    for column in (5, 6, 10, 11, 12, 13):
        torch.testing.assert_close(transform_patches(image, MIDDLE, WIDTH, change(column, 0.9)), plain)


def test_contrast_of_colors_is_along_the_axes() -> None:
    image = (picture(3) - 0.5) * 0.4
    image[..., 0, 0], image[..., -1, -1] = -1.0, 1.0
    plain = transform_patches(image, MIDDLE, WIDTH, change(4, 0.0))
    axes = torch.tensor([[1.0, 1, 1], [1, 0, -1], [1, -2, 1]])
    for k, axis in enumerate(axes):
        changed = transform_patches(image, MIDDLE, WIDTH, change(4 + k, 1.0))
        along = (plain * axis.view(1, 3, 1, 1)).sum(1, keepdim=True) / axis.square().sum()
        torch.testing.assert_close(changed, plain + along * axis.view(1, 3, 1, 1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("column", range(7, 14))
@pytest.mark.parametrize("number", [-1.0, 0.4, 1.0])
def test_value_saturation_and_hue_pixel_by_pixel(channels: int, column: int, number: float) -> None:
    image = picture(channels, seed=column)
    plain = transform_patches(image, MIDDLE, WIDTH, change(column, 0.0))
    changed = transform_patches(image, MIDDLE, WIDTH, change(column, number))
    kind = column - 7
    for i in range(WIDTH):
        for j in range(WIDTH):
            pixel = plain[0, :, i, j].double().tolist()
            hue, saturation, value = colorsys.rgb_to_hsv(*(pixel if channels == 3 else pixel * 3))

            def curve(x: float, kind: int) -> float:
                changed = [x ** (2 ** (2 * number)), x * 2 ** (0.5 * number), x + 0.1 * number][kind]
                return min(max(changed, 0.0), 1.0)

            if kind < 3:
                value = curve(value, kind)
            elif kind < 6:
                saturation = curve(saturation, kind - 3) if channels == 3 else 0.0
            else:
                hue = (hue + 0.1 * number) % 1
            expected = torch.tensor(colorsys.hsv_to_rgb(hue, saturation, value)[:channels])
            torch.testing.assert_close(changed[0, :, i, j], expected, atol=1e-4, rtol=1e-4)


def test_beyond_the_edge_the_edge_goes_on() -> None:
    image = torch.zeros(1, 1, SIDE, SIDE)
    image[..., 6:] = 1.0
    patch = transform_patches(image, torch.tensor([[0.9, 0.0]]), WIDTH, torch.zeros(1, NUMBERS))
    torch.testing.assert_close(patch, torch.ones(1, 1, WIDTH, WIDTH))


def test_every_patch_is_changed_by_its_own_numbers_and_stays_finite() -> None:
    torch.manual_seed(0)
    images = torch.randn(1, 3, SIDE, SIDE).expand(50, -1, -1, -1)
    patches = transform_patches(images, MIDDLE.expand(50, 2), WIDTH, draw_changes(50, torch.device("cpu")))
    assert bool(patches.isfinite().all())
    assert len({tuple(patch.flatten().tolist()) for patch in patches}) == 50
    assert float(patches.amin()) >= float(images.amin()) - 1e-5
    assert float(patches.amax()) <= float(images.amax()) + 1e-5
    changes = draw_changes(4, torch.device("cpu"))
    assert bool(transform_patches(torch.zeros(4, 1, SIDE, SIDE), MIDDLE.expand(4, 2), 4, changes).isfinite().all())


def test_changes_fill_their_range() -> None:
    torch.manual_seed(0)
    changes = draw_changes(1000, torch.device("cpu"))
    assert -1 <= float(changes.amin()) < -0.99 < 0.99 < float(changes.amax()) <= 1
    assert float(changes.mean(0).abs().amax()) < 0.1
    assert draw_changes(3, torch.device("meta")).is_meta


def test_places_are_inside_and_as_likely_as_their_gradients() -> None:
    """One bright pixel: a patch of one pixel's width has squared differences 1 at each of its four neighbors."""
    torch.manual_seed(0)
    image = torch.zeros(1, 1, 9, 9)
    image[..., 3, 5] = 1.0
    places = draw_places(image.expand(400, -1, -1, -1), 1)
    pixels = ((places + 1) * 9 / 2 - 0.5).round().long()
    counts: dict[tuple[int, ...], int] = {}
    for pixel in pixels.tolist():
        counts[tuple(pixel)] = counts.get(tuple(pixel), 0) + 1
    assert counts.keys() == {(4, 3), (6, 3), (5, 2), (5, 4)}
    assert all(70 < count < 130 for count in counts.values())
    wide = draw_places(torch.rand(300, 3, 9, 9), 6)
    assert float(wide.abs().amax()) <= 1 - 6 / 9 + 1e-6
    assert len({tuple(place) for place in wide.tolist()}) == 16
    assert draw_places(torch.empty(3, 1, 9, 9, device="meta"), 4).is_meta


def test_a_place_without_gradients_is_anywhere() -> None:
    torch.manual_seed(0)
    assert len({tuple(place) for place in draw_places(torch.ones(200, 1, 8, 8), 6).tolist()}) == 9
