"""The data plane for tests: the same protocol as the Linux one, on a fake kernel, with faults on demand.

Every method obeys the rules of `planes.data.driver`; a part of the protocol that is not checked here is checked
nowhere without root.
"""

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from planes.data.driver import ORDER, DriverError, NetworkSpec, Spec, SpecKey, Transaction
from planes.data.memory.fabric import Fabric
from planes.data.memory.kernel import Kernel, KernelNetwork

_RANK = {kind: rank for rank, kind in enumerate(ORDER)}


class MemoryDriver:
    """One host's driver. The kernel it works on is the fabric's, found by the tunnel's address."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._kernel: Kernel | None = None
        self._busy = False
        self._failing: dict[str, tuple[str, int]] = {}
        self._counters: Counter[str] = Counter()
        #: seconds that each apply takes
        self.latency = 0.0
        #: reason for which `open` fails; empty: it does not
        self.broken = ""
        self._go_on = asyncio.Event()
        self._go_on.set()
        #: what each apply was given: (kinds put, keys dropped)
        self.history: list[tuple[tuple[SpecKey, ...], tuple[SpecKey, ...]]] = []

    # -- misbehaviour -----------------------------------------------------------------------------------------------

    def fail(self, kind: str, reason: str, times: int = 1) -> None:
        """The next puts of a kind fail."""
        self._failing[kind] = (reason, times)

    def stall(self) -> None:
        """The kernel answers nothing until `resume`."""
        self._go_on.clear()

    def resume(self) -> None:
        self._go_on.set()

    # -- the protocol -----------------------------------------------------------------------------------------------

    async def open(self, vtep: bytes, vtep_mac: bytes) -> None:
        if self.broken:
            raise DriverError(self.broken)
        self._kernel = self._fabric.kernel(vtep)
        self._kernel.mac = vtep_mac

    async def held(self) -> Mapping[SpecKey, Spec | None]:
        return self.kernel.held()

    async def apply(self, puts: Iterable[Spec], drops: Iterable[SpecKey]) -> Mapping[SpecKey, str]:
        assert not self._busy, "one caller at a time"
        self._busy = True
        try:
            wanted, unwanted = [(spec.key, spec) for spec in puts], list(drops)
            self.history.append((tuple([key for key, _ in wanted]), tuple(unwanted)))
            if self.latency:
                await asyncio.sleep(self.latency)
            await self._go_on.wait()
            errors: dict[SpecKey, str] = {}
            for key in sorted(unwanted, key=lambda each: _RANK[each[0]], reverse=True):
                self._drop(key)
            for key, spec in sorted(wanted, key=lambda each: _RANK[each[0][0]]):
                if reason := self._put(key[0], spec):
                    errors[key] = reason
                    self._counters["errors"] += 1
            return errors
        finally:
            self._busy = False

    def transactions(self) -> Sequence[Transaction]:
        return ()

    async def audit(self) -> frozenset[SpecKey]:
        assert not self._busy, "one caller at a time"
        lost = frozenset(self.kernel.damaged)
        self.kernel.damaged.clear()
        return lost

    async def surplus(self, known: Mapping[SpecKey, Spec | None]) -> Mapping[SpecKey, Spec | None]:
        assert not self._busy, "one caller at a time"
        self.kernel.unlisted.clear()
        there = self.kernel.held()
        return {key: spec for key, spec in there.items() if spec is not None and known.get(key, "") not in (spec, None)}

    async def drops(self) -> dict[str, int]:
        assert not self._busy, "one caller at a time"
        return dict(self.kernel.drops)

    def counters(self) -> dict[str, int]:
        return dict(self._counters)

    async def close(self) -> None:
        self._kernel = None

    # -- inside -----------------------------------------------------------------------------------------------------

    @property
    def kernel(self) -> Kernel:
        assert self._kernel is not None, "not open"
        return self._kernel

    def dump(self) -> str:
        """The host's kernel in canonical text."""
        return self.kernel.dump()

    def _put(self, kind: str, spec: Spec) -> str:
        reason, times = self._failing.get(kind, ("", 0))
        if times:
            self._failing[kind] = (reason, times - 1)
            return reason
        self._counters["puts"] += 1
        networks = self.kernel.networks
        if isinstance(spec, NetworkSpec) and spec.network not in networks:
            taken = self.kernel.by_vni(spec.vni)
            if taken is not None:
                return f"VNI {spec.vni} is in use by {taken.spec.network.hex()}"
            networks[spec.network] = KernelNetwork(spec)
            return ""
        if spec.network not in networks:
            return f"no network {spec.network.hex()}"
        networks[spec.network].put(spec)
        return ""

    def _drop(self, key: SpecKey) -> None:
        self._counters["drops"] += 1
        if key[0] == "network":
            self.kernel.networks.pop(key[1], None)
        elif key[1] in self.kernel.networks:
            self.kernel.networks[key[1]].drop(key)
