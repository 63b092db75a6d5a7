from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from semisup.augment.kernels import ops
from semisup.augment.policies import views as policies
from semisup.augment.policies.policy import Part
from semisup.augment.policies.views import POLICIES, LocalCrop, RandAugment, SimCLR, Weak, build_policy, check_policy
from semisup.errors import SemisupError

OPTIONS: dict[str, list[dict[str, object]]] = {
    "none": [{}],
    "weak": [{}, {"shift": 0.0}, {"shift": 0.5}],
    "randaugment": [
        {},
        {"ranges": "paper", "fill": 0.3},
        {"pool": ["invert", "rotate"], "cutout": 0, "probability": 1},
    ],
    "simclr": [
        {},
        {"strength": 1.0, "blur": 0.5, "solarize": 0.5},
        {"scale": [0.5, 0.5], "jitter": 1, "gray": 1, "strength": 2.5, "saturation": 0, "solarize": None},
    ],
    "moco": [{}],
    "byol_first": [{}],
    "byol_second": [{}, {"solarize": 1}],
    "local": [{}, {"size": 0.5, "scale": [0.1, 0.3], "blur": 0.5}, {"size": 0.0}],
    **{
        name: [{}]
        for name in ("swav", "swav_local", "dino_first", "dino_second", "dino_local", "cmc", "mae", "maskfeat")
    },
    "crop_flip": [{}, {"scale": (1, 1), "ratio": (0.5, 2)}],
    "randaugment_nm": [{}, {"operations": 3, "magnitude": 4, "cutout": 0}],
    "trivialaugment": [{}, {"fill": 0.3}],
    "autoaugment": [{}, {"learned_on": "svhn"}, {"learned_on": "imagenet", "cutout": 0}],
    "ctaugment": [{}, {"pool": ["cutout", "blur", "smooth", "rescale"], "threshold": 0.0}],
    "ctaugment_cutout": [{}],
    "ctaugment_probe": [{}, {"pool": ["posterize", "identity"]}],
}
CASES = [(name, options) for name, many in OPTIONS.items() for options in many]
MANY = 20_000


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def result_shape(name: str, options: dict[str, object], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of the views of images of `shape`: smaller for "local", 3/7 of each side unless told."""
    if not name.endswith("local"):
        return shape
    share = options.get("size", 96 / 224)
    assert isinstance(share, float)
    return (*shape[:2], *(max(4, math.floor(share * side + 0.5)) for side in shape[2:]))


def test_every_policy_is_listed_here() -> None:
    assert set(OPTIONS) == set(POLICIES)


# What holds for every policy -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (16, 1, 28, 28), (16, 3, 32, 32), (5, 3, 17, 24)], ids=str)
def test_policies_keep_shape_dtype_range_and_input(
    name: str, options: dict[str, object], shape: tuple[int, ...]
) -> None:
    policy = build_policy(name, options, flip=True)
    for dtype in (torch.float32, torch.float64):
        images = torch.rand(shape, generator=seeded(1)).to(dtype)
        before = images.clone()
        for seed in range(4):
            out = policy(images, seeded(seed))
            assert out.shape == result_shape(name, options, shape) and out.dtype == dtype
            assert out.amin() >= 0 and out.amax() <= 1
        assert torch.equal(images, before)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_memory_layout_of_the_input_changes_nothing_and_the_output_is_channels_last(
    name: str, options: dict[str, object]
) -> None:
    images = torch.rand(16, 3, 32, 32, generator=seeded(1))
    turned = images.contiguous(memory_format=torch.channels_last)
    policy = build_policy(name, options, flip=True)
    out = policy(turned, seeded(2))
    # Sums over an image may be added up in another order: last bits, which posterize and equalize could blow up to a
    # gray level in a pixel or two.
    assert ((out - policy(images, seeded(2))).abs() > 1e-5).float().mean() < 1e-3
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", sorted(set(POLICIES) - {"none"}))
@pytest.mark.parametrize("shape", [(64, 1, 8, 8), (64, 3, 32, 32)], ids=str)
def test_the_generator_decides_and_is_moved_on(name: str, shape: tuple[int, ...]) -> None:
    images = torch.rand(shape, generator=seeded(1))
    policy = build_policy(name, {}, flip=True)
    generator = seeded(7)
    first, second = policy(images, generator), policy(images, generator)
    torch.manual_seed(99)  # the global generator has no part in it
    assert torch.equal(first, policy(images, seeded(7)))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", sorted(set(POLICIES) - {"none"}))
@pytest.mark.parametrize("channels", [1, 3])
def test_identical_images_come_out_different(name: str, channels: int) -> None:
    images = torch.rand(1, channels, 28, 28, generator=seeded(1)).expand(64, -1, -1, -1)
    out = build_policy(name, {}, flip=True)(images, seeded(2))
    distinct = len({tuple(image.flatten().tolist()) for image in out})
    assert distinct > (40 if name == "weak" else 60)  # weak has 2 x 9 x 9 views of an image


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("shape", [(32, 3, 32, 32), (13, 1, 28, 28)], ids=str)
def test_parts_of_a_batch_are_those_of_the_whole_bit_for_bit(
    name: str, options: dict[str, object], shape: tuple[int, ...]
) -> None:
    images = torch.rand(shape, generator=seeded(1))
    policy = build_policy(name, options, flip=True)
    drawn = policy.draw(shape, seeded(3))
    assert all(len(values) == len(images) and values.device.type == "cpu" for values in drawn.values())
    for seed in range(3):
        whole = policy(images, seeded(seed))
        for ranks in (1, 2, 4):
            bounds = [len(images) * rank // ranks for rank in range(ranks + 1)]
            parts = [Part(len(images), slice(*two)) for two in pairwise(bounds)]
            made = [policy(images[part.rows], seeded(seed), part=part) for part in parts]
            assert torch.equal(torch.cat(made), whole), ranks


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("shape", [(64, 1, 28, 28), (64, 3, 32, 32)], ids=str)
def test_policies_run_on_meta(name: str, options: dict[str, object], shape: tuple[int, ...]) -> None:
    out = build_policy(name, options, flip=True)(torch.empty(shape, device="meta"), seeded())
    assert out.device.type == "meta" and out.shape == result_shape(name, options, shape)


@pytest.mark.parametrize("name", sorted(name for name in POLICIES if not name.endswith("local")))
def test_512_digits(name: str) -> None:
    images = torch.zeros(512, 1, 8, 8)
    images[:, :, 1:7, 3:5] = 1  # an upright stroke
    out = build_policy(name, {}, flip=False)(images, seeded())
    kept = (out.flatten(1).amax(1) > 0.2).float().mean()
    # Hardly ever is the whole digit lost; TrivialAugment moves images by up to all of their side.
    assert kept > (0.94 if name == "trivialaugment" else 0.97)


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_224_pixels(name: str) -> None:
    images = torch.rand(2, 3, 224, 224, generator=seeded(1))
    out = build_policy(name, {"blur": 1.0} if name == "simclr" else {}, flip=True)(images, seeded())
    assert out.shape == ((2, 3, 96, 96) if name.endswith("local") else images.shape)  # as published


def test_batches_that_are_none_are_refused() -> None:
    policy = Weak()
    for wrong in (torch.rand(1, 8, 8), torch.rand(0, 1, 8, 8), torch.rand(2, 4, 8, 8), torch.rand(2, 1, 8, 2)):
        with pytest.raises(ValueError, match="C 1 or 3 and H, W at least 4, got"):
            policy(wrong, seeded())
    with pytest.raises(ValueError, match=r"got torch\.uint8"):
        policy(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), seeded())


# Distributions against the published ones ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(POLICIES) - {"none"}))
def test_half_are_flipped_where_allowed(name: str) -> None:
    allowed = build_policy(name, {}, flip=True).draw((MANY, 1, 8, 8), seeded())
    forbidden = build_policy(name, {}, flip=False).draw((MANY, 1, 8, 8), seeded())
    assert allowed["flips"].float().mean().item() == pytest.approx(0.5, abs=0.015)
    assert not forbidden["flips"].any()
    for key in set(allowed) - {"flips"}:  # nothing else depends on it
        assert torch.equal(allowed[key], forbidden[key])


@pytest.mark.parametrize(("side", "most"), [(8, 1), (28, 4), (32, 4), (96, 12)])
def test_weak_shifts_are_uniform_up_to_an_eighth(side: int, most: int) -> None:
    shifts = Weak().draw((MANY, 1, side, side), seeded())["shifts"]
    for axis in (0, 1):
        values, counts = shifts[:, axis].unique(return_counts=True)
        assert values.tolist() == list(range(-most, most + 1))
        expected = MANY / (2 * most + 1)
        assert ((counts - expected).abs() < 5 * expected**0.5).all()


@pytest.mark.parametrize(("channels", "size"), [(1, 12), (3, 14)])
def test_randaugment_draws_two_operations_each_applied_half_the_time(channels: int, size: int) -> None:
    policy = RandAugment()
    pool = policy.pool_for(channels)
    assert len(pool) == size + 1 and pool[-1] == "identity"
    drawn = policy.draw((MANY, channels, 32, 32), seeded())
    applied = drawn["ops"] < size
    by_number = torch.bincount(applied.sum(1), minlength=3) / MANY
    torch.testing.assert_close(by_number, torch.tensor([0.25, 0.5, 0.25]), atol=0.02, rtol=0)
    counts = torch.bincount(drawn["ops"][applied], minlength=size)
    assert ((counts - MANY / size).abs() < 5 * (MANY / size) ** 0.5).all()
    both = applied.all(1)  # with replacement: the same one twice, once in `size`
    repeated = (drawn["ops"][both, 0] == drawn["ops"][both, 1]).float().mean().item()
    assert repeated == pytest.approx(1 / size, abs=0.02)


def test_randaugment_levels_and_signs_are_uniform() -> None:
    levels = RandAugment().draw((MANY, 3, 32, 32), seeded())["levels"].flatten()
    values, counts = levels.unique(return_counts=True)
    assert values.tolist() == [*range(-9, 0), *range(1, 10)]
    assert ((counts - 2 * MANY / 18).abs() < 5 * (2 * MANY / 18) ** 0.5).all()


def test_randaugment_pools() -> None:
    color = {
        *("identity", "autocontrast", "equalize", "rotate", "solarize", "color", "contrast", "brightness"),
        *("sharpness", "shear_x", "shear_y", "translate_x", "translate_y", "posterize"),
    }
    assert set(RandAugment().pool_for(3)) == color
    assert set(RandAugment().pool_for(1)) == color - {"color", "solarize"}
    assert RandAugment(pool=["color", "invert"]).pool_for(1) == ("invert", "identity")
    with pytest.raises(SemisupError, match=r"pool \['color'\] has no operation for images of one channel"):
        RandAugment(pool=["color"]).pool_for(1)


def test_randaugment_strengths_of_the_code_and_of_the_paper() -> None:
    pool = ("posterize", "solarize", "brightness")
    code, paper = policies._strengths(pool, "code"), policies._strengths(pool, "paper")
    assert code[0, 1:].tolist() == [4, 4, 3, 3, 2, 2, 2, 1, 1]
    assert paper[0, 1:].tolist() == [4, 4, 5, 5, 6, 6, 6, 7, 7]
    assert (code[1, [1, 9]] * 255).round().tolist() == [231, 26]
    torch.testing.assert_close(code[2, [1, 9]], torch.tensor([0.28, 1.72]))
    torch.testing.assert_close(paper[2, [1, 9]], torch.tensor([0.14, 0.86]))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("rotate", lambda v: ops.rotation(30 * v, (28, 20))),
        ("shear_x", lambda v: ops.shear_x(0.3 * v, (28, 20))),
        ("shear_y", lambda v: ops.shear_y(0.3 * v, (28, 20))),
        ("translate_x", lambda v: ops.translation(0.3 * v, 0 * v)),
        ("translate_y", lambda v: ops.translation(0 * v, 0.3 * v)),
    ],
)
def test_randaugment_geometry_by_level(name: str, expected) -> None:  # type: ignore[no-untyped-def]
    """Level 9 is 27 degrees, 0.27 of slope or side; the sign turns it round."""
    images = torch.rand(2, 3, 28, 20, generator=seeded(1))
    policy = RandAugment(pool=[name], cutout=0, shift=0, flip=False, probability=1)
    drawn = policy.draw(images.shape, seeded())
    drawn["ops"] = torch.tensor([[0, 1], [1, 0]])  # once as the first operation, once as the second
    drawn["levels"] = torch.tensor([[9, 1], [1, -4]])
    want = ops.affine(images, expected(torch.tensor([0.9, -0.4])), 0.5)
    torch.testing.assert_close(policy.apply(images, drawn), want, atol=1e-5, rtol=0)


def test_randaugment_keeps_the_order_of_its_two_operations() -> None:
    images = torch.rand(4, 1, 28, 28, generator=seeded(1))
    policy = RandAugment(pool=["invert", "rotate", "posterize"], cutout=0, shift=0, flip=False)
    drawn = policy.draw(images.shape, seeded())
    drawn["ops"] = torch.tensor([[0, 1], [1, 0], [2, 0], [0, 2]])
    drawn["levels"] = torch.full((4, 2), 9)
    turn = lambda x: ops.affine(x, ops.rotation(torch.tensor([27.0]), (28, 28)))  # noqa: E731
    coarse = lambda x: ops.posterize(x, torch.tensor([1]))  # noqa: E731
    want = [
        *(turn(ops.invert(images[:1])), ops.invert(turn(images[1:2]))),
        *(ops.invert(coarse(images[2:3])), coarse(ops.invert(images[3:]))),
    ]
    torch.testing.assert_close(policy.apply(images, drawn), torch.cat(want), atol=1e-5, rtol=0)
    assert policy.apply(images, drawn)[0, 0, 0, 0] == 0  # a corner from outside: black, inverted only if after
    assert policy.apply(images, drawn)[1, 0, 0, 0] == 1


def test_randaugment_composes_two_geometric_operations_in_order() -> None:
    images = torch.rand(1, 1, 28, 28, generator=seeded(1))
    policy = RandAugment(pool=["rotate", "translate_x"], cutout=0, shift=0, flip=False)
    drawn = policy.draw(images.shape, seeded())
    drawn["ops"], drawn["levels"] = torch.tensor([[0, 1]]), torch.tensor([[9, 5]])
    turn, move = ops.rotation(torch.tensor([27.0]), (28, 28)), ops.translation(torch.tensor([0.15]), torch.zeros(1))
    out = policy.apply(images, drawn)
    torch.testing.assert_close(out, ops.affine(images, ops.compose(turn, move)), atol=1e-5, rtol=0)
    assert out[..., :4].count_nonzero() < out[..., -4:].count_nonzero()  # moved last: the new black band is on the left


@pytest.mark.parametrize(("channels", "gray"), [(1, 0.0), (3, 0.5)])
def test_randaugment_paints_a_fifth_of_the_image(channels: int, gray: float) -> None:
    images = torch.full((4096, channels, 28, 28), 0.25)
    out = RandAugment(pool=["identity"])(images, seeded())
    assert set(out.unique().tolist()) == {0.25, gray}
    assert (out == gray).float().mean().item() == pytest.approx(0.4375**2, abs=0.004)  # 19.1 %, as published


def test_randaugment_fill_per_channel() -> None:
    images = torch.zeros(8, 3, 28, 28)
    out = RandAugment(pool=["identity"], fill=[0.1, 0.5, 0.9])(images, seeded())
    torch.testing.assert_close(out.amax((0, 2, 3)), torch.tensor([0.1, 0.5, 0.9]))
    with pytest.raises(SemisupError, match=r"fill \[0\.1, 0\.5, 0\.9\] needs images of 3 channels, not 1"):
        RandAugment(fill=[0.1, 0.5, 0.9])(images[:, :1], seeded())


def test_crops_have_the_published_areas_and_shapes() -> None:
    top, left, height, width = SimCLR().draw((MANY, 3, 96, 96), seeded())["boxes"].unbind(1)
    area, log_ratio = height * width / 96**2, (width / height).log()
    assert (area > 0.0799).all() and (area <= 1).all()
    assert log_ratio.abs().max() <= torch.tensor(4 / 3).log() + 1e-5
    assert log_ratio.mean().item() == pytest.approx(0, abs=0.01)
    # Areas are uniform but for the largest, whose long shapes do not fit: below 0.7 nothing is turned away.
    small = area[area < 0.7]
    share = (small < (0.08 + 0.7) / 2).float().mean().item()
    assert share == pytest.approx(0.5, abs=0.02)
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + height <= 96.001).all() and (left + width <= 96.001).all()
    # The place is uniform over where the crop fits.
    assert (top / (96 - height))[height < 90].mean().item() == pytest.approx(0.5, abs=0.02)


def test_crops_of_one_channel_keep_more_and_the_whole_image_is_possible() -> None:
    boxes = SimCLR().draw((MANY, 1, 8, 8), seeded())["boxes"]
    assert (boxes[:, 2] * boxes[:, 3] / 64).amin() >= 0.2999
    images = torch.rand(16, 3, 32, 32, generator=seeded(1))
    whole = build_policy("crop_flip", {"scale": [1, 1], "ratio": [1, 1]}, flip=False)(images, seeded())
    torch.testing.assert_close(whole, images, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("channels", "kinds"), [(1, 2), (3, 4)])
def test_jitter_has_the_published_probability_order_and_ranges(channels: int, kinds: int) -> None:
    drawn = SimCLR(strength=1.0).draw((MANY, channels, 8, 8), seeded())
    applied = drawn["order"][:, 0] < kinds
    assert applied.float().mean().item() == pytest.approx(0.8, abs=0.015)
    assert (drawn["order"][~applied] == kinds).all()
    orders = {tuple(order) for order in drawn["order"][applied].tolist()}
    assert len(orders) == (2 if kinds == 2 else 24)
    assert all(sorted(order) == list(range(kinds)) for order in orders)
    low, high = drawn["factors"].amin(0), drawn["factors"].amax(0)
    ranges = torch.tensor([[0.2, 1.8], [0.2, 1.8], [0.2, 1.8], [-0.2, 0.2]])[:kinds]
    torch.testing.assert_close(torch.stack([low, high], dim=1), ranges, atol=2e-3, rtol=0)
    torch.testing.assert_close(drawn["factors"].mean(0), ranges.mean(1), atol=0.02, rtol=0)
    gray = drawn["gray"].float().mean().item()
    assert gray == pytest.approx(0.2 if channels == 3 else 0, abs=0.015)
    assert not drawn["blur"].any()  # off by default


def test_jitter_applies_what_it_drew_in_that_order() -> None:
    images = torch.rand(2, 3, 16, 16, generator=seeded(1))
    policy = SimCLR(scale=[1, 1], ratio=[1, 1], flip=False, gray=0, blur=1)
    drawn = policy.draw(images.shape, seeded())
    drawn["order"] = torch.tensor([[3, 0, 2, 1], [1, 2, 0, 3]])
    drawn["factors"] = torch.tensor([[1.6, 1.4, 0.3, 0.15], [0.5, 1.7, 1.5, -0.1]])
    first, second = images.split(1)
    value = lambda n, kind: drawn["factors"][n : n + 1, kind]  # noqa: E731
    first = ops.brightness(ops.hue(first, value(0, 3)), value(0, 0))
    first = ops.contrast(ops.saturation(first, value(0, 2)), value(0, 1))
    second = ops.saturation(ops.contrast(second, value(1, 1)), value(1, 2))
    second = ops.hue(ops.brightness(second, value(1, 0)), value(1, 3))
    want = ops.gaussian_blur(torch.cat([first, second]), drawn["sigmas"], 3)
    torch.testing.assert_close(policy.apply(images, drawn), want, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "blur", "contrast", "saturation", "solarize", "least", "most"),
    [
        ("moco", 0.5, 0.4, 0.4, 0, 0.2, 1),
        ("byol_first", 1, 0.4, 0.2, 0, 0.08, 1),
        ("byol_second", 0.1, 0.4, 0.2, 0.2, 0.08, 1),
        ("dino_first", 1, 0.4, 0.2, 0, 0.4, 1),
        ("dino_second", 0.1, 0.4, 0.2, 0.2, 0.4, 1),
        ("dino_local", 0.5, 0.4, 0.2, 0, 0.05, 0.4),
        ("swav", 0.5, 0.8, 0.8, 0, 0.14, 1),
        ("swav_local", 0.5, 0.8, 0.8, 0, 0.05, 0.14),
    ],
)
def test_views_have_the_published_numbers(
    name: str, blur: float, contrast: float, saturation: float, solarize: float, least: float, most: float
) -> None:
    drawn = build_policy(name, {}, flip=True).draw((MANY, 3, 32, 32), seeded())
    low, high = drawn["factors"].amin(0), drawn["factors"].amax(0)
    jitter, hue = [1 - contrast, 1 + contrast], contrast / 4
    ranges = torch.tensor([jitter, jitter, [1 - saturation, 1 + saturation], [-hue, hue]])
    torch.testing.assert_close(torch.stack([low, high], dim=1), ranges, atol=1e-3, rtol=0)
    area = drawn["boxes"][:, 2] * drawn["boxes"][:, 3] / 32**2
    assert area.amin().item() == pytest.approx(least, abs=0.003)
    assert area.amax().item() == pytest.approx(most, abs=0.02)
    for key, expected in (("blur", blur), ("gray", 0.2), ("solarize", solarize)):
        share = drawn[key].float().mean().item() if key in drawn else 0.0
        assert share == pytest.approx(expected, abs=0.015), key
    assert (drawn["order"][:, 0] < 4).float().mean().item() == pytest.approx(0.8, abs=0.015)


@pytest.mark.parametrize(("name", "least"), [("cmc", 0.2), ("mae", 0.2), ("maskfeat", 0.5)])
def test_plain_crops_are_as_large_as_published(name: str, least: float) -> None:
    boxes = build_policy(name, {}, flip=True).draw((MANY, 1, 32, 32), seeded())["boxes"]
    area = boxes[:, 2] * boxes[:, 3] / 32**2
    assert area.amin().item() == pytest.approx(least, abs=0.01)


def test_solarizing_is_drawn_last_and_only_where_it_can_happen() -> None:
    for shape in ((256, 3, 8, 8), (256, 1, 8, 8)):
        generator = seeded()
        without, solarized = SimCLR().draw(shape, generator), SimCLR(solarize=0.3).draw(shape, seeded())
        assert torch.equal(solarized.pop("solarize"), (torch.rand(256, generator=generator) < 0.3).long())
        assert without.keys() == solarized.keys()
        assert all(torch.equal(without[key], solarized[key]) for key in without)
    assert "solarize" not in build_policy("byol_second", {}, flip=True).draw((8, 1, 8, 8), seeded())
    assert build_policy("byol_second", {"solarize": 1}, flip=True).draw((8, 1, 8, 8), seeded())["solarize"].all()


def test_solarizing_inverts_the_upper_half_after_all_else() -> None:
    images = torch.rand(4, 3, 16, 16, generator=seeded(1))
    plain, solarized = SimCLR(blur=1)(images, seeded()), SimCLR(blur=1, solarize=1)(images, seeded())
    torch.testing.assert_close(solarized, torch.where(plain >= 0.5, 1 - plain, plain))


def test_local_crops_are_simclr_views_of_small_parts_in_small_pictures() -> None:
    """The numbers are SimCLR's; one channel is cropped like three."""
    local, full = LocalCrop(scale=(0.1, 0.2)), SimCLR(scale=(0.1, 0.2))
    for channels in (1, 3):
        drawn, want = (policy.draw((64, channels, 28, 28), seeded()) for policy in (local, full))
        assert drawn.keys() == want.keys() and all(torch.equal(drawn[key], want[key]) for key in drawn)
        boxes = LocalCrop().draw((MANY, channels, 28, 28), seeded())["boxes"]
        area = boxes[:, 2] * boxes[:, 3] / 28**2
        assert area.amin() == pytest.approx(0.05, abs=0.002) and area.amax() == pytest.approx(0.4, abs=0.002)
    # A ramp from left to right stays one: half of a picture of 28 px in 14.
    ramp = torch.linspace(0, 1, 28).expand(1, 1, 28, 28)
    policy = LocalCrop(size=0.5, flip=False, jitter=0)
    drawn = {**policy.draw(ramp.shape, seeded()), "boxes": torch.tensor([[0.0, 7.0, 14.0, 14.0]])}
    torch.testing.assert_close(policy.apply(ramp, drawn), ramp[:, :, :14, 7:21], atol=1e-6, rtol=0)


def test_grayscale_view_is_gray() -> None:
    out = SimCLR(gray=1)(torch.rand(8, 3, 16, 16, generator=seeded(1)), seeded())
    assert torch.equal(out[:, 0], out[:, 1]) and torch.equal(out[:, 0], out[:, 2])


# What a user can get wrong -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "problem"),
    [
        ("wek", {}, "policy: unknown policy 'wek'; did you mean 'weak'?"),
        ("weak", {"shfit": 0.1}, "shfit: unknown key; did you mean 'shift'?"),
        ("weak", {"shift": 0.6}, "shift: must be at most 0.5, not 0.6"),
        ("weak", {"shift": "a lot"}, "shift: must be a number, not 'a lot'"),
        ("weak", {"shift": True}, "shift: must be a number, not true"),
        ("weak", {"shift": float("nan")}, "shift: must be a finite number, not nan"),
        ("weak", {"flip": 1}, "flip: must be true or false, not 1"),
        ("simclr", {"scale": [0.5, 0.1]}, "scale: must be two numbers [a, b] with 0 < a <= b <= 1, not [0.5, 0.1]"),
        ("simclr", {"ratio": None}, "ratio: must be a list, not null"),
        ("simclr", {"ratio": "wide"}, "ratio: must be a list, not 'wide'"),
        ("simclr", {"strength": 3}, "strength: must be at most 2.5, not 3"),
        ("simclr", {"blur_sigma": [0.1, 1]}, "blur_sigma: has no effect without blur"),
        ("moco", {"jitter": 0, "saturation": 1}, "saturation: has no effect without jitter"),
        ("byol_second", {"solarize": 2}, "solarize: must be at most 1, not 2"),
        ("randaugment", {"ranges": "codes"}, "ranges: must be one of code, paper, not 'codes'; did you mean 'code'?"),
        ("randaugment", {"pool": []}, "pool: must be a list of names out of identity, "),
        ("randaugment", {"pool": ["rotat"]}, "did you mean 'rotate'?"),
        ("randaugment", {"fill": [0, 1]}, "fill: must be a number from 0 to 1, or three of them"),
    ],
)  # fmt: skip
def test_mistakes_are_named(name: str, options: dict[str, object], problem: str) -> None:
    (found,) = check_policy({"policy": name, **options})
    assert problem in found
    with pytest.raises(SemisupError) as caught:
        build_policy(name, options, flip=True)
    assert str(caught.value) == f"augmentation policy '{name}': {found}"


def test_all_mistakes_are_named_at_once() -> None:
    options = {"shift": 2, "level": 3}
    assert len(check_policy({"policy": "randaugment", **options})) == 2
    with pytest.raises(SemisupError, match="2 problems"):
        build_policy("randaugment", options, flip=True)
    with pytest.raises(SemisupError, match="Weak: shift: must be"):
        Weak(shift=2)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_right_options_have_no_problems(name: str, options: dict[str, object]) -> None:
    assert check_policy({"policy": name, **options}) == []
    assert build_policy(name, options, flip=False).flip is False
    assert build_policy(name, {**options, "flip": True}, flip=False).flip is True


def test_drawing_does_not_depend_on_the_device_of_the_images() -> None:
    for name in POLICIES:
        policy, generator, again = build_policy(name, {}, flip=True), seeded(), seeded()
        policy(torch.rand(8, 3, 16, 16), generator)
        policy(torch.empty(8, 3, 16, 16, device="meta"), again)
        assert torch.equal(generator.get_state(), again.get_state())
