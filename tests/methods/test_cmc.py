"""CMC against its equation, one number at a time: both directions, banks and the constant."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from semisup.augment.pretext.two_views import intensity_and_edges
from semisup.methods import Batch, Progress, Unlabeled, Update
from semisup.methods.cmc import CMC, log_mean_exp_cosine
from semisup.models import Encoder
from semisup.models.cnn import SmallCNN
from tests.methods import methods_reference as ref

IMAGES, WIDTH, NEGATIVES, TEMPERATURE = 20, 4, 7, 0.4


def bare(cls: type[CMC] = CMC, **options: Any) -> CMC:
    """The method on raw pixels: a linear embedding of 2x2 gray images, and one of their edges."""
    torch.manual_seed(0)
    given = {"negatives": NEGATIVES, "temperature": TEMPERATURE, "out_features": WIDTH} | options
    method = cls(Encoder(ref.Flat(4)), IMAGES, **given)
    method.embed, method.embed_other = (nn.Linear(4, WIDTH, bias=False) for _ in range(2))
    return method


def given(index: list[int], seed: int) -> Batch:
    return Batch(ref.batch().labeled, Unlabeled({"image": ref.images(len(index), seed)}, torch.tensor(index)))


def unit(rows: ref.Array) -> ref.Array:
    return np.array([row / math.sqrt(float(row @ row)) for row in rows])


def direction(z: ref.Array, own: ref.Array, others: ref.Array) -> float:
    """NPID's form: P = exp(cosine / temperature) / Z, noise uniform over n images; the sum over negatives is a sum."""
    noise = len(others) / IMAGES
    constant = IMAGES * math.exp(log_mean_exp_cosine(WIDTH, TEMPERATURE))
    losses = []
    for row, positive in zip(z, own, strict=True):
        p = math.exp(float(row @ positive) / TEMPERATURE) / constant
        loss = -math.log(p / (p + noise))
        for other in others:
            p = math.exp(float(row @ other) / TEMPERATURE) / constant
            loss -= math.log(noise / (p + noise))
        losses.append(loss)
    return ref.mean(losses)


