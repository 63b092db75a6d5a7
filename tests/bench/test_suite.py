"""A suite's mistakes are answered at once, with the key, the rule and the nearest valid name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from semisup.bench import find_suite, load_suite, shipped_suites
from semisup.bench.suites.suite import Compute, parse_compute, parse_suite
from semisup.config import load_recipe
from semisup.errors import SemisupError
from tests.bench.bench_small import SMALL, small

TRAIN = {"train": {"method": {"name": "supervised"}}}


def problems(**changes: Any) -> str:
    with pytest.raises(SemisupError) as caught:
        parse_suite({**SMALL, **changes})
    return str(caught.value)


def test_short_forms_are_spelled_out() -> None:
    suite = small("draws=3", "inits=[4, 7]", "labels=[40]")
    assert (suite.draws, suite.inits, suite.labels) == ([0, 1, 2], [4, 7], [40])
    assert suite.entries["finetuned"].stage == "finetune"


def test_every_problem_is_in_one_message() -> None:
    message = problems(
        data={"source": "digits", "labels": 40, "split_seed": 1, "validation": 0.2},
        baseline="fixmtch",
        entries={
            "a b": TRAIN,
            "none": {},
            "two": {**TRAIN, "recipe": "digits/quickstart"},
            "stage": {**TRAIN, "stage": "train"},
            "feature": {"baseline": {"name": "self_trainin"}, "features": {"recip": "x"}},
            "option": {"baseline": {"name": "label_spreading", "C": 1.0, "neighbors": 2.5, "alpha": 0}},
            "search": {**TRAIN, "search": {"steps": [1, 2]}},
        },
    )
    for part in (
        "data.labels: a suite varies it; give 'labels' at the top",
        "data.split_seed: a suite varies it; give 'draws' at the top",
        "data.validation: a suite varies it; give 'search.validation' at the top",
        "baseline: no entry 'fixmtch'",
        "entries.a b: a name has only letters, digits, _ and -, at most 60",
        "entries.none: needs one of recipe, train, stages and baseline, has none",
        "entries.two: needs one of recipe, train, stages and baseline, has recipe and train",
        "entries.stage.stage: only an entry with recipe or stages reads it",
        "entries.feature.baseline.name: unknown baseline 'self_trainin'; did you mean 'self_training'?",
        "entries.feature.features.recip: unknown key; did you mean 'recipe'?",
        "entries.feature.features.recipe: missing",
        "entries.option.baseline.C: unknown key",
        "entries.option.baseline.neighbors: must be a whole number, not 2.5",
        "entries.option.baseline.alpha: must be greater than 0, not 0",
        "entries.search.search: the suite asks for no search; add search: {trials: ...} at the top",
    ):
        assert part in message, part


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"labels": [40, "ten"]}, "labels[1]: must be 'all', a number of images"),
        ({"labels": [40, 40]}, "labels: must be a list of different values, at least one, not [40, 40]"),
        ({"draws": [1, 1]}, "draws: must be a list of different values, at least one, not [1, 1]"),
        ({"labels": [40, "40"]}, "labels: must be a list of different values, at least one, not [40, '40']"),
        ({"labels": ["all", "100%"]}, "labels: must be a list of different values"),
        ({"labels": ["1%", 0.01]}, "labels: must be a list of different values"),
        ({"entries": {"a": {**TRAIN, "labels": ["4/class", "4 per class"]}}}, "a.labels: must be a list of different"),
        ({"compute": ["20 s", "20.0s"]}, "compute: must be a list of different values"),
        ({"draws": 0}, "draws: must be a number from 1 to 1000, or a list of seeds, not 0"),
        ({"draws": 1001}, "draws: must be a number from 1 to 1000, or a list of seeds, not 1001"),
        ({"draws": True}, "draws: must be a number from 1 to 1000, or a list of seeds, not true"),
        ({"inits": "three"}, "inits: must be a number from 1 to 1000, or a list of seeds, not 'three'"),
        ({"compute": ["20 minutes"]}, "compute[0]: must be 'recipe', 'equal', a number of steps ('400 steps')"),
        ({"compute": ["0.5 steps"]}, "compute[0]: must be 'recipe'"),
        ({"targets": [80]}, "targets[0]: must be less than 1, not 80"),
        ({"baseline": 3}, "baseline: must be the name of an entry, a list of names, or null"),
        ({"baseline": ["a", "b"]}, "baseline: no entry 'b'"),
        ({"entires": {}}, "entires: unknown key; did you mean 'entries'?"),
        ({"name": "a/b"}, "name: must be 1 to 100 letters"),
        ({"entries": {}}, "entries: must have at least one entry"),
        ({"entries": None}, "entries: must be a mapping, not null"),
        ({"entries": {"a": {**TRAIN, "search": {"optimizer.lr": [0.1, 0.1]}}}, "search": {"trials": 2}},
         "entries.a.search.optimizer.lr: must be a list of different values, at least one, not [0.1, 0.1]"),
        ({"settings": "${oc.env:HOME}"}, "settings: only plain references"),
    ],
)  # fmt: skip
def test_mistakes(changes: dict[str, Any], problem: str) -> None:
    assert problem in problems(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"entries": []},
        {"entries": {"a": None}},
        {"entries": {"a": {"train": None}}},
        {"entries": {"a": {"baseline": "logistic_regression"}}},
        {"search": {"trials": 1}},
    ],
)
def test_what_follows_from_a_mistake_is_no_second_one(changes: dict[str, Any]) -> None:
    assert "problems" not in problems(**{"baseline": "a", "entries": {"a": TRAIN}, **changes})


def test_every_entry_needs_enough_values_to_try() -> None:
    searched = {"a": {**TRAIN, "search": {"optimizer.lr": [0.1, 0.2]}}, "b": TRAIN}
    message = problems(search={"trials": 4}, entries=searched, baseline="a")
    assert "entries.a.search: has 2 combinations, and every entry gets search.trials=4; give more values" in message
    assert "entries.b.search: has 1 combination," in message


def test_no_entry_may_change_what_all_must_share() -> None:
    message = problems(
        entries={
            "a": {"recipe": "digits/quickstart", "overrides": ["data.labels=400", "seed=5", "stages.x.steps=1"]},
            "b": {"baseline": {"name": "label_spreading"},
                  "features": {"recipe": "digits/quickstart", "overrides": ["init_seed=1"]}},
            "c": {"recipe": "digits/quickstart", "search": {"model.width": [1, 2, 3]}},
        },
        search={"trials": 2},
        baseline=None,
    )  # fmt: skip
    for part in (
        "entries.a.overrides: data.labels: the suite sets it, the same for every entry",
        "entries.a.overrides: seed: the suite",
        "entries.b.features.overrides: init_seed: the suite",
        "entries.c.search: model.width: the suite",
    ):
        assert part in message, part
    assert "stages.x.steps" not in message


def test_an_override_of_an_entry_that_is_not_there() -> None:
    with pytest.raises(SemisupError, match=r"entries\.fixmtch: the suite has no such entry; did you mean 'fixmatch'"):
        small("entries.fixmtch.train.steps=3")


def test_lengths() -> None:
    assert parse_compute("recipe") == Compute(0, "")
    assert [parse_compute(text).text for text in ("400 steps", "20 s", "1.5s", "recipe")] == [
        "400 steps", "20 s", "1.5 s", "",
    ]  # fmt: skip


def test_a_file_of_another_kind_is_told_what_to_do(tmp_path: Path) -> None:
    recipe, suite, empty = (tmp_path / name for name in ("recipe.yaml", "suite.yaml", "empty.yaml"))
    recipe.write_text("name: x\nstages: {a: {method: {name: supervised}}}\n")
    suite.write_text("name: x\nentries: {a: {train: {method: {name: supervised}}}}\n")
    empty.write_text("")
    for load, path, words in (
        (load_suite, recipe, f"is a recipe of one run, not a suite; start it with: semisup run {recipe}"),
        (load_recipe, suite, f"is a suite of many runs, not a recipe; start it with: semisup bench {suite}"),
        (load_suite, empty, "the file is empty; a suite needs at least 'name' and 'entries'"),
        (load_recipe, empty, "the file is empty; a recipe needs at least 'name' and 'stages'"),
        (load_suite, "digits/quickstart", "a recipe of one run, not a suite; start it with: semisup run digits"),
        (load_recipe, "digits/budgets", "is a suite of many runs, not a recipe; start it with: semisup bench digits/"),
        (load_suite, tmp_path, "is a folder; a suite is one .yaml file"),
        (load_suite, "x" * 5000, "cannot be read: File name too long"),
    ):
        with pytest.raises(SemisupError) as caught:
            load(path)
        assert words in str(caught.value)


def test_suites_are_found_by_name_and_by_path(tmp_path: Path) -> None:
    assert "digits/budgets" in shipped_suites()
    assert find_suite("digits/budgets").is_file()
    with pytest.raises(SemisupError, match=r"digits/budget: no such suite, .* did you mean 'digits/budgets'"):
        load_suite("digits/budget")
    with pytest.raises(SemisupError, match="is a folder"):
        load_suite(tmp_path)
