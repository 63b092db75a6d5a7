"""MixUp and CutMix: what is drawn, and the mixtures against loops and torchvision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from semisup.augment.mixing import cut, draw_cutting, draw_mixing, mix

CPU = torch.device("cpu")


def drawn(count: int, alpha: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    return draw_mixing(count, alpha, CPU)


@pytest.mark.parametrize("shape", [(6, 3, 4, 4), (6, 5), (1, 2)])
def test_mix_matches_loops(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    partners, shares = drawn(shape[0], 0.75)
    got = mix(x, partners, shares)
    for i in range(shape[0]):
        share, other = float(shares[i]), x[int(partners[i])]
        torch.testing.assert_close(got[i], share * x[i] + (1 - share) * other)


def test_mix_leaves_its_input_and_keeps_dtype() -> None:
    x = torch.randn(4, 1, 2, 2, dtype=torch.float64)
    before = x.clone()
    partners, shares = drawn(4, 0.75)
    assert mix(x, partners, shares).dtype == torch.float64
    assert torch.equal(x, before)


def test_share_1_is_the_image_and_share_0_its_partner() -> None:
    x = torch.randn(5, 3)
    partners = torch.tensor([1, 2, 3, 4, 0])
    torch.testing.assert_close(mix(x, partners, torch.ones(5)), x)
    torch.testing.assert_close(mix(x, partners, torch.zeros(5)), x.roll(-1, 0))


def test_mixed_targets_sum_to_one() -> None:
    partners, shares = drawn(50, 0.75)
    targets = torch.randn(50, 4).softmax(1)
    torch.testing.assert_close(mix(targets, partners, shares).sum(1), torch.ones(50))


def test_one_share_for_all_keeps_the_batch_mean() -> None:
    x = torch.randn(9, 3)
    partners, _ = drawn(9, 0.75)
    torch.testing.assert_close(mix(x, partners, torch.full((9,), 0.7)).mean(0), x.mean(0))


def test_partners_are_a_permutation() -> None:
    partners, _ = drawn(40, 0.75)
    assert partners.dtype == torch.int64
    assert sorted(partners.tolist()) == list(range(40))
    assert partners.tolist() != list(range(40))


@pytest.mark.parametrize(("alpha", "mean"), [(0.75, 0.778), (0.5, 0.818), (1.0, 0.75), (50.0, 0.540)])
def test_shares_have_the_mean_of_the_larger_part_of_a_beta(alpha: float, mean: float) -> None:
    _, shares = drawn(40_000, alpha)
    assert 0.5 <= float(shares.min()) < 0.51
    assert float(shares.max()) <= 1
    assert float(shares.mean()) == pytest.approx(mean, abs=0.004)


def test_every_image_has_a_share_of_its_own() -> None:
    _, shares = drawn(20, 0.75)
    assert len(set(shares.tolist())) == 20


@pytest.mark.parametrize("alpha", [0.2, 0.75, 2.0])
def test_shares_are_distributed_as_torch_s_beta(alpha: float) -> None:
    _, shares = drawn(40_000, alpha)
    lam = torch.distributions.Beta(alpha, alpha).sample((40_000,))
    levels = torch.linspace(0.05, 0.95, 19)
    torch.testing.assert_close(
        shares.quantile(levels), torch.maximum(lam, 1 - lam).quantile(levels), rtol=0, atol=0.012
    )


@pytest.mark.parametrize("alpha", [1e-4, 0.01])
def test_tiny_alpha_hardly_mixes(alpha: float) -> None:
    """torch's own Beta gives halves here: both of its gamma draws are 0."""
    _, shares = drawn(10_000, alpha)
    assert bool(shares.isfinite().all())
    assert float(shares.mean()) > 0.98


def test_alpha_0_mixes_nothing() -> None:
    assert torch.equal(drawn(7, 0.0)[1], torch.ones(7))


