"""Recipes, overrides and suites with random damage: each works or is refused in one message."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from semisup.bench.suites.suite import find_suite, load_suite, parse_suite, shipped_suites
from semisup.config import find_recipe, parse_recipe, shipped_recipes, to_yaml
from semisup.errors import SemisupError
from semisup.pipeline.plan import load_checked
from semisup.settings.read import dump, read_mapping
from tests.faults.fuzzing import damaged, fuzz, outcome, places, scalars, watched

FEW = 6
"""Of damaged recipes, their texts, overrides and suites, each; the slow tests have 10,000 of the first three."""


def smaller(tree: Any) -> Any:
    """Return a recipe with shallow networks: to build WRN-28-2 in vain was most of what a case cost."""
    if isinstance(tree, list):
        return [smaller(value) for value in tree]
    if not isinstance(tree, dict):
        return tree
    wide = tree.get("name") == "wrn"
    return {key: 10 if wide and key == "depth" else smaller(value) for key, value in tree.items()}


def some(names: list[str], cases: int) -> list[str]:
    """Every tenth name for a few cases: reading them all would take longer than the cases."""
    return names if cases > FEW else names[::10]


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory, cases: int) -> list[Any]:
    """Shipped recipes, on forty images: what is wrong with one is looked for with its data, read for each mutant."""
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    draws = np.random.default_rng(0)
    arrays = {f"x_{part}": draws.integers(0, 256, (40, 8, 8), dtype=np.uint8) for part in ("train", "test")}
    np.savez(path, **arrays, y_train=np.arange(40) % 4, y_test=np.arange(40) % 4)
    trees = [smaller(read_mapping(find_recipe(name))) for name in some(shipped_recipes(), cases)]
    return [tree | {"data": {"source": "npz", "path": str(path), "labels": 8}} for tree in trees]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that a recipe names are not asked for on a network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def written(path: Path, tree: Any) -> bool:
    """Write a tree as YAML; False where YAML cannot say it."""
    try:
        path.write_bytes(dump(tree).encode())
    except UnicodeEncodeError:
        return False
    return True


def sizes(many: int) -> pytest.MarkDecorator:
    slow = pytest.param(many, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])
    return pytest.mark.parametrize("cases", [FEW, slow], scope="module")


@sizes(4000)
def test_recipes(cases: int, recipes: list[Any], tmp_path: Path) -> None:
    outcomes: Counter[str] = Counter()
    for recipe in recipes:
        assert written(tmp_path / "recipe.yaml", recipe)
        assert outcome(lambda: load_checked(tmp_path / "recipe.yaml")) == "works", recipe["name"]

    def one(data: st.DataObject) -> None:
        path = tmp_path / "recipe.yaml"
        if not written(path, damaged(data, data.draw(st.sampled_from(recipes)), recipes)):
            return

        def check() -> None:
            text = to_yaml(load_checked(path))
            (tmp_path / "again.yaml").write_text(text)
            assert to_yaml(parse_recipe(read_mapping(tmp_path / "again.yaml"))) == text

        with watched(tmp_path, 400):
            outcomes[outcome(check)] += 1

    fuzz(cases, one)
    assert outcomes["refused"], outcomes


@pytest.mark.parametrize("cases", [FEW], scope="module")
def test_keys_that_a_message_cannot_be_cut_at(recipes: list[Any]) -> None:
    for key in ("", "n- ame", "\n\n", "a: b"):
        with pytest.raises(SemisupError) as error:
            load_checked(recipes[0] | {key: 1})
        assert f"{key if key.isprintable() and key else repr(key)}: unknown key" in str(error.value)


@pytest.mark.parametrize("cases", [FEW], scope="module")
def test_half_a_character_as_a_key_hides_no_other_mistake(recipes: list[Any]) -> None:
    stages = {"train": {"methodx": {"name": "supervised"}, "steps": 3}}
    with pytest.raises(SemisupError, match=r"(?s)half a character.*stages\.train\.methodx: unknown key"):
        load_checked(recipes[0] | {"\ud800": 1, "stages": stages})


@pytest.mark.parametrize("cases", [FEW], scope="module")
def test_a_key_that_is_no_text(recipes: list[Any]) -> None:
    with pytest.raises(SemisupError, match=r"data\.False: the key must be text"):
        load_checked(recipes[0] | {"data": {False: None}})


def test_an_entry_whose_features_have_no_recipe() -> None:
    entry = {"baseline": {"name": "logistic_regression"}, "features": {"recipe": None, "stage": "pretrain"}}
    with pytest.raises(SemisupError, match=r"entries\.a\.features\.recipe: "):
        parse_suite({"name": "x", "labels": [40], "entries": {"a": entry}})


@pytest.mark.parametrize("cases", [FEW], scope="module")
def test_a_key_that_is_null_next_to_a_reference(recipes: list[Any]) -> None:
    with pytest.raises(SemisupError, match=r"references .* cannot be followed"):
        load_checked(recipes[0] | {"name": {None: "${seed}"}})


@sizes(2500)
def test_texts_of_recipes(cases: int, recipes: list[Any], tmp_path: Path) -> None:
    """Damage to the YAML itself."""
    marks = st.sampled_from(
        [*"{}[]:,&*!|>'\"#%@`-?~ \t\n", "\0", "&a ", "*a", "<<: ", "- ", "? ", "!!set ", "---\n", "\x85"]
    )

    def one(data: st.DataObject) -> None:
        text = dump(data.draw(st.sampled_from(recipes)))
        for _ in range(data.draw(st.integers(1, 5))):
            at = data.draw(st.integers(0, len(text)))
            end = at + data.draw(st.integers(0, 12))
            text = text[:at] + data.draw(st.one_of(marks, st.text(max_size=5))) + text[end:]
        path = tmp_path / "recipe.yaml"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        with watched(tmp_path, 400):
            outcome(lambda: load_checked(path))

    fuzz(cases, one)


@sizes(3500)
def test_overrides(cases: int, recipes: list[Any], tmp_path: Path) -> None:
    def one(data: st.DataObject) -> None:
        recipe = data.draw(st.sampled_from(recipes))
        paths = [".".join(map(str, place)) for place in places(recipe)]
        values = st.one_of(
            scalars.map(json.dumps), scalars.map(str), st.text(), st.sampled_from(["{", "[", "!!x", "{}"])
        )
        overrides = [
            f"{data.draw(st.sampled_from(paths))}={data.draw(values)}"
            if data.draw(st.booleans())
            else data.draw(st.text())
            for _ in range(data.draw(st.integers(1, 4)))
        ]
        path = tmp_path / "recipe.yaml"
        assert written(path, recipe)
        with watched(tmp_path, 400):
            outcome(lambda: load_checked(path, overrides))

    fuzz(cases, one)


@sizes(2500)
def test_suites(cases: int, tmp_path: Path) -> None:
    suites = [smaller(read_mapping(find_suite(name))) for name in some(shipped_suites(), cases)]
    outcomes: Counter[str] = Counter()
    for suite in suites:
        assert written(tmp_path / "suite.yaml", suite)
        assert outcome(lambda: load_suite(tmp_path / "suite.yaml")) == "works", suite["name"]

    def one(data: st.DataObject) -> None:
        path = tmp_path / "suite.yaml"
        if not written(path, damaged(data, data.draw(st.sampled_from(suites)), suites)):
            return
        overrides = data.draw(
            st.lists(st.sampled_from(["draws=1", "labels=[40]", "entries.x=1", "entries=null"]), max_size=1)
        )
        with watched(tmp_path, 400):
            outcomes[outcome(lambda: load_suite(path, overrides))] += 1

    fuzz(cases, one)
    assert outcomes["refused"], outcomes
