"""What `netctl broker init` and `netctl broker run` do."""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Final

import attrs

from netctl.broker import directory as place
from netctl.broker import nodes, users
from netctl.broker.commands import AddInvite
from netctl.broker.hub import About, Handler, Hub
from netctl.broker.journal import Journal
from netctl.broker.rows import Meta
from netctl.broker.server import Server
from netctl.broker.sessions import Limits
from netctl.broker.snapshot import DEFAULT_ORDER, Snapshot
from netctl.broker.state import decide, empty, load
from netctl.broker.store import Store
from netctl.errors import InvalidError
from netctl.log import get_logger, setup
from netctl.model import (
    BROKER_PORT,
    DEFAULT_BLOCK_SIZE,
    DEFAULT_SUPERNET,
    VXLAN_PORT,
    WIREGUARD_PORTS,
    Encapsulation,
    Encryption,
    check_name,
)
from netctl.wire import invite
from netctl.wire.identity import KeyPair, check_address
from netctl.wire.session import Role

_LAST_PORT: Final = 65535
DEFAULT_LISTEN: Final = (f"tcp://0.0.0.0:{BROKER_PORT}",)


def init(
    directory: Path,
    *,
    supernet: str = DEFAULT_SUPERNET,
    block_size: int = DEFAULT_BLOCK_SIZE,
    listen: tuple[str, ...] = DEFAULT_LISTEN,
    advertise: tuple[str, ...] = (),
    name: str = "admin",
    ttl: int = 3600,
    encapsulations: tuple[Encapsulation, ...] = DEFAULT_ORDER,
    encryption: Encryption = "off",
    vxlan_port: int = VXLAN_PORT,
) -> str:
    """Make a broker's directory and return the first invite: a user's, with the name given.

    Args:
        directory: Made with mode 0700; must not hold a broker yet.
        supernet: What blocks are cut from.
        block_size: Prefix length of a block.
        listen: Endpoints to bind, as ``tcp://address:port`` or ``ipc:///path``.
        advertise: Endpoints that invites name, in the order to try; empty: those of `listen` that say which
            address they are at, else this host's own address.
        name: Of the first account.
        ttl: Seconds the invite is good for.
        encapsulations: What pairs of nodes may use, best first.
        encryption: ``required``: nothing but wireguard, never in plain text.
        vxlan_port: UDP port of VXLAN, on every node.

    Raises:
        ExistsError: There is a broker in that directory.
        InvalidError: A value is of the wrong form, no address to advertise can be told, or no pair of nodes
            could carry anything.
    """
    check_name(name)
    _check_tunnels(encapsulations, encryption, vxlan_port)
    for endpoint in (*listen, *advertise):
        check_address(endpoint)
    settings = place.Settings(listen, advertise or place.advertised(listen, _own_address()))
    start = empty(
        supernet,
        block_size,
        closed=place.closed_networks(settings),
        encapsulations=encapsulations,
        encryption=encryption,
        vxlan_port=vxlan_port,
    )
    keys = KeyPair.generate()
    now = time.time()
    first = invite.Invite(
        kind="user",
        name=name,
        addresses=settings.advertise,
        broker_key=keys.public,
        token=invite.new_token(secrets.token_bytes(invite.TOKEN_BYTES)),
        expires_at=now + ttl,
    )
    command = AddInvite(invite.token_hash(first.token), first.kind, first.name, first.expires_at)
    decision = decide(start, command, now)
    text = invite.format(first)
    place.make(directory)
    mask = os.umask(0o077)
    try:
        place.write_key(directory, keys)
        store = Store(directory)
        try:
            store.create(_meta(decision.snapshot), decision.changes)
        finally:
            store.close()
        place.write_settings(directory, settings)
    finally:
        os.umask(mask)
    return text


