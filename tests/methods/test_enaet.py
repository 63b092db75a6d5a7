"""EnAET against the paper's equations, on the images that `draw_mixing` and `transform` drew."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisup.augment import draw_mixing, mix
from semisup.methods import Batch, Progress, Update
from semisup.methods.enaet import FAMILIES, EnAET, transform
from semisup.models import Classifier
from tests.methods import methods_reference as ref

B, U = 5, 4
HALF = Progress(5, 10)
WIDTHS = {"projective": 8, "affine": 6, "similarity": 5, "euclidean": 4, "color": 4}
WEIGHTS = {"projective": 1.0, "affine": 0.75, "similarity": 0.5, "euclidean": 0.2, "color": 0.05}


def given() -> Batch:
    return ref.batch({"weak": ref.images(B, 1)}, {"first": ref.images(U, 2), "second": ref.images(U, 3)})


def step(method: EnAET, batch: Batch, progress: Progress = HALF) -> Update:
    torch.manual_seed(7)
    return ref.first(method, batch, progress)


def build(cls: type[EnAET], **options: Any) -> EnAET:
    model = ref.regression()
    torch.manual_seed(1)
    return cls(model, **options)


def decoding_error(method: EnAET, plain: Tensor, changed: dict[str, tuple[Tensor, Tensor]]) -> float:
    """The weighted sum of errors, number by number; the features of the regression are the pixels."""
    total = 0.0
    for family, (images, targets) in changed.items():
        decoder = method.decoders[family]
        assert isinstance(decoder, nn.Linear)
        w, b = decoder.weight.detach().double().numpy(), decoder.bias.detach().double().numpy()
        errors = []
        for n in range(U):
            pair = [*plain[n].flatten().tolist(), *images[n].flatten().tolist()]
            for k in range(WIDTHS[family]):
                guess = b[k] + sum(w[k, i] * value for i, value in enumerate(pair))
                errors.append((guess - float(targets[n, k])) ** 2)
        total += WEIGHTS[family] * ref.mean(errors)
    return total


def check_equation(cls: type[EnAET], progress: Progress = HALF, **options: Any) -> None:
    """Loss, terms, guesses and gradient of a step."""
    method = build(cls, **options)
    model, batch = method.model, given()
    first, second = batch.unlabeled["first"], batch.unlabeled["second"]
    answers = [ref.softmax(ref.logits(ref.weights(model), view)) for view in (first, second)]
    powers = ((answers[0] + answers[1]) / 2) ** (1 / options.get("temperature", 0.5))
    q = np.array([row / sum(row) for row in powers])

    torch.manual_seed(7)
    partners, shares = draw_mixing(B + 2 * U, options.get("alpha", 0.75), torch.device("cpu"))
    changed = transform(first)
    mixed = mix(torch.cat([batch.labeled["weak"], first, second]), partners, shares)
    targets = mix(torch.tensor(np.concatenate([ref.one_hot(batch.labeled.y), q, q])), partners, shares).numpy()

    def supervised(w: ref.Array) -> float:
        return ref.mean(ref.cross_entropy(targets[:B], ref.softmax(ref.logits(w, mixed[:B]))))

    def unlabeled(w: ref.Array) -> float:
        return float(((ref.softmax(ref.logits(w, mixed[B:])) - targets[B:]) ** 2).mean())

    def agreement(w: ref.Array) -> float:
        return ref.mean(
            [ref.mean(ref.cross_entropy(q, ref.softmax(ref.logits(w, images)))) for images, _ in changed.values()]
        )

    def up(name: str, default: float) -> float:
        ramp = options.get(name, default)
        return min(progress.fraction / ramp, 1) if ramp else 1.0

    l_u = up("ramp", 1 / 64) * options.get("unlabeled_weight", 75.0)
    l_t = up("transform_ramp", 0.1) * options.get("transform_weight", 1.0)
    l_a = up("ramp", 1 / 64) * options.get("agreement_weight", 1.0)
    error = decoding_error(method, first, changed)
    update = step(method, batch, progress)
    ref.check_value_and_gradient(update.log["supervised"], model, supervised)
    ref.check_value_and_gradient(update.log["unlabeled"], model, unlabeled)
    ref.check_value_and_gradient(update.log["agreement"], model, agreement)
    ref.close(update.log["transformation"], error)
    ref.check_value_and_gradient(
        update.loss, model, lambda w: supervised(w) + l_u * unlabeled(w) + l_t * error + l_a * agreement(w)
    )
    assert update.pseudo_labels is not None
    assert update.pseudo_labels.labels.tolist() == ref.likeliest(q)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.9, "alpha": 0.2, "unlabeled_weight": 3.0, "transform_weight": 2.0, "agreement_weight": 0.3},
        {"ramp": 0.8, "transform_ramp": 0.9},
    ],
)
def test_equation(options: dict[str, Any]) -> None:
    check_equation(EnAET, **options)


def test_weights_and_widths_are_the_reference_codes() -> None:
    assert {family: (WIDTHS[family], WEIGHTS[family]) for family in WIDTHS} == FAMILIES


def test_decoders_saturate_after_a_tenth_of_the_run() -> None:
    """methods.md 3.17: min(10 w step / 2^20, w)."""
    for at, factor in ((0, 0.0), (52_429, 0.5), (104_858, 1.0), (1_000_000, 1.0)):
        update = step(build(EnAET, unlabeled_weight=0.0, agreement_weight=0.0), given(), Progress(at, 2**20))
        expected = update.log["supervised"] + factor * update.log["transformation"]
        torch.testing.assert_close(update.loss, expected, rtol=1e-5, atol=1e-5)


def test_families_are_drawn_one_by_one_and_image_by_image() -> None:
    torch.manual_seed(0)
    changed = transform(ref.images(1, 4).expand(6, 1, 2, 2))
    cosines = {family: targets[:, 0] for family, (_, targets) in changed.items()}
    assert not torch.equal(cosines["affine"], cosines["similarity"])
    assert not torch.equal(cosines["similarity"], cosines["euclidean"])
    for images, targets in changed.values():
        assert len(set(targets[:, 0].tolist())) == 6
        assert len({tuple(image.flatten().tolist()) for image in images}) == 6


def test_decoders_teach_the_encoder_through_both_images() -> None:
    """Either half of every decoder, set to 0, leaves a gradient through the other."""
    for half in (slice(0, 6), slice(6, 12)):
        torch.manual_seed(0)
        method = EnAET(Classifier(ref.Layer(), nn.Sequential(), ref.CLASSES))
        with torch.no_grad():
            for decoder in method.decoders.values():
                assert isinstance(decoder, nn.Linear)
                decoder.weight[:, half] = 0
        encoder = method.model.backbone.linear
        assert isinstance(encoder, nn.Linear)
        (slope,) = torch.autograd.grad(step(method, given()).log["transformation"], encoder.weight)
        assert bool(slope.any())


def check_forwards(cls: type[EnAET]) -> None:
    """The guesses without a graph, the mixed images, then each family alone; BatchNorm remembers the first two."""
    model = ref.regression()
    norm = nn.BatchNorm1d(ref.PIXELS)
    model.neck.append(norm)
    forwards: list[tuple[int, bool, int]] = []
    norm.register_forward_hook(
        lambda module, inputs, _: forwards.append(
            (len(inputs[0]), torch.is_grad_enabled(), int(module.num_batches_tracked))
        )
    )
    step(cls(model).train(), given())
    assert forwards == [(2 * U, False, 1), (B + 2 * U, True, 2), *[(U, True, 2)] * 6]


def test_transformed_images_have_forwards_and_statistics_of_their_own() -> None:
    check_forwards(EnAET)


def test_one_image_each() -> None:
    batch = ref.batch({"weak": ref.images(1, 4)}, {"first": ref.images(1, 5), "second": ref.images(1, 6)}, y=[1])
    assert bool(step(build(EnAET), batch).loss.isfinite())


# --- sabotage --------------------------------------------------------------------------------------------------------


def decoding(error: Any) -> type[EnAET]:
    """An EnAET whose decoders are judged by `error(method, family, features, changed, target)`."""

    class Decoding(EnAET):
        def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
            first = batch.unlabeled["first"]
            state = torch.get_rng_state()
            draw_mixing(B + 2 * U, self.alpha, first.device)
            drawn = transform(first)
            torch.set_rng_state(state)
            for update in super().step(batch, progress):
                total = torch.zeros(())
                for family, (images, target) in drawn.items():
                    features, changed = self.model.features(first), self.model.features(images)
                    total = total + WEIGHTS[family] * error(self, family, features, changed, target)
                yield replace(update, log={**update.log, "transformation": total})

    return Decoding


def right(method: EnAET, family: str, features: Tensor, changed: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(method.decoders[family](torch.cat([features, changed], 1)), target)


def in_pixels(method: EnAET, family: str, features: Tensor, changed: Tensor, target: Tensor) -> Tensor:
    """The homography as it is."""
    if family == "projective":
        target = target * target.new_tensor([1, 1, 20, 1, 1, 20, 0.015, 0.015])
    return right(method, family, features, changed, target)


def raw_angle(method: EnAET, family: str, features: Tensor, changed: Tensor, target: Tensor) -> Tensor:
    """An angle in place of its cosine and sine."""
    if family != "projective" and family != "color":
        target = torch.cat([torch.atan2(target[:, 1:2], target[:, :1]), target[:, 1:]], 1)
    return right(method, family, features, changed, target)


def swapped(method: EnAET, family: str, features: Tensor, changed: Tensor, target: Tensor) -> Tensor:
    """The image and its transformation in the wrong order."""
    return right(method, family, changed, features, target)


def summed(method: EnAET, family: str, features: Tensor, changed: Tensor, target: Tensor) -> Tensor:
    """The sum over the numbers, by which families with more of them count more."""
    return target.shape[1] * right(method, family, features, changed, target)


def one_image(method: EnAET, family: str, features: Tensor, changed: Tensor, target: Tensor) -> Tensor:
    """Sees the transformed image alone."""
    return right(method, family, changed, changed, target)


def test_the_planted_decoders_start_from_the_right_one() -> None:
    check_equation(decoding(right))


class GradientIntoGuesses(EnAET):
    """The guesses are trained as well."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for update in super().step(batch, progress):
            view = self.model(batch.unlabeled["first"])
            extra = F.cross_entropy(view.detach(), view.softmax(1))
            yield replace(update, loss=update.loss + extra - extra.detach())


