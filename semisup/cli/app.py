"""The `semisup` command: parse, call, print."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from semisup._version import __version__
from semisup.cli.check import check
from semisup.cli.commands import Commands
from semisup.cli.data import data
from semisup.cli.distill import distill
from semisup.cli.export import export
from semisup.cli.init import init
from semisup.cli.label import label
from semisup.cli.launch import PROCESSES_HELP, launch, one_of_several, refuse_ranks
from semisup.cli.lists import methods, recipe_names, recipes, schema, suite_names
from semisup.cli.replaced import noting_replaced
from semisup.cli.stop import GRACE_HELP, NO_LOCK_HELP, go_without_locks, saying_how_to_go_on
from semisup.cli.terminal import print_anything
from semisup.cli.words import refuse_addresses, refuse_empty
from semisup.errors import SaidElsewhereError, SemisupError, from_system
from semisup.records import require_model
from semisup.signals import GRACE, end_with
from semisup.text import harmless

__all__ = ["main"]

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data, name="data")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"semisup {__version__}")
        raise typer.Exit


@app.callback()
def semisup(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Self- and semi-supervised learning for images: pretrain, fine-tune, self-train, distill."""
    refuse_ranks(context.invoked_subcommand)


@app.command()
def run(
    recipe: Annotated[
        str,
        typer.Argument(help="A YAML file or a shipped recipe, e.g. digits/quickstart.", autocompletion=recipe_names),
    ],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, e.g. stages.pretrain.epochs=10.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the results; default runs/<recipe name>.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, show the plan, train nothing.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run every stage again, finished ones too.")] = False,
    processes: Annotated[int, typer.Option(min=1, help=PROCESSES_HELP)] = 1,
    grace: Annotated[float, typer.Option(min=0, help=GRACE_HELP)] = GRACE,
    no_lock: Annotated[bool, typer.Option("--no-lock", help=NO_LOCK_HELP)] = False,
) -> None:
    """Run a recipe, stage by stage; finished stages are reused, an unfinished one is resumed."""
    go_without_locks(no_lock)
    with saying_how_to_go_on(grace):
        from semisup.config import read_recipe

        reading = None
        if one_of_several():  # which read it when they have met, so that one of them says what is wrong
            end_with(os.getppid())  # of torchrun, or of the command
        else:
            reading = read_recipe(recipe, overrides or [])  # before torch is imported: bad files are told at once
            if processes > 1:
                launch(processes, grace)
        from semisup.pipeline import run as run_recipe
        from semisup.pipeline.plan import complete

        if reading is not None:
            run_recipe(complete(reading), out=out, dry_run=dry_run, fresh=fresh)
        else:
            run_recipe(recipe, overrides or [], out=out, dry_run=dry_run, fresh=fresh)


@app.command()
def bench(
    suite: Annotated[
        str | None,
        typer.Argument(help="A YAML file or a shipped suite, e.g. digits/budgets.", autocompletion=suite_names),
    ] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, e.g. draws=1.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the results; default runs/<suite name>.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, measure step times, show the runs.")] = False,
    scheduler: Annotated[
        str | None, typer.Option(help="Dask scheduler, tcp://host:port; default: own workers.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Own workers; default: one per GPU, else per core.")
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(help="Two result folders: how the second differs.")
    ] = None,
    grace: Annotated[float, typer.Option(min=0, help=GRACE_HELP)] = GRACE,
    no_lock: Annotated[bool, typer.Option("--no-lock", help=NO_LOCK_HELP)] = False,
) -> None:
    """Run a suite of methods, label budgets and draws; the same command goes on where it was stopped."""
    go_without_locks(no_lock)
    if compare is not None:
        from semisup.bench.results.compare import compare_suites

        if suite is not None:
            raise SemisupError(f"--compare: takes two result folders and no suite, got '{suite}' too")
        running = {"--out": out, "--dry-run": dry_run, "--scheduler": scheduler, "--workers": workers}
        if unread := [name for name, given in running.items() if given]:
            raise SemisupError(f"--compare: takes two result folders; of {', '.join(unread)} nothing would be read")
        typer.echo(compare_suites(*compare), nl=False)
        return
    if suite is None:
        from semisup.bench import shipped_suites

        raise SemisupError(f"bench: name a suite; shipped: {', '.join(shipped_suites())}")
    with saying_how_to_go_on(grace):
        from semisup.bench import load_suite

        load_suite(suite, overrides or [])  # before torch is imported: most mistakes are answered at once
        from semisup.bench.execution.benchmark import bench as run_suite

        run_suite(suite, overrides or [], out=out, dry_run=dry_run, scheduler=scheduler, workers=workers)


