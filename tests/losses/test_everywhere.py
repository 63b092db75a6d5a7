"""What every function of semisup.losses promises: float32 inside autocast, no host synchronization, any device."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import semisup.losses
from tests.losses.losses_reference import normal

N, C = 8, 5


def logits(seed: int) -> torch.Tensor:
    return torch.tensor(normal(N, C, seed=seed)).float()


LABELS = torch.arange(N) % C
MASK = torch.arange(N) % 2 == 0
FREQUENCIES = torch.arange(1.0, C + 1) / sum(range(1, C + 1))

# name: (function of the input that learns and the other tensors, the other tensors)
CASES = {
    "align_distribution": (
        lambda z, t, m: semisup.losses.align_distribution(F.softmax(z, 1), t, m)[:, 0].sum(),
        (FREQUENCIES, FREQUENCIES.flip(0)),
    ),
    "annealed_cross_entropy": (lambda z, y: semisup.losses.annealed_cross_entropy(z, y, 0.4), (LABELS,)),
    "barlow_twins": (semisup.losses.barlow_twins, (logits(1),)),
    "batch_hard_triplet": (semisup.losses.batch_hard_triplet, (LABELS,)),
    "contrastive_margin": (semisup.losses.contrastive_margin, (LABELS,)),
    "covariance_penalty": (semisup.losses.covariance_penalty, ()),
    "cross_view_cross_entropy": (
        lambda z, t: semisup.losses.cross_view_cross_entropy(z.view(4, 2, C), t[:4].view(2, 2, C)),
        (F.softmax(logits(1), 1),),
    ),
    "counting": (
        lambda z, p, o: semisup.losses.counting(z, p.view(N, 2, C) / 2, o, 12.0),
        (torch.cat([logits(1), logits(2)], 1), logits(3)),
    ),
    "entropy": (semisup.losses.entropy, ()),
    "feature_cosine": (semisup.losses.feature_cosine, (logits(1),)),
    "feature_mse": (semisup.losses.feature_mse, (logits(1),)),
    "hinton_kd": (lambda z, t: semisup.losses.hinton_kd(z, t, 4.0), (logits(1),)),
    "info_nce": (
        lambda z, p, n, w: semisup.losses.info_nce(z, p, 0.1, n, w),
        (logits(1), logits(2), MASK),
    ),
    "kl_consistency": (semisup.losses.kl_consistency, (logits(1),)),
    "masked_mse": (
        lambda z, t, m: semisup.losses.masked_mse(z[:, None], t[:, None], m[:, None]),
        (logits(1), MASK),
    ),
    "mse_consistency": (semisup.losses.mse_consistency, (F.softmax(logits(1), 1),)),
    "n_pair": (lambda z, p, w: semisup.losses.n_pair(z, p, 0.02, w), (logits(1), MASK)),
    "nce": (lambda z, n, w: semisup.losses.nce(z[:, 0], n, w), (logits(1), MASK)),
    "negative_cosine": (semisup.losses.negative_cosine, (logits(1),)),
    "neighbor_predictions": (
        lambda z, a: semisup.losses.neighbor_predictions(F.softmax(z, 1), a[:C])[:, 0].sum(),
        (F.softmax(logits(1), 1),),
    ),
    "nt_xent": (lambda z, m: semisup.losses.nt_xent(z, 0.1, m), (logits(1),)),
    "positive_unlabeled": (lambda z, u: semisup.losses.positive_unlabeled(z[:, 0], u, 0.2), (logits(1)[:, 0],)),
    "pseudo_label_cross_entropy": (semisup.losses.pseudo_label_cross_entropy, (LABELS, MASK)),
    "pseudo_label_graph": (
        lambda z: semisup.losses.pseudo_label_graph(F.softmax(z, 1), 0.1)[:, 0].square().sum(),
        (),
    ),
    "self_adaptive_fairness": (
        semisup.losses.self_adaptive_fairness,
        (MASK, FREQUENCIES, FREQUENCIES.flip(0)),
    ),
    "self_distillation": (
        lambda z, t, c: semisup.losses.self_distillation(z.view(4, 2, C), t[:4].view(2, 2, C), c, 0.1, 0.04),
        (logits(1), FREQUENCIES),
    ),
    "queue_distillation": (
        lambda z, t, q: semisup.losses.queue_distillation(z, t, q, 0.2),
        (logits(1), logits(2)),
    ),
    "sharpen": (lambda z: semisup.losses.sharpen(F.softmax(z, 1), 0.5)[:, 0].sum(), ()),
    "similarity": (lambda z, k: semisup.losses.similarity(z, k, 0.1)[:, 0].sum(), (logits(1),)),
    "sinkhorn": (lambda z: semisup.losses.sinkhorn(z, 0.5)[:, 0].square().sum(), ()),
    "soft_cross_entropy": (semisup.losses.soft_cross_entropy, (F.softmax(logits(1), 1), MASK)),
    "soft_nearest_neighbor": (lambda z, y: semisup.losses.soft_nearest_neighbor(z, y, 0.5), (LABELS,)),
    "soft_target_distillation": (
        lambda z, t: semisup.losses.soft_target_distillation(z, t, 0.5),
        (logits(1),),
    ),
    "sup_con": (lambda z, y: semisup.losses.sup_con(z, y, 0.1), (LABELS,)),
    "triplet": (semisup.losses.triplet, (LABELS,)),
    "unfold_classes": (
        lambda z, p, y: semisup.losses.unfold_classes(F.softmax(z, 1), p, y[:C])[:, 0].sum(),
        (F.softmax(logits(1), 1), LABELS),
    ),
    "variance_hinge": (semisup.losses.variance_hinge, ()),
}

# These take probabilities; the softmax of the table would be taken in bf16 outside of them.
OF_PROBABILITIES = {
    "align_distribution": (FREQUENCIES, FREQUENCIES.flip(0)),
    "neighbor_predictions": (F.softmax(logits(1), 1)[:C],),
    "pseudo_label_graph": (0.1,),
    "sharpen": (0.5,),
    "unfold_classes": (F.softmax(logits(1), 1), LABELS[:C]),
}


def test_every_exported_loss_is_in_the_table():
    functions = [name for name in semisup.losses.__all__ if not isinstance(getattr(semisup.losses, name), type)]
    assert sorted(CASES) == sorted(functions)


@pytest.mark.parametrize("name", CASES)
def test_meta_device(name):
    loss, others = CASES[name]
    z = torch.empty(N, C, device="meta", requires_grad=True)
    value = loss(z, *(x.to("meta") for x in others))
    assert value.device.type == "meta"
    assert value.shape == ()
    value.backward()
    assert z.grad is not None
    assert z.grad.shape == z.shape


@pytest.mark.parametrize("name", CASES)
def test_bf16_autocast_gives_the_float32_result_of_the_bf16_input(name):
    loss, others = CASES[name]
    if name in OF_PROBABILITIES:
        table, arguments = getattr(semisup.losses, name), OF_PROBABILITIES[name]
        loss, others = (lambda p: table(p, *arguments)), ()
    rounded = F.softmax(logits(0), 1).bfloat16() if others == () and name != "entropy" else logits(0).bfloat16()
    expected = loss(rounded.float(), *others)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(rounded, *others)
    assert value.dtype == torch.float32
    assert torch.equal(value, expected)


@pytest.mark.parametrize("name", CASES)
def test_inputs_are_not_written_to_and_the_result_repeats(name):
    loss, others = CASES[name]
    z, kept = logits(0), [x.clone() for x in others]
    first = loss(z, *others)
    assert torch.equal(first, loss(z, *others))
    assert torch.equal(z, logits(0))
    assert all(torch.equal(a, b) for a, b in zip(others, kept, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_gradient_against_finite_differences(name):
    loss, others = CASES[name]
    doubles = tuple(x.double() if x.is_floating_point() else x for x in others)
    z = logits(0).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, *doubles), (z,))
