"""Write what the models of recipes, methods and suites say of themselves: for editors, and as pages of docs/.

python benchmarks/reference.py           # after a change of any key, option, default or docstring
python benchmarks/reference.py --check   # says what is out of date, writes nothing
"""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Annotated, Any, get_args

from pydantic import BaseModel

from semisup.augment import POLICIES
from semisup.bench.results.rows import Row, read_rows
from semisup.bench.suites.suite import EntryConfig, Suite, suite_schema
from semisup.methods import METHODS
from semisup.models import BACKBONES
from semisup.options import Settings, keys_of
from semisup.pipeline.describe import describe_method, described_options, words
from semisup.pipeline.schema import recipe_schema
from semisup.settings import Recipe, StageConfig, TrainConfig
from semisup.stages.kinds import KINDS, name_of

ROOT = Path(__file__).parents[1]
MADE = "Written by `python benchmarks/reference.py` from the models themselves, as is the schema that editors read.\n"


def _parts(owner: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Return the keys of a model that are mappings with models of their own."""
    found = {
        key: [part for part in (field.annotation, *get_args(field.annotation)) if _is_settings(part)]
        for key, field in keys_of(owner).items()
    }
    return {key: parts[0] for key, parts in found.items() if parts}


def _is_settings(part: Any) -> bool:
    return isinstance(part, type) and issubclass(part, Settings)


OF_RECIPE, OF_STAGE = _parts(Recipe), _parts(TrainConfig)
RECORDS = {
    "digits-budgets": "digits, 40 labels",
    "fashion_mnist-methods": "Fashion-MNIST, 40 labels",
    "fashion_mnist-self-supervised": "Fashion-MNIST, regression of 40 labels on the frozen features",
}
"""Suites whose figures stand below a method, and what they are of."""
PARTS = OF_RECIPE | OF_STAGE
"""Keys that are mappings, of a recipe or a train stage, and their models."""


def files() -> dict[str, str]:
    """Return path below the repository -> text of everything that this script writes."""
    return {
        "recipes/recipe.schema.json": json.dumps(recipe_schema(), indent=1) + "\n",
        "benchmarks/suites/suite.schema.json": json.dumps(suite_schema(), indent=1) + "\n",
        "docs/recipe-reference.md": "\n".join(_recipe_page()),
        "docs/method-reference.md": "\n".join(_method_page()),
    }


def _recipe_page() -> Iterator[str]:
    yield f"# A recipe, key by key\n\n{MADE.strip()}"
    yield "\n## The recipe\n\n" + _keys(Recipe)
    for key, model in OF_RECIPE.items():
        yield f"\n## {key}\n\n{_keys(model)}"
    for kind in KINDS:
        yield f"\n## A stage of kind {name_of(kind)}\n\n{_keys(kind.Config)}"
    for key, model in OF_STAGE.items():
        yield f"\n## {key}, of a train stage\n\n{_keys(model)}"
    yield from _named("Networks", "model: {name: ...}", BACKBONES)
    yield from _named("Policies of views", "augment: {<view>: {policy: ...}}", POLICIES)
    yield "\n## A suite of `semisup bench`\n\n" + _keys(Suite)
    for key, model in (_parts(Suite) | _parts(EntryConfig)).items():
        if key not in PARTS:
            yield f"\n## {key}, of a suite\n\n{_keys(model)}"


def _named(title: str, where: str, known: Mapping[str, Callable[..., Any]]) -> Iterator[str]:
    yield f"\n## {title}\n\nOptions of each, next to its name in `{where}`.\n"
    for name, target in known.items():
        options = described_options(target)
        rows = [[option.name, _cell(option.type), _default(option.default), _cell(option.help)] for option in options]
        first = _cell((inspect.getdoc(target) or "").split("\n\n")[0])
        yield f"### {name}\n\n{first}\n\n" + (_table(rows) if rows else "No options.\n")


def _keys(model: type[BaseModel]) -> str:
    rows = []
    for key, field in keys_of(model).items():
        kind = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
        default = "" if field.is_required() else _default(field.default)
        part = key in _parts(model)
        values = "mapping, see there" if part or key == "stages" else words(kind)
        rows.append([key, _cell(values), "" if part else default, _cell(field.description or "")])
    return f"{(model.__doc__ or '').splitlines()[0]}\n\n{_table(rows)}"


def _table(rows: list[list[str]]) -> str:
    lines = ["| key | values | default | meaning |", "|---|---|---|---|"]
    return "\n".join([*lines, *[f"| `{key}` | {' | '.join(rest)} |" for key, *rest in rows]]) + "\n"


def _default(value: Any) -> str:
    if isinstance(value, StageConfig | BaseModel):
        return ""
    return f"`{json.dumps(_short(value))}`"


def _short(value: Any) -> Any:
    """Return fractions such as 4/3 with four digits."""
    if isinstance(value, list | tuple):
        return [_short(part) for part in value]
    return float(f"{value:.4g}") if isinstance(value, float) and len(str(value)) > 9 else value


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def _method_page() -> Iterator[str]:
    says = "What `semisup methods NAME` prints, and what is recorded of it, a step by that suite's batch and machine."
    yield f"# Methods, option by option\n\n{says} {MADE}"
    for name in METHODS:
        yield f"\n## {name}\n\n```text\n{describe_method(name).to_text()}\n```"
        recipes = sorted(f"`{path.parent.name}/{name}`" for path in (ROOT / "recipes").glob(f"*/{name}.yaml"))
        facts = [f"recipes: {', '.join(recipes)}"] if recipes else []
        facts += [fact for suite, says in RECORDS.items() if (fact := _recorded(name, suite, says))]
        if facts:
            yield "\n" + "\n".join(f"- {fact}" for fact in facts)
    yield ""


def _recorded(method: str, suite: str, says: str) -> str:
    """Say what a committed suite has of a method with 40 labels, and what a step cost; nothing if it has none."""
    rows = [row for row in _rows(suite) if row.entry == method and row.n_labels == 40 and row.status == "done"]
    if not rows:
        return ""
    accuracies = [100 * found for row in rows if (found := row.metrics["accuracy"]) is not None]
    timed = [(row.metrics["calibrated_seconds"], row.metrics["steps"]) for row in rows]
    steps = [1000 * float(seconds) / float(steps) for seconds, steps in timed if seconds and steps]
    cost = f"; {mean(steps):,.0f} ms a step" if len(steps) == len(rows) else ""
    return f"{says}: {mean(accuracies):.1f}% over {len(rows)} draws{cost} (`benchmarks/results/{suite}`)"


@cache
def _rows(suite: str) -> list[Row]:
    return read_rows(ROOT / "benchmarks" / "results" / suite / "runs.csv")


def main() -> None:
    """Write the files, or say which are out of date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = [path for path, text in files().items() if not (ROOT / path).exists() or _read(path) != text]
    for path in stale if not check else ():
        (ROOT / path).write_text(files()[path], encoding="utf-8")
    print(*[f"{path}: {'out of date' if check else 'written'}" for path in stale] or ["nothing has changed"], sep="\n")
    raise SystemExit(1 if check and stale else 0)


def _read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


if __name__ == "__main__":
    main()
