"""The `semisup check` command: labels that are likely wrong, near copies, images like no other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from semisup.cli.label import import_command
from semisup.cli.replaced import noting_replaced
from semisup.cli.stop import saying_how_to_go_on
from semisup.records import require_model

__all__ = ["check"]


def check(
    folder: Annotated[Path, typer.Argument(help="Folder with labeled/CLASS/..., as training reads it.")],
    model: Annotated[
        Path, typer.Argument(help="Folder of a finished stage, classifier or encoder, e.g. out/pretrain.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("checked"),
    csv: Annotated[Path | None, typer.Option(help="Table of path,label[,split] in place of the folders.")] = None,
    shown: Annotated[int, typer.Option(min=1, help="Most images on the page.")] = 100,
    cache: Annotated[Path | None, typer.Option(help="Of decoded images; default ~/.cache/semisup/folders.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the folds.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
) -> None:
    """Look over labels and images: labels that are likely wrong, near copies, images like no other.

    Every label is predicted from what the model sees by the labels of other images. Writes check_labels.csv (all
    labels, the least believable first), check_images.csv and check.html (the images, with fields to correct).
    """
    require_model(model)
    files = [out / name for name in ("check_labels.csv", "check_images.csv", "check.html")]
    with saying_how_to_go_on(), noting_replaced(files):
        from rich.console import Console

        from semisup.data.entries import several
        from semisup.data.watch import watching
        from semisup.labeling.review import review

        done = review(
            folder, model, out, table=csv, shown=shown, cache=None if cache is None else str(cache), seed=seed,
            device=device, watch=watching(Console(stderr=True)),
        )  # fmt: skip
        for note in done.notes:
            typer.echo(f"note: {note}", err=True)
        are = "is" if done.wrong == 1 else "are"
        typer.echo(f"{done.wrong:,} of {done.labels:,} labels {are} likely wrong")
        groups = several(done.copies, "group", "groups")
        typer.echo(
            f"{groups} of near copies, {done.conflicts:,} of them of several classes, {done.leaks:,} in several parts "
            f"(training, val, test)"
        )
        typer.echo(f"{several(done.odd, 'image', 'images')} like no other")
        for file in done.files:
            typer.echo(f"  {file}")
        typer.echo(
            f"next: correct labels in {out / 'check.html'}, save, then {import_command(folder, 'SAVED.csv', csv)}"
        )
