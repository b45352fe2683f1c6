"""Several instances of the API on one Cassandra: they behave as one, and outlive what dies under them."""

import asyncio
import itertools
import json
import os
from collections import Counter
from pathlib import Path

import httpx
import pytest

from tests.e2e.parts import ECHO, FAST, Parts, active, eventually
from tests.e2e.support import Up, alcor
from tests.e2e.support import eventually as soon
from tests.support.cassandra import CassandraCluster, SecureCluster, administer

pytestmark = [pytest.mark.kernel, pytest.mark.server, pytest.mark.timeout(600)]

CLIENTS = 12
#: what each instance has to answer before the next thing dies, and seconds after a node's death in which it may refuse
LONG = os.environ.get("PROFILE") == "long"
ANSWERS, WINDOW = (200, 12.0) if LONG else (15, 8.0)


def test_two_instances_are_one_and_their_server_keeps_what_they_were_told(tmp_path: Path) -> None:
    data = tmp_path / "data"
    options = ("--store", "cassandra", "--instances", "2")
    with Up(data, hosts=1, arguments=options, patience=240) as up:
        first, second = up.ready["apis"]
        network = up.network("shared", "10.0.0.0/24")
        with httpx.Client(trust_env=False, timeout=30, headers={"Prefer": "wait=20"}) as client:
            wanted = {"port": {"network_id": network, "binding:host_id": "h1"}}
            made = [client.post(f"{api}/v2.0/ports", json=wanted).raise_for_status().json() for api in (first, second)]
            assert [each["port"]["status"] for each in made] == ["ACTIVE", "ACTIVE"]
            ids = [each["port"]["id"] for each in made]
            addresses = [each["port"]["fixed_ips"][0]["ip_address"] for each in made]
            assert len(set(addresses)) == 2
            assert client.get(f"{second}/v2.0/ports/{ids[0]}").json()["port"]["status"] == "ACTIVE"
            taken = {"port": {**wanted["port"], "fixed_ips": [{"ip_address": addresses[0]}]}}
            refused = client.post(f"{second}/v2.0/ports", json=taken)
            assert (refused.status_code, refused.json()["NeutronError"]["type"]) == (409, "IpAddressInUse")
            theirs = f"{first}/v2.0/alcor/changes/{made[1]['port']['id']}"
            soon(lambda: client.get(theirs).is_success, 10, "an ended change is kept for all instances")
            assert client.get(theirs).json()["change"]["status"] == "ACTIVE"
    with Up(data, hosts=1, arguments=options, patience=240) as up, up.client() as client:
        soon(lambda: all(port["status"] == "ACTIVE" for port in client.get("/v2.0/ports").json()["ports"]), 30)
        assert {port["id"] for port in client.get("/v2.0/ports").json()["ports"]} == set(ids)


async def test_a_node_dies_in_a_storm_and_two_are_away_and_come_back(tmp_path: Path) -> None:
    with CassandraCluster() as cluster:
        await _outlives(cluster, cluster.nodes[0].url("storm"), tmp_path / "data")


@pytest.mark.long  # what the one before shows, with log-in and TLS everywhere
async def test_a_node_dies_where_everybody_has_a_role_and_a_certificate(tmp_path: Path) -> None:
    with SecureCluster() as cluster:
        administer(
            cluster.nodes[0],
            "CREATE KEYSPACE storm WITH replication = {'class': 'NetworkTopologyStrategy', 'datacenter1': 3}",
            "CREATE ROLE alcor_schema WITH PASSWORD = 'one' AND LOGIN = true",
            "GRANT CREATE, ALTER, SELECT, MODIFY ON KEYSPACE storm TO alcor_schema",
            "CREATE ROLE alcor_api WITH PASSWORD = 'other' AND LOGIN = true",
            "GRANT SELECT, MODIFY ON KEYSPACE storm TO alcor_api",
            "ALTER KEYSPACE system_auth WITH replication = {'class': 'NetworkTopologyStrategy', 'datacenter1': 3}",
        )
        for node in cluster.nodes:
            node.nodetool("repair", "-full", "-pr", "system_auth")
        made = alcor("store", "init", ALCOR_STORE=cluster.url("alcor_schema:one", "storm"), timeout=240)
        assert made.returncode == 0, made.stderr
        await _outlives(cluster, cluster.url("alcor_api:other", "storm"), tmp_path / "data")


