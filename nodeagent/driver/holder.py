"""The process that holds the socket of Docker's plugin `netctl`, and always answers: `nodeagent-driver`.

Docker waits 15 seconds for a plugin that is away, and for ever for one that is silent; its own start and
every `docker stop` with it. So the socket is held by something small that knows nothing: it says what the
plugin is, passes every other call on to the agent that is connected, and refuses at once where there is
none, or where the agent is silent. It imports little, keeps nothing, and is started before Docker.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Final

from nodeagent.driver.frames import MAX_FRAME, frame, make_room, parse_frame
from nodeagent.driver.http import HttpConnection

PLUGIN_SOCKET: Final = "/run/docker/plugins/netctl.sock"
AGENT_SOCKET: Final = "/run/netctl/driver.sock"

SILENT: Final = 0.8
"""Seconds of silence, while something is asked, after which the agent counts as hung."""
LONGEST_CALL: Final = 10.0
"""Seconds that an agent which is not hung may take for one call."""
PING: Final = 0.25
"""Seconds between two pings while something is asked."""
PING_HUNG: Final = 0.5
"""Seconds between two pings of a hung agent."""
SLOW: Final = 5.0
"""Seconds that a client may take to send the rest of a request, or to take an answer."""
MAX_CLIENTS: Final = 512

_READ: Final = 65536
_AWAY: Final = "the node agent is not running; see: systemctl status netctl-node"
_HUNG: Final = "the node agent does not answer; see: systemctl status netctl-node"
_LATE: Final = "the node agent was not done in time; see its log"
_RESTARTED: Final = "the node agent was started again meanwhile; try again"

# https://docs.docker.com/engine/extend/plugin_api/ and libnetwork's docs/remote.md and docs/ipam.md. The
# scope is local: each node's agent knows its own containers, and no key-value store of Docker's is needed.
_OWN: Final = {
    "/Plugin.Activate": b'{"Implements":["NetworkDriver","IpamDriver"]}',
    "/NetworkDriver.GetCapabilities": b'{"Scope":"local","ConnectivityScope":"local"}',
    "/NetworkDriver.DiscoverNew": b"{}",
    # What is said here Docker shows nowhere, and it asks twice at every start.
    "/NetworkDriver.EndpointOperInfo": b'{"Value":{}}',
    "/NetworkDriver.DiscoverDelete": b"{}",
    "/IpamDriver.GetCapabilities": b'{"RequiresMACAddress":false,"RequiresRequestReplay":false}',
    "/IpamDriver.GetDefaultAddressSpaces": (
        b'{"LocalDefaultAddressSpace":"netctl-local","GlobalDefaultAddressSpace":"netctl-global"}'
    ),
}
"""What is answered without the agent."""
_PROGRAM: Final = "/NetworkDriver.ProgramExternalConnectivity"
_PORTS: Final = "com.docker.network.portmap"


def error_answer(text: str) -> bytes:
    """Return the answer that refuses a call; network drivers say ``Err``, IPAM drivers ``Error``."""
    told = f"netctl: {text}"
    return json.dumps({"Err": told, "Error": told}).encode()


def _publishes_nothing(body: bytes) -> bool:
    """Tell whether a call that publishes an endpoint's ports names none: so do most, and nothing follows."""
    try:
        options = json.loads(body)["Options"]
        return not options[_PORTS]
    except (ValueError, TypeError, LookupError):
        return False


class _Client:
    """One connection of Docker's.

    Attributes:
        out: Bytes that are still to be sent.
        since: When the request or answer that is under way began; None: nothing is.
        used: When it last said something.
    """

    def __init__(self, sock: socket.socket, now: float) -> None:
        self.sock = sock
        self.http = HttpConnection()
        self.out = bytearray()
        self.since: float | None = None
        self.used = now


class _Asked:
    """One call that was passed on."""

    def __init__(self, client: _Client, now: float) -> None:
        self.client = client
        self.at = now


