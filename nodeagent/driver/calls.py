"""Docker's calls as data: checked, bounded, and without what we have no use for.

Sources: moby's libnetwork, docs/remote.md and docs/ipam.md, and drivers/remote/api/api.go and
ipams/remote/api/api.go where those are silent. Docker writes null for what is empty, and adds members with
its versions, which are skipped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Any, Final, Literal

import attrs
import msgspec

from netctl.errors import InvalidError
from netctl.model import Address

MAX_MAPPINGS: Final = 1024
"""Published ports of one container."""

_PORT_MAP: Final = "com.docker.network.portmap"
_GENERIC: Final = "com.docker.network.generic"
_INTERNAL: Final = "com.docker.network.internal"
_IPV4: Final = "com.docker.network.enable_ipv4"
_IPV6: Final = "com.docker.network.enable_ipv6"
_ADDRESS_TYPE: Final = "RequestAddressType"
_GATEWAY: Final = "com.docker.network.gateway"

_DockerId = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
_PoolId = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9-]{1,64}\Z")]
_Short = Annotated[str, msgspec.Meta(max_length=256)]
_PortNumber = Annotated[int, msgspec.Meta(ge=0, le=65535)]
_Options = Annotated[dict[_Short, Any], msgspec.Meta(max_length=64)] | None
_SANDBOX: Final = re.compile(r"[0-9a-f]{6,64}")
_MAC: Final = re.compile(r"([0-9a-f]{2}:){5}[0-9a-f]{2}")
_PROTOCOLS: Final[Mapping[int, Literal["tcp", "udp"]]] = {6: "tcp", 17: "udp"}
"""Of IANA's protocol numbers, those that can be published."""


@attrs.frozen
class PortMapping:
    """One of a container's ports that the outside is to reach (`docker run -p`).

    Attributes:
        port: At the container.
        host_address: The only address of the node to offer it at; empty: all of them.
        host_port: The first that may be taken at the node; 0: any.
        host_port_end: The last.
    """

    protocol: Literal["tcp", "udp"]
    port: int
    host_address: str
    host_port: int
    host_port_end: int


@attrs.frozen
class RequestPool:
    """Docker makes a network.

    Attributes:
        subnet: As its user wrote it; empty: not at all.
        part: Its user's ``--ip-range``.
        options: Names of its user's ``--ipam-opt``.
    """

    subnet: str
    part: str
    options: tuple[str, ...]
    ipv6: bool


@attrs.frozen
class ReleasePool:
    """Docker took a network out."""

    pool: str


@attrs.frozen
class RequestAddress:
    """Docker wants an address.

    Attributes:
        address: Which; empty: any.
        gateway: For the network's gateway, not for a container.
    """

    pool: str
    address: str
    gateway: bool


@attrs.frozen
class ReleaseAddress:
    """Docker needs an address no longer."""

    pool: str
    address: str


@attrs.frozen
class CreateNetwork:
    """Docker made a network.

    Attributes:
        gateways: One for each IPv4 pool it has.
        auxiliary: Whether its user kept addresses for others (``--aux-address``).
        options: Names of its user's options (``-o``).
        ipv4: Whether its user wants IPv4.
        ipv6: Whether its user wants IPv6 too.
    """

    network: str
    internal: bool
    gateways: tuple[str, ...]
    auxiliary: bool
    options: tuple[str, ...]
    ipv4: bool
    ipv6: bool


@attrs.frozen
class DeleteNetwork:
    """Docker took a network out."""

    network: str


@attrs.frozen
class CreateEndpoint:
    """Docker gives a container a place on a network.

    Attributes:
        mac: Which its user wants; empty: any.
    """

    network: str
    endpoint: str
    address: str
    mac: str
    mappings: tuple[PortMapping, ...]


@attrs.frozen
class DeleteEndpoint:
    """Docker took a container's place away."""

    network: str
    endpoint: str


@attrs.frozen
class Join:
    """Docker wants the link of an endpoint.

    Attributes:
        sandbox: Name of the file of the container's namespace.
    """

    network: str
    endpoint: str
    sandbox: str


@attrs.frozen
class Leave:
    """A container's namespace goes, or leaves the network."""

    network: str
    endpoint: str


@attrs.frozen
class ProgramExternalConnectivity:
    """This endpoint is now the one by which its container is reached from outside."""

    network: str
    endpoint: str
    mappings: tuple[PortMapping, ...]