async def _outlives(cluster: CassandraCluster, url: str, data: Path) -> None:
    now = asyncio.get_running_loop().time
    async with Parts(data, hosts=1, store=url, instances=2) as parts:
        parts.start("nats", "api")
        await eventually(lambda: _ready(parts.http, ""), 120, "the first instance")
        parts.start("api2", "h1")
        other = f"http://127.0.0.1:{int(parts.api.rsplit(':', 1)[1]) + 1}"
        await eventually(lambda: _ready(parts.http, other), 60, "the second instance")
        await parts.well("h1", within=60)
        network = await parts.network("10.0.0.0/16")
        storm = Storm(parts, network, (parts.api, other))
        running = asyncio.create_task(storm.run())
        await storm.goes_on("before anything dies")
        died = now()
        cluster.nodes[2].kill()
        storm.calm = died + WINDOW
        await storm.goes_on("without a node")
        await asyncio.sleep(storm.calm - now())
        await storm.goes_on("without a node, in calm")
        storm.calm = float("inf")
        parts.kill("api2")
        parts.start("api2")
        await eventually(lambda: _ready(parts.http, other), 60, "the second instance again")
        storm.calm = now()
        await storm.goes_on("after an instance came back")
        storm.over = True
        await running
        assert not storm.wrong, storm.wrong
        assert storm.late == Counter(), "requests were refused long after the node had died"
        await active(parts, storm.made, 60)
        await _is_right(parts, storm, network)

        cluster.nodes[1].kill()
        refused = await eventually(lambda: _refused(parts, network), 30, "a clear refusal")
        assert int(refused.headers["Retry-After"]) >= 1
        assert refused.json()["NeutronError"]["type"]
        assert (await parts.http.get("/healthz")).status_code == 200
        cluster.start(*cluster.nodes[1:])
        made = await eventually(lambda: _created(parts, network), 120, "creates after the return")
        await active(parts, [made], 60)
        await _is_right(parts, storm, network)
        if LONG:
            await asyncio.sleep(ECHO)  # what was announced last is looked at once more
        for name in ("api", "api2"):
            parts.end(name)
    command = ("store", "check", "--fix", "--json")
    checked = alcor(*command, timeout=120, ALCOR_STORE=url, ALCOR_ECHO_FROM=FAST["ALCOR_ECHO_FROM"])
    assert checked.returncode == 0, checked.stdout + checked.stderr
    # What a cluster without a quorum refused may leave rows of ports that are no more, which readers skip: in an index,
    # and of what their hosts said; nothing else.
    assert {each["rule"] for each in json.loads(checked.stdout)["found"]} <= {"index", "said"}, checked.stdout


class Storm:
    """Clients that create ports, and delete a third of them, on two instances by turns."""

    def __init__(self, parts: Parts, network: str, apis: tuple[str, ...]) -> None:
        self._parts = parts
        self._network = network
        self._apis = itertools.cycle(apis)
        self._answered = Counter(dict.fromkeys(apis, 0))
        #: ids that an answer named, and those whose deletion was answered
        self.made: set[str] = set()
        self.gone: set[str] = set()
        self.wrong: list[str] = []
        #: refusals of what was asked when there was no reason any more, and when that is
        self.late: Counter[str] = Counter()
        self.calm = float("inf")
        self.over = False

    async def run(self) -> None:
        await asyncio.gather(*(self._client(number) for number in range(CLIENTS)))

    async def goes_on(self, when: str) -> None:
        """Until each instance has answered so many more."""
        before = self._answered.copy()

        async def all_of_them() -> bool:
            return all(self._answered[api] >= before[api] + ANSWERS for api in before)

        await eventually(all_of_them, 120, f"{when}, {ANSWERS} answers of each after {dict(before)}")

    async def _client(self, number: int) -> None:
        while not self.over:
            answer = await self._ask("POST", "ports", {"port": {"network_id": self._network, "binding:host_id": "h1"}})
            if answer is None:
                continue
            port = answer.json()["port"]["id"]
            if number % 3 == 0 and await self._ask("DELETE", f"ports/{port}") is not None:
                self.gone.add(port)
            elif number % 3:
                self.made.add(port)

    async def _ask(self, method: str, path: str, body: object = None) -> httpx.Response | None:
        asked, api = asyncio.get_running_loop().time(), next(self._apis)
        try:
            answer = await self._parts.http.request(method, f"{api}/v2.0/{path}", json=body, timeout=60)
        except httpx.TransportError:
            await asyncio.sleep(0.1)
            return None  # the instance was killed, on purpose
        if answer.status_code < 300:
            self._answered[api] += 1
            return answer
        if answer.status_code != 503 or "Retry-After" not in answer.headers:
            self.wrong.append(answer.text)
        elif asked > self.calm:
            self.late[answer.text] += 1
        await asyncio.sleep(0.2)
        return None


async def _is_right(parts: Parts, storm: Storm, network: str) -> None:
    """Nothing answered is lost, nothing deleted is back, no address is doubled."""
    found = await parts.list(f"ports?network_id={network}")
    assert storm.made <= {port["id"] for port in found}
    assert not storm.gone & {port["id"] for port in found}
    addresses = [fixed["ip_address"] for port in found for fixed in port["fixed_ips"]]
    assert len(addresses) == len(set(addresses)) == len(found)


async def _ready(http: httpx.AsyncClient, api: str) -> bool:
    return (await http.get(f"{api}/readyz")).status_code == 200


async def _refused(parts: Parts, network: str) -> httpx.Response | None:
    answer = await parts.http.post("/v2.0/ports", json={"port": {"network_id": network}}, timeout=60)
    return answer if answer.status_code == 503 else None


async def _created(parts: Parts, network: str) -> str:
    wanted = {"port": {"network_id": network, "binding:host_id": "h1"}}
    answer = await parts.http.post("/v2.0/ports", json=wanted, timeout=60)
    return str(answer.json()["port"]["id"]) if answer.status_code == 201 else ""
