"""`semisup export`: a finished stage's network as a file for other programs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from semisup.cli.model_folder import require_model
from semisup.cli.replaced import note_replaced
from semisup.errors import SemisupError

__all__ = ["export"]

_STAGE_FILES = ("model.json", "model.safetensors", "stage.json")


def export(
    stage: Annotated[Path, typer.Argument(help="Folder of a finished train stage, e.g. out/student.")],
    file: Annotated[Path, typer.Argument(help="File to write: .onnx, .pt2, or .safetensors with --to.")],
    int8: Annotated[bool, typer.Option("--int8", help="Of .onnx: write 8 bits, too, and measure both.")] = False,
    data: Annotated[
        Path | None, typer.Option(help="Images for --int8, a folder or an .npz file; default: those of the run.")
    ] = None,
    to: Annotated[str | None, typer.Option(help="Whose names the weights get: torchvision or timm.")] = None,
) -> None:
    """Write a stage's network for other programs: ONNX, torch.export, or the weights for torchvision or timm.

    .onnx and .pt2 take uint8 images (n, height, width, channels) and give calibrated probabilities and embeddings. The
    file gets its name once it gives what torch gives on real images. A model card is written next to it.
    """
    suffix = file.suffix.lower()
    if to not in (None, "torchvision", "timm"):
        raise SemisupError(f"--to must be torchvision or timm, not '{to}'")
    if suffix not in (".onnx", ".pt2", ".safetensors"):
        raise SemisupError(f"{file}: must end in .onnx, .pt2 or .safetensors")
    if (suffix == ".safetensors") != (to is not None):
        raise SemisupError(f"{file}: --to torchvision or --to timm goes with .safetensors, and .safetensors with --to")
    require_model(stage)
    more = [] if to is not None else [file.with_suffix(".json"), file.with_suffix(".md")]
    written = [file, *more, *([file.with_name(f"{file.stem}-int8.onnx")] if int8 else [])]
    _keep_the_stage(written)
    note_replaced(written)
    if to is None:
        from semisup.pipeline.export import export_model

        for line in export_model(stage, file, int8=int8, data=data):
            typer.echo(line)
        return
    from semisup.stages.export import export_weights

    done = export_weights(stage, "timm" if to == "timm" else "torchvision", file)
    head = f"{done.classes} classes" if done.classes else "no head"
    mean, std = (" ".join(f"{value:.4g}" for value in values) for values in (done.mean, done.std))
    typer.echo(f"{file}: {to}'s {done.model}, {head}; images of {done.size} px, mean {mean}, std {std}")


def _keep_the_stage(written: Sequence[Path]) -> None:
    """Refuse to write over a finished stage: the description of model.onnx is called model.json, too."""
    own = [file for file in written if file.name.lower() in _STAGE_FILES and (file.parent / "stage.json").is_file()]
    if own:
        raise SemisupError(f"{written[0]}: would replace {own[0]} of a finished stage; name another file or folder")
