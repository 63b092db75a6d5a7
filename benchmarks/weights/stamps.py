"""Sort Debian's stamps (package tuxpaint-stamps-default) into a folder that semisup reads: labeled/ and test/.

    apt-get install tuxpaint-stamps-default
    python benchmarks/weights/stamps.py photos

Eight categories, PNG files alone, transparent ground turned white, a third of each category for testing by a fixed
seed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

STAMPS = Path("/usr/share/tuxpaint/stamps")
CATEGORIES = ("animals", "food", "plants", "vehicles", "clothes", "household", "town", "symbols")
SEED = 0


def split(files: list[Path], generator: np.random.Generator) -> dict[str, list[Path]]:
    """Return a third of the files under "test", the others under "labeled"."""
    order = generator.permutation(len(files))
    third = len(files) // 3
    return {
        "test": [files[i] for i in sorted(order[:third])],
        "labeled": [files[i] for i in sorted(order[third:])],
    }


def opaque(path: Path) -> Image.Image:
    """Return an image in color, its transparent parts white."""
    with Image.open(path) as image:
        stamp = image.convert("RGBA")
    ground = Image.new("RGBA", stamp.size, "white")
    return Image.alpha_composite(ground, stamp).convert("RGB")


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="to write")
    parser.add_argument("--stamps", type=Path, default=STAMPS)
    given = parser.parse_args()
    generator = np.random.default_rng(SEED)
    for category in CATEGORIES:
        files = sorted((given.stamps / category).rglob("*.png"))
        for part, chosen in split(files, generator).items():
            home = given.folder / part / category
            home.mkdir(parents=True, exist_ok=True)
            for i, file in enumerate(chosen):
                opaque(file).save(home / f"{i:03d}_{file.stem}.png")
        print(f"{category}: {len(files)} stamps")


if __name__ == "__main__":
    main()
