"""Test instances: network namespaces that hold one port's interface, as a VM or container would.

Used by `alcor vm` and `cli.demo`. The API knows an instance as a port whose `device_id` is its name; the namespace is
made and removed here. It belongs to the cloud and goes with it.
"""

import contextlib
import ipaddress
import os
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from cli.client import Client
from cli.errors import Failure
from cli.layout import Layout, require_privileges
from cli.underlay import end_processes
from planes.data.linux import hosts, namespaces
from planes.model import ids
from planes.model.settings import Loaded

OWNER = "compute:alcor"
WAIT = 10
#: seconds in which all instances of a former life of the cloud are to be back
REVIVAL = 20.0


class Instances:
    """The instances of the cloud that runs in the data directory."""

    def __init__(self, loaded: Loaded, api: str = "") -> None:
        self._settings = loaded.settings
        self.layout = Layout(loaded.settings.data)
        running = self.layout.running()
        self.hosts = running.hosts
        named = loaded.sources.get("api", "default") != "default"
        self.api = api or (loaded.settings.api if named else running.api)

    def create(
        self, name: str, network: str, host: str, groups: Sequence[str], project: str, address: str = ""
    ) -> dict[str, Any]:
        """An instance with a port that its host has acked. Raises Failure, and then leaves nothing behind."""
        require_privileges()
        namespace = self.layout.instance(name)
        if host not in self.hosts:
            raise Failure(f"There is no host '{host}' in this cloud; it has {', '.join(self.hosts)}.")
        with Client(self._settings, self.api, project) as client:
            if _ports(client, name) or _exists(namespace):
                raise Failure(f"There is an instance '{name}' already.")
            wanted: dict[str, Any] = {
                "network_id": client.find("networks", network)["id"],
                "name": name,
                "device_id": name,
                "device_owner": OWNER,
                "binding:host_id": host,
            }
            if groups:
                wanted["security_groups"] = [client.find("security-groups", group)["id"] for group in groups]
            if address:
                wanted["fixed_ips"] = [{"ip_address": address}]
            port = client.post("/v2.0/ports", {"port": wanted}, wait=WAIT)["port"]
            request_id = client.request_id
            try:
                made = self._plug(client, port, namespace, host)
            except BaseException:
                with contextlib.suppress(Failure):
                    client.delete(f"/v2.0/ports/{port['id']}")
                raise
        return {"name": name, "namespace": namespace, "host": host, "request_id": request_id, **made}

    def list(self) -> list[dict[str, Any]]:
        with Client(self._settings, self.api) as client:
            networks = {network["id"]: network["name"] for network in client.get("/v2.0/networks")["networks"]}
            ports = client.get("/v2.0/ports", device_owner=OWNER)["ports"]
        return [
            {
                "name": port["device_id"],
                "project": port["project_id"],
                "network": networks.get(port["network_id"]) or port["network_id"],
                "ip": port["fixed_ips"][0]["ip_address"] if port["fixed_ips"] else "",
                "mac": port["mac_address"],
                "host": port["binding:host_id"],
                "status": port["status"],
                "running": _exists(self.layout.instance(port["device_id"])),
                "port_id": port["id"],
            }
            for port in sorted(ports, key=lambda port: str(port["device_id"]))
        ]

    def revive(self, within: float = REVIVAL) -> dict[str, str]:
        """Plug the instances of a cloud that was ended and is back, empty; those that could not be, each with why."""
        failed: dict[str, str] = {}
        deadline = time.monotonic() + within
        with Client(self._settings, self.api) as client:
            for port in client.get("/v2.0/ports", device_owner=OWNER)["ports"]:
                name = port["device_id"]
                try:
                    namespace = self.layout.instance(name)
                    if port["binding:host_id"] not in self.hosts:
                        raise Failure(f"there is no host '{port['binding:host_id']}' now.")
                    while port["status"] == "BUILD" and time.monotonic() < deadline:
                        time.sleep(0.05)
                        port = client.get(f"/v2.0/ports/{port['id']}")["port"]
                    while not _exists(namespace):
                        try:
                            self._plug(client, port, namespace, port["binding:host_id"])
                        except hosts.HostError:  # ACTIVE is what the host's former life said; the link is yet to come
                            if time.monotonic() > deadline:
                                raise
                            time.sleep(0.05)
                except (Failure, hosts.HostError, OSError) as error:
                    failed[name] = str(error)
        return failed

    def delete(self, name: str) -> None:
        """The port first, so that its host lets go of the link; then the namespace with what runs in it."""
        require_privileges()
        namespace = self.layout.instance(name)
        with Client(self._settings, self.api) as client:
            ports = _ports(client, name)
            if not ports and not _exists(namespace):
                raise Failure(f"There is no instance '{name}'.")
            for port in ports:
                client.delete(f"/v2.0/ports/{port['id']}", wait=WAIT)
        end_processes(namespace)
        hosts.delete_namespace(namespace)

    def _plug(self, client: Client, port: dict[str, Any], namespace: str, host: str) -> dict[str, Any]:
        """Give the port's link to a new namespace, as eth0 with the port's address."""
        if port["status"] != "ACTIVE":
            reason = port.get("status_reason") or f"its status is {port['status']} after {WAIT} s"
            raise Failure(f"Port {port['id']} did not become active on {host}: {reason}.")
        if not port["fixed_ips"]:
            raise Failure(f"Port {port['id']} has no address: its network has no subnet.")
        fixed = port["fixed_ips"][0]
        subnet = client.get(f"/v2.0/subnets/{fixed['subnet_id']}")["subnet"]
        link = hosts.port_link_names(ids.parse(port["id"]))[1]
        prefix = ipaddress.ip_network(subnet["cidr"]).prefixlen
        hosts.create_namespace(namespace)
        try:
            hosts.plug(link, namespace, self.layout.host(host), fixed["ip_address"], prefix, subnet["gateway_ip"])
        except BaseException:
            hosts.delete_namespace(namespace)
            raise
        return {"port_id": port["id"], "ip": fixed["ip_address"], "mac": port["mac_address"], "status": port["status"]}


def execute(loaded: Loaded, name: str, command: Sequence[str]) -> NoReturn:
    """Become `command` inside the instance's namespace."""
    namespace = Layout(loaded.settings.data).instance(name)
    require_privileges()
    if not _exists(namespace):
        raise Failure(f"There is no instance '{name}'.")
    with namespaces.entered(namespace):
        try:
            os.execvp(command[0], list(command))
        except FileNotFoundError:
            raise Failure(f"There is no program '{command[0]}'.") from None


def _exists(namespace: str) -> bool:
    return namespace in namespaces.names(namespace)


def _ports(client: Client, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get("/v2.0/ports", device_id=name, device_owner=OWNER)["ports"]
    return found
