"""Views that a method adapts while it trains: some are drawn by what it has learned, some tell how they were made.

A method that learns how strong views may be has a buffer (`Method.learned`), which its steps change in place. Whoever
makes the views asks two questions of a policy: is it `Adaptive`, so that it is drawn by the buffer's present values,
and is it a `Probe`, whose traces the method wants with the batch. No one else needs to know what is learned.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Generator, Tensor

from semisup.augment.policies.policy import Augmentation, Part, Policy

__all__ = ["Adaptive", "Probe"]


class Adaptive(Policy):
    """A policy that draws by what a method has learned."""

    def bound(self, learned: Tensor) -> Augmentation:
        """Return this policy drawn by a buffer: by the values that it has whenever a view is made."""
        raise NotImplementedError


class Probe(Policy):
    """A policy that tells how it has made each image, for a method to learn from."""

    trace_width: ClassVar[int]
    """Numbers that it tells of each image."""

    def probe(self, images: Tensor, generator: Generator, *, part: Part | None = None) -> tuple[Tensor, Tensor]:
        """Augment images (N, C, H, W), as of a policy's call, and return with them the trace of the whole batch.

        Returns:
            The views, and (N, `trace_width`) int64, or as many rows as the batch that `images` are a part of.
        """
        raise NotImplementedError
