"""Image operations on a batch, each image with parameters of its own.

Every function takes `images` of shape (N, C, H, W), floating point in [0, 1], and per-image parameters as tensors of
length N on the same device, and returns a new tensor of the same dtype in [0, 1]. Nothing here draws a random number,
loops over images or waits for the device. Meaning and scale of a factor are those of PIL and torchvision, to within
the rounding that PIL does to whole gray levels; where these two differ, the docstring says which is followed.

Work on contiguous images where there is a choice: with the channels side by side (channels_last) most operations are 2
to 10 times slower, and turning a batch around costs less than one of them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "affine",
    "autocontrast",
    "blur",
    "brightness",
    "color",
    "compose",
    "contrast",
    "cutout",
    "equalize",
    "gaussian_blur",
    "grayscale",
    "hue",
    "invert",
    "posterize",
    "resized_crop",
    "rotate90",
    "rotation",
    "saturation",
    "sharpness",
    "shear_x",
    "shear_y",
    "solarize",
    "translate_reflect",
    "translation",
    "zoom",
]

# Geometry that moves whole pixels ------------------------------------------------------------------------------------


def translate_reflect(images: Tensor, shifts: Tensor, flips: Tensor | None = None) -> Tensor:
    """Move every image by whole pixels; what enters from outside is its mirror image (numpy's and torch's "reflect").

    This is the same as padding by reflection and cropping at a random place, without the padded copy.

    Args:
        images: (N, C, H, W).
        shifts: (N, 2) integers, pixels (down, right), absolute value below (H, W).
        flips: (N,) bool or None: mirror these images after moving them, in the same pass.
    """
    height, width = images.shape[-2:]
    rows = _reflect(torch.arange(height, device=images.device) - shifts[:, :1], height)
    columns = torch.arange(width, device=images.device) if flips is None else _columns(width, flips)
    return _take_pixels(images, rows, _reflect(columns - shifts[:, 1:], width))


def rotate90(images: Tensor, quarters: Tensor) -> Tensor:
    """Turn every image counter-clockwise by a number of quarter turns, exactly (as `torch.rot90`).

    Args:
        images: (N, C, H, W) with H == W.
        quarters: (N,) integers; any value, taken modulo 4.

    Raises:
        ValueError: the images are not square.
    """
    height, width = images.shape[-2:]
    if height != width:
        raise ValueError(f"rotate90 needs square images, got {height} x {width}")
    pixels = torch.arange(height * width, device=images.device).view(height, width)
    table = torch.stack([torch.rot90(pixels, turns) for turns in range(4)]).view(4, -1)
    return _take_flat(images, table[quarters.long() % 4]).view(images.shape)


def cutout(images: Tensor, centers: Tensor, size: int | Tensor, fill: float | Tensor = 0.5) -> Tensor:
    """Paint a square of every image; the part of it beyond the border is lost.

    T. DeVries and G. Taylor, arXiv:1708.04552. With centers uniform over all pixels and `size` half the side, 19.1 %
    of the image is painted on average.

    Args:
        images: (N, C, H, W).
        centers: (N, 2) integers, (row, column) of the square's center; rows row - size // 2 and the next `size` - 1.
        size: side of the square in whole pixels; one for all, or (N,).
        fill: paint, a number or a (C,) tensor on the images' device.
    """
    height, width = images.shape[-2:]
    if isinstance(size, Tensor):
        size = size.view(-1, 1)
    down = torch.arange(height, device=images.device) - (centers[:, :1] - size // 2)
    right = torch.arange(width, device=images.device) - (centers[:, 1:] - size // 2)
    rows = ((down >= 0) & (down < size)).to(images.dtype)
    columns = ((right >= 0) & (right < size)).to(images.dtype)
    # Weights 0 and 1 are exact, and on a CPU take a third of the time of torch.where, which is not vectorized.
    painted = (rows[:, :, None] * columns[:, None, :])[:, None]
    color = fill.view(1, -1, 1, 1) if isinstance(fill, Tensor) else fill
    return images * (1 - painted) + painted * color


def _columns(width: int, flips: Tensor) -> Tensor:
    """(N, W) column to read for each column written: 0..W-1, or W-1..0 where the flag is set."""
    columns = torch.arange(width, device=flips.device)
    return torch.where(flips[:, None], width - 1 - columns, columns)


def _reflect(index: Tensor, length: int) -> Tensor:
    """Fold indices in (-length, 2 length - 1) back into [0, length), not repeating the border."""
    return (length - 1) - ((length - 1) - index.abs()).abs()


def _take_pixels(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """out[n, :, i, j] = images[n, :, rows[n, i], columns[n, j]] for rows (N, H') and columns (N, W')."""
    taken = _take_flat(images, (rows[:, :, None] * images.shape[-1] + columns[:, None, :]).flatten(1))
    return taken.view(*images.shape[:2], rows.shape[1], columns.shape[1])


def _take_flat(images: Tensor, index: Tensor) -> Tensor:
    """(N, C, P): the pixel `index[n, p]`, counted row by row, of every channel of image n."""
    return images.flatten(2).gather(2, index[:, None, :].expand(-1, images.shape[1], -1))


# Geometry that resamples ---------------------------------------------------------------------------------------------


def resized_crop(images: Tensor, boxes: Tensor, size: tuple[int, int], flips: Tensor | None = None) -> Tensor:
    """Cut a box out of every image and stretch it to `size`, bilinearly, as torchvision does without antialiasing.

    Args:
        images: (N, C, H, W).
        boxes: (N, 4) pixels (top, left, height, width), fractions allowed, inside the image, at least one pixel high
            and wide. Only pixels inside the box are used, as if it had been cut out first.
        size: (height, width) of the result.
        flips: (N,) bool or None: mirror these images afterwards, in the same pass.
    """
    top, left, high, wide = boxes.to(images.dtype).split(1, dim=1)
    rows = _crop_positions(top, high, size[0], images.shape[2])
    columns = _crop_positions(left, wide, size[1], images.shape[3])
    if flips is not None:
        columns = columns.gather(1, _columns(size[1], flips))
    grid = torch.stack(torch.broadcast_tensors(columns[:, None, :], rows[:, :, None]), dim=-1)
    return _sample(images, grid)


def _crop_positions(start: Tensor, extent: Tensor, count: int, length: int) -> Tensor:
    """(N, count) positions in grid_sample's units, of `count` equal cells of [start, start + extent), both (N, 1)."""
    cells = (torch.arange(count, device=start.device, dtype=start.dtype) + 0.5) / count
    positions = (cells * extent).clamp_min(0.5).minimum(extent - 0.5) + start
    return positions * (2 / length) - 1


