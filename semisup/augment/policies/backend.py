"""Where a view is made: batched on the device, or image by image on the host with albumentations' kernels.

Both take the same draws of the same policy (see `semisup.augment.kernels.opencv` for what still differs).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from semisup.augment.policies.policy import Augmentation, Part, Policy, draw_for
from semisup.augment.policies.views import POLICIES
from semisup.errors import SemisupError

__all__ = ["HostFirst", "ImageByImage", "resolve_backend"]

LARGEST_ON_DEVICE = 64
"""Side in pixels up to which `auto` makes views on a CPU by batched tensors.

Microseconds of one core (AMD EPYC) for an RGB image in a batch of 64 (224 px: 32), device / albumentations:

    px     weak       strong      simclr
    32     8 / 6      46 / 47     58 / 30
    48     17 / 8     65 / 56     94 / 41
    64     29 / 9     114 / 60    159 / 50
    96     83 / 20    284 / 97    319 / 84
    224    392 / 113  1030 / 337  1759 / 346

Small images are left to the device: in batches of 256 it takes 25 and 38 us for strong and simclr at 32 px, it shares
the cores better (about half of the host's time at 32 px is Python's, one thread at a time), and stages of so small
images keep their fingerprints.
"""


def resolve_backend(backend: str, policies: Mapping[str, str], device: torch.device, size: int) -> str:
    """Return where a stage's views are made, "device" or "albumentations".

    Args:
        backend: "device", "albumentations" or "auto", which is "albumentations" on a CPU for images larger than
            `LARGEST_ON_DEVICE`, if every policy has such a form, and else "device".
        policies: view -> name of its policy.
        device: of the network.
        size: side of the images in pixels.

    Raises:
        SemisupError: "albumentations", and a policy has no such form.
    """
    if backend == "device" or (backend == "auto" and (device.type != "cpu" or size <= LARGEST_ON_DEVICE)):
        return "device"
    from semisup.augment.kernels.opencv import has_form

    without = {view: policy for view, policy in policies.items() if not has_form(POLICIES[policy])}
    if without and backend == "albumentations":
        named = " and ".join(f"'{policy}' (view '{view}')" for view, policy in without.items())
        raise SemisupError(f"augment.backend: albumentations has no form of the policy {named}; use device or auto")
    return "device" if without else "albumentations"


SHARED_FROM = 0.0005
"""Seconds an image takes from which on threads share the batch.

OpenCV lets go of Python's lock, but a shorter call is over before another thread has woken up and taken it. Two threads
next to one, microseconds of an RGB image, conversion to floats included, on two cores (AMD EPYC):

    px     weak       strong      simclr
    96     16 / 18    86 / 125    77 / 85
    160    41 / 43    173 / 193   175 / 189
    224    87 / 91    321 / 343   333 / 352

A recipe's own transforms may take much longer: there each thread has its share.
"""


class ImageByImage:
    """A random function of the stored images, computed on the host.

    No worker processes: two that make whole steps (a DataLoader whose index is the step) were not faster
    (benchmarks/augment.py measures them again), and this needs no start, no end and no copies between processes.

    Args:
        own: a recipe's list of albumentations transforms, which come first; may be empty.
        policy: what follows; None: nothing.

    Raises:
        SemisupError: the list is wrong.
    """

    def __init__(self, own: Sequence[Mapping[str, Any]], policy: Policy | None) -> None:
        self.policy = policy
        self.threads = torch.get_num_threads()
        self.own: list[Any] = []
        """One for each thread, because a transform remembers what it drew last."""
        if own:
            from semisup.augment.policies.own import OwnTransforms

            self.own = [OwnTransforms(own) for _ in range(self.threads)]

    def __call__(self, images: Tensor, generator: Generator, *, part: Part | None = None) -> Tensor:
        """Augment every image differently.

        Args:
            images: (N, H, W, C) uint8 on the CPU; they stay as they are.
            generator: a CPU generator; its state decides the result, and is moved on.
            part: the rows that `images` are of a larger batch; None: they are the batch.

        Returns:
            (N, H', W', C) uint8, of the same size unless the policy makes smaller ones.
        """
        from semisup.augment.kernels.opencv import image_by_image

        count, height, width, channels = images.shape
        whole = Part.or_all(part, count)
        seeds = torch.randint(2**62, (whole.count,), generator=generator)[whole.rows].tolist() if self.own else []
        apply = None
        if self.policy is not None:
            shape = (count, channels, height, width)
            apply = image_by_image(self.policy, draw_for(self.policy, shape, generator, part), shape)
        source = images.numpy()

        def one(i: int, thread: int) -> NDArray[np.uint8]:
            image = self.own[thread](source[i], seeds[i]) if seeds else source[i]
            if apply is None:
                return image  # type: ignore[no-any-return]
            result = apply(image if channels > 1 else image[..., 0], i)
            return result.reshape(*result.shape[:2], channels)

        begun = time.perf_counter()
        first = one(0, 0)
        threads = self.threads if time.perf_counter() - begun >= SHARED_FROM else 1
        out = np.empty((count, *first.shape), np.uint8)
        out[0] = first

        def work(thread: int) -> None:
            start, stop = (count * k // threads for k in (thread, thread + 1))
            for i in range(max(start, 1), stop):
                out[i] = one(i, thread)

        if threads == 1:
            work(0)
        else:
            for _ in _pool(threads).map(work, range(threads)):  # hands on what went wrong
                pass
        return torch.from_numpy(out)


@lru_cache(maxsize=4)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="augment")


@dataclass(frozen=True)
class HostFirst:
    """A view that begins on the host."""

    host: ImageByImage
    """Of the stored images, (N, H, W, C) uint8."""
    then: Augmentation
    """What the device makes of its result, as of other views: (N, C, H, W) in [0, 1] and the same generator."""
