"""The command line `alcor`: what each command is called, takes and says. The work is done by the modules beside this.

Those are imported when their command runs, so that `alcor --help` stays fast. Exit codes: 0 done, 1 failed, 2 wrong
usage; an error is one sentence on stderr, never a traceback (`ALCOR_LOG=debug` shows it).
"""

import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

as_json = click.option("--json", "json_", is_flag=True, help="One JSON document instead of text.")
data_option = click.option("--data", metavar="DIR", help="Data directory of the cloud (ALCOR_DATA).")
api_option = click.option("--api", metavar="URL", help="Where the API is (ALCOR_API).")


def _settings(**flags: Any) -> Any:
    from cli.configuration import load_settings

    return load_settings(flags)


def example(line: str) -> Callable[[F], F]:
    """Put an example at the end of a command's help."""

    def put(function: F) -> F:
        function.__doc__ = f"{function.__doc__}\n\n\b\nExample:\n  {line}\n"
        return function

    return put


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="alcor-mesh", prog_name="alcor")
@example("alcor up --hosts 3")
def cli() -> None:
    """Alcor Mesh: a cloud virtual-networking control plane."""


def cloud_options(function: F) -> F:
    """What `up` and `demo` take alike."""
    for option in reversed(
        (
            click.option("--api-port", type=int, help="Port of the API on 127.0.0.1 [default: 9696].", metavar="PORT"),
            click.option("--data", metavar="DIR", help="Data directory; names the namespaces too [default: .alcor]."),
            click.option(
                "--store",
                metavar="URL",
                help="sqlite:///path, cassandra://host/keyspace, or cassandra: a server of this cloud's own [default: "
                "SQLite in the data directory].",
            ),
            click.option("--otlp", metavar="URL", help="Collector for traces, by OTLP/HTTP (ALCOR_OTLP)."),
            click.option("--zipkin", is_flag=True, help="Start a Zipkin that gets all traces, to look at them."),
        )
    ):
        function = option(function)
    return function


def _viewed(zipkin: bool, flags: dict[str, Any]) -> bool:
    """Spans go to one place."""
    if zipkin and flags["otlp"]:
        raise click.UsageError("--zipkin and --otlp exclude each other: traces go to one place.")
    return zipkin


@cli.command()
@click.option("--hosts", type=click.IntRange(1, 64), default=2, show_default=True, help="Hosts, each with an agent.")
@cloud_options
@click.option(
    "--instances",
    type=click.IntRange(1, 8),
    default=1,
    show_default=True,
    help="Instances of the API, on ports that follow each other; more than one need Cassandra.",
)
@click.option("--auth", metavar="MODE", help="none, embedded or keystone [default: none].")
@as_json
@example("alcor up --hosts 3 --data /tmp/cloud --store cassandra --instances 2")
def up(hosts: int, instances: int, json_: bool, zipkin: bool, **flags: Any) -> None:
    """Run a whole cloud on this machine, in the foreground, until it is stopped.

    A nats-server, the API with its control plane, and an agent per host, each host in its own network namespace. With
    --json prints one line when everything is ready.
    """
    from cli.up import up as run

    run(_settings(**flags), hosts, instances, json_, _viewed(zipkin, flags))


@cli.command()
@click.option("--once", is_flag=True, help="End after the story; exit 0 only if every step held.")
@cloud_options
@as_json
@example("alcor demo --once")
def demo(once: bool, json_: bool, zipkin: bool, **flags: Any) -> None:
    """Run a cloud and show, with real packets, who can talk to whom.

    Two tenants use the same addresses on three hosts. The demo's data is kept apart, in DIR/demo.
    """
    from cli.demo import demo as run

    sys.exit(run(_settings(**flags), once, json_, _viewed(zipkin, flags)))


@cli.group()
@example("alcor vm create web-1 --network blue --host h1")
def vm() -> None:
    """Test instances in a cloud started by `alcor up`: a network namespace with one port, as a VM would have it."""


def vm_options(function: F) -> F:
    return api_option(data_option(as_json(function)))


@vm.command("create")
@click.argument("name")
@click.option("--network", required=True, help="Name or id of the network.")
@click.option("--host", required=True, help="Host that it runs on.")
@click.option("-g", "--security-group", "groups", multiple=True, help="Name or id; may be repeated [default: default].")
@click.option("--project", default="demo", show_default=True, help="Project that owns it.")
@click.option("--ip", default="", help="Its address [default: a free one].")
@vm_options
@example("alcor vm create web-1 --network blue --host h1 -g web")
def vm_create(
    name: str, network: str, host: str, groups: tuple[str, ...], project: str, ip: str, json_: bool, **flags: Any
) -> None:
    """Create the instance NAME: its port, then a namespace with the port's interface as eth0."""
    from cli.instances import Instances

    made = Instances(_settings(**flags)).create(name, network, host, groups, project, ip)
    _answer(made, json_, f"{name} is {made['ip']} on {host}, port {made['port_id']} {made['status']}")


