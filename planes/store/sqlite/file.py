"""The database file: who may open it, its connections, its version, and what its errors mean.

Called by the SQLite store. One process at a time: an exclusive lock on `<path>.lock`, which dies with its holder.
"""

import fcntl
import os
import sqlite3
from pathlib import Path

from planes.store.protocol import StoreError, Unavailable, UnknownOutcome
from planes.store.sqlite import sql

#: failures of a COMMIT after which its frames are certainly not whole in the log
_NOT_WRITTEN = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_READONLY)
_MEANING = {
    sqlite3.SQLITE_FULL: "The disk is full",
    sqlite3.SQLITE_BUSY: "Another program has locked the database",
    sqlite3.SQLITE_IOERR: "The disk does not answer as it should",
    sqlite3.SQLITE_READONLY: "The database may not be written",
    sqlite3.SQLITE_CANTOPEN: "The database cannot be opened",
    sqlite3.SQLITE_CORRUPT: "The database is damaged",
    sqlite3.SQLITE_NOTADB: "This is not a database",
}


def lock(path: Path) -> int:
    """Take the file for this process; returns the descriptor that holds it. Raises Unavailable."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Unavailable(f"{path} cannot be opened: {error.strerror}.") from error
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(held, 20, 0).decode(errors="replace").strip() or "unknown"
        os.close(held)
        raise Unavailable(f"{path} is in use by another process (pid {holder}).") from error
    try:
        os.ftruncate(held, 0)
        os.pwrite(held, str(os.getpid()).encode(), 0)
    except OSError:
        pass  # the pid is a courtesy; on a full disk the lock still holds
    return held


def connect(path: Path) -> sqlite3.Connection:
    """A connection without implicit transactions. Never waits for a lock: the loop's thread uses it."""
    connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False, cached_statements=256)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA cache_size = -16384")
    connection.execute("PRAGMA wal_autocheckpoint = 8192")  # pages: hot ones go to the file once, not every few commits
    connection.execute("PRAGMA journal_size_limit = 67108864")
    return connection


def prepare(connection: sqlite3.Connection) -> None:
    """Create or migrate the schema, in one transaction. Raises Unavailable when the file is not ours to use."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > sql.VERSION:
            raise Unavailable(f"The database has version {version}; this program knows {sql.VERSION} at most.")
        for migration in sql.MIGRATIONS[version - 1 :] if version else ():
            for statement in migration:
                connection.execute(statement)
        for statement in sql.create():
            connection.execute(statement)
        for name, expected in sql.shapes().items():
            found = [column for _, column, *_ in connection.execute(f"PRAGMA table_info({name})")]
            if found != expected:
                raise Unavailable(f"Table {name} has the columns {found}, not {expected}: a migration is missing.")
        connection.execute(f"PRAGMA user_version = {sql.VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        rollback(connection)
        raise


def rollback(connection: sqlite3.Connection) -> None:
    """End whatever transaction is open."""
    if connection.in_transaction:
        try:
            connection.execute("ROLLBACK")
        except sqlite3.Error:
            pass  # SQLite has ended it itself; if not, the next BEGIN says so


def meaning(error: Exception, committing: bool = False) -> StoreError:
    """What to raise for an error of SQLite. A COMMIT that failed later than its last write may survive a crash."""
    if not isinstance(error, sqlite3.Error):
        return Unavailable(f"The database refused the write: {error}.")
    code = getattr(error, "sqlite_errorcode", 0)
    sentence = f"{_MEANING.get(code & 0xFF, 'The database failed')} ({error})."
    if committing and code not in _NOT_WRITTEN and code & 0xFF not in _NOT_WRITTEN:
        return UnknownOutcome(sentence)
    return Unavailable(sentence)