app.command()(label)
app.command()(check)
app.command()(init)
app.command()(distill)
app.command()(methods)
app.command()(recipes)
app.command()(schema)


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="Folder of a finished stage, e.g. out/student.")],
    images: Annotated[
        list[Path], typer.Argument(help="Image files, folders, 'patterns*', .npz files, .csv files with paths.")
    ],
    out: Annotated[Path | None, typer.Option(help=".csv, .jsonl or .parquet file; default: standard output.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many of the best classes.")] = 1,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Of every class.")] = False,
    embed: Annotated[bool, typer.Option("--embed", help="Features, too.")] = False,
    tta: Annotated[str | None, typer.Option(help="mirror: the mean over each image and its mirror image.")] = None,
    abstain: Annotated[float, typer.Option(min=0, max=1, help="Name no class below this confidence.")] = 0.0,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Exit with 0 although files were unreadable.")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="Probabilities of the network itself, not calibrated.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that decode; default: one per core.")] = None,
) -> None:
    """Classify images with a finished stage's model: a table of path, class, confidence and error.

    Files are found and read as in training. A file that cannot be read has a row with an empty class and the error, and
    the command ends with 1, unless --skip-bad says otherwise.
    """
    require_model(model)
    if tta not in (None, "mirror"):
        raise SemisupError(f"--tta: must be mirror, not {tta}")
    with saying_how_to_go_on(anew=True):
        from rich.console import Console

        from semisup.data.watch import watching
        from semisup.pipeline.predict import PredictOptions, predict_files
        from semisup.pipeline.tables import check_table_name

        check_table_name(out)
        options = PredictOptions(device, top, probabilities, embed, tta == "mirror", abstain, workers, raw)
        watch = watching(Console(stderr=True), announce=False)
        with noting_replaced([out] if out is not None else []):
            done = predict_files(model, images, out, options, watch)
        for note in done.notes:
            typer.echo(f"note: {note}", err=True)
        if done.bad:
            typer.echo(f"{done.bad:,} of {done.good + done.bad:,} images could not be read: see column error", err=True)
            raise typer.Exit(0 if skip_bad else 1)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a finished run, e.g. out.")],
) -> None:
    """Write a run's web page again, with pictures of what its classifier gets wrong: report.html in its folder."""
    if not (folder / "result.json").is_file():  # asked before torch is imported: 2 s
        raise SemisupError(f"{folder}: not the folder of a finished run (no result.json)")
    with saying_how_to_go_on(anew=True):
        from rich.console import Console

        from semisup.data.watch import watching
        from semisup.pipeline.page import report as write_report

        page, missing = write_report(folder, watching(Console(stderr=True), announce=False))
        if missing is not None:
            typer.echo(f"note: no pictures of images: {missing}", err=True)
        typer.echo(str(page))


@app.command()
def track(
    folder: Annotated[Path, typer.Argument(help="Folder of a run, e.g. out.")],
    uri: Annotated[
        str | None, typer.Option(help="MLflow URI; default: MLFLOW_TRACKING_URI, or mlflow.db next to it.")
    ] = None,
) -> None:
    """Send what has not reached MLflow yet."""
    with saying_how_to_go_on():
        from semisup.tracking import replay

        typer.echo(harmless(str(replay(folder, uri))))


app.command()(export)


def main() -> None:
    """Run the command line; a user's mistake exits with 2 and one message."""
    print_anything()
    try:
        refuse_empty(sys.argv[1:])
        refuse_addresses(sys.argv[1:])
        app(prog_name="semisup")
    except SaidElsewhereError:
        raise SystemExit(2) from None
    except SemisupError as error:
        typer.echo(f"error: {harmless(str(error))}", err=True)
        raise SystemExit(error.exit_code) from None
    except OSError as error:  # a name that is too long, a folder that others may not open, a disk that fails
        typer.echo(f"error: {harmless(from_system(error))}", err=True)
        raise SystemExit(2) from None