class EarlyDecoders(EnAET):
    """Decoders count in full from the start."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        before, self.transform_ramp = self.transform_ramp, 0.0
        yield from super().step(batch, progress)
        self.transform_ramp = before


class EarlyAgreement(EnAET):
    """The reference code: the first guesses label the transformed images at full weight."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for update in super().step(batch, progress):
            missing = (1 - min(progress.fraction / self.ramp, 1)) * self.agreement_weight
            yield replace(update, loss=update.loss + missing * update.log["agreement"])


class JointForward(EnAET):
    """Turned, sheared and zero-filled images in the running statistics: with them it collapses on digits."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        self.model(torch.cat([batch.labeled["weak"], batch.unlabeled["first"]]))
        yield from super().step(batch, progress)


@pytest.mark.parametrize(
    "cls",
    [
        *map(decoding, (in_pixels, raw_angle, swapped, summed, one_image)),
        GradientIntoGuesses,
        EarlyDecoders,
        EarlyAgreement,
    ],
)
def test_equation_finds(cls: type[EnAET]) -> None:
    with pytest.raises(AssertionError, match="Not equal"):
        check_equation(cls, ramp=0.8, transform_ramp=0.9)


def test_forwards_find_a_joint_one() -> None:
    with pytest.raises(AssertionError):
        check_forwards(JointForward)
