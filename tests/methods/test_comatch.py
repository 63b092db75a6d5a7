"""CoMatch against the paper's equations: memory, graph and contrast in python lists and loops."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from semisup.errors import SemisupError
from semisup.losses import pseudo_label_cross_entropy, pseudo_label_graph, similarity, soft_cross_entropy
from semisup.methods import Batch, Progress, Update
from semisup.methods.comatch import CoMatch
from tests.methods import methods_reference as ref

B, U = 3, 6
Y = [1, 0, 2]
CLASSES = range(ref.CLASSES)


def given(seed: int = 2) -> Batch:
    return ref.batch(
        {"weak": ref.images(B, seed)},
        {
            "weak": ref.images(U, seed + 1, scale=0.7),
            "strong": ref.images(U, seed + 2),
            "second": ref.images(U, seed + 3),
        },
        y=Y,
    )


def embedder(method: CoMatch) -> list[ref.Array]:
    """Weights and biases of the two layers."""
    return [p.detach().double().numpy() for p in method.embed.parameters()]


def embed(layers: list[ref.Array], images: Tensor) -> list[ref.Array]:
    """Unit vectors, image by image; the features of the regression are the pixels."""
    out = []
    for pixels in images.detach().double().flatten(1).numpy():
        hidden = np.array([value if value > 0 else 0.1 * value for value in layers[0] @ pixels + layers[1]])
        z = layers[2] @ hidden + layers[3]
        out.append(z / math.sqrt(sum(value * value for value in z)))
    return out


def shares(z: ref.Array, others: list[ref.Array], temperature: float) -> list[float]:
    powers = [math.exp(float(z @ other) / temperature) for other in others]
    return [power / sum(powers) for power in powers]


def check_equation(cls: type[CoMatch], steps: int = 5, **options: Any) -> list[float]:
    """Loss, terms, guesses, gradients and memory of some steps; returns the share of images kept at each."""
    model = ref.regression(scale=1.2)
    memory = 20  # neither a multiple of the batch of 9 nor reached before the fourth step
    method = cls(model, embedding=5, memory=memory, **{"prior": "uniform", **options})
    threshold, least = options.get("threshold", 0.95), options.get("graph_threshold", 0.8)
    alpha, temperature = options.get("smoothing", 0.9), options.get("temperature", 0.2)
    recent: list[list[float]] = []
    queue: list[tuple[ref.Array, list[float]]] = []
    kept = []
    for step in range(steps):
        batch, layers = given(10 * step), embedder(method)
        x, u = batch.labeled["weak"], batch.unlabeled
        probs = ref.softmax(ref.logits(ref.weights(model), u["weak"]))
        recent = [*recent, [ref.mean([row[c] for row in probs]) for c in CLASSES]][-32:]
        usual = [ref.mean([row[c] for row in recent]) for c in CLASSES]
        rows = [[row[c] * (1 / 3 + 1e-6) / (usual[c] + 1e-6) for c in CLASSES] for row in probs]
        aligned = [[p / sum(row) for p in row] for row in (rows if options.get("align", True) else probs)]
        z_weak = embed(layers, u["weak"])
        q = aligned
        if len(queue) >= memory:
            last = queue[-memory:]
            q = []
            for row, z in zip(aligned, z_weak, strict=True):
                weights = shares(z, [other for other, _ in last], temperature)
                near = [sum(w * p[c] for w, (_, p) in zip(weights, last, strict=True)) for c in CLASSES]
                q.append([alpha * row[c] + (1 - alpha) * near[c] for c in CLASSES])
        labels = ref.likeliest(np.array(q))
        mask = [float(max(row) >= threshold) for row in q]
        queue += list(zip([*z_weak, *embed(layers, x)], [*aligned, *ref.one_hot(Y).tolist()], strict=True))

        def unlabeled(w: ref.Array, q: Any = q, mask: list[float] = mask, u: Any = u) -> float:
            losses = ref.cross_entropy(np.array(q), ref.softmax(ref.logits(w, u["strong"])))
            return ref.mean([m * loss for m, loss in zip(mask, losses, strict=True)])

        def contrast(last_layer: ref.Array, q: Any = q, u: Any = u, layers: Any = layers) -> float:
            changed = [*layers[:2], last_layer, layers[3]]
            first, second = embed(changed, u["strong"]), embed(changed, u["second"])
            losses = []
            for i in range(U):
                agree = [1.0 if i == j else sum(a * b for a, b in zip(q[i], q[j], strict=True)) for j in range(U)]
                edges = [value if value >= least else 0.0 for value in agree]
                found = shares(first[i], second, temperature)
                losses.append(-sum(e / sum(edges) * math.log(p) for e, p in zip(edges, found, strict=True)))
            return ref.mean(losses)

        l_u, l_c = options.get("unlabeled_weight", 1.0), options.get("contrast_weight", 1.0)
        constant = l_c * contrast(layers[2])

        def total(
            w: ref.Array,
            unlabeled: Callable[[ref.Array], float] = unlabeled,
            x: Tensor = x,
            l_u: float = l_u,
            c: float = constant,
        ) -> float:
            return ref.labeled_loss(w, x, Y) + l_u * unlabeled(w) + c

        update = ref.first(method, batch)
        ref.check_value_and_gradient(update.log["unlabeled"], model, unlabeled)
        ref.close(update.log["contrast"], contrast(layers[2]))
        ref.check_value_and_gradient(update.loss, model, total)
        last_layer = method.embed[2]
        assert isinstance(last_layer, nn.Linear)
        (slope,) = torch.autograd.grad(update.loss, last_layer.weight)
        ref.close(slope, l_c * ref.numeric_gradient(contrast, layers[2]), rtol=1e-3, atol=1e-5)
        ref.close(update.log["kept"], ref.mean(mask))
        assert update.pseudo_labels is not None
        assert update.pseudo_labels.labels.tolist() == labels
        assert update.pseudo_labels.mask.tolist() == mask
        for count, (_, p) in enumerate(queue[-memory:], max(len(queue) - memory, 0)):
            ref.close(method.memory_probs[count % memory], np.array(p))
        with torch.no_grad():
            model.head.bias.add_(torch.tensor([0.5, 0.0, -0.4]))  # so that the next step is another
            last_layer.weight.mul_(-0.7)
        kept.append(ref.mean(mask))
    return kept


OPTIONS = {"threshold": 0.6, "graph_threshold": 0.4, "smoothing": 0.6}


@pytest.mark.parametrize(
    "options",
    [OPTIONS, {**OPTIONS, "unlabeled_weight": 3.0, "contrast_weight": 0.5, "temperature": 0.5}],
)
def test_equation(options: dict[str, Any]) -> None:
    kept = check_equation(CoMatch, **options)
    assert any(0 < share < 1 for share in kept), "the mask is trivial"


def test_smoothing_of_1_leaves_the_predictions_as_they_are() -> None:
    assert check_equation(CoMatch, threshold=0.6, smoothing=1.0)


def test_neighbors_overrule_an_unsure_answer() -> None:
    """Nothing is left of the image's own answer; the memory knows one class only."""
    method = CoMatch(ref.regression(), smoothing=0.0, memory=9, threshold=0.9)
    method.memory_embeddings.normal_()
    method.memory_probs.copy_(torch.eye(3)[[2] * 9])
    method.written.fill_(9)
    update = ref.first(method, given())
    assert update.pseudo_labels is not None
    assert update.pseudo_labels.labels.tolist() == [2] * U
    # All of one class: the graph is complete, and every pair is a positive.
    z = method.embed(torch.cat([given().unlabeled[view].flatten(1) for view in ("strong", "second")]))
    uniform = torch.full((U, U), 1 / U)
    torch.testing.assert_close(update.log["contrast"], soft_cross_entropy(similarity(z[:U], z[U:], 0.2), uniform))


