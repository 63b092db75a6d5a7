"""The `semisup label` command: which images to label next, and the labels back into a table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from semisup.cli.stop import saying_how_to_go_on
from semisup.errors import SemisupError, nearest
from semisup.records import require_model
from semisup.text import command

__all__ = ["import_command", "label"]

MANY = 100
"""Images that are chosen where nothing else is said."""


def label(
    folder: Annotated[Path, typer.Argument(help="Folder of images; labeled/CLASS/... in it, if there are labels.")],
    model: Annotated[
        Path | None, typer.Argument(help="Folder of a finished stage, classifier or encoder, e.g. out/pretrain.")
    ] = None,
    n: Annotated[int, typer.Option("-n", min=1, help="How many images.")] = MANY,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder to write to, default to-label; with --import: the CSV, default labels.csv."),
    ] = None,
    strategy: Annotated[
        str, typer.Option(help="auto, typical, coverage, margin, entropy, disagreement or random; see docs/labels.md.")
    ] = "auto",
    also: Annotated[
        list[Path] | None, typer.Option(help="Another classifier, for disagreement; may be repeated.")
    ] = None,
    import_: Annotated[
        Path | None, typer.Option("--import", help="A filled to_label.csv, or Label Studio's export: JSON or CSV.")
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Table of path,label[,split] in place of the folders.")] = None,
    classes: Annotated[
        str | None, typer.Option(help="More classes to offer, by commas; all of them where nothing has labels.")
    ] = None,
    url: Annotated[str | None, typer.Option(help="What images' addresses in Label Studio begin with.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Of decoded images; default ~/.cache/semisup/folders.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of clusters and random choices.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
) -> None:
    """Choose the images to label next; with --import, take the labels back into a CSV for data.csv.

    Writes to_label.csv (fill in column label), to_label.html (the images with fields to fill in) and label_studio.json.
    """
    if import_ is not None:
        if model is not None:
            raise SemisupError(f"--import: takes a folder and no model, got {model} too")
        choosing: dict[str, object] = {"-n": n != MANY, "--strategy": strategy != "auto", "--also": also}
        choosing |= {"--classes": classes, "--url": url, "--cache": cache, "--seed": seed, "--device": device != "auto"}
        if unread := [name for name, given in choosing.items() if given]:
            raise SemisupError(f"--import: takes --csv and --out alone; of {', '.join(unread)} nothing would be read")
        _take_back(folder, import_, csv, Path("labels.csv") if out is None else out)
        return
    if model is None:
        raise SemisupError("label: name the folder of a finished stage too, e.g. out/pretrain; or --import FILE")
    require_model(model)
    with saying_how_to_go_on():
        from rich.console import Console

        from semisup.data.watch import watching
        from semisup.labeling.choose import STRATEGIES
        from semisup.labeling.label_studio import LOCAL_FILES
        from semisup.labeling.next import LabelOptions, label_next

        if strategy not in STRATEGIES:
            raise SemisupError(f"--strategy: unknown strategy '{strategy}'{nearest(strategy, STRATEGIES)}")
        names = tuple(word.strip() for word in (classes or "").split(",") if word.strip())
        options = LabelOptions(
            n, strategy, tuple(also or ()), csv, names, LOCAL_FILES if url is None else url,
            None if cache is None else str(cache), seed, device,
        )  # fmt: skip
        done = label_next(
            folder, model, Path("to-label") if out is None else out, options, watching(Console(stderr=True))
        )
        for note in done.notes:
            typer.echo(f"note: {note}", err=True)
        typer.echo(
            f"{done.chosen:,} of {done.candidates:,} unlabeled images by {done.strategy}, "
            f"{done.labeled:,} have labels; {done.copies:,} passed over as nearly equal to another"
        )
        for file in done.files:
            typer.echo(f"  {file}")
        typer.echo(f"next: fill in labels, then {import_command(folder, done.files[0], csv)}")


def import_command(folder: Path, file: str | Path, table: Path | None) -> str:
    """Return the command that takes labels from `file` back, next to those of the table that was read."""
    return command("semisup", "label", folder, "--import", file, *(() if table is None else ("--csv", table)))


def _take_back(folder: Path, file: Path, table: Path | None, out: Path) -> None:
    if out.exists() and (table is None or not table.exists() or not out.samefile(table)):  # labels would be lost
        raise SemisupError(f"{out}: is there already; add to it with --csv {out}, or name another table with --out")
    from semisup.labeling.folder import list_pictures
    from semisup.labeling.merge import merge, read_answers, write_labels
    from semisup.settings.read import as_override

    answers, notes = read_answers(file, folder)
    merged = merge(list_pictures(folder, table), answers, str(file))
    write_labels(merged, out)
    for note in (*notes, *merged.notes):
        typer.echo(f"note: {note}", err=True)
    typer.echo(f"{out}: {merged.new:,} new labels, {merged.changed:,} changed, of {len(merged.entries):,} images")
    typer.echo(f"next: {command('semisup', 'run', 'YOUR-RECIPE', as_override('data.csv', str(out)))}")
    typer.echo(f"  or: {command('semisup', 'init', folder, '--labels', out)}")
