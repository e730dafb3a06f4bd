"""Stepping into a network namespace and back, and throwaway namespaces; setns(2), unshare(2).

Only the calling thread steps; sockets made inside stay bound to the namespace they were made in.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

import attrs

from firewall_rules.backends.base import FirewallError

_CLONE_NEWNET: Final = 0x40000000
_OWN: Final = "/proc/thread-self/ns/net"
_SO_NETNS_COOKIE: Final = 71
_NETLINK_NETFILTER: Final = 12
# linux/netfilter/nfnetlink.h and nf_tables.h
_SUBSYSTEM: Final = 10 << 8
_NEW_GENERATION: Final = _SUBSYSTEM | 15
_GET_GENERATION: Final = _SUBSYSTEM | 16
_HEADER: Final = struct.Struct("=IHHIIBBH")
_REQUEST: Final = _HEADER.pack(_HEADER.size, _GET_GENERATION, 1, 0, 0, 0, 0, 0)
_ATTRIBUTE: Final = struct.Struct(">I")
_ATTRIBUTE_OFFSET: Final = 4

_libc: Final = ctypes.CDLL(None, use_errno=True)
_T = TypeVar("_T")


@attrs.frozen
class Stamp:
    """Names one state of all nftables of one namespace.

    Attributes:
        cookie: The kernel's number for the namespace, never used twice in one boot; 0: it gives none
            (before Linux 5.14).
        generation: Of its nftables; every transaction adds one.
    """

    cookie: int
    generation: int

    def following(self) -> Stamp:
        """Return the stamp after exactly one more transaction."""
        return Stamp(self.cookie, (self.generation + 1) & 0xFFFFFFFF)


@contextlib.contextmanager
def inside(namespace: int | None) -> Iterator[None]:
    """Step into `namespace` (a descriptor) and back; None: stay.

    A process that cannot come back does not know any more what it acts on, so it ends at once.

    Raises:
        FirewallError: The kernel did not let us in.
    """
    if namespace is None:
        yield
        return
    own = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(namespace, _CLONE_NEWNET) != 0:
            raise FirewallError(f"cannot enter the network namespace: {os.strerror(ctypes.get_errno())}")
        try:
            yield
        finally:
            if _libc.setns(own, _CLONE_NEWNET) != 0:
                os.abort()
    finally:
        os.close(own)


def in_scratch_namespace(work: Callable[[], _T]) -> _T:
    """Return what `work` returns when run in a network namespace made for it and gone after it.

    Raises:
        FirewallError: The kernel makes none for us.
    """
    results: list[_T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            _leave_namespace()
            results.append(work())
        except Exception as error:  # noqa: BLE001 - raised again in the thread that waits
            errors.append(error)

    thread = threading.Thread(target=run, name="scratch-namespace")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _leave_namespace() -> None:
    if _libc.unshare(_CLONE_NEWNET) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise FirewallError(f"cannot make a network namespace: {reason}; this needs root")


def generation_socket() -> socket.socket:
    """Return a socket that asks the present namespace for its stamp, wherever its thread goes later."""
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)


def stamp(asked: socket.socket) -> Stamp:
    """Return the stamp of the namespace that `asked` was made in.

    Raises:
        FirewallError: The kernel has no nftables.
    """
    try:
        asked.send(_REQUEST)
        answer = asked.recv(4096)
    except OSError as error:
        raise FirewallError(f"the kernel does not answer for nftables: {error.strerror}") from error
    kind = _HEADER.unpack_from(answer)[1]
    if kind != _NEW_GENERATION:
        raise FirewallError("the kernel has no nftables")
    # NFTA_GEN_ID is the first attribute of NFT_MSG_NEWGEN (nf_tables_fill_gen_info).
    (generation,) = _ATTRIBUTE.unpack_from(answer, _HEADER.size + _ATTRIBUTE_OFFSET)
    try:
        (cookie,) = struct.unpack("=Q", asked.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8))
    except OSError:
        cookie = 0
    return Stamp(cookie, generation)
