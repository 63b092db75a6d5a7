"""`semisup export`: a finished stage's network as a file for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from semisup.cli.replaced import noting_replaced
from semisup.cli.stop import saying_how_to_go_on
from semisup.errors import SemisupError
from semisup.export_files import ExportFiles
from semisup.files import refuse_unwritable
from semisup.records import require_model

__all__ = ["export"]


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
    if int8 and suffix != ".onnx":
        raise SemisupError(f"--int8: is of .onnx files, not of {file}")
    if data is not None and not int8:
        raise SemisupError(f"--data {data}: nothing would be read of it; it is what --int8 is calibrated on")
    require_model(stage)
    refuse_unwritable(file)
    with saying_how_to_go_on(anew=True):
        if to is None:
            from semisup.pipeline.export import export_model

            with noting_replaced(ExportFiles(file, int8).all):
                lines = export_model(stage, file, int8=int8, data=data)
            for line in lines:
                typer.echo(line)
            return
        from semisup.stages.export import export_weights

        with noting_replaced([file]):
            done = export_weights(stage, "timm" if to == "timm" else "torchvision", file)
        no_head = "no head (strict=False)" if to == "torchvision" else "no head"
        head = f"{done.classes} classes" if done.classes else no_head
        mean, std = (" ".join(f"{value:.4g}" for value in values) for values in (done.mean, done.std))
        args = "".join(f", {key}={value!r}" for key, value in done.args.items())
        typer.echo(f"{file}: {to}'s {done.model}{args}, {head}; images of {done.size} px, mean {mean}, std {std}")
