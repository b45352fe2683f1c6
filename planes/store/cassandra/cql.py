"""CQL for every table definition: DDL and statements. Pure; called by the Cassandra store only.

Each statement but the scan of partition keys names its whole partition, so one replica set answers it. A table without
clustering keeps its statics as plain columns of its only row, because Cassandra knows statics in clustered tables only.
"""

from functools import cache
from uuid import UUID, uuid5

from planes.store.schema import TABLES, Table

#: changes to keyspaces of older versions, in order; a keyspace's version is 1 + how many it has seen
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (),  # 2: by_name, which is made as every table that is missing
    (),  # 3: addresses that only their ports' rows tell; older programs, which do not know of them, refuse it
)
VERSION = 1 + len(MIGRATIONS)

DAY, HOUR = 86_400, 3600
#: Guarded rows are overwritten for years and read by partition: few files per read, paid for by more merging. A delete
#: is remembered for ten days, so that a replica that was away for less, or is repaired weekly, revives nothing.
_GUARDED = (
    "compaction = {'class': 'UnifiedCompactionStrategy', 'scaling_parameters': 'L10'} AND gc_grace_seconds = 864000"
)
#: Index rows come and go with their ports. One that a replica revives names no object and is skipped by every reader,
#: so a day is enough; shorter than the three hours that hints are kept would lose deletes in ordinary restarts.
_INDEX = "compaction = {'class': 'UnifiedCompactionStrategy', 'scaling_parameters': 'T4'} AND gc_grace_seconds = 86400"
#: What expires is written in the order of its time (its stamp is a clock's) and never again: whole files go when their
#: window is over; 24 windows. Tombstones stay for the three hours that hints are kept.
_LOG = (
    "compaction = {{'class': 'TimeWindowCompactionStrategy', 'compaction_window_unit': 'HOURS',"
    " 'compaction_window_size': {window}}} AND default_time_to_live = {ttl} AND gc_grace_seconds = 10800"
)
#: for ids of tables that are the same in every process
_IDS = UUID("0d5f6a30-9d5e-11f0-8de9-0242ac120002")


def keyspace(name: str, replicas: tuple[tuple[str, int], ...]) -> str:
    centers = "".join(f", '{center}': {number}" for center, number in replicas)
    return f"CREATE KEYSPACE IF NOT EXISTS {name} WITH replication = {{'class': 'NetworkTopologyStrategy'{centers}}}"


def meta(keyspace: str) -> str:
    """The table of the schema's own version and of who migrates; changed by compare-and-set only.

    Its id follows from its name, so that a race to create it ends in one table.
    """
    return (
        f"CREATE TABLE IF NOT EXISTS {keyspace}.meta (name text PRIMARY KEY, version bigint, owner text) "
        f"WITH id = {uuid5(_IDS, keyspace)}"
    )


def create(keyspace: str) -> list[str]:
    """DDL that makes what is missing."""
    clock = f"CREATE TABLE IF NOT EXISTS {keyspace}.clock (name text PRIMARY KEY, at timeuuid)"
    return [clock, *(_create(keyspace, table) for table in TABLES)]


def _create(keyspace: str, table: Table) -> str:
    static = " static" if table.clustering else ""
    lines = [
        *(f"{name} {kind}" for name, kind in (*table.partition, *table.clustering, *table.columns)),
        *(f"{name} {kind}{static}" for name, kind in table.statics),
        f"PRIMARY KEY (({_names(table.partition)}){''.join(f', {name}' for name, _ in table.clustering)})",
    ]
    return f"CREATE TABLE IF NOT EXISTS {keyspace}.{table.name} ({', '.join(lines)}) WITH {_options(table)}"


def _options(table: Table) -> str:
    if table.guard:
        return _GUARDED
    if table.ttl:
        return _LOG.format(window=max(1, table.ttl // DAY), ttl=table.ttl)
    return _INDEX


def shapes() -> dict[str, set[str]]:
    """The columns that each table must have."""
    return {
        table.name: {name for name, _ in (*table.partition, *table.clustering, *table.columns, *table.statics)}
        for table in TABLES
    }


class Statements:
    """The statements of one table; each text is made once."""

    def __init__(self, keyspace: str, table: Table) -> None:
        self.table = table
        self._name = f"{keyspace}.{table.name}"
        self._at = _equal(table.partition)
        row = (*table.partition, *table.clustering, *table.columns)
        key = (*table.partition, *table.clustering)
        self.put = f"INSERT INTO {self._name} ({_names(row)}) VALUES ({_marks(len(row))})"
        self.drop = f"DELETE FROM {self._name} WHERE {_equal(key)}"
        #: of tables with columns: one row without the statics, which servers look for apart, and without its own key
        self.row = f"SELECT {_names(table.columns)} FROM {self._name} WHERE {_equal(key)}"
        #: of free tables: the stamp comes last in an insert, first in a delete
        self.write = f"{self.put} USING TIMESTAMP ?"
        self.erase = f"DELETE FROM {self._name} USING TIMESTAMP ? WHERE {_equal(key)}"
        distinct = "DISTINCT " if table.clustering else ""
        self.statics = (
            f"SELECT {distinct}{_names((*table.partition, *table.statics))} FROM {self._name} WHERE {self._at}"
        )
        self._reads: dict[tuple[int, int, bool, bool], str] = {}
        self._guards: dict[tuple[str, ...], str] = {}

    def read(self, prefix: int, beyond: int, among: bool, limited: bool) -> str:
        """Statics and rows whose clustering begins with `prefix` values, then is above `beyond`, or one of many."""
        text = self._reads.get((prefix, beyond, among, limited))
        if text is None:
            table, names = self.table, [name for name, _ in self.table.clustering]
            where = [self._at, *(f"{name} = ?" for name in names[:prefix])]
            rest = names[prefix : prefix + beyond]
            if len(rest) == 1:
                where.append(f"{rest[0]} > ?")
            elif rest:
                where.append(f"({', '.join(rest)}) > ({_marks(len(rest))})")
            if among:
                where.append(f"{names[prefix]} IN ?")
            columns = _names((*table.statics, *table.clustering, *table.columns))
            text = f"SELECT {columns} FROM {self._name} WHERE {' AND '.join(where)}{' LIMIT ?' if limited else ''}"
            self._reads[prefix, beyond, among, limited] = text
        return text

    def partitions(self, *, following: bool, limited: bool) -> str:
        """Partition keys in the order of their tokens, `following` a given one."""
        keys = _names(self.table.partition)
        beyond = f" WHERE token({keys}) > token({_marks(len(self.table.partition))})" if following else ""
        return f"SELECT DISTINCT {keys} FROM {self._name}{beyond}{' LIMIT ?' if limited else ''}"

    def guard(self, names: tuple[str, ...]) -> str:
        """Set these statics if the guard is what it was; null: if there is no such partition."""
        text = self._guards.get(names)
        if text is None:
            sets = ", ".join(f"{name} = ?" for name in names)
            text = f"UPDATE {self._name} SET {sets} WHERE {self._at} IF {self.table.guard} = ?"
            self._guards[names] = text
        return text


@cache
def of(keyspace: str, table: str) -> Statements:
    return Statements(keyspace, next(each for each in TABLES if each.name == table))


def _names(columns: tuple[tuple[str, str], ...]) -> str:
    return ", ".join(name for name, _ in columns)


def _equal(columns: tuple[tuple[str, str], ...]) -> str:
    return " AND ".join(f"{name} = ?" for name, _ in columns)


def _marks(count: int) -> str:
    return ", ".join("?" * count)
