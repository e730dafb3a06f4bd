"""The process of its own in which python-iptables works, one request at a time.

Its messages are in `firewall_rules.backends.iptables_wire`; it ends when its parent closes the socket.
"""

from __future__ import annotations

import os
import socket

import msgspec

from firewall_rules.backends import iptables
from firewall_rules.backends.base import FirewallError
from firewall_rules.backends.ipset import Sets, forget_flows
from firewall_rules.backends.iptables_wire import (
    LENGTH,
    REQUESTS,
    Answer,
    Change,
    Install,
    List,
    Listed,
    Remove,
    receive,
)
from firewall_rules.backends.namespaces import inside


def perform(request: Install | Change | List | Remove) -> Listed | None:
    """Do `request` in the namespace that the thread is in.

    Raises:
        FirewallError: The kernel refused.
    """
    sets = Sets()
    try:
        match request:
            case Install():
                for one in request.tables.sets:
                    sets.replace(one, request.elements.get(one.name, ()))
                iptables.install(request.tables)
                forget_flows(request.forgotten)
            case Change():
                for one, removed, added in request.sets:
                    sets.change(one, removed, added)
                forget_flows(request.forgotten)
            case List():
                return Listed(iptables.listed(), {one.name: sets.elements(one) for one in request.sets})
            case Remove():
                iptables.remove()
                sets.destroy_all()
    finally:
        sets.close()
    return None


def main() -> None:
    """Serve the socket that is standard input until it ends."""
    sock = socket.socket(fileno=0)
    while True:
        head, descriptors, _flags, _address = socket.recv_fds(sock, LENGTH.size, 1)
        if not head:
            return
        (namespace,) = descriptors
        try:
            head += receive(sock, LENGTH.size - len(head))
            (length,) = LENGTH.unpack(head)
            answer = _answer(receive(sock, length), namespace)
        except EOFError:
            return
        finally:
            os.close(namespace)
        body = msgspec.msgpack.encode(answer)
        sock.sendall(LENGTH.pack(len(body)) + body)


def _answer(body: bytes, namespace: int) -> Answer:
    try:
        name, raw = msgspec.msgpack.decode(body, type=tuple[str, msgspec.Raw])
        request: Install | Change | List | Remove = msgspec.msgpack.decode(raw, type=REQUESTS[name])
        with inside(namespace):
            return Answer(listed=perform(request))
    except FirewallError as error:
        return Answer(error=str(error))
    except Exception as error:  # noqa: BLE001 - whatever a library throws, the parent must hear of it
        return Answer(error=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
