"""Multi-crop: two large views of an image and any number of small ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["crop_views", "features_of_crops"]


def crop_views(first: str, second: str, local: str, small: int) -> dict[str, str]:
    """View -> policy: `first` and `second`, then `small` views `local_1`, `local_2`, ... of one policy."""
    return {"first": first, "second": second} | {f"local_{i + 1}": local for i in range(small)}


def features_of_crops(backbone: nn.Module, images: Sequence[Tensor]) -> Tensor:
    """(V N, width) features of V views, one forward for the large ones and one for the others.

    As published (facebookresearch/swav and dino), so that BatchNorm sees large and small pictures apart.

    Args:
        backbone: images to features.
        images: the views in the order of `crop_views`, (N, C, H, W) each; sizes may differ after the second.
    """
    features = [backbone(torch.cat(list(part))) for part in (images[:2], images[2:]) if part]
    return torch.cat(features)