@vm.command("list")
@vm_options
@example("alcor vm list --json")
def vm_list(json_: bool, **flags: Any) -> None:
    """List the instances."""
    from cli.instances import Instances
    from cli.output import table

    rows = Instances(_settings(**flags)).list()
    columns = ("name", "project", "network", "ip", "host", "status", "running")
    _answer(rows, json_, table(columns, rows) if rows else "no instances")


@vm.command("exec", context_settings={"ignore_unknown_options": True})
@click.argument("name")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@data_option
@example("alcor vm exec web-1 -- ping -c 3 10.0.0.3")
def vm_exec(name: str, command: tuple[str, ...], **flags: Any) -> None:
    """Run COMMAND inside the instance NAME; its exit code becomes ours."""
    from cli.instances import execute

    execute(_settings(**flags), name, command)


@vm.command("delete")
@click.argument("name")
@vm_options
@example("alcor vm delete web-1")
def vm_delete(name: str, json_: bool, **flags: Any) -> None:
    """Delete the instance NAME and its port."""
    from cli.instances import Instances

    Instances(_settings(**flags)).delete(name)
    _answer({"name": name, "deleted": True}, json_, f"{name} is deleted")


@cli.command()
@click.argument("id_", metavar="[ID]", default="")
@click.option("--failed", is_flag=True, help="Without ID: only what failed.")
@click.option("--slow", type=click.FloatRange(0), metavar="MS", help="Without ID: only what took so long.", default=0)
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="Without ID: how many.")
@api_option
@as_json
@example("alcor trace --failed; alcor trace req-6f3c9a52-0a47-4e6b-8d5c-2f1f0f9f7f11")
def trace(id_: str, failed: bool, slow: float, limit: int, json_: bool, **flags: Any) -> None:
    """Show a change stage by stage, per host. ID is a request id, or a port id: that port's last change.

    Without ID: the recent changes of this API instance, newest first.
    """
    from cli.trace import fetch, listed, recent, show

    if not id_:
        changes = recent(_settings(**flags), failed, slow, limit)
        _answer(changes, json_, listed(changes))
        return
    if failed or slow:
        raise click.UsageError(
            "--failed and --slow choose among recent changes; with an ID there is nothing to choose."
        )
    change = fetch(_settings(**flags), id_)
    if json_:
        _answer(change, True, "")
    else:
        show(change)


@cli.command()
@example("ALCOR_STORE=sqlite:////var/lib/alcor/alcor.db alcor api")
def api() -> None:
    """Run the REST API with its control plane, until it is stopped."""
    from cli.parts import api as run

    run(_settings())


@cli.command()
@click.option("--host", help="Name of this host (ALCOR_HOST) [default: the machine's].")
@example("ALCOR_VTEP=192.0.2.11 alcor agent --host h1")
def agent(host: str | None) -> None:
    """Run the agent of this host, until it is stopped."""
    from cli.parts import agent as run

    run(_settings(host=host))


@cli.group()
@example("alcor store init")
def store() -> None:
    """The database."""


@store.command("init")
@click.option("--store", metavar="URL", help="Which (ALCOR_STORE) [default: SQLite in the data directory].")
@as_json
@example("alcor store init --store sqlite:////var/lib/alcor/alcor.db")
def store_init(json_: bool, **flags: Any) -> None:
    """Create the tables that are missing; harmless when all are there."""
    from cli.parts import store_init as run

    url = run(_settings(**flags))
    _answer({"store": url, "ready": True}, json_, f"{url} is ready")


@store.command("copy")
@click.option("--from", "source", metavar="URL", required=True, help="The store to read; it is not changed.")
@click.option("--to", "target", metavar="URL", required=True, help="The store to fill; its tables are created.")
@click.option("--beside", is_flag=True, help="Keep what else the target holds, instead of refusing it.")
@as_json
@example("alcor store copy --from sqlite:////var/lib/alcor/alcor.db --to 'cassandra://c1/alcor?replication=3&dc=dc1'")
def store_copy(source: str, target: str, beside: bool, json_: bool) -> None:
    """Copy one database into another, and compare every row. No API may run on either.

    May be repeated, and goes on where it was cut off.
    """
    from cli.stores import copy

    counted, text = copy(source, target, beside)
    _answer(counted, json_, text)


@store.command("check")
@click.option("--store", metavar="URL", help="Which (ALCOR_STORE) [default: SQLite in the data directory].")
@click.option("--fix", is_flag=True, help="Repair what is found.")
@as_json
@example("alcor store check --fix")
def store_check(fix: bool, json_: bool, **flags: Any) -> None:
    """Look for what a crash can leave: claims without a port, index rows without an object, work nobody finishes.

    Safe beside running instances of the API (on SQLite, which one process holds, they must be stopped). Exit code 1:
    something is wrong and stays so.
    """
    from cli.stores import check

    report, text = check(_settings(**flags), fix)
    _answer(report, json_, text)
    sys.exit(1 if report["left"] else 0)


