"""SwAV against its equations, one number at a time: codes, swapped predictions, prototypes and the queue."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisup.errors import SemisupError
from semisup.losses import cross_view_cross_entropy
from semisup.methods import Batch, Progress, Update
from semisup.methods.swav import SwAV
from semisup.models import Encoder
from semisup.models.cnn import SmallCNN
from tests.methods import methods_reference as ref

WIDTH, PROTOTYPES, IMAGES = 4, 5, 6


def bare(cls: type[SwAV] = SwAV, **options: Any) -> SwAV:
    """The method on raw pixels: backbone and projection head are the identity. Prototypes learn from the start."""
    torch.manual_seed(0)
    method = cls(
        Encoder(ref.Flat(WIDTH)), out_features=WIDTH, prototypes=PROTOTYPES, **{"freeze": 0.0, "epsilon": 0.3} | options
    )
    method.encoder.projector = nn.Identity()
    return method


def given(crops: int = 0, seed: int = 0) -> Batch:
    names = ["first", "second", *(f"local_{i + 1}" for i in range(crops))]
    return ref.batch(unlabeled={name: ref.images(IMAGES, 10 * seed + i) for i, name in enumerate(names)})


def unit(rows: ref.Array) -> ref.Array:
    return np.array([row / math.sqrt(sum(value * value for value in row)) for row in rows])


def stacked(batch: Batch) -> ref.Array:
    """(V, N, WIDTH) pixels of all views."""
    return np.stack([view.detach().double().flatten(1).numpy() for view in batch.unlabeled.views.values()])


def codes(z: ref.Array, prototypes: ref.Array, epsilon: float = 0.3, iterations: int = 3) -> ref.Array:
    """(N, K) by the published exponentials: clusters to equal sums, then images."""
    q = np.exp(unit(z) @ prototypes.T / epsilon)
    for _ in range(iterations):
        q = q / q.sum(axis=0, keepdims=True) / q.shape[1]
        q = q / q.sum(axis=1, keepdims=True)
    return q


def loss(z: ref.Array, prototypes: ref.Array, targets: list[ref.Array], temperature: float = 0.1) -> float:
    """Mean over both large views of the mean over all other views of the mean cross-entropy."""
    subtotals = []
    for g, target in enumerate(targets):
        answers = [ref.softmax(unit(view) @ prototypes.T, temperature) for v, view in enumerate(z) if v != g]
        subtotals.append(ref.mean([ref.mean(ref.cross_entropy(target, probs)) for probs in answers]))
    return ref.mean(subtotals)


def check_values(cls: type[SwAV], crops: int) -> None:
    """The equation in value, in the gradient of every view, and in that of the prototypes; codes have none."""
    method, batch = bare(cls, crops=crops), given(crops)
    for view in batch.unlabeled.views.values():
        view.requires_grad_()
    update = ref.first(method, batch)
    z, prototypes = stacked(batch), method.prototypes.detach().double().numpy()
    targets = [codes(view, prototypes) for view in z[:2]]
    ref.close(update.loss, loss(z, prototypes, targets), rtol=1e-4)
    slopes = torch.autograd.grad(
        update.loss,
        [*batch.unlabeled.views.values(), method.prototypes],
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    expected = ref.numeric_gradient(lambda x: loss(x, prototypes, targets), z)
    for view, slope in enumerate(slopes[:-1]):
        ref.close(slope.flatten(1), expected[view], rtol=1e-3, atol=1e-5)
    ref.close(slopes[-1], ref.numeric_gradient(lambda c: loss(z, c, targets), prototypes), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("crops", [0, 2])
def test_values(crops: int) -> None:
    check_values(SwAV, crops)


def check_prototypes_have_unit_length(cls: type[SwAV]) -> None:
    """From the beginning, and after updates, which do move them."""
    method = bare(cls)
    before = method.prototypes.detach().clone()
    for seed in range(3):
        ref.close(method.prototypes.norm(dim=1), np.ones(PROTOTYPES))
        ref.run(method, given(seed=seed), lr=1.0)
    ref.close(method.prototypes.norm(dim=1), np.ones(PROTOTYPES))
    assert float((method.prototypes - before).abs().max().detach()) > 0.01


def test_prototypes_have_unit_length() -> None:
    check_prototypes_have_unit_length(SwAV)


def test_frozen_prototypes_get_no_gradient_at_all() -> None:
    """Not one of 0, next to which weight decay and momentum would still move them."""
    method = bare(freeze=0.5)
    for step in range(10):
        batch = given(seed=step)
        batch.unlabeled["first"].requires_grad_()
        ref.first(method, batch, Progress(step, 10)).loss.backward()
        assert (method.prototypes.grad is None) == (step < 5), f"step {step}"


def check_queue(cls: type[SwAV]) -> None:
    """Codes are those of the batch and 10 earlier embeddings of the same view, once there are 10; the oldest go first.

    6 images a step: full after the second step, used from the third on.
    """
    method = bare(cls, queue=10, queue_start=0.0)
    earlier: list[list[ref.Array]] = [[], []]
    for step in range(5):
        batch = given(seed=step)
        update = ref.first(method, batch, Progress(step, 5))
        z, prototypes = stacked(batch), method.prototypes.detach().double().numpy()
        targets = []
        for view in range(2):
            old = earlier[view][-10:] if len(earlier[view]) >= 10 else []
            targets.append(codes(np.array([*old, *unit(z[view])]), prototypes)[len(old) :])
            earlier[view] += list(unit(z[view]))
        ref.close(update.loss, loss(z, prototypes, targets), rtol=1e-4)


def test_queue() -> None:
    check_queue(SwAV)


def test_queue_is_filled_before_it_is_used() -> None:
    with_queue, without = bare(queue=10, queue_start=0.5), bare()
    for step in range(10):
        progress = Progress(step, 10)
        losses = [
            float(ref.first(method, given(seed=step), progress).loss.detach()) for method in (with_queue, without)
        ]
        assert (losses[0] == losses[1]) == (step < 5)


def test_queue_smaller_than_the_batch() -> None:
    with pytest.raises(SemisupError, match=r"queue: must be 0 or at least the unlabeled batch of 6 images, got 5"):
        ref.first(bare(queue=5), given())


def test_without_queue_nothing_is_remembered() -> None:
    assert [name for name in bare().state_dict() if not name.startswith("encoder.")] == ["prototypes"]


def test_small_crops_have_a_forward_of_their_own() -> None:
    """One of the backbone for each size of picture, one of the head for all."""
    torch.manual_seed(0)
    method = SwAV(Encoder(SmallCNN(2, in_channels=1)), prototypes=3, out_features=WIDTH, crops=3).train()
    batch = ref.batch(
        unlabeled={
            view: torch.randn(4, 1, *((5, 5) if "local" in view else (12, 12))) for view in method.views.unlabeled
        }
    )
    assert list(batch.unlabeled.views) == ["first", "second", "local_1", "local_2", "local_3"]
    ref.run(method, batch)
    norms = {name: m for name, m in method.named_modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)}
    assert {name.split(".")[1]: int(m.num_batches_tracked) for name, m in norms.items() if m.num_batches_tracked} == {
        "backbone": 2,
        "projector": 1,
    }


def test_views() -> None:
    assert bare(crops=2).views.policies("unlabeled") == {
        **{"first": "swav", "second": "swav"},
        **{"local_1": "swav_local", "local_2": "swav_local"},
    }
    assert bare().predictor() is not None


# --- sabotage --------------------------------------------------------------------------------------------------------


def softmax_codes(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    return (scores / epsilon).softmax(1)


def wrong_axis(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    return (scores / epsilon).log_softmax(1).log_softmax(0).exp()


@pytest.mark.parametrize("codes", [softmax_codes, wrong_axis])
def test_values_find_wrong_codes(codes: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("semisup.methods.swav.sinkhorn", codes)
    with pytest.raises(AssertionError, match="Not equal"):
        check_values(SwAV, 0)


class OwnCode(SwAV):
    """Every view predicts its own code too."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        z = torch.stack([F.normalize(batch.unlabeled[v].flatten(1), dim=1) for v in ("first", "second")])
        scores = z @ self.prototypes.T
        own = self.codes(z.detach(), scores.detach(), progress)
        yield Update(F.cross_entropy((scores / self.temperature).flatten(0, 1), own.flatten(0, 1)))


