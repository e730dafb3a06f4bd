"""Raw netlink sockets inside any network namespace: batches out, refusals and dumps in.

A socket belongs for ever to the namespace its thread was in when it was made, so the thread goes in,
makes it, and comes back at once. Only a single-threaded process may do so; a process that cannot come
back ends itself, since all it did from there would be done to the wrong namespace.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Final, Self

import attrs

from netctl.errors import KernelError

CLONE_NEWNET: Final = 0x40000000
GENERIC: Final = 16
"""NETLINK_GENERIC of linux/netlink.h: the protocol of kernel parts without one of their own."""

_SOL_NETLINK = 270
_CAP_ACK = 10  # acknowledgements without a copy of the message
_EXT_ACK = 11  # with the kernel's text
_STRICT = 12  # filters in dump requests count
_ERROR = 2
_DONE = 3
_ACK = 0x4
_INTERRUPTED = 0x10  # NLM_F_DUMP_INTR
_CAPPED = 0x100
_TEXT = 1  # NLMSGERR_ATTR_MSG
_SIOCGIFINDEX = 0x8933
_BATCH = 64  # messages a datagram: should all be refused, their answers still fit the receive buffer
_ATTEMPTS = 5
_BUFFER = 1 << 16
_HEADER = struct.Struct("=IHHII")

_libc = ctypes.CDLL(None, use_errno=True)


def own_namespace() -> int:
    """Return a new descriptor of the calling thread's network namespace."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


@contextlib.contextmanager
def inside(namespace: int) -> Iterator[None]:
    """Have the calling thread in `namespace` for a moment.

    Raises:
        KernelError: The descriptor is of no network namespace, or the right to enter it is missing.
    """
    back = own_namespace()
    try:
        if _libc.setns(namespace, CLONE_NEWNET) != 0:
            raise _failure("cannot enter the network namespace")
        try:
            yield
        finally:
            if _libc.setns(back, CLONE_NEWNET) != 0:
                os.abort()
    finally:
        os.close(back)


def new_namespace() -> int:
    """Make a network namespace that lives as long as the descriptor returned.

    Raises:
        KernelError: The right to do so is missing.
    """
    back = own_namespace()
    try:
        if _libc.unshare(CLONE_NEWNET) != 0:
            raise _failure("cannot make a network namespace")
        try:
            return own_namespace()
        finally:
            if _libc.setns(back, CLONE_NEWNET) != 0:
                os.abort()
    finally:
        os.close(back)


def _failure(what: str) -> KernelError:
    return KernelError(f"{what}: {os.strerror(ctypes.get_errno())}", "run the node agent as root")


@attrs.frozen
class Refusal:
    """The kernel refused one message.

    Attributes:
        number: Of `errno`.
        text: The kernel's words where it has some, else the number's.
    """

    number: int
    text: str


@attrs.frozen
class Answer:
    """One message of the kernel's: its type, and what follows its header."""

    kind: int
    body: bytes


