"""A network that can be computed by hand, and the equations of methods.md in python floats and loops."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from semisup.methods import Batch, Labeled, Method, Progress, Unlabeled, Update
from semisup.models import Classifier, Encoder

Array = np.ndarray

CLASSES, PIXELS = 3, 4
START = Progress(0, 10)


class Flat(nn.Module):
    """The pixels are the features: a classifier on top of it is a softmax regression."""

    def __init__(self, num_features: int = PIXELS) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


class Layer(nn.Module):
    """One linear layer as a backbone, for methods whose encoder must have something to learn."""

    def __init__(self, num_features: int = 6, pixels: int = PIXELS) -> None:
        super().__init__()
        self.num_features = num_features
        self.linear = nn.Linear(pixels, num_features)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.linear(images.flatten(1))
        return features


def regression(seed: int = 0, scale: float = 1.0) -> Classifier:
    """Softmax regression on 2x2 images, with clear opinions."""
    torch.manual_seed(seed)
    model = Classifier(Flat(), nn.Sequential(), CLASSES)
    nn.init.normal_(model.head.weight, std=scale)
    nn.init.normal_(model.head.bias, std=scale)
    return model


def linear_encoder(seed: int = 0, num_features: int = 6) -> Encoder:
    """A linear encoder of 2x2 images."""
    torch.manual_seed(seed)
    return Encoder(Layer(num_features))


def images(n: int, seed: int, scale: float = 1.0) -> Tensor:
    """(n, 1, 2, 2) normal numbers."""
    return scale * torch.randn(n, 1, 2, 2, generator=torch.Generator().manual_seed(seed))


def batch(
    labeled: Mapping[str, Tensor] | None = None,
    unlabeled: Mapping[str, Tensor] | None = None,
    y: list[int] | None = None,
    target: Tensor | None = None,
) -> Batch:
    """A batch of these views; labels count up unless given."""
    x, u = dict(labeled or {}), dict(unlabeled or {})
    n, m = (len(next(iter(views.values()), torch.empty(0))) for views in (x, u))
    labels = torch.tensor([i % CLASSES for i in range(n)] if y is None else y, dtype=torch.long)
    return Batch(Labeled(x, labels, torch.arange(n) + 20), Unlabeled(u, torch.arange(m) + 50, target))


def first(method: Method, given: Batch, progress: Progress = START) -> Update:
    """The first update of a step, not applied."""
    return next(iter(method.step(given, progress)))


def run(method: Method, given: Batch, progress: Progress = START, lr: float = 0.1) -> list[Update]:
    """All updates of a step, each applied by plain gradient descent with rate `lr`."""
    return list(drive(method, given, progress, lr))


def drive(method: Method, given: Batch, progress: Progress = START, lr: float = 0.1) -> Iterator[Update]:
    """Like `run`, but lets the caller look at the networks after each update has been applied."""
    groups = method.groups()
    updates = method.step(given, progress)
    for update in updates:
        slopes = torch.autograd.grad(update.loss, groups[update.group], retain_graph=True, allow_unused=True)
        with torch.no_grad():
            for p, slope in zip(groups[update.group], slopes, strict=True):
                if slope is not None:
                    p.sub_(lr * slope)
        yield update


# --- equations, one number at a time ---------------------------------------------------------------------------------


def weights(model: Classifier) -> Array:
    """(CLASSES, PIXELS + 1) float64: weight and bias of a softmax regression, for `logits`."""
    w, b = model.head.weight.detach().double().numpy(), model.head.bias.detach().double().numpy()
    return np.concatenate([w, b[:, None]], axis=1)


def logits(w: Array, x: Tensor) -> Array:
    """(N, CLASSES) answers of the regression `w` to images."""
    rows = x.detach().double().flatten(1).numpy()
    out = np.zeros((len(rows), len(w)))
    for n, row in enumerate(rows):
        for c in range(len(w)):
            out[n, c] = w[c, -1] + sum(w[c, i] * row[i] for i in range(len(row)))
    return out


def softmax(z: Array, temperature: float = 1.0) -> Array:
    """Row by row, from the definition."""
    out = np.zeros_like(z, dtype=np.float64)
    for n in range(len(z)):
        powers = [math.exp((value - max(z[n])) / temperature) for value in z[n]]
        out[n] = [power / sum(powers) for power in powers]
    return out


def cross_entropy(target: Array, probs: Array) -> list[float]:
    """H(target, probs) of each row."""
    return [-sum(t * math.log(p) for t, p in zip(*rows, strict=True)) for rows in zip(target, probs, strict=True)]


def one_hot(y: Tensor | list[int], smoothing: float = 0.0) -> Array:
    """(N, CLASSES): 1 - smoothing on the class, and smoothing spread over all classes."""
    return np.array([[(1 - smoothing) * (c == int(k)) + smoothing / CLASSES for c in range(CLASSES)] for k in y])


def mean(values: list[float]) -> float:
    """The plain mean."""
    return sum(values) / len(values)


def labeled_loss(w: Array, x: Tensor, y: Tensor | list[int], smoothing: float = 0.0) -> float:
    """Mean cross-entropy of the regression on labels."""
    return mean(cross_entropy(one_hot(y, smoothing), softmax(logits(w, x))))


def kept_loss(w: Array, x: Tensor, labels: list[int], mask: list[float]) -> float:
    """Mean over all images, kept or not, of mask * CE(label, regression's answer)."""
    losses = cross_entropy(one_hot(labels), softmax(logits(w, x)))
    return mean([m * loss for m, loss in zip(mask, losses, strict=True)])


def likeliest(probs: Array) -> list[int]:
    """The most probable class of each row."""
    return [max(range(len(row)), key=lambda c: row[c]) for row in probs.tolist()]


def numeric_gradient(f: Callable[[Array], float], w: Array, step: float = 1e-5) -> Array:
    """Central differences, one entry at a time."""
    out = np.zeros_like(w)
    for at in np.ndindex(*w.shape):
        up, down = w.copy(), w.copy()
        up[at] += step
        down[at] -= step
        out[at] = (f(up) - f(down)) / (2 * step)
    return out


def gradient(loss: Tensor, model: Classifier) -> Array:
    """(CLASSES, PIXELS + 1): the gradient by autograd, laid out like `weights`."""
    slopes = torch.autograd.grad(
        loss, [model.head.weight, model.head.bias], retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return np.concatenate([slopes[0].double().numpy(), slopes[1].double().numpy()[:, None]], axis=1)


def close(value: Tensor | Array | float, expected: Array | float, rtol: float = 2e-5, atol: float = 2e-6) -> None:
    """Assert that float32 results agree with the float64 reference."""
    got = value.detach().double().numpy() if isinstance(value, Tensor) else value
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=atol)


def check_value_and_gradient(loss: Tensor, model: Classifier, reference: Callable[[Array], float]) -> None:
    """`loss` and its gradient in `model` agree with `reference`, a function of the regression's weights."""
    w = weights(model)
    close(loss, reference(w))
    close(gradient(loss, model), numeric_gradient(reference, w), rtol=1e-3, atol=1e-5)


def check_no_gradient_into(method: Method, given: Batch, part: str, view: str, progress: Progress = START) -> None:
    """No update's gradient reaches the images of a view whose branch is detached."""
    views = given.labeled.views if part == "labeled" else given.unlabeled.views
    views[view].requires_grad_()
    for update in method.step(given, progress):
        (slope,) = torch.autograd.grad(update.loss, views[view], retain_graph=True, allow_unused=True)
        assert slope is None, f"gradient into {part}[{view!r}]"


def nt_xent(
    z: Array, temperature: float, memory: Array | None = None, *, masked: bool = True, decoupled: bool = False
) -> float:
    """SimCLR, eq. 1, anchor by anchor; `memory` rows are further candidates of every anchor."""
    unit = [row / math.sqrt(sum(value * value for value in row)) for row in z]
    rows = len(unit)
    extra = [] if memory is None else [row / math.sqrt(sum(value * value for value in row)) for row in memory]
    losses = []
    for i in range(rows):
        candidates = [unit[k] for k in range(rows) if k != i or not masked] + extra
        powers = [math.exp(float(unit[i] @ other) / temperature) for other in candidates]
        positive = math.exp(float(unit[i] @ unit[(i + rows // 2) % rows]) / temperature)
        losses.append(-math.log(positive / (sum(powers) - positive * decoupled)))
    return mean(losses)
