"""`alcor up`: a whole cloud on this machine, in the foreground. `cli.demo` runs its story inside the same cloud.

Everything is under the data directory and the cloud's tag. The end, a failed start and the next start all remove what
is left; the database stays, and the hosts' kernels are filled from it again at the next start.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec
from msgspec import Struct, structs

from cli import users
from cli.cassandra.node import Node
from cli.client import Client
from cli.errors import Failure
from cli.instances import Instances
from cli.layout import Description, Layout, require_privileges
from cli.parts import store_url
from cli.relay import reachable
from cli.supervisor import Part, Supervisor
from cli.underlay import Underlay, underlay
from cli.zipkin import server as zipkin
from planes.model.settings import Loaded, Settings

READY_SECONDS = 60.0
NATS_PORT = 4222
#: of every agent, on its tunnel address, which the machine reaches
METRICS_PORT = 9697
#: the bare word for a store: a server of the cloud's own; and how long that may take to start
CASSANDRA, CASSANDRA_SECONDS = "cassandra", 240.0
ZIPKIN_SECONDS = 90.0


class Cloud(Struct, frozen=True):
    """A running cloud."""

    layout: Layout
    settings: Settings
    apis: tuple[str, ...]
    nats: str
    hosts: tuple[str, ...]
    agents: tuple[str, ...]
    supervisor: Supervisor
    #: where traces can be looked at; empty: only here, with `alcor trace`
    viewer: str = ""

    @property
    def api(self) -> str:
        """Any instance answers any request; this one is named to who asks for one."""
        return self.apis[0]

    def summary(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "api": self.api,
            "apis": list(self.apis),
            "nats": self.nats,
            "console": f"{self.api}/console",
            "hosts": list(self.hosts),
            "pids": self.supervisor.pids,
            "metrics": [f"{target}/metrics" for target in (*self.apis, *self.agents)],
            "data": str(self.layout.data),
        } | ({"zipkin": self.viewer} if self.viewer else {})


def up(loaded: Loaded, hosts: int, instances: int, json_: bool, viewer: bool = False) -> None:
    """Run a cloud until SIGINT or SIGTERM."""

    async def stay() -> None:
        async with running(loaded.settings, hosts, tell, instances=instances, viewer=viewer) as cloud:
            for name, reason in (
                await asyncio.to_thread(Instances(structs.replace(loaded, settings=cloud.settings), cloud.api).revive)
            ).items():
                tell(f"instance {name} of the former life is not back: {reason}")
            if json_:
                click.echo(msgspec.json.encode(cloud.summary()).decode())
            else:
                _introduce(cloud)
            await asyncio.Event().wait()

    until_stopped(stay())


def tell(sentence: str) -> None:
    """Progress and trouble go to stderr; stdout holds only what was asked for."""
    click.echo(f"alcor: {sentence}", err=True)


def until_stopped(work: Coroutine[Any, Any, None]) -> bool:
    """Run `work` to its end (True), or until a signal ends it (False); either way its clean-up is done on return."""

    async def guarded() -> bool:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        stopping = False

        def stop() -> None:  # once: a second signal must not break off the clean-up
            nonlocal stopping
            if not stopping:
                stopping = True
                task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, stop)
        try:
            await work
        except asyncio.CancelledError:
            if not stopping:
                raise
            return False
        return True

    return asyncio.run(guarded())


@contextlib.asynccontextmanager
async def running(
    settings: Settings,
    hosts: int,
    say: Callable[[str], None],
    fresh: bool = False,
    instances: int = 1,
    viewer: bool = False,
) -> AsyncIterator[Cloud]:
    """A cloud with `hosts` hosts and `instances` of the API, ready to use; all of it is gone when the block is left.

    `fresh`: forget its data. `viewer`: with a Zipkin that gets all traces.
    """
    require_privileges()
    store = "" if settings.store == CASSANDRA else store_url(settings)
    if instances > 1 and store.startswith("sqlite:"):
        raise Failure("Several instances need a store that they can share: --store cassandra, or a cluster's URL.")
    ports = range(settings.api_port, settings.api_port + instances)
    names = tuple(f"h{number}" for number in range(1, hosts + 1))
    layout = Layout(settings.data)
    layout.hold()
    settings = users.administered(settings)
    for port in ports:
        _require_free("127.0.0.1", port)
    if fresh:
        shutil.rmtree(layout.data / CASSANDRA, ignore_errors=True)
        for path in layout.data.glob(f"{layout.database.name}*"):
            path.unlink()
    shutil.rmtree(layout.data / "hosts", ignore_errors=True)  # these kernels are empty, as after a reboot
    async with contextlib.AsyncExitStack() as stack:
        wires = await stack.enter_async_context(underlay(layout, names))
        apis = tuple(f"http://127.0.0.1:{port}" for port in ports)
        nats = f"nats://{wires.machine}:{_free_port(wires.machine, NATS_PORT)}"

        def describe() -> None:
            layout.describe(Description(apis[0], nats, layout.tag, names, os.getpid(), supervisor.pids))

        supervisor = Supervisor(say, describe)
        try:
            store = store or await _cassandra(layout, supervisor, say)
            page = ""
            if viewer:
                server = await _zipkin(layout, wires.machine, supervisor, say)
                settings, page = structs.replace(settings, otlp=server.spans, trace_ratio=1.0), server.url
            otlp = await stack.enter_async_context(reachable(settings.otlp, wires.machine))
            for part in _parts(layout, settings, store, nats, wires, instances, otlp):
                await supervisor.start(part)
            for api in apis:
                await _ready(Client(settings, api), names, layout)
            describe()
            agents = tuple(f"http://{vtep}:{METRICS_PORT}" for vtep in wires.vteps.values())
            yield Cloud(layout, settings, apis, nats, names, agents, supervisor, page)
        finally:
            layout.description.unlink(missing_ok=True)
            await supervisor.stop()


async def _cassandra(layout: Layout, supervisor: Supervisor, say: Callable[[str], None]) -> str:
    """Start a server of the cloud's own, on data that it may have from before; its URL."""
    say("a Cassandra server is started, which takes 15 to 60 s; the first time, Maven fetches it")
    directory = layout.data / CASSANDRA
    node = Node(directory, _free_port("127.0.0.1", 9042), _free_port("127.0.0.1", 7000))
    log = layout.logs / "cassandra.log"
    await supervisor.start(Part(CASSANDRA, await asyncio.to_thread(node.prepare), os.environ, log))
    await _answering("Cassandra", node.answers, CASSANDRA_SECONDS, log)
    return node.url("alcor")


