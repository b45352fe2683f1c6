"""What an agent leaves that was killed in the middle of making or removing a network's namespace."""

from pathlib import Path

import pytest

from planes.data.linux import namespaces, netlink
from tests.kernel.support import World, join, network, open_policy, port

pytestmark = pytest.mark.kernel


async def test_a_name_without_a_namespace_is_removed_and_the_network_can_be_made(world: World) -> None:
    (host,) = await world.start(1)
    net = network("net", 300)
    Path(namespaces.DIRECTORY, f"{host.cloud}-300").touch()
    Path(namespaces.DIRECTORY, f"{host.cloud}-301").touch()
    await host.restart()
    assert (await host.driver.held()).keys() == frozenset()
    assert namespaces.names(f"{host.cloud}-") == []
    await join(net, {"a": (host, port(net, "a", "10.0.0.5"))}, [open_policy(net)])
    assert net.key in await host.driver.held()


async def test_a_namespace_that_was_half_destroyed_goes(world: World) -> None:
    (host,) = await world.start(1)
    net = network("net", 300)
    await host.put(net)
    (made,) = host.driver.networks()
    made.delete_links([link.ifindex for link in netlink.links(made.route) if link.name == "vx"])
    await host.restart()
    assert namespaces.names(f"{host.cloud}-") == []
    await host.put(net)
    assert (await host.driver.held()).keys() == {net.key}
