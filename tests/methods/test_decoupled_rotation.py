"""Decoupled RotNet against the paper's equations, in loops, with the negatives that the step drew."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisup.methods import Batch, Progress, Unlabeled, Update
from semisup.methods.decoupled_rotation import DecoupledRotation
from semisup.methods.parts.instance_bank import InstanceBank
from semisup.models import Encoder
from tests.methods import methods_reference as ref
from tests.methods import pretext_reference as pretext

N, IMAGES, M, D = 4, 9, 6, 3
R, S = 3, 2  # widths of the two halves
U = ref.images(N, 2)
ROWS = [7, 0, 3, 5]
SEEN = [0, 1, 5, 7]  # in an earlier epoch
EARLY, LATE = Progress(0, 10), Progress(9, 10)
TERMS = ("rotation", "invariance", "instance", "upright")


def build(cls: type[DecoupledRotation] = DecoupledRotation, **options: Any) -> DecoupledRotation:
    torch.manual_seed(0)
    model = Encoder(ref.Layer(R + S, 4))
    method = cls(model, IMAGES, **{"embedding": D, "negatives": M, "prior": 0.3, **options})
    method.bank.rows[: len(SEEN)] = F.normalize(torch.randn(len(SEEN), D), dim=1)
    method.bank.place[SEEN] = torch.arange(len(SEEN))
    return method


def given() -> Batch:
    batch = pretext.given(U, "crop")
    return Batch(batch.labeled, Unlabeled(batch.unlabeled.views, torch.tensor(ROWS)))


def step(method: DecoupledRotation, progress: Progress = EARLY) -> Update:
    torch.manual_seed(7)
    return ref.first(method, given(), progress)


def four(images: Tensor) -> ref.Array:
    """(N, 4, 4) pixels: a 2x2 image [a b; c d] turned anticlockwise is [b d; a c]."""
    rows = [
        [[a, b, c, d], [b, d, a, c], [d, c, b, a], [c, a, d, b]] for a, b, c, d in images.double().flatten(1).tolist()
    ]
    return np.array(rows)


def variables(method: DecoupledRotation) -> list[nn.Parameter]:
    layers = (pretext.encoding(method.encoder), method.rotation_head, method.embed, method.upright_head)
    return pretext.linear(*layers)


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def references(
    method: DecoupledRotation, weighted: bool, tau: float, gamma: float, prior: float
) -> dict[str, Callable[[list[ref.Array]], float]]:
    """Term -> function of weights and biases of encoder, rotation head, embedding and upright head.

    What has no gradient is computed once, from the present weights: Z, the weights, and the features that the upright
    head sees.
    """
    known = dict(zip(SEEN, method.bank.rows.double().numpy().copy(), strict=False))
    torch.manual_seed(7)
    drawn = torch.rand(M).tolist()
    turned = four(U)

    def features(w: list[ref.Array]) -> ref.Array:
        return turned @ w[0].T + w[1]

    start = [p.detach().double().numpy() for p in variables(method)]
    fixed = features(start)[:, :, :R]
    looks = [[sigmoid(float(start[6][0] @ fixed[n, k] + start[7][0])) for k in range(4)] for n in range(N)]

    def rotation(w: list[ref.Array]) -> float:
        f = features(w)
        losses = []
        for n in range(N):
            for k in range(4):
                (loss,) = pretext.cross_entropies((w[2] @ f[n, k, :R] + w[3])[None], [k])
                losses.append(loss * (1 - looks[n][k] ** gamma if weighted and k else 1.0))
        return ref.mean(losses)

    def invariance(w: list[ref.Array]) -> float:
        f = features(w)[:, :, R:]
        errors = []
        for n in range(N):
            for d in range(S):
                mean = sum(f[n, k, d] for k in range(4)) / 4
                errors += [(f[n, k, d] - mean) ** 2 for k in range(4)]
        return ref.mean(errors)

    def embeddings(w: list[ref.Array]) -> list[ref.Array]:
        raw = [w[4] @ f + w[5] for f in features(w)[:, :, R:].mean(1)]
        return [z / math.sqrt(float(z @ z)) for z in raw]

    def scores(w: list[ref.Array]) -> tuple[list[float], list[list[float]]]:
        own, others = [], []
        for n, z in enumerate(embeddings(w)):
            own.append(float(z @ bank[ROWS[n]]) / tau)
            others.append([float(z @ row) / tau for row in negatives])
        return own, others

    bank = known | {ROWS[n]: row for n, row in enumerate(embeddings(start)) if ROWS[n] not in known}
    order = SEEN + sorted(set(ROWS) - set(SEEN))
    negatives = [bank[order[int(r * len(order))]] for r in drawn]
    z_mean = ref.mean([math.exp(s) for row in scores(start)[1] for s in row])

    def instance(w: list[ref.Array]) -> float:
        own, others = scores(w)
        losses = []
        for n in range(N):
            p = math.exp(own[n]) / z_mean  # P / P_noise
            loss = -math.log(p / (p + M))
            for score in others[n]:
                loss -= math.log(M / (math.exp(score) / z_mean + M))
            losses.append(loss if ROWS[n] in SEEN else 0.0)
        return ref.mean(losses)

    def upright(w: list[ref.Array]) -> float:
        z = fixed @ w[6][0] + w[7][0]
        positive = ref.mean([math.log1p(math.exp(-z[n, 0])) for n in range(N)])
        as_negative = ref.mean([math.log1p(math.exp(z[n, 0])) for n in range(N)])
        unlabeled = ref.mean([math.log1p(math.exp(z[n, k])) for n in range(N) for k in (1, 2, 3)])
        return prior * positive + max(0.0, unlabeled - prior * as_negative)

    return {"rotation": rotation, "invariance": invariance, "instance": instance, "upright": upright}


def check_equation(cls: type[DecoupledRotation], progress: Progress, **options: Any) -> None:
    method = build(cls, **options)
    terms = references(
        method,
        progress is LATE,
        options.get("temperature", 0.07),
        options.get("gamma", 2.0),
        options.get("prior", 0.3),
    )
    update = step(method, progress)
    for name in TERMS:
        pretext.check(update.log[name], variables(method), terms[name])
    factors = (1.0, options.get("invariance_weight", 1.0), options.get("instance_weight", 1.0), 1.0)
    expected = sum(factor * update.log[name] for factor, name in zip(factors, TERMS, strict=True))
    torch.testing.assert_close(update.loss, expected)


@pytest.mark.parametrize("progress", [EARLY, LATE])
@pytest.mark.parametrize(
    "options", [{}, {"invariance_weight": 0.5, "instance_weight": 0.2, "temperature": 0.5, "gamma": 1.0, "prior": 0.6}]
)
def test_equation(options: dict[str, Any], progress: Progress) -> None:
    check_equation(DecoupledRotation, progress, **options)


def test_weights() -> None:
    """methods.md 1.2: certainly upright 0, certainly not 1; a copy that was not turned 1."""
    logits = torch.tensor([[50.0, 50.0, -50.0, 0.0]])
    torch.testing.assert_close(build().weights(logits), torch.tensor([[1.0, 0.0, 1.0, 0.75]]))
    torch.testing.assert_close(build(gamma=1.0).weights(logits)[0, 3], torch.tensor(0.5))


def test_weights_count_late() -> None:
    assert float(step(build(), EARLY).log["weight"]) == 1.0
    assert float(step(build(), LATE).log["weight"]) < 1.0
    assert float(step(build(weighted_from=1.0), LATE).log["weight"]) == 1.0
    assert float(step(build(weighted_from=0.0), EARLY).log["weight"]) < 1.0


def test_features_that_do_not_turn_cost_nothing() -> None:
    method = build()
    layer = pretext.encoding(method.encoder)
    with torch.no_grad():
        layer.weight[R:] = 0
    assert float(step(method).log["invariance"].detach()) == pytest.approx(0, abs=1e-12)


def test_scores_alike() -> None:
    """methods.md 2.1: log(1 + m) + m log(1 + 1 / m)."""
    method = build()
    method.bank.rows.copy_(F.normalize(torch.ones(D), dim=0).expand(IMAGES, D))
    method.bank.place.copy_(torch.arange(IMAGES))
    with torch.no_grad():
        method.embed.weight.zero_()
        method.embed.bias.fill_(1.0)
    ref.close(step(method).log["instance"], math.log(1 + M) + M * math.log(1 + 1 / M))


def test_the_bank_is_used_before_it_learns() -> None:
    method = build(bank_momentum=0.25)
    before = method.bank.rows.clone()
    with torch.no_grad():
        features = method.encoder(torch.stack([torch.rot90(U, k, (2, 3)) for k in range(4)]).flatten(0, 1))
        v = F.normalize(method.embed(features[:, R:].view(4, N, S).mean(0)), dim=1)
    step(method)
    expected = before.clone()
    order = SEEN + sorted(set(ROWS) - set(SEEN))
    for row, embedding in zip(ROWS, v, strict=True):
        mixed = 0.25 * before[order.index(row)] + 0.75 * embedding
        expected[order.index(row)] = F.normalize(mixed, dim=0) if row in SEEN else embedding
    torch.testing.assert_close(method.bank.rows, expected)
    assert method.bank.place[order].tolist() == list(range(len(order)))


def test_nothing_is_learned_from_a_first_row() -> None:
    method = build()
    method.bank.place.fill_(-1)
    update = step(method)
    assert float(update.log["instance"].detach()) == 0.0
    slopes = torch.autograd.grad(update.log["instance"], [method.embed.weight])
    assert not slopes[0].any()
    assert bool(step(method).log["instance"].detach() > 0), "the second time they are known"


def test_each_half_learns_its_own() -> None:
    method = build()
    update = step(method)
    weight = pretext.encoding(method.encoder).weight
    for name, own in (("rotation", slice(0, R)), ("invariance", slice(R, R + S)), ("instance", slice(R, R + S))):
        (slope,) = torch.autograd.grad(update.log[name], weight, retain_graph=True)
        assert bool(slope[own].any())
        slope[own] = 0
        assert not slope.any(), name
    (slope,) = torch.autograd.grad(update.log["upright"], weight, allow_unused=True, materialize_grads=True)
    assert not slope.any(), "the observer teaches the encoder"


def test_one_image_and_an_odd_width() -> None:
    torch.manual_seed(0)
    method = DecoupledRotation(Encoder(ref.Layer(7, 4)), 1, embedding=D, negatives=M)
    one = pretext.given(U[:1], "crop")
    batch = Batch(one.labeled, Unlabeled(one.unlabeled.views, torch.tensor([0])))
    assert bool(ref.first(method, batch).loss.isfinite())


# --- sabotage --------------------------------------------------------------------------------------------------------


class WeightedUpright(DecoupledRotation):
    """Images that were not turned are weighted as well."""

    def weights(self, upright_logits: Tensor) -> Tensor:
        return 1 - upright_logits.sigmoid() ** self.gamma


class EarlyWeights(DecoupledRotation):
    """Weights count from the start."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{**options, "weighted_from": 0.0})


