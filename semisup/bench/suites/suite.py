"""A suite: which methods, at which label budgets, over which draws; read and checked like a recipe."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from semisup.bench.suites.baselines import check_baseline
from semisup.config import DataConfig, TrackingConfig
from semisup.config.check import read_settings
from semisup.config.interpolate import forbidden, resolve
from semisup.config.labels import parse_labels
from semisup.config.load import overlay, read_overrides
from semisup.config.read import read_mapping
from semisup.config.rules import at_least, between, matching, obeys, one_of
from semisup.config.shipped import shipped_folder, shipped_names
from semisup.errors import SemisupError, nearest, raise_all

__all__ = [
    "Compute",
    "EntryConfig",
    "SearchConfig",
    "Suite",
    "find_suite",
    "load_suite",
    "parse_suite",
    "shipped_suites",
]

_SEEDS = obeys(
    lambda value: (
        None
        if value and len(set(value)) == len(value) and all(0 <= seed < 2**32 for seed in value)
        else f"must be different seeds from 0 to 2**32 - 1, or how many (5 means 0 to 4), not {value}"
    )
)


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


def _each(parse: Any) -> Any:
    """A rule that a list has at least one item, none twice, and that `parse` accepts each."""

    def rule(values: list[Any]) -> str | None:
        if not values or len(set(map(str, values))) < len(values):
            return f"must be a list of different values, at least one, not {values}"
        for value in values:
            try:
                parse(value)
            except SemisupError as error:
                return str(error).removeprefix("data.labels: ")
        return None

    return obeys(rule)


def _grid_rule(value: dict[str, list[Any]]) -> str | None:
    for key, values in value.items():
        if not values or len({repr(item) for item in values}) < len(values):
            return f"'{key}' needs different values, at least one, not {values}"
    return None


def _baseline_rule(value: Any) -> str | None:
    names = [value] if isinstance(value, str) else value
    if value is None or (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        return None
    return f"must be the name of an entry or a list of such names, not {value!r}"


SUITES_OWN = ("name", "data", "seed", "init_seed", "precision", "threads", "compile", "oracle_every", "device")
"""Keys of a recipe that no entry may change: what is compared must differ in nothing else."""


@dataclass
class EntryConfig:
    """One row of the table: exactly one of recipe, train, stages and baseline."""

    # a recipe, shipped or a file; the suite's data, network, budgets and seeds take the place of its own
    recipe: str | None = None
    # of a recipe or of `stages`, the stage to judge; null: the last. Stages that it does not need are not run
    stage: str | None = None
    # changes to the recipe's file, each key=value as on the command line of `semisup run`
    overrides: list[str] = field(default_factory=list)
    # one training stage, laid over the suite's `defaults`; the keys of a recipe's stage
    train: dict[str, Any] = field(default_factory=dict)
    # several stages, as a recipe has them, the train stages laid over the suite's `defaults`
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    # a method from outside: {name: ..., its options}; see semisup.bench.suites.baselines
    baseline: dict[str, Any] = field(default_factory=dict)
    # a baseline's inputs: null for pixels, or the features of {recipe: ..., stage: ..., overrides: [...]}
    features: dict[str, Any] | None = None
    # budgets of this row alone, e.g. [all] for full supervision; null: the suite's
    labels: list[Any] | None = field(default=None, metadata=_each(parse_labels))
    # values to search over: option -> list of values. Keys: of `train`, of the baseline, else of the whole recipe
    search: dict[str, list[Any]] = field(default_factory=dict, metadata=obeys(_grid_rule))


@dataclass
class SearchConfig:
    """Random search: the same number of trials for every entry, judged by validation labels out of the budget."""

    # combinations tried for every entry, budget and draw, >= 2
    trials: int = field(default=4, metadata=at_least(2))
    # part of the budget's labels of every class that judges the trials; the final run trains on all of them
    validation: float = field(default=0.25, metadata=between(0.01, 0.5))


@dataclass
class Suite:
    """A benchmark."""

    # letters, digits and . _ - ; it names folders and the MLflow run
    name: str = field(
        metadata=matching(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", "must be 1 to 100 letters, digits and . _ -")
    )
    # as a recipe's, without labels, split_seed and validation, which the suite varies
    data: DataConfig = field(default_factory=DataConfig)
    # {name: ..., its options} of every entry; null: the recipes' own
    model: dict[str, Any] | None = None
    # budgets, as a recipe's data.labels
    labels: list[Any] = field(default_factory=lambda: ["all"], metadata=_each(parse_labels))
    # seeds of the label draws; a number n means 0 to n - 1
    draws: list[int] = field(default_factory=lambda: [0, 1, 2], metadata=_SEEDS)
    # seeds of the initial weights; a number n means 0 to n - 1
    inits: list[int] = field(default_factory=lambda: [0], metadata=_SEEDS)
    # of data order and augmentation, the same for all runs
    seed: int = field(default=0, metadata=between(0, 2**32 - 1))
    # lengths of a run: recipe (as written), or all its stages scaled to '400 steps' or '20 s' in all, or (equal) to as
    # many steps as the longest entry of the budget has: then the baselines train as long as what is compared with them
    compute: list[str] = field(default_factory=lambda: ["recipe"], metadata=_each(parse_compute))
    # entry that the others are paired with, or a list: on each budget the better of them; null: no differences
    baseline: Any = field(default=None, metadata=obeys(_baseline_rule))
    # test accuracies in (0, 1) for "labels needed"
    targets: list[float] = field(
        default_factory=list,
        metadata=obeys(lambda v: None if all(0 < t < 1 for t in v) else f"must be accuracies in (0, 1), not {v}"),
    )
    # keys of a recipe's stage under every entry's `train` and the train stages of its `stages`
    defaults: dict[str, Any] = field(default_factory=dict)
    # row name -> what is run
    entries: dict[str, EntryConfig] = field(default_factory=dict)
    # null: no search, every entry as written
    search: SearchConfig | None = None
    # steps between looks at the test set, for the oracle column; null: none
    oracle_every: int | None = field(default=None, metadata=at_least(1))
    # auto | fp32 | bf16 | fp16
    precision: str = field(default="auto", metadata=one_of("auto", "fp32", "bf16", "fp16"))
    # CPU threads of a run, >= 1
    threads: int = field(default=1, metadata=at_least(1))
    # how often a stage is tried again after an error that is not the recipe's: a full disk, and, of this machine's own
    # workers, one that died (a cluster elsewhere has its own setting for these, distributed.scheduler.allowed-failures)
    retries: int = field(default=2, metadata=at_least(0))
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    # for the reader of the tables: how the settings were found
    settings: str = ""

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
        ref: a path to a ``.yaml`` file, or a shipped name such as ``digits/budgets``.
        overrides: ``key=value`` texts that win over the file, e.g. ``draws=1`` or ``labels=[40]``.

    Raises:
        SemisupError: one message with every problem of the file and the overrides.
    """
    path = find_suite(ref)
    return parse_suite(read_mapping(path), overrides, str(path))


