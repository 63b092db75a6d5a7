"""Any image classifier of torchvision as a backbone, with or without its pretrained weights.

torchvision takes seconds to import, so it is imported inside the functions that need it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from semisup.errors import UNREADABLE, SemisupError, first_line, nearest, raise_all
from semisup.models.foreign import SUFFIXES, file_shapes
from semisup.models.from_timm import PRETRAINED, fill_from_file, output_shape
from semisup.options import show

__all__ = [
    "TorchvisionBackbone",
    "check_torchvision",
    "classifier_names",
    "drop_last_layer",
    "fetch_published",
    "torchvision_sized",
    "weights_file",
    "weights_name",
]

# These two return a tuple in train() mode: their auxiliary heads train on losses that no method here knows.
AUXILIARY = ("googlenet", "inception_v3")
# @register_model(), perhaps more decorators, and the function that is named like the model.
_REGISTERED = re.compile(r"^@register_model\(\)\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)


def classifier_names() -> list[str]:
    """Return the names of all torchvision classifiers that can be a backbone.

    They are read off torchvision's source files: importing it takes 2 s, and a misspelled name should be answered
    sooner. Where a version writes them otherwise, torchvision itself is asked.
    """
    spec = importlib.util.find_spec("torchvision")
    folders = [] if spec is None else [Path(folder) / "models" for folder in spec.submodule_search_locations or ()]
    files = [file for folder in folders for file in sorted(folder.glob("*.py"))]
    names = [name for file in files for name in _REGISTERED.findall(file.read_text(encoding="utf-8"))]
    if not names:
        from torchvision import models

        names = models.list_models(module=models)
    return sorted(name for name in names if name not in AUXILIARY)


def check_torchvision(name: str, *, weights: object = None) -> list[str]:
    """Return what is wrong with a torchvision classifier's name or weights, one sentence each; builds nothing.

    Args:
        name: torchvision's name, without the `torchvision/`.
        weights: None, "pretrained" (torchvision's "DEFAULT"), the name of one of its weights for this network, or a
            file.
    """
    if name in AUXILIARY:
        return [f"name: torchvision/{name} has auxiliary outputs while training, which no method here can use"]
    names = classifier_names()
    if name not in names:
        return [f"name: torchvision/{name} is no classifier of torchvision{nearest(name, names)}"]
    if weights is None or weights == PRETRAINED:
        return []
    file = weights_file(weights) if isinstance(weights, str) else None
    if file is not None:
        try:
            file_shapes(file)
        except SemisupError as error:
            return [str(error)]
        return []
    from torchvision import models

    known = models.get_model_weights(name)
    valid = [PRETRAINED, *known.__members__, *(f"{known.__name__}.{member}" for member in known.__members__)]
    if weights in valid:
        return []
    listed = ", ".join([PRETRAINED, *known.__members__])
    return [f"weights: must be null, a file, or one of {listed}, not {show(weights)}{nearest(str(weights), valid)}"]


def weights_file(weights: str) -> Path | None:
    """Return the file that a recipe's `weights` name; None: they are torchvision's own."""
    path = Path(weights)
    return path if path.suffix.lower() in SUFFIXES or path.is_file() else None


def weights_name(weights: str) -> str:
    """Return torchvision's name of its own weights as a recipe has them: pretrained, V1 or ResNet18_Weights.V1."""
    return "DEFAULT" if weights == PRETRAINED else weights.rpartition(".")[2]


class TorchvisionBackbone(nn.Module):
    """A torchvision classifier whose last layer is left out: images `(N, C, S, S)` to `(N, num_features)`.

    Gray images: the first convolution's kernels are summed over their RGB inputs, which is what feeding the gray
    image to all three would compute, so pretrained weights keep their meaning. That includes the normalization:
    pretrained weights expect images in torchvision's own, mean (0.485, 0.456, 0.406), std (0.229, 0.224, 0.225).

    Args:
        name: torchvision's name, without the `torchvision/`.
        weights: None for random weights, "pretrained" or a name of torchvision's, downloaded unless cached; or a file.
        in_channels: 1 or 3.
        image_size: side of the images in pixels. Vision transformers are built for it; every network is tried on
            it, on the meta device, which costs neither memory nor arithmetic.

    Raises:
        SemisupError: an unknown name or weights, other channels than 1 or 3, an image size that the network cannot
            process, or weights that could not be downloaded.
    """

    def __init__(self, name: str, weights: str | None = None, *, in_channels: int = 3, image_size: int = 224) -> None:
        from torchvision import models

        super().__init__()
        problems = check_torchvision(name, weights=weights)
        if in_channels not in (1, 3):
            problems.append(f"in_channels: must be 1 or 3, not {in_channels!r}")
        subject = f"model torchvision/{name}"
        raise_all(problems, subject)
        file = None if weights is None else weights_file(weights)
        own = None if file is not None else weights
        chosen = None if own is None else models.get_model_weights(name)[weights_name(own)]
        sized = torchvision_sized(name, image_size)
        if chosen is not None:
            sized["num_classes"] = len(chosen.meta["categories"])
        try:
            self.network: nn.Module = models.get_model(name, weights=None, **sized)
            if chosen is not None:
                self.network.load_state_dict(fetch_published(chosen.url, subject))
        except (ValueError, AssertionError) as error:
            if isinstance(error, SemisupError):
                raise
            raise SemisupError(f"{subject}: cannot be built for {image_size} px images ({error})") from error
        except RuntimeError as error:  # position embeddings of another number of patches
            raise SemisupError(
                f"{subject}: weights {weights!r} do not fit images of {image_size} px ({first_line(error)})"
            ) from error
        if in_channels == 1:
            _sum_first_kernel(self.network)
        self.num_features = drop_last_layer(self.network)
        if file is not None:
            fill_from_file(self.network, file, subject)
        self.in_channels = in_channels
        shape = output_shape(self.network, in_channels, image_size, subject)
        if math.prod(shape) != 2 * self.num_features:
            raise SemisupError(
                f"{subject}: gives {shape} for 2 images of {image_size} px, not (2, {self.num_features})"
            )

    def forward(self, images: Tensor) -> Tensor:
        """Map images `(N, C, S, S)` to features `(N, num_features)`."""
        features: Tensor = self.network(images)
        return features


def torchvision_sized(name: str, image_size: int) -> dict[str, Any]:
    """Return the options by which a network is built for images of one side; none of one that takes all sizes."""
    if name.startswith("vit_"):
        return {"image_size": image_size}
    return {"input_size": (image_size, image_size)} if name.startswith("maxvit_") else {}


def fetch_published(url: str, subject: str) -> dict[str, Tensor]:
    """Read torchvision's weights from torch hub's cache, downloaded if they are not there.

    torchvision itself compares the checksum while it downloads alone, and then unpickles whatever lies in the cache.

    Raises:
        SemisupError: they cannot be downloaded, or the cached file is another one.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    known = re.search(r"-([0-9a-f]{8,})\.", path.name)
    wanted = known[1] if known is not None else ""
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), wanted or None, progress=False)
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
            if not found.startswith(wanted):
                raise SemisupError(
                    f"{subject}: {path} is damaged or another file: its SHA-256 begins with {found[: len(wanted)]}, "
                    f"not {wanted}; delete it to download it again"
                )
            file.seek(0)
            state = torch.load(file, map_location="cpu", weights_only=True)
    except SemisupError:
        raise
    except OSError as error:
        raise SemisupError(f"{subject}: weights of {url} could not be fetched ({error})") from error
    except UNREADABLE as error:
        raise SemisupError(f"{subject}: {path} holds no weights ({first_line(error)}); delete it") from error
    # DenseNet's file has the dotted names of an older torchvision.
    return {re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.(\d)", r"\1\2", key): value for key, value in state.items()}


def drop_last_layer(network: nn.Module) -> int:
    """Replace the classifying layer by the identity and return how many features it took in."""
    # In every torchvision classifier it is the last registered layer with weights: a Linear, or SqueezeNet's Conv2d.
    path, layer = [(p, m) for p, m in network.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))][-1]
    parent, _, attribute = path.rpartition(".")
    setattr(network.get_submodule(parent), attribute, nn.Identity())
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels


def _sum_first_kernel(network: nn.Module) -> None:
    """Make the first convolution, changed in place, take one channel instead of three."""
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    first.weight = nn.Parameter(first.weight.detach().sum(dim=1, keepdim=True))
    first.in_channels = 1
