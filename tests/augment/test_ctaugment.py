"""CTAugment: its operations against PIL, its rates against a slow loop, and what is drawn by them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor

from semisup.augment.kernels import ops
from semisup.augment.policies import ctaugment
from semisup.augment.policies.ctaugment import (
    BINS,
    BINS_OF,
    OPERATIONS,
    CTAugment,
    CTAugmentCutout,
    CTAugmentProbe,
    new_rates,
    update_rates,
)
from semisup.augment.policies.policy import Part
from tests.augment.test_ops import from_pil, make_images, to_pil

LEVELS = (0.0, 0.1, 0.33, 0.5, 0.77, 0.9, 0.999)
MANY = 20_000


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Operations ----------------------------------------------------------------------------------------------------------


def enhance(kind: type) -> Callable[[Image.Image, float], Image.Image]:
    return lambda image, level: kind(image).enhance(0.1 + 1.9 * level)


def blend(operation: Callable[[Image.Image], Image.Image]) -> Callable[[Image.Image, float], Image.Image]:
    return lambda image, level: Image.blend(image, operation(image), level)


PIL_OPERATIONS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "autocontrast": blend(ImageOps.autocontrast),
    "blur": blend(lambda image: image.filter(ImageFilter.BLUR)),
    "brightness": enhance(ImageEnhance.Brightness),
    "color": enhance(ImageEnhance.Color),
    "contrast": enhance(ImageEnhance.Contrast),
    "equalize": blend(ImageOps.equalize),
    "invert": blend(ImageOps.invert),
    "posterize": lambda image, level: ImageOps.posterize(image, 1 + int(8 * level)),
    "sharpness": enhance(ImageEnhance.Sharpness),
    "smooth": blend(lambda image: image.filter(ImageFilter.SMOOTH)),
    "solarize": lambda image, level: ImageOps.solarize(image, int(256 * level)),
}
"""The ranges of the paper's table, as the reference code has them."""


def test_the_table_has_all_operations_of_the_paper() -> None:
    assert len(OPERATIONS) == 19
    assert set(ctaugment.LIGHT) == {*PIL_OPERATIONS, "cutout"}
    assert set(OPERATIONS) == {"identity", *ctaugment.LIGHT, *ctaugment.GEOMETRY}


@pytest.mark.parametrize("name", PIL_OPERATIONS)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28)], ids=str)
def test_operations_equal_pil(name: str, shape: tuple[int, int, int]) -> None:
    images = make_images(len(LEVELS), *shape)
    values = torch.zeros(len(LEVELS), 3)
    values[:, 0] = torch.tensor(LEVELS)
    ours = ctaugment.LIGHT[name](images, values)
    for image, result, level in zip(images, ours, LEVELS, strict=True):
        expected = from_pil(PIL_OPERATIONS[name](to_pil(image), level))
        # PIL rounds the operation and then the blend, and truncates; the contrast's gray is a whole level there, so
        # that it can be off by half of one, times up to 1 here.
        torch.testing.assert_close(result, expected, atol=2.1 / 255, rtol=0)


def test_blur_equals_pil_and_leaves_small_images_alone() -> None:
    images = make_images(4, 3, 17, 24)
    for image, result in zip(images, ops.blur(images), strict=True):
        torch.testing.assert_close(result, from_pil(to_pil(image).filter(ImageFilter.BLUR)), atol=1.01 / 255, rtol=0)
    tiny = make_images(4, 1, 4, 9)
    assert torch.equal(ops.blur(tiny), tiny)


def test_rescale_cuts_a_quarter_at_most_from_each_side() -> None:
    images, size = make_images(3, 3, 32, 32), (32, 32)
    levels = torch.tensor([0.0, 0.5, 1.0])
    cut = 0.25 * levels * 32
    boxes = torch.stack([cut, cut, 32 - 2 * cut, 32 - 2 * cut], dim=1)
    ours = ops.affine(images, ctaugment.GEOMETRY["rescale"](levels, size))
    # A crop is taken out first and does not see across its own border: one pixel.
    expected = ops.resized_crop(images, boxes, size)
    torch.testing.assert_close(ours[:, :, 2:-2, 2:-2], expected[:, :, 2:-2, 2:-2], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("rotate", lambda x: ops.rotation(45 * x, (28, 20))),
        ("shear_x", lambda x: ops.shear_x(0.3 * x, (28, 20))),
        ("shear_y", lambda x: ops.shear_y(0.3 * x, (28, 20))),
        ("translate_x", lambda x: ops.translation(0.3 * x, 0 * x)),
        ("translate_y", lambda x: ops.translation(0 * x, 0.3 * x)),
    ],
)
def test_geometry_goes_from_one_side_to_the_other(name: str, expected: Callable[[Tensor], Tensor]) -> None:
    ours = ctaugment.GEOMETRY[name](torch.tensor([0.0, 0.5, 0.75, 1.0]), (28, 20))
    torch.testing.assert_close(ours, expected(torch.tensor([-1.0, 0.0, 0.5, 1.0])))