@attrs.frozen
class RevokeExternalConnectivity:
    """It is that no longer."""

    network: str
    endpoint: str


Call = (
    RequestPool | ReleasePool | RequestAddress | ReleaseAddress
    | CreateNetwork | DeleteNetwork | CreateEndpoint | DeleteEndpoint | Join | Leave
    | ProgramExternalConnectivity | RevokeExternalConnectivity
)  # fmt: skip


class _Raw(msgspec.Struct, kw_only=True):
    """Every member of every call that we look at, under Docker's names."""

    network: _DockerId | None = msgspec.field(name="NetworkID", default=None)
    endpoint: _DockerId | None = msgspec.field(name="EndpointID", default=None)
    pool_id: _PoolId | None = msgspec.field(name="PoolID", default=None)
    pool: _Short | None = msgspec.field(name="Pool", default=None)
    sub_pool: _Short | None = msgspec.field(name="SubPool", default=None)
    v6: bool | None = msgspec.field(name="V6", default=None)
    address: _Short | None = msgspec.field(name="Address", default=None)
    sandbox: Annotated[str, msgspec.Meta(max_length=4096)] | None = msgspec.field(
        name="SandboxKey", default=None
    )
    options: _Options = msgspec.field(name="Options", default=None)
    interface: _Interface | None = msgspec.field(name="Interface", default=None)
    ipv4: Annotated[list[_Pool], msgspec.Meta(max_length=16)] | None = msgspec.field(
        name="IPv4Data", default=None
    )
    ipv6: Annotated[list[_Pool], msgspec.Meta(max_length=16)] | None = msgspec.field(
        name="IPv6Data", default=None
    )


class _Interface(msgspec.Struct):
    address: _Short | None = msgspec.field(name="Address", default=None)
    ipv6: _Short | None = msgspec.field(name="AddressIPv6", default=None)
    mac: _Short | None = msgspec.field(name="MacAddress", default=None)


class _Pool(msgspec.Struct):
    gateway: _Short | None = msgspec.field(name="Gateway", default=None)
    auxiliary: _Options = msgspec.field(name="AuxAddresses", default=None)


class _Mapping(msgspec.Struct):
    # libnetwork's types.PortBinding.
    protocol: int = msgspec.field(name="Proto")
    port: _PortNumber = msgspec.field(name="Port")
    host_address: _Short | None = msgspec.field(name="HostIP", default=None)
    host_port: _PortNumber = msgspec.field(name="HostPort", default=0)
    host_port_end: _PortNumber = msgspec.field(name="HostPortEnd", default=0)


_DECODER: Final = msgspec.json.Decoder(_Raw)


def parse(path: str, body: bytes, folders: Collection[str]) -> Call:
    """Read one call.

    Args:
        path: Of the request.
        body: Of the request.
        folders: Where Docker's namespaces may be, as Docker may write it.

    Raises:
        InvalidError: It is none that is known, or something in it cannot be.
    """
    builder = _BUILDERS.get(path)
    if builder is None:
        raise InvalidError(f"{path[:80]!r} is no call that this driver knows")
    try:
        raw = _DECODER.decode(body)
        return builder(_Checked(raw, folders))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidError(f"{path.strip('/')} cannot be read: {error}") from None


@attrs.frozen
class _Checked:
    """A call's members, each checked where it is asked for."""

    raw: _Raw
    folders: Collection[str]

    @property
    def network(self) -> str:
        return _present(self.raw.network, "NetworkID")

    @property
    def endpoint(self) -> str:
        return _present(self.raw.endpoint, "EndpointID")

    @property
    def pool(self) -> str:
        return _present(self.raw.pool_id, "PoolID")

    @property
    def options(self) -> Mapping[str, Any]:
        return self.raw.options or {}

    @property
    def sandbox(self) -> str:
        """Return the file's name; a path that leads elsewhere than to Docker's namespaces is refused."""
        folder, _, name = (self.raw.sandbox or "").rpartition("/")
        if folder not in self.folders:
            raise InvalidError(
                f"Docker keeps this container's namespace in {folder[:200]!r}, not in {min(self.folders)!r}",
                "start nodeagent with --docker-exec-root as dockerd has --exec-root",
            )
        if _SANDBOX.fullmatch(name) is None:
            raise InvalidError(f"{name[:80]!r} is no name of a namespace of Docker's")
        return name

    @property
    def mappings(self) -> tuple[PortMapping, ...]:
        raw = msgspec.convert(self.options.get(_PORT_MAP) or [], list[_Mapping])
        if len(raw) > MAX_MAPPINGS:
            raise InvalidError(f"a container can publish {MAX_MAPPINGS} ports, not {len(raw)}")
        return tuple(map(_mapping, raw))