def parse_suite(mapping: Mapping[str, Any], overrides: Sequence[str] = (), subject: str = "suite") -> Suite:
    """Turn what a YAML file says into a checked suite; arguments as for :func:`semisup.config.parse_recipe`."""
    if overrides:
        subject = f"{subject} with {' '.join(overrides)[:200]}"
    problems: list[str] = []
    command = read_overrides(overrides, problems)
    for name in command.get("entries", {}) if isinstance(command.get("entries"), dict) else ():
        if name not in mapping.get("entries", {}):
            problems.append(f"entries.{name}: the suite has no such entry{nearest(name, mapping.get('entries', {}))}")
    refused = list(forbidden(dict(mapping)))
    raise_all([*problems, *refused] if refused else [], subject)
    merged = resolve(overlay(dict(mapping), command, "", problems), {}, problems)
    raise_all(problems, subject)
    clean = read_settings(Suite, _spell_out(merged), "", problems)
    problems += [f"{key}: missing" for key in ("name", "entries") if not merged.get(key)]
    raise_all(problems, subject)
    suite: Suite = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Suite), clean))  # type: ignore[assignment]
    raise_all(_suite_problems(suite), subject)
    return suite


def _spell_out(raw: dict[str, Any]) -> dict[str, Any]:
    """Write `draws: 5` in full."""
    short = {key: raw[key] for key in ("draws", "inits") if isinstance(raw.get(key), int) and 0 < raw[key] <= 1000}
    return raw | {key: list(range(count)) for key, count in short.items()}


