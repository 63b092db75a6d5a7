"""NPID against equations 2, 7 and 10: both losses, the running Z, the bank, and images told apart in the end."""

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
from semisup.methods.parts.instance_bank import InstanceBank
from semisup.models import Encoder
from tests.methods import methods_reference as ref

IMAGES, NOISE, TEMPERATURE = 9, 6, 0.4
INDEX = ((7, 2, 5, 0), (2, 8, 0, 1), (5, 7, 8, 2))
Bank = dict[int, ref.Array]
"""Image -> row, in the order in which they were first shown."""


def given(step: int = 0) -> Batch:
    return Batch(ref.batch().labeled, Unlabeled({"view": ref.images(4, 10 + step)}, torch.tensor(INDEX[step])))


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
    rows: list[ref.Array], index: list[int], bank: Bank, noise: list[ref.Array], z: float | None
) -> tuple[float, float]:
    """Instance and proximal term of embeddings, image by image; without Z softmax over the bank."""
    instance, proximal = [], []
    for row, i in zip(rows, index, strict=True):
        own = math.exp(row @ bank[i] / TEMPERATURE)
        if z is None:
            instance.append(-math.log(own / sum(math.exp(row @ b / TEMPERATURE) for b in bank.values())))
        else:  # P / P_noise = exp(.) / z
            others = [math.exp(row @ b / TEMPERATURE) / z for b in noise]
            instance.append(-math.log(own / z / (own / z + NOISE)) - sum(math.log(NOISE / (h + NOISE)) for h in others))
        proximal.append(sum((a - b) ** 2 for a, b in zip(row, bank[i], strict=True)))
    return ref.mean(instance), ref.mean(proximal)


def check_steps(cls: type[InstanceDiscrimination], **options: Any) -> None:
    """Three steps: loss and gradient against the rows of earlier steps, the running Z, and the bank afterwards.

    The second has two images that were shown before and two new ones, whose rows begin as their embeddings; the third
    has none.
    """
    method = build(cls, **options)
    momentum, weight = options.get("bank_momentum", 0.5), options.get("proximal_weight", 0.0)
    bank: Bank = {}
    z: float | None = None
    for step in range(3):
        images, index = given(step).unlabeled["view"], list(INDEX[step])
        parameters = method.groups()["main"]
        learned = [p.detach().double().numpy() for p in parameters]
        rows = embed(learned, images)
        bank |= {i: rows[index.index(i)] for i in sorted(index) if i not in bank}
        torch.manual_seed(step)
        drawn = torch.rand(NOISE).tolist()
        noise = [list(bank.values())[int(r * len(bank))] for r in drawn]
        if options.get("loss") == "nce":
            now = ref.mean([math.exp(row @ b / TEMPERATURE) for row in rows for b in noise])
            z = now if z is None else 0.9 * z + 0.1 * now
        instance, proximal = terms(rows, index, bank, noise, z)

        torch.manual_seed(step)
        updates = method.step(given(step), Progress(step, 3))
        update = next(updates)
        ref.close(update.log["instance"], instance)
        ref.close(update.log["proximal"], proximal)
        ref.close(update.loss, instance + weight * proximal)
        slopes = torch.autograd.grad(update.loss, parameters)
        for at in (0, 2):  # the matrices of encoder and embedding

            def loss(
                w: ref.Array, at: int = at, given: tuple[Any, ...] = (learned, images, index, dict(bank), noise, z)
            ) -> float:
                learned, images, index, bank, noise, z = given
                moved = embed([*learned[:at], w, *learned[at + 1 :]], images)
                instance, proximal = terms(moved, index, bank, noise, z)
                return instance + weight * proximal

            ref.close(slopes[at], ref.numeric_gradient(loss, learned[at]), rtol=1e-3, atol=1e-5)
        with torch.no_grad():
            for p, slope in zip(parameters, slopes, strict=True):
                p.sub_(0.1 * slope)
        assert next(updates, None) is None
        for row, i in zip(rows, index, strict=True):
            bank[i] = unit(momentum * bank[i] + (1 - momentum) * row)
        ref.close(method.bank.rows[: len(bank)], np.array(list(bank.values())))
        assert not method.bank.rows[len(bank) :].any()


CASES: list[dict[str, Any]] = [
    {"loss": "nce"},
    {"loss": "nce", "bank_momentum": 0.0, "proximal_weight": 3.0},
    {},
    {"bank_momentum": 0.2, "proximal_weight": 0.5},
]