def test_draws_follow_the_global_seed() -> None:
    assert all(torch.equal(a, b) for a, b in zip(drawn(20, 0.75, 3), drawn(20, 0.75, 3), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(drawn(20, 0.75, 3), drawn(20, 0.75, 4), strict=True))


def test_runs_on_meta() -> None:
    partners, shares = draw_mixing(6, 0.75, torch.device("meta"))
    assert mix(torch.empty(6, 3, 8, 8, device="meta"), partners, shares).shape == (6, 3, 8, 8)


# CutMix --------------------------------------------------------------------------------------------------------------


def test_cut_matches_loops() -> None:
    torch.manual_seed(3)
    x = torch.randn(20, 3, 9, 7)
    before = x.clone()
    partners, boxes, shares = draw_cutting(20, 1.0, (9, 7), CPU)
    got = cut(x, partners, boxes)
    for n in range(20):
        top, left, bottom, right = boxes[n].tolist()
        assert 0 <= top <= bottom <= 9 and 0 <= left <= right <= 7
        own = 0
        for i in range(9):
            for j in range(7):
                inside = top <= i < bottom and left <= j < right
                own += not inside
                assert torch.equal(got[n, :, i, j], (x[partners[n]] if inside else x[n])[:, i, j])
        assert shares[n].item() == pytest.approx(own / 63)
    assert torch.equal(x, before)
    assert len(set(shares.tolist())) > 10  # a box for each image


def test_cut_and_shares_are_those_of_torchvision() -> None:
    images, labels = torch.rand(6, 3, 16, 12), torch.arange(6)
    theirs = v2.CutMix(num_classes=6, alpha=1.0)
    for seed in range(20):
        torch.manual_seed(seed)
        params = theirs.make_params([images])
        torch.manual_seed(seed)
        theirs_images, theirs_targets = theirs(images, labels)
        left, top, right, bottom = params["box"]
        boxes = torch.tensor([[top, left, bottom, right]]).repeat(6, 1)
        partners = torch.arange(6).roll(1)
        assert torch.equal(cut(images, partners, boxes), theirs_images)
        share = 1 - (bottom - top) * (right - left) / (16 * 12)
        assert share == pytest.approx(params["lam_adjusted"])
        torch.testing.assert_close(mix(torch.eye(6), partners, torch.full((6,), share)), theirs_targets)


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_shares_are_distributed_as_published(alpha: float) -> None:
    torch.manual_seed(0)
    partners, boxes, shares = draw_cutting(20_000, alpha, (32, 32), CPU)
    assert sorted(partners.tolist()) == list(range(20_000))
    rng = np.random.default_rng(0)
    kept = rng.beta(alpha, alpha, 200_000)
    side = (32 * np.sqrt(1 - kept)).astype(int)
    extents = []
    for _ in range(2):
        center = rng.integers(0, 32, 200_000)
        extents.append(np.clip(center + side // 2, 0, 32) - np.clip(center - side // 2, 0, 32))
    expected = 1 - extents[0] * extents[1] / 32**2
    for quantile in (0.1, 0.25, 0.5, 0.75, 0.9):
        assert shares.quantile(quantile).item() == pytest.approx(np.quantile(expected, quantile), abs=0.02)
    inside = boxes[(boxes[:, 2] - boxes[:, 0] == 8) & (boxes[:, 0] > 0) & (boxes[:, 2] < 32)]
    middle = (inside[:, 0] + inside[:, 2]).float().mean() / 2
    assert middle.item() == pytest.approx(16, abs=1.5)


def test_without_alpha_nothing_is_cut() -> None:
    x = torch.rand(5, 1, 8, 8)
    partners, boxes, shares = draw_cutting(5, 0.0, (8, 8), CPU)
    assert torch.equal(cut(x, partners, boxes), x)
    assert torch.equal(shares, torch.ones(5))


def test_cutting_runs_on_meta() -> None:
    partners, boxes, shares = draw_cutting(5, 1.0, (8, 8), torch.device("meta"))
    assert cut(torch.empty(5, 1, 8, 8, device="meta"), partners, boxes).is_meta and shares.is_meta