def _present(value: str | None, name: str) -> str:
    if value is None:
        raise InvalidError(f"{name} is missing")
    return value


def _address(text: str | None) -> str:
    """Return an address without the length of its network; empty stays empty."""
    address = (text or "").partition("/")[0]
    if address:
        try:
            msgspec.convert(address, Address)
        except msgspec.ValidationError:
            raise InvalidError(f"{address[:80]!r} is no IPv4 address") from None
    return address


def _mapping(raw: _Mapping) -> PortMapping:
    protocol = _PROTOCOLS.get(raw.protocol)
    if protocol is None:
        raise InvalidError("only tcp and udp ports can be published", "leave the other out of -p")
    if not raw.port:
        raise InvalidError("port 0 of a container cannot be published")
    host_address = "" if raw.host_address == "0.0.0.0" else raw.host_address or ""  # noqa: S104 - only compared
    if ":" in host_address:
        raise InvalidError(
            f"{host_address!r} cannot be published at: the overlay carries IPv4 only",
            "write an IPv4 address of this node before -p's port, or none",
        )
    last = max(raw.host_port, raw.host_port_end)
    return PortMapping(protocol, raw.port, _address(host_address), raw.host_port, last)


def _request_pool(call: _Checked) -> RequestPool:
    raw = call.raw
    return RequestPool(raw.pool or "", raw.sub_pool or "", tuple(call.options), bool(raw.v6))


def _request_address(call: _Checked) -> RequestAddress:
    gateway = call.options.get(_ADDRESS_TYPE) == _GATEWAY
    return RequestAddress(call.pool, _address(call.raw.address), gateway)


def _release_address(call: _Checked) -> ReleaseAddress:
    return ReleaseAddress(call.pool, _address(call.raw.address))


def _create_network(call: _Checked) -> CreateNetwork:
    pools: Sequence[_Pool] = call.raw.ipv4 or ()
    own = call.options.get(_GENERIC)
    return CreateNetwork(
        network=call.network,
        # Docker leaves it out where it is not so; anything but a plain no keeps in.
        internal=call.options.get(_INTERNAL, False) is not False,
        gateways=tuple(_address(pool.gateway) for pool in pools),
        auxiliary=any(pool.auxiliary for pool in pools),
        options=tuple(str(name)[:80] for name in own) if isinstance(own, dict) else (),
        ipv4=call.options.get(_IPV4, True) is True,
        ipv6=bool(call.options.get(_IPV6)) or bool(call.raw.ipv6),
    )


def _create_endpoint(call: _Checked) -> CreateEndpoint:
    interface = call.raw.interface or _Interface()
    mac = (interface.mac or "").lower()
    if mac and _MAC.fullmatch(mac) is None:
        raise InvalidError(f"{mac!r} is no Ethernet address")
    if interface.ipv6:
        raise InvalidError("the overlay carries IPv4 only", "leave out --ip6")
    address = _address(interface.address)
    return CreateEndpoint(call.network, call.endpoint, address, mac, call.mappings)


_BUILDERS: Final[Mapping[str, Callable[[_Checked], Call]]] = {
    "/IpamDriver.RequestPool": _request_pool,
    "/IpamDriver.ReleasePool": lambda call: ReleasePool(call.pool),
    "/IpamDriver.RequestAddress": _request_address,
    "/IpamDriver.ReleaseAddress": _release_address,
    "/NetworkDriver.CreateNetwork": _create_network,
    "/NetworkDriver.DeleteNetwork": lambda call: DeleteNetwork(call.network),
    "/NetworkDriver.CreateEndpoint": _create_endpoint,
    "/NetworkDriver.DeleteEndpoint": lambda call: DeleteEndpoint(call.network, call.endpoint),
    "/NetworkDriver.Join": lambda call: Join(call.network, call.endpoint, call.sandbox),
    "/NetworkDriver.Leave": lambda call: Leave(call.network, call.endpoint),
    "/NetworkDriver.ProgramExternalConnectivity": lambda call: ProgramExternalConnectivity(
        call.network, call.endpoint, call.mappings
    ),
    "/NetworkDriver.RevokeExternalConnectivity": lambda call: RevokeExternalConnectivity(
        call.network, call.endpoint
    ),
}