@cli.group()
@example("alcor user add alice --role member:blue")
def user() -> None:
    """Who may use an API with ALCOR_AUTH=embedded.

    Kept in the file that ALCOR_AUTH_USERS names, else in users.json in the data directory.
    """


@user.command("add")
@click.argument("name")
@click.option("--role", "roles", multiple=True, required=True, metavar="ROLE:PROJECT", help="admin, member or reader.")
@data_option
@as_json
@example("alcor user add alice --role member:blue --role reader:red")
def user_add(name: str, roles: tuple[str, ...], json_: bool, **flags: Any) -> None:
    """Add a user, or change the roles and password of one. Tokens of before are good no longer.

    The password is ALCOR_PASSWORD, or one is drawn and printed.
    """
    from cli.users import add

    settings = _settings(**flags).settings
    made, password = add(settings, name, roles, settings.password)
    drawn = {} if settings.password else {"password": password}
    _answer(made | drawn, json_, f"user {name} is in {made['file']}" + (f", password {password}" if drawn else ""))


@user.command("remove")
@click.argument("name")
@data_option
@as_json
@example("alcor user remove alice")
def user_remove(name: str, json_: bool, **flags: Any) -> None:
    """Remove a user; tokens are good no longer."""
    from cli.users import remove

    remove(_settings(**flags).settings, name)
    _answer({"user": name, "removed": True}, json_, f"user {name} is removed")


@user.command("list")
@data_option
@as_json
@example("alcor user list --json")
def user_list(json_: bool, **flags: Any) -> None:
    """List the users with their roles."""
    from cli.output import table
    from cli.users import listed

    rows = listed(_settings(**flags).settings)
    _answer(rows, json_, table(("user", "project", "roles"), rows) if rows else "no users")


@cli.group()
@example("alcor bus init /etc/alcor/bus")
def bus() -> None:
    """Who may connect to the message bus, and what each may say and hear."""


@bus.command("init")
@click.argument("directory")
@as_json
@example("alcor bus init /etc/alcor/bus")
def bus_init(directory: str, json_: bool) -> None:
    """Make keys, and the file that each NATS server includes: `include auth.conf`."""
    from cli.bus import init

    servers = str(init(_settings(), directory))
    _answer({"servers": servers}, json_, f"servers include {servers}; keep {directory} secret")


@bus.command("issue")
@click.argument("role", type=click.Choice(["host", "control", "integrator"]))
@click.argument("name")
@click.option("--keys", metavar="DIR", required=True, help="What `alcor bus init` made.")
@click.option("--days", type=click.IntRange(min=1), default=None, help="How long they are good [default: without end].")
@click.option("--out", metavar="FILE", help="Write a file that only its owner can read, instead of stdout.")
@example("alcor bus issue host rack1-n7 --keys /etc/alcor/bus --days 90 --out rack1-n7.creds")
def bus_issue(role: str, name: str, keys: str, days: int | None, out: str | None) -> None:
    """Credentials for ALCOR_NATS_CREDS. NAME is the host's, the project's, or any for control."""
    from cli.bus import issue, save

    text = issue(keys, role, name, days or 0)
    if out:
        save(out, text)
    else:
        click.echo(text, nl=False)


@cli.command()
@as_json
@example("ALCOR_CONFIG=/etc/alcor.toml alcor config --json")
def config(json_: bool) -> None:
    """Print every setting with its value, where that comes from, and its meaning. Passwords are masked."""
    import msgspec

    from cli.output import table

    loaded = _settings()
    rows = [msgspec.to_builtins(row) for row in loaded.rows()]
    _answer(rows, json_, table(("variable", "value", "source", "meaning"), rows))
    for name in loaded.unknown:
        click.echo(f"alcor: {name} is set, but is no setting.", err=True)


def _answer(value: Any, json_: bool, text: str) -> None:
    click.echo(json.dumps(value) if json_ else text)


def main() -> NoReturn:
    """Entry point."""
    try:
        code = cli.main(prog_name="alcor", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        code = error.exit_code
    except click.ClickException as error:
        _complain(error.format_message())
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = 130
    except BrokenPipeError:  # the reader of our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        if "debug" in os.environ.get("ALCOR_LOG", ""):
            traceback.print_exc()
        _complain(_sentence(error))
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


def _sentence(error: Exception) -> str:
    """What went wrong, for a person. Errors of ours are sentences already."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    text = " ".join(str(error).split())
    ours = type(error).__module__.split(".")[0] in ("planes", "cli", "api", "agent")
    return text if ours and text else f"Internal error: {type(error).__name__}: {text}"


def _complain(sentence: str) -> None:
    click.echo(f"alcor: {sentence.rstrip()}", err=True)


if __name__ == "__main__":
    main()