async def _zipkin(layout: Layout, address: str, supervisor: Supervisor, say: Callable[[str], None]) -> zipkin.Zipkin:
    """Start a trace viewer on the address where hosts find this machine."""
    say("a Zipkin server is started, which takes 5 to 30 s; the first time, Maven fetches it")
    server = zipkin.Zipkin(address, _free_port(address, zipkin.PORT))
    log = layout.logs / "zipkin.log"
    await supervisor.start(Part("zipkin", await asyncio.to_thread(server.command), os.environ, log))
    await _answering("Zipkin", server.answers, ZIPKIN_SECONDS, log)
    return server


async def _answering(what: str, answers: Callable[[], bool], seconds: float, log: Path) -> None:
    deadline = time.monotonic() + seconds
    while not await asyncio.to_thread(answers):
        if time.monotonic() > deadline:
            raise Failure(f"{what} did not start within {seconds:.0f} s (log: {log}).")
        await asyncio.sleep(0.2)


def _parts(
    layout: Layout,
    settings: Settings,
    store: str,
    nats: str,
    wires: Underlay,
    instances: int = 1,
    otlp: str = "",
) -> list[Part]:
    """All processes, in the order of their start. `otlp`: where hosts find the collector."""
    base = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "ALCOR_PASSWORD")}
    base |= {
        "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
        "ALCOR_NATS": nats,
        "ALCOR_DATA": str(layout.data),
        "ALCOR_TRACE_RATIO": str(settings.trace_ratio),
        "ALCOR_LOG": settings.log,
    }
    me = (sys.executable, "-P", "-m", "cli.main")  # nothing in the present directory stands in for a module of ours
    parts = [Part("nats", _nats_command(layout, nats), base, layout.logs / "nats.log")]
    for number in range(instances):
        name = f"api{number + 1}" if number else "api"
        env = base | {"ALCOR_STORE": store, "ALCOR_API_HOST": "127.0.0.1", "ALCOR_AUTH": settings.auth}
        env |= {"ALCOR_OTLP": settings.otlp, "ALCOR_AUTH_USERS": str(users.path_of(settings))}
        env |= {"ALCOR_AUTH_URL": settings.auth_url, "ALCOR_AUTH_LIFE": str(settings.auth_life)}
        env["ALCOR_API_PORT"] = str(settings.api_port + number)
        if not settings.instance or number:  # a name for all its lives: its leases stay its own
            env["ALCOR_INSTANCE"] = name
        parts.append(Part(name, (*me, "api"), env, layout.logs / f"{name}.log", stage=1))
    for name, vtep in wires.vteps.items():
        env = base | {
            "ALCOR_HOST": name,
            "ALCOR_VTEP": vtep,
            "ALCOR_OTLP": otlp,
            "ALCOR_CLOUD": layout.cloud(name),
            "ALCOR_MACHINE": f"{layout.tag}-{name}",
            "ALCOR_STATE": str(layout.data / "hosts" / name),
            "ALCOR_METRICS_HOST": vtep,
            "ALCOR_METRICS_PORT": str(METRICS_PORT),
        }
        parts.append(Part(name, (*me, "agent"), env, layout.logs / f"{name}.log", layout.host(name), stage=2))
    return parts


