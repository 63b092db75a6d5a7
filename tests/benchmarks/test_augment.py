from __future__ import annotations

import augment
import numpy as np
import pytest
import torch
from torch import Tensor


def test_the_ratio_is_to_the_best_setting_of_each_package_and_the_least_of_these_counts() -> None:
    found = {
        "semisup, device": [0.1, 0.2, 0.3],
        "semisup, albumentations": [0.01, 0.01, 0.01],  # not what `auto` takes here
        "torchvision, threads": [9.0, 9.0, 9.0],
        "torchvision, workers": [0.4, 0.8, 1.2],
        "kornia, batched": [0.3, 0.6, 0.3],
    }
    outcome = augment.summary(found, "device")
    assert outcome["ratios"] == {"torchvision": 4.0, "kornia": 3.0}
    assert outcome["ratio"] == 3.0
    assert outcome["images_per_second"]["torchvision, workers"] == 1  # 1 / 0.8, rounded
    line = augment.line_of("weak 32 px", {**outcome, "auto": "device", "goal": 8.0}, {})
    assert line == ["weak 32 px", "5", "100", "device", "1", "", "3", "3.00", "", ">= 8"]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of Python 3.12, as in any benchmark
@pytest.mark.parametrize("view", augment.VIEWS)
@pytest.mark.parametrize("name", [name for name in augment.SETTINGS if name.split(",")[0] not in augment.missing()])
def test_every_setting_makes_the_same_kind_of_batch(name: str, view: str) -> None:
    threads = torch.get_num_threads()
    images = augment.stored(32, 6)
    try:
        batch = augment.SETTINGS[name](view, images, 1)()
    finally:
        torch.set_num_threads(threads)
    assert isinstance(batch, Tensor)
    assert batch.shape == (6, 3, 32, 32)
    assert batch.dtype == torch.float32
    assert batch.min() >= 0
    assert 0.5 < batch.max() <= 1  # divided by 255, once
    assert batch.std() > 0.05


def test_images_are_stored_as_data_sets_have_them() -> None:
    images = augment.stored(32, 6)
    assert images.shape == (6, 32, 32, 3)
    assert images.dtype == np.uint8
    assert len(np.unique(images)) > 100