@pytest.mark.parametrize("options", CASES)
def test_steps(options: dict[str, Any]) -> None:
    check_steps(InstanceDiscrimination, **options)


def fill(method: InstanceDiscrimination, rows: Tensor) -> None:
    """Say that images were shown in the order of their numbers, and what was said to them."""
    method.bank.rows.copy_(rows)
    method.bank.place.copy_(torch.arange(len(rows)))


@pytest.mark.parametrize("m", [16, 4096])
def test_chance_level_of_nce(m: int) -> None:
    """methods.md 2.1: all scores equal, P = 1/n; 9.3179 for m = 4096."""
    method = bare(loss="nce", noise=m)
    fill(method, torch.eye(8)[:1].expand(IMAGES, 8))
    view = torch.randn(1, 8, generator=torch.Generator().manual_seed(0)).expand(4, 8).view(4, 1, 2, 4)
    batch = Batch(ref.batch().labeled, Unlabeled({"view": view}, torch.tensor(INDEX[0])))
    update = ref.first(method, batch)
    ref.close(update.loss, math.log(1 + m) + m * math.log(1 + 1 / m), rtol=1e-4)
    if m == 4096:
        ref.close(update.loss, 9.3179, rtol=1e-4)


def test_closed_forms_of_softmax() -> None:
    method = bare(temperature=0.5)
    fill(method, F.normalize(torch.ones(IMAGES, 8), dim=1))
    view = ref.images(4, 1).repeat(1, 1, 1, 2)
    batch = Batch(ref.batch().labeled, Unlabeled({"view": view}, torch.tensor(INDEX[0])))
    ref.close(ref.first(method, batch).loss, math.log(IMAGES))
    method = InstanceDiscrimination(Encoder(ref.Flat(8)), 8, temperature=0.5, out_features=8)
    method.embed = nn.Identity()  # type: ignore[assignment]
    fill(method, torch.eye(8))
    own = Batch(ref.batch().labeled, Unlabeled({"view": torch.eye(8).view(8, 1, 2, 4)}, torch.arange(8)))
    update = ref.first(method, own)
    ref.close(update.loss, math.log(1 + 7 * math.exp(-2)))
    ref.close(update.log["proximal"], 0.0)


def test_an_image_that_stands_in_a_batch_twice_keeps_one_of_its_embeddings() -> None:
    method = build(InstanceDiscrimination, bank_momentum=0.0)
    batch = Batch(ref.batch().labeled, Unlabeled({"view": ref.images(2, 1)}, torch.tensor([3, 3])))
    both = embed([p.detach().double().numpy() for p in method.groups()["main"]], batch.unlabeled["view"])
    ref.run(method, batch)
    assert any(np.allclose(method.bank.rows[0].numpy(), row, atol=1e-5) for row in both)
    assert int(method.bank.known()) == 1


def test_a_huge_similarity_does_not_overflow() -> None:
    sharp = build(InstanceDiscrimination, loss="nce", temperature=1e-3)  # exp(1000)
    assert bool(ref.first(sharp, given()).loss.isfinite())
    assert bool(sharp.bank.log_mean.isfinite())


@pytest.mark.parametrize("loss", ["softmax", "nce"])
def test_an_images_own_row_is_nearest_in_the_end(loss: str) -> None:
    """100 images that have most in common, as an untrained network's features of photos do.

    With the Z of the first batch and rows that begin at random, nce leaves 1 of them nearest to its own row, and its
    loss grows from 6 to 600.
    """
    images, side = 100, 6
    draw = torch.Generator().manual_seed(0)
    clean = 3 * torch.randn(1, 1, side, side, generator=draw) + torch.randn(images, 1, side, side, generator=draw)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(side**2, 64), nn.ReLU())
    network.num_features = 64  # type: ignore[assignment]
    method = InstanceDiscrimination(Encoder(network), images, loss=loss, noise=128, out_features=64)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3)
    steps = 150
    for step in range(steps):
        index = (torch.arange(20) + 20 * step) % images
        view = clean[index] + 0.3 * torch.randn(20, 1, side, side, generator=draw)
        for update in method.step(Batch(ref.batch().labeled, Unlabeled({"view": view}, index)), Progress(step, steps)):
            optimizer.zero_grad()
            update.loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    method.eval()
    with torch.no_grad():
        v = method.embed(method.encoder(clean))
    nearest = (v @ method.bank.rows.T).argmax(1)
    assert int((nearest == method.bank.place).sum()) >= 95


