"""The `semisup init` command: from a folder of images to a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from semisup.cli.stop import saying_how_to_go_on
from semisup.errors import SemisupError
from semisup.files import refuse_unwritable

if TYPE_CHECKING:
    from semisup.pipeline.draft import Draft, Wishes

__all__ = ["init"]


def init(
    folder: Annotated[Path, typer.Argument(help="Images: FOLDER/labeled/CLASS/..., perhaps unlabeled/, val/, test/.")],
    labels: Annotated[Path | None, typer.Option(help="Table of path,label[,split] in place of the folders.")] = None,
    out: Annotated[Path | None, typer.Option(help="Recipe to write; default: <folder's name>.yaml.")] = None,
    minutes: Annotated[
        float, typer.Option(min=0.1, max=100_000, help="That training may take on this machine.")
    ] = 10.0,
    size: Annotated[
        int | None, typer.Option(min=8, max=518, help="Side of the images, pixels; default: by them.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Trained weights to start from; with --network.")] = None,
    network: Annotated[
        str | None, typer.Option(help="That the weights are of, e.g. timm/tf_efficientnet_lite0.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    cache: Annotated[Path | None, typer.Option(help="Of the decoded images; default ~/.cache/semisup/folders.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the recipe if it is there.")] = False,
) -> None:
    """Look at a folder of images and write a recipe for it, with its expected time on this machine."""
    if (weights is None) != (network is None):
        raise SemisupError("--weights and --network: a file and the network that it is of belong together; give both")
    if weights is not None and not weights.is_file():
        raise SemisupError(f"--weights: {weights} does not exist")
    if out is not None:
        from semisup.config import require_recipe_name

        require_recipe_name(out, "--out")
        _require_free(out, force)
        refuse_unwritable(out, "--out")
    with saying_how_to_go_on():
        from rich.console import Console

        from semisup.data.watch import watching
        from semisup.files import write_atomically
        from semisup.pipeline.draft import Wishes, draft, survey

        trained = None if weights is None or network is None else (weights, network)
        wishes = Wishes(labels, minutes, size, trained, device, cache, out)
        found = survey(folder, wishes, watching(Console()))
        for line in found.prepared.summary():
            typer.echo(line)
        made = draft(found, wishes)
        path = Path(f"{made.name}.yaml") if out is None else out
        _require_free(path, force)
        write_atomically(path, made.text.encode())
        for line in _lines(made, path, wishes) + _frozen(folder, made, wishes):
            typer.echo(line)


def _require_free(path: Path, force: bool) -> None:
    if path.exists() and not force:
        raise SemisupError(f"{path}: is there already; name another with --out, or replace it with --force")


def _lines(made: Draft, path: Path, wishes: Wishes) -> list[str]:
    """Return what to tell: what was found, and the next commands."""
    from semisup.data.entries import some
    from semisup.text import command, duration, printable

    found = made.survey
    lines = [f"sizes: {found.shapes.told}; {_colors(made)}"]
    share = max(found.labels.values()) / sum(found.labels.values())
    lines.append(f"balance: the largest class has {share:.0%} of the labels")
    if found.copies:
        lines.append(f"copies: {found.copies:,} training images are equal to another one")
    if found.near:
        pairs = some([f"{printable(one)} = {printable(other)}" for one, other in found.near])
        lines.append(f"near copies: {len(found.near):,} training images look like another one: {pairs}")
    if found.shapes.long:
        lines.append(f"note: {found.shapes.long_told}; data.fit=pad or stretch keeps all of them")
    lines += [f"note: {note}" for note in found.prepared.notes()]
    seconds = sum(made.seconds.values())
    too_long = seconds > 90 * wishes.minutes
    longer = f", more than --minutes {wishes.minutes:g}: fewer steps teach too little" if too_long else ""
    model = Path("runs") / made.name / list(made.seconds)[-1]
    return [
        *lines,
        f"recipe: {path}, about {duration(seconds)} of training here{longer}",
        f"next: {command('semisup', 'data', 'show', path, '--out', 'views.png')}",
        f"      {command('semisup', 'run', path)}",
        f"      {command('semisup', 'predict', model, 'NEW-IMAGES', '--out', 'predictions.csv')}",
    ]


def _frozen(folder: Path, made: Draft, wishes: Wishes) -> list[str]:
    """Return the command that reads the trained network's frozen features, where `folder/few_labels` can."""
    from semisup.models.origin import TIMM

    if wishes.weights is None or not wishes.weights[1].startswith(TIMM):
        return []
    from semisup.config import find_recipe
    from semisup.models.from_timm import timm_ends, timm_source
    from semisup.settings.read import as_override, read_mapping
    from semisup.text import command

    weights, network = wishes.weights
    name = network.removeprefix(TIMM)
    given = {"data.path": folder, "data.csv": wishes.csv, "model.name": network, "model.weights": weights}
    words = [as_override(key, str(value)) for key, value in given.items() if value is not None]
    if not made.resized:
        words.append(f"model.resize={timm_source(name).size}")
    wanted = read_mapping(find_recipe("folder/few_labels"))["stages"]["student"]["model"]["blocks"]
    if (blocks := timm_ends(name, wanted)) != wanted:
        words.append(f"stages.student.model.blocks={'null' if blocks is None else blocks}")
    return [f"or, quicker at a few labels: {command('semisup', 'run', 'folder/few_labels', *words)}"]


def _colors(made: Draft) -> str:
    return "without colors" if made.survey.shapes.gray else "in color"
