"""S4L-Rotation against section 4.1 of the paper: rotation by hand, losses in loops."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from semisup.augment import four_rotations
from semisup.methods import Batch, Progress, Update
from semisup.methods.s4l_rotation import S4LRotation
from semisup.models import Classifier
from tests.methods import methods_reference as ref

X, U = ref.images(3, 1), ref.images(5, 2)


def given() -> Batch:
    return ref.batch({"weak": X.clone()}, {"weak": U.clone()}, y=[2, 0, 1])


def deep() -> Classifier:
    """A linear backbone, so that there is something below the two heads."""
    torch.manual_seed(0)
    return Classifier(ref.Layer(), nn.Sequential(), ref.CLASSES)


def parameters(method: S4LRotation) -> list[nn.Parameter]:
    backbone = method.model.backbone.linear
    assert isinstance(backbone, nn.Linear)
    return [p for layer in (backbone, method.model.head, method.rotation_head) for p in (layer.weight, layer.bias)]


def four(images: torch.Tensor) -> ref.Array:
    """(4N, 4) pixels: a 2x2 image [a b; c d] turned anticlockwise is [b d; a c]."""
    rows = []
    for a, b, c, d in images.double().flatten(1).tolist():
        rows += [[a, b, c, d], [b, d, a, c], [d, c, b, a], [c, a, d, b]]
    return np.array(rows)


def reference(weights: list[ref.Array], classify: str) -> dict[str, float]:
    """The terms, from weights and biases of the backbone, the classifier's head and the rotation head."""

    def losses(images: torch.Tensor, head: int, labels: list[int]) -> list[float]:
        features = four(images) @ weights[0].T + weights[1]
        probs = ref.softmax(features @ weights[head].T + weights[head + 1])
        return [-math.log(row[label]) for row, label in zip(probs, labels, strict=True)]

    of_copies = losses(X, 2, [label for label in (2, 0, 1) for _ in range(4)])
    supervised = ref.mean(of_copies if classify == "all" else of_copies[::4])
    turns = [ref.mean(losses(images, 4, [0, 1, 2, 3] * len(images))) for images in (X, U)]
    return {"supervised": supervised, "rotation": sum(turns) / 2}


