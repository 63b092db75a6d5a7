"""The SQLite database that MLflow keeps next to the runs: made whole or not at all, and named by its path."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from semisup.errors import SemisupError
from semisup.files import locked_file, remove_torn, replacing

__all__ = ["absolute", "database_lock", "database_path", "database_uri", "open_database"]

_SCHEME = "sqlite:///"
_MAKING = threading.Lock()
"""MLflow's migrations keep their state in the process: two at once, of two databases, spoil each other."""


def database_uri(path: Path) -> str:
    """Return the URI of a database file: `?` would begin the URI's options, and `%` an escaped sign."""
    return _SCHEME + str(path).replace("%", "%25").replace("?", "%3F").replace("#", "%23")


def database_path(uri: str) -> Path | None:
    """Return the file of a `sqlite:` URI; None of any other URI.

    Raises:
        SemisupError: a database in memory, which would be gone with the process.
    """
    if not uri.startswith("sqlite:"):
        return None
    name = unquote(uri.removeprefix(_SCHEME).partition("?")[0]) if uri.startswith(_SCHEME) else ""
    if name in ("", ":memory:") or name.startswith("file:"):
        raise SemisupError(f"MLflow at {uri}: a database in memory ends with the process; name a file, {_SCHEME}PATH")
    return Path(name)


def absolute(uri: str) -> str:
    """Return `uri` with a relative database path made absolute, so that a later change of folder does not matter.

    Raises:
        SemisupError: it is no address at all.
    """
    try:
        urlsplit(uri)
    except ValueError as error:  # the address itself may hold a password
        raise SemisupError(
            f"the address of MLflow cannot be read ({error}); mend MLFLOW_TRACKING_URI, or the one after --uri"
        ) from None
    if not uri.startswith(_SCHEME):
        return uri
    name, mark, options = uri.removeprefix(_SCHEME).partition("?")
    if name in ("", ":memory:") or name.startswith("file:"):
        return uri
    return f"{database_uri(Path(unquote(name)).resolve())}{mark}{options}"


@contextlib.contextmanager
def database_lock(database: Path | None) -> Iterator[None]:
    """Let one process, and of that one thread, at a time make a database; a server sees to that itself."""
    if database is None:
        yield
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with _MAKING, locked_file(database.with_name(f"{database.name}.lock")):
        yield


def open_database(database: Path, uri: str) -> str:
    """Make a database that is not there yet, and return the URI of the folder of its artifacts.

    It is made under a temporary name and renamed when it is whole, so that a kill leaves none. One that was left half
    made, which has the tables of MLflow and not one experiment, is set aside: nothing was ever in it.

    Args:
        database: its file, locked.
        uri: of the database.

    Raises:
        SemisupError: the folder cannot be written to.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    make_store: Any = SqlAlchemyStore  # untyped
    artifacts = (database.parent / "mlartifacts").as_uri()
    if _half_made(database):
        database.replace(database.with_name(f"{database.name}.half-made"))
    if not database.exists():
        remove_torn(database.parent)
        with replacing(database) as temporary:
            make_store(database_uri(temporary), artifacts).engine.dispose()
    # Before the client makes its own, which would put the default experiment's artifacts below the current folder.
    make_store(uri, artifacts)
    return artifacts


def _half_made(database: Path) -> bool:
    """Whether making the database was broken off: it is empty, or has MLflow's tables without an experiment."""
    if not database.exists():
        return False
    with contextlib.closing(sqlite3.connect(database)) as connection:
        try:
            names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if "experiments" not in names:
                return not names
            return connection.execute("SELECT 1 FROM experiments LIMIT 1").fetchone() is None
        except sqlite3.DatabaseError:  # another kind of file, or one that somebody writes to: MLflow will say so
            return False
