"""Exemplar-CNN: which patch has which label, and the paper's equation on patches drawn alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisup.augment.pretext.exemplars import draw_changes, draw_places, transform_patches
from semisup.methods import Batch, Progress, Update
from semisup.methods.exemplar import Exemplar
from tests.methods import methods_reference as ref
from tests.methods import pretext_reference as pretext

N, SIDE, WIDTH, S = 4, 8, 6, 10
U = pretext.images(N, SIDE)
CPU = torch.device("cpu")


def build(cls: type[Exemplar] = Exemplar, channels: int = 1, images: int = 50, **options: Any) -> Exemplar:
    model = pretext.encoder(WIDTH**2, channels)
    torch.manual_seed(1)
    return cls(model, images, (channels, SIDE, SIDE), **{"surrogates": S, **options})


def at(step: int) -> Progress:
    return Progress(step, 20)


def step(method: Exemplar, number: int = 0, view: Tensor = U) -> Update:
    torch.manual_seed(7)
    return ref.first(method, pretext.given(view, "image"), at(number))


def drawn(known: int = N, strength: float = 1.0) -> tuple[list[int], ref.Array]:
    """Classes and patches of a first step."""
    torch.manual_seed(7)
    places = draw_places(U, WIDTH)
    classes = torch.randint(known, (N,))
    changes = strength * draw_changes(N, CPU)
    return classes.tolist(), pretext.double(transform_patches(U[classes], places[classes], WIDTH, changes))


def check_equation(cls: type[Exemplar], strength: float = 1.0) -> None:
    classes, patches = drawn(strength=strength)

    def reference(w: list[ref.Array]) -> float:
        """Of weight and bias of the encoder and of the head."""
        logits = (patches @ w[0].T + w[1]) @ w[2].T + w[3]
        return ref.mean(pretext.cross_entropies(logits, classes))

    method = build(cls, strength=strength)
    update = step(method)
    assert update.log["exemplar"] is update.loss
    pretext.check(update.loss, pretext.linear(pretext.encoding(method.encoder), method.head), reference)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_equation(strength: float) -> None:
    check_equation(Exemplar, strength)


def test_chance_level() -> None:
    method = build()
    for p in method.head.parameters():
        nn.init.zeros_(p)
    ref.close(step(method).loss, 2.302585)  # log 10


def test_the_first_images_become_the_seeds_and_no_later_one() -> None:
    method = build()
    views = [pretext.images(N, SIDE, seed=10 + t) for t in range(5)]
    for t, view in enumerate(views):
        step(method, t, view)
        everything = torch.cat(views[: t + 1])[:S]
        assert torch.equal(method.seeds[: len(everything)], everything)
        assert not method.seeds[len(everything) :].any()
    assert len({tuple(place) for place in method.places.tolist()}) > 2
    assert float(method.places.abs().amax()) <= 1 - WIDTH / SIDE + 1e-6


def test_each_batch_of_an_accumulated_step_brings_seeds() -> None:
    method = build()
    views = [pretext.images(N, SIDE, seed=10 + t) for t in range(2)]
    for part, view in enumerate(views):
        ref.first(method, pretext.given(view, "image"), Progress(0, 20, part, len(views)))
    assert torch.equal(method.seeds[: 2 * N], torch.cat(views))


def test_only_seeds_that_are_there_are_drawn() -> None:
    method = build()
    labels = []
    for t in range(40):
        torch.manual_seed(t)
        update = ref.first(method, pretext.given(U, "image"), at(0))
        slope = torch.autograd.grad(update.loss, method.head.bias)[0]
        labels += slope.argsort()[:1].tolist()  # the bias of a drawn class has the lowest slope
    assert set(labels) == set(range(N))


def test_images_after_the_last_seed_do_not_matter() -> None:
    method = build()
    for t in range(3):
        step(method, t, pretext.images(N, SIDE, seed=t))
    seeds, places = method.seeds.clone(), method.places.clone()
    losses = [step(method, 3, pretext.images(N, SIDE, seed=s)).loss for s in (50, 51)]
    assert torch.equal(*losses)
    assert torch.equal(method.seeds, seeds)
    assert torch.equal(method.places, places)


def test_a_label_belongs_to_its_seed_alone() -> None:
    """Seeds of one value each, far apart, and no changes: the patch tells which seed it came from."""
    method = build(strength=0.0)
    images = torch.arange(float(N)).view(N, 1, 1, 1).expand(N, 1, SIDE, SIDE)
    seen: list[Tensor] = []
    method.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        pretext.encoding(method.encoder).weight.zero_()
        pretext.encoding(method.encoder).bias.zero_()
    for t in range(20):
        torch.manual_seed(t)
        loss = ref.first(method, pretext.given(images, "image"), at(0)).loss
        classes = seen[-1][:, 0, 0, 0].long()
        torch.testing.assert_close(loss, F.cross_entropy(method.head.bias.expand(N, -1), classes))


def test_no_more_seeds_than_images() -> None:
    method = build(images=6)
    assert method.head.out_features == len(method.seeds) == 6
    for t in range(3):
        assert bool(step(method, t).loss.isfinite())


@pytest.mark.parametrize(("patch", "width"), [(0.75, 6), (1.0, 8), (0.01, 4)])
def test_width_of_a_patch(patch: float, width: int) -> None:
    model = pretext.encoder(width**2)
    method = Exemplar(model, 50, (1, SIDE, SIDE), surrogates=S, patch=patch)
    assert method.width == width
    assert bool(step(method).loss.isfinite())


def test_color_and_one_image() -> None:
    assert bool(step(build(channels=3), view=pretext.images(N, SIDE, channels=3)).loss.isfinite())
    assert bool(step(build(), view=U[:1]).loss.isfinite())


# --- sabotage --------------------------------------------------------------------------------------------------------


class Planted(Exemplar):
    """The first step in pieces, so that each mistake is a line."""

    def labels(self, classes: Tensor) -> Tensor:
        return classes

    def patches(self, images: Tensor, places: Tensor, classes: Tensor) -> Tensor:
        changes = self.strength * draw_changes(N, CPU)
        return transform_patches(images[classes], places[classes], WIDTH, changes)

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        images = batch.unlabeled["image"]
        places = draw_places(images, WIDTH)
        classes = torch.randint(N, (N,))
        logits = self.head(self.encoder(self.patches(images, places, classes)))
        loss = F.cross_entropy(logits, self.labels(classes))
        yield Update(loss, log={"exemplar": loss})


class PlaceInBatch(Planted):
    """Labels are places in the batch, which change their seed from step to step."""

    def labels(self, classes: Tensor) -> Tensor:
        return torch.arange(N)


class SharedLabel(Planted):
    """More seeds than classes: two of them share a label."""

    def labels(self, classes: Tensor) -> Tensor:
        return classes % 2


class Untransformed(Planted):
    """A class has one example."""

    def patches(self, images: Tensor, places: Tensor, classes: Tensor) -> Tensor:
        return transform_patches(images[classes], places[classes], WIDTH, torch.zeros(N, 14))


class OneChange(Planted):
    """The whole batch is transformed alike."""

    def patches(self, images: Tensor, places: Tensor, classes: Tensor) -> Tensor:
        changes = self.strength * draw_changes(N, CPU)[:1].expand(N, -1)
        return transform_patches(images[classes], places[classes], WIDTH, changes)


def test_the_pieces_without_a_mistake_pass() -> None:
    check_equation(Planted)


@pytest.mark.parametrize("cls", [PlaceInBatch, SharedLabel, Untransformed, OneChange])
def test_equation_finds(cls: type[Exemplar]) -> None:
    assert len(np.unique(drawn()[0])) > 1
    with pytest.raises(AssertionError, match="Not equal"):
        check_equation(cls)
