"""DeepCluster's k-means against Lloyd's algorithm by loops, and its step against the equation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisup.methods import Batch, Progress, Unlabeled, Update
from semisup.methods.deepcluster import DeepCluster
from semisup.methods.parts import kmeans
from semisup.methods.parts.kmeans import spherical_kmeans
from semisup.models import Encoder
from tests.methods import methods_reference as ref

# --- k-means ---------------------------------------------------------------------------------------------------------


def unit_rows(n: int, width: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(n, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def seeded(rows: Tensor, known: Tensor, clusters: int, iterations: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    return spherical_kmeans(rows, known, clusters, iterations)


def lloyd(rows: ref.Array, centroids: ref.Array, iterations: int) -> tuple[ref.Array, list[int]]:
    """Row by row; an empty cluster goes to the row that is farthest from its centroid, the next one to the next."""
    for turn in range(iterations + 1):
        nearest = [max(range(len(centroids)), key=lambda k: float(row @ centroids[k])) for row in rows]
        sizes = [nearest.count(k) for k in range(len(centroids))]
        if turn == iterations:
            break
        distances = [float(row @ centroids[k]) for row, k in zip(rows, nearest, strict=True)]
        farthest = sorted(range(len(rows)), key=lambda i: distances[i])
        moved = []
        for k in range(len(centroids)):
            total = sum((row for row, own in zip(rows, nearest, strict=True) if own == k), np.zeros(rows.shape[1]))
            if not sizes[k]:
                total = rows[farthest.pop(0)]
            moved.append(total / math.sqrt(float(total @ total)))
        centroids = np.array(moved)
    return centroids, sizes


@pytest.mark.parametrize("clusters", [1, 4, 9])
@pytest.mark.parametrize("chunk", [7, 8192])
def test_kmeans_is_lloyd_s(clusters: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmeans, "CHUNK", chunk)
    rows, known = unit_rows(40, 3), torch.arange(40) % 3 > 0
    start, _ = seeded(rows, known, clusters, 0)
    taken = rows[known].double().numpy()
    assert all((taken == row).all(1).any() for row in start.double().numpy()), "begins at rows that take part"
    for iterations in (0, 1, 4):
        centroids, sizes = seeded(rows, known, clusters, iterations)
        wanted, counts = lloyd(taken, start.double().numpy(), iterations)
        ref.close(centroids, wanted, rtol=1e-4, atol=1e-5)
        assert sizes.tolist() == counts
        assert sum(counts) == int(known.sum())


def test_empty_clusters_begin_again_where_rows_are_far_from_their_centroid() -> None:
    """Twenty rows in three places: of the first centroids some are equal, and theirs are empty at first."""
    places = torch.eye(3)
    rows = places[torch.tensor([0] * 17 + [1, 1, 2])]
    for seed in range(5):
        torch.manual_seed(seed)
        centroids, sizes = spherical_kmeans(rows, torch.ones(20, dtype=torch.bool), 3, 4)
        assert sorted(sizes.tolist()) == [1, 2, 17]
        assert sorted(centroids.argmax(1).tolist()) == [0, 1, 2]


def test_fewer_rows_than_clusters() -> None:
    rows, known = unit_rows(6, 3), torch.tensor([True, False, True, False, False, False])
    centroids, sizes = seeded(rows, known, 5, 3)
    assert bool((centroids.norm(dim=1) - 1).abs().max() < 1e-5)
    assert sorted(sizes.tolist()) == [0, 0, 0, 1, 1]
    distances = (centroids[:, None] - rows[known]).norm(dim=2).amin(1)
    assert float(distances.max()) < 1e-5  # and nobody went to a row that takes no part


def test_rows_that_take_no_part_change_nothing() -> None:
    rows, known = unit_rows(30, 3), torch.arange(30) % 2 > 0
    other = torch.where(known[:, None], rows, unit_rows(30, 3, seed=1))
    for first, second in zip(seeded(rows, known, 4, 5), seeded(other, known, 4, 5), strict=True):
        assert torch.equal(first, second)


# --- the step --------------------------------------------------------------------------------------------------------

IMAGES, WIDTH, CLUSTERS = 24, 4, 3


def bare(cls: type[DeepCluster] = DeepCluster, epoch: int = IMAGES, **options: Any) -> DeepCluster:
    """The method on raw pixels: backbone and projection head are the identity."""
    torch.manual_seed(0)
    given = {"clusters": CLUSTERS, "clusterings": 2, "temperature": 0.4} | options
    method = cls(Encoder(ref.Flat(WIDTH)), IMAGES, epoch, out_features=WIDTH, **given)
    method.encoder.projector = nn.Identity()
    return method


def given(index: list[int], seed: int) -> Batch:
    views = {"first": ref.images(len(index), 10 * seed), "second": ref.images(len(index), 10 * seed + 1)}
    return Batch(ref.batch().labeled, Unlabeled(views, torch.tensor(index)))


def unit(rows: ref.Array) -> ref.Array:
    return np.array([row / math.sqrt(float(row @ row)) for row in rows])


def loss(z: ref.Array, memory: ref.Array, centroids: ref.Array, sizes: ref.Array) -> float:
    """`z` (2, N, WIDTH) of both views; every image goes to the centroid nearest to its row of the memory."""
    total = []
    for own, counts in zip(centroids, sizes, strict=True):
        labels = [max(range(CLUSTERS), key=lambda k: float(row @ own[k])) for row in memory]
        weights = [1 / max(counts[k], 1) for k in labels]
        for view in z:
            answers = ref.softmax(unit(view) @ own.T, 0.4)
            losses = [-math.log(answers[n, k]) for n, k in enumerate(labels)]
            total.append(sum(w * each for w, each in zip(weights, losses, strict=True)) / sum(weights))
    return ref.mean(total)


def check_training(cls: type[DeepCluster]) -> None:
    """Three epochs of 24 images by 6: value and gradient, what is remembered, and when it is clustered."""
    method = bare(cls)
    memory: dict[int, ref.Array] = {}
    clustered = []
    for step in range(12):
        order = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(step // 4)).tolist()
        index = order[step % 4 * 6 : step % 4 * 6 + 6]
        batch = given(index, step)
        z = np.stack([view.double().flatten(1).numpy() for view in batch.unlabeled.views.values()])
        shown = {i: memory.get(i, row) for i, row in zip(index, unit(z[0]), strict=True)}
        before = method.centroids.clone()
        for view in batch.unlabeled.views.values():
            view.requires_grad_()
        update = ref.first(method, batch, Progress(step, 12))
        if not torch.equal(before, method.centroids):
            clustered.append(step)
            everything = np.array(list((memory | shown).values()))
            for centroids, sizes in zip(method.centroids.double().numpy(), method.sizes.tolist(), strict=True):
                # What k-means left: sizes of the nearest, and (ten iterations are plenty here) means of the nearest.
                wanted, counts = lloyd(everything, centroids, 1)
                assert sizes == counts
                ref.close(centroids, wanted, rtol=1e-4, atol=1e-4)
        rows = np.array([shown[i] for i in index])
        state = (rows, method.centroids.double().numpy(), method.sizes.double().numpy())
        ref.close(update.loss, loss(z, *state), rtol=1e-4)
        slopes = torch.autograd.grad(update.loss, list(batch.unlabeled.views.values()))
        numeric = ref.numeric_gradient(lambda x: loss(x, *state), z)  # noqa: B023
        ref.close(torch.stack([slope.flatten(1) for slope in slopes]), numeric, rtol=1e-3, atol=1e-5)
        memory |= dict(zip(index, unit(z[0]), strict=True))
        ref.close(method.memory[list(memory)], np.array(list(memory.values())))
        assert method.known.nonzero().flatten().tolist() == sorted(memory)
    assert clustered == [0, 4, 8]


def test_training() -> None:
    check_training(DeepCluster)


@pytest.mark.parametrize(
    ("interval", "steps"), [(1.0, [0, 5, 10]), (0.5, [0, 3, 5, 8, 10]), (0.1, list(range(11))), (9.0, [0])]
)
def test_clustering_is_due_where_an_interval_begins(interval: float, steps: list[int]) -> None:
    """24 images by 5: an epoch ends inside step 4, the next one inside step 9."""
    method = bare(interval=interval)
    assert [step for step in range(11) if method.is_due(step, 5)] == steps


def test_an_epoch_is_that_of_the_images_that_batches_are_made_of() -> None:
    method = bare(epoch=10)
    assert [step for step in range(11) if method.is_due(step, 5)] == [0, 2, 4, 6, 8, 10]


def test_accumulated_batches_are_counted_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two batches of 6 images a step: an epoch of 24 is two steps, and is clustered once."""
    method, turns = bare(), list[tuple[int, int]]()
    for step in range(5):
        for part in range(2):
            monkeypatch.setattr(method, "cluster", lambda at=(step, part): turns.append(at))
            list(method.step(given(list(range(6)), step), Progress(step, 5, part, 2)))
    assert turns == [(0, 0), (2, 0), (4, 0)]