class EarlyBank(InstanceBank):
    """The bank is updated before its use, and scores are of the new rows."""

    def enter(self, v: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        places, new = super().enter(v, index)
        self.take_in(v, places)
        return places, new


class StillEmbedding(InstanceBank):
    """Instances are told apart by features that do not learn it. No value gives it away."""

    def nce_loss(
        self, v: Tensor, places: Tensor, temperature: float, noise: int, weight: Tensor | None = None
    ) -> Tensor:
        return super().nce_loss(v.detach() + 0 * v, places, temperature, noise, weight)


class EverythingCounts(InstanceBank):
    """Images without a row of an earlier step are told apart too."""

    def nce_loss(
        self, v: Tensor, places: Tensor, temperature: float, noise: int, weight: Tensor | None = None
    ) -> Tensor:
        return super().nce_loss(v, places, temperature, noise)


def with_bank(bank: type[InstanceBank]) -> type[DecoupledRotation]:
    """The method with another bank."""

    class Sabotaged(DecoupledRotation):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.bank.__class__ = bank

    return Sabotaged


class Posterior(DecoupledRotation):
    """The probability that a turned image looks turned."""

    def weights(self, upright_logits: Tensor) -> Tensor:
        return super().weights(-upright_logits)


@pytest.mark.parametrize(
    ("cls", "progress"),
    [
        (WeightedUpright, LATE),
        (EarlyWeights, EARLY),
        (with_bank(EarlyBank), EARLY),
        (with_bank(StillEmbedding), EARLY),
        (with_bank(EverythingCounts), EARLY),
        (Posterior, LATE),
    ],
)
def test_equation_finds(cls: type[DecoupledRotation], progress: Progress) -> None:
    with pytest.raises(AssertionError, match="Not equal"):
        check_equation(cls, progress)