def test_cutout_paints_up_to_half_the_side_at_the_drawn_pixel() -> None:
    images = torch.full((3, 3, 32, 32), 0.25)
    out = ctaugment.LIGHT["cutout"](images, torch.tensor([[0.0, 5, 7], [0.5, 16, 16], [0.999, 16, 16]]), 0.5)
    assert (out != images).sum((1, 2, 3)).tolist() == [3, 3 * 8**2, 3 * 16**2]
    assert out[0, :, 5, 7].tolist() == [0.5] * 3
    assert out[1].max() == 0.5
    black = ctaugment.LIGHT["cutout"](images[:1, :1], torch.tensor([[0.5, 16, 16]]), 0.0)
    assert black.min() == 0


# Rates ---------------------------------------------------------------------------------------------------------------


def test_rates_start_at_one_for_each_bin_that_there_is() -> None:
    rates = new_rates()
    assert rates.shape == (19, 17)
    assert (rates == 1).sum(1).tolist() == BINS_OF.tolist()
    assert {OPERATIONS[row]: int(count) for row, count in enumerate(BINS_OF) if count != 17} == {
        "identity": 1,
        "posterize": 8,
    }


def test_update_is_that_of_a_loop_over_the_probes() -> None:
    draw = seeded(3)
    rates = torch.rand(19, 17, generator=draw)
    bins = torch.randint(40, (64, 2), generator=draw)  # few, so that many are hit several times
    bins[5, 1] = bins[5, 0]  # one image, the same bin twice
    matches = torch.rand(64, generator=draw)
    expected = rates.double().flatten().tolist()
    for row, match in zip(bins.tolist(), matches.tolist(), strict=True):
        for place in row:
            expected[place] = 0.99 * expected[place] + 0.01 * match
    before = rates.clone()
    update_rates(rates, bins, matches)
    torch.testing.assert_close(rates.flatten().double(), torch.tensor(expected, dtype=torch.float64))
    untouched = torch.ones(19 * 17, dtype=torch.bool)
    untouched[bins.flatten()] = False
    assert torch.equal(rates.flatten()[untouched], before.flatten()[untouched])


def test_order_matters_within_a_batch() -> None:
    one, other = new_rates(), new_rates()
    bins = torch.tensor([[20, 21], [20, 22]])
    update_rates(one, bins, torch.tensor([1.0, 0.0]))
    update_rates(other, bins, torch.tensor([0.0, 1.0]))
    assert one[1, 3].item() == pytest.approx(0.99, abs=1e-6)
    assert other[1, 3].item() == pytest.approx(0.99 * 0.99 + 0.01, abs=1e-6)


def test_a_bin_dies_after_23_probes_without_a_match() -> None:
    rates, place = new_rates(), OPERATIONS.index("rotate")
    alive = []
    for _ in range(25):
        update_rates(rates, torch.tensor([[place * BINS + 4, 0]]), torch.zeros(1))
        alive.append(bool(ctaugment._weights(rates, 0.8)[place, 4] > 0))
    assert alive == [True] * 22 + [False] * 3
    weights = ctaugment._weights(rates, 0.8)[place]
    assert (weights[torch.arange(BINS) != 4] == 1).all()


def test_bins_that_an_operation_lacks_are_never_alive() -> None:
    rates = torch.where(new_rates() > 0, 0.0, new_rates())  # all bins that there are have the lowest rate of all
    for threshold in (0.0, 0.8):
        weights = ctaugment._weights(rates, threshold)
        assert torch.equal(weights > 0, new_rates() > 0)


# Drawing -------------------------------------------------------------------------------------------------------------


def drawn_bins(rates: Tensor, name: str, threshold: float = 0.8) -> Tensor:
    """(MANY,) bins of one operation."""
    races = CTAugment().draw((MANY, 3, 8, 8), seeded(5))["races"][:, 0]
    return ctaugment._draw_bins(ctaugment._weights(rates, threshold)[OPERATIONS.index(name)], races)


@pytest.mark.parametrize(("name", "count"), [("rotate", 17), ("posterize", 8), ("identity", 1)])
def test_at_first_all_bins_are_equally_likely(name: str, count: int) -> None:
    counts = torch.bincount(drawn_bins(new_rates(), name), minlength=BINS)
    assert (counts[count:] == 0).all()
    assert ((counts[:count] - MANY / count).abs() < 5 * (MANY / count) ** 0.5).all()


@pytest.mark.parametrize(("lowest", "threshold"), [(0.5, 0.8), (0.0, 0.1)])
def test_bins_are_drawn_by_their_rates_and_dead_ones_never(lowest: float, threshold: float) -> None:
    rates, place = new_rates(), OPERATIONS.index("color")
    rates[place] = torch.linspace(lowest, 1.0, BINS)
    weights = (rates[place].double() + 0.01) / 1.01
    weights[weights < threshold] = 0
    assert 1 < (weights == 0).sum() < 14
    shares = torch.bincount(drawn_bins(rates, "color", threshold), minlength=BINS) / MANY
    torch.testing.assert_close(shares.double(), weights / weights.sum(), atol=0.01, rtol=0)
    assert (shares[weights == 0] == 0).all()


