"""Classify pictures with an exported model: onnxruntime, NumPy and Pillow, nothing else.

python examples/onnx_predict.py model.onnx PICTURE... > predictions.csv
"""

from __future__ import annotations

import csv
import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def main(model: str, *pictures: str) -> None:
    """Print path, class and confidence of every picture as a CSV."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    facts = session.get_modelmeta().custom_metadata_map
    classes, mode = json.loads(facts["classes"]), "L" if facts["channels"] == "1" else "RGB"
    rows = csv.writer(sys.stdout, lineterminator="\n")
    rows.writerow(["path", "class", "confidence"])
    for picture in pictures:
        with Image.open(picture) as image:
            upright = ImageOps.exif_transpose(image).convert("RGBA")
        white = Image.new("RGBA", upright.size, "white")  # what training puts behind transparent pictures
        pixels = np.asarray(Image.alpha_composite(white, upright).convert(mode))
        batch = pixels.reshape(1, *pixels.shape[:2], -1)
        (probabilities,) = session.run(["probabilities"], {"images": batch})
        best = int(probabilities[0].argmax())
        rows.writerow([picture, classes[best], f"{probabilities[0, best]:.4f}"])


if __name__ == "__main__":
    main(*sys.argv[1:])