def run(
    directory: Path,
    *,
    listen: tuple[str, ...] = (),
    user: str | None = None,
    limits: Limits | None = None,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Run the broker until SIGTERM or SIGINT.

    Args:
        directory: As `init` made it.
        listen: Endpoints to bind instead of the recorded ones; empty: the recorded ones.
        user: Where started as root: the user to become once all is bound and loaded (the directory is
            given to it); None: stay.
        limits: Bounds; None: the usual ones.
        ready: Called once the broker answers.

    Raises:
        NotFoundError: There is no broker in that directory.
        InvalidError: The directory is not this user's alone, or its contents are damaged.
        RefusedError: Another broker runs on that directory, or an endpoint cannot be bound.
        FencedError: Another broker has taken over the store.
    """
    setup("netctl-broker")
    place.check(directory)
    if user is None:
        place.check_own(directory)
    settings = place.read_settings(directory)
    if listen:
        settings = attrs.evolve(settings, listen=tuple(check_address(endpoint) for endpoint in listen))
    mask = os.umask(0o077)
    try:
        with place.locked(directory):
            server = Server(settings.listen)
            try:
                _serve(server, directory, settings, user=user, limits=limits, ready=ready)
            finally:
                server.close()
    finally:
        os.umask(mask)


def _serve(
    server: Server,
    directory: Path,
    settings: place.Settings,
    *,
    user: str | None,
    limits: Limits | None,
    ready: Callable[[], None],
) -> None:
    keys = place.read_key(directory)
    store = Store(directory)
    try:
        journal = _open(store, place.closed_networks(settings))
        about = About(keys, settings.advertise, version("netctl"))
        handlers: dict[Role, Handler] = {"user": users.handle, "enrol": users.enrol, "node": nodes.handle}
        hub = Hub(about, journal, handlers, limits=limits)
        if user is not None:
            # Last, since whom it becomes may not be able to read the program's own files.
            place.become(user, directory)
        snapshot = journal.committed
        get_logger().info(
            "broker runs",
            endpoint=", ".join(settings.listen),
            directory=str(directory),
            epoch=snapshot.epoch,
            revision=snapshot.revision,
        )
        server.serve(hub, ready=ready)
        get_logger().info("broker stopped", revision=journal.committed.revision)
    finally:
        store.close()


def _open(store: Store, closed: tuple[str, ...]) -> Journal:
    """Read what is recorded, with the broker's addresses as they are now."""
    store.upgrade()
    meta, records, answers = store.load()
    if meta.closed != closed:
        store.set_closed(closed, before=(meta.epoch, meta.revision))
        meta = attrs.evolve(meta, closed=closed, revision=meta.revision + 1)
    snapshot = load(
        meta.epoch,
        meta.revision,
        meta.supernet,
        meta.block_size,
        meta.closed,
        records,
        encapsulations=meta.encapsulations,
        encryption=meta.encryption,
        vxlan_port=meta.vxlan_port,
    )
    return Journal(store, snapshot, answers)


def _meta(snapshot: Snapshot) -> Meta:
    return Meta(
        snapshot.epoch,
        snapshot.revision,
        snapshot.supernet,
        snapshot.block_size,
        snapshot.closed,
        snapshot.encapsulations,
        snapshot.encryption,
        snapshot.vxlan_port,
    )


def _check_tunnels(
    encapsulations: tuple[Encapsulation, ...], encryption: Encryption, vxlan_port: int
) -> None:
    known = set(encapsulations) & {"direct", "gre", "vxlan", "wireguard"}
    if not encapsulations or len(known) < len(encapsulations):
        raise InvalidError(
            f"{','.join(encapsulations)!r} is no order of encapsulations",
            f"name some of {','.join(DEFAULT_ORDER)}, each once, best first",
        )
    if encryption == "required" and "wireguard" not in known:
        raise InvalidError("encryption is required, and wireguard not allowed", "allow wireguard")
    if not 1 <= vxlan_port <= _LAST_PORT:
        raise InvalidError(f"{vxlan_port} is no UDP port", f"use a port from 1 to {_LAST_PORT}")
    if vxlan_port in WIREGUARD_PORTS:
        raise InvalidError(f"UDP port {vxlan_port} is WireGuard's here", "choose another for VXLAN")


def _own_address() -> str | None:
    """Return the address this host speaks to the world from; None: it has no route there."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # Connecting a datagram socket chooses the source address and sends nothing (RFC 5737 address).
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return None
        return str(probe.getsockname()[0])
