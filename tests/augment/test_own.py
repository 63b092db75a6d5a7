"""A recipe's own albumentations transforms: found by name, checked as data, drawn from a seed."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from semisup.augment.policies.own import OwnTransforms, check_own, transforms
from semisup.errors import SemisupError


def picture(channels: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (16, 16, channels), dtype=np.uint8)


def test_transforms_of_an_image_are_offered_and_nothing_else() -> None:
    offered = transforms()
    assert {"HorizontalFlip", "GaussNoise", "CLAHE", "ColorJitter", "CoarseDropout", "Affine"} <= set(offered)
    assert len(offered) > 60
    code, files, bases = (
        {"Lambda"},
        {"TextImage", "FDA", "HistogramMatching", "OverlayElements", "Mosaic"},
        {"BasicTransform"},
    )
    others = {"Compose", "OneOf", "ReplayCompose", "load", "from_dict", "CubicSymmetry", "Transform3D", "os"}
    assert not (code | files | bases | others) & set(offered)


@pytest.mark.parametrize(
    ("steps", "problem"),
    [
        ([], ": must be a list of transforms"),
        ({"name": "HorizontalFlip"}, ": must be a list of transforms"),
        (["HorizontalFlip"], "[0]: must be a mapping, such as {name: GaussNoise, p: 0.5}, got 'HorizontalFlip'"),
        ([{"p": 0.5}], "[0].name: missing"),
        ([{"name": "HorizontalFlop"}], "'HorizontalFlop'; did you mean 'HorizontalFlip'?"),
        ([{"name": "Lambda"}], "[0].name: unknown transform, or one that takes more than an image, 'Lambda'"),
        ([{"name": "os.system"}], "[0].name: unknown transform"),
        ([{"name": 3}], "[0].name: unknown transform"),
        (
            [{"name": "GaussNoise", "std_rang": [0, 1]}],
            "[0].std_rang: 'GaussNoise' takes no such argument; did you mean 'std_range'?",
        ),
        ([{"name": "GaussNoise"}, {"name": "Blur", "blur_limit": "much"}], "[1]: Blur: blur_limit: "),
        ([{"name": "GaussNoise", "p": 2}], "[0]: GaussNoise: p: "),
        ([{"name": "RandomCrop"}], "[0]: RandomCrop: "),
        ([{"name": "Blur", "p": print}], "[0].p: must be plain data, got <built-in function print>"),
        ([{"name": "Blur", "blur_limit": [{"a": print}]}], "[0].blur_limit: must be plain data"),
    ],
)
def test_a_mistake_is_named_with_its_place(steps: object, problem: str) -> None:
    found = check_own(steps)
    assert found and all(problem in line for line in found)


def test_all_mistakes_are_named() -> None:
    steps = [{"name": "Blurr"}, {"name": "Blur", "p": 3}, {"name": "Blur", "q": 1, "r": 1}]
    assert [problem[:3] for problem in check_own(steps)] == ["[0]", "[1]", "[2]", "[2]"]
    with pytest.raises(SemisupError, match="4 problems"):
        OwnTransforms(steps)


def test_lists_are_what_albumentations_writes_as_tuples() -> None:
    steps = [
        {"name": "GaussNoise", "std_range": [0.1, 0.2]},
        {"name": "Affine", "shear": {"x": [-10, 10], "y": [0, 0]}, "fill": [1, 2, 3]},
        {"name": "CoarseDropout", "num_holes_range": [1, 1], "hole_height_range": [4, 4], "hole_width_range": [4, 4]},
    ]
    assert check_own(steps) == []
    assert OwnTransforms(steps).try_on(picture()) == []


def test_the_seed_decides() -> None:
    own = OwnTransforms([{"name": "GaussNoise", "p": 1}, {"name": "RandomRotate90", "p": 1}])
    image = picture()
    first, before = own(image, 1), image.copy()
    second = own(image, 2)
    assert not np.array_equal(first, second)
    again = OwnTransforms([{"name": "GaussNoise", "p": 1}, {"name": "RandomRotate90", "p": 1}])
    assert np.array_equal(again(image, 2), second) and np.array_equal(own(image, 1), first)
    assert np.array_equal(image, before)


def test_transforms_draw_independently_of_each_other() -> None:
    """By one seed for all of them, two flips would happen together or not at all."""
    own = OwnTransforms([{"name": "HorizontalFlip", "p": 0.5}, {"name": "VerticalFlip", "p": 0.5}])
    image = picture()
    ways = [image, image[:, ::-1], image[::-1], image[::-1, ::-1]]
    counts = [0] * 4
    for seed in range(80):
        result = own(image, seed)
        counts[next(k for k, way in enumerate(ways) if np.array_equal(result, way))] += 1
    assert min(counts) >= 8  # of 20


@pytest.mark.parametrize(
    ("step", "channels", "problem"),
    [
        (
            {"name": "RandomCrop", "height": 8, "width": 8},
            3,
            "must keep height, width and channels (16, 16, 3), makes (8, 8, 3)",
        ),
        ({"name": "ToFloat", "p": 0.01}, 3, "must keep whole gray levels (uint8), makes float32"),
        ({"name": "ToTensorV2"}, 3, "must keep whole gray levels (uint8), makes Tensor"),
        ({"name": "MaskDropout"}, 3, "fails on an image of shape (16, 16, 3): "),
        ({"name": "ChannelDropout"}, 1, "fails on an image of shape (16, 16, 1): "),
    ],
)
def test_what_cannot_go_on_is_found_by_trying(step: dict[str, object], channels: int, problem: str) -> None:
    own = OwnTransforms([{"name": "HorizontalFlip"}, step])
    (found,) = own.try_on(picture(channels))
    assert found.startswith(f"[1]: {step['name']}: {problem}")


def test_gray_images_keep_their_channel() -> None:
    own = OwnTransforms([{"name": "Affine", "rotate": [-20, 20], "p": 1}, {"name": "RandomBrightnessContrast", "p": 1}])
    assert own.try_on(picture(1)) == []
    assert own(picture(1), 0).shape == (16, 16, 1)
