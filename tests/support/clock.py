"""A loop whose time jumps: whoever sleeps an hour wakes at once, in the right order. For tests without real I/O."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
#: wall clock, µs, at virtual second 0
EPOCH_US = 1_800_000_000_000_000
#: real seconds to wait for a thread when nothing at all is scheduled
STUCK = 5.0


class _JumpingSelector(selectors.DefaultSelector):
    """Instead of waiting it moves the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self._watched = 0

    def register(self, *args: Any, **how: Any) -> selectors.SelectorKey:
        self._watched += 1
        return super().register(*args, **how)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        self._watched -= 1
        return super().unregister(fileobj)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            ready = super().select(STUCK)
            if not ready:
                raise RuntimeError("nothing is scheduled and nothing happens: the test waits for ever")
            return ready
        # The loop's own pipe only ends a wait; where nothing else is watched, the kernel need not be asked each time.
        if self._watched > 1 and (ready := super().select(0)):
            return ready
        if timeout:
            self.now += timeout + 1e-9  # so that what is due is surely in the past
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop on virtual time that starts at second 1 000."""

    def __init__(self) -> None:
        self._clock = _JumpingSelector()
        self._clock.now = 1000.0
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override]
        """In no thread but at once: a run must not depend on how long anything really takes."""
        done = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:
            done.set_exception(error)
        return done

    def now_us(self) -> int:
        """Wall-clock µs that run with the virtual clock."""
        return EPOCH_US + round(self._clock.now * 1_000_000)


def now_us() -> int:
    """Wall-clock µs of the running virtual loop."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop.now_us()


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run to the end on virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


async def until(condition: Callable[[], bool], within: float = 60.0, step: float = 0.01) -> None:
    """Return as soon as the condition holds; AssertionError after `within` seconds of the loop's clock."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within
    while not condition():
        assert loop.time() < deadline, f"did not happen within {within} s"
        await asyncio.sleep(step)
