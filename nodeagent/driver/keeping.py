"""Keeping the book over an agent's end: networks for good, endpoints until the next reboot.

Docker says neither again when it is started again, and no endpoint outlives a reboot.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, TypeVar

import attrs
import msgspec
from immutables import Map

from netctl.log import get_logger
from nodeagent.driver.addresses import Addresses
from nodeagent.driver.book import Book, Network
from nodeagent.endpoints import Endpoint
from nodeagent.files import write_whole

_MAX_BYTES: Final = 16 * 2**20
_T = TypeVar("_T")


@attrs.frozen
class _Endpoints:
    """The contents of the file of endpoints; of addresses held since when, by the host's monotonic clock."""

    endpoints: tuple[Endpoint, ...] = ()
    held: dict[str, float] = attrs.field(factory=dict)


@attrs.frozen
class _Networks:
    """The contents of the file of networks; by Docker's id whether each is internal."""

    internal: dict[str, bool] = attrs.field(factory=dict)


class Keeper:
    """The two files.

    Args:
        networks: Written durably.
        endpoints: Written whole, but left to the kernel to bring to its disk, if it is on one.
    """

    def __init__(self, networks: Path, endpoints: Path) -> None:
        self._networks = networks
        self._endpoints = endpoints
        self._kept = Book()

    def load(self, now: float) -> Book:
        """Return the book as it was kept. A damaged file is set aside.

        Args:
            now: Seconds of the host's monotonic clock, which begins anew only where the endpoints' file does.
        """
        networks = _read(self._networks, _Networks)
        endpoints = _read(self._endpoints, _Endpoints)
        book = Book(
            networks=Map({docker_id: Network(internal) for docker_id, internal in networks.internal.items()}),
            addresses=Addresses(held=Map({one: min(since, now) for one, since in endpoints.held.items()})),
        )
        for endpoint in endpoints.endpoints:
            book = book.with_(endpoint)
        if self._networks.exists() and self._endpoints.exists():
            self._kept = book
        return book

    def keep(self, book: Book) -> None:
        """Write what is not written yet.

        Raises:
            OSError: It cannot be written.
        """
        kept = self._kept
        if book.networks is not kept.networks:
            internal = {docker_id: network.internal for docker_id, network in book.networks.items()}
            write_whole(self._networks, msgspec.json.encode(_Networks(internal)))
        if book.endpoints is not kept.endpoints or book.addresses.held is not kept.addresses.held:
            kept_so = _Endpoints(tuple(book.endpoints.by_key.values()), dict(book.addresses.held))
            _write(self._endpoints, msgspec.json.encode(kept_so))
        self._kept = book


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    temporary.replace(path)


def _read(path: Path, kind: type[_T]) -> _T:
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(_MAX_BYTES), type=kind)
    except FileNotFoundError:
        return kind()
    except (OSError, msgspec.MsgspecError) as error:
        aside = path.with_name(path.name + ".corrupt")
        get_logger().error("a damaged file is set aside", path=str(aside), error=str(error))
        path.replace(aside)
        return kind()
