"""A small vision transformer, whose tokens can be left out or replaced: for masked autoencoders, MaskFeat and DINO."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisup.errors import SemisupError, raise_all
from semisup.options import Count, Depth, Range, check_options

__all__ = [
    "LN_EPS",
    "TransformerBlock",
    "VisionTransformer",
    "check_grid",
    "require_vit",
    "sincos_positions",
    "width_conflicts",
]

GROUPS = 3  # of blocks, each of which gives a map; as many as a WRN has
POSITIONS_STD = 0.02  # of learned positions at the start, as in timm
LN_EPS = 1e-6  # of the layer norms, as in facebookresearch/mae


def width_conflicts(width: int, heads: int) -> Iterator[tuple[str, str]]:
    """Yield why tokens of a width have no sine-cosine positions, or cannot be split between the heads."""
    if width % 4:
        yield "width", f"must be a multiple of 4 (sine and cosine of row and column), not {width}"
    if width % heads:
        yield "width", f"must be a multiple of heads={heads}, not {width}"


def check_grid(height: int, width: int, patch: int) -> list[str]:
    """Complain unless an image of these sides falls into whole patches."""
    if height % patch or width % patch:
        size = f"{height}" if height == width else f"{height} x {width}"
        return [f"patch must divide the side of the images, {size} px, not {patch}"]
    return []


class VisionTransformer(nn.Module):
    """Patches, sine-cosine positions, pre-norm transformer blocks, a layer norm, and the mean over all patches.

    Dosovitskiy et al. 2021, arXiv:2010.11929, with fixed 2-D sine-cosine positions and Glorot-uniform weights as in
    facebookresearch/mae (arXiv:2111.06377). There is no class token: the mean of the patches classifies as well
    (Beyer et al. 2022, arXiv:2205.01580), and is what the convolutional backbones give. Positions count patches from
    the top left corner and are worked out for each image size, so that one set of weights takes all of them. Input
    `(N, in_channels, H, W)`, output `(N, width)`.

    Parameters have timm's names, so that published weights of MAE, DINO and DINOv2 fit the options of their network:
    `class_token: true` and `learned_grid: 14` (MAE, DINO: 224 px in patches of 16; MAE's positions are stored, too) or
    37 (DINOv2: 518 px in patches of 14), `layer_scale: 1` for DINOv2, `mlp_ratio: 4`.

    With the defaults an image of 28 px costs 24 million multiplications, one of 32 px 33 million.

    Attributes:
        num_features: `width`.
        in_channels: as given.
        patch: as given.

    Args:
        patch: side of a patch in pixels; must divide the side of the images. 4 for 28 to 32 px.
        width: of a token; a multiple of 4 and of `heads`.
        depth: number of blocks, at least 3.
        heads: of the attention. A file of weights does not show their number: published networks have 64 numbers a
            head, 6 heads at width 384 and 12 at 768.
        mlp_ratio: width of a block's hidden layer, in token widths. Large transformers have 4, those for small images
            (Hassani et al. 2021, arXiv:2104.05704) 2 or less.
        class_token: one token more, which belongs to no patch.
        learned_grid: patches along a side that learned positions are of; images of another number of patches get
            interpolated ones. None: fixed sine-cosine positions.
        layer_scale: first factor of what each block adds, per channel (Touvron et al. 2021, arXiv:2103.17239); None:
            there are no such factors.
        pool: what the features are: the mean of the patches, or the class token.
        in_channels: 1 for gray images, 3 for color.

    Raises:
        SemisupError: a value out of its range; all of them are listed.
    """

    name = "vit"

    def __init__(
        self,
        patch: Annotated[int, Range(1, 224)] = 4,
        width: Count = 96,
        depth: Annotated[int, Range(GROUPS, 1000)] = 6,
        heads: Depth = 3,
        mlp_ratio: Annotated[float, Range(0, 1000, open_low=True)] = 2.0,
        class_token: bool = False,
        learned_grid: Annotated[int, Range(1, 224)] | None = None,
        layer_scale: Annotated[float, Range(0, 1000, open_low=True)] | None = None,
        pool: Literal["mean", "class"] = "mean",
        *,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        given: dict[str, Any] = {"patch": patch, "width": width, "depth": depth, "heads": heads, "mlp_ratio": mlp_ratio}
        given |= {"class_token": class_token, "learned_grid": learned_grid, "layer_scale": layer_scale, "pool": pool}
        raise_all(check_options(VisionTransformer, given), "model vit")
        self.patch = patch
        self.in_channels = in_channels
        self.num_features = width
        self.pool = pool
        self.patch_embed = _PatchEmbed(in_channels, width, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if class_token else None
        self.pos_embed = None
        if learned_grid is not None:
            self.pos_embed = nn.Parameter(torch.zeros(1, int(class_token) + learned_grid**2, width))
            nn.init.trunc_normal_(self.pos_embed, std=POSITIONS_STD)
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, mlp_ratio, layer_scale) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=LN_EPS)

    @staticmethod
    def conflicts(
        width: int, heads: int, class_token: bool = False, pool: str = "mean", **_: object
    ) -> Iterator[tuple[str, str]]:
        """Yield what is wrong between the options; see `semisup.options.check_options`."""
        yield from width_conflicts(width, heads)
        if pool == "class" and not class_token:
            yield "pool", "'class' needs class_token: true"

    def forward(self, images: Tensor) -> Tensor:
        """Map images `(N, C, H, W)` to features `(N, width)`."""
        if self.pool == "class":
            return self._blocks(images)[-1][:, 0]
        return self.maps(images)[-1].mean(dim=(2, 3))

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return a map `(N, width, H / patch, W / patch)` after each third of the blocks, the last one normalized."""
        extra = int(self.cls_token is not None)
        found = self._blocks(images)
        return [each[:, extra:].transpose(1, 2).unflatten(2, self.grid(images)) for each in found]

    def _blocks(self, images: Tensor) -> list[Tensor]:
        """Tokens after each third of the blocks, the class token first, the last ones normalized."""
        tokens = self.patches(images)
        tokens = self._with_class(tokens + self.positions(images).to(tokens.dtype))
        found = []
        for i, block in enumerate(self.blocks, start=1):
            tokens = block(tokens)
            # As even as can be: 7 blocks are groups of 3, 2 and 2.
            if i * GROUPS // len(self.blocks) > (i - 1) * GROUPS // len(self.blocks):
                found.append(tokens)
        found[-1] = self.norm(found[-1])
        return found

    def _with_class(self, tokens: Tensor) -> Tensor:
        """Put the class token, with its position, before the patches' (N, K, width)."""
        if self.cls_token is None:
            return tokens
        first = self.cls_token if self.pos_embed is None else self.cls_token + self.pos_embed[:, :1]
        return torch.cat([first.to(tokens.dtype).expand(len(tokens), 1, -1), tokens], dim=1)

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Return the rows and columns of patches of images `(N, C, H, W)`.

        Raises:
            SemisupError: a side is not a multiple of `patch`.
        """
        height, width = images.shape[-2:]
        raise_all(check_grid(height, width, self.patch), "model vit")
        return height // self.patch, width // self.patch

    def patches(self, images: Tensor) -> Tensor:
        """Return the patches' embeddings `(N, T, width)`, row by row, without positions."""
        self.grid(images)
        tokens: Tensor = self.patch_embed.proj(images).flatten(2).transpose(1, 2)
        return tokens

    def positions(self, images: Tensor) -> Tensor:
        """Return what is added to the patches of such images, `(T, width)` float32."""
        rows, columns = self.grid(images)
        if self.pos_embed is None:
            return sincos_positions(rows, columns, self.num_features, images.device)
        learned = self.pos_embed[0, int(self.cls_token is not None) :].float()
        side = math.isqrt(len(learned))
        if (rows, columns) == (side, side):
            return learned
        square = learned.T.unflatten(1, (side, side))[None]
        fitted = F.interpolate(square, size=(rows, columns), mode="bicubic", antialias=True, align_corners=False)
        return fitted[0].flatten(1).T

    def encode(self, tokens: Tensor) -> Tensor:
        """Run all blocks and the last norm on tokens `(N, K, width)`, positions included: any K of the patches."""
        tokens = self._with_class(tokens)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.norm(tokens)
        return tokens[:, int(self.cls_token is not None) :]


def require_vit(backbone: nn.Module, method: str) -> VisionTransformer:
    """Return the backbone as what it is, for a method that leaves out or replaces tokens.

    Raises:
        SemisupError: it is another one.
    """
    if not isinstance(backbone, VisionTransformer):
        raise SemisupError(
            f"model: method '{method}' hides patches, for which it needs the backbone 'vit', got "
            f"{type(backbone).__name__}"
        )
    return backbone


class TransformerBlock(nn.Module):
    """`x + attention(norm(x))`, then `x + mlp(norm(x))`, on tokens `(N, T, width)`; no dropout.

    Args:
        width: of a token, a multiple of `heads`.
        heads: of the attention.
        mlp_ratio: width of the hidden layer over `width`.
        layer_scale: first factor of both terms that are added, per channel; None: they have none.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float, layer_scale: float | None = None) -> None:
        super().__init__()
        hidden = max(1, round(mlp_ratio * width))
        self.norm1 = nn.LayerNorm(width, eps=LN_EPS)
        self.attn = _Attention(width, heads)
        self.ls1 = nn.Identity() if layer_scale is None else _LayerScale(width, layer_scale)
        self.norm2 = nn.LayerNorm(width, eps=LN_EPS)
        self.mlp = _Mlp(width, hidden)
        self.ls2 = nn.Identity() if layer_scale is None else _LayerScale(width, layer_scale)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens `(N, T, width)` to as many."""
        tokens = tokens + self.ls1(self.attn(self.norm1(tokens)))
        mixed: Tensor = tokens + self.ls2(self.mlp(self.norm2(tokens)))
        return mixed


class _PatchEmbed(nn.Module):
    """Patches to tokens; the module gives the convolution timm's name."""

    def __init__(self, in_channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, patch, stride=patch)
        nn.init.xavier_uniform_(self.proj.weight.flatten(1))  # the same memory: drawn as a linear layer's
        nn.init.zeros_(self.proj.bias)  # type: ignore[arg-type]


class _Attention(nn.Module):
    """Multi-head self-attention on tokens `(N, T, width)`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = _linear(width, 3 * width)
        self.proj = _linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended: Tensor = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return attended


class _Mlp(nn.Module):
    """Linear, GELU, linear on tokens `(N, T, width)`."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = _linear(width, hidden)
        self.fc2 = _linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        mixed: Tensor = self.fc2(F.gelu(self.fc1(tokens)))
        return mixed


class _LayerScale(nn.Module):
    """A factor for each channel."""

    def __init__(self, width: int, first: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), first))

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens * self.gamma


def sincos_positions(rows: int, columns: int, features: int, device: torch.device) -> Tensor:
    """Return fixed positions `(rows * columns, features)` in [-1, 1], row by row.

    A quarter of the features each: sine of the row, cosine of the row, sine and cosine of the column, at wavelengths
    from 2 pi to 20,000 pi (`util/pos_embed.py` of facebookresearch/mae, after MoCo v3, which put columns first).

    Args:
        rows: of patches.
        columns: of patches.
        features: a multiple of 4.
        device: of the result.
    """
    count = features // 4
    frequencies = 10_000.0 ** -(torch.arange(count, device=device, dtype=torch.float32) / count)

    def waves(places: int) -> Tensor:
        angles = torch.arange(places, device=device, dtype=torch.float32)[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    row = waves(rows)[:, None].expand(rows, columns, 2 * count)
    column = waves(columns)[None].expand(rows, columns, 2 * count)
    return torch.cat([row, column], dim=2).flatten(0, 1)


def _linear(c_in: int, c_out: int) -> nn.Linear:
    linear = nn.Linear(c_in, c_out)
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