def test_memory_is_first_in_first_out() -> None:
    method = CoMatch(ref.regression(), memory=5, embedding=1)
    for start in (0, 3, 6):
        values = torch.arange(start, start + 3.0)[:, None]
        method.remember(values, values.expand(3, 3))
    assert method.memory_embeddings.flatten().tolist() == [5, 6, 7, 8, 4]
    assert method.memory_probs[:, 0].tolist() == [5, 6, 7, 8, 4]
    assert int(method.written) == 9


def test_memory_smaller_than_the_batch_is_refused() -> None:
    with pytest.raises(SemisupError, match=r"method\.memory: must be at least the batch of 9 images, got 8"):
        ref.first(CoMatch(ref.regression(), memory=8), given())
    ref.first(CoMatch(ref.regression(), memory=9), given())


def test_no_gradient_into_the_weak_view() -> None:
    ref.check_no_gradient_into(CoMatch(ref.regression(), memory=9), given(), "unlabeled", "weak")


def test_both_embeddings_learn() -> None:
    batch = given()
    for view in ("strong", "second"):
        batch.unlabeled[view].requires_grad_()
    contrast = ref.first(CoMatch(ref.regression(), memory=9), batch).log["contrast"]
    slopes = torch.autograd.grad(contrast, [batch.unlabeled["strong"], batch.unlabeled["second"]])
    assert all(bool(slope.any()) for slope in slopes)


