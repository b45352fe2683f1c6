"""SQL text for every table definition: DDL and statements. Pure; called by the SQLite store only.

A table with clustering becomes one SQL table; statics, which SQLite does not know, a sibling `<name>_static` with one
row per partition. A row of a free table also carries `stamp` (the highest wins), `dead` (1: a tombstone) and `purge`
(µs; when the row may go for good; null: never).
"""

from collections.abc import Iterable, Sequence
from functools import cache
from itertools import chain

from planes.store.protocol import Values
from planes.store.schema import TABLES, Table

#: changes to files of older versions, in order; a file's `user_version` is 1 + how many it has seen
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (),  # 2: by_name, which is made as every table that is missing
    # 3: addresses that only their ports' rows tell; older programs, which do not know of them, refuse it
    ("DROP INDEX IF EXISTS feed_purge", "DROP INDEX IF EXISTS changes_purge"),
)
VERSION = 1 + len(MIGRATIONS)

#: how many rows statements insert, the most first; few texts, for SQLite keeps what it has made of them
TOGETHER = (32, 8, 3, 1)

_SQL_TYPE = {"bigint": "INTEGER", "text": "TEXT", "blob": "BLOB"}
_FREE = ("stamp", "dead", "purge")


def create() -> list[str]:
    """DDL that makes what is missing."""
    ddl: list[str] = []
    for table in TABLES:
        if table.statics:
            columns = (*table.partition, *table.statics)
            ddl.append(_create(f"{table.name}_static", _columns(columns), _names(table.partition)))
        if table.clustering:
            lines = _columns((*table.partition, *table.clustering, *table.columns))
            if not table.guard:
                lines += ["stamp INTEGER NOT NULL", "dead INTEGER NOT NULL", "purge INTEGER"]
            ddl.append(_create(table.name, lines, _key(table)))
            if not table.guard and not table.timed:
                index = f"CREATE INDEX IF NOT EXISTS {table.name}_purge"
                ddl.append(f"{index} ON {table.name} (purge) WHERE purge IS NOT NULL")
    return ddl


def shapes() -> dict[str, list[str]]:
    """The column names that each SQL table must have."""
    made: dict[str, list[str]] = {}
    for table in TABLES:
        if table.statics:
            made[f"{table.name}_static"] = _names((*table.partition, *table.statics))
        if table.clustering:
            extra = [] if table.guard else list(_FREE)
            made[table.name] = [*_key(table), *_names(table.columns), *extra]
    return made


class Rows:
    """A statement that inserts rows of so many values. Of several rows at once it costs each a third less."""

    def __init__(self, head: str, values: int, tail: str = "") -> None:
        self._texts = {size: f"{head}{', '.join([f'({_marks(values)})'] * size)}{tail}" for size in TOGETHER}

    def each(self, rows: Sequence[Values]) -> list[tuple[str, Values]]:
        """Texts and their values that insert all of these, in order."""
        made: list[tuple[str, Values]] = []
        start = 0
        for size, text in self._texts.items():
            while start + size <= len(rows):
                made.append((text, tuple(chain.from_iterable(rows[start : start + size]))))
                start += size
        return made