def check_equation(cls: type[S4LRotation], weight: float = 1.0, classify: Literal["all", "upright"] = "all") -> None:
    method = cls(deep(), rotation_weight=weight, classify=classify)
    variables = parameters(method)
    weights = [p.detach().double().numpy() for p in variables]
    update = ref.first(method, given())
    expected = reference(weights, classify)
    for name in ("supervised", "rotation"):
        ref.close(update.log[name], expected[name])
    ref.close(update.loss, expected["supervised"] + weight * expected["rotation"])
    slopes = torch.autograd.grad(update.loss, variables, allow_unused=True, materialize_grads=True)
    for i, slope in enumerate(slopes):

        def total(w: ref.Array, i: int = i) -> float:
            terms = reference([w if j == i else other for j, other in enumerate(weights)], classify)
            return terms["supervised"] + weight * terms["rotation"]

        ref.close(slope, ref.numeric_gradient(total, weights[i]), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("classify", ["all", "upright"])
@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_equation(weight: float, classify: Literal["all", "upright"]) -> None:
    check_equation(S4LRotation, weight, classify)


def test_the_finished_classifier_averages_its_logits_over_the_turns_it_learned() -> None:
    """Section 7 of the paper, for `classify: all` and in eval mode; one forward of the image otherwise."""
    model = deep()
    w, b = (p.detach().double().numpy() for p in (model.backbone.linear.weight, model.backbone.linear.bias))  # type: ignore[union-attr]
    rows = (four(X) @ w.T + b) @ model.head.weight.detach().double().numpy().T + model.head.bias.detach().numpy()
    S4LRotation(model, classify="upright")
    ref.close(model.eval()(X), rows[::4])
    S4LRotation(model, classify="all")
    ref.close(model.eval()(X), rows.reshape(3, 4, -1).mean(1))
    ref.close(model.train()(X), rows[::4])


def test_chance_level() -> None:
    """Zero logits: log C + log 4; for 10 classes 3.6889."""
    model = Classifier(ref.Flat(), nn.Sequential(), 10)
    method = S4LRotation(model)
    for head in (model.head, method.rotation_head):
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    assert float(ref.first(method, given()).loss.detach()) == pytest.approx(3.6889, abs=1e-4)


def test_constant_images_cannot_beat_chance() -> None:
    flat = ref.batch({"weak": torch.ones(3, 1, 2, 2)}, {"weak": torch.ones(5, 1, 2, 2)})
    method = S4LRotation(deep())
    for _ in range(200):
        ref.run(method, flat, lr=0.5)
    assert float(ref.first(method, flat).log["rotation"].detach()) == pytest.approx(math.log(4), abs=1e-4)


def test_weight_0_leaves_the_supervised_loss() -> None:
    update = ref.first(S4LRotation(deep(), rotation_weight=0.0), given())
    assert torch.equal(update.loss, update.log["supervised"])


def test_one_forward_of_all_rotations() -> None:
    model = deep()
    sizes: list[int] = []
    model.backbone.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    ref.run(S4LRotation(model), given())
    assert sizes == [4 * (3 + 5)]


def test_one_image_each() -> None:
    one = ref.batch({"weak": ref.images(1, 4)}, {"weak": ref.images(1, 5)}, y=[1])
    assert bool(ref.first(S4LRotation(deep()), one).loss.isfinite())


def test_the_predictor_has_no_rotation_head() -> None:
    model = deep()
    method = S4LRotation(model)
    assert method.predictor() is model
    assert model(X).shape == (3, ref.CLASSES)
    assert {id(p) for p in method.groups()["main"]} == {id(p) for p in method.parameters()}


# --- sabotage --------------------------------------------------------------------------------------------------------


class Planted(S4LRotation):
    """The method in pieces, so that each mistake is a line."""

    def rotate(self, images: torch.Tensor) -> torch.Tensor:
        return four_rotations(images)[0]

    def turns(self, n: int) -> torch.Tensor:
        return torch.arange(4).repeat(n)

    def labels(self, y: torch.Tensor) -> torch.Tensor:
        return y.repeat_interleave(4)

    def pretext(self, features: torch.Tensor, of_labeled: int) -> torch.Tensor:
        losses = F.cross_entropy(self.rotation_head(features), self.turns(len(features) // 4), reduction="none")
        return (losses[:of_labeled].mean() + losses[of_labeled:].mean()) / 2

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        x, u = batch.labeled["weak"], batch.unlabeled["weak"]
        features = self.model.features(self.rotate(torch.cat([x, u])))
        supervised = F.cross_entropy(self.model.head(features[: 4 * len(x)]), self.labels(batch.labeled.y))
        rotation = self.pretext(features, 4 * len(x))
        yield Update(supervised + self.rotation_weight * rotation, log={"supervised": supervised, "rotation": rotation})


class BlockedRotations(Planted):
    """`cat` of rotated batches, with the labels of copies side by side."""

    def rotate(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.rot90(images, k, (-2, -1)) for k in range(4)])


class BlockedLabels(Planted):
    """Class labels repeated as a whole."""

    def labels(self, y: torch.Tensor) -> torch.Tensor:
        return y.repeat(4)


class WrongAxes(Planted):
    """Mirrors in place of turns."""

    def rotate(self, images: torch.Tensor) -> torch.Tensor:
        return torch.stack([images, images.flip(2), images.flip(3), images.flip(2, 3)], 1).flatten(0, 1)


class PlainMean(Planted):
    """The mean over all copies: the larger part drowns the smaller."""

    def pretext(self, features: torch.Tensor, of_labeled: int) -> torch.Tensor:
        return F.cross_entropy(self.rotation_head(features), self.turns(len(features) // 4))


class UprightLabels(Planted):
    """The labels are learned on upright images only."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for update in super().step(batch, progress):
            supervised = F.cross_entropy(self.model(batch.labeled["weak"]), batch.labeled.y)
            loss = supervised + self.rotation_weight * update.log["rotation"]
            yield Update(loss, log={**update.log, "supervised": supervised})


class DetachedFeatures(Planted):
    """Only the rotation head learns rotations: the features gain nothing. No value gives it away."""

    def pretext(self, features: torch.Tensor, of_labeled: int) -> torch.Tensor:
        return super().pretext(features.detach(), of_labeled)


class AllLabels(S4LRotation):
    """The labels are learned on all four turns though the upright ones were asked for."""

    def __init__(self, model: Classifier, **options: Any) -> None:
        super().__init__(model, **{**options, "classify": "all"})


def test_equation_finds_turned_labels() -> None:
    with pytest.raises(AssertionError, match="Not equal"):
        check_equation(AllLabels, classify="upright")


def test_the_pieces_without_a_mistake_pass() -> None:
    check_equation(Planted, 0.3)


@pytest.mark.parametrize(
    "cls", [BlockedRotations, BlockedLabels, WrongAxes, PlainMean, UprightLabels, DetachedFeatures]
)
def test_equation_finds(cls: type[S4LRotation]) -> None:
    with pytest.raises(AssertionError, match="Not equal"):
        check_equation(cls)
