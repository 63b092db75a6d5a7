"""A suite: which methods, at which label budgets, over which draws; read and checked like a recipe."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from semisup.bench.suites.baselines import check_baseline
from semisup.config.load import overlay, read_overrides
from semisup.errors import SemisupError, nearest, raise_all
from semisup.options import Range, Seed, Settings, Size, read
from semisup.settings import DataConfig, TrackingConfig
from semisup.settings.interpolate import forbidden, resolve
from semisup.settings.labels import parse_labels
from semisup.settings.read import read_mapping
from semisup.settings.schema import Named, Precision, RecipeName, Threads
from semisup.settings.shipped import find_yaml, of_another_kind, shipped_folder, shipped_names

__all__ = [
    "Compute",
    "EntryConfig",
    "FeaturesConfig",
    "SearchConfig",
    "Suite",
    "find_suite",
    "load_suite",
    "parse_suite",
    "shipped_suites",
    "suite_schema",
]


@dataclass(frozen=True)
class Compute:
    """How long a run is: as its recipe says, scaled to so many steps or seconds, or to the longest entry's steps.

    All train stages count together; other stages, evaluation and baselines do not.
    """

    amount: float
    unit: str
    """steps, s, equal, or nothing for the recipe's own length; with the last two the amount is 0."""

    @property
    def text(self) -> str:
        """As the tables have it; empty for the recipe's own length."""
        if self.unit == "equal":
            return "equal steps"
        return f"{self.amount:g} {self.unit}" if self.unit else ""


def parse_compute(text: str) -> Compute:
    """Read `recipe`, `equal`, `400 steps` or `20 s`.

    Raises:
        SemisupError: anything else.
    """
    if text == "recipe":
        return Compute(0, "")
    if text == "equal":
        return Compute(0, "equal")
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,3})?) ?(steps|s)", text)
    if match is None or float(match[1]) <= 0 or (match[2] == "steps" and "." in match[1]):
        raise SemisupError(
            f"must be 'recipe', 'equal', a number of steps ('400 steps') or of seconds ('20 s'), not '{text}'"
        )
    return Compute(float(match[1]), match[2])


