"""The `semisup data` commands: a person's own images, before anything is trained on them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from semisup.cli.lists import recipe_names
from semisup.cli.replaced import noting_replaced
from semisup.cli.stop import saying_how_to_go_on

if TYPE_CHECKING:
    from semisup.settings import DataConfig

__all__ = ["data"]

data = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Look at data and get one's own images ready for training."
)


@data.command()
def prepare(
    root: Annotated[str, typer.Argument(help="Folder of images, or its address, e.g. s3://bucket/photos.")],
    size: Annotated[int, typer.Option(min=8, max=518, help="Side that the squares are scaled to, pixels.")],
    csv: Annotated[Path | None, typer.Option(help="Table of path,label[,split] in place of the folders.")] = None,
    fit: Annotated[str, typer.Option(help="How they become squares: crop, pad or stretch.")] = "crop",
    channels: Annotated[int, typer.Option(help="3 (color) or 1 (gray).")] = 3,
    cache: Annotated[Path | None, typer.Option(help="Where to keep it; default ~/.cache/semisup/folders.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default: one per core.")] = None,
    max_bad: Annotated[float, typer.Option(min=0, max=1, help="Part of the files that may be unreadable.")] = 0.01,
    allow_leakage: Annotated[bool, typer.Option("--allow-leakage", help="Test images may be training images.")] = False,
    drop_leaks: Annotated[
        bool, typer.Option("--drop-leaks", help="Show the data without test images that are training images.")
    ] = False,
    allow_conflicts: Annotated[
        bool, typer.Option("--allow-conflicts", help="One picture may be under two classes.")
    ] = False,
) -> None:
    """Decode a folder of images once, for data.source=folder; say what is in it.

    ROOT has labeled/CLASS/... and, if there are, unlabeled/..., val/CLASS/..., test/CLASS/...; or --csv names the
    images. PNG, JPEG, WebP, TIFF and BMP of any kind are read: 16 bits scaled to 8, transparency laid over white,
    turned upright. The same command goes on where it was stopped, and decodes only what has changed since; so does
    `semisup run`.
    """
    with saying_how_to_go_on():
        from rich.console import Console

        from semisup.data.folder import prepare_folder
        from semisup.data.watch import watching
        from semisup.errors import SemisupError, raise_all
        from semisup.options import read
        from semisup.settings import DataConfig

        if channels not in (1, 3):
            raise SemisupError(f"--channels: must be 1 (gray) or 3 (color), not {channels}")
        if fit not in ("crop", "pad", "stretch"):
            raise SemisupError(f"--fit: must be crop, pad or stretch, not {fit}")
        keys = {
            "source": "folder",
            "fit": fit,
            "path": root,
            "size": size,
            "csv": None if csv is None else str(csv),
            "channels": channels,
            "cache": None if cache is None else str(cache),
            "max_bad": max_bad,
            "allow_leakage": allow_leakage,
            "drop_leaks": drop_leaks,
            "allow_conflicts": allow_conflicts,
        }
        clean, problems = read(DataConfig, keys, "data")
        raise_all(problems)
        config = DataConfig(**clean)
        prepared = prepare_folder(config, workers=workers, watch=watching(Console()))
        for line in prepared.summary():
            typer.echo(line)
        refused = prepared.problems(flags=True)
        for note in prepared.notes(refused):
            typer.echo(f"warning: {note}", err=True)
        raise_all(list(refused.values()), root)
        typer.echo(f"next: semisup run folder/small {_as_keys(config)} --dry-run")


def _as_keys(config: DataConfig) -> str:
    """Return what a recipe is to be told so that it reads the same."""
    from semisup.settings.read import as_override

    given = config.model_dump(exclude_defaults=True, exclude={"source"})
    return shlex.join([as_override(f"data.{key}", value) for key, value in given.items()])


@data.command()
def show(
    recipe: Annotated[
        str,
        typer.Argument(help="A YAML file or a shipped recipe, e.g. digits/quickstart.", autocompletion=recipe_names),
    ],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, e.g. data.labels=10%.")] = None,
    out: Annotated[Path, typer.Option(help="PNG file to write.")] = Path("views.png"),
    images: Annotated[int, typer.Option(min=1, max=64, help="How many images.")] = 8,
    stage: Annotated[str | None, typer.Option(help="Only this stage; default: all that train.")] = None,
) -> None:
    """Draw what training sees: each view (weak, strong, ...) of some images next to them; print the label budget."""
    with saying_how_to_go_on(anew=True):
        from semisup.config import read_recipe
        from semisup.errors import SemisupError
        from semisup.files import refuse_unwritable

        reading = read_recipe(recipe, overrides or [])  # before torch is imported
        if out.suffix.lower() != ".png":
            raise SemisupError(f"--out {out}: must end in .png")
        refuse_unwritable(out, "--out")
        from rich.console import Console

        from semisup.data.watch import watching
        from semisup.pipeline.plan import complete
        from semisup.pipeline.show import show_data

        with noting_replaced([out]):
            lines = show_data(complete(reading), out, images=images, stage=stage, watch=watching(Console()))
        for line in lines:
            typer.echo(line)
        typer.echo(f"views: {out}")
