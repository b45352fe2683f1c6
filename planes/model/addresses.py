"""Arithmetic of IPv4, MAC and buckets. Pure; used by validation, allocation and the southbound contract.

Addresses travel and are stored as bytes (4 for IPv4, 6 for a MAC, 16 reserved for IPv6); arithmetic is on integers.
"""

import ipaddress
import re

from planes.model.errors import Invalid

BUCKET_SHIFT = 10
BUCKET_SIZE = 1 << BUCKET_SHIFT
_LOW32 = 0xFFFF_FFFF
_MAC = re.compile(r"^[0-9a-fA-F]{2}(?:[:-][0-9a-fA-F]{2}){5}$")


def bucket(address: bytes) -> int:
    """The bucket of an IPv4 address, IPv6 address or MAC: its low 32 bits, in steps of 1 024."""
    return (int.from_bytes(address[-4:], "big") & _LOW32) >> BUCKET_SHIFT


def place(address: bytes) -> int:
    """Its place in its bucket, from 0."""
    return int.from_bytes(address[-4:], "big") & (BUCKET_SIZE - 1)


def ip_text(address: bytes) -> str:
    """`10.0.0.1` for 4 bytes (RFC 5952 text for 16)."""
    if len(address) == 4:
        a, b, c, d = address
        return f"{a}.{b}.{c}.{d}"
    return str(ipaddress.ip_address(address))


def ip_int(address: bytes) -> int:
    """The address as an integer."""
    return int.from_bytes(address, "big")


def ip_bytes(value: int) -> bytes:
    """An IPv4 address from its integer."""
    return value.to_bytes(4, "big")


def parse_ip(value: str, field: str) -> bytes:
    """An IPv4 address from text; raises Invalid that names `field`."""
    try:
        return ipaddress.IPv4Address(value).packed
    except ValueError:
        raise Invalid(f"Invalid input for {field}. Reason: '{value!s:.80}' is not a valid IPv4 address.") from None


def parse_cidr(value: str, field: str) -> tuple[int, int]:
    """(first address, prefix length) of an IPv4 prefix whose host bits are zero; raises Invalid that names `field`."""
    try:
        net = ipaddress.IPv4Network(value)
    except ValueError as error:
        raise Invalid(
            f"Invalid input for {field}. Reason: '{value!s:.80}' is not a valid IPv4 subnet: {error}."
        ) from None
    if "/" not in value:
        raise Invalid(f"Invalid input for {field}. Reason: '{value!s:.80}' has no prefix length.")
    return int(net.network_address), net.prefixlen


def cidr_text(first: int, prefix: int) -> str:
    """`10.0.0.0/24`."""
    return f"{ip_text(ip_bytes(first))}/{prefix}"


def cidr_last(first: int, prefix: int) -> int:
    """The last (broadcast) address of a prefix."""
    return first | (_LOW32 >> prefix if prefix else _LOW32)


def mac_text(address: bytes) -> str:
    """`fa:16:3e:00:00:01`."""
    return address.hex(":")


def parse_mac(value: str, field: str) -> bytes:
    """A unicast MAC from text; raises Invalid that names `field`."""
    if not _MAC.match(value):
        raise Invalid(f"Invalid input for {field}. Reason: '{value!s:.80}' is not a valid MAC address.")
    mac = bytes.fromhex(value.replace(":", "").replace("-", ""))
    if mac[0] & 1 or mac == b"\0" * 6:
        raise Invalid(f"Invalid input for {field}. Reason: '{value!s:.80}' is not a unicast MAC address.")
    return mac


def generated_mac(low32: int, nibble: int) -> bytes:
    """`fa:1x` and 32 bits: a MAC in the bucket of the address whose low 32 bits are given."""
    return bytes((0xFA, 0x10 | nibble & 0xF)) + (low32 & _LOW32).to_bytes(4, "big")


def vtep_mac(number: int) -> bytes:
    """The MAC of a host's tunnel end: from the host's number, never from its address (rule N14)."""
    return b"\x02" + (number & 0xFF_FFFF_FFFF).to_bytes(5, "big")
