"""Classify pictures with an exported model: onnxruntime, NumPy and Pillow, nothing else.

python examples/onnx_predict.py model.onnx PICTURE... > predictions.csv

A picture that cannot be read has a row with the error, and makes the command end with 1.
"""

from __future__ import annotations

import csv
import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def main(model: str, *pictures: str) -> int:
    """Print path, class, confidence and error of every picture as a CSV; return the exit status."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    facts = session.get_modelmeta().custom_metadata_map
    classes, mode = json.loads(facts["classes"]), "L" if facts["channels"] == "1" else "RGB"
    rows = csv.writer(sys.stdout, lineterminator="\n")
    rows.writerow(["path", "class", "confidence", "error"])
    bad = 0
    for picture in pictures:
        try:
            batch = read(picture, mode)
        except Exception as error:  # noqa: BLE001 - Pillow raises of many kinds, one for each way to be damaged
            bad += 1
            rows.writerow([picture, "", "", error])
            continue
        (probabilities,) = session.run(["probabilities"], {"images": batch})
        best = int(probabilities[0].argmax())
        rows.writerow([picture, classes[best], f"{probabilities[0, best]:.4f}", ""])
    return 1 if bad else 0


def read(picture: str, mode: str) -> np.ndarray:
    """Return a picture (1, height, width, channels) uint8 as training looks at it."""
    with Image.open(picture) as image:
        upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16"):  # `convert` would make white of all that is above 255
        upright = Image.fromarray(np.rint(np.asarray(upright) / 257).astype(np.uint8))
    if upright.mode in ("I", "F"):
        raise ValueError("32 bits per pixel have no known range; save it with 8 or 16")
    upright = upright.convert("RGBA")
    white = Image.new("RGBA", upright.size, "white")  # what training puts behind transparent pictures
    pixels = np.asarray(Image.alpha_composite(white, upright).convert(mode))
    return pixels.reshape(1, *pixels.shape[:2], -1)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: python onnx_predict.py model.onnx PICTURE... > predictions.csv")
    sys.exit(main(*sys.argv[1:]))
