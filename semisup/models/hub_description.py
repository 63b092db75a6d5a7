"""What a repository of the hub says of a network of timm, in its config.json: read, and compared before it is used."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from semisup.errors import SemisupError, nearest
from semisup.records import checked, read_json

__all__ = ["Described", "Pretrained", "read_description"]

Pixels = Annotated[int, Field(ge=1, le=65535)]
Mean = Annotated[float, Field(allow_inf_nan=False)]
Std = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Pretrained(BaseModel):
    """The images that the weights were trained on."""

    model_config = ConfigDict(strict=True, extra="ignore")

    input_size: Annotated[list[Pixels], Field(min_length=3, max_length=3)]
    """Channels, height and width."""
    mean: Annotated[list[Mean], Field(min_length=1, max_length=1000)]
    std: Annotated[list[Std], Field(min_length=1, max_length=1000)]
    fixed_input_size: bool = False
    license: str | None = None


class Described(BaseModel):
    """The network."""

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())

    architecture: str
    """timm's name without a tag."""
    model_args: dict[str, Any] = Field(default_factory=dict)
    """Of its constructor."""


def read_description(path: Path, subject: str) -> tuple[Described, Pretrained]:
    """Read a config.json.

    Args:
        path: of the file.
        subject: what the message begins with.

    Raises:
        SemisupError: it is damaged, names no network of timm, does not say what images it takes, or sets what is
            timm's own to set, such as a file to load.
    """
    import timm

    content = read_json(path)
    described = checked(TypeAdapter(Described), content, f"{subject}: {path}")
    images = checked(TypeAdapter(Pretrained), content.get("pretrained_cfg", content), f"{subject}: {path}")
    if not timm.is_model(described.architecture):
        close = nearest(described.architecture, timm.list_models())
        raise SemisupError(f"{subject}: {path}: architecture: {described.architecture!r} is no network of timm{close}")
    own = set(inspect.signature(timm.create_model).parameters) & set(described.model_args)
    if own:
        raise SemisupError(f"{subject}: {path}: model_args: may not have {', '.join(sorted(own))}")
    return described, images