class Channel:
    """A netlink socket in one network namespace. For one thread, one question at a time.

    Args:
        namespace: A descriptor of the namespace; None: the process's own.
        groups: Bit mask of RTMGRP_* to be told of, see rtnetlink(7); such a channel asks nothing.
        protocol: Of netlink(7): rtnetlink unless another is said.

    Raises:
        KernelError: The namespace cannot be entered.
    """

    def __init__(
        self, namespace: int | None = None, groups: int = 0, *, protocol: int = socket.NETLINK_ROUTE
    ) -> None:
        self._socket = self._open(protocol) if namespace is None else self._open_in(namespace, protocol)
        for option in (_CAP_ACK, _EXT_ACK, _STRICT):
            self._socket.setsockopt(_SOL_NETLINK, option, 1)
        if groups:
            self._socket.bind((0, groups))
        self._sequence = 0

    @staticmethod
    def _open(protocol: int) -> socket.socket:
        return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)

    def _open_in(self, namespace: int, protocol: int) -> socket.socket:
        with inside(namespace):
            return self._open(protocol)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the socket, and so of its namespace."""
        self._socket.close()

    def fileno(self) -> int:
        """Return the socket's descriptor, for polling."""
        return self._socket.fileno()

    def index(self, device: str) -> int:
        """Return a link's index; 0: there is none of that name."""
        try:
            answer = fcntl.ioctl(self._socket, _SIOCGIFINDEX, struct.pack("16si20x", device.encode(), 0))
        except OSError:
            return 0
        found: int = struct.unpack_from("i", answer, 16)[0]
        return found

    def send(self, messages: Sequence[bytes]) -> list[Refusal | None]:
        """Have the kernel do `messages` in their order; return one refusal or None for each.

        One that is refused does not stop those after it.
        """
        results: list[Refusal | None] = []
        for start in range(0, len(messages), _BATCH):
            results.extend(self._send_batch(messages[start : start + _BATCH]))
        return results

    def _send_batch(self, messages: Sequence[bytes]) -> list[Refusal | None]:
        first = self._sequence + 1
        self._sequence += len(messages)
        # Refusals are always told; an acknowledgement of the last message says that all were looked at.
        datagram = bytearray()
        for number, message in enumerate(messages, first):
            flags = struct.unpack_from("=H", message, 6)[0] | (_ACK if number == self._sequence else 0)
            kind = struct.unpack_from("=H", message, 4)[0]
            datagram += _HEADER.pack(len(message), kind, flags, number, 0) + message[_HEADER.size :]
            datagram += bytes(-len(message) % 4)
        self._socket.send(datagram)
        results: list[Refusal | None] = [None] * len(messages)
        while True:
            for _, flags, sequence, body in _split(self._socket.recv(_BUFFER)):
                results[sequence - first] = _refusal(flags, body)
                if sequence == self._sequence:
                    return results

    def get(self, *messages: bytes) -> list[Answer | None]:
        """Ask for single objects; return each one, or None where there is no such thing."""
        first = self._sequence + 1
        answers: dict[int, Answer | None] = {}
        datagram = bytearray()
        for message in messages:
            self._sequence += 1
            datagram += message[:8] + struct.pack("=II", self._sequence, 0) + message[_HEADER.size :]
            datagram += bytes(-len(message) % 4)
        self._socket.send(datagram)
        while len(answers) < len(messages):
            for kind, _, sequence, body in _split(self._socket.recv(_BUFFER)):
                answers[sequence] = None if kind == _ERROR else Answer(kind, body)
        return [answers[sequence] for sequence in range(first, self._sequence + 1)]

    def dump(self, message: bytes) -> list[Answer]:
        """Ask for all objects of a kind.

        Raises:
            KernelError: The kernel refused, or the objects kept changing under the listing.
        """
        for _ in range(_ATTEMPTS):
            answers = self._dump_once(message)
            if answers is not None:
                return answers
        raise KernelError("the kernel's links or routes keep changing while they are listed", "try again")

    def _dump_once(self, message: bytes) -> list[Answer] | None:
        self._sequence += 1
        self._socket.send(message[:8] + struct.pack("=II", self._sequence, 0) + message[_HEADER.size :])
        answers: list[Answer] = []
        whole = True
        while True:
            for kind, flags, sequence, body in _split(self._socket.recv(_BUFFER)):
                if sequence != self._sequence:
                    continue
                whole = whole and not flags & _INTERRUPTED
                if kind == _DONE:
                    return answers if whole else None
                if kind == _ERROR:
                    refusal = _refusal(flags, body)
                    raise KernelError(f"the kernel lists nothing: {refusal and refusal.text}")
                answers.append(Answer(kind, body))

    def notices(self) -> list[Answer] | None:
        """Return what the kernel has told since the last call, without waiting; None: some of it was lost."""
        told: list[Answer] = []
        whole = True
        while True:
            try:
                data = self._socket.recv(_BUFFER, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return told if whole else None
            except OSError:  # ENOBUFS: more came than the buffer holds
                whole = False
                continue
            told.extend(Answer(kind, body) for kind, _, _, body in _split(data))


def _split(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield type, flags, sequence number and body of each message in a datagram."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        yield kind, flags, sequence, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def _refusal(flags: int, body: bytes) -> Refusal | None:
    """Read an acknowledgement (struct nlmsgerr); None: done."""
    number = -struct.unpack_from("=i", body)[0]
    if number == 0:
        return None
    text = os.strerror(number)
    # After the number comes the header of the message refused, or all of it where the kernel cannot cap.
    offset = 4 + (_HEADER.size if flags & _CAPPED else (struct.unpack_from("=I", body, 4)[0] + 3) & ~3)
    while offset + 4 <= len(body):
        length, kind = struct.unpack_from("=HH", body, offset)
        if length < 4:  # noqa: PLR2004 - an attribute's own header
            break
        if kind & 0x3FFF == _TEXT:
            said = body[offset + 4 : offset + length].rstrip(b"\0").decode(errors="replace")
            text = f"{text}: {said.rstrip('.')}"
        offset += (length + 3) & ~3
    return Refusal(number, text)
