"""The wire between fake kernels: answers "does this packet arrive, and if not, why?".

Used by tests of the agent and of control, in place of namespaces and real packets.
"""

from planes.data.memory.kernel import Kernel, Packet

TCP = 6


class Fabric:
    """Hosts by the address of their tunnel end. A host's kernel survives its agent."""

    def __init__(self) -> None:
        self.kernels: dict[bytes, Kernel] = {}

    def kernel(self, vtep: bytes) -> Kernel:
        return self.kernels.setdefault(vtep, Kernel())

    def reboot(self, vtep: bytes) -> None:
        """The host comes back with nothing."""
        self.kernels[vtep] = Kernel()

    def arrives(
        self,
        network: bytes,
        port: bytes,
        src_ip: bytes,
        dst_ip: bytes,
        protocol: int = TCP,
        dport: int = 80,
        sport: int = 40_000,
    ) -> tuple[bytes | None, str]:
        """The port that gets the packet, or None and the reason. An accepted one opens the way for its replies."""
        packet = Packet(src_ip, dst_ip, protocol, sport, dport)
        for kernel in self.kernels.values():
            here = kernel.networks.get(network)
            sender = here.ports.get(port) if here is not None else None
            if here is None or sender is None:
                continue
            if reason := here.sends(sender, packet):
                return None, kernel.dropped(reason)
            there, last = here, kernel
            receiver = here.port_at(dst_ip)
            if receiver is None:
                remote = here.remotes.get(dst_ip)
                peer = here.peers.get(remote.via) if remote is not None else None
                if remote is None or peer is None:
                    return None, "no route"
                other = self.kernels.get(peer.vtep)
                if other is None or other.mac != peer.mac:
                    return None, "no such tunnel end"
                beyond = other.by_vni(here.spec.vni)
                receiver = beyond.port_at(dst_ip) if beyond is not None else None
                if beyond is None or receiver is None:
                    return None, "the peer does not have it"
                there, last = beyond, other
            if reason := there.receives(receiver, packet, sender.identity):
                return None, last.dropped(reason)
            here.established(sender, packet)
            there.established(receiver, packet)
            return receiver.id, ""
        return None, "no such port"