class Statements:
    """The statements of one table; each text is made once."""

    def __init__(self, table: Table) -> None:
        self.table = table
        name, key = table.name, _key(table)
        partition, columns = _names(table.partition), _names(table.columns)
        at = _equal(partition)
        self.read_statics = f"SELECT {', '.join(_names(table.statics))} FROM {name}_static WHERE {at}"
        self.put = Rows(f"INSERT OR REPLACE INTO {name} VALUES ", len(key) + len(columns))
        self.drop = f"DELETE FROM {name} WHERE {_equal(key)}"
        sets = ", ".join(f"{column} = excluded.{column}" for column in (*columns, *_FREE))
        self.write = Rows(
            f"INSERT INTO {name} VALUES ",
            len(key) + len(columns) + len(_FREE),
            f" ON CONFLICT ({', '.join(key)}) DO UPDATE SET {sets} WHERE excluded.stamp > {name}.stamp "
            f"OR (excluded.stamp = {name}.stamp AND {name}.dead = 0)",
        )
        keys = ", ".join(key)
        old = f"SELECT {keys} FROM {name} WHERE purge IS NOT NULL AND purge < ? ORDER BY purge LIMIT ?"
        self.purge = f"DELETE FROM {name} WHERE ({keys}) IN ({old})"
        if table.timed:  # the oldest come first, and no index need tell which they are
            old = f"SELECT {keys} FROM {name} ORDER BY {keys} LIMIT ?"
            self.purge = f"DELETE FROM {name} WHERE purge < ? AND ({keys}) IN ({old})"
        self._reads: dict[tuple[int, int, int], str] = {}
        self._statics: dict[tuple[str, ...], tuple[str, str]] = {}

    def statics(self, names: tuple[str, ...]) -> tuple[str, str]:
        """(create the partition unless it exists, change it if the guard holds): set these statics."""
        texts = self._statics.get(names)
        if texts is None:
            name, partition = self.table.name, _names(self.table.partition)
            columns = (*partition, *names)
            texts = self._statics[names] = (
                f"INSERT INTO {name}_static ({', '.join(columns)}) VALUES ({_marks(len(columns))}) "
                f"ON CONFLICT DO NOTHING",
                f"UPDATE {name}_static SET {', '.join(f'{n} = ?' for n in names)} "
                f"WHERE {_equal(partition)} AND {self.table.guard} = ?",
            )
        return texts

    def read(self, prefix: int, after: int, among: int) -> str:
        """Rows of a partition: `prefix` clustering columns fixed, then `after` more to be exceeded or one to be `among`
        so many values; last, a limit.
        """
        text = self._reads.get((prefix, after, among))
        if text is None:
            table, clustering = self.table, _names(self.table.clustering)
            where = [_equal([*_names(table.partition), *clustering[:prefix]])]
            if after:
                where.append(f"({', '.join(clustering[prefix : prefix + after])}) > ({_marks(after)})")
            if among:
                where.append(f"{clustering[prefix]} IN ({_marks(among)})")
            if not table.guard:
                where.append("dead = 0")
            text = self._reads[prefix, after, among] = (
                f"SELECT {', '.join([*clustering, *_names(table.columns)])} FROM {table.name} "
                f"WHERE {' AND '.join(where)} ORDER BY {', '.join(clustering)} LIMIT ?"
            )
        return text

    def partitions(self, following: bool) -> str:
        """Partition keys in order, `following` a given one; last, a limit. One row may stand for many: ask for one."""
        table = self.table
        keys = ", ".join(_names(table.partition))
        where = [f"({keys}) > ({_marks(len(table.partition))})"] if following else []
        if not table.guard:
            where.append("dead = 0")
        return (
            f"SELECT {keys} FROM {table.name}{'_static' if table.guard else ''}"
            f"{' WHERE ' if where else ''}{' AND '.join(where)} ORDER BY {keys} LIMIT ?"
        )


def padded(among: Values) -> Values:
    """The same values, the last repeated until they are a power of two: few texts of statements, however many."""
    return among + among[-1:] * ((1 << (len(among) - 1).bit_length()) - len(among)) if among else ()


@cache
def of(name: str) -> Statements:
    """The statements of a table, by its name."""
    return Statements(next(table for table in TABLES if table.name == name))


def _create(name: str, lines: list[str], key: list[str]) -> str:
    return (
        f"CREATE TABLE IF NOT EXISTS {name} ({', '.join(lines)}, PRIMARY KEY ({', '.join(key)})) STRICT, WITHOUT ROWID"
    )


def _columns(columns: Iterable[tuple[str, str]]) -> list[str]:
    return [f"{name} {_SQL_TYPE[kind]}" for name, kind in columns]


def _names(columns: Iterable[tuple[str, str]]) -> list[str]:
    return [name for name, _ in columns]


def _key(table: Table) -> list[str]:
    return _names((*table.partition, *table.clustering))


def _equal(names: Iterable[str]) -> str:
    return " AND ".join(f"{name} = ?" for name in names)


def _marks(count: int) -> str:
    return ", ".join("?" * count)
