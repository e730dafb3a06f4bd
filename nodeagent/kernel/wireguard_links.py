"""The node's WireGuard links in a kernel: read, brought to their form, taken out, with their keys."""

from __future__ import annotations

import errno
from typing import Final

from firewall_rules import names
from netctl.errors import KernelError
from netctl.model import WireguardEnd
from nodeagent.kernel import decode, netlink, questions, wireguard
from nodeagent.kernel.addresses import addresses_of
from nodeagent.kernel.channel import GENERIC, Channel, Refusal
from nodeagent.kernel.wireguard_keys import WireguardKeys
from nodeagent.kernel_state import WireguardLink

KIND: Final = "wireguard"
DEVICES: Final = frozenset(map(names.wireguard_device, (0, 1)))
"""The names our links take turns with."""
ADDRESS: Final = "192.0.0.8/32"
"""The dummy address of RFC 7600, on every link of ours: the kernel checks reverse paths loosely only on one
that has an address, and strictly on others (no_addr in net/ipv4/fib_frontend.c)."""
_NO_KEYS = "this node keeps no WireGuard keys"


class WireguardLinks:
    """The WireGuard links of the process's own network namespace. For one thread.

    Args:
        route: The namespace's route socket.
        keys: Where the node's keys are; None: it has none, and makes none.
    """

    def __init__(self, route: Channel, keys: WireguardKeys | None) -> None:
        self._route = route
        self._keys = keys
        self._generic: Channel | None = None
        self._family = 0

    def close(self) -> None:
        """Let go of the socket."""
        if self._generic is not None:
            self._generic.close()

    def ends(self) -> tuple[WireguardEnd, ...]:
        """Return what others need of our keys; the first is made if there is none of any.

        Raises:
            KernelError: The keys cannot be kept.
        """
        if self._keys is None:
            return ()
        try:
            keys = self._keys.public() or {1: self._keys.make(1).public}
        except OSError as error:
            raise KernelError(f"the node's WireGuard keys cannot be kept: {error}") from error
        return tuple(WireguardEnd(number, key, wireguard.listen_port(number)) for number, key in keys.items())

    def read(self, link: decode.Link) -> WireguardLink:
        """Read one of `DEVICES`. One of another kind, or that is not as we make them, has no generation.

        It counts as up once it has its address.

        Raises:
            KernelError: The kernel does not tell.
        """
        seen = self._seen(link.name) if link.kind == KIND else wireguard.Seen()
        return WireguardLink(
            device=link.name,
            generation=self._generation(link.name, seen),
            port=seen.port,
            mtu=link.mtu,
            peers=seen.peers,
            up=link.up and ADDRESS in addresses_of(self._route, link.index),
        )

    def _generation(self, device: str, seen: wireguard.Seen) -> int:
        if self._keys is None or seen.mark != names.OUTER_MARK:
            return 0
        found = (number for number, key in self._keys.public().items() if key == seen.key)
        return next((number for number in found if names.wireguard_device(number) == device), 0)

    def set(self, link: WireguardLink) -> str:
        """Bring a link to its form; return why it failed, or nothing.

        One that holds another key than ours of this generation is made anew. Peers that stay keep their
        sessions. The link comes up last, with its key and its peers.

        Raises:
            KernelError: The kernel has no WireGuard, or does not tell of the link.
            OSError: A key cannot be read or written.
        """
        if self._keys is None:
            return _NO_KEYS
        key = self._keys.make(link.generation)
        answer = self._route.get(questions.get_link(link.device))[0]
        if answer is not None and self.read(decode.link(answer.body)).generation != link.generation:
            self._route.send([netlink.delete_link(link.device)])
            answer = None
        if answer is None:
            refusal = self._route.send([netlink.create_wireguard(link)])[0]
            if refusal is not None:
                return f"the kernel refused {link.device}: {refusal.text}"
        before = self._seen(link.device)
        messages = wireguard.set_device(
            self._wireguard(),
            link.device,
            before,
            private_key=key.private if before.key != key.public else b"",
            port=link.port,
            peers=link.peers,
        )
        refusals = self._channel().send(messages) if messages else []
        index = self._route.index(link.device)
        refusals += self._route.send(
            [netlink.add_address(index, ADDRESS), netlink.set_link(link.device, mtu=link.mtu)]
        )
        for number in self._keys.public():
            if number != link.generation and names.wireguard_device(number) == link.device:
                self._keys.destroy(number)
        return next((_text(link, refusal) for refusal in refusals if refusal is not None), "")

    def delete(self, device: str, generation: int) -> str:
        """Destroy a key, then take its link out; neither need be there. Return why it failed, or nothing.

        Raises:
            OSError: The key cannot be destroyed.
        """
        if generation and self._keys is not None:
            self._keys.destroy(generation)
        refusal = self._route.send([netlink.delete_link(device)])[0]
        if refusal is None or refusal.number == errno.ENODEV:
            return ""
        return f"the kernel refused {device}: {refusal.text}"

    def _seen(self, device: str) -> wireguard.Seen:
        question = wireguard.get_device(self._wireguard(), device)
        return wireguard.seen(answer.body for answer in self._channel().dump(question))

    def _channel(self) -> Channel:
        if self._generic is None:
            self._generic = Channel(protocol=GENERIC)
        return self._generic

    def _wireguard(self) -> int:
        if not self._family:
            answer = self._channel().get(wireguard.get_family())[0]
            self._family = 0 if answer is None else wireguard.family(answer.body)
        if not self._family:
            raise KernelError("this kernel has no WireGuard", "load the kernel module wireguard")
        return self._family


def _text(link: WireguardLink, refusal: Refusal) -> str:
    if refusal.number == errno.EADDRINUSE:
        return str(
            KernelError(
                f"udp port {link.port} of this host is in use, and WireGuard needs it",
                "free the port, or leave wireguard out of --encapsulation",
            )
        )
    return f"the kernel refused {link.device}: {refusal.text}"
