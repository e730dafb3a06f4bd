"""What `netctl broker init` and `netctl broker run` do: a broker's directory, settings and process."""

from __future__ import annotations

from pathlib import Path

from netctl.model import BROKER_PORT, DEFAULT_BLOCK_SIZE, DEFAULT_SUPERNET

DEFAULT_LISTEN = (f"tcp://0.0.0.0:{BROKER_PORT}",)


def init(
    directory: Path,
    *,
    supernet: str = DEFAULT_SUPERNET,
    block_size: int = DEFAULT_BLOCK_SIZE,
    listen: tuple[str, ...] = DEFAULT_LISTEN,
    advertise: tuple[str, ...] = (),
    name: str = "admin",
    ttl: int = 3600,
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

    Raises:
        ExistsError: There is a broker in that directory.
        InvalidError: A value is of the wrong form, or no address to advertise can be told.
    """
    raise NotImplementedError


def run(directory: Path, *, listen: tuple[str, ...] = (), user: str | None = None) -> None:
    """Run the broker until SIGTERM or SIGINT.

    Args:
        directory: As `init` made it.
        listen: Endpoints to bind instead of the recorded ones; empty: the recorded ones.
        user: Where started as root: the user to become once the endpoints are bound (the directory is
            given to it); None: stay.

    Raises:
        NotFoundError: There is no broker in that directory.
        InvalidError: Others may read the directory, or its contents are damaged.
        RefusedError: Another broker runs on that directory, or an endpoint cannot be bound.
    """
    raise NotImplementedError
