"""Whether an object makes sense before anything is made of it; its shape is the codec's business. Pure."""

from planes.goalstate.messages import Group, Identity, Neighbour, Network, Object, Peer, Port, Rule, Subnet

ID, MAC = 16, 6
ADDRESS = (4, 16)


def flaw(item: Object) -> str:
    """What is wrong with an object, in words; empty when nothing is."""
    if isinstance(item, Neighbour):  # nearly everything is one: two comparisons, and nothing is built for them
        right = len(item.ip) in ADDRESS and 0 <= item.identity < 1 << 16
        return "" if right else _first((len(item.ip) in ADDRESS, "address"), (False, "identity number"))
    if isinstance(item, Network):
        return _first(
            (len(item.id) == ID, "network id"),
            (0 < item.vni < 1 << 24, "VNI"),
            (576 <= item.mtu <= 65_535, "MTU"),
        )
    if isinstance(item, Subnet):
        return _first(
            (len(item.network) == ID and len(item.id) == ID, "subnet id"),
            (_prefix(item.first, item.prefix), "prefix"),
            (not item.gateway or len(item.gateway) == len(item.first), "gateway"),
        )
    if isinstance(item, Identity):
        return _first((0 < item.number < 1 << 16, "identity number"), (all(len(g) == ID for g in item.groups), "group"))
    if isinstance(item, Peer):
        return _first((len(item.vtep) == 4, "tunnel address"), (_mac(item.mac), "tunnel MAC"))
    if isinstance(item, Port):
        return _first(
            (len(item.id) == ID and len(item.network) == ID, "port id"),
            (_mac(item.mac), "MAC"),
            (all(len(ip) in ADDRESS for ip in item.ips), "address"),
            (0 <= item.identity < 1 << 16, "identity number"),
            (all(len(group) == ID for group in item.groups), "group"),
            (all(_prefix(first, prefix) and (not mac or _mac(mac)) for first, prefix, mac in item.pairs), "pair"),
        )
    if isinstance(item, Group):
        return _first(
            (len(item.id) == ID, "group id"),
            (all(not r.remote_group or len(r.remote_group) == ID for r in item.rules), "remote group"),
            (all(_remote(rule) for rule in item.rules), "remote prefix"),
            (all(-1 <= r.protocol < 256 for r in item.rules), "protocol"),
            (all(-1 <= r.port_min < 65_536 and -1 <= r.port_max < 65_536 for r in item.rules), "port range"),
        )
    return ""


def _first(*checks: tuple[bool, str]) -> str:
    return next((f"malformed: {what}" for right, what in checks if not right), "")


def _prefix(first: bytes, prefix: int) -> bool:
    return len(first) in ADDRESS and 0 <= prefix <= len(first) * 8


def _remote(rule: Rule) -> bool:
    if not rule.remote_first:
        return True
    return len(rule.remote_first) == (4 if rule.ethertype == 4 else 16) and _prefix(
        rule.remote_first, rule.remote_prefix
    )


def _mac(mac: bytes) -> bool:
    return len(mac) == MAC and not mac[0] & 1 and any(mac)
