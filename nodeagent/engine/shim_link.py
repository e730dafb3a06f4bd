"""The engine's end of one shim: how it is started, found again, spoken to, and looked at when it is gone."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import attrs
import msgspec

import nodeagent
from netctl.errors import KernelError
from netctl.model import ContainerRunState, Text
from nodeagent.engine.process_spec import ShimSpec
from nodeagent.kernel_state import EngineContainer
from nodeagent.shim import LISTENER
from nodeagent.shim_connections import MESSAGE_BYTES

SOCKET: Final = "shim.sock"
SPEC: Final = "spec.json"
STATUS: Final = "status.json"
LOG: Final = "shim.log"
OUTPUT: Final = "output"
_BACKLOG = 8
_BOOT: Final = "import sys; sys.path.append(sys.argv[1]); from nodeagent.shim import main; main()"
_OUT_OF_THE_WAY: Final = 64


@attrs.frozen
class ShimStatus:
    """A shim's state, as it tells and keeps it."""

    state: ContainerRunState
    generation: Annotated[int, msgspec.Meta(ge=0)]
    exit_code: Annotated[int, msgspec.Meta(ge=0, le=255)] | None
    message: Text

    def seen(self) -> EngineContainer:
        """Return it as the agent knows it."""
        return EngineContainer(self.state, self.generation, self.exit_code, self.message)


@attrs.frozen
class ShimEvent:
    """What a shim sends: a status, or the end of an exec."""

    event: Literal["status", "ended"]
    state: ContainerRunState = "unknown"
    generation: Annotated[int, msgspec.Meta(ge=0)] = 0
    exit_code: Annotated[int, msgspec.Meta(ge=0, le=255)] | None = None
    message: Text = ""
    handle: int = 0


@attrs.define(eq=False)
class ShimLink:
    """One container's shim.

    Attributes:
        seen: What is known of the container.
        spec: What it runs.
        sock: The connection; None: there is none.
        namespace: Descriptor of its network namespace, from its first event on; -1: not yet.
        process: A pidfd of it, likewise.
        revived: It was started anew for a container that had ended.
        doomed: It is being removed.
    """

    container: str
    directory: Path
    spec: ShimSpec
    seen: EngineContainer
    sock: socket.socket | None = None
    namespace: int = -1
    process: int = -1
    revived: bool = False
    doomed: bool = False

    def connect(self) -> bool:
        """Connect to the shim; return whether there is one. It lives if anyone listens.

        One that lives but takes no connection (it is stopped, say) is left alone, without a connection.
        """
        self.disconnect()
        with contextlib.ExitStack() as undo:
            sock = undo.enter_context(_seqpacket())
            try:
                with _short_path(self.directory) as path:
                    sock.connect(path)
            except (ConnectionRefusedError, FileNotFoundError):
                return False
            except BlockingIOError:
                return True
            self.sock = sock
            undo.pop_all()
        return True

    def disconnect(self) -> None:
        """Close the connection, if there is one."""
        if self.sock is not None:
            self.sock.close()
            self.sock = None

    def close(self) -> None:
        """Close every descriptor."""
        self.disconnect()
        for descriptor in (self.namespace, self.process):
            if descriptor >= 0:
                os.close(descriptor)
        self.namespace = self.process = -1

    def spawn(self) -> int:
        """Start the shim, and connect; return its pid. It is our child for as long as we live.

        Raises:
            OSError: It cannot be started.
        """
        with contextlib.ExitStack() as undo:
            listener = undo.enter_context(_seqpacket())
            (self.directory / SOCKET).unlink(missing_ok=True)
            with _short_path(self.directory) as path:
                # Before it runs: from here on a connection comes about if and only if it lives.
                listener.bind(path)
            listener.listen(_BACKLOG)
            log = os.open(self.directory / LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            undo.callback(os.close, log)
            high = fcntl.fcntl(listener.fileno(), fcntl.F_DUPFD_CLOEXEC, _OUT_OF_THE_WAY)
            undo.callback(os.close, high)
            high_log = fcntl.fcntl(log, fcntl.F_DUPFD_CLOEXEC, _OUT_OF_THE_WAY)
            undo.callback(os.close, high_log)
            root = Path(nodeagent.__file__).parent.parent
            pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-I", "-S", "-X", "utf8", "-c", _BOOT, str(root), str(self.directory)],
                {},
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0),
                    (os.POSIX_SPAWN_DUP2, 0, 1),
                    (os.POSIX_SPAWN_DUP2, high_log, 2),
                    (os.POSIX_SPAWN_DUP2, high, LISTENER),
                ],
                setsid=True,
                setsigmask=(),
                setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
            )
            self.connect()
        return pid

    def send(self, request: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
        """Send a request.

        Raises:
            KernelError: The shim does not take it.
        """
        try:
            if self.sock is None:
                raise ConnectionError("not connected")
            socket.send_fds(self.sock, [msgspec.json.encode(request)], list(descriptors))
        except OSError as error:
            raise KernelError(
                f"the process that holds container {self.spec.name} does not answer: {error}",
                f"look at {self.directory / LOG} on the node, or remove the container",
            ) from error

    def receive(self) -> tuple[ShimEvent, list[int]] | None:
        """Return the next event and its descriptors, which are the caller's; None: nothing has come.

        Raises:
            ConnectionError: The connection has ended.
        """
        if self.sock is None:
            raise ConnectionError("not connected")
        try:
            data, descriptors, _, _ = socket.recv_fds(self.sock, MESSAGE_BYTES, 4, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return None
        try:
            # The end of the connection reads as no data, which is no JSON either.
            return msgspec.json.decode(data, type=ShimEvent), descriptors
        except msgspec.MsgspecError as error:
            for descriptor in descriptors:
                os.close(descriptor)
            raise ConnectionError(str(error)) from error

    def recorded(self) -> ShimStatus | None:
        """Return the status a shim that is gone has left."""
        try:
            return msgspec.json.decode((self.directory / STATUS).read_bytes(), type=ShimStatus)
        except (OSError, msgspec.MsgspecError):
            return None

    def last_words(self) -> str:
        """Return the last line of the shim's own log, or what to say instead."""
        with contextlib.suppress(OSError):
            lines = (self.directory / LOG).read_text(errors="replace")[-4096:].splitlines()
            if lines:
                return lines[-1][:1000]
        return "the process that holds it ended before it was made"


def read_spec(directory: Path) -> ShimSpec | None:
    """Return what a container's directory says it runs; None: the directory was never finished."""
    try:
        return msgspec.json.decode((directory / SPEC).read_bytes(), type=ShimSpec)
    except (OSError, msgspec.MsgspecError):
        return None


def _seqpacket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)


@contextlib.contextmanager
def _short_path(directory: Path) -> Iterator[str]:
    """Yield a path of the socket that fits its 108 bytes, however long the directory's is (unix(7))."""
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET}"
    finally:
        os.close(descriptor)
