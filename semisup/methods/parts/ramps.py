"""How a weight grows to 1 over a run or its first part."""

from __future__ import annotations

import math

from semisup.methods.base import Progress

__all__ = ["cosine_ramp", "cosine_to_one", "gaussian_ramp", "linear_ramp"]


def linear_ramp(progress: Progress, length: float, start: float = 0.0) -> float:
    """Return 0 up to `start`, then a straight line that reaches 1 at `start + length`.

    Pseudo-Label (Lee 2013, eq. 16); google-research/fixmatch ramps all its older methods so, over 0.4 of the run.

    Args:
        progress: where the run stands.
        length: part of the run that the rise takes, in [0, 1]; 0 jumps to 1.
        start: part of the run before the rise, in [0, 1].
    """
    done = progress.fraction - start
    if done < 0:
        return 0.0
    return min(done / length, 1.0) if length else 1.0


def gaussian_ramp(progress: Progress, length: float) -> float:
    """Return `exp(-5 (1 - t)^2)` for t from 0 to 1: 0.0067 at the start, 0.2865 half-way up, then 1.

    Laine & Aila 2017, arXiv:1610.02242; also called the sigmoid ramp.

    Args:
        progress: where the run stands.
        length: part of the run over which t goes from 0 to 1, in [0, 1]; 0 jumps to 1.
    """
    return math.exp(-5 * (1 - linear_ramp(progress, length)) ** 2)


def cosine_ramp(progress: Progress, length: float) -> float:
    """Return `(1 - cos(pi t)) / 2` for t from 0 to 1: 0 at the start, 1/2 half-way up, then 1 (AdaMatch, eq. 7).

    Args:
        progress: where the run stands.
        length: part of the run over which t goes from 0 to 1, in [0, 1]; 0 jumps to 1.
    """
    return (1 - math.cos(math.pi * linear_ramp(progress, length))) / 2


def cosine_to_one(progress: Progress, start: float) -> float:
    """Return `1 - (1 - start) (1 + cos(pi t)) / 2`: from `start` to 1 over the whole run t, fastest half-way.

    The momentum of the teachers of BYOL (arXiv:2006.07733, sec. 3.2) and DINO (arXiv:2104.14294).

    Args:
        progress: where the run stands.
        start: the first value.
    """
    return 1 - (1 - start) * (1 + math.cos(math.pi * progress.fraction)) / 2
