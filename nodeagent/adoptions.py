"""Containers of Docker's that are being adopted, each on the stream of the user who asked for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import attrs

from netctl.model import PlacedContainer
from netctl.wire.messages import StreamEnd
from nodeagent.exec_stream import Send
from nodeagent.helper_messages import ExecEnded

RECORDED_WITHIN: Final = 10.0
"""Seconds after which nobody waits any longer for the broker to record what Docker has connected."""
_ID_DIGITS: Final = 32


@attrs.frozen
class _Connected:
    """Docker has connected it; the broker is to record it.

    Attributes:
        identifier: Of the container, as the broker will know it.
        until: When (monotonic) nobody waits for that any longer.
    """

    identifier: str
    until: float


class Adoptions:
    """What is being adopted.

    Args:
        send: Sends one message to the broker.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._asked: dict[int, int] = {}
        self._connected: dict[int, _Connected] = {}

    def __len__(self) -> int:
        return len(self._asked) + len(self._connected)

    def __contains__(self, stream: int) -> bool:
        return stream in self._asked or stream in self._connected

    def streams(self) -> list[int]:
        """Return the ids of the streams."""
        return [*self._asked, *self._connected]

    def add(self, stream: int, handle: int) -> None:
        """Docker is asked; the helper calls it `handle`."""
        self._asked[stream] = handle

    def ended(self, event: ExecEnded, now: float) -> None:
        """Take what became of one; with exit code 0 its message is Docker's id of the container."""
        for stream in [stream for stream, handle in self._asked.items() if handle == event.handle]:
            del self._asked[stream]
            if event.exit_code:
                self._send(StreamEnd(stream, None, event.message))
            else:
                self._connected[stream] = _Connected(event.message[:_ID_DIGITS], now + RECORDED_WITHIN)

    def settle(self, recorded: Callable[[str], PlacedContainer | None], now: float) -> None:
        """Tell users of what the broker has recorded meanwhile, or has not in time.

        Args:
            recorded: Returns what the broker wants of a container with this id.
            now: Monotonic seconds.
        """
        for stream, one in list(self._connected.items()):
            container = recorded(one.identifier)
            if container is not None:
                self._send(StreamEnd(stream, 0, f"{container.name} has joined at {container.address}"))
            elif now >= one.until:
                text = "Docker has connected it, and the broker has not recorded it yet; see `netctl ps`"
                self._send(StreamEnd(stream, None, text))
            else:
                continue
            del self._connected[stream]

    def deadline(self) -> float | None:
        """Return when (monotonic) `settle` has something to say by itself; None: never."""
        return min((one.until for one in self._connected.values()), default=None)

    def drop(self, stream: int) -> None:
        """Nobody waits; the container stays adopted: its network is half there."""
        self._asked.pop(stream, None)
        self._connected.pop(stream, None)
