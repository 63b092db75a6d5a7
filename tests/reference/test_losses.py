"""The losses next to those of pytorch-metric-learning and lightly, as installed: values and gradients in float64.

`make test-reference` installs the two and runs this; where one is missing its tests are skipped. Conventions differ;
each test brings theirs to ours and says why:

- pytorch-metric-learning normalizes embeddings unless told otherwise; our metric losses take rows as they are.
- Its reducers leave out terms that are 0; our means run over all of them, as the papers' sums do.
- It takes the label -1 for a class; we take it for unknown, so that it is not shown those rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from semisup.losses import (
    barlow_twins,
    batch_hard_triplet,
    contrastive_margin,
    covariance_penalty,
    cross_view_cross_entropy,
    info_nce,
    n_pair,
    negative_cosine,
    nt_xent,
    self_distillation,
    sinkhorn,
    soft_cross_entropy,
    soft_nearest_neighbor,
    soft_target_distillation,
    triplet,
    variance_hinge,
)

pytestmark = pytest.mark.reference

Loss = Callable[..., Tensor]
HOW = "not installed; `make test-reference` does"


@pytest.fixture
def pml() -> Any:
    """The package pytorch_metric_learning with the parts that are used here."""
    for part in ("distances", "losses", "miners", "reducers", "regularizers"):
        pytest.importorskip(f"pytorch_metric_learning.{part}", reason=f"pytorch-metric-learning is {HOW}")
    return pytest.importorskip("pytorch_metric_learning")


@pytest.fixture
def lightly() -> Any:
    """The module lightly.loss."""
    return pytest.importorskip("lightly.loss", reason=f"lightly is {HOW}")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def check_same(ours: Loss, theirs: Loss, *inputs: Tensor) -> None:
    """Equal values, and equal gradients in every input; a gradient that is 0 everywhere would compare nothing."""
    results = []
    for loss in (ours, theirs):
        variables = [x.clone().requires_grad_() for x in inputs]
        value = loss(*variables)
        results.append((value.detach(), torch.autograd.grad(value, variables)))
    (value, gradients), (their_value, their_gradients) = results
    assert float(value) > 0
    torch.testing.assert_close(value, their_value, rtol=1e-9, atol=1e-12)
    for gradient, their_gradient in zip(gradients, their_gradients, strict=True):
        assert bool((gradient != 0).any())
        torch.testing.assert_close(gradient, their_gradient, rtol=1e-7, atol=1e-10)


# One positive among candidates.


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize("count", [2, 9])
def test_nt_xent_is_lightly_s(lightly: Any, count: int, temperature: float) -> None:
    theirs = lightly.NTXentLoss(temperature=temperature, memory_bank_size=0)
    check_same(
        lambda first, second: nt_xent(torch.cat([first, second]), temperature),
        theirs,
        normal(count, 5),
        normal(count, 5, seed=1),
    )


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize("count", [2, 9])
def test_nt_xent_is_pytorch_metric_learning_s(pml: Any, count: int, temperature: float) -> None:
    """Theirs finds the pairs by label: the two views of an image are a class."""
    labels = torch.arange(count).repeat(2)
    loss = pml.losses.NTXentLoss(temperature=temperature)
    check_same(lambda z: nt_xent(z, temperature), lambda z: loss(z, labels), normal(2 * count, 5))


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_info_nce_with_a_queue_is_lightly_s_memory_bank(lightly: Any, temperature: float) -> None:
    """Theirs does not normalize the bank and takes the batch into it after the loss: given unit rows, read before."""
    theirs = lightly.NTXentLoss(temperature=temperature, memory_bank_size=(16, 5))
    queue = F.normalize(normal(16, 5), dim=1)
    theirs.memory_bank.bank = queue.clone()
    check_same(
        lambda queries, positives: info_nce(queries, positives, temperature, negatives=queue),
        theirs,
        normal(7, 5, seed=1),
        normal(7, 5, seed=2),
    )


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_info_nce_in_the_batch_is_pytorch_metric_learning_s(pml: Any, temperature: float) -> None:
    """Their NT-Xent from one set to another: row i of the second is the only one of row i's class. (The same tensor of
    labels twice would mean the same set twice, without its diagonal.)"""
    labels, others = torch.arange(7), torch.arange(7)
    loss = pml.losses.NTXentLoss(temperature=temperature)
    check_same(
        lambda queries, positives: info_nce(queries, positives, temperature),
        lambda queries, positives: loss(queries, labels, ref_emb=positives, ref_labels=others),
        normal(7, 5),
        normal(7, 5, seed=1),
    )


@pytest.mark.parametrize("penalty", [0.0, 0.02])
def test_n_pair_is_pytorch_metric_learning_s(pml: Any, penalty: float) -> None:
    """Theirs averages the squared lengths over all 2N rows, ours over the N pairs: twice the weight."""
    labels = torch.arange(6).repeat(2)
    loss = pml.losses.NPairsLoss(
        distance=pml.distances.DotProductSimilarity(normalize_embeddings=False),
        embedding_regularizer=pml.regularizers.LpRegularizer(p=2, power=2),
        embedding_reg_weight=2 * penalty,
    )
    check_same(
        lambda anchors, positives: n_pair(anchors, positives, penalty),
        lambda anchors, positives: loss(torch.cat([anchors, positives]), labels),
        normal(6, 5),
        normal(6, 5, seed=1),
    )


# Rows of one label close together.

LABELINGS = {
    "pairs": [0, 0, 1, 1, 2, 2, 3, 3, 4, 4],
    "uneven": [3, 0, 0, 0, 7, 3, 3, 0, 7, 7],
    "some alone": [0, 0, 1, 2, 2, 5, 2, 6, 0, 8],
    "some unknown": [0, -1, 0, 1, -1, 1, 1, 2, -1, 2],
}


@pytest.fixture(params=LABELINGS.values(), ids=LABELINGS.keys())
def labels(request: pytest.FixtureRequest) -> Tensor:
    return torch.tensor(request.param)


def on_known(loss: Loss, labels: Tensor) -> Loss:
    """`loss(z, labels)` of the rows whose label is known."""
    known = labels >= 0
    return lambda z: loss(z[known], labels[known])


def as_they_are(pml: Any, power: int = 1) -> Any:
    """Distances (or squared ones) of rows that are not normalized."""
    return pml.distances.LpDistance(normalize_embeddings=False, power=power)


@pytest.mark.parametrize("margin", [0.5, 2.0, 10.0])
def test_contrastive_margin_has_the_pairs_of_pytorch_metric_learning(pml: Any, labels: Tensor, margin: float) -> None:
    """Theirs is linear in d and leaves zeros out of two means, one for each kind of pair; Hadsell et al. have half the
    square of the same terms, and one sum over all pairs. Hence from their terms before the reduction."""
    loss = pml.losses.ContrastiveLoss(pos_margin=0, neg_margin=margin, distance=as_they_are(pml))

    def theirs(z: Tensor, y: Tensor) -> Tensor:
        parts = loss.compute_loss(z, y, None, z, y)
        return (torch.cat([part["losses"] for part in parts.values()]).square() / 2).mean()

    check_same(lambda z: contrastive_margin(z, labels, margin), on_known(theirs, labels), normal(10, 3))


MINING = {"all": "all", "hard": "hard", "semi_hard": "semihard", "easy": "easy"}
"""Our names of kinds of triplets, and their miner's."""


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize(
    ("mining", "margin"),
    [
        *(("all", margin) for margin in (None, 0.2, 2.0)),
        *(("hard", margin) for margin in (None, 0.2, 2.0)),
        *(("semi_hard", margin) for margin in (0.2, 2.0)),
        ("easy", None),  # with a margin its hinge is 0: see below
    ],
)
def test_triplet_is_pytorch_metric_learning_s(
    pml: Any, labels: Tensor, mining: Any, margin: float | None, squared: bool
) -> None:
    """With a plain mean for theirs, which leaves zeros out, and where ours has a soft margin a miner with one of 0.
    Their miner's "all" leaves out the easy triplets, so that ours of that name goes without a miner."""
    distance = as_they_are(pml, 2 if squared else 1)
    loss = pml.losses.TripletMarginLoss(
        margin=margin or 0.0, smooth_loss=margin is None, distance=distance, reducer=pml.reducers.MeanReducer()
    )

    mine = pml.miners.TripletMarginMiner(margin=margin or 0.0, type_of_triplets=MINING[mining], distance=distance)

    def theirs(z: Tensor, y: Tensor) -> Tensor:
        value: Tensor = loss(z, y, None if mining == "all" else mine(z, y))
        return value

    check_same(
        lambda z: triplet(z, labels, margin, mining=mining, squared=squared),
        on_known(theirs, labels),
        normal(10, 3) / 2,  # so that some triplets are semi-hard by the smaller margin
    )


