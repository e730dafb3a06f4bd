"""The server's side of one HTTP/1.1 connection (RFC 9112), without input or output: bytes in, bytes out."""

from __future__ import annotations

from typing import Final

import h11

MAX_BODY: Final = 256 * 1024
"""Bytes of the longest call: one that publishes a thousand ports has half of that."""
_MAX_HEAD: Final = 16 * 1024
# Docker's plugin protocol, https://docs.docker.com/engine/extend/plugin_api/
_CONTENT_TYPE: Final = b"application/vnd.docker.plugins.v1.1+json"


class HttpConnection:
    """One connection. One request at a time: the next is looked at once this one is answered.

    Attributes:
        waits: A request was taken and is not answered yet.
        ended: Nothing more can be said or heard; what `answer` or `take` returned may still be sent.
    """

    def __init__(self) -> None:
        self.waits = False
        self.ended = False
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEAD)
        self._path = ""
        self._body: list[bytes] = []
        self._size = 0
        self._method = b""

    def feed(self, data: bytes) -> None:
        """Take what came in; empty: the other side says no more."""
        try:
            self._http.receive_data(data)
        except h11.RemoteProtocolError:
            self.ended = True

    @property
    def begun(self) -> bool:
        """Whether part of a request has come, and the rest has not."""
        return not self.waits and not self.ended and self._http.their_state is not h11.IDLE

    def take(self) -> tuple[str, bytes] | bytes | None:
        """Return the next thing to do; ask again until it is None.

        Returns:
            Path and body of a POST, to be answered; or bytes to send; or None: nothing for now.
        """
        while not self.waits and not self.ended:
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as error:
                return self._refuse(error.error_status_hint, str(error))
            if event is h11.NEED_DATA:
                if not self._http.they_are_waiting_for_100_continue:
                    return None
                return self._http.send(h11.InformationalResponse(status_code=100, headers=[]))
            if isinstance(event, h11.EndOfMessage):
                return self._whole()
            self._part(event)
        return None

    def _part(self, event: object) -> None:
        if isinstance(event, h11.Request):
            self._method = event.method
            self._path = event.target.decode("ascii", "replace")
            self._body, self._size = [], 0
        elif isinstance(event, h11.Data):
            # One that is too long is heard to its end: Docker would take a broken connection for a reason
            # to try again.
            self._size += len(event.data)
            if self._size <= MAX_BODY:
                self._body.append(bytes(event.data))
        else:
            self.ended = True

    def _whole(self) -> tuple[str, bytes] | bytes:
        if self._method != b"POST":
            return self._refuse(405, "Docker's calls come by POST")
        if self._size > MAX_BODY:
            return self._refuse(413, "the call is too long; publish fewer ports at once")
        self.waits = True
        return self._path, b"".join(self._body)

    def answer(self, body: bytes) -> bytes:
        """Return the bytes that answer the request that waits."""
        self.waits = False
        data = self._respond(200, body, close=False)
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
        else:
            self.ended = True
        return data

    def _refuse(self, status: int, why: str) -> bytes:
        """Return the bytes that end the connection, an error of Docker's own form in them."""
        self.ended = True
        text = why.encode("ascii", "replace").replace(b"\\", b"/").replace(b'"', b"'")
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return b""
        return self._respond(status, b'{"Err":"netctl: ' + text + b'"}', close=True)

    def _respond(self, status: int, body: bytes, *, close: bool) -> bytes:
        headers = [(b"Content-Type", _CONTENT_TYPE), (b"Content-Length", str(len(body)).encode())]
        if close:
            headers.append((b"Connection", b"close"))
        data = (
            self._http.send(h11.Response(status_code=status, headers=headers)),
            self._http.send(h11.Data(data=body)),
            self._http.send(h11.EndOfMessage()),
        )
        return b"".join(part for part in data if part)