def _nats_command(layout: Layout, url: str) -> Sequence[str]:
    """The real server from its wheel; its configuration is one file in the data directory."""
    binary = Path(sys.executable).with_name("nats-server")
    found = str(binary) if binary.exists() else shutil.which("nats-server")
    if found is None:
        raise Failure("The program nats-server is not installed; `make install` installs it.")
    config = layout.data / "nats.conf"
    config.write_text(
        f'server_name: "am{layout.tag}"\n'
        f'listen: "{url.removeprefix("nats://")}"\n'
        "max_payload: 1MB\n"
        'ping_interval: "5s"\n'
        "ping_max: 2\n"
        'write_deadline: "5s"\n'
    )
    return (found, "--config", str(config))


async def _ready(client: Client, names: Sequence[str], layout: Layout) -> None:
    """Return when the API can serve and every host is alive; Failure that says what is missing after a minute."""
    deadline = time.monotonic() + READY_SECONDS
    with client:
        await _eventually(
            lambda: _unready(client),
            deadline,
            lambda why: f"the API is not ready: {why[0]} (log: {layout.logs}/api.log)",
        )
        missing = lambda silent: f"no sign of life from {', '.join(silent)} (logs: {layout.logs})"  # noqa: E731
        await _eventually(lambda: _silent(client, names), deadline, missing)


async def _eventually(
    lacking: Callable[[], Sequence[str]], deadline: float, words: Callable[[Sequence[str]], str]
) -> None:
    """Ask until nothing is lacking."""
    while found := await asyncio.to_thread(lacking):
        if time.monotonic() > deadline:
            raise Failure(f"The cloud did not start within {READY_SECONDS:.0f} s: {words(found)}.")
        await asyncio.sleep(0.05)


def _unready(client: Client) -> Sequence[str]:
    try:
        client.get("/readyz")
    except Failure as error:
        return (str(error),)
    return ()


def _silent(client: Client, names: Sequence[str]) -> Sequence[str]:
    hosts = client.get("/v2.0/alcor/hosts")["hosts"]
    alive = {host["name"] for host in hosts if host["alive"]}
    return [name for name in names if name not in alive]


def _require_free(address: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            raise Failure(f"Port {port} on {address} is in use; choose another with --api-port.") from None


def _free_port(address: str, wanted: int) -> int:
    """`wanted` if nobody has it on this address, else any."""
    for port in (wanted, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, port))
            return int(probe.getsockname()[1])
    raise Failure(f"No port is free on {address}.")


def _introduce(cloud: Cloud) -> None:
    summary = cloud.summary()
    data = summary["data"]
    lines = [f"API      {'/v2.0 '.join(cloud.apis)}/v2.0   OpenAPI {cloud.api}/schema"]
    lines += [
        f"console  {summary['console']}",
        f"bus      {cloud.nats}",
        f"hosts    {' '.join(cloud.hosts)}",
        f"data     {data}   logs {data}/log",
    ]
    lines += [f"metrics  {summary['metrics'][0]}   of each host, such as {summary['metrics'][-1]}"]
    if cloud.viewer:
        lines.append(f"traces   {cloud.viewer}")
    lines += ["", "Stop with Ctrl-C. In another terminal:"]
    prefix = f"ALCOR_API={cloud.api} ALCOR_DATA={data} "
    if cloud.settings.auth == "embedded":
        lines += [f"  export ALCOR_USER={cloud.settings.user} ALCOR_PASSWORD=$(cat {data}/{users.PASSWORD})"]
    lines += [f"  {prefix}alcor vm create web-1 --network NETWORK --host {cloud.hosts[0]}"]
    click.echo("\n".join(lines))
