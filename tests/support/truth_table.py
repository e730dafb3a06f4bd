"""Who reaches whom: every question between any number of containers, asked at the same time.

One after the other the many that must go unanswered would each be waited for; so all are waited for at once.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import struct
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Self

import attrs

from netctl.model import Port
from tests.support.netns import BLOCKED_AFTER, Namespace, echo_request

ANSWERED_WITHIN = 30.0
"""Seconds in which everything that should be answered is, on a machine that is busy."""
_ECHO_REPLY = 0


@attrs.frozen(order=True)
class Question:
    """A TCP connection with a byte each way, a datagram and its answer, or an echo request.

    Attributes:
        source: Address of the container that asks.
        destination: Of the one that is asked.
    """

    source: str
    destination: str
    port: Port


@attrs.frozen
class Answers:
    """What came of questions.

    Attributes:
        arrived: What got to a program of the destination; echo requests are answered by its kernel.
        answered: What came back.
    """

    arrived: AbstractSet[Question]
    answered: AbstractSet[Question]


def ask(
    places: Mapping[str, Namespace], questions: Collection[Question], expected: AbstractSet[Question]
) -> Answers:
    """Ask all at once; return when all `expected` are answered, and nothing else has been for a while.

    Args:
        places: Containers' namespaces by address.
        questions: What to ask.
        expected: What should be answered; it decides how long to wait, and nothing else.
    """
    with _Asking(places, questions) as asking:
        deadline = time.monotonic() + ANSWERED_WITHIN
        while not asking.answered >= expected and time.monotonic() < deadline:
            asking.wait(0.1)
        quiet_from = time.monotonic()
        while time.monotonic() < quiet_from + BLOCKED_AFTER:
            if asking.wait(0.05):
                quiet_from = time.monotonic()
        return Answers(frozenset(asking.arrived), frozenset(asking.answered))


def every_question(addresses: Iterable[str], ports: Iterable[Port]) -> list[Question]:
    """Return all questions between different containers."""
    known, asked = list(addresses), list(ports)
    return [Question(one, other, port) for one in known for other in known if one != other for port in asked]


class _Asking:
    """The sockets of all questions, and what came of them so far."""

    def __init__(self, places: Mapping[str, Namespace], questions: Collection[Question]) -> None:
        self.arrived: set[Question] = set()
        self.answered: set[Question] = set()
        self._places = places
        self._stack = contextlib.ExitStack()
        self._selector = self._stack.enter_context(selectors.DefaultSelector())
        # What a packet carries to say which question it is.
        self._tokens = {struct.pack("!I", number): q for number, q in enumerate(questions)}

    def __enter__(self) -> Self:
        wanted = {(q.destination, q.port) for q in self._tokens.values()}
        for address, port in sorted(wanted):
            if port.protocol != "icmp":
                self._serve(address, port)
        pingers = {q.source: None for q in self._tokens.values() if q.port.protocol == "icmp"}
        echo = {address: self._pinger(address) for address in pingers}
        for token, question in self._tokens.items():
            with contextlib.suppress(OSError):  # what our own rules refuse at once is as good as not answered
                if question.port.protocol == "icmp":
                    packet = echo_request(int.from_bytes(token[2:]), payload=token)
                    echo[question.source].sendto(packet, (question.destination, 0))
                else:
                    self._ask(token, question)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def wait(self, seconds: float) -> bool:
        """Take in what comes; tell whether anything was new."""
        before = len(self.arrived) + len(self.answered)
        for key, _ in self._selector.select(seconds):
            try:
                key.data()
            except BlockingIOError:
                continue
            except OSError:
                self._selector.unregister(key.fileobj)
        return len(self.arrived) + len(self.answered) > before

    def _socket(self, address: str, kind: int, protocol: int = 0) -> socket.socket:
        made = self._stack.enter_context(self._places[address].socket(socket.AF_INET, kind, protocol))
        made.setblocking(False)
        return made

    def _on(self, sock: socket.socket, events: int, then: Callable[[], None]) -> None:
        self._selector.register(sock, events, then)

    def _serve(self, address: str, port: Port) -> None:
        stream = port.protocol == "tcp"
        server = self._socket(address, socket.SOCK_STREAM if stream else socket.SOCK_DGRAM)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((address, port.number))
        if stream:
            server.listen(1024)
            self._on(server, selectors.EVENT_READ, lambda: self._accept(server))
        else:
            self._on(server, selectors.EVENT_READ, lambda: self._echo(server))

    def _accept(self, server: socket.socket) -> None:
        served = self._stack.enter_context(server.accept()[0])
        served.setblocking(False)
        self._on(served, selectors.EVENT_READ, lambda: self._echo(served))

    def _echo(self, server: socket.socket) -> None:
        token, sender = server.recvfrom(4)
        if token not in self._tokens:
            self._selector.unregister(server)
            return
        self.arrived.add(self._tokens[token])
        if sender is None:
            server.send(token)
        else:
            server.sendto(token, sender)

    def _ask(self, token: bytes, question: Question) -> None:
        stream = question.port.protocol == "tcp"
        client = self._socket(question.source, socket.SOCK_STREAM if stream else socket.SOCK_DGRAM)
        with contextlib.suppress(BlockingIOError):
            client.connect((question.destination, question.port.number))
        if not stream:
            client.send(token)
            self._on(client, selectors.EVENT_READ, lambda: self._answer(client))
            return

        def connected() -> None:
            error = client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                raise OSError(error, os.strerror(error))
            client.send(token)
            self._selector.modify(client, selectors.EVENT_READ, lambda: self._answer(client))

        self._on(client, selectors.EVENT_WRITE, connected)

    def _answer(self, client: socket.socket) -> None:
        token = client.recv(4)
        if token in self._tokens:
            self.answered.add(self._tokens[token])
        else:
            self._selector.unregister(client)

    def _pinger(self, address: str) -> socket.socket:
        pinger = self._socket(address, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        self._on(pinger, selectors.EVENT_READ, lambda: self._pong(pinger, address))
        return pinger

    def _pong(self, pinger: socket.socket, address: str) -> None:
        packet = pinger.recv(2048)
        message = packet[(packet[0] & 15) * 4 :]
        question = self._tokens.get(message[8:12])
        if message[0] == _ECHO_REPLY and question is not None and question.source == address:
            self.answered.add(question)
