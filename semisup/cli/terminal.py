"""Output that no terminal's encoding can stop."""

from __future__ import annotations

import codecs
import io
import sys

__all__ = ["print_anything"]

_HANDLER = "semisup"


def print_anything() -> None:
    r"""Let standard output and errors take every text, whatever the encoding of the terminal.

    Bytes of file names that are not UTF-8 are written as they are, so that other programs find the files; other
    characters that the encoding lacks become escapes such as `\u732b`.
    """
    codecs.register_error(_HANDLER, _encode)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_HANDLER)


def _encode(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    part = error.object[error.start : error.end]
    if all("\udc80" <= character <= "\udcff" for character in part):
        return part.encode("ascii", "surrogateescape"), error.end
    if "\udc80" <= part[0] <= "\udcff":
        return part[0].encode("ascii", "surrogateescape"), error.start + 1
    return part[0].encode("ascii", "backslashreplace").decode(), error.start + 1
