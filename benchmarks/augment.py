"""How many views a second this machine's CPU makes: ours beside torchvision v2, albumentations and kornia.

    python benchmarks/augment.py            # a quarter of an hour; writes results/augment.json and augment.md
    python benchmarks/augment.py --quick    # two minutes; today's ratios beside the committed ones, writes nothing

All begin with the same stored images, (n, h, w, 3) uint8, and end with a batch (n, 3, h, w) of floats in [0, 1]:

- weak: mirrored, moved by up to 12.5 %, filled by reflection;
- strong: weak, two operations of RandAugment, a grey square (FixMatch);
- simclr: random resized crop, mirrored, colour jitter for 8 of 10, grey for 2 of 10.

A package's own RandAugment is taken where it has one. Each runs at the best of its settings: per image in a pool of
threads or in DataLoader workers, batched with torch's own threads. Settings take turns within each round, on the same
cores, so that what else the machine does meets all of them; a ratio is the median over rounds of the ratio within one.
A package that is not installed is left out, and said so (kornia: pip install kornia).
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from paired import compare
from speed_results import circumstances, committed, show, write
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode, v2

from semisup.augment import Policy, build_policy, to_float
from semisup.augment.backend import ImageByImage, resolve_backend

VIEWS = {"weak": "weak", "strong": "randaugment", "simclr": "simclr"}
"""View -> our policy."""
BATCHES = {32: 256, 96: 128, 224: 64}
"""Side -> images in a batch."""
GOALS = {32: 8.0, 96: 2.0, 224: 1.0}
"""Side -> images/s of `backend: auto` over those of the best other package."""
SHIFT, STRENGTH = 0.125, 0.4

Batched = Callable[[], object]
"""Makes one batch of views."""


@dataclass
class Setting:
    """One package in one setting."""

    who: str
    how: str
    make: Batched
    seconds: list[float] = field(default_factory=list)
    """Of an image, in each round."""


def stored(size: int, count: int) -> NDArray[np.uint8]:
    """Images with edges and smooth parts: what an operation costs may depend on what it sees."""
    draw = np.random.default_rng(0)
    coarse = torch.from_numpy(draw.random((count, 3, 8, 8)))
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


def ours(view: str, images: NDArray[np.uint8], threads: int) -> Iterator[Setting]:
    """Both backends; and the host's in workers instead of threads, to see whether these would pay."""
    policy = build_policy(VIEWS[view], {"strength": STRENGTH / 0.8} if view == "simclr" else {}, flip=True)
    draws = torch.Generator().manual_seed(0)
    batch = torch.from_numpy(images)
    on_host = ImageByImage((), policy)
    yield Setting("semisup", "device", lambda: policy(to_float(batch), draws))
    yield Setting("semisup", "albumentations", lambda: to_float(on_host(batch, draws)))
    steps = Steps(batch, policy)
    torch.set_num_threads(threads)
    batches = iter(DataLoader(steps, batch_size=None, num_workers=threads, prefetch_factor=2))
    yield Setting("semisup", f"albumentations in {threads} workers", lambda: to_float(next(batches)))


# The others ----------------------------------------------------------------------------------------------------------


class Stream(Dataset[Tensor]):
    """Endless images, each through a transform of (h, w, c) uint8."""

    def __init__(self, images: NDArray[np.uint8], transform: Callable[[NDArray[np.uint8]], Tensor]) -> None:
        self.images = images
        self.transform = transform

    def __len__(self) -> int:
        return 1 << 40

    def __getitem__(self, i: int) -> Tensor:
        return self.transform(self.images[i % len(self.images)])


