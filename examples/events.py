"""Follow what happens in a project: `python examples/events.py nats://127.0.0.1:4222 PROJECT`.

Nothing is kept for who was away: at the start, and after each break, ask the REST API for what is there; what comes
with a revision that is not higher than the one known of that object is old news.
"""

import asyncio
import sys

import nats
from nats.aio.msg import Msg

from planes.goalstate.codec import Malformed, decode
from planes.goalstate.messages import Events
from planes.goalstate.subjects import Subjects


async def heard(message: Msg) -> None:
    try:
        _, told = decode(message.data, Events)
    except Malformed:
        return  # of a newer version, or `change.finished`
    for event in told.events:
        print(told.resource, told.verb, event.id, event.revision, event.status or "-", event.host or "-", flush=True)


async def main(servers: str, project: str) -> None:
    client = await nats.connect(servers, max_reconnect_attempts=-1)
    await client.subscribe(Subjects().event(project, "*", "*"), cb=heard)
    await asyncio.Event().wait()


asyncio.run(main(*sys.argv[1:]))
