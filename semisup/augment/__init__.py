"""Batched augmentation, random for every image, on the batch's own device; and of sentences, in `text`."""

from __future__ import annotations

from semisup.augment.kernels.normalize import Normalize, to_float
from semisup.augment.mixing import cut, draw_cutting, draw_mixing, mix
from semisup.augment.policies.views import POLICIES, Policy, build_policy, check_policy
from semisup.augment.pretext.puzzles import (
    cut_tiles,
    drop_channels,
    four_rotations,
    halve,
    lose_color,
    maximin_permutations,
    normalize_tiles,
    quarters,
)
from semisup.augment.text import TfidfReplacement, Translate, back_translate

__all__ = [
    "POLICIES",
    "Normalize",
    "Policy",
    "TfidfReplacement",
    "Translate",
    "back_translate",
    "build_policy",
    "check_policy",
    "cut",
    "cut_tiles",
    "draw_cutting",
    "draw_mixing",
    "drop_channels",
    "four_rotations",
    "halve",
    "lose_color",
    "maximin_permutations",
    "mix",
    "normalize_tiles",
    "quarters",
    "to_float",
]
