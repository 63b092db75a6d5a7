"""Words of the command line that are empty: what a shell makes of a quoted variable that is not set."""

from __future__ import annotations

import re
from collections.abc import Sequence

from semisup.errors import SemisupError

__all__ = ["refuse_empty"]

_TEXT = ("--classes", "--url")
"""Options whose text may be empty; any other would be a path, and an empty path is the current folder."""


def refuse_empty(words: Sequence[str]) -> None:
    """Raise SemisupError where a word, or an option's value, is empty."""
    for before, word in zip(["", *words], words, strict=False):
        option = word if re.fullmatch("--[a-z-]+=", word) else f"{before} " if before.startswith("-") else ""
        if (word == "" or option == word) and option.strip(" =") not in _TEXT:
            where = f"{option.strip(' =')}: must not be empty" if option else "an empty word in the command"
            raise SemisupError(f"{where}; is a variable of the shell not set? The current folder is .")
