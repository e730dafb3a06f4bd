"""The real kernel: operations to batches of netlink messages, and what was refused to text."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import attrs

from firewall_rules import names
from netctl.errors import KernelError
from nodeagent.kernel import decode, netlink, ports, questions, sysctls
from nodeagent.kernel.addresses import addresses_of
from nodeagent.kernel.base import KernelOp, Links
from nodeagent.kernel.channel import Channel, Refusal
from nodeagent.kernel.checks import HostExaminer
from nodeagent.kernel.host_facts import read_facts
from nodeagent.kernel.observe import (
    own_routes,
    read_end,
    read_links,
    read_tunnel,
)
from nodeagent.kernel.wireguard_keys import WireguardKeys
from nodeagent.kernel.wireguard_links import WireguardLinks
from nodeagent.kernel_state import ContainerEnd, ContainerPort, HostChecks, HostFacts
from nodeagent.ops import (
    DeleteBridge,
    DeletePort,
    DeleteRoute,
    DeleteTunnel,
    DeleteWireguard,
    SetBridge,
    SetEnd,
    SetEndpoint,
    SetPort,
    SetRoute,
    SetSysctl,
    SetTunnel,
    SetWireguard,
)

_FULL = str(
    KernelError("the node's bridge is full: it takes 1,023 containers", "run the container on another node")
)
_NO_BRIDGE = "there is no bridge to put the container on"
_NO_NAMESPACE = "the container has no network namespace (any more)"


class LinuxKernel:
    """The links of the process's own network namespace and of its containers'. For one thread.

    Args:
        wireguard_keys: Where the node's WireGuard keys are; None: it is no use to it that the kernel has it.
    """

    def __init__(self, wireguard_keys: WireguardKeys | None = None) -> None:
        self._channel = Channel()
        self._wireguard = WireguardLinks(self._channel, wireguard_keys)
        self._examiner = HostExaminer(self._channel)
        self._handlers: dict[type, Callable[[Sequence[Any], Mapping[str, int]], list[str]]] = {
            SetSysctl: self._set_sysctls,
            SetBridge: self._set_bridge,
            DeleteBridge: self._delete_bridge,
            SetTunnel: self._set_tunnels,
            DeleteTunnel: self._delete_links,
            SetWireguard: self._set_wireguard,
            DeleteWireguard: self._delete_wireguard,
            SetRoute: self._set_routes,
            DeleteRoute: self._delete_routes,
            SetPort: self._set_ports,
            SetEndpoint: self._set_endpoints,
            SetEnd: self._set_ends,
            DeletePort: self._delete_links,
        }

    def close(self) -> None:
        """Let go of the sockets."""
        self._wireguard.close()
        self._channel.close()

    def facts(self, underlay: str | None) -> HostFacts:
        """See `Kernel`."""
        return read_facts(self._channel, self._wireguard, underlay)

    def checks(self, peers: Sequence[str]) -> HostChecks:
        """See `Kernel`."""
        return self._examiner.read(peers)

    def observe(self, namespaces: Mapping[str, int]) -> Links:
        """See `Kernel`."""
        return read_links(self._channel, self._wireguard, namespaces)

    def apply(self, operations: Sequence[KernelOp], namespaces: Mapping[str, int]) -> list[str]:
        """See `Kernel`. Operations of one kind that follow each other share their messages' batches."""
        errors: list[str] = []
        for kind, group in itertools.groupby(operations, key=type):
            errors.extend(self._handlers[kind](list(group), namespaces))
        return errors

    def _set_sysctls(self, operations: Sequence[SetSysctl], _: Mapping[str, int]) -> list[str]:
        errors = []
        for operation in operations:
            try:
                sysctls.write(operation.path, operation.value)
            except OSError as error:
                errors.append(f"{operation.path} cannot be set to {operation.value}: {error.strerror}")
            else:
                errors.append("")
        return errors

    def _set_bridge(self, operations: Sequence[SetBridge], _: Mapping[str, int]) -> list[str]:
        errors = []
        for operation in operations:
            bridge = operation.bridge
            seen = self._channel.get(questions.get_link(names.BRIDGE))[0]
            if seen is not None and decode.link(seen.body).kind != "bridge":
                errors.append(f"{names.BRIDGE} exists and is no bridge: rename or delete that link")
                continue
            first = self._channel.send([netlink.set_bridge(bridge)])
            index = self._channel.index(names.BRIDGE)
            messages = [netlink.set_link(names.BRIDGE, mtu=bridge.mtu, mac=bridge.mac)]
            if index:
                foreign = [a for a in addresses_of(self._channel, index) if a != bridge.address]
                messages += [netlink.delete_address(index, address) for address in foreign]
                messages.append(netlink.add_address(index, bridge.address))
            errors.append(_text(names.BRIDGE, _first([*first, *self._channel.send(messages)])))
        return errors

    def _delete_bridge(self, operations: Sequence[DeleteBridge], _: Mapping[str, int]) -> list[str]:
        refusals = self._channel.send([netlink.delete_link(names.BRIDGE) for _ in operations])
        return [_text(names.BRIDGE, refusal, errno.ENODEV) for refusal in refusals]

    def _set_tunnels(self, operations: Sequence[SetTunnel], _: Mapping[str, int]) -> list[str]:
        batches = []
        for operation in operations:
            tunnel = operation.tunnel
            seen = read_tunnel(self._channel, tunnel.device)
            if seen is not None and attrs.evolve(seen, mtu=tunnel.mtu, up=tunnel.up) == tunnel:
                batches.append([netlink.set_link(tunnel.device, mtu=tunnel.mtu)])
                continue
            away = [] if seen is None else [netlink.delete_link(tunnel.device)]
            batches.append([*away, netlink.create_tunnel(tunnel)])
        return [
            _text(operation.tunnel.device, refusal)
            for operation, refusal in zip(operations, self._send(batches), strict=True)
        ]

    def _set_wireguard(self, operations: Sequence[SetWireguard], _: Mapping[str, int]) -> list[str]:
        return [_tried(partial(self._wireguard.set, operation.link)) for operation in operations]

    def _delete_wireguard(self, operations: Sequence[DeleteWireguard], _: Mapping[str, int]) -> list[str]:
        return [
            _tried(partial(self._wireguard.delete, operation.device, operation.generation))
            for operation in operations
        ]

    def _set_routes(self, operations: Sequence[SetRoute], _: Mapping[str, int]) -> list[str]:
        ours: set[str] | None = None
        errors = []
        for operation in operations:
            route = operation.route
            index = self._channel.index(route.device)
            if not index:
                errors.append(f"the route to {route.block} has no device {route.device}")
                continue
            fixed = (
                [netlink.set_neighbour(index, route.via, route.via_mac)]
                if route.via and route.via_mac
                else []
            )
            refusal = _first(self._channel.send([*fixed, netlink.set_route(route, index, replace=False)]))
            if refusal is not None and refusal.number == errno.EEXIST:
                if ours is None:
                    ours = {one.destination for one in own_routes(self._channel)}
                if route.block not in ours:
                    errors.append(f"there is another route to {route.block} on this host: remove it")
                    continue
                refusal = _first(self._channel.send([netlink.set_route(route, index, replace=True)]))
            errors.append(_text(f"route to {route.block}", refusal))
        return errors

    def _delete_routes(self, operations: Sequence[DeleteRoute], _: Mapping[str, int]) -> list[str]:
        gateways = {r.destination: (r.index, r.gateway) for r in own_routes(self._channel) if r.gateway}
        errors = []
        for operation in operations:
            # The neighbour may be gone with its device, or never have been: no matter.
            neighbour = gateways.get(operation.block)
            if neighbour is not None:
                self._channel.send([netlink.delete_neighbour(*neighbour)])
            refusal = _first(self._channel.send([netlink.delete_route(operation.block)]))
            errors.append(_text(f"route to {operation.block}", refusal, errno.ESRCH))
        return errors

    def _set_ports(self, operations: Sequence[SetPort], namespaces: Mapping[str, int]) -> list[str]:
        bridge = self._channel.index(names.BRIDGE)
        if not bridge:
            return [_NO_BRIDGE] * len(operations)
        batches = []
        for operation in operations:
            namespace = namespaces.get(operation.container)
            batches.append([] if namespace is None else self._port_messages(operation, bridge, namespace))
        errors = self._make_ports([(op.port, op.end.mac) for op in operations], batches)
        return [
            error if operation.container in namespaces else _NO_NAMESPACE
            for operation, error in zip(operations, errors, strict=True)
        ]

    def _port_messages(self, operation: SetPort, bridge: int, namespace: int) -> list[bytes]:
        port = operation.port
        create = ports.create_port(port, operation.end, bridge, namespace)
        index = self._channel.index(port.device)
        if not index:
            return [create]
        with Channel(namespace) as inside:
            end = read_end(inside)
        if end is None or end.peer != index:
            # Its far end is gone or renamed, and a new one needs a new pair.
            return [netlink.delete_link(port.device), create]
        return [ports.port_down(port, bridge)]

    def _set_endpoints(self, operations: Sequence[SetEndpoint], _: Mapping[str, int]) -> list[str]:
        bridge = self._channel.index(names.BRIDGE)
        if not bridge:
            return [_NO_BRIDGE] * len(operations)
        # Where a far end is once Docker has moved it, it stays as long as its port.
        batches = [
            [
                ports.port_down(op.port, bridge)
                if self._channel.index(op.port.device)
                else ports.create_endpoint(op.port, op.endpoint, op.mac, bridge)
            ]
            for op in operations
        ]
        return self._make_ports([(op.port, op.mac) for op in operations], batches)

    def _make_ports(
        self, wanted: Sequence[tuple[ContainerPort, str]], batches: Sequence[Sequence[bytes]]
    ) -> list[str]:
        """Make or mend ports, then guard them and bring them up, all together.

        Args:
            wanted: Each port, and the Ethernet address of its far end.
            batches: What makes each port, down; empty: it is not made.
        """
        made = self._send(batches)
        stands = [bool(batch) and refusal is None for batch, refusal in zip(batches, made, strict=True)]
        silences = [
            [ports.silence_port(port)] for (port, _), there in zip(wanted, stands, strict=True) if there
        ]
        guards = [
            self._guard_messages(port, mac) if there else []
            for (port, mac), there in zip(wanted, stands, strict=True)
        ]
        # A port that cannot be silenced has nothing to say: there is no IPv6.
        guarded = self._send([*silences, *guards])[len(silences) :]
        return [
            _FULL if refusal is not None and refusal.number == errno.EXFULL else _text(port.device, refusal)
            for (port, _), refusal in zip(wanted, map(_first, zip(made, guarded, strict=True)), strict=True)
        ]

    def _guard_messages(self, port: ContainerPort, mac: str) -> list[bytes]:
        index = self._channel.index(port.device)
        return [ports.fix_port_address(index, mac), ports.guard_port(port)]

    def _set_ends(self, operations: Sequence[SetEnd], namespaces: Mapping[str, int]) -> list[str]:
        errors = []
        for operation in operations:
            namespace = namespaces.get(operation.container)
            if namespace is None:
                errors.append(_NO_NAMESPACE)
                continue
            try:
                with Channel(namespace) as channel:
                    errors.append(_set_end(channel, operation.end))
            except KernelError as error:
                errors.append(str(error))
        return errors

    def _delete_links(
        self, operations: Sequence[DeletePort | DeleteTunnel], _: Mapping[str, int]
    ) -> list[str]:
        devices = [operation.device for operation in operations]
        if len(devices) == 1:
            refusals = self._channel.send([netlink.delete_link(devices[0])])
            return [_text(devices[0], refusals[0], errno.ENODEV)]
        refusals = self._channel.send([netlink.doom_link(device) for device in devices])
        errors = [_text(d, refusal, errno.ENODEV) for d, refusal in zip(devices, refusals, strict=True)]
        if all(refusal is not None for refusal in refusals):
            return errors
        together = _text("links", self._channel.send([netlink.delete_doomed()])[0], errno.ENODEV)
        return [error or together for error in errors]

    def _send(self, batches: Sequence[Sequence[bytes]]) -> list[Refusal | None]:
        """Send all operations' messages together; return the first refusal of each operation."""
        refusals = iter(self._channel.send([message for batch in batches for message in batch]))
        return [_first(list(itertools.islice(refusals, len(batch)))) for batch in batches]