def test_networks() -> None:
    method = InstanceDiscrimination(ref.linear_encoder(num_features=6), IMAGES)
    assert (method.embed.in_features, method.embed.out_features) == (6, 128)
    assert method.predictor() is method.encoder
    assert isinstance(method.encoder, Encoder)


# --- sabotage --------------------------------------------------------------------------------------------------------


class FreshZ(InstanceDiscrimination):
    """Z is counted anew for every batch."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        self.bank.log_mean.fill_(torch.inf)
        return super().step(batch, progress)


class StillZ(InstanceDiscrimination):
    """The Z of the first batch for good."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        before = self.bank.log_mean.clone()
        yield from super().step(batch, progress)
        if before.isfinite():
            self.bank.log_mean.copy_(before)


class EarlyBank(InstanceDiscrimination):
    """The bank takes the embeddings in before the loss looks at it."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        with torch.no_grad():
            v = F.normalize(self.embed(self.encoder(batch.unlabeled["view"])), dim=1)
            places, _ = self.bank.enter(v, batch.unlabeled.index)
            self.bank.take_in(v, places)
        yield next(iter(super().step(batch, progress)))


class RawBank(InstanceDiscrimination):
    """Averages of unit vectors, which are shorter."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        before = self.bank.rows.clone()
        yield from super().step(batch, progress)
        self.bank.rows.lerp_(before, 0.5)


class LostBank(InstanceDiscrimination):
    """The bank stays as it was first written."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        yield next(iter(super().step(batch, progress)))


class OtherRows(InstanceDiscrimination):
    """Images are told apart by their place in the batch."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        u = batch.unlabeled
        return super().step(Batch(batch.labeled, Unlabeled(u.views, torch.arange(len(u.index)))), progress)


class SabotagedBank(InstanceDiscrimination):
    """The method with another bank."""

    bank_type: type[InstanceBank]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.bank.__class__ = self.bank_type


class MeanOfNoise(InstanceBank):
    """The mean over the noise instead of its sum."""

    def nce_loss(
        self, v: Tensor, places: Tensor, temperature: float, noise: int, weight: Tensor | None = None
    ) -> Tensor:
        state = torch.get_rng_state()
        super().nce_loss(v, places, temperature, noise)
        torch.set_rng_state(state)
        others = v @ self.draw(noise).T / temperature - self.log_mean
        positive = (v * self.rows[places]).sum(1) / temperature - self.log_mean
        first = F.softplus(math.log(noise) - positive).mean()
        return first + (nce(positive, others) - first) / noise


class SharpOwn(InstanceBank):
    """The image's own similarity is not divided by the temperature."""

    def nce_loss(
        self, v: Tensor, places: Tensor, temperature: float, noise: int, weight: Tensor | None = None
    ) -> Tensor:
        state = torch.get_rng_state()
        super().nce_loss(v, places, temperature, noise)
        torch.set_rng_state(state)
        others = v @ self.draw(noise).T / temperature - self.log_mean
        return nce((v * self.rows[places]).sum(1) - self.log_mean, others)


class UnusedRows(InstanceBank):
    """Rows that no image has yet are candidates."""

    def known(self) -> Tensor:
        return torch.tensor(len(self.rows))


class MeanOverNoise(SabotagedBank):
    bank_type = MeanOfNoise


class NoTemperature(SabotagedBank):
    bank_type = SharpOwn


class ZerosToo(SabotagedBank):
    bank_type = UnusedRows


class ProximalOfOthers(InstanceDiscrimination):
    """The distance of an embedding to another image's."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        v = F.normalize(self.embed(self.encoder(batch.unlabeled["view"])), dim=1)
        places, _ = self.bank.enter(v, batch.unlabeled.index)
        wrong = (v - self.bank.rows[places.roll(1)]).square().sum(1).mean()
        for update in super().step(batch, progress):
            loss = update.log["instance"] + self.proximal_weight * wrong
            yield replace(update, loss=loss, log={**update.log, "proximal": wrong})


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        *((cls, CASES[0]) for cls in (FreshZ, StillZ, MeanOverNoise, NoTemperature)),
        *((cls, options) for cls in (EarlyBank, RawBank, LostBank, OtherRows, ZerosToo) for options in CASES[1:3]),
        (ProximalOfOthers, CASES[1]),
        (ProximalOfOthers, CASES[3]),
    ],
)
def test_check_finds(cls: type[InstanceDiscrimination], options: dict[str, Any]) -> None:
    with pytest.raises(AssertionError, match="Not equal"):
        check_steps(cls, **options)
