"""`helm test`: a network, a subnet and a port on a live host; exit 0 when the port is ACTIVE. All are removed again."""

import json
import os
import sys
import time
import urllib.request

API = os.environ["API"] + "/v2.0"
HEADERS = {"Content-Type": "application/json", "X-Roles": "admin"}


def log_in(user, password):
    """A token for the user's first project."""
    user = {"name": user, "password": password, "domain": {"id": "default"}}
    body = {"auth": {"identity": {"methods": ["password"], "password": {"user": user}}}}
    request = urllib.request.Request(os.environ["API"] + "/v3/auth/tokens", json.dumps(body).encode(), HEADERS)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.headers["X-Subject-Token"]


def call(method, path, body=None, **headers):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(API + path, data, {**HEADERS, **headers}, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        text = answer.read()
    return json.loads(text) if text else {}


def a_host():
    """The host that was asked for, or the first that is alive; agents register within a minute."""
    wanted = os.environ.get("HOST", "")
    for _ in range(60):
        hosts = call("GET", "/alcor/hosts")["hosts"]
        for host in hosts:
            if host["alive"] and wanted in ("", host["name"]):
                return host["name"]
        time.sleep(1)
    sys.exit(f"no host is alive: {hosts}")


if os.environ.get("USER") and os.environ.get("PASSWORD"):
    HEADERS["X-Auth-Token"] = log_in(os.environ["USER"], os.environ["PASSWORD"])
host = a_host()
made = []
try:
    network = call("POST", "/networks", {"network": {"name": "helm-test"}})["network"]["id"]
    made.append("/networks/" + network)
    subnet = {"network_id": network, "ip_version": 4, "cidr": "10.255.255.0/29"}
    made.append("/subnets/" + call("POST", "/subnets", {"subnet": subnet})["subnet"]["id"])
    port = {"network_id": network, "binding:host_id": host}
    started = time.monotonic()
    port = call("POST", "/ports", {"port": port}, Prefer="wait=30")["port"]
    made.append("/ports/" + port["id"])
    took = (time.monotonic() - started) * 1000
    print(f"port {port['id']} on {host}: {port['status']} after {took:.0f} ms")
    if port["status"] != "ACTIVE":
        sys.exit(1)
finally:
    for path in reversed(made):
        call("DELETE", path, Prefer="wait=10")