def _parsed_by(parse: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return the rule that `parse` accepts a value."""

    def check(value: Any) -> Any:
        try:
            parse(value)
        except SemisupError as error:
            raise ValueError(str(error).removeprefix("data.labels: ")) from None
        return value

    return check


def _different(values: list[Any]) -> list[Any]:
    if not values or len(set(map(repr, values))) < len(values):
        raise ValueError("must be a list of different values, at least one")
    return values


def _different_budgets(values: list[Any]) -> list[Any]:
    """By what they mean: `40` is '40', '1%' is 0.01, and '100%' is all."""
    budgets = [parse_labels(value) for value in values]
    _different([None if budget.everything else (budget.kind, budget.amount) for budget in budgets])
    return values


def _different_lengths(values: list[Any]) -> list[Any]:
    _different([parse_compute(value) for value in values])
    return values


def _spelled_out(value: Any) -> Any:
    """Return the first so many seeds for a number."""
    if isinstance(value, list):
        return value
    if type(value) is not int or not 0 < value <= MOST_SEEDS:
        raise ValueError(f"must be a number from 1 to {MOST_SEEDS}, or a list of seeds")
    return list(range(value))


def _entry_names(value: Any) -> Any:
    names = value if isinstance(value, list) else [value]
    if value is not None and not all(isinstance(name, str) for name in names):
        raise ValueError("must be the name of an entry, a list of names, or null")
    return value


Budgets = Annotated[list[Annotated[Any, AfterValidator(_parsed_by(parse_labels))]], AfterValidator(_different_budgets)]
Computes = Annotated[
    list[Annotated[str, AfterValidator(_parsed_by(parse_compute))]], AfterValidator(_different_lengths)
]
Seeds = Annotated[list[Seed], BeforeValidator(_spelled_out), AfterValidator(_different)]

MOST_SEEDS = 1000
"""That a number is short for."""
SUITES_OWN = ("name", "data", "seed", "init_seed", "precision", "threads", "compile", "oracle_every", "device")
"""Keys of a recipe that no entry may change: what is compared must differ in nothing else."""
KINDS = ("recipe", "train", "stages", "baseline")
"""Keys of an entry of which it has one."""


class FeaturesConfig(Settings):
    """Where a baseline's inputs come from: a stage of a recipe."""

    recipe: str
    """The recipe, shipped or a file."""
    stage: str | None = None
    """The stage whose network makes the features; null: the last."""
    overrides: list[str] = []
    """Changes to the recipe's file, each key=value."""


class EntryConfig(Settings):
    """One row of the table: exactly one of recipe, train, stages and baseline."""

    recipe: str | None = None
    """A recipe, shipped or a file; the suite's data, network, budgets and seeds take the place of its own."""
    stage: str | None = None
    """Of a recipe or of `stages`, the stage to evaluate; null: the last. Stages that it does not need are not run."""
    overrides: list[str] = []
    """Changes to the recipe's file, each key=value as on the command line of `semisup run`."""
    train: dict[str, Any] = {}
    """One training stage, laid over the suite's `defaults`; the keys of a recipe's stage."""
    stages: dict[str, dict[str, Any]] = {}
    """Several stages, as a recipe has them, the train stages laid over the suite's `defaults`."""
    baseline: Named = {}
    """A method from outside, {name: ..., its options}: logistic_regression, self_training or label_spreading."""
    features: FeaturesConfig | None = None
    """A baseline's inputs: null for pixels, or the features of {recipe: ..., stage: ..., overrides: [...]}."""
    labels: Budgets | None = None
    """Budgets of this row alone, e.g. [all] for full supervision; null: the suite's."""
    search: dict[str, Annotated[list[Any], AfterValidator(_different)]] = {}
    """Values to search over: option -> list of values. Keys: of `train`, of the baseline, else of the whole recipe."""


class SearchConfig(Settings):
    """Random search: the same number of trials for every entry, compared by validation labels out of the budget."""

    trials: Annotated[int, Range(2, 10_000)] = 4
    """Combinations tried for every entry, budget and draw, >= 2."""
    validation: Annotated[float, Range(0.01, 0.5)] = 0.25
    """Part of the budget's labels of every class that compares the trials; the final run trains on all of them."""


class Suite(Settings):
    """A benchmark."""

    name: RecipeName
    """Letters, digits and . _ - ; it names folders and the MLflow run."""
    data: DataConfig = DataConfig()
    """As a recipe's, without labels, split_seed and validation, which the suite varies."""
    model: Named | None = None
    """{name: ..., its options} of every entry; null: the recipes' own."""
    labels: Budgets = ["all"]
    """Budgets, as a recipe's data.labels."""
    draws: Seeds = [0, 1, 2]
    """Seeds of the label draws; a number n means 0 to n - 1."""
    inits: Seeds = [0]
    """Seeds of the initial weights; a number n means 0 to n - 1."""
    seed: Seed = 0
    """Of data order and augmentation, the same for all runs."""
    compute: Computes = ["recipe"]
    """Lengths of a run: recipe (as written), or all its stages scaled to '400 steps' or '20 s' in all, or (equal) to as
    many steps as the longest entry of the budget has: then a baseline trains as long as what is compared with it."""
    baseline: Annotated[Any, AfterValidator(_entry_names)] = None
    """Entry that the others are paired with, or a list: on each budget the better of them; null: no differences."""
    targets: list[Annotated[float, Range(0, 1, open_low=True, open_high=True)]] = []
    """Test accuracies in (0, 1) for "labels needed"."""
    defaults: dict[str, Any] = {}
    """Keys of a recipe's stage under every entry's `train` and the train stages of its `stages`."""
    entries: dict[str, EntryConfig]
    """Row name -> what is run."""
    search: SearchConfig | None = None
    """Null: no search, every entry as written."""
    oracle_every: Size | None = None
    """Steps between looks at the test set, for the oracle column; null: none."""
    precision: Precision = "auto"
    """Of the arithmetic; auto: bf16 on CUDA, else fp32."""
    threads: Threads = 1
    """CPU threads of a run, >= 1."""
    gpus_per_run: Annotated[int, Range(1, 64)] = 1
    """Processes that share each train stage: a GPU each (they must divide the GPUs there are), or `threads` cores each
    where there is none; they learn what one learns."""
    retries: Annotated[int, Range(0, 1000)] = 2
    """How often a stage is tried again after an error that is not the recipe's: a full disk, and, of this machine's own
    workers, one that died (a cluster elsewhere has its own setting, distributed.scheduler.allowed-failures)."""
    tracking: TrackingConfig = TrackingConfig()
    """Where the runs are recorded."""
    settings: str = ""
    """For the reader of the tables: how the settings were found."""

    @property
    def baselines(self) -> list[str]:
        """The entries that the others are compared with."""
        if self.baseline is None:
            return []
        return [self.baseline] if isinstance(self.baseline, str) else list(dict.fromkeys(self.baseline))

    @property
    def computes(self) -> list[Compute]:
        """The parsed lengths."""
        return [parse_compute(text) for text in self.compute]


def load_suite(ref: str | Path, overrides: Sequence[str] = ()) -> Suite:
    """Read a suite from a file or from the shipped ones.

    Args:
        ref: a path to a `.yaml` file, or a shipped name such as `digits/budgets`.
        overrides: `key=value` texts that win over the file, e.g. `draws=1` or `labels=[40]`.

    Raises:
        SemisupError: one message with every problem of the file and the overrides.
    """
    path = find_suite(ref)
    mapping = read_mapping(path, "suite")
    if "stages" in mapping and "entries" not in mapping:
        raise of_another_kind(path, "suite")
    return parse_suite(mapping, overrides, str(path))


def parse_suite(mapping: Mapping[str, Any], overrides: Sequence[str] = (), subject: str = "suite") -> Suite:
    """Turn what a YAML file says into a checked suite; arguments as for `semisup.config.parse_recipe`."""
    if overrides:
        subject = f"{subject} with {' '.join(overrides)[:200]}"
    problems: list[str] = []
    told = read_overrides(overrides, problems)
    entries, changed = mapping.get("entries"), told.get("entries")
    if isinstance(entries, dict) and isinstance(changed, dict):
        problems += [
            f"entries.{name}: the suite has no such entry{nearest(name, map(str, entries))}"
            for name in changed
            if name not in entries
        ]
    refused = list(forbidden(dict(mapping)))
    raise_all([*problems, *refused] if refused else [], subject)
    merged = resolve(overlay(dict(mapping), told, "", problems), {}, problems)
    raise_all(problems, subject)
    clean, problems = read(Suite, merged)
    # What is between the keys is looked at where they are themselves right.
    sound, _ = read(Suite, {"name": "x", "entries": {}, **clean})  # without what has lost a key that it needs
    suite = Suite.model_validate(sound)
    raise_all(problems + _suite_problems(suite, problems), subject)
    return suite


def _suite_problems(suite: Suite, told: Sequence[str]) -> list[str]:
    """Return what is wrong between the keys, without what would follow from problems that are told already."""
    lacking = any(problem.startswith("entries") for problem in told)
    problems = [] if suite.entries or lacking else ["entries: must have at least one entry"]
    for key, plain in (("labels", "all"), ("split_seed", None), ("validation", 0.0), ("fold", 0)):
        if getattr(suite.data, key) != plain:
            where = {"labels": "labels", "split_seed": "draws", "validation": "search.validation", "fold": "draws"}[key]
            problems.append(f"data.{key}: a suite varies it; give '{where}' at the top")
    if suite.model is not None and "name" not in suite.model:
        problems.append("model.name: missing")
    problems += [
        f"baseline: no entry '{name}'{nearest(str(name), suite.entries)}"
        for name in suite.baselines
        if name not in suite.entries
        and not any(problem.startswith(("entries:", f"entries.{name}:")) for problem in told)
    ]
    searches = not any(problem.startswith("search") for problem in told)
    for name, entry in suite.entries.items():
        if any(problem.startswith(tuple(f"entries.{name}.{kind}: " for kind in KINDS)) for problem in told):
            continue
        problems += [f"entries.{name}{problem}" for problem in _entry_problems(name, entry, suite, searches)]
    return problems


def _entry_problems(name: str, entry: EntryConfig, suite: Suite, searches: bool) -> list[str]:
    problems = []
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,59}", name):
        problems.append(": a name has only letters, digits, _ and -, at most 60")
    kinds = [kind for kind in KINDS if getattr(entry, kind)]
    if len(kinds) != 1:
        return [*problems, f": needs one of recipe, train, stages and baseline, has {' and '.join(kinds) or 'none'}"]
    for key, readers in (("stage", ("recipe", "stages")), ("overrides", ("recipe",)), ("features", ("baseline",))):
        if getattr(entry, key) and kinds[0] not in readers:
            problems.append(f".{key}: only an entry with {' or '.join(readers)} reads it")
    changed = [(".overrides", o.partition("=")[0]) for o in entry.overrides]
    if entry.features is not None:
        changed += [(".features.overrides", o.partition("=")[0]) for o in entry.features.overrides]
    changed += [(".search", key) for key in entry.search if not entry.train and not entry.baseline]
    taken = (*SUITES_OWN, *(["model"] if suite.model is not None else []))
    problems += [
        f"{where}: {key}: the suite sets it, the same for every entry"
        for where, key in changed
        if key.partition(".")[0] in taken
    ]
    if entry.baseline:
        problems += check_baseline(entry.baseline, ".baseline")
    if suite.search is None and entry.search:
        problems.append(".search: the suite asks for no search; add search: {trials: ...} at the top")
    if suite.search is not None and searches:
        combinations = 1
        for values in entry.search.values():
            combinations *= len(values)
        if combinations < suite.search.trials:
            has = f"{combinations} combination{'s' * (combinations > 1)}"
            problems.append(
                f".search: has {has}, and every entry gets search.trials={suite.search.trials}; give more values to try"
            )
    return problems


def suite_schema() -> dict[str, Any]:
    """Return the JSON Schema of suites, for editors that complete keys."""
    schema = Suite.model_json_schema(by_alias=True)
    for key in ("draws", "inits"):  # a number is short for the first so many
        schema["properties"][key] = {"anyOf": [{"type": "integer"}, schema["properties"][key]]}
    return schema


def find_suite(ref: str | Path) -> Path:
    """Return the file of a suite, given by its path or by its shipped name.

    Raises:
        SemisupError: no such file, a folder, or not a `.yaml`; with the nearest shipped name.
    """
    return find_yaml(ref, _shipped_folder(), "suite")


def shipped_suites() -> list[str]:
    """Return the names of the suites that come with the package, sorted, e.g. `digits/budgets`."""
    return shipped_names(_shipped_folder())


def _shipped_folder() -> Path:
    return shipped_folder("suite")
