from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from semisup.augment import POLICIES
from semisup.methods import METHODS
from semisup.models import BACKBONES
from semisup.options import option_defaults
from semisup.pipeline.schema import recipe_schema


def test_the_schema_has_the_options_of_everything_a_recipe_can_name() -> None:
    schema = json.loads(json.dumps(recipe_schema()))
    for part, key, known in (("Method", "name", METHODS), ("Model", "name", BACKBONES), ("View", "policy", POLICIES)):
        found = {
            one["properties"][key].get("const"): one for one in schema["$defs"][part]["anyOf"] if "properties" in one
        }
        for name, target in known.items():
            assert set(found[name]["properties"]) == {key, *option_defaults(target)}
            assert found[name]["additionalProperties"] is False
    assert "seed" in schema["properties"] and schema["additionalProperties"] is False


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads(json.dumps(recipe_schema())))


@pytest.mark.parametrize(
    "stage",
    [
        {"kind": "knn", "of": "train", "neighbors": 20},  # propagate's
        {"kind": "propagate", "teacher": "train", "steps": 20},
        {"method": {"name": "fixmatch", "temperature": 1.0, "treshold": 0.9}, "steps": 20},
    ],
)
def test_an_editor_marks_a_key_that_a_kind_or_method_lacks(
    validator: jsonschema.Draft202012Validator, stage: dict[str, Any]
) -> None:
    assert not validator.is_valid({"name": "a", "model": {"name": "cnn"}, "stages": {"b": stage}})
