"""JSON files that are read back: nothing in them is believed before it has been compared.

A stage's record, `stage.json`, lists the SHA-256 of every file of the stage and ends with one of its own, over its
canonical form. Whoever reads a file of a stage compares both: reuse, `predict`, MLflow's loader and `track` alike.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from semisup.errors import SemisupError, raise_all, refuse_special

__all__ = [
    "DIGEST",
    "MODEL",
    "RECORD",
    "PlainName",
    "WritableText",
    "checked",
    "digest",
    "file_digest",
    "is_finite",
    "read_json",
    "read_record",
    "refuse_stage_files",
    "require_model",
    "verify",
]

RECORD = "stage.json"
"""Written last: a folder that has it holds a finished stage."""
MODEL = "model.json"
"""What describes the network of a stage that has one."""
DIGEST = "digest"
"""Key of a record's own checksum."""

T = TypeVar("T")


def plain_name(name: str) -> str:
    """Return a name that came out of a file, if it names a file of the folder it is used in, and nothing elsewhere.

    Raises:
        ValueError: it is empty, has a separator or a drive, or is the folder itself or the one above.
    """
    if name in ("", ".", "..") or any(sign in name for sign in "/\\:\0"):
        raise ValueError(f"must be a plain file name, not {name!r}")
    return name


def writable(text: str) -> str:
    """Return text that came out of a file, if it can be written as UTF-8, the bytes of file names included.

    Raises:
        ValueError: it has half a character, which JSON's escapes can spell.
    """
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ValueError(f"must be text, not {text!r}") from None
    return text


WritableText = Annotated[str, AfterValidator(writable)]
PlainName = Annotated[str, AfterValidator(plain_name)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Finite = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Record(BaseModel):
    """The keys of `stage.json` that something else reads; a stage may write more."""

    model_config = ConfigDict(strict=True, extra="allow")

    name: str
    method: str
    fingerprint: PlainName
    steps: Annotated[int, Field(ge=0)]
    seconds: Finite
    parameters: Annotated[int, Field(ge=0)]
    metrics: dict[str, float | bool | str | list[Any] | dict[str, Any] | None]
    files: dict[PlainName, Sha256]
    digest: Sha256
    evaluation_seconds: Finite | None = None
    images_per_second: Finite | None = None
    loaded: str | None = None
    chosen: str | None = None
    strength: str | None = None


_RECORD = TypeAdapter(_Record)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        SemisupError: it cannot be read, or is no JSON.
    """
    refuse_special(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SemisupError(f"{path}: cannot be read ({error.strerror})") from error
    except RecursionError:
        raise SemisupError(f"{path}: damaged (nested too deep)") from None
    except ValueError as error:
        raise SemisupError(f"{path}: damaged ({error})") from None


def checked(adapter: TypeAdapter[T], value: Any, subject: str) -> T:
    """Return what the adapter makes of a value that came out of a file.

    Raises:
        SemisupError: keys or types are not as they must be; all of them are listed.
    """
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        places = [(".".join(map(str, found["loc"])), found["msg"]) for found in error.errors()]
        raise_all([f"{place}: {message}" if place else message for place, message in places][:8], subject)
        raise


def digest(record: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a record's canonical JSON, which leaves out its own checksum."""
    rest = {key: value for key, value in record.items() if key != DIGEST}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_record(record: Any, subject: str) -> dict[str, Any]:
    """Return a stage's record, whatever it came out of, if its keys, types and its own checksum are right.

    Raises:
        SemisupError: one of them is not.
    """
    checked(_RECORD, record, subject)
    if record[DIGEST] != digest(record):
        raise SemisupError(f"{subject}: does not have its own checksum, so it has been changed")
    found: dict[str, Any] = record
    return found


def read_record(folder: Path) -> dict[str, Any]:
    """Read the record of a finished stage, without looking at the files that it lists.

    Raises:
        SemisupError: there is none, it is damaged, or the folder has a model that it does not list.
    """
    path = folder / RECORD
    if not path.is_file():
        raise SemisupError(f"{folder}: no {RECORD}, so no finished stage; name the whole folder of one")
    record = check_record(read_json(path), f"{path}: damaged stage record")
    unlisted = sorted(file.name for file in folder.glob("model.*") if file.name not in record["files"])
    if unlisted:
        raise SemisupError(f"{path}: does not list {', '.join(unlisted)}, which nothing can be compared with then")
    return record


def require_model(folder: Path) -> None:
    """Raise SemisupError where no finished stage has left its network; names those of a run, and how to use a file."""
    if (folder / MODEL).is_file():
        return
    if folder.suffix in (".onnx", ".pt2"):
        raise SemisupError(f"{folder}: an exported file, not a model folder; docs/export.md shows how to use it")
    if folder.is_file() and (folder.parent / MODEL).is_file():
        raise SemisupError(f"{folder}: a file of a model folder; name the folder, {folder.parent}")
    if (folder / RECORD).is_file():
        why = "its stage leaves no network of its own; name one that trains a network"
        raise SemisupError(f"{folder}: not a model folder: {why}")
    stages = sorted(str(file.parent) for file in folder.glob(f"*/{MODEL}"))
    these = f": {', '.join(stages)}" if stages else ""
    raise SemisupError(f"{folder}: not a model folder (no {MODEL}); name a finished stage's folder{these}")


def refuse_stage_files(written: Iterable[Path]) -> None:
    """Refuse to write files that a finished stage has, or that its readers would refuse it for.

    Args:
        written: files that are about to be written, some perhaps into a stage's folder.

    Raises:
        SemisupError: one of them is such a file, or a record is damaged.
    """
    for file in written:
        path = file.parent / RECORD
        if not path.is_file():
            continue
        name = file.name.lower()  # file systems may not tell capitals apart
        listed = check_record(read_json(path), f"{path}: damaged stage record")["files"]
        if name == RECORD or name.startswith("model.") or name in {own.lower() for own in listed}:
            raise SemisupError(f"{file}: would be taken for a file of the finished stage; name another file or folder")


def verify(folder: Path, record: Mapping[str, Any], names: Iterable[str] | None = None) -> None:
    """Compare files of a stage with the checksums of its record.

    Args:
        folder: of the stage.
        record: of the stage, checked.
        names: which files; None: all that are listed.

    Raises:
        SemisupError: one is missing, not listed, or not what was written.
    """
    files = record["files"]
    for name in files if names is None else names:
        path = folder / name
        if name not in files:
            raise SemisupError(f"{path}: not listed in {RECORD}")
        if not path.is_file() or file_digest(path) != files[name]:
            raise SemisupError(f"{path}: missing or damaged")


def is_finite(value: Any) -> bool:
    """Return whether a value is a number that a float can hold: no NaN, no infinity, no integer beyond, no truth value.

    `math.isfinite` raises OverflowError for such an integer, which JSON can spell.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and -sys.float_info.max <= value <= sys.float_info.max


def finite(value: Any) -> Any:
    """Return a value for strict JSON: NaN and infinities become None, tuples lists."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