def affine(images: Tensor, matrices: Tensor, fill: float | Tensor = 0.0) -> Tensor:
    """Resample every image once, bilinearly, at the places that its matrix names.

    Args:
        images: (N, C, H, W).
        matrices: (N, 2, 3), from a place (x, y, 1) in the result to the place (x, y) in the image that is read there;
            both run from -1 (left, top edge) to 1 (right, bottom edge).
        fill: color outside the image, a number or a (C,) tensor on the images' device; pixels at the border are a
            mixture by the area read from either side (torchvision weights the border twice, and darkens it).
    """
    height, width = images.shape[-2:]
    matrices = matrices.to(images.dtype)
    x = _cell_centers(width, images)[None, None, :, None]
    y = _cell_centers(height, images)[None, :, None, None]
    # (N, 1, W, 2) + (N, H, 1, 2): one pass over the grid; F.affine_grid multiplies 3-vectors and takes 3x as long.
    grid = x * matrices[:, None, None, :, 0] + (y * matrices[:, None, None, :, 1] + matrices[:, None, None, :, 2])
    if isinstance(fill, Tensor):
        fill = fill.view(1, -1, 1, 1)
    elif fill == 0.0:
        return _sample(images, grid)
    return (_sample(images - fill, grid, clamp=False) + fill).clamp_(0, 1)  # outside is 0 to grid_sample


