"""How far each part of a network has been followed: a silently lost message shows as a gap (rule S7). Pure."""

from collections.abc import Iterable

from planes.goalstate.messages import Span

#: stretches kept per part while one before them is missing; the pull brings what is beyond
AHEAD = 64


class Tops:
    """The counters of one network's parts."""

    def __init__(self) -> None:
        self.known: dict[int, int] = {}
        self._ahead: dict[int, list[Span]] = {}

    def take(self, spans: Iterable[Span]) -> None:
        """Messages or pages brought these stretches, in any order."""
        for span in spans:
            known = self.known.get(span.part, 0)
            if span.top <= known:
                continue
            if span.prev > known:
                ahead = self._ahead.setdefault(span.part, [])
                if len(ahead) < AHEAD and span not in ahead:
                    ahead.append(span)
                continue
            self.known[span.part] = span.top
            self._follow(span.part)

    def covers(self, part: int | None, rev: int) -> bool:
        """Whether everything of that part up to this revision is known."""
        return part is not None and rev <= self.known.get(part, 0)

    def _follow(self, part: int) -> None:
        """Stretches that now continue what is known."""
        ahead = self._ahead.pop(part, [])
        for span in sorted(ahead, key=lambda each: each.prev):
            if span.prev <= self.known[part]:
                self.known[part] = max(self.known[part], span.top)
        left = [span for span in ahead if span.prev > self.known[part]]
        if left:
            self._ahead[part] = left

    def gaps(self) -> list[int]:
        """Parts of which something is missing."""
        return list(self._ahead)
