"""Words of the command line that no command can mean: empty ones, and addresses where files are wanted."""

from __future__ import annotations

import re
from collections.abc import Sequence

from semisup.errors import SemisupError, raise_all

__all__ = ["refuse_addresses", "refuse_empty"]

_TEXT = ("--classes", "--url")
"""Options whose text may be empty; any other would be a path, and an empty path is the current folder."""
_ADDRESS = re.compile("[A-Za-z][A-Za-z0-9+.-]*://")


def refuse_empty(words: Sequence[str]) -> None:
    """Raise SemisupError where a word, or an option's value, is empty.

    It is what a shell makes of a quoted variable that is not set.
    """
    for before, word in zip(["", *words], words, strict=False):
        option = word if re.fullmatch("--[a-z-]+=", word) else f"{before} " if before.startswith("-") else ""
        if (word == "" or option == word) and option.strip(" =") not in _TEXT:
            where = f"{option.strip(' =')}: must not be empty" if option else "an empty word in the command"
            raise SemisupError(f"{where}; is a variable of the shell not set? The current folder is .")


def refuse_addresses(words: Sequence[str]) -> None:
    """Raise SemisupError where a word is an address; values of options, and of keys, may be one.

    As a path, `s3://bucket/photos` would be `s3:/bucket/photos`, a file that does not exist.
    """
    if words[:2] == ["data", "prepare"]:
        return
    pairs = zip(["", *words], words, strict=False)
    found = [word for before, word in pairs if _ADDRESS.match(word) and not before.startswith("-")]
    how = "this command reads what is on this machine; copy it here first, or train on it with data.path="
    raise_all([f"{word}: {how}{word}" for word in found])