class Holder:
    """The two listening sockets, and who is connected to them.

    Args:
        plugin: Listens for Docker.
        agents: Listens for the agent.
        monotonic: Seconds of the host's monotonic clock.
    """

    def __init__(
        self,
        plugin: socket.socket,
        agents: socket.socket,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._plugin = plugin
        self._agents = agents
        self._monotonic = monotonic
        self._selector = selectors.DefaultSelector()
        self._clients: set[_Client] = set()
        self._listening = True
        self._agent: socket.socket | None = None
        self._hung = False
        self._asked: dict[int, _Asked] = {}
        self._number = 0
        self._refused = 0
        self._heard_at = 0.0
        self._pinged_at = 0.0
        for sock, accept in ((plugin, self._accept), (agents, self._accept_agent)):
            sock.setblocking(False)
            self._selector.register(sock, selectors.EVENT_READ, accept)

    def turn(self) -> None:
        """Wait for something to happen, and deal with it."""
        for key, events in self._selector.select(self._wait()):
            if isinstance(key.data, _Client):
                self._serve(key.data, events)
            else:
                key.data()
        self._timers()

    def _wait(self) -> float | None:
        """Return how long nothing needs to be done unless somebody says something; None: for ever."""
        times = [client.since + SLOW for client in self._clients if client.since is not None]
        if self._asked:
            times += [self._heard_at + SILENT, self._pinged_at + PING]
            times.append(min(asked.at for asked in self._asked.values()) + LONGEST_CALL)
        elif self._hung:
            times.append(self._pinged_at + PING_HUNG)
        return max(0.0, min(times) - self._monotonic()) if times else None

    def _timers(self) -> None:
        now = self._monotonic()
        for client in [c for c in self._clients if c.since is not None and now >= c.since + SLOW]:
            self._drop(client)
        if self._asked and now >= self._heard_at + SILENT:
            self._is_hung()
        for number in [n for n, asked in self._asked.items() if now >= asked.at + LONGEST_CALL]:
            self._answer(self._asked.pop(number).client, error_answer(_LATE))
        if self._agent is not None and (self._asked or self._hung):
            pause = PING_HUNG if self._hung else PING
            if now >= self._pinged_at + pause:
                self._ping(now)

    # --- Docker -------------------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            sock, _ = self._plugin.accept()
        except BlockingIOError:
            return
        except OSError as error:
            # There are no descriptors left; those of idle clients can be had back.
            _log("error", "a connection cannot be taken", error=str(error))
            self._make_place()
            return
        sock.setblocking(False)
        client = _Client(sock, self._monotonic())
        self._clients.add(client)
        self._selector.register(sock, selectors.EVENT_READ, client)
        if len(self._clients) >= MAX_CLIENTS:
            self._make_place()

    def _make_place(self) -> None:
        """Let the client go that said nothing for the longest time, or take no more until one goes."""
        idle = [c for c in self._clients if not c.http.waits and c.since is None]
        if len(idle) > 1:
            self._drop(min(idle, key=lambda client: client.used))
        elif self._listening and self._clients:
            self._selector.unregister(self._plugin)
            self._listening = False

    def _drop(self, client: _Client) -> None:
        if client not in self._clients:
            return
        self._clients.discard(client)
        self._selector.unregister(client.sock)
        client.sock.close()
        for number in [n for n, asked in self._asked.items() if asked.client is client]:
            del self._asked[number]
        if not self._listening:
            self._selector.register(self._plugin, selectors.EVENT_READ, self._accept)
            self._listening = True

    def _serve(self, client: _Client, events: int) -> None:
        try:
            # One may have been let go in this very turn.
            if events & selectors.EVENT_READ and client in self._clients:
                self._hear(client)
            self._send(client)
        except OSError:
            self._drop(client)
        except Exception as error:  # noqa: BLE001 - whatever one client sent, Docker keeps its plugin
            _log("error", "a connection is ended", error=repr(error))
            self._drop(client)

    def _hear(self, client: _Client) -> None:
        try:
            data = client.sock.recv(_READ)
        except BlockingIOError:
            return
        if not data or client.http.waits:
            # It goes; or it says more before it has its answer, which Docker never does.
            self._drop(client)
            return
        client.used = self._monotonic()
        client.http.feed(data)
        self._take(client)

    def _take(self, client: _Client) -> None:
        while (taken := client.http.take()) is not None:
            if isinstance(taken, bytes):
                client.out += taken
            else:
                self._call(client, *taken)

    def _call(self, client: _Client, path: str, body: bytes) -> None:
        """Answer a call, or pass it on."""
        now = self._monotonic()
        own = b"{}" if path == _PROGRAM and _publishes_nothing(body) else _OWN.get(path)
        if own is not None:
            client.out += client.http.answer(own)
        elif self._agent is None or self._hung:
            self._refused += 1
            client.out += client.http.answer(error_answer(_AWAY if self._agent is None else _HUNG))
        else:
            self._number += 1
            if not self._asked:
                self._heard_at = self._pinged_at = now
            self._asked[self._number] = _Asked(client, now)
            self._tell(frame({"id": self._number, "path": path[:128], "until": now + SILENT}, body))

    def _answer(self, client: _Client, body: bytes) -> None:
        """Answer the request of a client that waits, and take the next one that it has sent already."""
        client.out += client.http.answer(body)
        try:
            self._take(client)
            self._send(client)
        except OSError:
            self._drop(client)

    def _send(self, client: _Client) -> None:
        if client not in self._clients:
            return
        if client.out:
            with contextlib.suppress(BlockingIOError):
                del client.out[: client.sock.send(client.out)]
        if client.http.ended and not client.out and not client.http.waits:
            self._drop(client)
            return
        if not client.out and not client.http.begun:
            client.since = None
        elif client.since is None:
            client.since = self._monotonic()
        # One that waits is heard all the same: it may go.
        writing = selectors.EVENT_WRITE if client.out else 0
        self._selector.modify(client.sock, selectors.EVENT_READ | writing, client)

    # --- the agent ----------------------------------------------------------------------------------

    def _accept_agent(self) -> None:
        try:
            sock, _ = self._agents.accept()
        except OSError as error:
            _log("error", "the agent's connection cannot be taken", error=str(error))
            return
        self._lose_agent(_RESTARTED)
        sock.setblocking(False)
        make_room(sock)
        self._agent = sock
        self._selector.register(sock, selectors.EVENT_READ, self._hear_agent)
        _log("info", "the agent is connected")
        if self._refused:
            self._ping(self._monotonic())

    def _lose_agent(self, why: str) -> None:
        if self._agent is None:
            return
        self._selector.unregister(self._agent)
        self._agent.close()
        self._agent, self._hung = None, False
        self._refuse_all(why)

    def _refuse_all(self, why: str) -> None:
        asked, self._asked = self._asked, {}
        self._refused += len(asked)
        for one in asked.values():
            self._answer(one.client, error_answer(why))

    def _hear_agent(self) -> None:
        if self._agent is None:
            return
        try:
            data = self._agent.recv(MAX_FRAME)
            line, body = parse_frame(data) if data else ({}, b"")
        except BlockingIOError:
            return
        except (OSError, ValueError, RecursionError) as error:
            _log("error", "the agent's connection is ended", error=str(error))
            self._lose_agent(_AWAY)
            return
        if not data:
            _log("warning", "the agent is gone")
            self._lose_agent(_AWAY)
            return
        self._heard_at = self._monotonic()
        if self._hung:
            self._hung = False
            _log("info", "the agent answers again")
            # From here on nothing is refused, and it must know of all that was.
            self._ping(self._heard_at)
        number = line.get("id")
        asked = self._asked.pop(number, None) if isinstance(number, int) else None
        if asked is not None:
            self._answer(asked.client, body)

    def _ping(self, now: float) -> None:
        self._pinged_at = now
        self._tell(frame({"ping": self._number, "refused": self._refused}))

    def _tell(self, data: bytes) -> None:
        if self._agent is None:
            return
        try:
            self._agent.send(data)
        except BlockingIOError:
            # It has not read for so long that the kernel keeps no more for it.
            self._is_hung()
        except OSError as error:
            _log("warning", "the agent is gone", error=str(error))
            self._lose_agent(_AWAY)

    def _is_hung(self) -> None:
        if not self._hung:
            self._hung = True
            _log("error", "the agent does not answer", count=len(self._asked))
        self._refuse_all(_HUNG)


def listen(path: Path, kind: socket.SocketKind) -> socket.socket:
    """Listen at `path`, mode 0600, in the place of whatever socket is left there; there is no moment without.

    Raises:
        OSError: It cannot be made.
    """
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    sock = socket.socket(socket.AF_UNIX, kind)
    # Docker takes every *.sock in the folder for a plugin; this name it does not see.
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    before = os.umask(0o177)
    try:
        sock.bind(str(new))
    finally:
        os.umask(before)
    sock.listen(MAX_CLIENTS)
    new.rename(path)
    return sock


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `nodeagent-driver` until SIGTERM."""
    parser = argparse.ArgumentParser("nodeagent-driver", description="Holds the socket of Docker's plugin.")
    parser.add_argument(
        "--listen", type=Path, default=Path(PLUGIN_SOCKET), metavar="PATH", help=f"default: {PLUGIN_SOCKET}"
    )
    parser.add_argument(
        "--agent", type=Path, default=Path(AGENT_SOCKET), metavar="PATH", help=f"default: {AGENT_SOCKET}"
    )
    options = parser.parse_args(arguments)
    try:
        plugin = listen(options.listen, socket.SOCK_STREAM)
        agents = listen(options.agent, socket.SOCK_SEQPACKET)
    except OSError as error:
        _log("error", "there is no socket to hold", error=str(error))
        return 1
    made = [(path, path.stat().st_ino) for path in (options.listen, options.agent)]
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    _log("info", "holding the socket", endpoint=str(options.listen))
    _notify()
    holder = Holder(plugin, agents)
    try:
        while True:
            holder.turn()
    finally:
        for path, inode in made:
            # Another one may have taken our place by now.
            with contextlib.suppress(OSError):
                if path.stat().st_ino == inode:
                    path.unlink()


def _end(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)


def _notify() -> None:
    """Tell systemd that the socket is there, so that it may start Docker: sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
        sock.sendto(b"READY=1", "\0" + address[1:] if address.startswith("@") else address)


def _log(level: str, event: str, **fields: object) -> None:
    """Write a line like those of `netctl.log`, which would bring more modules along than all the rest."""
    line = {"program": "nodeagent-driver", "level": level, "event": event, **fields}
    with contextlib.suppress(OSError):
        sys.stderr.write(json.dumps(line) + "\n")
        sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
