"""The newest desired state, in memory and on disk.

On disk there are two files. `desired.state` holds a whole state, and `desired.log` the updates since, one
record each: ``length (4) | its CRC-32 (4) | CRC-32 of what follows (4) | Update in MessagePack``, numbers
big-endian. An update is written before it is applied, and made durable before it is reported as applied,
by `flush`, which may run in another thread meanwhile. When the log has grown, `compact` writes a whole
state and empties it.

A record that was cut short by a crash was never reported, and is dropped. Anything else that does not fit
is damage: both files are set aside as ``*.corrupt`` and the state is fetched anew, since going on from an
older state could open what was closed since.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Final

import attrs
import msgspec

from netctl.log import get_logger
from netctl.model import NodeState, Revision
from netctl.wire.messages import Reset, Update
from nodeagent.desired_index import DesiredIndex, Scope
from nodeagent.files import sync_directory, write_whole

MAX_STATE_BYTES: Final = 64 * 2**20
MAX_LOG_BYTES: Final = 16 * 2**20
COMPACT_BYTES: Final = 256 * 2**10
"""Bytes of log from which it is worth a whole state, if it is longer than that too."""

_LENGTH = struct.Struct(">I")
_RECORD = struct.Struct(">III")
_FORMAT: Final = 1


class _DamagedError(Exception):
    """What is on disk is not what was written."""


@attrs.frozen
class _Stored:
    """What `desired.state` holds, in MessagePack, after its CRC-32 (4 bytes, big-endian)."""

    format: int
    epoch: Revision
    revision: Revision
    state: NodeState


@attrs.frozen
class Held:
    """A desired state that is held.

    Attributes:
        epoch: Of the broker's store.
        revision: Within the epoch.
        index: The state.
    """

    epoch: int
    revision: int
    index: DesiredIndex


@attrs.frozen
class Taken:
    """The answer to a message with desired state.

    Attributes:
        outcome: ``taken``: it is held now; ``known``: what is held is as new; ``older``: it is not looked
            at; ``gap``: it does not follow what is held, so the broker must send the whole.
        scope: With ``taken``: what of the host it can touch; None: everything.
    """

    outcome: str
    scope: Scope | None = attrs.field(factory=Scope)


class Desired:
    """The newest desired state. Used from one thread, but for `flush`.

    Args:
        directory: Of the node, mode 0700.

    Attributes:
        held: What is held; None: nothing yet.
    """

    def __init__(self, directory: Path) -> None:
        self.held: Held | None = None
        self._state = directory / "desired.state"
        self._log = directory / "desired.log"
        self._log_bytes = 0
        self._state_bytes = 0
        self._whole = False
        self._dirty = False
        self._descriptor = -1
        self._logger = get_logger()

    def load(self) -> None:
        """Read what an earlier run held.

        Raises:
            OSError: The files are there and cannot be read or set aside.
        """
        damage = ""
        try:
            self.held = self._read()
        except _DamagedError as error:
            damage = str(error)
        if damage:
            self._set_aside(damage)

    def peek(self) -> None:
        """Read what is held, and touch nothing: an agent may be writing. What does not fit is nothing."""
        try:
            self.held = self._read(repair=False)
        except (_DamagedError, OSError):
            self.held = None

    def _set_aside(self, damage: str) -> None:
        aside = [path for path in (self._state, self._log) if path.exists()]
        for path in aside:
            path.replace(path.with_name(path.name + ".corrupt"))
        self._state_bytes = self._log_bytes = 0
        self._logger.error(
            "the desired state on disk is damaged; set aside, to be fetched anew",
            path=" ".join(f"{path}.corrupt" for path in aside),
            reason=damage,
        )

    def take(self, message: Reset | Update) -> Taken:
        """Hold what a message says, if it is newer and fits.

        An update is written, so that another run of this program finds it; it is not durable before `flush`,
        which also tells if it could not be written.
        """
        if isinstance(message, Reset):
            return self._take_whole(message)
        held = self.held
        if held is None:
            return Taken("gap")
        here, there = (held.epoch, held.revision), (message.epoch, message.revision)
        if there <= here:
            return Taken("known" if there == here else "older")
        if (message.epoch, message.base) != here:
            return Taken("gap")
        scope = held.index.scope_of(message.delta)
        self.held = Held(message.epoch, message.revision, held.index.advanced(message.delta))
        if not self._whole:
            self._append(message)
        return Taken("taken", scope)

    def _take_whole(self, message: Reset) -> Taken:
        held = self.held
        if held is not None and (message.epoch, message.revision) < (held.epoch, held.revision):
            return Taken("older")
        self.held = Held(message.epoch, message.revision, DesiredIndex.of(message.state))
        self._whole = True
        return Taken("taken", None)

    def flush(self) -> None:
        """Make durable what was taken.

        Raises:
            OSError: The disk does not take it.
        """
        if self._whole:
            self.compact()
        elif self._dirty:
            os.fdatasync(self._descriptor)
            self._dirty = False

    @property
    def dirty(self) -> bool:
        """Whether something was taken that is not durable yet."""
        return self._whole or self._dirty

    @property
    def compact_due(self) -> bool:
        """Whether the log has grown enough for `compact`."""
        return self._log_bytes > max(COMPACT_BYTES, self._state_bytes)

    def compact(self) -> None:
        """Write the whole state, durably, and begin an empty log.

        Raises:
            OSError: The disk does not take it.
        """
        if self.held is None:
            return
        stored = _Stored(_FORMAT, self.held.epoch, self.held.revision, self.held.index.state())
        body = msgspec.msgpack.encode(stored)
        write_whole(self._state, struct.pack(">I", zlib.crc32(body)) + body)
        self._state_bytes = len(body)
        # A crash before this leaves records that the state holds already; `load` skips them.
        self.close()
        self._log.unlink(missing_ok=True)
        self._log_bytes = 0
        self._whole = self._dirty = False

    def forget(self) -> None:
        """Delete what is on disk: this host is no node any more."""
        self.close()
        self.held = None
        for path in (self._state, self._log):
            path.unlink(missing_ok=True)
        sync_directory(self._state.parent)

    def close(self) -> None:
        """Close the files."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _append(self, update: Update) -> None:
        body = msgspec.msgpack.encode(update)
        record = _RECORD.pack(len(body), zlib.crc32(_LENGTH.pack(len(body))), zlib.crc32(body)) + body
        try:
            written = os.write(self._opened(), record)
        except OSError:
            written = 0
        self._log_bytes += written
        self._dirty = True
        # A disk that does not take the record may take the whole state, at the next flush; or that says why.
        self._whole = written < len(record)

    def _opened(self) -> int:
        if self._descriptor < 0:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._descriptor = os.open(self._log, flags, 0o600)
            sync_directory(self._log.parent)
        return self._descriptor

    def _read(self, *, repair: bool = True) -> Held | None:
        if not self._state.exists():
            if self._log.exists():
                raise _DamagedError("there are updates and no state they follow")
            return None
        stored = _decoded(_bounded(self._state, MAX_STATE_BYTES))
        self._state_bytes = self._state.stat().st_size
        held = Held(stored.epoch, stored.revision, DesiredIndex.of(stored.state))
        return self._replayed(held, repair=repair) if self._log.exists() else held

    def _replayed(self, held: Held, *, repair: bool) -> Held:
        data = _bounded(self._log, MAX_LOG_BYTES)
        offset = 0
        while len(data) - offset >= _RECORD.size:
            length, of_length, checksum = _RECORD.unpack_from(data, offset)
            if of_length != zlib.crc32(_LENGTH.pack(length)):
                raise _DamagedError("an update's length is damaged")
            body = data[offset + _RECORD.size : offset + _RECORD.size + length]
            if len(body) < length:
                break
            update = _update(body, checksum)
            if (update.epoch, update.revision) > (held.epoch, held.revision):
                if (update.epoch, update.base) != (held.epoch, held.revision):
                    raise _DamagedError(f"revision {update.revision} does not follow {held.revision}")
                held = Held(update.epoch, update.revision, held.index.advanced(update.delta))
            offset += _RECORD.size + length
        if offset < len(data) and repair:
            self._logger.warning("an update was cut short by a crash and is dropped", path=str(self._log))
            os.truncate(self._log, offset)
        self._log_bytes = offset
        return held


def _bounded(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise _DamagedError(f"{path.name} is larger than {limit} bytes")
    return data


def _decoded(data: bytes) -> _Stored:
    checksum, body = data[:4], data[4:]
    if checksum != struct.pack(">I", zlib.crc32(body)):
        raise _DamagedError("the state's checksum does not fit")
    try:
        stored = msgspec.msgpack.decode(body, type=_Stored)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _DamagedError(f"the state cannot be read: {error}") from None
    if stored.format != _FORMAT:
        raise _DamagedError(f"the state is of format {stored.format}, not {_FORMAT}")
    return stored


def _update(body: bytes, checksum: int) -> Update:
    if zlib.crc32(body) != checksum:
        raise _DamagedError("an update's checksum does not fit")
    try:
        return msgspec.msgpack.decode(body, type=Update)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _DamagedError(f"an update cannot be read: {error}") from None
