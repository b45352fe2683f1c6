"""Who asks, and for which change: what every management operation gets from the REST edge. Pure data."""

from msgspec import Struct

from observability.stages import Change
from planes.model.errors import Forbidden


class Caller(Struct, frozen=True):
    """One request's identity. An administrator sees all projects; others see their own and what is shared."""

    project: str
    admin: bool
    change: Change

    def owner(self, asked: str) -> str:
        """The project that a new object belongs to; raises Forbidden when it is another's."""
        if asked and asked != self.project and not self.admin:
            raise Forbidden(f"Project {self.project} may not create resources for project {asked}.")
        return asked or self.project

    def sees(self, project: str, shared: bool = False) -> bool:
        return self.admin or shared or project == self.project
