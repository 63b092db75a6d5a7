"""VAT against equations 5 to 12 of Miyato et al., its perturbation by hand."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from semisup.losses import kl_consistency
from semisup.methods import Batch, Progress, Update
from semisup.methods.vat import VAT, adversarial_direction
from semisup.models import Classifier
from tests.methods import methods_reference as ref

X = {"weak": ref.images(5, 1)}
U = {"weak": ref.images(7, 2)}
LATE = Progress(9, 10)


def given() -> Batch:
    return ref.batch({name: view.clone() for name, view in X.items()}, {name: view.clone() for name, view in U.items()})


def divergence(p: ref.Array, q: ref.Array) -> float:
    """Mean KL(p || q) over rows."""
    rows = zip(p, q, strict=True)
    return ref.mean([sum(a * math.log(a / b) for a, b in zip(*row, strict=True)) for row in rows])


def perturbation(w: ref.Array, u: Tensor, start: Tensor, epsilon: float, xi: float) -> ref.Array:
    """(N, PIXELS): one power iteration. The gradient of KL(p || q) in q's logits is q - p, in the image W'(q - p)."""
    out = np.zeros((len(u), ref.PIXELS))
    for n, d in enumerate(start.double().flatten(1).numpy()):
        d = d / math.sqrt(sum(value**2 for value in d))
        image = u[n].double().flatten()
        p = ref.softmax(ref.logits(w, image[None]))[0]
        q = ref.softmax(ref.logits(w, (image + xi * torch.from_numpy(d))[None]))[0]
        slope = [sum((q[c] - p[c]) * w[c, i] for c in range(ref.CLASSES)) for i in range(ref.PIXELS)]
        out[n] = epsilon * np.array(slope) / math.sqrt(sum(value**2 for value in slope))
    return out


def check_equation(cls: type[VAT], entropy_weight: float = 0.0, progress: Progress = LATE) -> None:
    """CE + w(t) KL(clean || perturbed) + EntMin; the gradient runs through the perturbed prediction alone."""
    model = ref.regression(scale=0.5)
    method = cls(model, epsilon=1.5, xi=0.1, unlabeled_weight=2.0, ramp=0.5, entropy_weight=entropy_weight)
    torch.manual_seed(5)
    start = torch.randn(7, 1, 2, 2)
    w0 = ref.weights(model)
    r = torch.from_numpy(perturbation(w0, U["weak"], start, 1.5, 0.1))
    clean = ref.softmax(ref.logits(w0, U["weak"]))
    weight = 2.0 * min(progress.fraction / 0.5, 1.0)

    def adversarial(w: ref.Array) -> float:
        return divergence(clean, ref.softmax(ref.logits(w, U["weak"].double().flatten(1) + r)))

    def entropy(w: ref.Array) -> float:
        return ref.mean([-sum(p * math.log(p) for p in row) for row in ref.softmax(ref.logits(w, U["weak"]))])

    def total(w: ref.Array) -> float:
        labeled = ref.labeled_loss(w, X["weak"], given().labeled.y)
        return labeled + weight * adversarial(w) + (entropy_weight * entropy(w) if entropy_weight else 0.0)

    torch.manual_seed(5)
    update = ref.first(method, given(), progress)
    ref.check_value_and_gradient(update.log["adversarial"], model, adversarial)
    ref.check_value_and_gradient(update.loss, model, total)
    ref.close(update.log["supervised"], ref.labeled_loss(w0, X["weak"], given().labeled.y))
    assert ("entropy" in update.log) == (entropy_weight > 0)
    if entropy_weight:
        ref.check_value_and_gradient(update.log["entropy"], model, entropy)


@pytest.mark.parametrize("step", [0, 3, 9])
@pytest.mark.parametrize("entropy_weight", [0.0, 0.3])
def test_equation(entropy_weight: float, step: int) -> None:
    check_equation(VAT, entropy_weight, Progress(step, 10))


# --- the direction ---------------------------------------------------------------------------------------------------


def linear(classes: int, scale: float = 1.0) -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(40, classes).double()
    with torch.no_grad():
        layer.weight.mul_(scale)
    return layer


Direction = Callable[[Callable[[Tensor], Tensor], Tensor, Tensor, float], Tensor]


def check_two_classes(direction: Direction) -> None:
    """A linear network of two classes changes only along the difference of its two rows."""
    layer = linear(2)
    images = torch.randn(9, 40, dtype=torch.float64)
    difference = (layer.weight[1] - layer.weight[0]).detach()
    found = direction(layer, images, layer(images), 1e-2)
    cosine = (found @ difference).abs() / difference.norm()
    torch.testing.assert_close(cosine, torch.ones(9, dtype=torch.float64))


def check_length(direction: Direction) -> None:
    """Length 1 for every image, whatever its slope."""
    layer = linear(4, scale=3.0)
    images = torch.randn(9, 40, dtype=torch.float64) * torch.logspace(-2, 1, 9, dtype=torch.float64)[:, None]
    found = direction(layer, images, layer(images), 1e-2)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(9, dtype=torch.float64))
    assert not found.requires_grad


def test_direction_of_two_classes() -> None:
    check_two_classes(adversarial_direction)


def test_length_of_the_direction() -> None:
    check_length(adversarial_direction)


def test_direction_is_worse_than_chance() -> None:
    layer = linear(4, scale=3.0)
    images = torch.randn(50, 40, dtype=torch.float64)
    clean = layer(images).detach()
    found, chance = (f(layer, images, clean, 1e-2) for f in (adversarial_direction, random_direction))
    with torch.no_grad():
        worse, usual = (float(kl_consistency(layer(images + r), clean)) for r in (found, chance))
    assert worse > 3 * usual


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_slope_gives_no_direction(dtype: torch.dtype) -> None:
    images = torch.randn(3, 40, dtype=dtype)
    layer = nn.Linear(40, 2, dtype=dtype)
    nn.init.zeros_(layer.weight)
    found = adversarial_direction(layer, images, layer(images), 1e-2)
    assert torch.equal(found, torch.zeros_like(images))


def test_a_certain_network_still_has_a_direction() -> None:
    """Slopes of 1e-30: their squares are 0 in float32."""
    layer = linear(2).float()
    with torch.no_grad():
        layer.weight.mul_(0.1)
        layer.bias.copy_(torch.tensor([68.0, 0.0]))
    images = torch.randn(3, 40)
    found = adversarial_direction(layer, images, layer(images), 0.1)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))


def test_divergence_grows_with_the_square_of_the_perturbation() -> None:
    model = ref.regression(scale=0.5)
    values = []
    for epsilon in (0.01, 0.02):
        torch.manual_seed(0)
        values.append(float(ref.first(VAT(model, epsilon=epsilon), given()).log["adversarial"].detach()))
    assert values[1] / values[0] == pytest.approx(4.0, rel=0.05)


# --- BatchNorm and precision -----------------------------------------------------------------------------------------


def with_norm() -> tuple[Classifier, nn.BatchNorm1d]:
    model = ref.regression(scale=0.5)
    norm = nn.BatchNorm1d(ref.PIXELS)
    model.neck.append(norm)
    return model, norm


def check_statistics(cls: type[VAT]) -> None:
    """The running statistics have seen the labeled and the clean unlabeled images, each once."""
    model, norm = with_norm()
    ref.first(cls(model, epsilon=20.0).train(), given())
    assert norm.num_batches_tracked == 2
    assert norm.running_mean is not None
    x, u = (views["weak"].flatten(1).double().numpy().mean(0) for views in (X, U))
    ref.close(norm.running_mean, 0.9 * 0.1 * x + 0.1 * u, rtol=1e-4)


def check_no_perturbation_no_loss(cls: type[VAT]) -> None:
    """Clean and perturbed images share their batch statistics: without a perturbation they have the same answers."""
    model, _ = with_norm()
    update = ref.first(cls(model, epsilon=1e-6).train(), given())
    assert abs(float(update.log["adversarial"].detach())) < 1e-6, "divergence without a perturbation"


def check_precision(cls: type[VAT]) -> None:
    """Autocast does not reach the unlabeled images: the term is the one in float32."""
    values = []
    for dtype in (None, torch.bfloat16):
        model = ref.regression(scale=0.5)
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=dtype) if dtype else contextlib.nullcontext():
            values.append(ref.first(cls(model, epsilon=1.0), given()).log["adversarial"].detach())
    torch.testing.assert_close(values[1], values[0])


def test_perturbed_images_leave_the_statistics_alone() -> None:
    check_statistics(VAT)


def test_no_perturbation_no_loss() -> None:
    check_no_perturbation_no_loss(VAT)


def test_float32_under_autocast() -> None:
    check_precision(VAT)


def test_without_entropy_the_clean_forward_has_no_graph() -> None:
    for weight, graphs in ((0.0, [True, False, True, True]), (0.1, [True, True, True, True])):
        model = ref.regression()
        seen: list[bool] = []
        model.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(torch.is_grad_enabled()))
        ref.run(VAT(model, entropy_weight=weight), given())
        assert seen == graphs


def test_one_image_each() -> None:
    model = ref.regression()
    one = ref.batch({"weak": ref.images(1, 4)}, {"weak": ref.images(1, 5)}, y=[1])
    update = ref.first(VAT(model, epsilon=1.0, unlabeled_weight=1.0, ramp=0.0), one)
    assert float(update.log["adversarial"].detach()) > 0
    expected = ref.labeled_loss(ref.weights(model), one.labeled["weak"], [1])
    ref.close(update.loss, expected + float(update.log["adversarial"].detach()))


# --- sabotage --------------------------------------------------------------------------------------------------------


def reversed_kl(logits: Tensor, target_logits: Tensor) -> Tensor:
    """google-research/fixmatch and S4L: perturbed || clean."""
    return kl_consistency(target_logits, logits)


def divided_by_classes(logits: Tensor, target_logits: Tensor) -> Tensor:
    """reduction="mean"."""
    return kl_consistency(logits, target_logits) / ref.CLASSES


@pytest.mark.parametrize("loss", [reversed_kl, divided_by_classes])
def test_equation_finds_another_divergence(
    loss: Callable[[Tensor, Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("semisup.methods.vat.kl_consistency", loss)
    with pytest.raises(AssertionError, match="Not equal"):
        check_equation(VAT)


def whole_batch(network: Callable[[Tensor], Tensor], images: Tensor, logits: Tensor, xi: float) -> Tensor:
    """One length for the whole batch: certain images get next to no perturbation."""
    d = torch.randn_like(images)
    d = (d / d.flatten(1).norm(dim=1).view(-1, *[1] * (d.ndim - 1))).requires_grad_()
    (slope,) = torch.autograd.grad(kl_consistency(network(images + xi * d), logits.detach()), d)
    return slope / slope.norm() * math.sqrt(len(images))


def random_direction(network: Callable[[Tensor], Tensor], images: Tensor, logits: Tensor, xi: float) -> Tensor:
    """No power iteration."""
    d = torch.randn_like(images)
    return d / d.flatten(1).norm(dim=1).view(-1, *[1] * (d.ndim - 1))


def downhill(network: Callable[[Tensor], Tensor], images: Tensor, logits: Tensor, xi: float) -> Tensor:
    """Against the slope."""
    return -adversarial_direction(network, images, logits, xi)


def tiny_probe(network: Callable[[Tensor], Tensor], images: Tensor, logits: Tensor, xi: float) -> Tensor:
    """The published xi, which float32 rounds away."""
    return adversarial_direction(network, images, logits, 1e-7)


@pytest.mark.parametrize("direction", [whole_batch, random_direction, downhill, tiny_probe])
def test_equation_finds_another_direction(direction: Direction, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("semisup.methods.vat.adversarial_direction", direction)
    with pytest.raises(AssertionError, match="Not equal"):
        check_equation(VAT)


def test_direction_checks_find_these() -> None:
    with pytest.raises(AssertionError):
        check_two_classes(random_direction)
    with pytest.raises(AssertionError):
        check_length(whole_batch)


class LiveTarget(VAT):
    """Gradient through the clean prediction too. The value stays what it was."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        u = batch.unlabeled["weak"]
        torch.manual_seed(5)
        for update in super().step(batch, progress):
            torch.manual_seed(5)
            clean = self.model(u)
            r = self.epsilon * adversarial_direction(self.model, u, clean, self.xi)
            term = kl_consistency(self.model(u + r), clean)
            loss = update.log["supervised"] + self.unlabeled_weight * term
            yield replace(update, loss=loss, log={**update.log, "adversarial": term})


