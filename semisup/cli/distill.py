"""The `semisup distill` command: smaller networks that predict what a finished one does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from semisup.cli.stop import saying_how_to_go_on
from semisup.errors import SemisupError, raise_all
from semisup.files import folders_in_the_way, parent_of, whole
from semisup.records import require_model

__all__ = ["distill"]

FILES = ("students.md", "students.png")
"""What it writes besides the files of a run."""


def distill(
    model: Annotated[Path, typer.Argument(help="Folder of a finished stage in its run, e.g. out/train.")],
    student: Annotated[list[str], typer.Option(help="A network, e.g. cnn,width=8; several: give it again.")],
    data: Annotated[
        str | None, typer.Option(help="The run's images where they lie now, or others to learn on; may be an address.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of every student.")] = 1000,
    out: Annotated[Path | None, typer.Option(help="Folder of the results, next to the run's folder.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, show the plan, train nothing.")] = False,
) -> None:
    """Train smaller networks on what a finished one predicts for all images; say what each costs and is worth.

    The recipe that does this is written into the results' folder, as of every run.
    """
    require_model(model)
    run_folder = parent_of(model)
    home = parent_of(run_folder)
    if out is not None and whole(parent_of(out)) != whole(home):
        raise SemisupError(f"--out: must be a folder in {home}, where the finished stages are, not {out}")
    if out is not None and whole(out) == whole(run_folder):
        raise SemisupError(f"--out: {out} is the folder of the run itself, whose results would be lost; name another")
    with saying_how_to_go_on():
        from semisup.pipeline import run
        from semisup.pipeline.distill import distillation
        from semisup.pipeline.students import compare_students, students_figure, students_table

        found = distillation(model, student, steps=steps, data=data, name=None if out is None else out.name)
        for note in found.notes:
            typer.echo(f"note: {note}", err=True)
        folder = home / found.recipe.name if out is None else out
        raise_all(folders_in_the_way(folder / name for name in FILES), "out")
        run(found.recipe, data=found.data, out=folder, dry_run=dry_run)
        if dry_run:
            return
        students = compare_students(folder)
        table = students_table(students)
        (folder / "students.md").write_text(table + "\n", encoding="utf-8")
        students_figure(students, folder / "students.png")
        typer.echo(table)
        typer.echo(f"students: {folder / 'students.md'}, {folder / 'students.png'}; recipe: {folder / 'recipe.yaml'}")