def test_the_view_follows_the_rates_and_the_probe_does_not() -> None:
    """Only the brightest bin of "brightness" is alive: 0.1 becomes 0.1 f f' with f in [0.1 + 1.9 * 16 / 17, 2]."""
    images = torch.full((MANY // 10, 3, 8, 8), 0.1)
    rates = new_rates()
    rates[OPERATIONS.index("brightness"), :16] = 0.5
    view = CTAugment(pool=["brightness"])
    out = view(images, seeded(1), rates)
    least = (0.1 + 1.9 * 16 / 17) ** 2 * 0.1
    assert out.min() >= least - 1e-6 and out.max() <= 0.4 + 1e-6
    assert out.amin((1, 2, 3)).std() > 0  # a level is drawn within the bin
    free = view(images, seeded(1))
    assert free.min() < 0.05 and free.max() > 0.35
    assert torch.equal(free, view(images, seeded(1), new_rates()))
    probe = CTAugmentProbe(pool=["brightness"])(images, seeded(1))
    assert probe.min() < 0.05 and probe.max() > 0.35


def test_the_probe_tells_the_bins_that_made_it() -> None:
    policy = CTAugmentProbe(shift=0, flip=False)
    images = make_images(MANY, 3, 8, 8)
    view, bins = policy.probe(images, seeded(2))
    assert torch.equal(view, policy(images, seeded(2)))
    part, all_bins = policy.probe(images[10:20], seeded(2), part=Part(MANY, slice(10, 20)))
    assert torch.equal(part, view[10:20]) and torch.equal(all_bins, bins)
    assert bins.shape == (MANY, 2) and bins.dtype == torch.int64
    operations, places = bins // BINS, bins % BINS
    assert (places < BINS_OF[operations]).all()
    counts = torch.bincount(operations.flatten(), minlength=19)
    assert ((counts - 2 * MANY / 19).abs() < 5 * (2 * MANY / 19) ** 0.5).all()
    rotate = places[operations == OPERATIONS.index("rotate")]
    counts = torch.bincount(rotate, minlength=BINS)
    assert counts.min() > 0.7 * len(rotate) / BINS
    # Where nothing but the identity and a factor was drawn, the factor is that of the bin.
    identity, bright = OPERATIONS.index("identity"), OPERATIONS.index("brightness")
    rows = (operations[:, 0] == identity) & (operations[:, 1] == bright)
    assert rows.sum() > 20
    factors = view[rows].sum((1, 2, 3)) / images[rows].sum((1, 2, 3))
    low = 0.1 + 1.9 * places[rows, 1] / BINS
    clipped = view[rows].amax((1, 2, 3)) >= 1
    inside = (factors >= low - 1e-4) & (factors <= low + 1.9 / BINS + 1e-4)
    assert (inside | clipped).all() and inside.sum() > 10
    unchanged = (operations == identity).all(1)
    assert unchanged.any() and torch.equal(view[unchanged], images[unchanged])


def test_operations_keep_their_order() -> None:
    images = make_images(2, 1, 28, 28)
    drawn = CTAugmentProbe(shift=0, flip=False).draw(images.shape, seeded())
    invert, rotate = OPERATIONS.index("invert"), OPERATIONS.index("rotate")
    drawn["ops"] = torch.tensor([[invert, rotate], [rotate, invert]])
    drawn["bins"] = torch.tensor([[16, 12], [12, 16]])
    drawn["within"] = torch.ones(2, 2)  # levels 1 and 13/17
    turn = lambda x: ops.affine(x, ops.rotation(torch.tensor([45 * (26 / 17 - 1)]), (28, 28)))  # noqa: E731
    expected = torch.cat([turn(1 - images[:1]), 1 - turn(images[1:])])
    out = CTAugmentProbe(shift=0, flip=False).apply(images, drawn)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)
    assert out[0, 0, 0, 0] == 0 and out[1, 0, 0, 0] == 1  # a corner from outside is black, inverted only if after


def test_pools() -> None:
    color = CTAugment().draw((MANY, 3, 8, 8), seeded())["ops"].unique()
    gray = CTAugment().draw((MANY, 1, 8, 8), seeded())["ops"].unique()
    assert len(color) == 19
    assert set(OPERATIONS) - {OPERATIONS[row] for row in gray} == {"color", "invert", "solarize"}


def test_fixmatch_paints_a_fifth_on_top() -> None:
    images = torch.full((4096, 3, 28, 28), 0.25)
    out = CTAugmentCutout(pool=["identity"])(images, seeded())
    assert (out == 0.5).float().mean().item() == pytest.approx(0.4375**2, abs=0.004)
    assert torch.equal(CTAugment(pool=["identity"])(images, seeded()), images)


def test_views_are_drawn_where_the_rates_have_no_values() -> None:
    images = torch.empty(64, 3, 16, 16, device="meta")
    out = CTAugmentCutout()(images, seeded(), new_rates().to("meta"))
    assert out.is_meta and out.shape == images.shape