def test_equation_finds_a_target_with_gradient() -> None:
    with pytest.raises(AssertionError, match="Not equal"):
        check_equation(LiveTarget)


class JointForward(VAT):
    """The target comes from one forward of labeled and unlabeled images: other batch statistics."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        x, u = batch.labeled["weak"], batch.unlabeled["weak"]
        for update in super().step(batch, progress):
            target = self.model(torch.cat([x, u]))[len(x) :].detach()
            yield replace(update, log={**update.log, "adversarial": kl_consistency(self.model(u), target)})


def test_statistics_check_finds_perturbed_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("semisup.methods.vat.frozen_statistics", lambda model: contextlib.nullcontext())
    with pytest.raises(AssertionError):
        check_statistics(VAT)


def test_no_perturbation_check_finds_a_joint_forward() -> None:
    with pytest.raises(AssertionError, match="without a perturbation"):
        check_no_perturbation_no_loss(JointForward)


def test_precision_check_finds_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("semisup.methods.vat.without_autocast", lambda x: contextlib.nullcontext())
    with pytest.raises(AssertionError):
        check_precision(VAT)


def test_equation_finds_a_missing_ramp() -> None:
    class NoRamp(VAT):
        def __init__(self, model: Classifier, **options: Any) -> None:
            super().__init__(model, **{**options, "ramp": 0.0})

    check_equation(NoRamp)  # after the ramp
    with pytest.raises(AssertionError, match="Not equal"):
        check_equation(NoRamp, progress=Progress(3, 10))