def _cell_centers(length: int, like: Tensor) -> Tensor:
    """(length,) pixel centers between -1 and 1."""
    return (torch.arange(length, device=like.device, dtype=like.dtype) + 0.5) * (2 / length) - 1


def _sample(images: Tensor, grid: Tensor, clamp: bool = True) -> Tensor:
    """Bilinear reading with zeros outside; `clamp` takes off the last bit by which weights may sum above one."""
    out = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return out.clamp_(0, 1) if clamp else out


def rotation(degrees: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, 2, 3) matrices for `affine` that turn the content counter-clockwise about the image's center.

    Args:
        degrees: (N,) angles.
        size: (H, W), needed because a turn is rigid in pixels, not in coordinates from -1 to 1.
    """
    radians = torch.deg2rad(degrees)
    cos, sin, zero = radians.cos(), radians.sin(), torch.zeros_like(radians)
    height, width = size
    return _matrix(cos, -sin * (height / width), zero, sin * (width / height), cos, zero)


def shear_x(factors: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, 2, 3) matrices that read pixel (x + factor * y, y), from the top left corner (PIL's AFFINE; FixMatch).

    Args:
        factors: (N,) pixels to the side per pixel down.
        size: (H, W).
    """
    slope, one, zero = factors * (size[0] / size[1]), torch.ones_like(factors), torch.zeros_like(factors)
    return _matrix(one, slope, slope, zero, one, zero)


