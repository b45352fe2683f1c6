"""Pulls: a page that waits to be worked off while its successor is asked for."""

import pytest

from agent.core.context import Context, Options
from agent.core.events import Answered, Scope
from agent.core.scopes import Pulling, Scopes
from planes.goalstate import codec
from planes.goalstate.messages import WHOLE, Network, Page, What

SCOPE: Scope = (What.NETWORK, b"n" * 16)


@pytest.fixture
def taken() -> list[Page]:
    return []


@pytest.fixture
def scopes(taken: list[Page]) -> Scopes:
    """A network is followed, and the first of two pages has come."""

    def take(scope: Scope, page: Page, gen: int) -> None:
        taken.append(page)

    def complete(scope: Scope, pulling: Pulling) -> None:
        taken.append(Page())

    context = Context(Options(host="h1", machine="m", vtep=bytes(4)), lambda: 0.5)
    context.online, context.epoch = True, 1
    made = Scopes(context, take, complete)
    made.join(SCOPE)
    made.pull_whole(SCOPE)
    first = Page((Network(SCOPE[1], 5, 7, 1450),), b"more")
    tag = ("pull", (SCOPE, WHOLE), made.generation)
    made.answered(Answered(tag, codec.encode(first, "c1"), 0))
    return made


def test_a_page_is_worked_off_when_the_next_has_been_asked_for(scopes: Scopes, taken: list[Page]) -> None:
    assert taken == []
    assert [key for key, pulling in scopes.pulls.items() if pulling.token == b"more"] == [(SCOPE, WHOLE)]
    scopes.take_page()
    scopes.take_page()
    assert [len(page.objects) for page in taken] == [1]


def test_a_page_of_a_scope_that_was_left_is_not_taken(scopes: Scopes, taken: list[Page]) -> None:
    scopes.leave(SCOPE)
    scopes.take_page()
    assert taken == []
