from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from semisup.errors import SemisupError
from semisup.losses import nt_xent, sup_con
from tests.losses.losses_reference import check, gradient, normal


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / (math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b)))


def reference(z, temperature, extra=(), mask_self=True, decoupled=False):
    """Equation 1 of SimCLR, one anchor at a time; decoupled, the sum is over negatives alone."""
    n = len(z) // 2
    total = 0.0
    for i in range(2 * n):
        j = i + n if i < n else i - n
        positive = math.exp(cosine(z[i], z[j]) / temperature)
        candidates = [math.exp(cosine(z[i], z[k]) / temperature) for k in range(2 * n) if k != i or not mask_self]
        candidates += [math.exp(cosine(z[i], key) / temperature) for key in extra]
        total += -math.log(positive / (sum(candidates) - positive * decoupled))
    return total / (2 * n)


@pytest.mark.parametrize("pairs", [1, 2, 5])
@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("memory", [0, 1, 6])
def test_matches_loops(pairs, temperature, memory):
    extra = normal(memory, 3, seed=1, scale=4.0)
    keys = None if memory == 0 else torch.tensor(extra)
    check(
        lambda z: nt_xent(z, temperature, keys),
        lambda z: reference(z, temperature, extra),
        normal(2 * pairs, 3, scale=2.0),
    )


@pytest.mark.parametrize(("pairs", "memory"), [(1, 4), (3, 0), (3, 4)])
def test_decoupled_matches_loops(pairs, memory):
    extra = normal(memory, 3, seed=1)
    keys = None if memory == 0 else torch.tensor(extra)
    check(
        lambda z: nt_xent(z, 0.5, keys, decoupled=True),
        lambda z: reference(z, 0.5, extra, decoupled=True),
        normal(2 * pairs, 3),
    )


def test_decoupled_closed_forms():
    """Perfect pairs of orthogonal images; and equal rows, where only 2N - 2 candidates are left."""
    assert float(nt_xent(orthogonal_pairs(4), 0.5, decoupled=True)) == pytest.approx(math.log(6) - 2, rel=1e-5)
    assert float(nt_xent(torch.ones(12, 5), 0.07, decoupled=True)) == pytest.approx(math.log(10), rel=1e-5)
    with pytest.raises(SemisupError, match="decoupled"):
        nt_xent(torch.ones(2, 5), 0.5, decoupled=True)


def orthogonal_pairs(n: int) -> torch.Tensor:
    """N orthogonal directions, the same in both views."""
    return torch.eye(n).repeat(2, 1)


@pytest.mark.parametrize(("n", "temperature"), [(4, 0.5), (4, 0.1), (16, 1.0)])
def test_perfect_pairs(n, temperature):
    expected = math.log(1 + (2 * n - 2) * math.exp(-1 / temperature))
    assert float(nt_xent(orthogonal_pairs(n), temperature)) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_value_that_tells_whether_self_is_masked():
    value = float(nt_xent(orthogonal_pairs(4), 0.5))
    assert value == pytest.approx(0.594438, abs=1e-6)
    unmasked = reference(orthogonal_pairs(4).double().numpy(), 0.5, mask_self=False)
    assert unmasked == pytest.approx(1.0339, abs=1e-4)
    assert abs(value - unmasked) > 0.4  # so the line above the last would catch it


def test_value_is_not_the_doubled_one_of_the_official_code():
    z = torch.tensor(normal(8, 3))
    unit = F.normalize(z, dim=1)
    similarity = (unit @ unit.T / 0.5).masked_fill(torch.eye(8, dtype=torch.bool), -1e9)
    halves = [F.cross_entropy(similarity[:4], torch.arange(4, 8)), F.cross_entropy(similarity[4:], torch.arange(4))]
    torch.testing.assert_close(nt_xent(z, 0.5), sum(halves) / 2)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_chance_level(temperature):
    chance = math.log(2 * 6 - 1)
    assert float(nt_xent(torch.ones(12, 5), temperature)) == pytest.approx(chance, rel=1e-5)
    assert float(nt_xent(torch.eye(12), temperature)) == pytest.approx(chance, rel=1e-5)
    with_memory = math.log(2 * 6 - 1 + 9)
    assert float(nt_xent(torch.ones(12, 5), temperature, torch.ones(9, 5))) == pytest.approx(with_memory, rel=1e-5)


def test_invariances():
    z, extra = torch.tensor(normal(10, 4)), torch.tensor(normal(3, 4, seed=1))
    value = nt_xent(z, 0.5, extra)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(nt_xent(z[torch.cat([order, order + 5])], 0.5, extra), value)  # pairs permuted
    torch.testing.assert_close(nt_xent(z.roll(5, 0), 0.5, extra), value)  # views swapped
    torch.testing.assert_close(nt_xent(z * torch.arange(1.0, 11.0).unsqueeze(1), 0.5, extra * 7), value)  # rescaled
    rotation, _ = np.linalg.qr(normal(4, 4, seed=2))
    torch.testing.assert_close(nt_xent(z @ torch.tensor(rotation), 0.5, extra @ torch.tensor(rotation)), value)
    broken = torch.cat([z[:5], z[5:][order]])
    assert abs(float(nt_xent(broken, 0.5, extra) - value)) > 1e-3  # permuting one view alone breaks the pairs


