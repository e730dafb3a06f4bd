"""The least an attach can cost in Python: netlink and nftables by hand, nothing decided, nothing checked.

It makes what the node agent makes for one container: layer 1 in the container's namespace, the element
that binds its port, the veth pair, the port's settings, its address, link-up and route.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct

import attrs

_libc = ctypes.CDLL(None, use_errno=True)
_nft = ctypes.CDLL("libnftables.so.1")
_nft.nft_ctx_new.restype = ctypes.c_void_p
_nft.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
_nft.nft_ctx_free.argtypes = [ctypes.c_void_p]

CLONE_NEWNET = 0x40000000
# linux/netlink.h, linux/rtnetlink.h, linux/if_link.h
REQUEST, ACK, CREATE, EXCL = 1, 4, 0x400, 0x200
NEWLINK, NEWADDR, NEWROUTE, NEWNEIGH = 16, 20, 24, 28
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_MASTER, IFLA_LINKINFO, IFLA_NET_NS_FD = 1, 3, 4, 10, 18, 28
IFF_UP = 1
# The settings of a port: no learning, no flooding, nothing past the bridge (linux/if_link.h, IFLA_BRPORT_*).
GUARDED = {8: b"\0", 9: b"\0", 27: b"\0", 31: b"\xfd\xff"}


def enter(namespace: int) -> None:
    """Move the calling thread."""
    if _libc.setns(namespace, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", len(value) + 4, kind) + value + b"\0" * (-len(value) % 4)


def _message(kind: int, flags: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", len(body) + 16, kind, REQUEST | flags, 1, 0) + body


def _link(name: str = "", index: int = 0, *, up: bool) -> bytes:
    flags = IFF_UP if up else 0
    head = struct.pack("=BxHiII", 0, 0, index, flags, flags)
    return head + (_attribute(IFLA_IFNAME, name.encode() + b"\0") if name else b"")


class Rtnl:
    """One rtnetlink socket of the namespace it was made in."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        self._socket.bind((0, 0))

    def send(self, *messages: bytes) -> None:
        """Send one batch and read the acknowledgements; only the last one is asked for."""
        self._socket.send(b"".join(messages))
        error = struct.unpack_from("=i", self._socket.recv(8192), 16)[0]
        if error:
            raise OSError(-error, os.strerror(-error))

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


class Nft:
    """One libnftables context of the namespace it was made in."""

    def __init__(self) -> None:
        self._context = ctypes.c_void_p(_nft.nft_ctx_new(0))

    def run(self, text: bytes) -> None:
        """Run commands as one transaction."""
        if _nft.nft_run_cmd_from_buffer(self._context, text):
            raise OSError("nft refused")

    def close(self) -> None:
        """Free the context."""
        _nft.nft_ctx_free(self._context)


@attrs.frozen
class ByHand:
    """What the floor is told of a container.

    Attributes:
        device: Of its port.
        rules: Layer 1, as nft commands.
        binding: The host's element for the port, as an nft command.
    """

    device: str
    mac: str
    address: str
    gateway: str
    rules: bytes
    binding: bytes


class Floor:
    """A host by hand. Make it inside the node's namespace, where `bridge` is the bridge's index."""

    def __init__(self, bridge: int, mtu: int) -> None:
        self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._rtnl = Rtnl()
        self._nft = Nft()
        self._bridge = bridge
        self._mtu = mtu
        self._held: list[tuple[Rtnl, Nft]] = []

    def attach(self, namespace: int, container: ByHand) -> None:
        """Attach one container whose namespace is there."""
        enter(namespace)
        inner_nft, inner = Nft(), Rtnl()
        enter(self._home)
        inner_nft.run(container.rules)
        self._nft.run(container.binding)
        mtu = _attribute(IFLA_MTU, struct.pack("=I", self._mtu))
        peer = (
            _link("eth0", up=False)
            + mtu
            + _attribute(IFLA_ADDRESS, bytes.fromhex(container.mac.replace(":", "")))
            + _attribute(IFLA_NET_NS_FD, struct.pack("=I", namespace))
        )
        info = _attribute(1, b"veth\0") + _attribute(2, _attribute(1, peer))
        self._rtnl.send(
            _message(
                NEWLINK,
                ACK | CREATE | EXCL,
                _link(container.device, up=False)
                + mtu
                + _attribute(IFLA_MASTER, struct.pack("=I", self._bridge))
                + _attribute(IFLA_LINKINFO, info),
            )
        )
        settings = b"".join(_attribute(kind, value) for kind, value in GUARDED.items())
        guard = _attribute(4, b"bridge\0") + _attribute(5, settings)
        port = struct.pack("=BxxxiHBB", 7, socket.if_nametoindex(container.device), 0x40, 4, 0)
        mac = _attribute(2, bytes.fromhex(container.mac.replace(":", "")))
        self._rtnl.send(
            _message(NEWNEIGH, CREATE | 0x100, port + mac),
            _message(NEWLINK, ACK, _link(container.device, up=True) + _attribute(IFLA_LINKINFO, guard)),
        )
        # The veth pair is the first device of its namespace beside lo, so its index needs no question.
        index = 2
        four = socket.inet_aton(container.address)
        inner.send(
            _message(
                NEWADDR,
                CREATE | EXCL,
                struct.pack("=BBBBi", 2, 16, 0, 0, index) + _attribute(2, four) + _attribute(1, four),
            ),
            _message(NEWLINK, 0, _link(index=1, up=True)),
            _message(NEWLINK, 0, _link(index=index, up=True)),
            _message(
                NEWROUTE,
                ACK | CREATE | EXCL,
                struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 254, 3, 0, 1, 0)
                + _attribute(5, socket.inet_aton(container.gateway))
                + _attribute(4, struct.pack("=I", index)),
            ),
        )
        # Closing a netlink socket waits for a grace period of the kernel; that is no part of attaching.
        self._held.append((inner, inner_nft))

    def close(self) -> None:
        """Close all sockets and contexts."""
        for inner, inner_nft in self._held:
            inner.close()
            inner_nft.close()