def check_training(cls: type[CMC]) -> None:
    """Three epochs of 20 images by 5: both terms, the gradient of both embeddings, and the banks."""
    method = bare(cls)
    banks: list[dict[int, ref.Array]] = [{}, {}]
    shown: list[int] = []  # in the order of their rows: batch by batch, inside a batch by index
    for step in range(12):
        order = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(step // 4)).tolist()
        index = order[step % 4 * 5 : step % 4 * 5 + 5]
        batch = given(index, step)
        pictures = [view.flatten(1).double().numpy() for view in intensity_and_edges(batch.unlabeled["image"])]
        weights = [layer.weight.detach().double().numpy() for layer in (method.embed, method.embed_other)]
        z = [unit(x @ w.T) for x, w in zip(pictures, weights, strict=True)]
        own = [
            np.array([bank.get(i, row) for i, row in zip(index, rows, strict=True)])
            for bank, rows in zip(banks, z, strict=True)
        ]
        for bank, rows in zip(banks, own, strict=True):
            bank.update(zip(index, rows, strict=True))
        shown += sorted(set(index) - set(shown))
        torch.manual_seed(step)
        drawn = [shown[int(each * len(shown))] for each in torch.rand(NEGATIVES).tolist()]
        others = [np.array([bank[i] for i in drawn]) for bank in banks]
        torch.manual_seed(step)
        update = ref.first(method, batch, Progress(step, 12))

        def loss(w: ref.Array) -> float:
            first, second = (unit(x @ each.T) for x, each in zip(pictures, w, strict=True))  # noqa: B023
            return direction(first, own[1], others[1]) + direction(second, own[0], others[0])  # noqa: B023

        ref.close(update.log["from_first"], direction(z[0], own[1], others[1]), rtol=1e-4)
        ref.close(update.log["from_second"], direction(z[1], own[0], others[0]), rtol=1e-4)
        ref.close(update.loss, loss(np.array(weights)), rtol=1e-4)
        slopes = torch.autograd.grad(update.loss, [method.embed.weight, method.embed_other.weight])
        ref.close(torch.stack(slopes), ref.numeric_gradient(loss, np.array(weights)), rtol=1e-3, atol=1e-5)
        for view, (bank, rows) in enumerate(zip(banks, z, strict=True)):
            for place, i in enumerate(index):
                bank[i] = unit(np.array([0.5 * bank[i] + 0.5 * rows[place]]))[0]
            ref.close(method.banks[view, method.row_in_bank[list(bank)]], np.array(list(bank.values())), atol=1e-5)


def test_training() -> None:
    check_training(CMC)


def test_images_get_rows_in_the_order_in_which_they_are_shown() -> None:
    method = bare()
    for index, rows, new in (
        ([7, 3, 7], [1, 0, 1], [True, True, True]),
        ([3, 19, 0], [0, 3, 2], [False, True, True]),
        ([19, 7, 0], [3, 1, 2], [False, False, False]),
    ):
        found, unknown = method.find_rows(torch.tensor(index))
        assert (found.tolist(), unknown.tolist()) == (rows, new)


def test_chance() -> None:
    """All scores as the noise's: twice log(1 + m) + m log(1 + 1 / m)."""
    method = bare(negatives=4096)
    method.offset = 1 / TEMPERATURE  # what equal vectors score
    for layer in (method.embed, method.embed_other):
        cast(nn.Linear, layer).weight.data.zero_()
        layer.register_parameter("bias", nn.Parameter(torch.ones(WIDTH)))
    update = ref.first(method, given([0, 1, 2], 0))
    ref.close(update.loss, 2 * 9.3179, rtol=1e-4)


def test_swapping_the_views_swaps_the_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = bare(), bare()
    second.embed, second.embed_other = second.embed_other, second.embed
    updates = []
    for method in (first, second):
        torch.manual_seed(1)
        updates.append(ref.first(method, given([0, 1, 2], 0)).log)
        monkeypatch.setattr("semisup.methods.cmc.intensity_and_edges", lambda x: intensity_and_edges(x)[::-1])
    torch.testing.assert_close(updates[0]["from_first"], updates[1]["from_second"])
    torch.testing.assert_close(updates[0]["from_second"], updates[1]["from_first"])
    assert not torch.isclose(updates[0]["from_first"], updates[0]["from_second"])


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_color_images(device: str) -> None:
    torch.manual_seed(0)
    method = CMC(Encoder(SmallCNN(2, in_channels=3)), IMAGES, negatives=NEGATIVES, out_features=WIDTH).to(device)
    image, index = torch.randn(4, 3, 8, 8, device=device), torch.arange(4, device=device)
    update = ref.first(method, Batch(ref.batch().labeled, Unlabeled({"image": image}, index)))
    update.loss.backward()
    assert all(p.grad is not None for p in method.parameters())
    assert method.predictor() is method.encoder


def test_both_backbones_start_from_the_same_weights_and_go_their_own_ways() -> None:
    method = CMC(ref.linear_encoder(), IMAGES, negatives=NEGATIVES, out_features=WIDTH)
    first, second = (list(encoder.parameters()) for encoder in (method.encoder, method.other))
    assert all(torch.equal(a, b) and a is not b for a, b in zip(first, second, strict=True))
    ref.run(method, given([0, 1, 2], 0))
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("temperature", [0.05, 0.2, 3.0])
def test_mean_over_all_directions(temperature: float) -> None:
    """In the plane Bessel's I0, in space sinh(s) / s, elsewhere the integral over the cosine's distribution."""
    s = 1 / temperature
    assert log_mean_exp_cosine(2, temperature) == pytest.approx(math.log(np.i0(s)), rel=1e-6)
    assert log_mean_exp_cosine(3, temperature) == pytest.approx(math.log(math.sinh(s) / s), rel=1e-9)
    t = np.linspace(-1, 1, 200_001)
    density = (1 - t**2) ** ((128 - 3) / 2)
    assert log_mean_exp_cosine(128, temperature) == pytest.approx(
        math.log(float((np.exp(s * t) * density).sum() / density.sum())), rel=1e-6
    )


def test_the_default_view_is_the_reference_code_s() -> None:
    assert dict(CMC.views.unlabeled) == {"image": "cmc"}  # crops of (0.2, 1): tests/augment/test_policies.py


def test_the_published_constant() -> None:
    assert log_mean_exp_cosine(128, 0.07) == pytest.approx(0.79, abs=0.005)


# --- sabotage --------------------------------------------------------------------------------------------------------


class OwnBank(CMC):
    """Each view is looked for in its own bank."""

    def find(self, z: Tensor, own: Tensor, others: Tensor) -> Tensor:
        bank = 0 if torch.equal(own, self.banks[1, self.rows]) else 1
        return super().find(z, self.banks[bank, self.rows], others)

    def find_rows(self, index: Tensor) -> tuple[Tensor, Tensor]:
        found = super().find_rows(index)
        self.rows = found[0]
        return found


class FreshPositives(CMC):
    """The bank has moved before it is looked at."""

    def find_rows(self, index: Tensor) -> tuple[Tensor, Tensor]:
        rows, new = super().find_rows(index)
        return rows, torch.ones_like(new)


class Shuffled(CMC):
    """The bank's rows are in the order of the batch."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        u = batch.unlabeled
        yield from super().step(Batch(batch.labeled, Unlabeled(u.views, u.index.flip(0))), progress)


class NoConstant(CMC):
    """The mean over all directions is taken to be 1."""

    def find(self, z: Tensor, own: Tensor, others: Tensor) -> Tensor:
        self.offset = 0.0
        return super().find(z, own, others)


@pytest.mark.parametrize("cls", [OwnBank, FreshPositives, Shuffled, NoConstant])
def test_training_check_finds(cls: type[CMC]) -> None:
    with pytest.raises(AssertionError, match="Not equal"):
        check_training(cls)