def test_rescaling_invariance_means_the_gradient_is_orthogonal_to_each_row():
    z = torch.tensor(normal(8, 4))
    grad = gradient(lambda x: nt_xent(x, 0.2), z)
    assert (grad * z).sum(1).abs().max() < 1e-12
    assert (grad.norm(dim=1) > 1e-3).all()  # both views learn


def test_one_pair_alone_is_zero_with_zero_gradient():
    z = torch.tensor(normal(2, 4)).float()
    assert float(nt_xent(z, 0.1)) == 0.0
    assert torch.equal(gradient(lambda x: nt_xent(x, 0.1), z), torch.zeros(2, 4))


def test_memory_gets_no_gradient_and_is_left_alone():
    z = torch.tensor(normal(4, 3), requires_grad=True)
    memory = torch.tensor(normal(5, 3, seed=1), requires_grad=True)
    before = memory.detach().clone()
    nt_xent(z, 0.5, memory).backward()
    assert memory.grad is None
    assert z.grad is not None
    assert torch.equal(memory, before)


def test_an_empty_memory_is_no_memory():
    z = torch.tensor(normal(4, 3))
    torch.testing.assert_close(nt_xent(z, 0.5, torch.zeros(0, 3)), nt_xent(z, 0.5))


def test_half_precision_embeddings_do_not_overflow():
    z = orthogonal_pairs(4)
    for dtype in (torch.float16, torch.bfloat16):
        value = nt_xent(z.to(dtype), 0.05)
        assert value.dtype == torch.float32
        assert float(value) == pytest.approx(math.log(1 + 6 * math.exp(-20)), abs=1e-6)


def test_autocast_does_not_round_the_similarities():
    z = torch.tensor(normal(64, 16)).float()
    memory = torch.tensor(normal(20, 16, seed=1)).float()
    outside = nt_xent(z, 0.05, memory)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (z @ z.T).dtype == torch.bfloat16  # what would happen
        inside = nt_xent(z, 0.05, memory)
    assert torch.equal(inside, outside)


def test_mistakes_are_named():
    for z in (torch.ones(3, 2), torch.ones(0, 2), torch.ones(4)):
        with pytest.raises(SemisupError, match=r"z must be \(2N, D\), first views stacked on second views"):
            nt_xent(z, 0.5)
    with pytest.raises(SemisupError, match=r"extra_negatives must be \(K, 2\), as wide as z, got shape \(5, 3\)"):
        nt_xent(torch.ones(4, 2), 0.5, torch.ones(5, 3))
    for temperature in (0.0, -0.1, math.nan):
        with pytest.raises(SemisupError, match="temperature must be positive"):
            nt_xent(torch.ones(4, 2), temperature)


def sup_con_loops(z, labels, temperature):
    """Equation 2 of SupCon, one anchor and one positive at a time."""
    losses = []
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        candidates = sum(math.exp(cosine(z[i], z[a]) / temperature) for a in others)
        alike = [a for a in others if labels[a] == labels[i]]
        terms = [math.log(math.exp(cosine(z[i], z[p]) / temperature) / candidates) for p in alike]
        losses.append(-sum(terms) / len(terms) if terms else 0.0)
    return sum(losses) / len(losses)


@pytest.mark.parametrize("labels", [[0, 0], [0, 1, 0, 2, 1, 0], [3, 3, 3, 3], [0, 1, 2]], ids=str)
@pytest.mark.parametrize("temperature", [0.1, 0.7])
def test_sup_con_matches_loops(labels, temperature):
    check(
        lambda z: sup_con(z, torch.tensor(labels), temperature),
        lambda z: sup_con_loops(z, labels, temperature),
        normal(len(labels), 3, scale=2.0),
    )


def test_sup_con_closed_forms():
    """Equal rows: log(N - 1). Two views of each image and no more: NT-Xent. L_in would be lower (Jensen)."""
    assert float(sup_con(torch.ones(6, 4), torch.tensor([0, 0, 1, 1, 2, 2]), 0.1)) == pytest.approx(math.log(5))
    z = torch.tensor(normal(8, 3))
    torch.testing.assert_close(sup_con(z, torch.arange(4).repeat(2), 0.5), nt_xent(z, 0.5))
    assert float(sup_con(z, torch.arange(8), 0.5)) == 0.0
    assert not gradient(lambda z: sup_con(z, torch.arange(8), 0.5), z).any()


@pytest.mark.parametrize(
    ("z", "labels", "temperature"),
    [
        (torch.ones(1, 3), torch.zeros(1), 0.5),
        (torch.ones(4), torch.zeros(4), 0.5),
        (torch.ones(4, 3), torch.zeros(3), 0.5),
        (torch.ones(4, 3), torch.zeros(4), 0.0),
    ],
)
def test_sup_con_refuses(z, labels, temperature):
    with pytest.raises(SemisupError):
        sup_con(z, labels, temperature)


@pytest.mark.parametrize("chunk", [1, 5, 12, 20])
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("memory", [0, 3])
def test_chunks_change_neither_value_nor_gradient(chunk, decoupled, memory):
    z = torch.tensor(normal(12, 4, seed=2))
    keys = torch.tensor(normal(memory, 4, seed=3)) if memory else None
    found = []
    for size in (0, chunk):
        leaf = z.clone().requires_grad_()
        loss = nt_xent(leaf, 0.3, keys, decoupled=decoupled, chunk=size)
        loss.backward()
        found.append((loss.detach(), leaf.grad))
    torch.testing.assert_close(*found)
