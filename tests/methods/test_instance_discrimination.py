"""NPID against equations 2, 7 and 10: both losses, the constant Z, and the bank."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisup.losses import nce
from semisup.methods import Batch, Progress, Unlabeled, Update
from semisup.methods.instance_discrimination import InstanceDiscrimination
from semisup.models import Encoder
from tests.methods import methods_reference as ref

IMAGES, NOISE, TEMPERATURE = 9, 6, 0.4
INDEX = (7, 2, 5, 0)


def given(step: int = 0) -> Batch:
    index = torch.tensor(INDEX).roll(step)
    return Batch(ref.batch().labeled, Unlabeled({"view": ref.images(4, 10 + step)}, index))


def build(cls: type[InstanceDiscrimination], **options: Any) -> InstanceDiscrimination:
    """The method on a linear encoder: 6 features, 5 numbers to compare, 9 images."""
    defaults = {"noise": NOISE, "temperature": TEMPERATURE, "out_features": 5}
    return cls(ref.linear_encoder(), IMAGES, **{**defaults, **options})


def bare(**options: Any) -> InstanceDiscrimination:
    """The method on raw pixels."""
    method = InstanceDiscrimination(Encoder(ref.Flat(8)), IMAGES, **{"out_features": 8, **options})
    method.embed = nn.Identity()  # type: ignore[assignment]
    return method


def unit(row: ref.Array) -> ref.Array:
    return row / math.sqrt(sum(row * row))


def embed(learned: list[ref.Array], images: Tensor) -> list[ref.Array]:
    w1, b1, w2, b2 = learned
    return [unit(w2 @ (w1 @ x + b1) + b2) for x in images.double().flatten(1).numpy()]


def terms(
    rows: list[ref.Array], index: list[int], bank: ref.Array, noise: list[int], z: float | None
) -> tuple[float, float]:
    """Instance and proximal term of embeddings, image by image; without Z the softmax over the bank."""
    instance, proximal = [], []
    for row, i in zip(rows, index, strict=True):
        powers = [math.exp(row @ b / TEMPERATURE) for b in bank]
        if z is None:
            instance.append(-math.log(powers[i] / sum(powers)))
        else:
            h = [power / z / (power / z + NOISE / IMAGES) for power in powers]
            instance.append(-math.log(h[i]) - sum(math.log(1 - h[j]) for j in noise))
        proximal.append(sum((a - b) ** 2 for a, b in zip(row, bank[i], strict=True)))
    return ref.mean(instance), ref.mean(proximal)


def check_steps(cls: type[InstanceDiscrimination], **options: Any) -> None:
    """Three steps: loss and gradient against the old bank, Z of the first batch alone, and the bank afterwards."""
    method = build(cls, **options)
    bank = method.bank.double().numpy().copy()
    ref.close((bank**2).sum(1), np.ones(IMAGES))
    momentum, weight = options.get("bank_momentum", 0.5), options.get("proximal_weight", 0.0)
    z = None
    for step in range(3):
        batch = given(step)
        images, index = batch.unlabeled["view"], batch.unlabeled.index.tolist()
        torch.manual_seed(step)
        noise = torch.randint(IMAGES, (NOISE,)).tolist()
        parameters = method.groups()["main"]
        learned = [p.detach().double().numpy() for p in parameters]
        rows = embed(learned, images)
        if step == 0 and options.get("loss", "nce") == "nce":
            z = IMAGES * ref.mean([math.exp(row @ bank[j] / TEMPERATURE) for row in rows for j in noise])
        instance, proximal = terms(rows, index, bank, noise, z)

        torch.manual_seed(step)
        updates = method.step(batch, Progress(step, 3))
        update = next(updates)
        ref.close(update.log["instance"], instance)
        ref.close(update.log["proximal"], proximal)
        ref.close(update.loss, instance + weight * proximal)
        slopes = torch.autograd.grad(update.loss, parameters)
        for at in (0, 2):  # the matrices of encoder and embedding

            def loss(w: ref.Array, at: int = at, given: tuple[Any, ...] = (learned, images, index, noise, z)) -> float:
                learned, images, index, noise, z = given
                moved = embed([*learned[:at], w, *learned[at + 1 :]], images)
                instance, proximal = terms(moved, index, bank, noise, z)
                return instance + weight * proximal

            ref.close(slopes[at], ref.numeric_gradient(loss, learned[at]), rtol=1e-3, atol=1e-5)
        ref.close(method.bank, bank)
        with torch.no_grad():
            for p, slope in zip(parameters, slopes, strict=True):
                p.sub_(0.1 * slope)
        assert next(updates, None) is None
        for row, i in zip(rows, index, strict=True):
            bank[i] = unit(momentum * bank[i] + (1 - momentum) * row)
        ref.close(method.bank, bank)


CASES: list[dict[str, Any]] = [
    {},
    {"bank_momentum": 0.0, "proximal_weight": 3.0},
    {"loss": "softmax"},
    {"loss": "softmax", "bank_momentum": 0.2, "proximal_weight": 0.5},
]


@pytest.mark.parametrize("options", CASES)
def test_steps(options: dict[str, Any]) -> None:
    check_steps(InstanceDiscrimination, **options)


@pytest.mark.parametrize("m", [16, 4096])
def test_chance_level_of_nce(m: int) -> None:
    """methods.md 2.1: all scores equal, P = 1/n; 9.3179 for m = 4096."""
    method = bare(noise=m)
    method.bank.copy_(torch.eye(8)[:1].expand(IMAGES, 8))
    view = torch.randn(1, 8, generator=torch.Generator().manual_seed(0)).expand(4, 8).view(4, 1, 2, 4)
    batch = Batch(ref.batch().labeled, Unlabeled({"view": view}, torch.tensor(INDEX)))
    update = ref.first(method, batch)
    ref.close(update.loss, math.log(1 + m) + m * math.log(1 + 1 / m), rtol=1e-4)
    if m == 4096:
        ref.close(update.loss, 9.3179, rtol=1e-4)


def test_closed_forms_of_softmax() -> None:
    method = bare(loss="softmax", temperature=0.5)
    method.bank.copy_(F.normalize(torch.ones(IMAGES, 8), dim=1))
    batch = Batch(ref.batch().labeled, Unlabeled({"view": ref.images(4, 1).repeat(1, 1, 1, 2)}, torch.tensor(INDEX)))
    ref.close(ref.first(method, batch).loss, math.log(IMAGES))
    method = InstanceDiscrimination(Encoder(ref.Flat(8)), 8, loss="softmax", temperature=0.5, out_features=8)
    method.embed = nn.Identity()  # type: ignore[assignment]
    method.bank.copy_(torch.eye(8))
    own = Batch(ref.batch().labeled, Unlabeled({"view": torch.eye(8).view(8, 1, 2, 4)}, torch.arange(8)))
    update = ref.first(method, own)
    ref.close(update.loss, math.log(1 + 7 * math.exp(-2)))
    ref.close(update.log["proximal"], 0.0)


def test_only_the_rows_of_the_batch_move_and_stay_of_unit_length() -> None:
    method = build(InstanceDiscrimination)
    start = method.bank.clone()
    ref.run(method, given())
    moved = (method.bank != start).any(1).nonzero().flatten().tolist()
    assert moved == sorted(INDEX)
    ref.close((method.bank**2).sum(1), np.ones(IMAGES))


def test_an_image_that_stands_in_a_batch_twice_keeps_one_of_its_embeddings() -> None:
    method = build(InstanceDiscrimination, bank_momentum=0.0)
    batch = Batch(ref.batch().labeled, Unlabeled({"view": ref.images(2, 1)}, torch.tensor([3, 3])))
    both = embed([p.detach().double().numpy() for p in method.groups()["main"]], batch.unlabeled["view"])
    ref.run(method, batch)
    assert any(np.allclose(method.bank[3].numpy(), row, atol=1e-5) for row in both)


def test_z_is_not_counted_by_softmax_and_a_huge_similarity_does_not_overflow() -> None:
    method = build(InstanceDiscrimination, loss="softmax")
    ref.run(method, given())
    assert bool(method.log_z.isinf())
    sharp = build(InstanceDiscrimination, temperature=1e-3)  # exp(1000)
    assert bool(ref.first(sharp, given()).loss.isfinite())
    assert bool(sharp.log_z.isfinite())


def test_networks() -> None:
    method = InstanceDiscrimination(ref.linear_encoder(num_features=6), IMAGES)
    assert (method.embed.in_features, method.embed.out_features) == (6, 128)
    assert method.predictor() is method.encoder
    assert isinstance(method.encoder, Encoder)


# --- sabotage --------------------------------------------------------------------------------------------------------


class FreshZ(InstanceDiscrimination):
    """Z is counted anew for every batch."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        self.log_z.fill_(-torch.inf)
        return super().step(batch, progress)


