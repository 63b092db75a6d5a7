"""Patches: their order, and what is drawn to hide."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from semisup.augment.pretext.patches import hide_blocks, join_patches, random_order, split_patches

CPU = torch.device("cpu")


def test_patches_are_cut_row_by_row_with_channels_last() -> None:
    images = torch.randn(2, 3, 4, 6)
    patches = split_patches(images, 2)
    assert patches.shape == (2, 6, 12)
    for n in range(2):
        for t in range(6):
            i, j = 2 * (t // 3), 2 * (t % 3)
            wanted = [images[n, c, i + a, j + b] for a in range(2) for b in range(2) for c in range(3)]
            assert torch.equal(patches[n, t], torch.stack(wanted))


def test_joining_undoes_splitting() -> None:
    images = torch.randn(2, 3, 4, 6)
    assert torch.equal(join_patches(split_patches(images, 2), 2, 3, 3), images)
    assert torch.equal(join_patches(split_patches(images[:, :1], 1), 4, 6, 1), images[:, :1])


def test_random_order_is_a_permutation_of_its_own_for_each_image() -> None:
    torch.manual_seed(0)
    order = random_order(50, 9, CPU)
    assert torch.equal(order.sort(dim=1).values, torch.arange(9).expand(50, 9))
    assert len({tuple(row) for row in order.tolist()}) > 45
    # Undone by its own argsort, as the decoder of a masked autoencoder needs it.
    x = torch.randn(50, 9)
    assert torch.equal(x.gather(1, order).gather(1, order.argsort(dim=1)), x)
    counts = F.one_hot(random_order(9000, 9, CPU)[:, 0], 9).sum(0)
    assert float((counts - 1000).abs().max()) < 150  # 5 stds


@pytest.mark.parametrize(
    ("rows", "columns", "hidden", "smallest"),
    [(14, 14, 78, 15), (7, 7, 20, 4), (2, 2, 1, 1), (3, 5, 15, 2), (4, 4, 3, 9), (7, 7, 0, 1)],
)
def test_blocks_hide_exactly_as_many_patches_in_every_image(
    rows: int, columns: int, hidden: int, smallest: int
) -> None:
    torch.manual_seed(0)
    mask = hide_blocks(200, rows, columns, hidden, smallest, CPU)
    assert mask.shape == (200, rows * columns)
    assert mask.dtype == torch.bool
    assert (mask.sum(1) == hidden).all()


def test_hidden_patches_come_in_blocks_everywhere() -> None:
    torch.manual_seed(0)
    mask = hide_blocks(2000, 14, 14, 78, 15, CPU).view(2000, 14, 14)

    def neighbors(mask: torch.Tensor) -> float:
        """Part of the hidden patches whose right neighbor is hidden too."""
        return float((mask[:, :, :-1] & mask[:, :, 1:]).sum() / mask[:, :, :-1].sum())

    single = torch.rand(2000, 196).argsort(1).argsort(1).view(2000, 14, 14) < 78
    assert neighbors(single) == pytest.approx(0.4, abs=0.02)
    assert neighbors(mask) > 0.7
    assert len({tuple(row) for row in mask.flatten(1).tolist()}) > 1900
    often = mask.float().mean(0)  # corners rarely, since blocks lie inside of the image
    assert float(often.min()) > 0.03
    assert float(often.max()) < 0.8
    # Neither direction is preferred.
    assert neighbors(mask) == pytest.approx(neighbors(mask.transpose(1, 2)), abs=0.01)


def test_meta_device() -> None:
    meta = torch.device("meta")
    assert hide_blocks(5, 7, 7, 20, 4, meta).shape == (5, 49)
    assert random_order(5, 49, meta).is_meta
