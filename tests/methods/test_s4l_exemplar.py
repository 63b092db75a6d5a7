"""S4L-Exemplar against section 4.2 of the paper: batch-hard triplets in loops."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisup.errors import SemisupError
from semisup.losses import batch_hard_triplet
from semisup.methods import Batch, Labeled, Progress, Unlabeled, Update
from semisup.methods.s4l_exemplar import S4LExemplar
from semisup.models import Classifier
from tests.methods import methods_reference as ref

COPIES = 3
Y = [2, 0, 1]


def related(n: int, seed: int) -> dict[str, Tensor]:
    """Views of n images: the same pixels with a little noise, so that positives and negatives overlap."""
    base = ref.images(n, seed)
    return {f"view_{i}": base + ref.images(n, 10 * seed + i, scale=0.7) for i in range(COPIES)}


X, U = related(3, 1), related(5, 2)


def given() -> Batch:
    return ref.batch({k: v.clone() for k, v in X.items()}, {k: v.clone() for k, v in U.items()}, y=Y)


def deep() -> Classifier:
    torch.manual_seed(0)
    return Classifier(ref.Layer(), nn.Sequential(), ref.CLASSES)


def build(cls: type[S4LExemplar], weight: float = 1.0) -> S4LExemplar:
    return cls(deep(), copies=COPIES, embedding=4, triplet_weight=weight)


def parameters(method: S4LExemplar) -> list[nn.Parameter]:
    backbone = method.model.backbone.linear
    assert isinstance(backbone, nn.Linear)
    return [p for layer in (backbone, method.model.head, method.embed) for p in (layer.weight, layer.bias)]


def batch_hard(rows: ref.Array, identity: list[int]) -> float:
    """Hermans et al., eq. 5, with the soft margin, on unit vectors, anchor by anchor."""
    unit = [row / math.sqrt(sum(value * value for value in row)) for row in rows]

    def d(i: int, j: int) -> float:
        return math.sqrt(sum((a - b) ** 2 for a, b in zip(unit[i], unit[j], strict=True)))

    terms = []
    for i in range(len(rows)):
        farthest = max(d(i, j) for j in range(len(rows)) if j != i and identity[j] == identity[i])
        nearest = min(d(i, j) for j in range(len(rows)) if identity[j] != identity[i])
        terms.append(math.log(1 + math.exp(farthest - nearest)))
    return ref.mean(terms)


def reference(weights: list[ref.Array]) -> dict[str, float]:
    """The terms, from weights and biases of the backbone, the head and the embedding; image by image."""

    def outputs(views: dict[str, Tensor], layer: int) -> tuple[ref.Array, list[int]]:
        n = len(views["view_0"])
        rows = torch.stack([views[f"view_{c}"][i].flatten() for i in range(n) for c in range(COPIES)]).double().numpy()
        features = rows @ weights[0].T + weights[1]
        return features @ weights[layer].T + weights[layer + 1], [i for i in range(n) for _ in range(COPIES)]

    logits, image = outputs(X, 2)
    supervised = ref.mean([-math.log(row[Y[i]]) for row, i in zip(ref.softmax(logits), image, strict=True)])
    triplets = [batch_hard(*outputs(views, 4)) for views in (X, U)]
    return {"supervised": supervised, "triplet": sum(triplets) / 2}


def check_equation(cls: type[S4LExemplar], weight: float = 1.0) -> None:
    method = build(cls, weight)
    variables = parameters(method)
    weights = [p.detach().double().numpy() for p in variables]
    update = ref.first(method, given())
    expected = reference(weights)
    for name in ("supervised", "triplet"):
        ref.close(update.log[name], expected[name])
    ref.close(update.loss, expected["supervised"] + weight * expected["triplet"])
    slopes = torch.autograd.grad(update.loss, variables, allow_unused=True, materialize_grads=True)
    for i, slope in enumerate(slopes):

        def total(w: ref.Array, i: int = i) -> float:
            terms = reference([w if j == i else other for j, other in enumerate(weights)])
            return terms["supervised"] + weight * terms["triplet"]

        ref.close(slope, ref.numeric_gradient(total, weights[i]), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_equation(weight: float) -> None:
    check_equation(S4LExemplar, weight)


def check_identity(cls: type[S4LExemplar]) -> None:
    """An image that is in a part twice (an epoch ended) has its other copies as positives, never as negatives."""
    batch = given()
    x = {name: view[[0, 1, 0]] for name, view in batch.labeled.views.items()}
    u = {name: view[[0, 1, 2, 1, 4]] for name, view in batch.unlabeled.views.items()}
    twice = Batch(
        Labeled(x, torch.tensor([2, 0, 2]), torch.tensor([7, 8, 7])), Unlabeled(u, torch.tensor([7, 1, 2, 1, 4]))
    )
    method = build(cls)
    update = ref.first(method, twice)
    expected = []
    for views, index in ((x, [7, 8, 7]), (u, [7, 1, 2, 1, 4])):
        rows = method.embed(method.model.features(torch.cat([views[name] for name in method.copies])))
        expected.append(batch_hard(rows.detach().double().numpy(), index * COPIES))
    ref.close(update.log["triplet"], ref.mean(expected))


def test_the_same_image_twice_is_one_identity() -> None:
    check_identity(S4LExemplar)


def test_collapse_is_log_2() -> None:
    method = build(S4LExemplar)
    nn.init.zeros_(method.embed.weight)
    assert float(ref.first(method, given()).log["triplet"].detach()) == pytest.approx(math.log(2), abs=1e-6)


def test_perfect_views() -> None:
    """Views of an image identical, images orthogonal: log(1 + exp(-sqrt 2))."""
    eye = torch.eye(4).view(4, 1, 2, 2)
    views = {f"view_{i}": eye.clone() for i in range(COPIES)}
    method = S4LExemplar(ref.regression(), copies=COPIES, embedding=4)
    with torch.no_grad():
        method.embed.weight.copy_(3 * torch.eye(4))  # normalized away
        method.embed.bias.zero_()
    update = ref.first(method, ref.batch(views, views))
    assert float(update.log["triplet"].detach()) == pytest.approx(0.21762, abs=1e-5)


def test_one_image_has_no_negative() -> None:
    one = ref.batch({k: v[:1] for k, v in X.items()}, {k: v[:1] for k, v in U.items()}, y=[1])
    update = ref.first(build(S4LExemplar), one)
    assert float(update.log["triplet"].detach()) == 0.0
    assert torch.equal(update.loss, update.log["supervised"])


@pytest.mark.parametrize("copies", [2, 8])
def test_asks_for_that_many_views_of_both_parts(copies: int) -> None:
    views = S4LExemplar(ref.regression(), copies=copies).views
    expected = {f"view_{i}": "simclr" for i in range(copies)}
    assert views.policies("labeled") == views.policies("unlabeled") == expected


def test_the_published_settings_are_the_defaults() -> None:
    method = S4LExemplar(ref.regression())
    assert (len(method.copies), method.embed.out_features, method.triplet_weight) == (8, 1000, 1.0)


def test_without_an_index_it_says_so() -> None:
    batch = given()
    batch.labeled.index = None
    with pytest.raises(SemisupError, match="s4l_exemplar: the labeled batch has no index"):
        ref.first(build(S4LExemplar), batch)


def test_the_predictor_has_no_embedding() -> None:
    method = build(S4LExemplar)
    assert method.predictor() is method.model
    assert {id(p) for p in method.groups()["main"]} == {id(p) for p in method.parameters()}


# --- sabotage --------------------------------------------------------------------------------------------------------


class Planted(S4LExemplar):
    """The method in pieces, so that each mistake is a line."""

    def embeddings(self, features: Tensor) -> Tensor:
        return F.normalize(self.embed(features), dim=1)

    def repeat(self, values: Tensor) -> Tensor:
        return values.repeat(len(self.copies))

    def identities(self, batch: Batch) -> tuple[Tensor, Tensor]:
        assert batch.labeled.index is not None
        return batch.labeled.index, batch.unlabeled.index

    def pretext(self, x: Tensor, u: Tensor, index_x: Tensor, index_u: Tensor) -> Tensor:
        return (batch_hard_triplet(x, index_x) + batch_hard_triplet(u, index_u)) / 2

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        x = self.model.features(torch.cat([batch.labeled[view] for view in self.copies]))
        u = self.model.features(torch.cat([batch.unlabeled[view] for view in self.copies]))
        supervised = F.cross_entropy(self.model.head(x), self.repeat(batch.labeled.y))
        index_x, index_u = (self.repeat(index) for index in self.identities(batch))
        triplet = self.pretext(self.embeddings(x), self.embeddings(u), index_x, index_u)
        yield Update(supervised + self.triplet_weight * triplet, log={"supervised": supervised, "triplet": triplet})


class Joint(Planted):
    """One triplet loss over both parts: an image of both is its own negative."""

    def pretext(self, x: Tensor, u: Tensor, index_x: Tensor, index_u: Tensor) -> Tensor:
        return batch_hard_triplet(torch.cat([x, u]), torch.cat([index_x, index_u]))


class Interleaved(Planted):
    """Labels and identities as if the views of an image lay side by side."""

    def repeat(self, values: Tensor) -> Tensor:
        return values.repeat_interleave(len(self.copies))


class NotNormalized(Planted):
    def embeddings(self, features: Tensor) -> Tensor:
        embedded: Tensor = self.embed(features)
        return embedded


class ClassIsIdentity(Planted):
    """Labeled images of one class count as one image."""

    def identities(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return batch.labeled.y.clamp(max=1), batch.unlabeled.index


class HardMargin(Planted):
    def pretext(self, x: Tensor, u: Tensor, index_x: Tensor, index_u: Tensor) -> Tensor:
        return (batch_hard_triplet(x, index_x, 0.2) + batch_hard_triplet(u, index_u, 0.2)) / 2


class Sum(Planted):
    def pretext(self, x: Tensor, u: Tensor, index_x: Tensor, index_u: Tensor) -> Tensor:
        return 2 * super().pretext(x, u, index_x, index_u)


class DetachedFeatures(Planted):
    """Only the embedding learns: the features gain nothing. No value gives it away."""

    def embeddings(self, features: Tensor) -> Tensor:
        return super().embeddings(features.detach())


class PositionIsIdentity(Planted):
    """The place in the batch as identity: an image that is there twice is pushed away from itself."""

    def identities(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return torch.arange(len(batch.labeled.y)), torch.arange(len(batch.unlabeled.index))


def test_the_pieces_without_a_mistake_pass() -> None:
    check_equation(Planted, 0.3)
    check_identity(Planted)


@pytest.mark.parametrize("cls", [Joint, Interleaved, NotNormalized, ClassIsIdentity, HardMargin, Sum, DetachedFeatures])
def test_equation_finds(cls: type[S4LExemplar]) -> None:
    with pytest.raises(AssertionError, match="Not equal"):
        check_equation(cls)


def test_identity_check_finds_the_place_in_the_batch() -> None:
    check_equation(PositionIsIdentity)  # without repeats it is the same
    with pytest.raises(AssertionError, match="Not equal"):
        check_identity(PositionIsIdentity)
