from __future__ import annotations

import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from semisup.augment.kernels.normalize import Normalize, to_float


@pytest.mark.parametrize("channels", [1, 3])
def test_to_float_equals_torchvision_and_is_channels_last(channels: int) -> None:
    stored = torch.randint(256, (5, 6, 7, channels), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before = stored.clone()
    images = to_float(stored)
    assert images.dtype == torch.float32 and images.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(images, tv.to_dtype(stored.permute(0, 3, 1, 2), torch.float32, scale=True))
    assert torch.equal(stored, before)
    assert images.amax() <= 1
    assert torch.equal((images * 255).round().to(torch.uint8).permute(0, 2, 3, 1), stored)
    assert to_float(stored.to("meta")).shape == images.shape


def test_normalize_equals_torchvision() -> None:
    images = torch.rand(4, 3, 6, 5).contiguous(memory_format=torch.channels_last)
    mean, std = [0.1, 0.5, 0.3], [0.2, 1.0, 0.7]
    out = Normalize(mean, std)(images)
    torch.testing.assert_close(out, tv.normalize(images, mean, std))
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_normalize_can_be_undone() -> None:
    images, normalize = torch.rand(4, 3, 6, 5), Normalize([0.1, 0.5, 0.3], [0.2, 1.0, 0.7])
    torch.testing.assert_close(normalize.undo(normalize(images)), images)
    assert torch.equal(normalize.undo(torch.zeros(1, 3, 1, 1)).flatten(), normalize.mean)


def test_normalize_travels_in_the_state() -> None:
    source, target = Normalize([0.3], [0.4]), Normalize([0.0], [1.0])
    target.load_state_dict(source.state_dict())
    images = torch.rand(2, 1, 4, 4)
    assert torch.equal(target(images), source(images))
    assert not list(source.parameters())


def test_normalize_refuses_what_cannot_be_meant() -> None:
    with pytest.raises(ValueError, match="got 2 and 1 numbers"):
        Normalize([0.1, 0.2], [0.3])
    with pytest.raises(ValueError, match="std must be above 0"):
        Normalize([0.1], [0.0])
    with pytest.raises(ValueError, match="images have 1 channels, mean and std 3"):
        Normalize([0.1, 0.2, 0.3], [1, 1, 1])(torch.rand(2, 1, 4, 4))