@pytest.mark.parametrize(("balance", "ratio"), [(1.0, 1.0), (0.5, math.sqrt(3)), (0.0, 3.0)])
def test_balance(balance: float, ratio: float) -> None:
    """Of four images three lie together: with 1 both clusters count the same, with 0 all images do."""
    method = bare(clusters=2, clusterings=1, balance=balance)
    x = torch.tensor([[1.0, 0, 0, 0]] * 3 + [[0, 1.0, 0, 0]]).view(4, 1, 2, 2).requires_grad_()
    batch = Batch(ref.batch().labeled, Unlabeled({"first": x.detach(), "second": x}, torch.arange(4)))
    (slope,) = torch.autograd.grad(ref.first(method, batch).loss, x)
    lengths = slope.flatten(1).norm(dim=1)
    ref.close(lengths[:3].sum(), ratio * float(lengths[3]))


def test_centroids_are_no_parameters() -> None:
    method = bare()
    assert not list(method.parameters())
    assert not method.centroids.requires_grad


# --- sabotage --------------------------------------------------------------------------------------------------------


class Fresh(DeepCluster):
    """Labels come from the present embedding: the memory is written before it is read."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        u = batch.unlabeled
        self.memory[u.index] = F.normalize(u["first"].detach().flatten(1), dim=1)
        yield from super().step(batch, progress)


class WrongRows(DeepCluster):
    """The memory is written in the order of the batch."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        u = batch.unlabeled
        yield from super().step(Batch(batch.labeled, Unlabeled(u.views, u.index.sort().values)), progress)


class Once(DeepCluster):
    """Clusters of the first batch for the whole run."""

    def is_due(self, batch: int, images: int) -> bool:
        return batch == 0


@pytest.mark.parametrize("cls", [Fresh, WrongRows, Once])
def test_training_check_finds(cls: type[DeepCluster]) -> None:
    with pytest.raises(AssertionError):
        check_training(cls)


def test_training_check_finds_clusters_that_count_by_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    def unweighed(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels)

    monkeypatch.setattr("semisup.methods.deepcluster.pseudo_label_cross_entropy", unweighed)
    with pytest.raises(AssertionError, match="Not equal"):
        check_training(DeepCluster)
