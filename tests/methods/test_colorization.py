"""Colorization against equations 2 to 4 of the paper, place by place."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisup.augment.kernels.lab import rgb_to_lab
from semisup.errors import SemisupError
from semisup.losses import soft_cross_entropy
from semisup.methods import Batch, Progress, Update
from semisup.methods.colorization import BINS, Colorization, bin_weights, soft_bins
from semisup.models import Encoder
from semisup.models.cnn import SmallCNN
from tests.methods import methods_reference as ref

STATISTICS = ([0.5, 0.4, 0.3], [0.2, 0.25, 0.3])
COUNT, SIDE, PLACES = 2, 8, 2


class Answers(nn.Module):
    """A decoder that answers the same in every image: logits (Q, h, w)."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(3)
        self.logits = nn.Parameter(torch.randn(BINS, PLACES, PLACES, generator=draw, dtype=torch.float64))

    def forward(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        assert size == (PLACES, PLACES)
        return self.logits.expand(len(maps), -1, -1, -1)


def encoder(seed: int = 0) -> Encoder:
    torch.manual_seed(seed)
    return Encoder(SmallCNN(4, in_channels=3))


def build(cls: type[Colorization] = Colorization, **options: Any) -> Colorization:
    method = cls(encoder(), STATISTICS, **options).double()
    method.decoder = cast(Any, Answers())
    return method


def colors(count: int = COUNT, seed: int = 1) -> Tensor:
    """Images in [0, 1] of coarse colors."""
    draw = torch.Generator().manual_seed(seed)
    return (
        torch.rand(count, 3, 2, 2, generator=draw, dtype=torch.float64).repeat_interleave(4, 2).repeat_interleave(4, 3)
    )


def normalized(images: Tensor) -> Tensor:
    mean, std = (images.new_tensor(numbers).view(3, 1, 1) for numbers in STATISTICS)
    return (images - mean) / std


def first(method: Colorization, images: Tensor) -> Update:
    return ref.first(method, ref.batch(unlabeled={"image": normalized(images)}))


CENTERS = [(a, b) for a in range(-110, 111, 10) for b in range(-110, 111, 10)]


def slow_targets(images: Tensor) -> list[list[float]]:
    """A distribution over the bins for each place, image by image, row by row."""
    lab = rgb_to_lab(images)
    targets = []
    for n in range(len(images)):
        for i in range(PLACES):
            for j in range(PLACES):
                cell = lab[n, 1:, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].flatten(1).mean(1).tolist()
                distances = [(cell[0] - a) ** 2 + (cell[1] - b) ** 2 for a, b in CENTERS]
                nearest = sorted(range(BINS), key=lambda k: distances[k])[:5]
                shares = {k: math.exp(-distances[k] / 50) for k in nearest}
                targets.append([shares.get(k, 0.0) / sum(shares.values()) for k in range(BINS)])
    return targets


def slow_weights(frequencies: list[float], uniform: float) -> list[float]:
    raw = [1 / ((1 - uniform) * p + uniform / BINS) for p in frequencies]
    mean = sum(p * w for p, w in zip(frequencies, raw, strict=True))
    return [w / mean for w in raw]


def check_equation(cls: type[Colorization], uniform: float = 0.5) -> None:
    """Two steps: the frequencies of the second are the mean over both batches."""
    method = build(cls, uniform=uniform)
    decoder = cast(Answers, method.decoder)
    batches = [colors(seed=1), colors(seed=2)]
    targets = [slow_targets(images) for images in batches]
    for step, images in enumerate(batches):
        update = first(method, images)
        known = [row for seen in targets[: step + 1] for row in seen]
        frequencies = [ref.mean([row[k] for row in known]) for k in range(BINS)]
        weights = slow_weights(frequencies, uniform)

        def reference(z: ref.Array, now: Any = targets[step], weights: Any = weights) -> float:
            probs = ref.softmax(z.reshape(BINS, -1).T)
            losses = []
            for p, target in enumerate(now):
                entropy = -sum(t * math.log(q) for t, q in zip(target, probs[p % PLACES**2], strict=True) if t)
                losses.append(weights[target.index(max(target))] * entropy)
            return ref.mean(losses)

        logits = decoder.logits.detach().numpy()
        ref.close(update.loss, reference(logits), rtol=1e-6)
        assert torch.equal(update.loss, update.log["color"])
        (slope,) = torch.autograd.grad(update.loss, [decoder.logits])
        for at in [(0, 0, 0), (300, 1, 0), (264, 0, 1), *zip(*np.nonzero(slope.abs().numpy() > 0.1), strict=True)][:6]:
            changed = [logits.copy(), logits.copy()]
            changed[0][at] += 1e-5
            changed[1][at] -= 1e-5
            ref.close(slope[at], (reference(changed[0]) - reference(changed[1])) / 2e-5, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("uniform", [0.5, 0.9])
def test_equation(uniform: float) -> None:
    check_equation(Colorization, uniform)


def test_zero_logits_without_rebalancing_cost_log_q() -> None:
    method = build(uniform=1.0)
    nn.init.zeros_(cast(Answers, method.decoder).logits)
    assert float(first(method, colors()).loss.detach()) == pytest.approx(math.log(529))


def test_weights_have_mean_1_and_are_1_for_equal_frequencies() -> None:
    frequencies = torch.rand(BINS, generator=torch.Generator().manual_seed(0)).softmax(0)
    for uniform in (0.0, 0.5, 1.0):
        weights = bin_weights(frequencies, uniform)
        assert float((weights * frequencies).sum()) == pytest.approx(1)
        torch.testing.assert_close(bin_weights(torch.full((BINS,), 1 / BINS), uniform), torch.ones(BINS))
    rare = bin_weights(torch.tensor([0.9, 0.1]), 0.5)
    assert rare[1] > rare[0]
    assert bool(bin_weights(torch.tensor([1.0, 0.0]), 0.0).isfinite().all())


def test_soft_bins_of_a_center_and_between_two() -> None:
    exact = soft_bins(torch.tensor([20.0, -30.0]).view(1, 2, 1, 1))[0]
    near = 1 / (1 + 4 * math.exp(-2))
    assert exact[CENTERS.index((20, -30))] == pytest.approx(near)
    for neighbor in ((10, -30), (30, -30), (20, -20), (20, -40)):
        assert exact[CENTERS.index(neighbor)] == pytest.approx(near * math.exp(-2))
    assert float(exact.sum()) == pytest.approx(1)
    between = soft_bins(torch.tensor([25.0, -31.0]).view(1, 2, 1, 1))[0]
    assert between[CENTERS.index((20, -30))] == pytest.approx(float(between[CENTERS.index((30, -30))]))
    assert int((between > 0).sum()) == 5


def test_the_network_sees_lightness_alone() -> None:
    """Two images of one lightness: the network's answers are the same, its targets are not."""
    torch.manual_seed(0)
    method = Colorization(encoder(), STATISTICS).double().eval()
    given: list[Tensor] = []
    backbone = method.encoder.backbone.layer1
    backbone.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    images = colors(4)
    light = torch.tensor([0.2126729, 0.7151522, 0.0721750]).double().view(3, 1, 1)
    linear = torch.where(images <= 0.04045, images / 12.92, ((images + 0.055) / 1.055) ** 2.4)
    y = (linear * light).sum(1, keepdim=True)
    gray = torch.where(y <= 0.0031308, 12.92 * y, 1.055 * y ** (1 / 2.4) - 0.055).expand_as(images)
    for pictures in (images, gray):
        first(method, pictures)
    torch.testing.assert_close(given[0], given[1], rtol=0, atol=1e-5)  # the matrices have seven digits
    assert not torch.allclose(rgb_to_lab(images)[:, 1:], rgb_to_lab(gray)[:, 1:])
    # As a gray image, normalized like all others.
    lightness = rgb_to_lab(images)[:, :1] / 100
    torch.testing.assert_close(given[0], normalized(lightness.expand(-1, 3, -1, -1)))


def test_frequencies_are_the_mean_of_all_batches_then_forget() -> None:
    method = build(momentum=0.75)
    one_hot = F.one_hot(torch.arange(8), BINS).double()
    for k in range(4):
        method.remember(one_hot[k : k + 1])
    torch.testing.assert_close(method.frequencies[:4], torch.full((4,), 0.25, dtype=torch.float64))
    method.remember(one_hot[4:5])
    assert method.frequencies[:5].tolist() == pytest.approx([0.1875] * 4 + [0.25])
    assert float(method.frequencies.sum()) == pytest.approx(1)


def test_images_of_other_sizes_and_one_image() -> None:
    method = Colorization(encoder(), STATISTICS)
    for size in (8, 13, 32):
        assert bool(ref.first(method, ref.batch(unlabeled={"image": torch.randn(1, 3, size, size)})).loss.isfinite())
        assert method.colors(torch.rand(1, 1, size, size)).shape == (1, BINS, size // 4, size // 4)


def test_mistakes_are_named() -> None:
    gray = Encoder(SmallCNN(4, in_channels=1))
    with pytest.raises(SemisupError, match=r"'colorization' needs color images, of 3 channels; these have 1"):
        Colorization(gray, ([0.5], [0.5]))
    flat = ref.Flat()
    flat.in_channels = 3  # type: ignore[assignment]
    with pytest.raises(SemisupError, match="model: method 'colorization' decodes the maps of a backbone"):
        Colorization(Encoder(flat), STATISTICS)


# --- sabotage --------------------------------------------------------------------------------------------------------


class Planted(Colorization):
    """The method in pieces, so that each mistake is a line."""

    def lab(self, images: Tensor) -> Tensor:
        return rgb_to_lab(self.normalize.undo(images).clamp(0, 1))

    def weights(self, targets: Tensor) -> Tensor:
        return bin_weights(self.frequencies, self.uniform)[targets.argmax(1)]

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        lab = self.lab(batch.unlabeled["image"])
        logits = self.colors(lab[:, :1])
        targets = self.spread(F.adaptive_avg_pool2d(lab[:, 1:], logits.shape[2:]))
        self.remember(targets)
        loss = self.total(logits.permute(0, 2, 3, 1).flatten(0, 2), targets)
        yield Update(loss, log={"color": loss})

    def spread(self, ab: Tensor) -> Tensor:
        return soft_bins(ab)

    def total(self, logits: Tensor, targets: Tensor) -> Tensor:
        return soft_cross_entropy(logits, targets, self.weights(targets))


class Normalized(Planted):
    """Colors of the normalized image."""

    def lab(self, images: Tensor) -> Tensor:
        return rgb_to_lab(images.clamp(0, 1))


class RawWeights(Planted):
    """Weights whose mean is not 1."""

    def weights(self, targets: Tensor) -> Tensor:
        return 2 * super().weights(targets)


class Proportional(Planted):
    """Frequent colors count more."""

    def weights(self, targets: Tensor) -> Tensor:
        return 1 / super().weights(targets)


class Swapped(Planted):
    """a for b."""

    def spread(self, ab: Tensor) -> Tensor:
        return soft_bins(ab.flip(1))


class Transposed(Planted):
    """Targets column by column."""

    def spread(self, ab: Tensor) -> Tensor:
        return soft_bins(ab.transpose(2, 3))


class Hard(Planted):
    """The nearest bin alone."""

    def spread(self, ab: Tensor) -> Tensor:
        return F.one_hot(soft_bins(ab).argmax(1), BINS).to(ab.dtype)


class Forgetful(Planted):
    """Frequencies of this batch alone."""

    def remember(self, targets: Tensor) -> None:
        self.frequencies = targets.mean(0)


def test_the_pieces_without_a_mistake_pass() -> None:
    check_equation(Planted)


@pytest.mark.parametrize("cls", [Normalized, RawWeights, Proportional, Swapped, Transposed, Hard, Forgetful])
def test_equation_finds(cls: type[Colorization]) -> None:
    with pytest.raises(AssertionError, match="Not equal"):
        check_equation(cls)