def test_easy_triplets_have_no_loss(pml: Any, labels: Tensor) -> None:
    z = normal(10, 3)
    mine = pml.miners.TripletMarginMiner(margin=0.2, type_of_triplets="easy", distance=as_they_are(pml, 2))
    loss = pml.losses.TripletMarginLoss(margin=0.2, distance=as_they_are(pml, 2))
    assert len(on_known(mine, labels)(z)[0]) > 0
    assert float(on_known(lambda z, y: loss(z, y, mine(z, y)), labels)(z)) == 0
    assert float(triplet(z, labels, 0.2, mining="easy")) == 0


@pytest.mark.parametrize("margin", [None, 0.2, 2.0])
def test_batch_hard_triplet_is_pytorch_metric_learning_s(pml: Any, labels: Tensor, margin: float | None) -> None:
    """With a plain mean over anchors for theirs, which leaves zeros out."""
    mine = pml.miners.BatchHardMiner(distance=as_they_are(pml))
    loss = pml.losses.TripletMarginLoss(
        margin=margin or 0.0, smooth_loss=margin is None, distance=as_they_are(pml), reducer=pml.reducers.MeanReducer()
    )
    check_same(
        lambda z: batch_hard_triplet(z, labels, margin),
        on_known(lambda z, y: loss(z, y, mine(z, y)), labels),
        normal(10, 3),
    )


