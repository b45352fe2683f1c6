"""`alcor demo`: a cloud with three hosts, and the story of `cli.story` told in it as it happens."""

import asyncio
from pathlib import Path

import msgspec
from msgspec import structs
from rich.console import Console

from cli.instances import Instances
from cli.story import Step, Stopped, Story
from cli.trace import show
from cli.up import CASSANDRA, Cloud, running, tell, until_stopped
from planes.model.settings import Loaded

HOSTS = 3


def demo(loaded: Loaded, once: bool, json_: bool, viewer: bool = False) -> int:
    """The exit code: 0 only if every step held. Without `once` the cloud stays until it is stopped."""
    data = str(Path(loaded.settings.data) / "demo")
    store = CASSANDRA if loaded.settings.store == CASSANDRA else ""  # nobody's data but its own
    settings = structs.replace(loaded.settings, data=data, store=store, auth="none", trace_ratio=1.0)
    console = Console(stderr=json_, highlight=False, soft_wrap=True)
    outcome: list[Story] = []

    async def work() -> None:
        console.print(f"Starting a cloud with {HOSTS} hosts …")
        async with running(settings, HOSTS, tell, fresh=True, viewer=viewer) as cloud:
            story = _story(cloud, Loaded(settings, {}), console)
            outcome.append(story)
            await _tell(story, console)
            _conclude(cloud, story, console, json_)
            if not once:
                console.print("The cloud stays up until you stop it with Ctrl-C.")
                await asyncio.Event().wait()

    ended = until_stopped(work())
    told = bool(outcome) and outcome[0].held and outcome[0].done
    return 0 if told and (ended or not once) else 1


def _story(cloud: Cloud, loaded: Loaded, console: Console) -> Story:
    def say(what: str | Step) -> None:
        if isinstance(what, str):
            console.print(f"\n[bold]{what}[/bold]")
        else:
            mark = "[green]✔[/green]" if what.held else "[red]✘[/red]"
            console.print(f"  {mark} {what.text:<58} [dim]{what.detail}[/dim]")

    return Story(cloud.api, Instances(loaded), cloud.hosts, say)


async def _tell(story: Story, console: Console) -> None:
    """The story in a thread, so that the cloud is kept alive meanwhile; a signal ends it at its next step."""
    telling = asyncio.create_task(asyncio.to_thread(story.tell))
    try:
        change = await asyncio.shield(telling)
    except asyncio.CancelledError:
        story.stop.set()
        await asyncio.gather(telling, return_exceptions=True)
        raise
    except Stopped:
        return
    console.print("\n[bold]One port, from the request to the packet[/bold]")
    show(change, console)


def _conclude(cloud: Cloud, story: Story, console: Console, json_: bool) -> None:
    held = sum(step.held for step in story.steps)
    colour = "green" if story.held else "red"
    console.print(f"\n[{colour}]{held} of {len(story.steps)} steps held.[/{colour}]")
    summary = cloud.summary()
    if json_:
        steps = [msgspec.to_builtins(step) for step in story.steps]
        print(msgspec.json.encode({**summary, "held": story.held, "steps": steps}).decode(), flush=True)
        return
    console.print(f"[bold]Look at it: {summary['console']}[/bold]")
    console.print(f"API {cloud.api}/v2.0   bus {cloud.nats}   data {summary['data']}")
    if cloud.viewer:
        console.print(f"traces {cloud.viewer}")
    console.print(f"Try: ALCOR_DATA={summary['data']} alcor vm exec red-web-1 -- ping -c 3 10.0.0.12")
