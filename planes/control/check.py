"""The check: walks every table, finds what a crash can leave, and repairs it by the echo's means. Where it may repair,
numbers of group sets that no port has go on towards their next use (`numbers`).

Run by `alcor store check`, and once a day in the background by one instance at a time. It is safe beside running
instances: a fault counts when two looks, further apart than any request may take, see the same, and a claim is freed
only after its creator, should one live, has been stopped (rule D6). It must never decide by what it remembers.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, cast

from msgspec import Struct, field
from msgspec.structs import replace

from planes.control import fence
from planes.control.echo import Echo
from planes.control.findings import WALKED, Finding, Findings
from planes.control.ground import Ground
from planes.control.indexes import puts
from planes.control.lease import Lease
from planes.control.names import Names
from planes.control.numbers import Numbers
from planes.model.enums import Kind
from planes.model.errors import AlcorError
from planes.model.ids import Id, number_of
from planes.model.resources import Address, AddressState, NetworkState
from planes.store.protocol import Store, Values, Write
from planes.store.schema import NETWORKS, SLOTS, TABLES, Table
from planes.store.views import Draft

log = logging.getLogger(__name__)

#: partition keys read at a time
PAGE = 500
#: faults that one walk takes on; more wait for the next
BOUND = 10_000
#: seconds between looks whether a walk is due, and how often in the background
POLL, EVERY = 60.0, 86_400
#: share of the time that the background walk works
DUTY = 0.05
_TABLES = {table.name: table for table in TABLES}
Progress = Callable[[str, int], None]


class Report(Struct):
    """`found` was seen twice; `left` still stands after repair (all of it, without). `more`: the bound was met."""

    looked: Counter[str] = field(default_factory=Counter)
    found: list[Finding] = []
    left: list[Finding] = []
    more: bool = False


class _LostLease(Exception):
    pass


class Check:
    """One instance's. `now` is the store's time; `age`: seconds between the two looks."""

    def __init__(
        self,
        store: Store,
        ground: Ground,
        echo: Echo,
        now: Callable[[], int],
        quotas: Callable[[int], tuple[str, int]],
        instance: str,
        age: float,
        names: Names,
        numbers: Numbers,
    ) -> None:
        self._store = store
        self._ground = ground
        self._echo = echo
        self._now = now
        self._age = age
        kinds = {quotas(kind)[0]: int(kind) for kind in (Kind.NETWORK, Kind.SUBNET, Kind.PORT, Kind.GROUP, Kind.RULE)}
        self._findings = Findings(store, now, kinds)
        self._lease = Lease(store, "check", instance, now)
        self._names = names
        self._numbers = numbers
        self.counters = {"checks": 0, "check_found": 0, "check_repaired": 0}

    async def keep(self) -> None:
        """The walk in the background, for ever: one instance at a time, a little at a time."""
        while True:
            await asyncio.sleep(POLL)
            try:
                if await self._lease.due(EVERY * 1_000_000) and await self._lease.hold():
                    await self.run(fix=True, duty=DUTY)
                    await self._lease.hold(self._now())
            except (AlcorError, _LostLease) as error:
                log.warning("check put off: %s", error or "another instance does it")

    async def run(
        self, *, fix: bool, width: int = 1, duty: float = 1.0, progress: Progress = lambda table, count: None
    ) -> Report:
        """One walk; `width` partitions side by side, working a share `duty` of the time. Raises StoreError."""
        report, seen = Report(), dict[tuple[Any, ...], tuple[Finding, int]]()
        for table in WALKED:
            if not report.more:
                await self._walk(table, report, seen, width, duty)
            progress(table.name, report.looked[table.name])
        looked = 0
        if seen:
            await asyncio.sleep(self._age)
            looked = self._now()
            again = await self._again(finding for finding, _ in seen.values())
            report.found = [again[name] for name in seen if name in again]
        report.left = report.found
        if fix and report.found:
            await self._repair(report, {name: at for name, (_, at) in seen.items()}, looked)
        if fix and not report.more and not any(finding.rule == "unlisted" for finding in report.left):
            await self._names.whole()
        if fix:
            await self._tend(duty)
        self.counters["checks"] += 1
        self.counters["check_found"] += len(report.found)
        self.counters["check_repaired"] += len(report.found) - len(report.left)
        return report

    async def _walk(
        self, table: Table, report: Report, seen: dict[Any, tuple[Finding, int]], width: int, duty: float
    ) -> None:
        loop, last = asyncio.get_running_loop(), Values()
        while True:
            page = await self._store.partitions(table, after=last, limit=PAGE)
            for start in range(0, len(page), width):
                members = page[start : start + width]
                began = loop.time()
                if duty < 1 and not await self._lease.hold():
                    raise _LostLease
                looks = await asyncio.gather(*(self._findings.look(table, partition) for partition in members))
                report.looked[table.name] += len(members)
                for finding in (finding for look in looks for finding in look):
                    seen[finding.name] = (finding, self._now())
                if len(seen) >= BOUND:
                    report.more = True
                    return
                await asyncio.sleep((loop.time() - began) * (1 / duty - 1))
            if len(page) < PAGE:
                return
            last = page[-1]

    async def _tend(self, duty: float) -> None:
        """Numbers of group sets that nobody has go their way, in every network."""
        loop, last = asyncio.get_running_loop(), Values()
        began = loop.time()

        async def pause() -> None:
            nonlocal began
            if duty < 1 and not await self._lease.hold():
                raise _LostLease
            await asyncio.sleep((loop.time() - began) * (1 / duty - 1))
            began = loop.time()

        while page := await self._store.partitions(NETWORKS, after=last, limit=PAGE):
            for where in page:
                await self._numbers.tend(cast(int, where[0]), pause)
                await pause()
            last = page[-1]

    async def _again(self, findings: Iterable[Finding]) -> dict[tuple[Any, ...], Finding]:
        """What is wrong now where these were seen."""
        places = dict.fromkeys((finding.table, finding.partition) for finding in findings)
        looks = [await self._findings.look(_TABLES[table], partition) for table, partition in places]
        return {finding.name: finding for look in looks for finding in look}

    # -- repair -----------------------------------------------------------------------------------------------------

    async def _repair(self, report: Report, seen: dict[tuple[Any, ...], int], looked: int) -> None:
        # What was given up is marked before the port that gave it up forgets it.
        for finding in sorted(report.found, key=lambda finding: finding.seen is None):
            log.warning("check found: %s", finding.says)
            try:
                await self._mend(finding, seen[finding.name], looked)
            except AlcorError as error:
                log.warning("repair put off: %s: %s", finding.says, error)
        if any(finding.rule == "feed" for finding in report.found):
            await self._echo.turn()
        still = await self._again(report.found)
        report.left = [finding for finding in report.found if finding.name in still]

    async def _mend(self, finding: Finding, seen: int, looked: int) -> None:
        """The echo finishes or undoes it; what the echo does not know is written here."""
        if finding.rule == "sealed" and finding.entry:
            # As a deletion that was cut off, so that one under way notices.
            where = (number_of(Id(finding.entry.ids[0])),)
            await self._ground.partitions.change(NETWORKS, where, fence.set_state(NetworkState.DELETING))
        if finding.seen is not None and finding.entry is not None:
            mark = _mark(cast(bytes, finding.key[1]), finding.seen)
            await self._ground.change_bucket(finding.entry.network, *cast(tuple[int, int], finding.partition), mark)
        if finding.entry is not None:
            await self._echo.finish(finding.entry)
        if finding.slot:
            await self._ground.partitions.change(SLOTS, finding.partition, _free(finding.slot))
        # What came after the first look is newer than the drops and stays; what went after the second, than the puts.
        drops = [Write(table, where, key, None, finding.stamp or seen) for table, where, key in finding.drop]
        if writes := [*puts(list(finding.put), looked), *drops]:
            await self._store.write(writes)


def _mark(ip: bytes, seen: Address) -> Callable[[Draft, int], None]:
    """As an update does when it takes an address off a port, if the address still is what was seen."""
    state = AddressState.RELEASING if seen.host else AddressState.FREE

    def apply(draft: Draft, rev: int) -> None:
        if draft.get(Kind.IP, ip) == seen:
            draft.put(Kind.IP, ip, replace(seen, state=state, since=rev, rev=rev))

    return apply


def _free(owner: bytes) -> Callable[[Draft, int], None]:
    def apply(draft: Draft, _: int) -> None:
        for key, slot in list(draft.all(Kind.SLOT)):
            if slot.owner == owner:
                draft.drop(Kind.SLOT, key)

    return apply
