"""The denoising autoencoder against its equation, on the damage that `corrupt` drew."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisup.augment.pretext.corruption import corrupt
from semisup.errors import SemisupError
from semisup.methods import Batch, Progress, Update
from semisup.methods.denoising_autoencoder import DenoisingAutoencoder
from semisup.models import Encoder
from semisup.models.cnn import SmallCNN
from tests.methods import methods_reference as ref


class Pixels(nn.Module):
    """A network whose only map is the image."""

    def __init__(self) -> None:
        super().__init__()
        self.num_features = self.in_channels = 2

    def maps(self, images: Tensor) -> list[Tensor]:
        return [images]

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


class Scale(nn.Module):
    """A decoder of two numbers: gain and offset."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = nn.Parameter(torch.tensor([0.7, 0.2], dtype=torch.float64))

    def forward(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        return self.numbers[0] * maps + self.numbers[1]


def build(cls: type[DenoisingAutoencoder] = DenoisingAutoencoder, **options: Any) -> DenoisingAutoencoder:
    """The method around pixels and two numbers."""
    method = cls(Encoder(Pixels()), **options)
    method.decoder = cast(Any, Scale())
    return method


def pictures(count: int = 5, seed: int = 1) -> Tensor:
    return torch.randn(count, 2, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def first(method: DenoisingAutoencoder, images: Tensor) -> Update:
    torch.manual_seed(7)
    return ref.first(method, ref.batch(unlabeled={"image": images}))


KINDS = [("masking", 0.3), ("gaussian", 0.5), ("salt_and_pepper", 0.2)]


def check_equation(cls: type[DenoisingAutoencoder], corruption: str = "masking", amount: float = 0.3) -> None:
    method, images = build(cls, corruption=corruption, amount=amount), pictures()
    numbers = cast(nn.Parameter, method.decoder.numbers)
    update = first(method, images)
    torch.manual_seed(7)
    damaged = corrupt(images, cast(Any, corruption), amount)

    def reference(w: ref.Array) -> float:
        pairs = zip(damaged.flatten().tolist(), images.flatten().tolist(), strict=True)
        return ref.mean([(w[0] * seen + w[1] - clean) ** 2 for seen, clean in pairs])

    start = numbers.detach().numpy().copy()
    ref.close(update.loss, reference(start))
    assert torch.equal(update.loss, update.log["reconstruction"])
    (slope,) = torch.autograd.grad(update.loss, [numbers])
    ref.close(slope, ref.numeric_gradient(reference, start), rtol=1e-4)


@pytest.mark.parametrize(("corruption", "amount"), KINDS)
def test_equation(corruption: str, amount: float) -> None:
    check_equation(DenoisingAutoencoder, corruption, amount)


def identity(method: DenoisingAutoencoder) -> DenoisingAutoencoder:
    with torch.no_grad():
        cast(Tensor, method.decoder.numbers).copy_(torch.tensor([1.0, 0.0]))
    return method


def test_the_identity_pays_for_the_damage() -> None:
    """Masking: amount times the energy; Gaussian noise: its variance; no damage: nothing."""
    images = pictures(400)
    masking = first(identity(build(amount=0.3)), images).loss
    assert float(masking.detach()) == pytest.approx(0.3 * float(images.square().mean()), rel=0.03)
    noise = first(identity(build(corruption="gaussian", amount=0.5)), images).loss
    assert float(noise.detach()) == pytest.approx(0.25, rel=0.03)
    assert float(first(identity(build(amount=0.0)), images).loss.detach()) == 0


def test_the_damage_is_new_at_every_step() -> None:
    method, given = build(), ref.batch(unlabeled={"image": pictures()})
    losses = {float(ref.first(method, given).loss.detach()) for _ in range(3)}
    assert len(losses) == 3


def test_the_predictor_is_the_encoder_and_damages_nothing() -> None:
    torch.manual_seed(0)
    model = Encoder(SmallCNN(4, in_channels=1))
    method = DenoisingAutoencoder(model)
    assert method.predictor() is model
    images = torch.randn(3, 1, 8, 8)
    method.eval()
    assert torch.equal(model(images), model(images))


@pytest.mark.parametrize("size", [8, 28])
def test_it_learns_to_undo_the_damage(size: int) -> None:
    """Flat images of one gray level each: the network has to look at the pixels that are left."""
    torch.manual_seed(0)
    method = DenoisingAutoencoder(Encoder(SmallCNN(8, in_channels=1)), decoder_width=8).train()
    optimizer = torch.optim.Adam(method.parameters(), 0.01)
    losses = []
    for _ in range(40):
        images = torch.randn(16, 1, 1, 1).expand(16, 1, size, size)
        update = ref.first(method, ref.batch(unlabeled={"image": images}))
        optimizer.zero_grad()
        update.loss.backward()
        optimizer.step()
        losses.append(float(update.loss.detach()))
    assert sorted(losses[-9:])[4] < 0.3 < ref.mean(losses[:3])


def test_pictures_show_the_damage_and_the_repair() -> None:
    torch.manual_seed(0)
    method = DenoisingAutoencoder(Encoder(SmallCNN(4, in_channels=1)), amount=0.4).train()
    images = torch.randn(6, 1, 8, 8)
    before, statistics = torch.get_rng_state(), {k: v.clone() for k, v in method.state_dict().items()}
    damaged, repaired = method.reconstruct(images)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(v, statistics[k]) for k, v in method.state_dict().items())
    assert all(module.training for module in method.modules())
    assert not repaired.requires_grad
    assert damaged.shape == repaired.shape == images.shape
    assert 0.2 < float((damaged == 0).float().mean()) < 0.6
    assert torch.equal(damaged[damaged != 0], images[damaged != 0])
    method.eval()
    assert torch.equal(repaired, method.repair(damaged))
    assert torch.equal(method.reconstruct(images)[0], damaged)


def test_mistakes_are_named() -> None:
    with pytest.raises(SemisupError, match=r"method\.amount: masking hits a part of the pixels, at most 1, got 1\.5"):
        build(amount=1.5)
    assert build(corruption="gaussian", amount=1.5).amount == 1.5
    with pytest.raises(SemisupError, match="model: method 'denoising_autoencoder' decodes the maps of a backbone"):
        flat = ref.Flat()
        flat.in_channels = 1  # type: ignore[assignment]
        DenoisingAutoencoder(Encoder(flat))


# --- sabotage --------------------------------------------------------------------------------------------------------


class DamagedTarget(DenoisingAutoencoder):
    """The target is what the network saw."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        damaged = corrupt(batch.unlabeled["image"], self.corruption, self.amount)
        loss = F.mse_loss(self.repair(damaged), damaged)
        yield Update(loss, log={"reconstruction": loss})


class CleanInput(DenoisingAutoencoder):
    """A plain autoencoder."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        loss = F.mse_loss(self.repair(batch.unlabeled["image"]), batch.unlabeled["image"])
        yield Update(loss, log={"reconstruction": loss})


class Summed(DenoisingAutoencoder):
    """The sum over pixels."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for update in super().step(batch, progress):
            loss = update.loss * batch.unlabeled["image"][0].numel()
            yield Update(loss, log={"reconstruction": loss})


class OnlyTheDamage(DenoisingAutoencoder):
    """The loss counts the damaged pixels alone."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        images = batch.unlabeled["image"]
        damaged = corrupt(images, self.corruption, self.amount)
        loss = ((self.repair(damaged) - images).square() * (damaged != images)).mean()
        yield Update(loss, log={"reconstruction": loss})


class FrozenDamage(DenoisingAutoencoder):
    """Always the same pixels."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        torch.manual_seed(0)
        return super().step(batch, progress)


@pytest.mark.parametrize("cls", [DamagedTarget, CleanInput, Summed, OnlyTheDamage, FrozenDamage])
def test_equation_finds(cls: type[DenoisingAutoencoder]) -> None:
    with pytest.raises(AssertionError, match="Not equal"):
        check_equation(cls)