def test_one_image_each() -> None:
    views = {name: ref.images(1, seed) for seed, name in enumerate(("weak", "strong", "second"))}
    update = ref.first(
        CoMatch(ref.regression(), memory=2, threshold=1.0), ref.batch({"weak": ref.images(1, 4)}, views, y=[1])
    )
    assert float(update.log["contrast"].detach()) == 0  # there is nobody to confuse it with
    torch.testing.assert_close(update.loss, update.log["supervised"] + update.log["unlabeled"])


# --- sabotage --------------------------------------------------------------------------------------------------------


class SmoothedMemory(CoMatch):
    """Remembers smoothed guesses, which then confirm themselves."""

    def smooth(self, probs: Tensor, z: Tensor) -> Tensor:
        self.smoothed = super().smooth(probs, z)
        return self.smoothed

    def remember(self, z: Tensor, probs: Tensor) -> None:
        super().remember(z, torch.cat([self.smoothed, probs[len(self.smoothed) :]]))


class EarlySmoothing(CoMatch):
    """Blends in the zeros of a memory that is not full."""

    def smooth(self, probs: Tensor, z: Tensor) -> Tensor:
        before = self.written.clone()
        self.written.fill_(self.memory)
        smoothed = super().smooth(probs, z)
        self.written.copy_(before)
        return smoothed


class OnlyUnlabeled(CoMatch):
    """Forgets the labels."""

    def remember(self, z: Tensor, probs: Tensor) -> None:
        super().remember(z[:U], probs[:U])


class NoOverwriting(CoMatch):
    """The memory is written at its beginning."""

    def remember(self, z: Tensor, probs: Tensor) -> None:
        self.memory_embeddings[: len(z)] = z
        self.memory_probs[: len(z)] = probs
        self.written += len(z)


def contrasting(graph: Callable[[Tensor, float], Tensor]) -> type[CoMatch]:
    """A CoMatch with another graph."""

    class Contrasting(CoMatch):
        def smooth(self, probs: Tensor, z: Tensor) -> Tensor:
            self.guesses = super().smooth(probs, z)
            return self.guesses

        def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
            for update in super().step(batch, progress):
                views = batch.unlabeled
                z, other = (self.embed(self.model.features(views[view])) for view in ("strong", "second"))
                target = graph(self.guesses, self.graph_threshold)
                contrast = soft_cross_entropy(similarity(z, other, self.temperature), target)
                yield replace(
                    update,
                    loss=update.loss + self.contrast_weight * (contrast - update.log["contrast"]),
                    log={**update.log, "contrast": contrast},
                )

    return Contrasting


def unnormalized(probs: Tensor, threshold: float) -> Tensor:
    agreement = (probs @ probs.T).fill_diagonal_(1)
    return agreement * (agreement >= threshold)


def without_loops(probs: Tensor, threshold: float) -> Tensor:
    agreement = probs @ probs.T
    edges = agreement * (agreement >= threshold)
    return edges / edges.sum(1, keepdim=True).clamp(min=1e-6)


class HardGuesses(CoMatch):
    """FixMatch's labels: the likeliest class instead of the guess."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for update in super().step(batch, progress):
            guess = update.pseudo_labels
            assert guess is not None
            unlabeled = pseudo_label_cross_entropy(self.model(batch.unlabeled["strong"]), guess.labels, guess.mask)
            yield replace(
                update,
                loss=update.loss + self.unlabeled_weight * (unlabeled - update.log["unlabeled"]),
                log={**update.log, "unlabeled": unlabeled},
            )


class GradientIntoGuesses(CoMatch):
    """The guesses are trained as well."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for update in super().step(batch, progress):
            u = batch.unlabeled
            target = self.model(u["weak"]).softmax(1)
            guess = update.pseudo_labels
            assert guess is not None
            extra = soft_cross_entropy(self.model(u["strong"]).detach(), target, guess.mask)
            yield replace(update, loss=update.loss + extra - extra.detach())


def test_the_planted_graphs_start_from_the_right_one() -> None:
    check_equation(contrasting(pseudo_label_graph), **OPTIONS)


@pytest.mark.parametrize(
    "cls",
    [
        SmoothedMemory,
        EarlySmoothing,
        OnlyUnlabeled,
        NoOverwriting,
        contrasting(unnormalized),
        contrasting(without_loops),
        HardGuesses,
        GradientIntoGuesses,
    ],
)
def test_equation_finds(cls: type[CoMatch]) -> None:
    with pytest.raises(AssertionError, match="Not equal"):
        check_equation(cls, **OPTIONS)
