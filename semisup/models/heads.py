"""The projection head of contrastive pretraining, of which SimCLRv2 keeps the first layers when fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from semisup.errors import SemisupError

__all__ = ["ProjectionHead", "build_neck"]


class ProjectionHead(nn.Module):
    """`num_layers` blocks of linear and batch norm, each but the last with a bias in its BN and a ReLU.

    Chen et al. 2020 (SimCLRv2), arXiv:2006.10029, and `projection_head` of google-research/simclr: the linear
    layers have no bias, and the last block's BN has a scale but no shift. SimCLRv2 uses three layers with `hidden`
    equal to the backbone's width. Input `(N, in_features)`, output `(N, out_features)`.

    Attributes:
        layers: the blocks; block `i` is `layers[i]`.
        num_features: `out_features`.

    Args:
        in_features: width of the backbone's features.
        hidden: width between the layers.
        out_features: width of the projection, 128 as published.
        num_layers: at least 1.

    Raises:
        SemisupError: a value that is not a positive whole number.
    """

    def __init__(self, in_features: int, hidden: int, out_features: int = 128, num_layers: int = 3) -> None:
        super().__init__()
        if min(hidden, out_features, num_layers) < 1:
            raise SemisupError(f"projection head: needs a layer, each of a width, not {num_layers} of {hidden}")
        self.layers = build_neck(in_features, [hidden] * (num_layers - 1) + [out_features], final=True)
        self.num_features = out_features

    def forward(self, features: Tensor) -> Tensor:
        """Map features `(N, in_features)` to projections `(N, out_features)`."""
        projection: Tensor = self.layers(features)
        return projection

    def truncate(self, n: int) -> nn.Sequential:
        """Return the first `n` blocks (the same modules, not copies); none for 0, all for `num_layers`.

        `n` is `ft_proj_selector` of google-research/simclr: SimCLRv2 keeps 1 block for 1 % and 10 % of the labels.

        Raises:
            SemisupError: `n` is outside `0..num_layers`.
        """
        if not 0 <= n <= len(self.layers):
            raise SemisupError(f"projection head: n must be between 0 and {len(self.layers)}, got {n!r}")
        return nn.Sequential(*list(self.layers)[:n])


def build_neck(in_features: int, widths: Sequence[int], *, final: bool = False) -> nn.Sequential:
    """Build blocks of linear (no bias), BN and ReLU with output widths `widths`; empty gives the identity.

    Args:
        in_features: width of the input.
        widths: output width of each block.
        final: the last block is a projection's last: no shift in its BN and no ReLU.
    """
    neck = nn.Sequential()
    for i, width in enumerate(widths):
        linear = nn.Linear(in_features, width, bias=False)
        bn = nn.BatchNorm1d(width)
        if final and i == len(widths) - 1:
            # BatchNorm1d(bias=False) would say it, but only newer torch knows it.
            bn.register_parameter("bias", None)
            neck.append(nn.Sequential(linear, bn))
        else:
            neck.append(nn.Sequential(linear, bn, nn.ReLU(inplace=True)))
        in_features = width
    return neck
