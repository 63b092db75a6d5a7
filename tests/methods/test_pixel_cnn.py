"""The PixelCNN auto-encoder: its likelihood pixel by pixel, and where its gradients go."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisup.methods import Batch, Progress, Update
from semisup.methods.pixel_cnn import PixelCNN
from semisup.models import Encoder
from semisup.models.cnn import SmallCNN
from tests.methods import methods_reference as ref

STATISTICS = {1: ([0.3], [0.35]), 3: ([0.5, 0.4, 0.3], [0.2, 0.25, 0.3])}
SIDE, LEVELS = 4, 3


def build(cls: type[PixelCNN] = PixelCNN, channels: int = 1, **options: Any) -> PixelCNN:
    torch.manual_seed(0)
    options = {"levels": LEVELS, "decoder_width": 4, "decoder_layers": 2, **options}
    return cls(Encoder(SmallCNN(2, in_channels=channels)), STATISTICS[channels], **options).eval()


def pictures(count: int = 2, channels: int = 1, seed: int = 1) -> Tensor:
    """In [0, 1]."""
    return torch.rand(count, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def normalized(images: Tensor) -> Tensor:
    mean, std = (images.new_tensor(numbers).view(-1, 1, 1) for numbers in STATISTICS[images.shape[1]])
    return (images - mean) / std


def first(method: PixelCNN, images: Tensor) -> Update:
    return ref.first(method, ref.batch(unlabeled={"image": normalized(images)}))


def slow_loss(method: PixelCNN, images: Tensor) -> float:
    """Minus the mean logarithm of each channel's level; a pixel is predicted from an image that ends before it."""
    losses = []
    for image in images:
        code = method.encoder(normalized(image[None]))
        levels = [[[min(int(v * LEVELS), LEVELS - 1) for v in row] for row in rows] for rows in image.tolist()]
        for i in range(SIDE):
            for j in range(SIDE):
                before = torch.zeros(1, len(image), SIDE, SIDE)
                for c in range(len(image)):
                    for a in range(SIDE):
                        for b in range(SIDE):
                            known = (a, b) < (i, j)
                            before[0, c, a, b] = levels[c][a][b] * 2 / (LEVELS - 1) - 1 if known else 7.0
                logits = method.decoder(before, code)[0, :, i, j].detach().double()
                for c in range(len(image)):
                    answers = [float(logits[level * len(image) + c]) for level in range(LEVELS)]
                    total = sum(math.exp(z) for z in answers)
                    losses.append(-math.log(math.exp(answers[levels[c][i][j]]) / total))
    return ref.mean(losses)


def check_equation(cls: type[PixelCNN], channels: int = 1) -> None:
    method, images = build(cls, channels), pictures(channels=channels)
    update = first(method, images)
    ref.close(update.loss, slow_loss(method, images))
    assert torch.equal(update.loss, update.log["pixels"])
    bias = method.decoder.out[3].bias
    assert isinstance(bias, nn.Parameter)
    (slope,) = torch.autograd.grad(update.loss, [bias])
    start = bias.detach().clone()

    def at(w: ref.Array) -> float:
        with torch.no_grad():
            bias.copy_(torch.tensor(w))
            return slow_loss(method, images)

    expected = ref.numeric_gradient(at, start.numpy(), step=1e-2)
    ref.close(slope, expected, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
def test_equation(channels: int) -> None:
    check_equation(PixelCNN, channels)


def test_levels_are_those_of_the_image_before_its_normalization() -> None:
    method = build(levels=4)
    ramp = torch.tensor([0.0, 0.1, 0.24, 0.26, 0.49, 0.51, 0.74, 0.76, 0.99, 1.0]).view(1, 1, 2, 5)
    assert method.quantize(normalized(ramp)).flatten().tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3, 3]
    assert method.quantize(torch.full((1, 1, 1, 1), -9.0)).item() == 0


def test_zero_logits_cost_the_logarithm_of_the_levels() -> None:
    method = build(levels=8)
    nn.init.zeros_(method.decoder.out[3].weight)
    nn.init.zeros_(method.decoder.out[3].bias)
    assert float(first(method, pictures()).loss.detach()) == pytest.approx(math.log(8))


def test_the_encoder_learns_from_every_pixel() -> None:
    method = build()
    images = normalized(pictures(1)).requires_grad_()
    answers = method.logits(method.quantize(images), method.encoder(images))
    (slope,) = torch.autograd.grad(answers[0, :, 0, 0, 0].sum(), images)  # the first pixel: there is the code alone
    assert slope.all()


def test_without_the_code_no_pixel_sees_itself_or_later_ones() -> None:
    method = build(decoder_layers=3, decoder_width=16)
    targets, code = method.quantize(normalized(pictures(1))), torch.randn(1, 8)
    plain = method.logits(targets, code)
    for a in range(SIDE):
        for b in range(SIDE):
            other = targets.clone()
            other[0, 0, a, b] = (other[0, 0, a, b] + 1) % LEVELS
            changed = (method.logits(other, code) != plain).any(1)[0, 0].nonzero().tolist()
            assert changed or (a, b) == (SIDE - 1, SIDE - 1)
            assert all((i, j) > (a, b) for i, j in changed)


def test_the_code_is_of_use() -> None:
    """Flat images of one level each: their first pixel, and all others, follow from the code."""
    torch.manual_seed(0)
    method = PixelCNN(Encoder(SmallCNN(8, in_channels=1)), ([0.5], [0.5]), levels=4).train()
    optimizer = torch.optim.Adam(method.parameters(), 0.01)
    for _ in range(60):
        gray = torch.randint(4, (32, 1, 1, 1)).expand(32, 1, 6, 6) / 4 + 0.125
        update = ref.first(method, ref.batch(unlabeled={"image": (gray - 0.5) / 0.5}))
        optimizer.zero_grad()
        update.loss.backward()
        optimizer.step()
    images = (gray - 0.5) / 0.5
    answers = method.logits(method.quantize(images), method.encoder(images))[..., 0, 0, 0]
    assert float((answers.argmax(1) == method.quantize(images)[:, 0, 0, 0]).float().mean()) > 0.9


def test_one_image_and_the_predictor() -> None:
    method = build()
    assert method.predictor() is method.encoder
    assert bool(first(method, pictures(1)).loss.isfinite())


# --- sabotage --------------------------------------------------------------------------------------------------------


class WholeImage(PixelCNN):
    """The decoder reads the image one place too far to the left: every pixel sees itself."""

    def logits(self, targets: Tensor, codes: Tensor) -> Tensor:
        return super().logits(F.pad(targets[..., 1:], (0, 1)), codes)


class NormalizedLevels(PixelCNN):
    """Levels of the normalized image."""

    def quantize(self, images: Tensor) -> Tensor:
        return (images * self.levels).long().clamp(0, self.levels - 1)


class OtherChannel(PixelCNN):
    """Channels before levels in the output."""

    def logits(self, targets: Tensor, codes: Tensor) -> Tensor:
        answers = super().logits(targets, codes)
        return answers.flatten(1, 2).unflatten(1, (targets.shape[1], -1)).transpose(1, 2)


class Summed(PixelCNN):
    """The sum over pixels."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for update in super().step(batch, progress):
            yield Update(update.loss * SIDE**2, log={"pixels": update.loss * SIDE**2})


@pytest.mark.parametrize("cls", [WholeImage, NormalizedLevels, OtherChannel, Summed])
def test_equation_finds(cls: type[PixelCNN]) -> None:
    with pytest.raises(AssertionError, match="Not equal"):
        check_equation(cls, channels=3)