def _set_end(channel: Channel, end: ContainerEnd) -> str:
    """Bring the end inside a container to the form wanted, in one batch."""
    seen = read_end(channel)
    if seen is None:
        return f"the container has no link {names.CONTAINER_LINK}"
    # A new end has its MTU and Ethernet address from its creation: each change saved is one less for the
    # kernel to tell everyone about.
    messages = [] if seen.end.loopback else [netlink.loopback_up()]
    messages += [netlink.delete_address(seen.index, a) for a in seen.addresses if a != end.address]
    if end.address not in seen.addresses:
        messages.append(netlink.add_address(seen.index, end.address))
    if (seen.end.up, seen.end.mtu, seen.end.mac) != (True, end.mtu, end.mac):
        mtu = end.mtu if end.mtu != seen.end.mtu else 0
        mac = end.mac if end.mac != seen.end.mac else ""
        messages.append(netlink.set_link(names.CONTAINER_LINK, mtu=mtu, mac=mac))
    messages.append(netlink.set_default_route(seen.index, end.gateway))
    return _text(names.CONTAINER_LINK, _first(channel.send(messages)))


def _tried(attempt: Callable[[], str]) -> str:
    """Return why one operation failed, however it says so."""
    try:
        return attempt()
    except (KernelError, OSError) as error:
        return str(error)


def _first(refusals: Sequence[Refusal | None]) -> Refusal | None:
    return next((refusal for refusal in refusals if refusal is not None), None)


def _text(what: str, refusal: Refusal | None, harmless: int = 0) -> str:
    """Return an operation's error text; `harmless`: the number that says there was nothing to do."""
    if refusal is None or refusal.number == harmless:
        return ""
    return f"the kernel refused {what}: {refusal.text}"
