"""The JSON Schema of a recipe, for editors that complete keys: options of every method, network and policy included."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from semisup.augment import POLICIES
from semisup.methods import METHODS
from semisup.models import BACKBONES
from semisup.options import options_model
from semisup.plugins import load_plugins
from semisup.stages.kinds import CheckedRecipe

__all__ = ["recipe_schema"]


def recipe_schema() -> dict[str, Any]:
    """Return the JSON Schema of recipes."""
    load_plugins()
    schema = CheckedRecipe.model_json_schema(by_alias=True)
    method, model, policy = _choice("name", METHODS), _choice("name", BACKBONES), _choice("policy", POLICIES)
    # Of packages, or of another key of the recipe: ${model.name}.
    other = {"properties": {"name": {"pattern": r"^((torchvision|timm)/|\$\{)"}}, "required": ["name"]}
    schema["$defs"] |= {"Method": method, "Model": {"anyOf": [*model["anyOf"], other]}, "View": policy}
    for owner in (schema, *schema["$defs"].values()):
        for key, name in (("method", "Method"), ("model", "Model")):
            if key in owner.get("properties", {}):
                owner["properties"][key] = {"$ref": f"#/$defs/{name}"}
        if "augment" in owner.get("properties", {}):
            views = {"properties": {"policy": {"const": "auto"}}, "additionalProperties": {"$ref": "#/$defs/View"}}
            owner["properties"]["augment"] = {"anyOf": [{"const": "auto"}, views]}
    for stage in schema["properties"]["stages"]["additionalProperties"]["oneOf"]:
        _take_short_forms(schema["$defs"][stage["$ref"].rpartition("/")[2]])
    schema["$defs"]["View"]["anyOf"] += [{"type": "string"}, {"required": ["albumentations"]}]
    return schema


def _take_short_forms(stage: dict[str, Any]) -> None:
    """Have a stage's schema accept `init: pretrain` and `freeze: true`; another kind than train must be written."""
    properties = stage["properties"]
    for key, short in (("init", "string"), ("teacher", "string"), ("freeze", "boolean"), ("lora", "boolean")):
        if key in properties:
            properties[key] = {"anyOf": [{"type": short}, properties[key]]}
    if properties["kind"]["const"] != "train":
        stage["required"] = ["kind", *stage.get("required", [])]


def _choice(key: str, known: Mapping[str, Callable[..., Any]]) -> dict[str, Any]:
    """Return the schema of a mapping that names one of these and has its options."""
    found = []
    for name, target in known.items():
        one = options_model(target).model_json_schema()
        one["properties"] = {key: {"const": name}} | one.get("properties", {})
        one["required"] = [key, *one.get("required", [])]
        found.append(one)
    return {"anyOf": found}