@pytest.mark.parametrize("temperature", [0.5, 4.0])
def test_soft_nearest_neighbor_is_pytorch_metric_learning_s_nca(pml: Any, labels: Tensor, temperature: float) -> None:
    """Neighborhood components analysis is this loss; its scale is 1 / T."""
    loss = pml.losses.NCALoss(softmax_scale=1 / temperature, distance=as_they_are(pml, 2))
    check_same(lambda z: soft_nearest_neighbor(z, labels, temperature), on_known(loss, labels), normal(10, 3))


# Two views without negatives.


def test_negative_cosine_is_lightly_s(lightly: Any) -> None:
    """A value of -1 to 1; check_same wants one above 0, hence 1 more for both."""
    theirs = lightly.NegativeCosineSimilarity()
    check_same(
        lambda predictions, targets: 1 + negative_cosine(predictions, targets),
        lambda predictions, targets: 1 + theirs(predictions, targets),
        normal(7, 5),
        normal(7, 5, seed=1),
    )


@pytest.mark.parametrize("weight", [0.005, 0.5])
@pytest.mark.parametrize("count", [2, 9])
def test_barlow_twins_is_lightly_s(lightly: Any, count: int, weight: float) -> None:
    check_same(
        lambda first, second: barlow_twins(first, second, weight),
        lightly.BarlowTwinsLoss(lambda_param=weight),
        normal(count, 5),
        normal(count, 5, seed=1),
    )


@pytest.mark.parametrize("scale", [0.3, 1.0])
@pytest.mark.parametrize("count", [2, 9])
def test_the_terms_of_vicreg_add_up_to_lightly_s(lightly: Any, count: int, scale: float) -> None:
    """Theirs is the sum, with the authors' weights: 25, 25 for the mean of the views' hinges, 1 for their sum."""
    check_same(
        lambda first, second: (
            25 * F.mse_loss(first, second)
            + 25 * (variance_hinge(first) + variance_hinge(second)) / 2
            + covariance_penalty(first)
            + covariance_penalty(second)
        ),
        lightly.VICRegLoss(),
        scale * normal(count, 5),
        scale * normal(count, 5, seed=1),
    )


