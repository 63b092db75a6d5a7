"""MixUp: what is drawn, and the mixture against loops."""

from __future__ import annotations

import pytest
import torch

from semisup.augment.mixing import draw_mixing, mix

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
