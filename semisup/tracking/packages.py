"""A finished stage as an MLflow model: plain files, a module's name, and the wheel of this package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from semisup.errors import UNREADABLE, SemisupError, first_line
from semisup.records import MODEL, checked, read_json
from semisup.tracking.wheel import WHEEL, write_wheel

__all__ = ["read_classes", "read_images", "save_package"]

LOADER = "semisup.stages.predictor"
"""What MLflow loads a model with; never taken from a file."""


class _Described(BaseModel):
    """What MLflow is told of a model's own description."""

    model_config = ConfigDict(extra="ignore")

    classes: Annotated[list[str], Field(min_length=1)]
    temperature: Annotated[float, Field(gt=0)] = 1.0


def read_classes(stage: Path) -> list[str]:
    """Return the class names of a stage's model.

    Raises:
        SemisupError: it has no description, or another one.
    """
    path = stage / MODEL
    return checked(TypeAdapter(_Described), read_json(path), f"{path}: not a model's description").classes


def read_images(path: Path) -> NDArray[np.uint8]:
    """Read a model's example, uint8 images (n, H, W, C).

    Raises:
        SemisupError: it is something else.
    """
    try:
        images = np.load(path, allow_pickle=False)
    except UNREADABLE as error:
        raise SemisupError(f"{path}: not an array of images ({first_line(error)})") from error
    if not isinstance(images, np.ndarray) or images.ndim != 4 or images.dtype != np.uint8:
        raise SemisupError(f"{path}: not uint8 images (n, H, W, C)")
    return images


def save_package(
    package: Path, stage: Path, images: NDArray[np.uint8], classes: list[str], model_id: str, run: str
) -> None:
    """Write an MLflow model folder around a stage: plain files and a module's name, nothing pickled.

    Its requirements are the wheel inside and MLflow, so that a fresh environment can be made for it anywhere; the wheel
    asks for the rest.

    Args:
        package: folder to write.
        stage: of a finished stage.
        images: example of the input.
        classes: names in the order of the probabilities; the answer has a column for each.
        model_id: of MLflow's logged model.
        run: MLflow id of the run that made it.
    """
    import mlflow.pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec

    # The address of the store stays unknown here: `Model` would ask for it to tell where the model lies.
    model = Model(run_id=run, model_id=None, metadata={"classes": classes, "semisup.model_id": model_id})
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype("uint8"), (-1, -1, -1, images.shape[3]))]),
        outputs=Schema([ColSpec("double", name) for name in classes]),
    )
    mlflow.pyfunc.save_model(
        path=str(package),
        loader_module=LOADER,
        data_path=str(stage),
        mlflow_model=model,
        signature=signature,
        input_example=images,
        pip_requirements=[f"wheels/{WHEEL}"],
    )
    (package / "wheels").mkdir()
    write_wheel(package / "wheels")