# Soft targets.


@pytest.mark.parametrize(("student_temperature", "teacher_temperature"), [(1.0, 1.0), (0.125, 0.0625)])
def test_soft_cross_entropy_is_lightly_s_dino(
    lightly: Any, student_temperature: float, teacher_temperature: float
) -> None:
    target = (normal(8, 6) / teacher_temperature).softmax(1)
    check_same(
        lambda student: soft_cross_entropy(student / student_temperature, target),
        dino(lightly, normal(8, 6), student_temperature, teacher_temperature),
        normal(8, 6, seed=1),
    )


@pytest.mark.parametrize("temperature", [1.0, 0.125])
def test_soft_target_distillation_is_lightly_s_dino(lightly: Any, temperature: float) -> None:
    check_same(
        lambda student: soft_target_distillation(student, normal(8, 6), temperature),
        dino(lightly, normal(8, 6), temperature, temperature),
        normal(8, 6, seed=1),
    )


def dino(lightly: Any, teacher: Tensor, student_temperature: float, teacher_temperature: float) -> Loss:
    """Their loss of DINO without its center, which begins at 0 and with momentum 1 stays there.

    It takes lists of views and leaves out a view with itself, so that the student's first view here counts nothing. The
    teacher's temperature becomes a float32: test with a power of two.
    """
    loss = lightly.DINOLoss(
        output_dim=teacher.shape[1],
        teacher_temp=teacher_temperature,
        student_temp=student_temperature,
        center_momentum=1.0,
    ).double()
    return lambda student: loss([teacher], [torch.zeros_like(student), student])


# Clusters.


@pytest.mark.parametrize("queued", [0, 9])
@pytest.mark.parametrize("crops", [0, 3])
def test_codes_and_swapped_predictions_are_lightly_s_swav(lightly: Any, crops: int, queued: int) -> None:
    """Theirs does both at once. The order of a queue does not matter to codes."""
    theirs = lightly.SwaVLoss(temperature=0.1, sinkhorn_iterations=3, sinkhorn_epsilon=0.05)
    views = [F.normalize(normal(7, 5, seed=v), dim=1) for v in range(2 + crops)]
    queue = [F.normalize(normal(queued, 5, seed=20 + v), dim=1) for v in range(2)]

    def ours(*scores: Tensor) -> Tensor:
        codes = [sinkhorn(torch.cat([old, view.detach()]))[queued:] for old, view in zip(queue, scores, strict=False)]
        return cross_view_cross_entropy(torch.stack(scores) / 0.1, torch.stack(codes))

    check_same(
        ours,
        lambda *scores: theirs(list(scores[:2]), list(scores[2:]), queue if queued else None).squeeze(0),
        *views,
    )


@pytest.mark.parametrize("crops", [0, 3])
def test_self_distillation_is_lightly_s_dino(lightly: Any, crops: int) -> None:
    """Its temperature becomes a float32, and the center must be there before the first call."""
    theirs = lightly.DINOLoss(output_dim=6, teacher_temp=0.0625, student_temp=0.125).double()
    center, teacher = normal(6, seed=30), normal(2, 8, 6, seed=31)

    def dino_loss(*views: Tensor) -> Tensor:
        theirs.center.copy_(center.view(1, 1, 6))
        value: Tensor = theirs(list(teacher), list(views))
        return value

    check_same(
        lambda *views: self_distillation(torch.stack(views), teacher, center, 0.125, 0.0625),
        dino_loss,
        *(normal(8, 6, seed=v) for v in range(2 + crops)),
    )
    # Afterwards theirs has moved the center, as the method does it.
    torch.testing.assert_close(theirs.center.flatten(), 0.9 * center + 0.1 * teacher.mean((0, 1)))
