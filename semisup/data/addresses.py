"""Which addresses of images are followed.

An address comes from a person's own recipe or command line, never from a folder that was received
(`refuse_recorded`). It holds no user name and no key: those are where the provider's own tools look for them
(`AWS_PROFILE`, `~/.aws`, `FSSPEC_S3` ...), so that no recipe, record or log can have them.
"""

from __future__ import annotations

import importlib.util

from semisup.data.remote import SCHEMES, Remote, Root
from semisup.errors import SemisupError, nearest, raise_all
from semisup.files import at_home

__all__ = ["is_address", "place", "refuse_recorded", "require_address"]


def is_address(text: str) -> bool:
    """Return whether a path of a recipe is an address."""
    return "://" in text


def place(text: str) -> Root:
    """Return where a path of a recipe leads.

    Raises:
        SemisupError: an address that cannot be read.
    """
    return require_address(text) if is_address(text) else at_home(text, "data.path")


def require_address(url: str) -> Remote:
    """Return the folder behind an address, without asking its server.

    Raises:
        SemisupError: what it begins with is unknown, a library is missing, or it holds a user, a key or a token, none
            of which is repeated.
    """
    scheme, _, rest = url.partition("://")
    host, _, path = rest.partition("/")
    if "@" in host or "?" in rest:
        raise SemisupError(
            "data.path: an address in a recipe has no user name, password, key or ?...; credentials come from where "
            "the provider's own tools read them, e.g. AWS_PROFILE or ~/.aws"
        )
    problems = []
    if scheme.lower() not in SCHEMES:
        problems.append(f"unknown kind of address '{scheme[:40]}://'{nearest(scheme.lower(), SCHEMES)}")
    elif importlib.util.find_spec(SCHEMES[scheme.lower()]) is None:
        library = SCHEMES[scheme.lower()]
        wanted = "'semisup[remote]'" if library != "gcsfs" else library
        problems.append(f"{scheme}:// is read where {library} is installed: pip install {wanted}")
    if not host and not (path and scheme.lower() in ("file", "memory")):
        problems.append(f"{scheme[:40]}:// is followed by nothing; wanted: such as s3://bucket/photos")
    if host and "//" in rest.rstrip("/"):
        problems.append(f"{url[:100]}: a folder's name must not be empty; write one / for //")
    raise_all(problems, "data.path")
    return Remote(url)


def refuse_recorded(path: str | None, instead: str) -> None:
    """Refuse to follow an address that a folder's record names: whoever made the folder chose it.

    Args:
        path: `data.path` of the record.
        instead: what the user can do.

    Raises:
        SemisupError: it is an address.
    """
    if path is not None and is_address(path):
        raise SemisupError(f"data.path: the record names the address {path[:200]}, which is not followed; {instead}")