class LearnedCodes(SwAV):
    """Gradient flows through the codes."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        z = torch.stack([F.normalize(batch.unlabeled[v].flatten(1), dim=1) for v in ("first", "second")])
        scores = z @ self.prototypes.T
        yield Update(cross_view_cross_entropy(scores / self.temperature, self.codes(z, scores, progress)))


@pytest.mark.parametrize("cls", [OwnCode, LearnedCodes])
def test_values_find(cls: type[SwAV]) -> None:
    with pytest.raises(AssertionError, match="Not equal"):
        check_values(cls, 0)


class RawPrototypes(SwAV):
    """Prototypes keep the length that updates give them."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        updates = super().step(batch, progress)
        yield next(updates)


def test_unit_length_check_finds_raw_prototypes() -> None:
    with pytest.raises(AssertionError, match="Not equal"):
        check_prototypes_have_unit_length(RawPrototypes)


class EarlyQueue(SwAV):
    """The batch enters the queue before its codes are made, and is counted twice."""

    def codes(self, z: Tensor, scores: Tensor, progress: Progress) -> Tensor:
        super().codes(z, scores, progress)
        return super().codes(z, scores, progress)


class SharedQueue(SwAV):
    """Both views read the queue of the first one."""

    def codes(self, z: Tensor, scores: Tensor, progress: Progress) -> Tensor:
        self.queues[1] = self.queues[0]
        return super().codes(z, scores, progress)


class EmptyQueue(SwAV):
    """The queue counts before it is full."""

    def codes(self, z: Tensor, scores: Tensor, progress: Progress) -> Tensor:
        self.written += self.queue
        return super().codes(z, scores, progress)


@pytest.mark.parametrize("cls", [EarlyQueue, SharedQueue, EmptyQueue])
def test_queue_check_finds(cls: type[SwAV]) -> None:
    with pytest.raises(AssertionError, match="Not equal"):
        check_queue(cls)
