"""The one checker of what a user types: models of settings, bounds for their values, and mistakes said in one voice.

A file of settings is a `Settings` model; the options of a method, a backbone, a policy or a baseline are its
constructor's signature. Both are checked by pydantic, and every mistake becomes one sentence: the full key, the rule,
the value, and the nearest valid name.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, ValidationError, create_model
from pydantic.fields import FieldInfo

from semisup.errors import near, nearest

__all__ = [
    "AtLeastTwo",
    "BelowOne",
    "ClassShares",
    "ClassSharesOrNot",
    "Color",
    "Count",
    "CountOrZero",
    "Depth",
    "Fraction",
    "Momentum",
    "NonNegative",
    "NotEmpty",
    "Positive",
    "Quarter",
    "Range",
    "Seed",
    "Settings",
    "Size",
    "check_name",
    "check_named",
    "check_options",
    "keys_of",
    "matching",
    "one_of",
    "option_defaults",
    "options_model",
    "pair",
    "read",
    "sentences",
    "show",
    "subset",
    "unread",
    "without",
]

MOST = 10**6
"""Largest count of anything that is held in memory or gone through one by one: more is a slip of the finger."""


def Range(
    low: float | None = None, high: float | None = None, *, open_low: bool = False, open_high: bool = False
) -> Any:
    """Return the bounds of a number, as in `Annotated[float, Range(0, 1, open_high=True)]`.

    Args:
        low: smallest value; None: no bound.
        high: largest value; None: no bound.
        open_low: `low` itself is refused.
        open_high: `high` itself is refused.
    """
    return Field(
        ge=None if open_low else low,
        gt=low if open_low else None,
        le=None if open_high else high,
        lt=high if open_high else None,
    )


Fraction = Annotated[float, Range(0, 1)]
"""A number in [0, 1]."""
BelowOne = Annotated[float, Range(0, 1, open_high=True)]
"""A number in [0, 1)."""
Momentum = Annotated[float, Range(0, 1, open_low=True)]
"""A number in (0, 1]."""
Quarter = Annotated[float, Range(0, 0.25)]
"""A number in [0, 0.25]."""
Positive = Annotated[float, Range(0, open_low=True)]
"""A number > 0."""
NonNegative = Annotated[float, Range(0)]
"""A number >= 0."""
Count = Annotated[int, Range(1, MOST)]
"""A whole number from 1 to a million."""
CountOrZero = Annotated[int, Range(0, MOST)]
"""A whole number from 0 to a million."""
AtLeastTwo = Annotated[int, Range(2, MOST)]
"""A whole number from 2 to a million."""
Depth = Annotated[int, Range(1, 1000)]
"""A number of layers, blocks or rounds: from 1 to a thousand."""
Size = Annotated[int, Range(1, 10**9)]
"""A number of images or steps: from 1 to a billion."""
Seed = Annotated[int, Range(0, 2**32 - 1)]
"""What numpy's generators take."""


def matching(pattern: str, rule: str) -> Any:
    """Return the rule of text that matches `pattern` whole; `rule` says so in words, e.g. "must not be empty"."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(rule)
        return value

    return AfterValidator(check)


def _not_empty(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be empty")
    if "\0" in value:
        raise ValueError("must not have the character NUL")
    return value


NotEmpty = Annotated[str, AfterValidator(_not_empty)]
"""Text that has a visible character and no NUL."""


SHARES = ("uniform", "labels", "estimated")


def _shares(value: Any) -> Any:
    if isinstance(value, list) and value and all(type(share) in (int, float) for share in value):
        if min(value) < 0 or abs(sum(value) - 1) > 1e-3:
            raise ValueError("must be numbers of at least 0 whose sum is 1, one for each class")
    elif value not in SHARES:
        words = f"must be one of {', '.join(SHARES)}, or a list of numbers, one for each class"
        raise ValueError(f"{words}, not {show(value)}{_near(value, SHARES)}")
    return value


Shares = Literal["uniform", "labels", "estimated"] | list[float]
ClassShares = Annotated[Shares, PlainValidator(_shares, json_schema_input_type=Shares)]
"""How frequent classes are: uniform, labels (as among these), estimated, or one number for each class."""
ClassSharesOrNot = Annotated[
    Shares | bool,
    PlainValidator(
        lambda value: value if isinstance(value, bool) else _shares(value), json_schema_input_type=Shares | bool
    ),
]
"""The same, or true or false."""


def pair(low: float, high: float) -> Any:
    """Return the rule of two numbers [a, b] with `low` < a <= b <= `high`."""

    def check(value: Sequence[float]) -> Sequence[float]:
        if len(value) != 2 or not low < value[0] <= value[1] <= high:
            raise ValueError(f"must be two numbers [a, b] with {low:g} < a <= b <= {high:g}")
        return value

    return AfterValidator(check)


def subset(valid: Sequence[str]) -> Any:
    """Return the rule of a list of one or more of these names."""

    def check(value: Sequence[str]) -> Sequence[str]:
        unknown = next((name for name in value if name not in valid), None)
        if not value or unknown is not None:
            close = near(str(unknown), valid) if value else ""
            raise ValueError(f"must be a list of names out of {', '.join(valid)}{close}")
        return value

    return AfterValidator(check)


def _color(value: Any) -> Any:
    parts = list(value) if isinstance(value, list | tuple) and len(value) == 3 else [value]
    if all(isinstance(part, int | float) and not isinstance(part, bool) and 0 <= part <= 1 for part in parts):
        return value
    raise ValueError("must be a number from 0 to 1, or three of them (red, green, blue)")


Color = Annotated[
    float | Sequence[float], PlainValidator(_color, json_schema_input_type=float | Annotated[list[float], Field()])
]
"""A gray level from 0 to 1, or red, green and blue."""


class Settings(BaseModel):
    """Settings that a user writes: no unknown keys, no guessed types, only finite numbers.

    A string under a field documents it.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