def _suite_problems(suite: Suite) -> list[str]:
    """What is wrong between the keys."""
    problems = []
    for key, plain in (("labels", "all"), ("split_seed", None), ("validation", 0.0)):
        if getattr(suite.data, key) != plain:
            where = {"labels": "labels", "split_seed": "draws", "validation": "search.validation"}[key]
            problems.append(f"data.{key}: a suite varies it; give '{where}' at the top")
    if suite.model is not None and "name" not in suite.model:
        problems.append("model.name: missing")
    problems += [
        f"baseline: no entry '{name}'{nearest(str(name), suite.entries)}"
        for name in suite.baselines
        if name not in suite.entries
    ]
    for name, entry in suite.entries.items():
        problems += [f"entries.{name}{problem}" for problem in _entry_problems(name, entry, suite)]
    return problems


def _entry_problems(name: str, entry: EntryConfig, suite: Suite) -> list[str]:
    problems = []
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,59}", name):
        problems.append(": a name has only letters, digits, _ and -, at most 60")
    kinds = [kind for kind in ("recipe", "train", "stages", "baseline") if getattr(entry, kind)]
    if len(kinds) != 1:
        return [*problems, f": needs one of recipe, train, stages and baseline, has {' and '.join(kinds) or 'none'}"]
    for key, readers in (("stage", ("recipe", "stages")), ("overrides", ("recipe",)), ("features", ("baseline",))):
        if getattr(entry, key) and kinds[0] not in readers:
            problems.append(f".{key}: only an entry with {' or '.join(readers)} reads it")
    changed = [(".overrides", o.partition("=")[0]) for o in entry.overrides]
    changed += [(".features.overrides", str(o).partition("=")[0]) for o in (entry.features or {}).get("overrides", [])]
    changed += [(".search", key) for key in entry.search if not entry.train and not entry.baseline]
    taken = (*SUITES_OWN, *(["model"] if suite.model is not None else []))
    problems += [
        f"{where}: {key}: the suite sets it, the same for every entry"
        for where, key in changed
        if key.partition(".")[0] in taken
    ]
    if entry.baseline:
        problems += [f".baseline{problem}" for problem in check_baseline(entry.baseline)]
    if entry.features is not None:
        unknown = [key for key in entry.features if key not in ("recipe", "stage", "overrides")]
        problems += [f".features.{key}: unknown key{nearest(key, ['recipe', 'stage', 'overrides'])}" for key in unknown]
        if not isinstance(entry.features.get("recipe"), str):
            problems.append(".features.recipe: missing, the recipe whose stage gives the features")
    if suite.search is None and entry.search:
        problems.append(".search: the suite asks for no search; add search: {trials: ...} at the top")
    if suite.search is not None:
        combinations = 1
        for values in entry.search.values():
            combinations *= len(values)
        if combinations < suite.search.trials:
            problems.append(
                f".search: has {combinations} combinations, and every entry gets search.trials={suite.search.trials}; "
                "give more values to try"
            )
    return problems


def find_suite(ref: str | Path) -> Path:
    """Return the file of a suite, given by its path or by its shipped name.

    Raises:
        SemisupError: there is none, with the nearest shipped name.
    """
    name, path = str(ref), Path(ref)
    shipped = shipped_suites()
    if name in shipped:
        return _shipped_folder() / f"{name}.yaml"
    if path.is_file() and path.suffix in (".yaml", ".yml"):
        return path
    raise SemisupError(f"{name[:100]}: no such suite, neither a .yaml file nor a shipped one{nearest(name, shipped)}")


def shipped_suites() -> list[str]:
    """Return the names of the suites that come with the package, sorted, e.g. ``digits/budgets``."""
    return shipped_names(_shipped_folder())


def _shipped_folder() -> Path:
    return shipped_folder("suites", "benchmarks/suites")