def per_image(
    who: str,
    images: NDArray[np.uint8],
    build: Callable[[], Callable[[NDArray[np.uint8]], Tensor]],
    to_batch: Callable[[Tensor], Tensor],
    threads: int,
) -> Iterator[Setting]:
    """One image at a time, in threads and in workers.

    Args:
        who: package.
        images: stored.
        build: makes the transform, one for each thread.
        to_batch: stacked results to (n, c, h, w) floats.
        threads: or workers.
    """
    transforms = [build() for _ in range(threads)]
    # In a pool's thread torch must not start threads of its own; here, where batches are put together, it may.
    pool = ThreadPoolExecutor(threads, initializer=lambda: torch.set_num_threads(1))
    list(pool.map(time.sleep, [0.1] * threads))
    torch.set_num_threads(threads)
    count = len(images)

    def part(k: int) -> list[Tensor]:
        return [transforms[k](image) for image in images[count * k // threads : count * (k + 1) // threads]]

    def in_threads() -> Tensor:
        made = [image for some in pool.map(part, range(threads)) for image in some]
        return to_batch(torch.stack(made))

    yield Setting(who, f"{threads} threads", in_threads)
    loader = DataLoader(Stream(images, build()), batch_size=count, num_workers=threads, prefetch_factor=2)
    batches = iter(loader)
    yield Setting(who, f"{threads} workers", lambda: to_batch(next(batches)))


def torchvision_v2(view: str, size: int, images: NDArray[np.uint8], threads: int) -> Iterator[Setting]:
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

    yield from per_image("torchvision", images, lambda: transform, lambda made: made.float().div_(255), threads)


def albumentations(view: str, size: int, images: NDArray[np.uint8], threads: int) -> Iterator[Setting]:
    """As a user of it writes it: one Compose."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations as A
    import cv2

    cv2.setNumThreads(1)
    pad = round(SHIFT * size)
    grey = {"fill": 128, "p": 1}

    def build() -> Callable[[NDArray[np.uint8]], Tensor]:
        weak = [A.HorizontalFlip(), A.Pad(pad, border_mode=cv2.BORDER_REFLECT_101), A.RandomCrop(size, size)]
        pool = [
            A.NoOp(),
            A.AutoContrast(p=1),
            A.Equalize(p=1),
            A.Rotate(30, **grey),
            A.Solarize((0.1, 0.9), p=1),
            A.ColorJitter((1, 1), (1, 1), (0.28, 1.72), (0, 0), p=1),
            A.RandomBrightnessContrast(0, 0.72, p=1),
            A.RandomBrightnessContrast(0.72, 0, p=1),
            A.Sharpen(p=1),
            A.Affine(shear={"x": (-17, 17), "y": (0, 0)}, **grey),
            A.Affine(shear={"x": (0, 0), "y": (-17, 17)}, **grey),
            A.Affine(translate_percent={"x": (-0.27, 0.27), "y": (0, 0)}, **grey),
            A.Affine(translate_percent={"x": (0, 0), "y": (-0.27, 0.27)}, **grey),
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

    yield from per_image("albumentations", images, build, to_float, threads)


def kornia(view: str, size: int, images: NDArray[np.uint8], threads: int) -> Iterator[Setting]:
    """Whole batches of floats."""
    import kornia.augmentation as K

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

    yield Setting("kornia", f"batched, {threads} threads", make)


OTHERS = {"torchvision": torchvision_v2, "albumentations": albumentations, "kornia": kornia}

# Measuring -----------------------------------------------------------------------------------------------------------


def measure(setting: Setting, images: int, seconds: float) -> float:
    """Seconds an image, over at least so many seconds, after what lay ready in the queues of workers."""
    waiting = 5 if "workers" in setting.how else 1
    for _ in range(waiting):
        setting.make()
    done, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds or done == 0:
        setting.make()
        done += images
    return passed / done


def measure_view(
    view: str, size: int, *, rounds: int, seconds: float, threads: int, skipped: set[str]
) -> dict[str, Any]:
    """All settings of one view at one size."""
    images = stored(size, BATCHES[size])
    settings = list(ours(view, images, threads))
    for name, peer in OTHERS.items():
        if name not in skipped:
            settings += peer(view, size, images, threads)
    for _ in range(rounds):
        for setting in settings:
            setting.seconds.append(measure(setting, len(images), seconds))
    backend = resolve_backend("auto", {view: VIEWS[view]}, torch.device("cpu"), size)
    (auto,) = [s for s in settings if s.who == "semisup" and s.how == backend]
    best = {
        name: min((s for s in settings if s.who == name), key=lambda s: median(s.seconds))
        for name in OTHERS
        if name not in skipped
    }
    ratios = {who: compare([[s] for s in peer.seconds], [[s] for s in auto.seconds]) for who, peer in best.items()}
    return {
        "batch": len(images),
        "auto": backend,
        "images_per_second": {f"{s.who}, {s.how}": round(1 / median(s.seconds)) for s in settings},
        "ratios": {who: round(ratio.median, 2) for who, ratio in ratios.items()},
        "ratio": round(min(ratio.median for ratio in ratios.values()), 2),
        "goal": GOALS[size],
    }


def missing() -> set[str]:
    """Packages that are not installed."""
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
    """A line of the table: images/s of ours and of every package at its best, and the ratio of `auto` to the best."""
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


def main() -> None:
    """Measure, print, and write unless asked to be quick."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short rounds; compares with the committed ratios")
    parser.add_argument("--sizes", type=int, nargs="+", choices=list(BATCHES), default=list(BATCHES))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    skipped = missing()
    for name in sorted(skipped):
        print(f"{name} is not installed and left out (pip install {name})")
    rounds, seconds = (3, 0.3) if given.quick else (9, 1.5)
    cases: dict[str, dict[str, Any]] = {}
    for size in given.sizes:
        for view in VIEWS:
            case = f"{view} {size} px"
            print(f"{case} ...", flush=True)
            cases[case] = measure_view(
                view, size, rounds=rounds, seconds=seconds, threads=given.threads, skipped=skipped
            )
    before = committed("augment").get("cases", {})
    lines = [line_of(case, found, before) for case, found in cases.items()]
    packages = ["opencv-python-headless", *sorted({"albumentations", "kornia"} - skipped)]  # torchvision's: below
    used = ", ".join(f"{name} {version(name)}" for name in packages)
    note = f"images/s, {rounds} rounds of {seconds} s; {used}; {given.threads} threads, {circumstances()}"
    show(HEADER, lines, note)
    if not given.quick and given.sizes == list(BATCHES):
        write("augment", {"machine": note, "cases": cases}, HEADER, lines, note, without=("committed",))


if __name__ == "__main__":
    main()
