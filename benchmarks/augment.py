"""How many views a second this machine's CPU makes: ours next to torchvision v2, albumentations and kornia.

    python benchmarks/augment.py            # a quarter of an hour; writes results/augment.json and augment.md
    python benchmarks/augment.py --quick    # three minutes; today's ratios next to the committed ones, writes nothing

All begin with the same stored images, (n, h, w, 3) uint8, and end with a batch (n, 3, h, w) of floats in [0, 1]:

- weak: mirrored, moved by up to 12.5 %, filled by reflection;
- strong: weak, two operations of RandAugment, a gray square (FixMatch);
- simclr: random resized crop, mirrored, color jitter for 8 of 10, gray for 2 of 10.

A package's own RandAugment is taken where it has one; kornia's draws its two operations once for a whole batch, not for
each image. Each runs at the best of its settings: per image in a pool of threads or in DataLoader workers, batched with
torch's own threads. Settings take turns within each round, on the same cores, so that what else the machine does meets
all of them; a ratio is the median over rounds of the ratio within one. Each lives in a process of its own: once a
second Python thread has used torch, OpenMP counts more threads than cores and lets them sleep between any two
operations, and batched ones take three times as long from then on.
A package that is not installed is left out, and said so (kornia: pip install kornia).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from paired import compare
from speed_results import circumstances, committed, show, write_cases
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode, v2

from semisup.augment import Policy, build_policy, to_float
from semisup.augment.policies.backend import ImageByImage, resolve_backend
from semisup.engine import keep_memory

VIEWS = {"weak": "weak", "strong": "randaugment", "simclr": "simclr"}
"""View -> our policy."""
BATCHES = {32: 256, 96: 128, 224: 32}
"""Side -> images in a batch. Those of 64 floats images of 224 px would be new pages for the system to clear each time
(malloc keeps blocks of up to 32 MB), which costs as much as a weak view."""
GOALS = {32: 8.0, 96: 2.0, 224: 1.0}
"""Side -> images/s of `backend: auto` over those of the best other package."""
SHIFT, STRENGTH = 0.125, 0.4

PREFETCH = 2
"""Batches that wait in the queue of each worker."""
LOADING: dict[str, Any] = {"prefetch_factor": PREFETCH, "multiprocessing_context": "fork"}
"""Of DataLoaders: fork is their default on Linux, but not in a process that was itself spawned."""

Batched = Callable[[], object]
"""Makes one batch of views."""
Transform = Callable[[NDArray[np.uint8]], Tensor]
"""Of one image, (h, w, c)."""


def stored(size: int, count: int) -> NDArray[np.uint8]:
    """Images with edges and smooth parts: what an operation costs may depend on what it sees."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.random((count, 3, 8, 8)))
    images = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)
    images[:, :, size // 4 : size // 2, size // 3 : size // 2] = 0.9
    return (images * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


# Ours ----------------------------------------------------------------------------------------------------------------


class Steps(Dataset[Tensor]):
    """Whole batches of our host's backend, for workers: the index is the step."""

    def __init__(self, images: Tensor, policy: Policy) -> None:
        torch.set_num_threads(1)  # a worker is one of several
        self.images, self.view = images, ImageByImage((), policy)

    def __len__(self) -> int:
        return 1 << 40

    def __getitem__(self, step: int) -> Tensor:
        return self.view(self.images, torch.Generator().manual_seed(step))


def policy_of(view: str) -> Policy:
    """Our policy of a view."""
    return build_policy(VIEWS[view], {"strength": STRENGTH / 0.8} if view == "simclr" else {}, flip=True)


def on_device(view: str, images: NDArray[np.uint8], threads: int) -> Batched:
    """Batched tensors."""
    policy, rng, batch = policy_of(view), torch.Generator().manual_seed(0), torch.from_numpy(images)
    return lambda: policy(to_float(batch), rng)


def on_host(view: str, images: NDArray[np.uint8], threads: int) -> Batched:
    """Image by image."""
    made, rng, batch = ImageByImage((), policy_of(view)), torch.Generator().manual_seed(0), torch.from_numpy(images)
    return lambda: to_float(made(batch, rng))


def on_host_in_workers(view: str, images: NDArray[np.uint8], threads: int) -> Batched:
    """Time the same in worker processes, to see whether these would pay."""
    steps = Steps(torch.from_numpy(images), policy_of(view))
    torch.set_num_threads(threads)
    batches = iter(DataLoader(steps, batch_size=None, num_workers=threads, **LOADING))
    return lambda: to_float(next(batches))


# The others ----------------------------------------------------------------------------------------------------------


class Stream(Dataset[Tensor]):
    """Endless images, each through a transform of (h, w, c) uint8."""

    def __init__(self, images: NDArray[np.uint8], transform: Transform) -> None:
        self.images = images
        self.transform = transform

    def __len__(self) -> int:
        return 1 << 40

    def __getitem__(self, i: int) -> Tensor:
        return self.transform(self.images[i % len(self.images)])


class PerImage:
    """A package that takes one image at a time.

    Args:
        build: makes the transform of a view at a size.
        to_batch: stacked results to (n, c, h, w) floats.
    """

    def __init__(self, build: Callable[[str, int], Transform], to_batch: Callable[[Tensor], Tensor]) -> None:
        self.build = build
        self.to_batch = to_batch

    def in_threads(self, view: str, images: NDArray[np.uint8], threads: int) -> Batched:
        """Return a part of the batch for each thread, and a transform."""
        count, size = len(images), images.shape[1]
        transforms = [self.build(view, size) for _ in range(threads)]
        pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
        list(pool.map(time.sleep, [0.1] * threads))  # starts them all
        torch.set_num_threads(threads)

        def part(k: int) -> list[Tensor]:
            return [transforms[k](image) for image in images[count * k // threads : count * (k + 1) // threads]]

        return lambda: self.to_batch(torch.stack([one for some in pool.map(part, range(threads)) for one in some]))

    def in_workers(self, view: str, images: NDArray[np.uint8], threads: int) -> Batched:
        """Return a DataLoader with as many workers."""
        stream = Stream(images, self.build(view, images.shape[1]))
        batches = iter(DataLoader(stream, batch_size=len(images), num_workers=threads, **LOADING))
        return lambda: self.to_batch(next(batches))


def torchvision_v2(view: str, size: int) -> Transform:
    """As its documentation has it: uint8 tensors, one at a time."""
    weak = [v2.RandomHorizontalFlip(), v2.RandomCrop(size, padding=round(SHIFT * size), padding_mode="reflect")]
    steps: dict[str, list[Any]] = {
        "weak": weak,
        "strong": [
            *weak,
            v2.RandAugment(2, 9, interpolation=InterpolationMode.BILINEAR, fill=128),
            v2.RandomErasing(p=1, scale=(0.25, 0.25), ratio=(1, 1), value=128),
        ],
        "simclr": [
            v2.RandomResizedCrop(size, antialias=False),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(STRENGTH, STRENGTH, STRENGTH, STRENGTH / 4)], p=0.8),
            v2.RandomGrayscale(0.2),
        ],
    }
    compose = v2.Compose(steps[view])

    def transform(image: NDArray[np.uint8]) -> Tensor:
        made: Tensor = compose(torch.from_numpy(image).permute(2, 0, 1))
        return made

    return transform


def albumentations(view: str, size: int) -> Transform:
    """As a user of it writes it: one Compose."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations as A
    import cv2

    cv2.setNumThreads(1)
    pad = round(SHIFT * size)
    gray = {"fill": 128, "p": 1}

    weak = [A.HorizontalFlip(), A.Pad(pad, border_mode=cv2.BORDER_REFLECT_101), A.RandomCrop(size, size)]
    pool = [
        A.NoOp(),
        A.AutoContrast(p=1),
        A.Equalize(p=1),
        A.Rotate(30, **gray),
        A.Solarize((0.1, 0.9), p=1),
        A.ColorJitter((1, 1), (1, 1), (0.28, 1.72), (0, 0), p=1),
        A.RandomBrightnessContrast(0, 0.72, p=1),
        A.RandomBrightnessContrast(0.72, 0, p=1),
        A.Sharpen(p=1),
        A.Affine(shear={"x": (-17, 17), "y": (0, 0)}, **gray),
        A.Affine(shear={"x": (0, 0), "y": (-17, 17)}, **gray),
        A.Affine(translate_percent={"x": (-0.27, 0.27), "y": (0, 0)}, **gray),
        A.Affine(translate_percent={"x": (0, 0), "y": (-0.27, 0.27)}, **gray),
        A.Posterize((1, 4), p=1),
    ]
    hole = (size // 2, size // 2)
    jitter = [(1 - STRENGTH, 1 + STRENGTH)] * 3
    steps: dict[str, list[Any]] = {
        "weak": weak,
        "strong": [
            *weak,
            A.OneOf(pool, p=0.5),
            A.OneOf(pool, p=0.5),
            A.CoarseDropout((1, 1), hole, hole, fill=128, p=1),
        ],
        "simclr": [
            A.RandomResizedCrop((size, size), scale=(0.08, 1)),
            A.HorizontalFlip(),
            A.ColorJitter(*jitter, (-STRENGTH / 4, STRENGTH / 4), p=0.8),
            A.ToGray(p=0.2),
        ],
    }
    compose = A.Compose(steps[view])
    return lambda image: torch.from_numpy(compose(image=image)["image"])


def kornia(view: str, images: NDArray[np.uint8], threads: int) -> Batched:
    """Whole batches of floats."""
    import kornia.augmentation as K

    size = images.shape[1]
    weak = [
        K.RandomHorizontalFlip(),
        K.RandomCrop((size, size), padding=round(SHIFT * size), padding_mode="reflect", cropping_mode="slice"),
    ]
    steps: dict[str, Callable[[], list[Any]]] = {
        "weak": lambda: weak,
        "strong": lambda: [
            *weak,
            K.auto.RandAugment(2, 9),
            K.RandomErasing(scale=(0.25, 0.25), ratio=(1, 1), value=0.5, p=1),
        ],
        "simclr": lambda: [
            K.RandomResizedCrop((size, size), scale=(0.08, 1), cropping_mode="slice"),
            K.RandomHorizontalFlip(),
            K.ColorJitter(STRENGTH, STRENGTH, STRENGTH, STRENGTH / 4, p=0.8),
            K.RandomGrayscale(p=0.2),
        ],
    }
    module = torch.nn.Sequential(*steps[view]())
    batch = torch.from_numpy(images)

    def make() -> Tensor:
        with torch.no_grad():
            made: Tensor = module(to_float(batch).contiguous())
        return made

    return make


IN_TORCHVISION = PerImage(torchvision_v2, lambda made: made.float().div_(255))
IN_ALBUMENTATIONS = PerImage(albumentations, to_float)
SETTINGS: dict[str, Callable[[str, NDArray[np.uint8], int], Batched]] = {
    "semisup, device": on_device,
    "semisup, albumentations": on_host,
    "semisup, albumentations in workers": on_host_in_workers,
    "torchvision, threads": IN_TORCHVISION.in_threads,
    "torchvision, workers": IN_TORCHVISION.in_workers,
    "albumentations, threads": IN_ALBUMENTATIONS.in_threads,
    "albumentations, workers": IN_ALBUMENTATIONS.in_workers,
    "kornia, batched": kornia,
}
"""Package and setting -> what makes its batches, of a view, stored images and a number of threads."""
OTHERS = ("torchvision", "albumentations", "kornia")

# Measuring -----------------------------------------------------------------------------------------------------------


class Setting:
    """One package in one setting, in a process of its own.

    Args:
        name: key of `SETTINGS`.
        threads: or workers.
    """

    def __init__(self, name: str, threads: int) -> None:
        self.name = name
        self.threads = threads
        self.process = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))

    def begin(self, view: str, size: int) -> None:
        """Turn to another view."""
        self.process.submit(_begin, self.name, view, size, self.threads).result()

    def measure(self, seconds: float) -> float:
        """Seconds an image, over at least so many seconds."""
        return self.process.submit(_measure, self.name, seconds).result()


_at_work: dict[str, tuple[Batched, int]] = {}
"""In a setting's process: what it makes at present, and of how many images."""


def _begin(name: str, view: str, size: int, threads: int) -> None:
    torch.set_num_threads(threads)
    if name.startswith("semisup"):
        keep_memory()  # as the pipeline does before a stage
    _at_work.clear()  # ends the workers of the view before
    images = stored(size, BATCHES[size])
    _at_work[name] = SETTINGS[name](view, images, threads), len(images)


def _measure(name: str, seconds: float) -> float:
    make, images = _at_work[name]
    waiting = PREFETCH * torch.get_num_threads() + 1 if "workers" in name else 1
    for _ in range(waiting):  # what lay ready in the queues of workers
        make()
    done, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds or done == 0:
        make()
        done += images
    if "workers" in name:
        time.sleep(waiting * images * passed / done)  # they fill their queues again, and are not to disturb the next
    return passed / done


def measure_view(settings: Sequence[Setting], view: str, size: int, *, rounds: int, seconds: float) -> dict[str, Any]:
    """All settings of one view at one size."""
    for setting in settings:
        setting.begin(view, size)
    found: dict[str, list[float]] = {setting.name: [] for setting in settings}
    for _ in range(rounds):
        for setting in settings:
            found[setting.name].append(setting.measure(seconds))
    backend = resolve_backend("auto", {view: VIEWS[view]}, torch.device("cpu"), size)
    return {"batch": BATCHES[size], "auto": backend, **summary(found, backend), "goal": GOALS[size]}


def summary(found: Mapping[str, Sequence[float]], backend: str) -> dict[str, Any]:
    """Return what seconds an image in the rounds come to: rates, and ratios of `auto` to each package at its best.

    Args:
        found: by name as in `SETTINGS`, all of as many rounds.
        backend: what `auto` takes, "device" or "albumentations".
    """
    auto = found[f"semisup, {backend}"]
    ratios = {}
    for who in OTHERS:
        of_package = [seconds for name, seconds in found.items() if name.startswith(f"{who},")]
        if of_package:
            ratios[who] = compare([[s] for s in min(of_package, key=median)], [[s] for s in auto]).median
    return {
        "images_per_second": {name: round(1 / median(seconds)) for name, seconds in found.items()},
        "ratios": {who: round(ratio, 2) for who, ratio in ratios.items()},
        "ratio": round(min(ratios.values()), 2),
    }


def missing() -> set[str]:
    """Return packages that are not installed."""
    found = set()
    for name in OTHERS:
        try:
            version(name)
        except PackageNotFoundError:
            found.add(name)
    return found


HEADER = [
    *("view", "device", "albumentations backend", "auto", *OTHERS),
    *("auto / best of them", "committed", "goal"),
]


def line_of(case: str, found: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """Return a line of the table: images/s of ours and each package at its best, and `auto` over the best."""
    rates = found["images_per_second"]
    own = [f"{rates[f'semisup, {backend}']:,}" for backend in ("device", "albumentations")]
    peers = [max((rate for key, rate in rates.items() if key.startswith(f"{name},")), default=None) for name in OTHERS]
    return [
        case,
        *own,
        found["auto"],
        *("" if rate is None else f"{rate:,}" for rate in peers),
        f"{found['ratio']:.2f}",
        f"{before[case]['ratio']:.2f}" if case in before else "",
        f">= {found['goal']:g}",
    ]


def measure_views(given: argparse.Namespace, rounds: int, seconds: float) -> dict[str, dict[str, Any]]:
    """Every view at every size asked for, by the name of its case, by every setting whose package is installed."""
    settings = [Setting(name, given.threads) for name in SETTINGS if name.split(",")[0] not in missing()]
    cases: dict[str, dict[str, Any]] = {}
    for size in given.sizes:
        for view in VIEWS:
            case = f"{view} {size} px"
            print(f"{case} ...", flush=True)
            cases[case] = measure_view(settings, view, size, rounds=rounds, seconds=seconds)
    return cases


def main() -> None:
    """Measure, print, and write unless asked to be quick."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short rounds; compares with the committed ratios")
    sizes = list(BATCHES)
    parser.add_argument("--sizes", type=int, nargs="+", choices=sizes, default=sizes, help="the others' results stay")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    for name in sorted(missing()):
        print(f"{name} is not installed and left out (pip install {name})")
    rounds, seconds = (3, 0.3) if given.quick else (7, 1.0)
    cases = measure_views(given, rounds, seconds)
    packages = ["opencv-python-headless", *sorted({"albumentations", "kornia"} - missing())]  # torchvision's: below
    used = ", ".join(f"{name} {version(name)}" for name in packages)
    note = f"images/s, {rounds} rounds of {seconds} s; {used}; {given.threads} threads, {circumstances()}"
    before = committed("augment").get("cases", {})
    show(HEADER, [line_of(case, found, before) for case, found in cases.items()], note)
    if not given.quick:
        write_cases(
            "augment", cases, lambda case, found: line_of(case, found, {}), HEADER, note, without=("committed",)
        )


if __name__ == "__main__":
    main()