def shear_y(factors: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, 2, 3) matrices that read pixel (x, y + factor * x), from the top left corner (PIL's AFFINE; FixMatch).

    Args:
        factors: (N,) pixels down per pixel to the side.
        size: (H, W).
    """
    slope, one, zero = factors * (size[1] / size[0]), torch.ones_like(factors), torch.zeros_like(factors)
    return _matrix(one, zero, zero, slope, one, slope)


def translation(right: Tensor, down: Tensor) -> Tensor:
    """(N, 2, 3) matrices that move the content.

    Args:
        right: (N,) fractions of the width.
        down: (N,) fractions of the height.
    """
    one, zero = torch.ones_like(right), torch.zeros_like(right)
    return _matrix(one, zero, -2 * right, zero, one, -2 * down)


def zoom(factors: Tensor) -> Tensor:
    """(N, 2, 3) matrices that enlarge the content about the image's center, by (N,) factors > 0; 1 changes nothing."""
    scale, zero = 1 / factors, torch.zeros_like(factors)
    return _matrix(scale, zero, zero, zero, scale, zero)


def compose(first: Tensor, second: Tensor) -> Tensor:
    """(N, 2, 3) matrices that do what `first` and then `second` would do to an image, in one resampling.

    What `first` pushes out of the frame can come back with `second`, which two resamplings would have lost.
    """
    linear = first[:, :, :2] @ second
    return torch.cat([linear[:, :, :2], linear[:, :, 2:] + first[:, :, 2:]], dim=2)


def _matrix(*entries: Tensor) -> Tensor:
    """Six (N,) tensors, row by row, as (N, 2, 3)."""
    return torch.stack(entries, dim=1).view(-1, 2, 3)


# Light and color ----------------------------------------------------------------------------------------------------


def brightness(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply by (N,) factors >= 0: 0 is black, 1 changes nothing."""
    return (images * _each(factors, images)).clamp_(0, 1)


def contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Move away from (or towards) the image's mean gray by (N,) factors >= 0: 0 is that gray, 1 changes nothing."""
    return _blend(_luma(images).mean(dim=(2, 3), keepdim=True), images, factors)


def saturation(images: Tensor, factors: Tensor) -> Tensor:
    """Move away from (or towards) the gray image by (N,) factors >= 0: 0 is gray, 1 changes nothing.

    One-channel images are returned as they are.
    """
    return images if images.shape[1] == 1 else _blend(_luma(images), images, factors)


color = saturation  # RandAugment's name for it, after PIL's ImageEnhance.Color


def hue(images: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue (of HSV) by (N,) fractions of the color circle, torchvision's range being [-0.5, 0.5].

    One-channel images are returned as they are.
    """
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, dim=1)
    top = images.amax(1, keepdim=True)
    chroma = top - images.amin(1, keepdim=True)
    scale = 1 / chroma.clamp_min(1e-12)  # gray pixels: any hue will do, their chroma of 0 keeps them gray below
    # Which channel is the brightest, as 1 or 0: lerp with these is torch.where, exactly, in a tenth of its time.
    is_red, is_green = (1 - (top - channel).sign_() for channel in (red, green))
    sixths = ((red - green).mul_(scale)).add_(4)
    sixths.lerp_((blue - red).mul_(scale).add_(2), is_green).lerp_((green - blue).mul_(scale), is_red)
    turned = sixths.div_(6).add_(_each(turns, images))
    sixths = (turned - turned.floor()).mul_(6)
    # HSV back to RGB without cases: each channel is a trapezoid over the circle, between V - chroma and V.
    shares = torch.cat([(sixths - 3).abs_() - 1, 2 - (sixths - 2).abs_(), 2 - (sixths - 4).abs_()], dim=1)
    return torch.addcmul(top - chroma, shares.clamp_(0, 1), chroma).clamp_(0, 1)


def grayscale(images: Tensor) -> Tensor:
    """Replace every channel by the luma (ITU-R 601). One-channel images are returned as they are."""
    return _luma(images).expand_as(images)


def invert(images: Tensor) -> Tensor:
    """Return the negative, 1 - x."""
    return 1 - images


def solarize(images: Tensor, thresholds: Tensor) -> Tensor:
    """Invert the values at or above the image's threshold: (N,), in [0, 1]; above 1 changes nothing."""
    return torch.where(images >= _each(thresholds, images), 1 - images, images)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the highest (N,) `bits`, 1 to 8, of each value's eight bits, as PIL does (values become whole 1/255)."""
    step = torch.exp2(8 - _each(bits, images))
    return (images * 255).round_().div_(step).floor_().mul_(step).div_(255)


def autocontrast(images: Tensor) -> Tensor:
    """Stretch every channel to the full range [0, 1]; a channel of one value stays as it is."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    flat = high <= low
    low = torch.where(flat, 0, low)
    return ((images - low) / torch.where(flat, 1, high - low)).clamp_(0, 1)


def equalize(images: Tensor) -> Tensor:
    """Flatten the histogram of every channel over 256 gray levels, with PIL's integer arithmetic exactly."""
    count, channels, height, width = images.shape
    levels = (images * 255).round_().long().reshape(count * channels, height * width)
    # Counts are whole numbers below 2^24, exact in float32; adding ones is therefore free of order, on a GPU too. There
    # `deterministic: true` refuses a running sum of floats all the same, hence that of whole numbers.
    ones = torch.ones((), device=images.device).expand_as(levels)
    histogram = torch.zeros(len(levels), 256, device=images.device).scatter_add_(1, levels, ones)
    upto = histogram.long().cumsum(1).float()
    brightest = histogram.gather(1, levels.amax(1, keepdim=True))
    step = ((height * width - brightest) / 255).floor_()
    table = ((upto - histogram + (step / 2).floor_()) / step.clamp_min(1)).floor_().clamp_max_(255)
    table = torch.where(step > 0, table, torch.arange(256, device=images.device))
    return table.gather(1, levels).div_(255).to(images.dtype).view(images.shape)


def sharpness(images: Tensor, factors: Tensor) -> Tensor:
    """Move away from (or towards) a smoothed image by (N,) factors >= 0: 0 is smooth, 1 changes nothing.

    The smoothing is PIL's SMOOTH: weights 5 in the middle, 1 around, over 13; the border pixels stay as they are.
    """
    width = images.shape[3]
    # Whole planes as rows, which is vectorized: 6 times as fast as picture by picture. Sums across the edge are wrong,
    # and are those of the border.
    planes = images.flatten(2)[:, :, None]  # (N, C, 1, H W)
    three = planes[..., : -2 * width] + planes[..., width:-width] + planes[..., 2 * width :]
    nine = three[..., :-2] + three[..., 1:-1] + three[..., 2:]
    inner = planes[..., width + 1 : -width - 1]
    out = images.clone(memory_format=torch.contiguous_format)
    out.flatten(2)[:, :, None, width + 1 : -width - 1] = _blend((nine + 4 * inner) / 13, inner, factors)
    out[..., 0] = images[..., 0]
    out[..., -1] = images[..., -1]
    return out


def blur(images: Tensor) -> Tensor:
    """Replace every pixel by the mean of the 16 at a distance of two (rows or columns), as PIL's BLUR.

    The two outermost rows and columns stay as they are.
    """
    out = images.clone()
    if min(images.shape[2:]) < 5:
        return out
    box5 = F.avg_pool2d(images, 5, stride=1, divisor_override=1)
    box3 = F.avg_pool2d(images[:, :, 1:-1, 1:-1], 3, stride=1, divisor_override=1)
    out[:, :, 2:-2, 2:-2] = ((box5 - box3) / 16).clamp_(0, 1)
    return out


def gaussian_blur(images: Tensor, sigmas: Tensor, size: int) -> Tensor:
    """Blur by a Gaussian, cut off at `size` taps and reflected at the border, as torchvision's `gaussian_blur`.

    Args:
        images: (N, C, H, W).
        sigmas: (N,) standard deviations in pixels, above 0.
        size: taps along each axis; odd, and size // 2 below H and W.

    Raises:
        ValueError: `size` is even or too large for the image.
    """
    count, channels, height, width = images.shape
    half = size // 2
    if size % 2 == 0 or half >= min(height, width):
        raise ValueError(f"gaussian_blur needs an odd size below {2 * min(height, width)}, got {size}")
    if count * channels == 1:
        # torch would add up a single plane in another order: an image would depend on how many others are blurred.
        return gaussian_blur(images.expand(2, -1, -1, -1), sigmas.expand(2), size)[:1]
    taps = torch.arange(-half, half + 1, device=images.device, dtype=images.dtype)
    weights = torch.softmax(-0.5 * (taps / sigmas.to(images.dtype)[:, None]) ** 2, dim=1)
    weights = weights.repeat_interleave(channels, 0)
    planes = F.pad(images.reshape(1, count * channels, height, width), (half, half, half, half), mode="reflect")
    planes = F.conv2d(planes, weights[:, None, :, None], groups=count * channels)
    planes = F.conv2d(planes, weights[:, None, None, :], groups=count * channels)
    return planes.view(images.shape).clamp_(0, 1)


def _each(values: Tensor, images: Tensor) -> Tensor:
    """(N,) values as (N, 1, 1, 1) in the images' dtype."""
    return values.to(images.dtype).view(-1, 1, 1, 1)


def _luma(images: Tensor) -> Tensor:
    """(N, 1, H, W) brightness as the eye sees it: 0.299 R + 0.587 G + 0.114 B; one channel is its own luma."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, dim=1)
    luma: Tensor = 0.299 * red + 0.587 * green + 0.114 * blue
    return luma


def _blend(base: Tensor, images: Tensor, factors: Tensor) -> Tensor:
    """Return base + factor * (images - base), clipped."""
    return torch.lerp(base.expand_as(images), images, _each(factors, images)).clamp_(0, 1)