class MeanForZ(InstanceDiscrimination):
    """Z without its factor n."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for update in super().step(batch, progress):
            if progress.step == 0:
                self.log_z -= math.log(IMAGES)
            yield update


class EarlyBank(InstanceDiscrimination):
    """The bank takes the embeddings in before the loss looks at it."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        index = batch.unlabeled.index
        with torch.no_grad():
            v = F.normalize(self.embed(self.encoder(batch.unlabeled["view"])), dim=1)
            self.bank[index] = F.normalize(torch.lerp(v, self.bank[index], self.bank_momentum), dim=1)
        yield next(iter(super().step(batch, progress)))


class RawBank(InstanceDiscrimination):
    """Averages of unit vectors, which are shorter."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        index = batch.unlabeled.index
        before = self.bank[index]
        yield from super().step(batch, progress)
        self.bank[index] = torch.lerp(self.bank[index], before, 0.5)


class LostBank(InstanceDiscrimination):
    """The bank stays as it was drawn."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        yield next(iter(super().step(batch, progress)))


class OtherRows(InstanceDiscrimination):
    """Images are told apart by their place in the batch."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        u = batch.unlabeled
        return super().step(Batch(batch.labeled, Unlabeled(u.views, torch.arange(len(u.index)))), progress)


class MeanOverNoise(InstanceDiscrimination):
    """The mean over the noise instead of its sum."""

    def nce_loss(self, v: Tensor, own: Tensor) -> Tensor:
        state = torch.get_rng_state()
        super().nce_loss(v, own)
        torch.set_rng_state(state)
        noise = v @ self.bank[torch.randint(IMAGES, (self.noise,))].T / self.temperature
        shift = self.log_z - math.log(IMAGES)
        positive = (v * own).sum(1) / self.temperature - shift
        total = nce(positive, noise - shift)
        first = F.softplus(math.log(self.noise) - positive).mean()
        return first + (total - first) / self.noise


class NoTemperature(InstanceDiscrimination):
    """The image's own similarity is not divided by the temperature."""

    def nce_loss(self, v: Tensor, own: Tensor) -> Tensor:
        return super().nce_loss(v, self.temperature * own)


class ProximalOfOthers(InstanceDiscrimination):
    """The distance of an embedding to another image's."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        v = F.normalize(self.embed(self.encoder(batch.unlabeled["view"])), dim=1)
        wrong = (v - self.bank[batch.unlabeled.index.roll(1)]).square().sum(1).mean()
        for update in super().step(batch, progress):
            loss = update.log["instance"] + self.proximal_weight * wrong
            yield replace(update, loss=loss, log={**update.log, "proximal": wrong})


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (FreshZ, {}),
        (MeanForZ, {}),
        (MeanOverNoise, {}),
        (NoTemperature, {}),
        *((cls, options) for cls in (EarlyBank, RawBank, LostBank, OtherRows) for options in CASES[1:3]),
        (ProximalOfOthers, CASES[1]),
        (ProximalOfOthers, CASES[3]),
    ],
)
def test_check_finds(cls: type[InstanceDiscrimination], options: dict[str, Any]) -> None:
    with pytest.raises(AssertionError, match="Not equal"):
        check_steps(cls, **options)
