"""The schemas that editors read and the reference pages of docs/ are made from the models, and committed."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import reference

from semisup.options import keys_of
from semisup.settings.read import read_mapping
from semisup.settings.shipped import MODELINE
from semisup.stages.kinds import KINDS

ROOT = Path(__file__).parents[2]


def test_what_is_committed_is_up_to_date() -> None:
    stale = [path for path, text in reference.files().items() if (ROOT / path).read_text(encoding="utf-8") != text]
    assert stale == [], "run: make reference"


@pytest.mark.parametrize(
    ("folder", "schema"), [("recipes", "recipe.schema.json"), ("benchmarks/suites", "suite.schema.json")]
)
def test_a_shipped_file_points_to_its_schema_and_an_editor_finds_no_mistake_in_it(folder: str, schema: str) -> None:
    files = sorted((ROOT / folder).rglob("*.yaml"))
    validator = jsonschema.Draft202012Validator(json.loads((ROOT / folder / schema).read_text(encoding="utf-8")))
    assert files
    for path in files:
        first = path.read_text(encoding="utf-8").splitlines()[0]
        assert first.startswith(MODELINE), path
        assert (path.parent / first.removeprefix(MODELINE)).samefile(ROOT / folder / schema)
        assert [error.message for error in validator.iter_errors(read_mapping(path))] == [], path


def test_every_key_is_documented() -> None:
    models = [reference.Recipe, reference.Suite, *reference.PARTS.values(), *(kind.Config for kind in KINDS)]
    silent = [
        f"{model.__name__}.{key}" for model in models for key, field in keys_of(model).items() if not field.description
    ]
    assert silent == []


def test_every_option_of_networks_and_policies_is_documented_where_it_stands() -> None:
    """What a class inherits is told of it too, in words, not as the name of another class."""
    options = [
        (name, option)
        for name, target in {**reference.BACKBONES, **reference.POLICIES}.items()
        for option in reference.described_options(target)
    ]
    assert [f"{name}.{option.name}" for name, option in options if not option.help or "see `" in option.help] == []
    local = {option.name: option.help for name, option in options if name == "local"}
    assert local["scale"].startswith("area of the crop") and "crop_flip" in local["scale"], "its own words win"


def test_a_key_is_a_mapping_of_the_model_that_has_it() -> None:
    """`pool` of a stage is a mapping, `pool` of a batch a number."""
    text = (ROOT / "docs/recipe-reference.md").read_text(encoding="utf-8")
    batch = text.split("## batch, of a train stage")[1].split("\n## ")[0]
    assert "| `pool` | whole number" in batch
    for part in ("entries", "search", "features"):
        assert f"## {part}, of a suite" in text