def show(value: object) -> str:
    """Return a value as its YAML reader wrote it, cut to 60 characters."""
    words = {None: "null", True: "true", False: "false"}
    text = words[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def read(model: type[Settings], raw: Any, at: str = "") -> tuple[Any, list[str]]:
    """Check plain containers against a model.

    Args:
        model: what they should be.
        raw: dicts, lists and scalars; not modified.
        at: key of `raw` for the messages; empty at the top.

    Returns:
        `raw` without what is wrong, and one sentence per mistake.
    """
    wrong = dict(_wrong_values(raw, ()))
    clean = without(raw, wrong)
    problems = [_sentence(at, place, sentence) for place, sentence in wrong.items()]
    try:
        model.model_validate(clean)
    except ValidationError as error:
        places = []
        for found in error.errors(include_url=False):
            place, sentence = _translate(model, found)
            if not any(place == bad[: len(place)] for bad in wrong):  # "missing", because it was just taken out
                problems.append(f"{_path(at, place)}: {sentence}")
            # What lacks a key is of no use to whoever looks at the rest.
            places.append(place[:-1] if found["type"] == "missing" and len(place) > 1 else place)
        clean = without(clean, places)
    return clean, problems


def check_options(target: Callable[..., Any], options: Mapping[str, Any], at: str = "") -> list[str]:
    """Return what is wrong with the options of a class or function, one sentence each; calls nothing.

    What its annotations cannot say, a class says in a static method `conflicts(**options)` that yields pairs (key,
    sentence); it is asked, with the defaults filled in, once every option by itself is fine. Its `only_with` names
    options that are read beside another one alone, see `unread`.

    Args:
        target: its options are described by the constructor's (the function's) signature; see `options_model`.
        options: as a recipe has them, without the name.
        at: key of the mapping, e.g. `stages.a.method`.
    """
    _, problems = read(options_model(target), dict(options), at)
    if problems:
        return problems
    defaults = option_defaults(target)
    filled = defaults | dict(options)
    found = [*unread(getattr(target, "only_with", {}), filled, defaults)]
    if hasattr(target, "conflicts"):
        found += target.conflicts(**filled)
    return [f"{_path(at, (key,))}: {sentence}" for key, sentence in found]


def unread(
    only_with: Mapping[str, tuple[str, object]], options: Mapping[str, Any], defaults: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    """Yield what was changed although another option keeps it from being read, and a sentence.

    Args:
        only_with: options that are read beside another one alone: key -> (the other, its value; True: any but false,
            null and zero).
        options: all of them, as they are.
        defaults: likewise.
    """
    for key, (other, wanted) in only_with.items():
        met = bool(options[other]) if wanted is True else options[other] == wanted
        if not met and options[key] != defaults[key]:
            yield key, f"has no effect without {other}" + ("" if wanted is True else f": {wanted}")


def check_named(given: Any, key: str, known: Mapping[str, Callable[..., Any]], what: str, at: str = "") -> list[str]:
    """Return what is wrong with a mapping whose `key` names a thing and whose other keys are that thing's options.

    Args:
        given: e.g. `{name: fixmatch, threshold: 0.9}`; anything but a mapping was complained about elsewhere.
        key: `name` or `policy`.
        known: name -> class or function that takes the options.
        what: method, backbone, policy or baseline.
        at: key of the mapping.
    """
    problem = check_name(given, key, known, what)
    if problem is not None or not isinstance(given, Mapping):
        return [f"{_path(at, (key,))}: {problem}"] if problem is not None else []
    options = {name: value for name, value in given.items() if name != key}
    return check_options(known[given[key]], options, at)


def check_name(given: Any, key: str, known: Iterable[str], what: str) -> str | None:
    """Return what is wrong with the name in such a mapping, or None."""
    if not isinstance(given, Mapping):
        return None
    name = given.get(key)
    if key not in given:
        return "missing"
    if not isinstance(name, str):
        return f"must be text, not {show(name)}"
    return None if name in known else f"unknown {what} '{name}'{nearest(name, known)}"


def option_defaults(target: Callable[..., Any]) -> dict[str, Any]:
    """Return the options of a class or function and their defaults; an option that must be given has none."""
    return {p.name: p.default for p in _options(target) if p.default is not p.empty}


def _options(target: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return the parameters that are options.

    Those are the keyword-only ones, without the size of the images, which follows from the data; or where there are
    none, the ones with a default.
    """
    parameters = list(inspect.signature(target).parameters.values())
    keywords = [p for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in ("in_channels", "image_size")]
    return keywords or [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is not p.empty]


@cache
def options_model(target: Callable[..., Any]) -> type[Settings]:
    """Return the model of the options that a class or function takes, made from its signature."""
    function = target.__init__ if inspect.isclass(target) and not dataclasses.is_dataclass(target) else target
    hints = get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {
        p.name: (hints.get(p.name, Any), ... if p.default is p.empty else p.default) for p in _options(target)
    }
    model: type[Settings] = create_model(target.__name__, __base__=_Options, **fields)
    return model


class _Options(Settings):
    model_config = ConfigDict(use_attribute_docstrings=False, arbitrary_types_allowed=True, protected_namespaces=())


# From pydantic's list of errors to sentences --------------------------------------------------------------------------

Place = tuple[str | int, ...]

TYPES = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a number of at most 64 bits",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "is_instance_of": "must be a list",  # of Sequence, the only abstract type that options have
    "sequence_str": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
}
BOUNDS = {
    "greater_than_equal": ("ge", "must be at least"),
    "greater_than": ("gt", "must be greater than"),
    "less_than_equal": ("le", "must be at most"),
    "less_than": ("lt", "must be less than"),
}


def _translate(model: type[BaseModel], error: Any) -> tuple[Place, str]:
    """Return where an error is, and the sentence that says what is wrong."""
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    place, owner = _locate(model, error["loc"])
    if kind == "missing":
        return place, "missing"
    if kind == "extra_forbidden":
        return place, f"unknown key{_suggest(str(place[-1]), owner)}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        valid = [tag.strip().strip("'") for tag in context.get("expected_tags", "").split(",")]
        tag = value.get("kind") if isinstance(value, Mapping) else value
        return (*place, "kind"), one_of(tag, valid)
    if kind == "literal_error":
        return place, one_of(value, _choices(context["expected"]))
    if kind in BOUNDS:
        key, words = BOUNDS[kind]
        return place, f"{words} {_number(context[key])}, not {show(value)}"
    if kind == "value_error":
        words = str(context["error"])
        return place, words if ", not " in words else f"{words}, not {show(value)}"
    if kind == "too_short":
        return place, f"must have at least {context['min_length']}, not {context['actual_length']}"
    quote = "; quote it" if kind == "string_type" and isinstance(value, int | float) else ""
    return place, f"{TYPES.get(kind, error['msg'])}, not {show(value)}{quote}"


def sentences(error: ValidationError) -> list[str]:
    """Return what is wrong with one value of the command line, a sentence without a key for each mistake."""
    found: list[Any] = error.errors(include_url=False)
    for each in found:
        if each["type"] in BOUNDS:
            number = float(each["input"])
            each["input"] = int(number) if number.is_integer() else number
    return [_translate(BaseModel, each)[1] for each in found]


def one_of(value: Any, valid: Sequence[str]) -> str:
    """Return the sentence about a value that is none of the valid ones."""
    return f"must be {'one of ' if len(valid) > 1 else ''}{', '.join(valid)}, not {show(value)}{_near(value, valid)}"


def _near(value: object, valid: Sequence[str]) -> str:
    """Return the nearest name, if there is one that is near."""
    return near(value, valid) if isinstance(value, str) else ""


def _choices(expected: str) -> list[str]:
    """Read pydantic's "'a', 'b' or 'c'"."""
    return [quoted or bare for quoted, bare in re.findall(r"'([^']*)'|(\d+)", expected)]


def _number(bound: float) -> str:
    return str(int(bound)) if float(bound).is_integer() else str(bound)


def _locate(model: type[BaseModel], loc: Sequence[str | int]) -> tuple[Place, Any]:
    """Return the place of an error without pydantic's own words in it, and the type that its last key belongs to."""
    place: list[str | int] = []
    here: Any = model
    owner: Any = model
    for element in loc:
        here = _bare(here)
        tagged = _tagged(here, element)
        if tagged is not None:
            here = tagged
            continue
        if element == "[key]":
            continue
        owner = here
        place.append(element)
        here = _inside(here, element)
    return tuple(place), _bare(owner)


def _bare(annotation: Any) -> Any:
    """Return a type without `Annotated` and `| None`."""
    while True:
        origin = get_origin(annotation)
        members = [member for member in get_args(annotation) if member is not type(None)]
        if origin is Annotated or (origin in (Union, types.UnionType) and len(members) == 1):
            annotation = members[0]
        else:
            return annotation


def _tagged(annotation: Any, tag: object) -> Any:
    """Return the member of a union whose `kind` is `tag`; None: it is no such union."""
    if get_origin(annotation) in (Union, types.UnionType):
        for member in map(_bare, get_args(annotation)):
            field = getattr(member, "model_fields", {}).get("kind")
            if field is not None and tag in get_args(field.annotation):
                return member
    return None


def _inside(annotation: Any, key: object) -> Any:
    fields = getattr(annotation, "model_fields", None)
    if fields is not None:
        return next((field.annotation for name, field in fields.items() if key in (name, field.alias)), Any)
    arguments = get_args(annotation)
    return arguments[-1] if arguments else Any


def keys_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return the keys of a model as a user writes them."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _suggest(key: str, owner: Any) -> str:
    """Return where a misplaced key belongs (`lr` of a stage: `optimizer.lr`), else the nearest key here."""
    if not hasattr(owner, "model_fields"):
        return ""
    valid = keys_of(owner)
    for name, field in valid.items():
        inner = _bare(field.annotation)
        if hasattr(inner, "model_fields") and key in keys_of(inner):
            return f"; did you mean '{name}.{key}'?"
    return nearest(key, valid)


NO_TEXT = "the key must be text; quote it"
HALF = re.compile("[\\ud800-\\udfff]")
"""Half a character: bytes that are no UTF-8, or what an escape of JSON or YAML spells."""


def _sentence(at: str, place: Place, words: str) -> str:
    return f"{_path(at, (*place[:-1], str(place[-1])) if words == NO_TEXT else place)}: {words}"


def _wrong_values(raw: Any, place: Place) -> Iterator[tuple[Place, str]]:
    if isinstance(raw, dict | list | tuple):
        for key, item in raw.items() if isinstance(raw, dict) else enumerate(raw):
            if isinstance(raw, dict) and not isinstance(key, str):
                yield (*place, key), NO_TEXT
            elif isinstance(raw, dict) and HALF.search(str(key)):  # pydantic would then say nothing of the other keys
                yield (*place, key), "the key has half a character"
            else:
                yield from _wrong_values(item, (*place, key))
    elif isinstance(raw, float) and not math.isfinite(raw):
        yield place, f"must be a finite number, not {show(raw)}"
    elif isinstance(raw, int) and abs(raw) >= 2**63:
        yield place, f"must be a number of at most 64 bits, not of {raw.bit_length()}"


def without(raw: Any, places: Iterable[Place]) -> Any:
    """Copy nested dicts without what stands at these places; a list with something wrong inside goes as a whole."""
    bad = {_up_to_list(raw, place) for place in places}

    def rebuild(value: Any, place: Place) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: rebuild(item, (*place, key)) for key, item in value.items() if (*place, key) not in bad}

    return rebuild(raw, ()) if bad else raw


def _up_to_list(raw: Any, place: Place) -> Place:
    """Cut a place where it enters a list: without some of its items that would mean something else."""
    for i, key in enumerate(place):
        if isinstance(raw, list | tuple):
            return place[:i]
        raw = raw.get(key) if isinstance(raw, dict) else None
    return place


def _path(at: str, place: Place) -> str:
    text = at
    for key in place:
        if isinstance(key, int):
            text += f"[{key}]"
        else:
            word = str(key) if key and str(key).isprintable() else repr(key)
            text += f".{word}" if text else word
    return text or "recipe"
